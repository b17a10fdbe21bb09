"""Each gate of params.yaml can fail: it is made to, through the whole function of its stage, on a real build of the sample."""

import importlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import numpy_helper

from housemlops.contract import load_contract
from housemlops.core.files import read_json, write_json
from housemlops.evaluate import slice_labels
from housemlops.pipeline.sample import copy_sample, kept_sample
from housemlops.settings import WorkbookError, folder_sha256, params, repo_root

ROOT = repo_root()
PARAMS = params(ROOT)
STAGES = ["ingest", "prepare", "train", "evaluate", "promote", "serve"]
NO_GATES = {
    "dataset": "names the data",
    "as_of": "names the month",
    "label_delay_months": "says when a price is known",
    "retrain_pause_months": "holds back a retraining, not a model: tests/test_history.py",
    "prepare.test_months": "size of the test",
    "prepare.test_fraction": "size of the test",
    "prepare.seed": "seed",
    "train": "how a model is made; evaluate judges it",
    "evaluate.min_slice": "which slices are judged",
    "promote.resamples": "precision of the bootstrap",
    "promote.seed": "seed",
    "monitor.months": "size of the window",
    "monitor.html_columns": "length of the page",
}
pytestmark = pytest.mark.slow  # the sample is trained once, by whoever asks first


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    "The build folder of a whole lifecycle on the sample, with a state folder of its own."
    home = tmp_path_factory.mktemp("gates")
    copy_sample(kept_sample(ROOT, STAGES, ROOT / "var/sample"), home)
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {
            "PATHS_STATE": home / "state",
            "MLFLOW_TRACKING_URI": f"sqlite:///{home}/state/mlflow/mlflow.db",
            "MLFLOW_ARTIFACTS": home / "state/mlflow/artifacts",
        }.items():
            patch.setenv(f"HOUSEMLOPS_{key}", str(value))
        yield home / "build"


@pytest.fixture
def build(sample, tmp_path) -> Path:
    "A copy of it by hard links; a file is changed by `rewrite` only."
    return Path(shutil.copytree(sample, tmp_path / "build", copy_function=os.link))


def rewrite(path: Path, write: Callable, value: object) -> None:
    "Put a new file in the place of a link, so that the other copies keep theirs."
    path.unlink()
    write(path, value)


def write_table(path: Path, table: pd.DataFrame) -> None:
    table.to_parquet(path)


def stage(name: str, build: Path, **changes) -> dict:
    "Run a stage as a function, with the parameters of params.yaml but for some."
    run = getattr(importlib.import_module(f"housemlops.{name}"), f"run_{name}")
    wanted = run.__code__.co_varnames[: run.__code__.co_argcount]
    given = PARAMS | PARAMS[name] | {"build": build, "dataset": "sample"} | changes
    return run(**{key: given[key] for key in wanted})


def change_prices(build: Path, factor: object) -> None:
    "Multiply the prices of the test split."
    path = build / "prepare/test.parquet"
    test = pd.read_parquet(path)
    rewrite(path, write_table, test.assign(price=test["price"] * factor))


def failed(result: dict) -> dict[str, str]:
    "The gates that have failed, with their reasons."
    return {g["name"]: g["reason"] for g in result["gates"] if not g["passed"]}


# Ingest and prepare


def fail_min_month_share(build):
    wanted = PARAMS["ingest"]["min_month_share"]
    found = stage("ingest", build)
    assert not found["complete"] and "3 sales of 2010-07 are known" in found["why"]
    assert stage("ingest", build, min_month_share=wanted / 5)["complete"]


def fail_max_quarantined(build):
    path = build / "ingest/sales.csv"
    sales = pd.read_csv(path, dtype=str, keep_default_na=False)
    sales.loc[: len(sales) // 10, "area"] = "a lot"
    rewrite(path, lambda path, table: table.to_csv(path, index=False), sales)
    with pytest.raises(WorkbookError, match="more than the 5% allowed"):
        stage("prepare", build)


# Evaluate


@pytest.fixture(scope="module")
def doubled(sample, tmp_path_factory) -> dict:
    "The evaluation of a model whose prices are half of what was paid."
    copy = tmp_path_factory.mktemp("doubled") / "build"
    shutil.copytree(sample, copy, copy_function=os.link)
    change_prices(copy, 2)
    return stage("evaluate", copy)


def coverage_of(result: dict) -> float:
    return result["model"]["coverage"]


def fail_coverage(build):
    "Below its lower limit when prices are doubled; above the upper one when intervals hold everything."
    narrow = np.full(len(pd.read_parquet(build / "prepare/test.parquet")), 2.0)
    change_prices(build, narrow)
    result = stage("evaluate", build)
    low, high = PARAMS["evaluate"]["thresholds"]["sample"]["coverage"]
    assert coverage_of(result) < low and "COVERAGE" in failed(result)["coverage"]
    answers = pd.read_csv(build / "evaluate/predictions.csv")
    rewrite_prices(build, answers["predicted"].to_numpy())
    result = stage("evaluate", build)
    assert coverage_of(result) > high and "COVERAGE" in failed(result)["coverage"]


def rewrite_prices(build: Path, prices: np.ndarray) -> None:
    path = build / "prepare/test.parquet"
    rewrite(path, write_table, pd.read_parquet(path).assign(price=prices))


def fail_width(build):
    limits = PARAMS["evaluate"]["thresholds"]["sample"]
    width = read_json(build / "evaluate/metrics.json")["model"]["width"]
    narrower = {"sample": limits | {"width": width - 0.01}}
    assert "WIDTH" in failed(stage("evaluate", build, thresholds=narrower))["width"]


def fail_max_slice_ratio(build):
    "The oldest third of the houses is sold at four times the price, and the model does not know."
    contract = load_contract("sample")
    test = pd.read_parquet(build / "prepare/test.parquet")
    plan = read_json(build / "train/model/artifacts/plan.json")
    ages = slice_labels(test, contract, plan)["age"]
    change_prices(build, np.where(ages.str.startswith("3"), 4.0, 1.0))
    reason = failed(stage("evaluate", build))["slice"]
    assert "times that of the 48 other sales" in reason


def fail_without_a_slice(build):
    reason = failed(stage("evaluate", build, min_slice=40))["slice"]
    assert "no slice has 40 sales" in reason and "evaluate.min_slice" in reason


# Promote


def make_champion(build: Path, factor: float, learned: bool = False) -> None:
    "Put a champion in the registry that says `factor` times the price, and may have learned the test."
    import mlflow

    from housemlops.contract import row_fingerprints
    from housemlops.model.registry import ALIAS, registered_name
    from housemlops.settings import tracking

    model = Path(shutil.copytree(build / "train/model", build / f"champion-{factor}"))
    graph = onnx.load(model / "artifacts/graph.onnx")
    [output] = graph.graph.output
    inner = f"{output.name}_before"
    for node in graph.graph.node:
        node.output[:] = [
            inner if name == output.name else name for name in node.output
        ]
    shift = numpy_helper.from_array(np.array([np.log(factor)], np.float32), "shift")
    graph.graph.initializer.append(shift)
    graph.graph.node.append(
        onnx.helper.make_node("Add", [inner, "shift"], [output.name])
    )
    (model / "artifacts/graph.onnx").write_bytes(graph.SerializeToString())
    if learned:
        test = pd.read_parquet(build / "prepare/test.parquet")
        known = row_fingerprints(test, load_contract("sample"))
        write_json(model / "artifacts/learned.json", [*known])
    client = tracking().MlflowClient()
    name = registered_name("sample")
    tags = {"model_sha256": folder_sha256(model)}
    version = client.create_model_version(name, str(model), tags=tags)
    client.set_registered_model_alias(name, ALIAS, version.version)
    mlflow.set_tracking_uri(None)


def fail_tolerance(build):
    "What was paid is 1.3 times the challenger's price, and the champion knows."
    change_prices(build, 1.3)
    make_champion(build, 1.3)
    result = stage("promote", build)
    assert (
        not result["promoted"] and "at worst +3.0% is allowed" in result["reasons"][0]
    )
    assert result["duel"]["low"] > PARAMS["promote"]["tolerance"]


def fail_confidence(build):
    "The same difference is allowed at the confidence of a coin, and refused when one wants to be sure."
    make_champion(build, 1.02)
    sure = stage("promote", build, confidence=0.999, tolerance=-1)["duel"]["high"]
    coin = stage("promote", build, confidence=0.01, tolerance=-1)["duel"]["high"]
    assert coin < sure
    between = {"tolerance": (coin + sure) / 2}
    assert not stage("promote", build, confidence=0.999, **between)["promoted"]
    assert stage("promote", build, confidence=0.01, **between)["promoted"]


def fail_promote_min_rows(build):
    make_champion(build, 1.01, learned=True)
    result = stage("promote", build)
    assert not result["promoted"] and result["duel"] is None
    assert "has learned from 72 of the 72 test sales" in result["reasons"][0]


# Monitor


def watch(build: Path, **changes) -> dict:
    "Monitor the sample, whose months have few sales, as its notebook does."
    return stage("monitor", build, **({"min_rows": 20, "months": 6} | changes))


def fail_monitor_min_rows(build):
    result = watch(build, min_rows=1000)
    assert result["verdict"] == "insufficient data"
    assert "1000 are asked" in result["reasons"][0]


def fail_max_mae_ratio(build):
    change_prices(build, 1.3)
    result = watch(build)
    assert (result["verdict"], result["retrain"]) == ("degraded", result["complete"])
    assert result["mae_ratio"] > PARAMS["monitor"]["max_mae_ratio"]
    assert result["reasons"][0].startswith("the MAE is")
    assert result["rule"].startswith("the MAE is over 1.25 times")


def shrink_reference(build: Path) -> None:
    "Let the champion have learned from houses of half the size."
    path = build / "prepare/train.parquet"
    train = pd.read_parquet(path)
    rewrite(path, write_table, train.assign(area=train["area"] * 0.5))


def fail_alpha(build):
    shrink_reference(build)
    assert "area" in watch(build)["drifted"]
    assert "area" not in watch(build, alpha=1e-30)["drifted"]


def fail_min_effect(build):
    shrink_reference(build)
    assert "area" in watch(build)["drifted"]
    assert "area" not in watch(build, min_effect=0.95)["drifted"]


def fail_max_misfits(build):
    path = build / "prepare/quarantine.csv"
    columns = pd.read_csv(path).columns
    rows = pd.DataFrame({"row": range(20), "month": "2010-07"}).reindex(columns=columns)
    rewrite(path, lambda path, table: table.to_csv(path, index=False), rows)
    result = watch(build)
    assert (result["verdict"], result["retrain"]) == ("data quality", False)
    assert "sales are in quarantine" in result["reasons"][0]


def fail_max_age_months(build):
    path = build / "serve/model/release.json"
    rewrite(path, write_json, read_json(path) | {"as_of": "2008-01"})
    result = watch(build)
    assert result["verdict"] == "old champion" and result["alarm"]
    assert "31 months ago, 12 are allowed" in result["reasons"][0]
    assert result["rule"] in (build / "monitor/report.html").read_text()


def fails_when_doubled(name: str) -> Callable:
    "A gate that a model fails whose prices are half of what was paid."

    def fail(result: dict) -> None:
        assert name.upper() in failed(result)[name]

    return fail


DOUBLED = {
    f"evaluate.thresholds.{name}": fails_when_doubled(name)
    for name in ("mae", "mse", "rmse", "rmsle", "mape", "r2")
} | {"evaluate.min_gain": fails_when_doubled("gain")}
FAILS = {
    "ingest.min_month_share": fail_min_month_share,
    "prepare.max_quarantined": fail_max_quarantined,
    "evaluate.thresholds.coverage": fail_coverage,
    "evaluate.thresholds.width": fail_width,
    "evaluate.max_slice_ratio": fail_max_slice_ratio,
    "promote.tolerance": fail_tolerance,
    "promote.confidence": fail_confidence,
    "promote.min_rows": fail_promote_min_rows,
    "monitor.min_rows": fail_monitor_min_rows,
    "monitor.alpha": fail_alpha,
    "monitor.min_effect": fail_min_effect,
    "monitor.max_mae_ratio": fail_max_mae_ratio,
    "monitor.max_misfits": fail_max_misfits,
    "monitor.max_age_months": fail_max_age_months,
}


def names_of(given: dict) -> set[str]:
    "All parameters, those of a section with its name before a point."
    found = set()
    for name, value in given.items():
        if name in NO_GATES or not isinstance(value, dict):
            found.add(name)
            continue
        found |= {f"{name}.{key}" for key in value if key != "thresholds"}
        for limits in value.get("thresholds", {}).values():
            found |= {f"{name}.thresholds.{metric}" for metric in limits}
    return found


def test_every_parameter_is_a_gate_with_a_test_or_no_gate():
    assert names_of(PARAMS) == {*DOUBLED, *FAILS, *NO_GATES}


def test_a_new_gate_without_a_test_is_noticed():
    new = PARAMS | {"monitor": PARAMS["monitor"] | {"max_surprise": 1}}
    assert names_of(new) - {*DOUBLED, *FAILS, *NO_GATES} == {"monitor.max_surprise"}


def test_an_honest_build_passes(build):
    assert failed(stage("evaluate", build)) == {}


@pytest.mark.parametrize("name", DOUBLED)
def test_a_gate_on_errors_fails(doubled, name):
    DOUBLED[name](doubled)


@pytest.mark.parametrize("name", FAILS)
def test_a_gate_fails_through_its_stage(build, name):
    FAILS[name](build)


def test_no_slice_to_judge_is_no_pass(build):
    fail_without_a_slice(build)
