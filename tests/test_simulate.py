"Simulated shifts: each is caught by the check that should catch it, on any contract, and leaves no trace."

import os
import shutil

import numpy as np
import pandas as pd
import pytest

from housemlops import simulate as room
from housemlops.alert import read_alerts
from housemlops.contract import Contract, infer_contract, load_contract
from housemlops.core.files import read_json
from housemlops.ingest import read_ledger
from housemlops.pipeline.sample import open_build
from housemlops.settings import WorkbookError, folder_sha256, params

SMALL = {"months": 6, "min_rows": 20}  # the sample is small
NAMES = {
    "inflation": "price",
    "new-neighbourhood": "Neighborhood",
    "sensor-units": "area",
    "missing-column": "X1st.Flr.SF",
}


@pytest.fixture(scope="module")
def build():
    "The sample up to monitoring; it moves the settings of this process, which come back after"
    before = dict(os.environ)
    yield open_build("sample", "monitor")
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def given():
    return params() | {"monitor": params()["monitor"] | SMALL}


@pytest.fixture(scope="module")
def before(build, given, tmp_path_factory):
    "The verdict on the sales as they came"
    scratch = tmp_path_factory.mktemp("before")
    return room.judged(
        build,
        scratch / "build",
        load_contract("sample"),
        given,
        lambda sales: sales,
        f"sqlite:///{scratch}/p.db",
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", room.SHIFTS)
def test_each_shift_is_caught_by_the_check_that_should_catch_it(
    build, given, before, tmp_path, name
):
    found = room.what_if(build, tmp_path / name, name, None, given, before)
    assert before["verdict"] == "ok" and found["after"]["verdict"] not in (
        "ok",
        "insufficient data",
    )
    assert found["as_expected"], found["caught"]
    if name in NAMES:
        assert any(
            NAMES[name] in (item["column"], "price") or "quarantine" in item["reason"]
            for item in found["caught"]
        )
    assert (
        found["report"].stat().st_size > 1e5
        and read_json(tmp_path / name / "verdict.json")["verdict"]
        == found["after"]["verdict"]
    )


@pytest.mark.parametrize(
    "name, size",
    [
        ("bigger-houses", 0.001),
        ("bigger-houses", 0.03),
        ("missing-column", 1.0),
        ("inflation", 0.01),
    ],
)
def test_no_row_one_row_an_empty_column_and_absurd_prices_are_no_traceback(
    build, given, before, tmp_path, name, size
):
    found = room.what_if(build, tmp_path / name, name, size, given, before)
    assert found["after"]["verdict"] != "ok" and found["after"]["reasons"]
    if name == "bigger-houses":
        assert found["after"]["verdict"] == "insufficient data"


def invented() -> tuple[pd.DataFrame, Contract]:
    "A data set that nobody here has heard of"
    rng = np.random.default_rng(1)
    sales = pd.DataFrame(
        {
            "id": [f"h{i}" for i in range(80)],
            "huis": rng.integers(60, 200, 80).astype(str),
            "wijk": rng.choice(["oost", "west"], 80),
            "tuin": rng.integers(0, 500, 80).astype(str),
            "prijs": rng.integers(100000, 400000, 80).astype(str),
        }
    )
    draft = infer_contract(sales, "huizen", "prijs")
    draft["columns"]["huis"] |= {"required": True, "unit": "m²"}
    return sales, Contract(**(draft | {"slices": ["wijk"]}))


@pytest.mark.parametrize("dataset", ["ames", "windsor", "huizen"])
@pytest.mark.parametrize("name", room.SHIFTS)
def test_a_shift_is_what_it_says_on_any_contract(ledgers, dataset, name):
    sales, contract = (
        invented()
        if dataset == "huizen"
        else (read_ledger(ledgers / f"{dataset}.csv"), load_contract(dataset))
    )
    shift, kept = room.SHIFTS[name], sales.copy()
    shifted = shift.apply(sales, contract, 0.5)
    assert sales.equals(kept) and shifted.equals(shift.apply(sales, contract, 0.5)), (
        "a shift changes its input, or is not the same each time"
    )
    changed = (shifted != sales.loc[shifted.index]).any()
    assert [*shifted] == [*sales] and changed.sum() == (name != "bigger-houses")
    if name in ("new-neighbourhood", "sensor-units", "missing-column"):
        assert abs((shifted != sales).any(axis=1).mean() - 0.5) < 0.06
    if name != "missing-column":
        assert shift.apply(sales.head(0), contract, 0.5).empty


def test_a_contract_without_the_column_is_told():
    sales, contract = invented()
    bare = Contract(
        **(
            contract.model_dump()
            | {
                "slices": [],
                "columns": {
                    "prijs": contract.columns["prijs"],
                    "wijk": contract.columns["wijk"],
                },
            }
        )
    )
    for shift, told in (
        (room.new_neighbourhood, "no slice with categories"),
        (room.sensor_units, "no required number"),
        (room.missing_column, "no optional number"),
    ):
        with pytest.raises(WorkbookError, match=told):
            shift(sales, bare, 0.5)


@pytest.mark.parametrize(
    "name, size, told",
    [
        ("inflaton", None, "Did you mean 'inflation'"),
        ("x", None, "There are inflation, "),
        ("inflation", 0, "above 0"),
        ("sensor-units", 2, "up to 1"),
        ("inflation", float("nan"), "above 0"),
    ],
)
def test_a_wrong_wish_is_one_sentence(name, size, told):
    with pytest.raises(WorkbookError, match=told):
        room.find_shift(name, size)


@pytest.fixture
def state(build, tmp_path, monkeypatch):
    "A state folder whose last run is the sample's"
    monkeypatch.setenv("HOUSEMLOPS_PATHS_STATE", str(tmp_path))
    shutil.copytree(
        build,
        tmp_path / "latest/build",
        ignore=shutil.ignore_patterns("*.db", "simulate", "monitor"),
    )
    return tmp_path


@pytest.mark.slow
def test_a_simulation_leaves_no_trace_and_can_be_told(state, monkeypatch, given):
    monkeypatch.setattr(room, "params", lambda root: given)
    before, environ = folder_sha256(state), dict(os.environ)
    found = room.simulate("inflation", 1.3)
    assert (
        found["lines"][0] == "inflation 1.3: Every price is multiplied by 1.3."
        and "as it should be" in found["lines"][3]
        and found["report"].exists()
    )
    assert {path.name for path in state.iterdir()} == {"latest", "simulate"} and dict(
        os.environ
    ) == environ
    shutil.move(state / "simulate", state.with_name(f"{state.name}-simulate"))
    assert folder_sha256(state) == before
    for _ in range(2):
        room.simulate("inflation", 1.3, tell=True)
    assert [(line["kind"], line["subject"]) for line in read_alerts()] == [
        ("simulation", "Simulated inflation: House prices, 2010-07: degraded")
    ] * 2


def test_without_a_run_or_a_champion_there_is_nothing_to_shift(state):
    (state / "latest/build/serve/app.py").unlink()
    with pytest.raises(WorkbookError, match="There is no champion to watch"):
        room.simulate("inflation")
    shutil.rmtree(state / "latest")
    with pytest.raises(WorkbookError, match="Nothing has been run here yet"):
        room.simulate("inflation")


def test_a_data_set_without_dates_keeps_its_split(ledgers, tmp_path, given):
    "However many sales a shift sends into quarantine, what the champion learned from stays what it learned from"
    contract, build = load_contract("windsor"), tmp_path / "build"
    sales = read_ledger(ledgers / "windsor.csv")
    (build / "ingest").mkdir(parents=True), (build / "serve").mkdir()
    sales.to_csv(build / "ingest/sales.csv", index_label="row")
    room.write_json(
        build / "ingest/source.json", {"dataset": "windsor", "as_of": "2010-08"}
    )
    room.run_prepare(build, "windsor", **given["prepare"])
    train, test = (
        pd.read_parquet(build / f"prepare/{name}.parquet") for name in ("train", "test")
    )
    loose = given | {"prepare": given["prepare"] | {"max_quarantined": 0.5}}
    rows = room.shifted_build(
        build,
        tmp_path / "scratch",
        contract,
        loose,
        lambda part: room.sensor_units(part, contract, 1.0),
    )
    assert rows == len(test) and pd.read_parquet(
        tmp_path / "scratch/prepare/train.parquet"
    ).equals(train)
    assert (
        0 < len(pd.read_parquet(tmp_path / "scratch/prepare/test.parquet")) < len(test)
    )
    with pytest.raises(WorkbookError, match="most often `lotsize` is outside"):
        room.shifted_build(
            build,
            tmp_path / "strict",
            contract,
            given,
            lambda part: room.sensor_units(part, contract, 1.0),
        )
