"What the notebook `orchestrate` cannot show: the real graph under Airflow, workspaces of a real checkout, stages that fail."

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from housemlops.core.repository import (
    code_lineage,
    data_md5,
    git,
    head_commit,
    snapshot,
)
from housemlops.pipeline.dags import build_dag
from housemlops.pipeline.graph import graph, pipeline
from housemlops.pipeline.hooks import RETRAINING_ASSET, StageHooks
from housemlops.pipeline.notebook import StageFailed, without_lessons
from housemlops.pipeline.parameters import (
    check_parameters,
    parameter_defaults,
    parameter_types,
    read_notebook,
    stage_parameters,
)
from housemlops.pipeline.scheduler import airflow_environment
from housemlops.pipeline.stage import lineage_tags
from housemlops.pipeline.task import repro, run_in_workspace
from housemlops.pipeline.workspace import finish_workspace, make_workspace
from housemlops.settings import WorkbookError

ROOT = Path(__file__).resolve().parent.parent
STAGES = graph(pipeline(ROOT))


@pytest.fixture(scope="module", autouse=True)
def own_state():
    "No test inherits, or leaves behind, a state folder or a tracking store."
    before = dict(os.environ)
    for name in [
        name for name in os.environ if name.startswith(("HOUSEMLOPS_", "MLFLOW_"))
    ]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    "A small checkout: the files of this one, committed, on the sample data set."
    house = tmp_path_factory.mktemp("house") / "checkout"
    for name in git(
        "ls-files", "--cached", "--others", "--exclude-standard", root=ROOT
    ).splitlines():
        if not (ROOT / name).exists():
            continue
        (house / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, house / name)
    (house / "params.yaml").write_text(
        (house / "params.yaml").read_text().replace("dataset: ames", "dataset: sample")
    )
    for command in (
        ["init", "--initial-branch=main"],
        ["add", "--all"],
        [
            "-c",
            "user.name=Ada",
            "-c",
            "user.email=ada@example.org",
            "commit",
            "--message",
            "all",
        ],
    ):
        git(*command, root=house)
    return house


@pytest.fixture
def edits(house):
    "Undo a test's edits of the house."
    yield house
    git("reset", "--hard", root=house)
    git("clean", "--force", "-d", root=house)


def no_note(*_, **__):
    pass


def workspace(house, name, edits=True):
    return make_workspace(house, name, "2010-08", edits)


def untouched(house):
    "All that a run must leave as it is; the only thing it may add is a name for its snapshot, below refs/housemlops."
    return [
        git(*command, root=house)
        for command in (
            ["status", "--porcelain"],
            ["for-each-ref", "refs/heads", "refs/tags", "refs/stash"],
            ["stash", "list"],
            ["rev-parse", "HEAD"],
            ["symbolic-ref", "HEAD"],
            ["diff"],
            ["diff", "--cached"],
        )
    ] + [hashlib.sha256((house / ".git/index").read_bytes()).hexdigest()]


def insert_cell(notebook, source, at=-1):
    content = json.loads(notebook.read_text())
    content["cells"].insert(
        at,
        {
            "cell_type": "code",
            "id": "inserted",
            "metadata": {},
            "source": [source],
            "outputs": [],
            "execution_count": None,
        },
    )
    notebook.write_text(json.dumps(content, indent=1))


# The DAG


@pytest.fixture(scope="module")
def dags(tmp_path_factory):
    os.environ["HOUSEMLOPS_PATHS_STATE"] = str(tmp_path_factory.mktemp("state"))
    os.environ.update(airflow_environment(ROOT))
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(ROOT / "dags", safe_mode=True)
    del os.environ["HOUSEMLOPS_PATHS_STATE"]
    assert bag.import_errors == {}
    return bag.dags


def upstream(dag):
    return {task.task_id: task.upstream_task_ids for task in dag.tasks}


def test_the_lifecycle_has_the_stages_and_edges_of_dvc_yaml(dags):
    assert set(dags) == {
        "house_prices",
        "house_prices_retrain",
        "house_prices_lifecycle",
    }
    assert list(dags["house_prices_lifecycle"].task_dict) == list(STAGES)
    assert upstream(dags["house_prices_lifecycle"]) == {
        name: set(before) for name, before in STAGES.items()
    }


def test_watching_and_learning_are_selections_of_the_same_graph(dags):
    watch, learn = (
        upstream(dags["house_prices"]),
        upstream(dags["house_prices_retrain"]),
    )
    assert watch == {"ingest": set(), "prepare": {"ingest"}, "monitor": {"prepare"}}
    assert learn == {name: set(STAGES[name]) for name in STAGES if name != "monitor"}
    stages = pipeline(ROOT)
    assert {
        name for name in stages if stages[name].get("meta") == {"loop": "learn"}
    } == {*learn} - {*watch}


def test_dags_are_scheduled_and_documented(dags):
    assert {(dag.catchup, dag.is_paused_upon_creation) for dag in dags.values()} == {
        (False, False)
    }
    assert (
        dags["house_prices"].timetable.expression,
        str(dags["house_prices"].timetable.timezone),
    ) == ("0 0 1 * *", "UTC")
    assert [
        asset.name
        for asset in dags["house_prices_retrain"].timetable.asset_condition.objects
    ] == [RETRAINING_ASSET]
    assert dags["house_prices_retrain"].max_active_runs == 1
    assert not dags["house_prices_lifecycle"].timetable.can_be_scheduled
    assert all(
        task.doc_md.startswith("# ") for dag in dags.values() for task in dag.tasks
    )


def test_only_the_last_stage_of_a_month_waits_for_the_month_before_and_asks(dags):
    assert [
        task.task_id
        for dag in dags.values()
        for task in dag.tasks
        if task.depends_on_past
    ] == ["monitor"]
    assert [
        outlet.name
        for dag in dags.values()
        for task in dag.tasks
        for outlet in task.outlets
    ] == [RETRAINING_ASSET]


def test_learning_comes_before_watching_and_watching_before_preparing(dags):
    watch, learn = (
        [task.priority_weight for task in dags[name].tasks]
        for name in ("house_prices", "house_prices_retrain")
    )
    assert watch == sorted(set(watch)) and max(watch) < min(learn)
    assert {task.weight_rule for dag in dags.values() for task in dag.tasks} == {
        "absolute"
    }


def test_the_schedule_ends_where_the_settings_say(monkeypatch, tmp_path):
    monkeypatch.setenv("HOUSEMLOPS_PATHS_STATE", str(tmp_path))
    monkeypatch.setenv("HOUSEMLOPS_AIRFLOW_UNTIL", "2010-07")
    assert str(build_dag(ROOT, "until", "watch").end_date)[:7] == "2010-07"


def test_every_task_links_to_its_notebook_after_serialisation(dags):
    from airflow.serialization.serialized_objects import DagSerialization

    tasks = [
        task
        for dag in dags.values()
        for task in DagSerialization.to_dict(dag)["dag"]["tasks"]
    ]
    assert all(
        task["__var"]["_operator_extra_links"]
        == {"Executed notebook": "_link_ExecutedNotebook"}
        for task in tasks
    )


def test_parsing_the_dag_imports_nothing_heavy():
    code = (
        "import sys, runpy; sys.modules['airflow.sdk'] = None\ntry: runpy.run_path('dags/house_prices.py')\nexcept ImportError: pass\n"
        "print([name for name in ('mlflow', 'pandas', 'sklearn', 'evidently', 'papermill', 'dvc') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# Parameters


@pytest.mark.parametrize("stage", STAGES)
def test_params_yaml_agrees_with_the_notebook(stage):
    notebook = read_notebook(ROOT, stage)
    given = {"build": "build", **stage_parameters(ROOT, stage)}
    check_parameters(given, parameter_types(notebook, stage), stage)
    assert parameter_defaults(notebook, stage)["build"] == "sample"


@pytest.mark.parametrize(
    "old, new, sentence",
    [
        (
            "  test_months:",
            "  test_month:",
            "does not declare 'test_month', which params.yaml gives it. Did you mean 'test_months'?",
        ),
        (
            "  test_months: 12",
            "  test_months: true",
            "'test_months' of prepare is True, which is not int",
        ),
        (
            "  test_months: 12",
            "  test_months: '12'",
            "'test_months' of prepare is '12', which is not int",
        ),
    ],
)
def test_wrong_parameters_are_refused_before_a_kernel_starts(edits, old, new, sentence):
    text = (edits / "params.yaml").read_text()
    assert old in text
    (edits / "params.yaml").write_text(text.replace(old, new))
    began = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from housemlops.cli import main; main(['stage', 'prepare'])",
        ],
        cwd=edits,
        env=os.environ | {"PYTHONPATH": str(edits)},
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 1
        and sentence in done.stderr
        and "Traceback" not in done.stderr
    )
    assert time.monotonic() - began < 60 and not (edits / "reports").exists()


def test_a_lost_or_doubled_parameters_cell_is_refused(edits):
    notebook = read_notebook(edits, "prepare")
    cell = next(
        cell
        for cell in notebook["cells"]
        if "parameters" in cell["metadata"].get("tags", [])
    )
    with pytest.raises(WorkbookError, match="2 cells tagged"):
        parameter_types({"cells": [cell, cell]}, "prepare")
    with pytest.raises(WorkbookError, match="0 cells tagged"):
        parameter_types({"cells": []}, "prepare")


# Lessons


@pytest.mark.parametrize("stage", STAGES)
def test_a_scheduled_run_skips_lessons_and_keeps_the_run_and_its_checks(stage):
    notebook = nbformat.read(ROOT / f"nbs/{stage}.ipynb", as_version=4)
    before = [cell.id for cell in notebook.cells]
    lessons = [
        cell.id for cell in notebook.cells if "lesson" in cell.metadata.get("tags", [])
    ]
    kept = without_lessons(notebook)
    assert [cell.id for cell in kept.cells] == before
    executed = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert len(lessons) >= 4 and not {*lessons} & {cell.id for cell in executed}
    assert any(f"run_{stage}(" in cell.source for cell in executed)
    skipped = [cell.source for cell in kept.cells if cell.id in lessons]
    assert all(text.startswith("*Demonstration, skipped") for text in skipped)
    assert not any("#| export" in text for text in skipped)


# Snapshots and workspaces


def test_a_clean_checkout_is_its_own_snapshot(house):
    assert snapshot(house) == (head_commit(house), [])


def test_a_run_includes_uncommitted_edits_and_touches_nothing(edits):
    (edits / "params.yaml").write_text(
        (edits / "params.yaml").read_text().replace("test_months: 12", "test_months: 9")
    )
    (edits / "notes.txt").write_text("not known to git\n")
    git("add", "notes.txt", root=edits)
    insert_cell(
        edits / "nbs/prepare.ipynb", "#| export\nSNAPSHOT = 'edited, not exported'"
    )
    before = untouched(edits)
    work = workspace(edits, "edited")
    assert untouched(edits) == before
    assert (
        "test_months: 9" in (work / "params.yaml").read_text()
        and (work / "notes.txt").exists()
    )
    assert "edited, not exported" in (work / "housemlops/prepare.py").read_text()
    found = code_lineage(work)
    assert git("rev-parse", "refs/housemlops/edited", root=edits) == found["git_commit"]
    assert (
        found["uncommitted"] == ["nbs/prepare.ipynb", "notes.txt", "params.yaml"]
        and found["git_branch"] == "main"
    )
    assert (
        lineage_tags(work, "prepare")["uncommitted"]
        == "nbs/prepare.ipynb, notes.txt, params.yaml"
    )


def test_a_scheduled_run_uses_the_branch_as_committed(edits):
    (edits / "params.yaml").write_text(
        (edits / "params.yaml").read_text().replace("test_months: 12", "test_months: 9")
    )
    work = workspace(edits, "scheduled__2010-08-01T00:00:00+00:00", edits=False)
    assert work.name == "scheduled__2010-08-01T00-00-00-00-00"
    assert "test_months: 12" in (work / "params.yaml").read_text()
    assert code_lineage(work)["uncommitted"] == []


def test_a_module_edited_by_hand_is_refused(edits):
    with open(edits / "housemlops/prepare.py", "a") as file:
        file.write("\nSHORTCUT = 1\n")
    with pytest.raises(
        WorkbookError,
        match="housemlops/prepare.py is not what nbs/prepare.ipynb exports",
    ):
        workspace(edits, "by-hand")


def test_stored_outputs_and_editor_metadata_invalidate_nothing(edits):
    plain = (workspace(edits, "plain") / "nbs/prepare.ipynb").read_bytes()
    content = json.loads((edits / "nbs/prepare.ipynb").read_text())
    content["metadata"]["language_info"] = {"name": "python", "version": "3.99"}
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell.update(
                outputs=[{"output_type": "stream", "name": "stdout", "text": ["new"]}],
                execution_count=7,
            )
    (edits / "nbs/prepare.ipynb").write_text(json.dumps(content))
    assert (
        workspace(edits, "with-outputs") / "nbs/prepare.ipynb"
    ).read_bytes() == plain


@pytest.mark.slow
def test_the_ledger_is_pulled_or_taken_as_edited(edits):
    (edits / "params.yaml").write_text(
        (edits / "params.yaml")
        .read_text()
        .replace("dataset: sample", "dataset: windsor")
    )
    ledger = workspace(edits, "pulled") / "data/windsor.csv"
    assert ledger.exists() and not (edits / "data/windsor.csv").exists()
    (edits / "data/windsor.csv").write_bytes(
        ledger.read_bytes() + ledger.read_bytes().splitlines(keepends=True)[-1]
    )
    before = untouched(edits)
    work = workspace(edits, "edited-ledger")
    assert untouched(edits) == before
    assert (work / "data/windsor.csv").read_bytes() == (
        edits / "data/windsor.csv"
    ).read_bytes()
    assert "data/windsor.csv" in code_lineage(work)["uncommitted"]
    assert data_md5(work, "windsor") in (work / "data/windsor.csv.dvc").read_text()


def test_a_deleted_or_half_made_workspace_is_made_again(house):
    work = workspace(house, "again")
    shutil.rmtree(work)
    assert workspace(house, "again") == work and (work / "lineage.json").exists()
    (work / "lineage.json").unlink()
    (work / "params.yaml").write_text("broken")
    assert "dataset" in (workspace(house, "again") / "params.yaml").read_text()


def test_old_finished_workspaces_go(house, monkeypatch):
    monkeypatch.setenv("HOUSEMLOPS_WORKSPACES_KEEP", "2")
    made = [workspace(house, f"old-{number}") for number in range(3)]
    for number, work in enumerate(made):
        os.utime(work / "lineage.json", (time.time() + number, time.time() + number))
        finish_workspace(house, work)
    assert [work.exists() for work in made] == [False, True, True]
    assert (house / "var/latest").resolve() == made[-1]


def test_a_month_is_finished_without_becoming_the_latest(house):
    latest = (house / "var/latest").resolve()
    work = workspace(house, "month")
    finish_workspace(house, work, latest=False)
    assert (work / "finished").exists() and (house / "var/latest").resolve() == latest


@pytest.mark.slow
def test_runs_of_one_snapshot_share_its_code_whatever_is_edited_meanwhile(edits):
    (edits / "params.yaml").write_text(
        (edits / "params.yaml").read_text().replace("test_months: 12", "test_months: 9")
    )
    taken = snapshot(edits)
    first = make_workspace(edits, "shared-1", "2009-01", edits=True, taken=taken)
    (edits / "params.yaml").write_text(
        (edits / "params.yaml").read_text().replace("test_months: 9", "test_months: 6")
    )
    second = make_workspace(edits, "shared-2", "2009-02", edits=True, taken=taken)
    read = lambda work: {
        path.relative_to(work).as_posix(): path.read_bytes()
        for name in ("nbs", "housemlops")
        for path in (work / name).rglob("*")
        if path.is_file()
    }
    assert (
        read(first) == read(second)
        and "test_months: 9" in (second / "params.yaml").read_text()
    )
    assert code_lineage(second) | {"lifecycle": ""} == code_lineage(first) | {
        "lifecycle": ""
    }


def test_a_folder_without_git_or_commit_is_refused(tmp_path):
    with pytest.raises(WorkbookError, match="not a git checkout"):
        head_commit(tmp_path)
    git("init", root=tmp_path)
    with pytest.raises(WorkbookError, match="no commit yet"):
        head_commit(tmp_path)


# Stages that fail


def results(work):
    "Fingerprints of a stage's outputs, as DVC sees them."
    return {
        name: hashlib.sha256((work / name).read_bytes()).hexdigest()
        for name in ("reports/ingest.ipynb", "reports/ingest.html")
    } | {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((work / "build/ingest").iterdir())
    }


def last_run(house):
    store = f"sqlite:///{house}/var/mlflow/mlflow.db"
    code = "import mlflow, json; run = mlflow.search_runs(search_all_experiments=True, max_results=1, output_format='list')[0]; print(json.dumps([run.info.run_name, run.info.status, run.data.tags]))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"MLFLOW_TRACKING_URI": store},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_failing_cell_fails_the_stage_and_is_shown(house, capfd):
    work = workspace(house, "failing")
    insert_cell(work / "nbs/ingest.ipynb", "sales_of_tomorrow = 1/0")
    with pytest.raises(StageFailed, match="ZeroDivisionError: division by zero"):
        repro(house, work, "ingest", no_note)
    shown = capfd.readouterr().out
    assert "sales_of_tomorrow = 1/0" in shown and "ZeroDivisionError" in shown
    assert (work / "reports/ingest.failed.ipynb").exists() and not (
        work / "reports/ingest.ipynb"
    ).exists()
    name, status, tags = last_run(house)
    assert (name, status, tags["lifecycle"], tags["uncommitted"]) == (
        "ingest",
        "FAILED",
        "failing",
        "no",
    )


@pytest.mark.slow
def test_a_killed_kernel_fails_and_running_again_gives_the_same_bytes(house, capfd):
    calm = workspace(house, "calm")
    assert repro(house, calm, "ingest", no_note, force=True) == "ran"
    assert last_run(house)[:2] == ["ingest", "FINISHED"]
    work = workspace(house, "killed")
    whole = (work / "nbs/ingest.ipynb").read_bytes()
    insert_cell(
        work / "nbs/ingest.ipynb",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    )
    with pytest.raises(StageFailed, match="kernel of nbs/ingest.ipynb died"):
        repro(house, work, "ingest", no_note)
    assert last_run(house)[:2] == ["ingest", "FAILED"]
    (work / "nbs/ingest.ipynb").write_bytes(whole)
    assert repro(house, work, "ingest", no_note, force=True) == "ran"
    assert results(work) == results(calm)
    assert str(house) not in (work / "reports/ingest.html").read_text()


@pytest.mark.slow
def test_another_workspace_restores_from_the_cache(house):
    first = workspace(house, "first")
    repro(house, first, "ingest", no_note)
    second = workspace(house, "second")
    assert repro(house, second, "ingest", no_note) == "restored"
    assert repro(house, second, "ingest", no_note) == "unchanged"
    assert results(first) == results(second)


@pytest.mark.slow
def test_a_lost_effect_runs_the_stage_again_once(house, capfd):
    work, answers = workspace(house, "second"), iter([False])

    class Lost(StageHooks):
        def effect_holds(self, stage, build):
            return next(answers)

    assert run_in_workspace(house, work, "ingest", no_note, Lost()) == "ran"
    assert "its effect outside is not" in capfd.readouterr().out


# What people change


@pytest.mark.slow
def test_an_edited_cell_is_used(edits):
    calm = workspace(edits, "before-the-edit")
    for stage in ("ingest", "prepare"):
        repro(edits, calm, stage, no_note)
    insert_cell(edits / "nbs/prepare.ipynb", "print('edited', 'by hand')")
    work = workspace(edits, "edited-cell")
    assert code_lineage(work)["uncommitted"] == ["nbs/prepare.ipynb"]
    assert repro(edits, work, "ingest", no_note) == "restored"
    assert repro(edits, work, "prepare", no_note) == "ran"
    assert "edited by hand" in (work / "reports/prepare.html").read_text()
    for name in ("train.parquet", "test.parquet", "summary.json"):
        path = Path("build/prepare") / name
        assert (work / path).read_bytes() == (calm / path).read_bytes()


def edit_sales(root: Path, change) -> None:
    "Change the rows of the sample's ledger, as a list of dictionaries"
    path = root / "data/sample.csv"
    with path.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    change(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.slow
def test_bad_rows_are_quarantined_and_the_run_goes_on(edits):
    def spoil(rows):
        rows[0]["area"], rows[1]["price"] = "-1656", ""
        rows[2]["Neighborhood"] = "Atlantis"

    edit_sales(edits, spoil)
    work = workspace(edits, "bad-rows")
    for stage in ("ingest", "prepare"):
        assert repro(edits, work, stage, no_note) == "ran"
    quarantine, flags = (
        pd.read_csv(work / f"build/prepare/{name}.csv")
        for name in ("quarantine", "flags")
    )
    found = {*zip(quarantine["row"], quarantine["column"])}
    assert found >= {(0, "area"), (1, "price")}
    assert [*zip(flags["row"], flags["column"], flags["value"])] == [
        (2, "Neighborhood", "Atlantis")
    ]


@pytest.mark.slow
def test_a_missing_column_stops_prepare_in_one_sentence(edits):
    edit_sales(edits, lambda rows: [row.pop("Lot.Area") for row in rows])
    work = workspace(edits, "missing-column")
    repro(edits, work, "ingest", no_note)
    with pytest.raises(StageFailed, match=r"lacks the column `Lot\.Area`"):
        repro(edits, work, "prepare", no_note)
