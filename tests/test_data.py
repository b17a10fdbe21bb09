"The bundled data: there on a fresh clone without a network, and as the prose says it is."
import subprocess
import sys

import pandas as pd
import pytest
from ruamel.yaml import YAML

from housemlops.contract import cast, load_contract
from housemlops.ingest import file_md5
from housemlops.prepare import sort_out
from housemlops.settings import params, repo_root

ROOT = repo_root()
TABLES = {"ames": 2930, "windsor": 546}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    "A fresh clone after `dvc pull -R data`"
    path = tmp_path_factory.mktemp("clone")/"workbook"
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, path], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "pull", "--quiet", "--recursive", "data"], cwd=path, check=True)
    return path


@pytest.mark.parametrize("dataset", TABLES)
def test_dvc_pull_gives_the_recorded_bytes(clone, dataset):
    recorded = YAML(typ="safe").load((ROOT/f"data/{dataset}.csv.dvc").read_text())["outs"][0]["md5"]
    assert file_md5(clone/f"data/{dataset}.csv") == recorded


@pytest.mark.parametrize("dataset", TABLES)
def test_every_value_fits_the_contract(clone, dataset):
    raw = pd.read_csv(clone/f"data/{dataset}.csv", dtype=str, keep_default_na=False)
    _, problems = cast(raw, load_contract(dataset))
    assert len(raw) == TABLES[dataset] and problems.empty, problems


def test_the_one_house_in_quarantine(clone):
    "prepare.ipynb tells of a garage of the year 2207"
    raw = pd.read_csv(clone/"data/ames.csv", dtype=str, keep_default_na=False)
    _, quarantine, flags = sort_out(raw, load_contract("ames"))
    assert quarantine[["column", "value"]].values.tolist() == [["Garage.Yr.Blt", "2207.0"]] and flags.empty


def test_every_data_set_has_limits():
    assert {path.name.removesuffix(".contract.yaml") for path in (ROOT/"data").glob("*.contract.yaml")} == {*params()["evaluate"]["thresholds"]}
