"""Follow a replay, and print a line for each month."""

import json
import re
import subprocess
import time
from pathlib import Path

from housemlops.core.files import read_json
from housemlops.operations.history import history_folder, is_finished, shift_month
from housemlops.operations.replay_airflow import check_alive
from housemlops.settings import WorkbookError, settings


def last_event(log: Path, run: str) -> dict:
    """Return the last event of a run's tasks, or an empty dict.

    Args:
        log: Folder of the progress files.
        run: Name of a workspace.
    """
    path = log / f"{run}.progress.jsonl"
    text = path.read_text() if path.exists() else ""
    # The last line may be only half written.
    lines = text[: text.rfind("\n") + 1].splitlines()
    return json.loads(lines[-1]) if lines else {}


def current_stage(log: Path, run: str) -> str:
    """Return the latest stage of a run."""
    return last_event(log, run).get("stage", "Airflow starts it")


def check_runs(log: Path, runs: list[str]) -> None:
    """Raise WorkbookError with the sentence of the first run that has failed."""
    for run in runs:
        event = last_event(log, run)
        if event.get("event") == "failed":
            raise WorkbookError(f"{event['sentence']} (logs: {log})")


def backfill_run(month: str) -> str:
    """Return the workspace of a month's run of a backfill, named as Airflow does."""
    name = f"backfill__{shift_month(month, 1)}-01T00:00:00+00:00"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def retraining_text(folder: Path) -> str:
    """Return what became of the retraining that a finished month asked for, or ""."""
    if not read_json(folder / "run.json")["asked"]:
        return ""
    retraining = read_json(folder / "retraining.json")
    if retraining["failed"]:
        return f"failed: {retraining['failed']}"
    if retraining["promoted"]:
        return f"promoted: version {retraining['champion_version']}"
    return f"refused: {retraining['reasons'][0]}"


def month_line(folder: Path) -> str:
    """Return a line about a finished month, with rich's markup."""
    verdict = read_json(folder / "verdict.json")
    mae = verdict.get("mae")
    mae = "–" if mae is None else f"{mae:,.0f}"
    drifted = ", ".join(verdict.get("drifted") or [])[:40]
    drifted = f"[yellow]{drifted}[/]  " if drifted else ""
    outcome = retraining_text(folder)[:110]
    return f"  {folder.name}  {verdict['verdict']:<18} MAE {mae:>7}  {drifted}{outcome}"


def month_progress(history: Path, month: str) -> str:
    """Return what is being done for a month that is not finished."""
    log = history.parent / "log"
    if not (history / month / "run.json").exists():
        return f"{month}: {current_stage(log, backfill_run(month))}"
    commit = read_json(history.parent / "replay.json", {})["commit"][:8]
    return f"{month}: retraining, {current_stage(log, f'retrain-{month}-{commit}')}"


def follow_months(
    root: Path, months: list[str], processes: dict[str, subprocess.Popen], progress, bar
) -> None:
    """Show the months until all are finished.

    Args:
        root: Checkout.
        months: Of the backfill.
        processes: Of Airflow.
        progress: Rich progress.
        bar: Its task.

    Raises:
        WorkbookError: A month has failed.
        AirflowEnded: A process of Airflow has ended.
    """
    history, log = history_folder(root), settings(root).paths.state / "log"
    for month in months:
        left = [backfill_run(one) for one in months if one >= month]
        while not is_finished(history / month):
            check_alive(processes)
            check_runs(log, left)
            progress.update(bar, description=month_progress(history, month))
            time.sleep(0.5)
        progress.console.print(month_line(history / month))
        progress.advance(bar)
