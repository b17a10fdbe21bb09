"The time machine on the sample: months in parallel and one after the other, killed and taken up again, a retraining asked for by an event."

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from checkout import ROOT, clone
from housemlops.operations.backfill import check_months
from housemlops.operations.history import is_finished, may_ask, shift_month
from housemlops.pipeline.graph import loops, pipeline
from housemlops.settings import WorkbookError

pytestmark = pytest.mark.timeout(1800)  # replays, in a fixture

WATCH = list(loops(pipeline(ROOT))["watch"])
MONTHS = ["2008-05", "2008-06", "2008-07"]
SPAN = ["--from", MONTHS[0], "--to", MONTHS[-1]]


# What a month may ask

ALARM = {"retrain": True, "champion_as_of": "2008-01"}


@pytest.mark.parametrize(
    "verdict, month, asked, pause, sentence",
    [
        (ALARM | {"retrain": False}, "2008-06", [], 3, "asks for none"),
        (ALARM, "2008-02", [], 3, "the next is possible in 2008-03"),
        (ALARM, "2008-03", [], 3, ""),
        (
            ALARM,
            "2008-05",
            ["2008-03"],
            3,
            "the last retraining was in 2008-03; the next is possible in 2008-06",
        ),
        (ALARM, "2008-06", ["2008-03"], 3, ""),
        (ALARM, "2008-01", [], 0, "nothing new to learn"),
        ({"retrain": True, "champion_as_of": None}, "2008-01", [], 3, ""),
    ],
)
def test_a_month_may_ask_when_the_pause_is_over_and_there_is_something_new(
    verdict, month, asked, pause, sentence
):
    why_not = may_ask(verdict, month, month, asked, pause)
    assert sentence in why_not and bool(sentence) == bool(why_not)


@pytest.mark.parametrize(
    "first, last, sentence",
    [
        ("2008-1", "2008-02", "is not a month"),
        ("2008-03", "2008-02", "before it begins"),
        ("2008-03", "2010-08", "last month"),
    ],
)
def test_months_that_cannot_be_replayed_are_refused(first, last, sentence):
    with pytest.raises(WorkbookError, match=sentence):
        check_months(first, last, "2010-08")


def test_a_retraining_that_failed_is_an_answer_and_is_tried_again(
    tmp_path, monkeypatch
):
    from housemlops.core.files import write_json
    from housemlops.operations.backfill import resume, unfinished_months
    from housemlops.operations.history import unanswered_months
    from housemlops.operations.loops import RetrainingHooks, wait_for_retrainings

    monkeypatch.setenv("HOUSEMLOPS_PATHS_STATE", str(tmp_path))
    folder = tmp_path / "history/2008-05"
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {"asked": True})
    write_json(tmp_path / "replay.json", {"first": "2008-05"})
    assert (
        unanswered_months(folder.parent, "2008-06") == ["2008-05"]
        and unanswered_months(folder.parent, "2008-05") == []
    )
    with pytest.raises(WorkbookError, match="asked for was not answered"):
        wait_for_retrainings(folder.parent, "2008-06", patience=0)
    RetrainingHooks().failed(
        ROOT, "train", {"month": "2008-05", "as_of": "2008-05"}, "train stopped"
    )
    assert (
        is_finished(folder)
        and json.loads((folder / "retraining.json").read_text())["failed"]
        == "train stopped"
    )
    resume(ROOT, {"first": "2008-05"})
    assert not is_finished(folder) and unfinished_months(
        folder.parent, ["2008-05"]
    ) == ["2008-05"]


# The replay


class Time:
    "A checkout, and the replays in it"

    def __init__(self, learner):
        self.learner, self.state = learner, learner.path / "var/replay"
        self.history = self.state / "history"

    def run(self, *more: str) -> str:
        done = subprocess.run(
            [
                Path(sys.executable).with_name("housemlops"),
                "replay-history",
                *SPAN,
                *more,
            ],
            cwd=self.learner.path,
            env=self.learner.environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=1500,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(
            [Path(sys.executable).with_name("housemlops"), "replay-history", *SPAN],
            cwd=self.learner.path,
            env=self.learner.environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def note(self, month: str, name: str) -> dict:
        path = self.history / month / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def found(self) -> dict:
        "All that must not depend on how the replay went"
        keep = lambda note: {
            name: value
            for name, value in note.items()
            if name not in ("seconds", "mlflow")
        }
        return {
            month: [
                self.note(month, "verdict"),
                keep(self.note(month, "run")),
                keep(self.note(month, "retraining")),
            ]
            for month in MONTHS
        }

    def processes(self) -> list[psutil.Process]:
        "Every process that works in this checkout"

        def ours(process):
            try:
                return (
                    process.environ()
                    .get("HOUSEMLOPS_PATHS_STATE", "")
                    .startswith(str(self.state))
                    and process.status() != psutil.STATUS_ZOMBIE
                )
            except psutil.Error:
                return False

        return [process for process in psutil.process_iter() if ours(process)]

    def process(self, words: str) -> psutil.Process:
        "The first of Airflow's processes with these words in its command line"
        return next(
            process
            for process in self.processes()
            if words in " ".join(process.cmdline())
        )

    def gone(self, patience: float = 30) -> bool:
        end = time.monotonic() + patience
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.2)
        return not left


def wait_until(holds, process: subprocess.Popen, patience: float = 1500):
    end = time.monotonic() + patience
    while not holds():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def past(tmp_path_factory) -> Time:
    "A learner's checkout in which a champion grows old within two months"
    learner = clone(tmp_path_factory.mktemp("past") / "workbook")
    learner.params(
        lambda p: (
            p["monitor"].update(min_rows=10, max_age_months=2),
            p.update(retrain_pause_months=3),
        )
    )
    learner.git(
        "commit", "--quiet", "--all", "--message", "chore: champions grow old soon"
    )
    learner.head = learner.git("rev-parse", "HEAD")
    learner.environ["HOUSEMLOPS_WORKSPACES_KEEP"] = (
        "20"  # the logs of pruned ones go, too, and a test counts in them
    )
    return Time(learner)


@pytest.fixture(scope="module")
def killed(past) -> dict:
    "A replay, months in parallel, whose scheduler is killed, then all of it, and which is taken up again"
    first = past.start()
    wait_until(lambda: (past.history / MONTHS[0] / "run.json").exists(), first)
    past.process("scheduler").kill()
    wait_until(
        lambda: any(
            "retrain-" in path.name for path in (past.state / "workspaces").glob("*")
        ),
        first,
    )
    first.kill()
    first.communicate()
    assert past.gone(), past.processes()
    return {"text": past.run(), "found": past.found()}


@pytest.mark.slow
def test_a_killed_replay_is_completed_by_the_same_command(past, killed):
    assert all(is_finished(past.history / month) for month in MONTHS), killed["text"]
    assert [path.name for path in sorted(past.history.glob("????-??"))] == MONTHS
    assert (
        "months are done" in killed["text"]
        and str(past.state / "page/index.html") in killed["text"]
    )
    assert past.processes() == []


@pytest.mark.slow
def test_a_retraining_is_asked_for_by_an_event_and_answered(past, killed):
    asked = [month for month in MONTHS if past.note(month, "run")["asked"]]
    assert asked and all(past.note(month, "verdict")["retrain"] for month in asked)
    for month in asked:
        answer = past.note(month, "retraining")
        assert (
            answer["failed"] == ""
            and answer["as_of"] == month
            and answer["promoted"] != bool(answer["reasons"])
        )
        assert {
            path.name for path in (past.history / month / "retraining").iterdir()
        } >= {"train.html", "evaluate.html", "promote.html", "serve.html", "card.md"}
    with sqlite3.connect(past.state / "airflow/airflow.db") as airflow:
        events = [
            json.loads(extra)["month"]
            for (extra,) in airflow.execute(
                "select extra from asset_event order by timestamp"
            )
        ]
        runs = airflow.execute(
            "select run_type from dag_run where dag_id = 'house_prices_retrain' and run_type <> 'manual'"
        ).fetchall()
    assert (
        events
        and set(events) <= set(asked)
        and {kind for (kind,) in runs} == {"asset_triggered"}
    )


@pytest.mark.slow
def test_prices_are_learned_only_when_they_are_known(past, killed):
    first = json.loads((past.history / "first.json").read_text())
    assert (
        first["by_hand"]
        and first["as_of"] == shift_month(MONTHS[0], -1)
        and first["reasons"]
    )
    assert "nothing better existed" in (past.state / "promotions.jsonl").read_text()
    for month in MONTHS:
        assert past.note(month, "verdict")["champion_as_of"] <= month


@pytest.mark.slow
def test_the_second_time_nothing_is_left_to_do(past, killed):
    began, text = time.monotonic(), past.run()
    assert time.monotonic() - began < 300 and "replaying" not in text
    assert past.found() == killed["found"]


@pytest.mark.slow
def test_the_learner_is_untouched(past, killed):
    assert (
        past.learner.git("status", "--porcelain") == ""
        and past.learner.git("rev-parse", "HEAD") == past.learner.head
    )
    assert (
        not (past.learner.path / "var/latest").exists()
        and not (past.learner.path / "var/serve").exists()
    )
    with sqlite3.connect(past.learner.path / "var/mlflow/mlflow.db") as store:
        assert {
            name for (name,) in store.execute("select name from registered_models")
        } == {"house-prices-replay-sample", "house-prices-replay-sample-dev"}


@pytest.mark.slow
def test_months_one_after_the_other_give_the_same_bytes(past, killed):
    shutil.rmtree(past.state)
    for kept in (past.learner.path / ".dvc/cache/runs").glob(
        "*/*"
    ):  # what the months had computed is computed again
        if any(
            f"housemlops stage {stage}\n" in entry.read_text()
            for entry in kept.iterdir()
            for stage in WATCH
        ):
            shutil.rmtree(kept)
    text = past.run("--parallel", "1")
    assert past.found() == killed["found"], text
    told = [
        json.loads(line)
        for path in (past.state / "log").glob("backfill*.progress.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert sorted(event["event"] for event in told if "seconds" in event).count(
        "ran"
    ) == len(MONTHS) * len(WATCH)
