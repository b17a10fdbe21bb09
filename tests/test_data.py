"The bundled data: there on a fresh clone without a network, as the prose says it is, and growing by files that arrive."

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from ruamel.yaml import YAML

from housemlops.contract import cast, load_contract, sale_months
from housemlops.core.files import file_md5
from housemlops.ingest import completeness, known_at, land, merge_sales, read_ledger
from housemlops.prepare import sort_out
from housemlops.settings import WorkbookError, params, repo_root

ROOT = repo_root()
TABLES = {"ames": 2930, "windsor": 546}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    "A fresh clone after `dvc pull -R data`"
    path = tmp_path_factory.mktemp("clone") / "workbook"
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, path], check=True)
    subprocess.run(
        [sys.executable, "-m", "dvc", "pull", "--quiet", "--recursive", "data"],
        cwd=path,
        check=True,
    )
    return path


@pytest.mark.parametrize("dataset", TABLES)
def test_dvc_pull_gives_the_recorded_bytes(clone, dataset):
    recorded = YAML(typ="safe").load((ROOT / f"data/{dataset}.csv.dvc").read_text())[
        "outs"
    ][0]["md5"]
    assert file_md5(clone / f"data/{dataset}.csv") == recorded


@pytest.mark.parametrize("dataset", TABLES)
def test_every_value_fits_the_contract(clone, dataset):
    raw = pd.read_csv(clone / f"data/{dataset}.csv", dtype=str, keep_default_na=False)
    _, problems = cast(raw, load_contract(dataset))
    assert len(raw) == TABLES[dataset] and problems.empty, problems


def test_the_one_house_in_quarantine(clone):
    "prepare.ipynb tells of a garage of the year 2207"
    raw = pd.read_csv(clone / "data/ames.csv", dtype=str, keep_default_na=False)
    _, quarantine, flags = sort_out(raw, load_contract("ames"))
    assert (
        quarantine[["column", "value"]].values.tolist() == [["Garage.Yr.Blt", "2207.0"]]
        and flags.empty
    )


def test_every_data_set_has_limits():
    assert {
        path.name.removesuffix(".contract.yaml")
        for path in (ROOT / "data").glob("*.contract.yaml")
    } == {*params()["evaluate"]["thresholds"]}


@pytest.mark.parametrize(
    "as_of, told",
    [
        ("2010-07", ""),
        ("2010-06", ""),
        ("2006-02", ""),
        ("2010-08", "8 sales of 2010-07 are known, and 2008-07 had 101"),
        ("2010-09", "no sale of 2010-08 is known"),
    ],
)
def test_a_month_that_is_not_all_there(clone, as_of, told):
    contract = load_contract("ames")
    why = completeness(
        sale_months(
            known_at(read_ledger(clone / "data/ames.csv"), contract, as_of), contract
        ),
        as_of,
        0.5,
    )
    assert why.startswith(told) and bool(why) == bool(told), why


def pointer(clone, dataset="ames") -> str:
    return YAML(typ="safe").load((clone / f"data/{dataset}.csv.dvc").read_text())[
        "outs"
    ][0]["md5"]


def arrival(clone, folder):
    "A file of three new sales, two corrected ones and ninety-five known ones, with its columns in another order"
    ledger = read_ledger(clone / "data/ames.csv")
    known = ledger.head(97).copy()
    known.loc[[3, 5], "price"] = ["123456", "234567"]
    known["area"] += ".0"
    new = ledger.tail(3).assign(Order=["90001", "90002", "90003"])
    path = folder / "june.csv"
    pd.concat([known, new])[[*reversed(ledger.columns)]].to_csv(path, index=False)
    return path, ledger


@pytest.mark.slow
def test_a_file_lands_once(clone, tmp_path):
    path, before = arrival(clone, tmp_path)
    old = pointer(clone)
    found = land(path, "ames", clone)
    assert (
        found["sentence"].startswith(
            "3 new, 2 corrected, 95 known already; the first month touched is "
        )
        and found["changed"]
    )
    assert (
        found["before_md5"] == old
        and found["data_md5"]
        == pointer(clone)
        == file_md5(clone / "data/ames.csv")
        != old
    )
    now = read_ledger(clone / "data/ames.csv")
    assert len(now) == len(before) + 3 and now.loc[[3, 5], "price"].tolist() == [
        "123456",
        "234567",
    ]
    same = now.head(len(before)) == before
    assert (~same).sum().sum() == 2 and sale_months(
        now, load_contract("ames")
    ).notna().all()
    stamp = (clone / "data/ames.csv").stat().st_mtime_ns
    again = land(path, "ames", clone)
    assert (
        again["sentence"]
        == f"0 new, 0 corrected, 100 known already; data version {found['data_md5'][:12]}, as before"
        and not again["changed"]
    )
    assert (clone / "data/ames.csv").stat().st_mtime_ns == stamp
    changed = subprocess.run(
        ["git", "-C", clone, "status", "--porcelain"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert changed == ["M", "data/ames.csv.dvc"]
    subprocess.run(
        ["git", "-C", clone, "checkout", "--quiet", "data/ames.csv.dvc"], check=True
    )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "dvc",
            "checkout",
            "--quiet",
            "--force",
            "data/ames.csv.dvc",
        ],
        cwd=clone,
        check=True,
    )
    assert file_md5(clone / "data/ames.csv") == old, "the version before is not kept"


@pytest.mark.slow
def test_two_land_at_once_and_one_is_killed(clone, tmp_path):
    path, before = arrival(clone, tmp_path)
    program = f"from pathlib import Path; from housemlops.ingest import land; land({str(path)!r}, 'ames', Path({str(clone)!r}))"
    killed = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    while killed.poll() is None and file_md5(clone / "data/ames.csv") == pointer(clone):
        time.sleep(0.005)  # until the table is there and DVC does not know it yet
    killed.kill()
    killed.wait()
    with ThreadPoolExecutor(3) as pool:
        told = [
            found["sentence"]
            for found in pool.map(lambda _: land(path, "ames", clone), range(3))
        ]
    assert (
        pointer(clone) == file_md5(clone / "data/ames.csv")
        and len(read_ledger(clone / "data/ames.csv")) == len(before) + 3
    ), told
    assert (
        sum(sentence.startswith("0 new, 0 corrected, 100 known") for sentence in told)
        >= 2
    )


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda sales: sales.drop(columns="price"), "lacks the column 'price'"),
        (
            lambda sales: sales.rename(columns={"price": "prize"}).assign(price="1"),
            "has a column 'prize', which the ledger has not: take it out or rename it. Did you mean 'price'",
        ),
        (lambda sales: sales.assign(PID=""), "Sale 1 of the file lacks Order or PID"),
        (
            lambda sales: pd.concat([sales, sales.assign(price="7")]),
            "holds the sale with Order",
        ),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(clone, tmp_path, change, told):
    before = file_md5(clone / "data/ames.csv")
    change(read_ledger(clone / "data/ames.csv").head(2)).to_csv(
        tmp_path / "wrong.csv", index=False
    )
    with pytest.raises(WorkbookError, match=told):
        land(tmp_path / "wrong.csv", "ames", clone)
    assert file_md5(clone / "data/ames.csv") == before


def test_a_ledger_without_identifiers_counts_alike_houses(clone):
    contract, ledger = load_contract("windsor"), read_ledger(clone / "data/windsor.csv")
    twice = pd.concat([ledger, ledger.head(1)], ignore_index=True)
    assert merge_sales(ledger, ledger, contract)[1] == {
        "new": 0,
        "corrected": 0,
        "known": 546,
        "first": None,
    }
    merged, counts = merge_sales(ledger, twice, contract)
    assert counts["new"] == 1 and merge_sales(merged, twice, contract)[1]["new"] == 0
    assert merge_sales(ledger, ledger.head(0), contract)[1] == {
        "new": 0,
        "corrected": 0,
        "known": 0,
        "first": None,
    }
