"What pure functions answer at their boundaries, where a plausible slip gives a plausible figure."

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from housemlops.contract import Column, infer_column, infer_contract
from housemlops.drift import column_checks, mae_interval
from housemlops.pipeline.workspace import set_as_of
from housemlops.prepare import split_by_time
from housemlops.promote import newest, succession, taken_back
from housemlops.serving.log_view import view_names
from housemlops.settings import WorkbookError


def decision(action: str, model: str, version: int, sha256: str, **more) -> dict:
    "An entry of the promotion log."
    return {
        "action": action,
        "model": model,
        "version": version,
        "model_sha256": sha256,
    } | more


def test_the_test_split_has_as_many_months_as_asked():
    months = pd.Series(["2009-10", "2009-11", "2009-12", "2010-01"])
    assert split_by_time(months, 1).tolist() == [False, False, False, True]
    assert split_by_time(months, 3).tolist() == [False, True, True, True]


def test_the_interval_of_a_mae_leaves_half_of_alpha_on_each_side():
    errors = np.random.default_rng(1).exponential(1000, 400)
    low, high = mae_interval(errors, 0.1)
    deviation = errors.std() / np.sqrt(len(errors))
    assert (errors.mean() - low) / deviation == pytest.approx(1.645, abs=0.15)
    assert (high - errors.mean()) / deviation == pytest.approx(1.645, abs=0.15)


@pytest.mark.parametrize("rows, compared", [(0, 0), (2, 0), (4, 0), (5, 1)])
def test_fewer_than_five_values_are_not_compared(rows, compared):
    reference, current = (pd.Series(np.arange(float(n))) for n in (100, rows))
    checks = column_checks("drift", "area", reference, current, True, 0.15)
    assert len(checks) == compared


@pytest.mark.parametrize("other", ["a", "z"])
def test_decisions_about_other_models_and_files_do_not_count(other):
    entries = [
        decision("promoted", "house", 1, "m"),
        decision("promoted", other, 7, "m"),
        decision("rolled back", other, 6, "n", instead_of_sha256="m"),
        decision("promoted", "house", 2, other),
    ]
    assert newest(entries, "house", "m", "promoted")["version"] == 1
    assert taken_back(entries, "house", "m") is None
    assert succession(entries, "house") == [1, 2]


def test_a_champion_may_be_an_older_version_and_counts_once():
    entries = [decision("promoted", "house", version, "m") for version in (3, 1, 2, 2)]
    assert succession(entries, "house") == [3, 1, 2]


def test_a_range_goes_from_low_to_high():
    with pytest.raises(ValidationError, match="from low to high"):
        Column(type="number", description="Area", range=(2, 1))


def test_a_text_with_too_many_values_is_drafted_as_an_identifier():
    column = infer_column(pd.Series([f"street {n}" for n in range(51)]))
    assert (column["role"], column["categories"]) == ("identifier", ["street 0"])
    assert (
        infer_column(pd.Series([f"street {n}" for n in range(50)]))["role"] == "feature"
    )


@pytest.mark.parametrize(
    "given", [{"target": "prize"}, {"target": "price", "date": "sould"}]
)
def test_a_draft_names_columns_that_are_there(given):
    table = pd.DataFrame({"price": ["1"], "sold": ["2010-07"]})
    with pytest.raises(WorkbookError, match="is not a column of the table"):
        infer_contract(table, "mine", **given)


def test_view_names_are_numbered_one_after_the_other():
    assert view_names(["a", "A", "a"]) == ["a", "A_2", "a_3"]


@pytest.mark.parametrize("month", ["2009-01", "2011-02"])
def test_a_month_before_or_after_is_written(tmp_path, month):
    (tmp_path / "params.yaml").write_text("as_of: 2010-07  # month\n")
    set_as_of(tmp_path, month)
    assert (tmp_path / "params.yaml").read_text() == f"as_of: {month}  # month\n"
