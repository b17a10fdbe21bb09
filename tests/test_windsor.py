"The other data set, which has no dates, through all stages and through a simulated shift."

import json
import subprocess
import sys

import pytest

from checkout import STAGES, clone

RUN_STAGES = """
import importlib
from pathlib import Path
from housemlops.pipeline.graph import graph, pipeline
from housemlops.pipeline.parameters import stage_parameters

root = Path.cwd()
for stage in graph(pipeline(root)):
    run = getattr(importlib.import_module(f"housemlops.{stage}"), f"run_{stage}")
    run(build=root / "var/latest/build", **stage_parameters(root, stage))
    print(stage, flush=True)
"""


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
    for command in (["-m", "dvc", "pull", "data/windsor.csv.dvc"], ["-c", RUN_STAGES]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=town.path,
            env=town.environ,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.split() == STAGES
    receipt = json.loads(
        (town.path / "var/latest/build/promote/receipt.json").read_text()
    )
    assert receipt["promoted"], receipt["reasons"]
    code, text = town.housemlops("simulate", "--shift", "inflation")
    assert code == 0 and "as it should be" in text, text
