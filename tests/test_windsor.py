"The other data set, which has no dates, through the whole lifecycle and through a simulated shift."

import pytest

from checkout import STAGES, clone


@pytest.mark.slow
def test_windsor_goes_all_the_way(tmp_path):
    "With the workbook's own parameters, but fewer and larger boosting steps"
    town = clone(tmp_path / "workbook")
    town.git("checkout", "--quiet", "HEAD~1", "params.yaml")
    town.params(
        lambda p: (
            p.update(dataset="windsor"),
            p["train"].update(trees=120, learning_rate=0.1),
        )
    )
    done, text = town.run()
    assert done == dict.fromkeys(STAGES, "ran"), text
    assert "Champion: house-prices-windsor version 1" in text
    code, text = town.housemlops("simulate", "--shift", "inflation")
    assert code == 0 and "as it should be" in text, text
