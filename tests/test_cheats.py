"An evaluation that is fooled is worse than none: each way to cheat is tried on the real stages, and caught with a sentence."

import importlib
import shutil
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from housemlops.contract import load_contract
from housemlops.pipeline.parameters import parameter_defaults, read_notebook
from housemlops.settings import WorkbookError, repo_root

ROOT = repo_root()
pytestmark = pytest.mark.slow


def stage(name: str, build: Path, dataset: str = "sample") -> dict:
    "Run a stage as a function, with the defaults of its notebook"
    values = parameter_defaults(read_notebook(ROOT, name), name) | {
        "build": build,
        "dataset": dataset,
    }
    return getattr(importlib.import_module(f"housemlops.{name}"), f"run_{name}")(
        **values
    )


def split(build: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(build / f"prepare/{name}.parquet")


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    "The build folder of an honest run up to its training, with a state folder of its own"
    home = tmp_path_factory.mktemp("cheats")
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {
            "PATHS_STATE": home / "state",
            "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
            "MLFLOW_ARTIFACTS": home / "artifacts",
        }.items():
            patch.setenv(f"HOUSEMLOPS_{key}", str(value))
        for name in ("ingest", "prepare", "train"):
            stage(name, home / "build")
        yield home / "build"


@pytest.fixture
def build(honest, tmp_path) -> Path:
    "A copy to cheat with"
    return Path(shutil.copytree(honest, tmp_path / "build"))


@pytest.fixture
def liberal(tmp_path):
    "Write the sample's contract again, with another role for some columns"

    def write(**roles) -> str:
        yaml, path = YAML(), tmp_path / "liberal.contract.yaml"
        content = yaml.load(
            (ROOT / "data/sample.contract.yaml").read_text(encoding="utf-8")
        )
        for name, column in roles.items():
            content["columns"].setdefault(
                name, {"type": "number", "description": "told by a friend"}
            ).update(column)
        with path.open("w", encoding="utf-8") as file:
            yaml.dump(content, file)
        return str(path)

    return write


def test_an_honest_model_is_judged(build):
    assert {gate["name"] for gate in stage("evaluate", build)["gates"]} >= {
        "mae",
        "gain",
        "slice",
    }


def test_evaluation_on_training_data(build):
    split(build, "train").tail(80).to_parquet(build / "prepare/test.parquet")
    with pytest.raises(WorkbookError, match="has learned 80 of the 80 test sales"):
        stage("evaluate", build)


def test_test_rows_in_the_training_split(build):
    pd.concat([split(build, "train"), split(build, "test").head(3)]).to_parquet(
        build / "prepare/train.parquet"
    )
    stage("train", build)
    with pytest.raises(WorkbookError, match="has learned 3 of the 72 test sales"):
        stage("evaluate", build)


def test_a_post_sale_column(build, liberal):
    "Its role is changed for the training, and changed back"
    stage("train", build, liberal(**{"Sale.Condition": {"role": "feature"}}))
    with pytest.raises(
        WorkbookError,
        match="reads `Sale.Condition`, which is known only after the sale",
    ):
        stage("evaluate", build)


def test_the_target_among_the_features(build, liberal):
    "A copy of the price under another name, rescaled and rounded"
    for name in ("train", "test"):
        sales = split(build, name)
        sales.assign(tax_value=(sales["price"] * 0.4 / 1000).round() * 1000).to_parquet(
            build / f"prepare/{name}.parquet"
        )
    with pytest.raises(
        WorkbookError, match="`tax_value` gives the price away.*`after_sale`"
    ):
        stage("train", build, liberal(tax_value={"group": "Other"}))


@pytest.mark.parametrize(
    "column, derived",
    [
        ("price", {"sum": {"price": 0.5}}),
        ("Sale.Type", {"product": ["area", "Sale.Type"]}),
    ],
)
def test_a_feature_made_of_the_answer(liberal, column, derived):
    path = Path(liberal())
    content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    content["derived"]["clever"] = derived | {"description": "too good to be true"}
    YAML().dump(content, path)
    with pytest.raises(
        WorkbookError, match=f"clever.*{column}.*not known before the sale"
    ):
        load_contract(str(path))
