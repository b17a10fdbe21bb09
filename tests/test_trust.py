"A model people can trust: worse and better challengers, the way back, the whole chain, a flipped byte, the past again."

import json
import re
import shutil
from pathlib import Path

import pytest

from checkout import GOOD, Checkout
from housemlops.pipeline.notebook import execute
from housemlops.pipeline.parameters import parameter_defaults, read_notebook
from housemlops.pipeline.sample import kept_sample
from housemlops.serving.running import ask, running
from housemlops.settings import repo_root

ROOT = repo_root()
pytestmark = pytest.mark.slow


def entries(house: Checkout) -> list[dict]:
    return [
        json.loads(line)
        for line in (house.path / "var/promotions.jsonl").read_text().splitlines()
    ]


def answer(house: Checkout) -> dict:
    "What the live release answers to its own example, put on record"
    release = house.path / "var/serve/current"
    with running(
        release,
        environ={
            "HOUSE_DATABASE_URL": f"sqlite:///{house.path}/var/serve/predictions.db"
        },
    ) as url:
        return ask(
            f"{url}/predict", json.loads((release / "model/example.json").read_text())
        )[1]


def graph_of(house: Checkout, version: int) -> Path:
    "The stored graph of a production version"
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{house.path}/var/mlflow/mlflow.db")
    run = client.get_run(
        client.get_model_version("house-prices-sample", version).run_id
    )
    [folder] = (house.path / "var/mlflow/artifacts").rglob(run.data.tags["model_id"])
    return next(folder.rglob("graph.onnx"))


def flip(path: Path) -> bytes:
    "Change one bit in the middle of a file; returns what it was"
    before = path.read_bytes()
    path.write_bytes(
        before[: len(before) // 2]
        + bytes([before[len(before) // 2] ^ 1])
        + before[len(before) // 2 + 1 :]
    )
    return before


def better(house: Checkout) -> str:
    "A run with the parameters of the workbook, instead of the quick and poor ones that the checkout has; what it printed"
    house.params(lambda p: p["train"].update(GOOD))
    try:
        return house.run()[1]
    finally:
        house.git("checkout", "--quiet", "params.yaml")


@pytest.fixture(scope="module")
def house(first_run) -> Checkout:
    "A checkout with a poor champion, and a better challenger that took its place"
    checkout = Checkout(first_run / "copy")
    first = json.loads((first_run / "first.json").read_text())
    checkout.poor = first["receipt"]["champion_version"]
    checkout.text = better(checkout)
    checkout.champion = checkout.build("promote/receipt.json")["champion_version"]
    return checkout


def test_a_better_challenger_moves_the_alias(house):
    assert re.search(
        r"Promoted: on \d+ sales new to both, MAE is [\d,]+ and the champion's [\d,]+, a change of -.*90% interval -.*allowed",
        house.text,
    ), house.text
    assert house.champion > house.poor and answer(house)["version"] == house.champion
    assert (
        entries(house)[-1]["action"] == "promoted"
        and entries(house)[-1]["instead_of"] == house.poor
    )


def test_a_worse_one_does_not(house):
    served = (house.path / "var/serve/current").resolve()
    _, text = house.run()
    assert re.search(
        r"Not promoted: on \d+ sales new to both, MAE is .* a change of \+.*90% interval \+.* to \+.*but at worst \+3",
        text,
    ), text
    assert (
        f"Champion: house-prices-sample version {house.champion}" in text
        and (house.path / "var/serve/current").resolve() == served
    )
    last = entries(house)[-1]
    assert (
        last["action"] == "refused"
        and last["instead_of"] == house.champion
        and "MAE is" in last["why"]
        and last["duel"]["low"] > 0
    )


def test_the_chain_of_a_prediction_is_whole(house):
    found, text = house.housemlops("trace", answer(house)["id"])
    assert found == 0 and "✗" not in text, text
    for words in (
        f"house-prices-sample version {house.champion} (champion)",
        "by version",
        "Overall.Qual",
        "params.yaml",
        "notebook/train.html",
        "sample as of",
        "promoted:",
    ):
        assert words in text, text


def test_rollback_serves_the_champion_before_and_the_schedule_keeps_it(house):
    found, text = house.housemlops("rollback", "--why", "prices look odd")
    assert (
        found == 0
        and f"Version {house.poor} is champion again, in place of version {house.champion}"
        in text
    ), text
    assert answer(house)["version"] == house.poor
    text = better(house)
    assert (
        "Not promoted" in text and "taken back" in text and "prices look odd" in text
    ), text
    assert (
        f"Champion: house-prices-sample version {house.poor}" in text
        and answer(house)["version"] == house.poor
    )


def test_a_replay_is_equal(house):
    "Of a version that was trained with uncommitted changes, and is not the champion"
    result = house.json("replay", str(house.champion))
    assert result["equal"] and result["differences"] == [], result
    assert {"model_sha256", "mae"} <= {row["figure"] for row in result["figures"]}
    assert house.git("status", "--porcelain") == "" and "replays" not in house.git(
        "worktree", "list"
    )


def test_a_flipped_byte_is_refused(house):
    graph = graph_of(house, house.champion)
    before = flip(graph)
    for command in (
        ["promote", str(house.champion), "--why", "it was good"],
        ["trace", str(house.champion)],
    ):
        found, text = house.housemlops(*command)
        assert (
            found == 1 and "its files were changed" in text and "Traceback" not in text
        ), text
    graph.write_bytes(before)
    graph, served = (
        graph_of(house, house.poor),
        (house.path / "var/serve/current").resolve(),
    )
    before = flip(graph)
    _, text = house.run("--force", "serve", code=1)
    assert (
        "its files were changed" in text
        and "Traceback" not in text
        and (house.path / "var/serve/current").resolve() == served
    ), text
    graph.write_bytes(before)


def test_a_person_may_bring_a_version_back(house):
    found, text = house.housemlops(
        "promote", str(house.champion), "--why", "the prices were right after all"
    )
    assert found == 0 and answer(house)["version"] == house.champion, text
    assert entries(house)[-1]["why"] == "the prices were right after all"


def test_an_edited_promotion_log_is_noticed(house):
    path = house.path / "var/promotions.jsonl"
    before = path.read_text()
    path.write_text(before.replace("prices look odd", "no reason at all"))
    found, text = house.housemlops("rollback")
    assert found == 1 and "promotion log was changed" in text, text
    path.write_text(before)


@pytest.mark.parametrize("stage", ["serve", "monitor"])
def test_the_stages_after_promotion_run_without_a_champion(
    stage, tmp_path, monkeypatch
):
    sample = kept_sample(
        ROOT,
        ["ingest", "prepare", "train", "evaluate", "promote"],
        repo_root() / "var/sample",
    )
    build = Path(shutil.copytree(sample / "build", tmp_path / "build"))
    path = build / "promote/receipt.json"
    path.write_text(
        json.dumps(
            json.loads(path.read_text())
            | {"champion_version": None, "champion_sha256": None}
        )
    )
    monkeypatch.setenv("HOUSEMLOPS_PATHS_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in dict.fromkeys(["serve", stage]):
        execute(
            ROOT / f"nbs/{name}.ipynb",
            tmp_path / f"{name}.ipynb",
            parameter_defaults(read_notebook(ROOT, name), name) | {"build": str(build)},
            tmp_path,
        )
    note = json.loads(
        (
            build
            / stage
            / ("model/release.json" if stage == "serve" else "verdict.json")
        ).read_text()
    )
    assert (
        note.get("version") is None
        and note.get("verdict", "no champion") == "no champion"
    )
