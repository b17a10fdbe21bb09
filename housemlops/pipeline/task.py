"""Run one stage in the workspace of a DAG run, as a task of Airflow does."""

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from housemlops.pipeline.graph import pipeline
from housemlops.pipeline.hooks import StageHooks
from housemlops.pipeline.notebook import StageFailed
from housemlops.pipeline.workspace import (
    finish_workspace,
    make_workspace,
    workspace_path,
)
from housemlops.processes import read_lines, started
from housemlops.settings import WorkbookError, settings

STOPPED = "Stopped: "
OUTCOMES = {  # what DVC prints -> outcome of a stage
    "Running stage": "ran",
    "is cached - skipping run": "restored",
    "didn't change, skipping": "unchanged",
}
Report = Callable[..., None]  # called with stage, event and details


def run_environment(root: Path, workspace: Path) -> dict[str, str]:
    """Return the environment of a stage's process.

    Args:
        root: Checkout, whose state folder is used.
        workspace: Its package is imported.
    """
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {
        "PYTHONPATH": str(workspace),
        "HOUSEMLOPS_PATHS_STATE": str(settings(root).paths.state),
        "PYTHONUNBUFFERED": "1",
        "PATH": programs,
    }


def repro(
    root: Path,
    workspace: Path,
    stage: str,
    report: Report,
    force: bool = False,
    pull: bool = False,
) -> str:
    """Ask DVC for one stage, and print its output as it comes.

    Args:
        root: Checkout.
        workspace: Where the stage runs.
        stage: Its name.
        report: Receives each executed cell.
        force: Run although nothing has changed.
        pull: Look for outputs in the DVC remote, too.

    Returns:
        ran, restored or unchanged.

    Raises:
        StageFailed: With the stage's own sentence, or DVC's.
    """
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", stage]
    command += ["--force"] if force else []
    command += ["--pull"] if pull else []
    outcome, reasons = "unchanged", []
    environment = run_environment(root, workspace)
    with started(command, cwd=workspace, env=environment) as process:
        for line in map(str.rstrip, read_lines(process)):
            print(line, flush=True)
            for words, name in OUTCOMES.items():
                outcome = name if words in line else outcome
            if line.startswith((STOPPED, "ERROR: ")):
                reasons.append(line.removeprefix(STOPPED).removeprefix("ERROR: "))
            cell = re.match(r"\[ *(\d+)/(\d+)\]", line)
            if cell:
                report(stage, "cell", cell=int(cell[1]), cells=int(cell[2]))
    if process.returncode:
        code = f"dvc repro {stage} exited with {process.returncode}."
        raise StageFailed(reasons[0] if reasons else code)
    return outcome


def effect_holds(root: Path, workspace: Path, stage: str, hooks: StageHooks) -> bool:
    """Tell whether a stage's effect outside is still there, such as a registered model."""
    os.environ["HOUSEMLOPS_PATHS_STATE"] = str(settings(root).paths.state)
    with contextlib.chdir(workspace):
        return hooks.effect_holds(stage, workspace / "build")


def run_in_workspace(
    root: Path,
    workspace: Path,
    stage: str,
    report: Report,
    hooks: StageHooks,
    force: bool = False,
) -> str:
    """Run a stage under DVC, and once more where its effect outside is gone.

    One stage runs at a time in a workspace.

    Returns:
        ran, restored or unchanged.
    """
    from filelock import FileLock

    with FileLock(workspace.with_name(f".{workspace.name}.lock")):
        outcome = repro(root, workspace, stage, report, force)
        if outcome == "ran" or effect_holds(root, workspace, stage, hooks):
            return outcome
        print(
            f"The files of {stage} are here, but its effect outside is not (was the "
            "tracking store emptied or replaced?): it runs again.",
            flush=True,
        )
        return repro(root, workspace, stage, report, force=True)


def progress_writer(root: Path, workspace: Path) -> Report:
    """Return a function that appends events of a run to its progress file.

    The file has one line of JSON for each event, so that anybody can follow the run.
    """
    path = settings(root).paths.state / f"log/{workspace.name}.progress.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)

    def report(stage: str, event: str, **details) -> None:
        line = json.dumps({"stage": stage, "event": event, **details})
        with path.open("a") as file:
            file.write(line + "\n")

    return report


def run_month(limit: str, end: datetime | None, conf: dict) -> str:
    """Return the month, YYYY-MM, that a run replays.

    Args:
        limit: Latest month, of params.yaml.
        end: End of the run's data interval.
        conf: What was asked for; its as_of comes first.

    Raises:
        WorkbookError: When the month is not written as YYYY-MM.
    """
    month = conf.get("as_of") or min(limit, f"{end:%Y-%m}" if end else limit)
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", str(month)):
        raise WorkbookError(
            f"as_of is {month!r}; write a month as YYYY-MM, for example 2009-05."
        )
    return month


def notebook_page(root: Path, workspace: Path, name: str) -> str:
    """Return the address at which `housemlops up` shows an executed notebook."""
    port = settings(root).front.port
    return f"http://127.0.0.1:{port}/runs/{workspace.name}/reports/{name}.html"


def task_workspace(root: Path, hooks: StageHooks, run: Any, conf: dict) -> Path:
    """Find or make the workspace of a DAG run.

    Args:
        root: Checkout.
        hooks: Give the latest month.
        run: The DAG run.
        conf: What was asked for.
    """
    name = conf.get("workspace") or run.run_id
    month = run_month(hooks.latest_month(root), run.data_interval_end, conf)
    taken = (conf["commit"], conf["uncommitted"]) if "commit" in conf else None
    edits = bool(taken) or "manual" in str(run.run_type).lower()
    return make_workspace(root, name, month, edits=edits, taken=taken)


def is_complete(workspace: Path) -> bool:
    """Tell whether every stage has written its report."""
    reports = [workspace / f"reports/{stage}.html" for stage in pipeline(workspace)]
    return all(report.exists() for report in reports)


def run_task(root: Path, task: Any, run: Any, conf: dict) -> tuple[str, dict | None]:
    """Run a stage in the workspace of its DAG run.

    Args:
        root: Checkout.
        task: Operator; its task_id is the stage, and its page is set to the notebook's.
        run: The DAG run.
        conf: What was asked for.

    Returns:
        ran, restored or unchanged; the content of the asset event, if there is one.
    """
    stage, hooks, began = task.task_id, task.hooks, time.monotonic()
    workspace = workspace_path(root, conf.get("workspace") or run.run_id)
    report = progress_writer(root, workspace)
    try:
        report(stage, "started")
        task_workspace(root, hooks, run, conf)
        task.page = notebook_page(root, workspace, f"{stage}.failed")
        hooks.before(root, workspace, stage, conf)
        force = stage == conf.get("force")
        outcome = run_in_workspace(root, workspace, stage, report, hooks, force)
        task.page = notebook_page(root, workspace, stage)
        report(stage, outcome, seconds=time.monotonic() - began)
        event = hooks.after(root, workspace, stage, conf)
        if is_complete(workspace):
            finish_workspace(root, workspace)
    except Exception as error:
        sentence = str(error)
        if not isinstance(error, WorkbookError):
            sentence = f"{stage} stopped: {type(error).__name__}: {error}"
        seconds = time.monotonic() - began
        report(stage, "failed", seconds=seconds, sentence=sentence)
        print(f"{STOPPED}{sentence}", flush=True)
        hooks.failed(root, stage, conf, sentence)
        raise
    finally:
        print_notebook(task.page, workspace)
    return outcome, event


def print_notebook(page: str, workspace: Path) -> None:
    """Print where the executed notebook of a task is."""
    if not page:
        print("No notebook was executed.", flush=True)
        return
    notebook = workspace / f"reports/{Path(page).stem}.ipynb"
    print(f"Executed notebook: {page}\n{notebook}", flush=True)


class TeeStdout:
    """A standard output whose lines are also written to an Airflow log file."""

    def __init__(self, out: TextIO, path: Path):
        self.out, self.path, self.rest = out, path, ""

    def flush(self) -> None:
        """Flush the standard output."""
        self.out.flush()

    def write(self, text: str) -> None:
        """Write text, and each line that is complete to the log."""
        self.out.write(text)
        *lines, self.rest = (self.rest + text).split("\n")
        entry = {
            "timestamp": datetime.now(UTC).isoformat(),
            "level": "info",
            "logger": "task.stdout",
        }
        with self.path.open("a") as file:
            for line in lines:
                file.write(json.dumps(entry | {"event": line}) + "\n")


def tee_log(root: Path, run: Any, stage: str) -> contextlib.AbstractContextManager:
    """Return a block whose output is written where Airflow's page looks for it.

    `airflow dags test` writes no log files; a scheduler does, and then nothing is added.
    """
    logs = settings(root).paths.state / "airflow/logs"
    folder = logs / f"dag_id={run.dag_id}/run_id={run.run_id}/task_id={stage}"
    if any(folder.glob("attempt=*.log")):
        return contextlib.nullcontext()
    folder.mkdir(parents=True, exist_ok=True)
    return contextlib.redirect_stdout(TeeStdout(sys.stdout, folder / "attempt=1.log"))
