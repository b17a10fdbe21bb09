"""Follow a replay, and print a line for each month."""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from housemlops.core.files import read_optional_json
from housemlops.operations.history import (
    history_folder,
    is_finished,
    learning_as_of,
    shifted,
)
from housemlops.operations.replay_airflow import check_alive
from housemlops.settings import (
    WorkbookError,
    params,
    settings,
)


def first_conf(root: Path, identity: dict) -> dict:
    """What the run that trains the first champion is told.

    Args:
        root: Checkout.

    Returns:
        as_of, workspace, commit, uncommitted.
    """
    as_of = learning_as_of(
        shifted(identity["first"], -1), params(root)["label_delay_months"]
    )
    return {
        "as_of": as_of,
        "workspace": f"first-{identity['commit'][:8]}",
        **conf_of(identity),
    }


def champion_now(root: Path) -> dict:
    """Who is served now.

    Args:
        root: Checkout.

    Returns:
        champion_version.
    """
    return {
        "champion_version": read_optional_json(
            settings(root).paths.state / "serve/current/model/release.json"
        ).get("version")
    }


def conf_of(identity: dict) -> dict:
    """The snapshot that all runs of a replay share.

    Returns:
        Commit, uncommitted.
    """
    return {name: identity[name] for name in ("commit", "uncommitted")}


def last_event(log: Path, run: str) -> dict:
    """What the tasks of a run have told last.

    Args:
        log: Folder of the progress files.
        run: Workspace.

    Returns:
        Empty when there is none yet.
    """
    path = log / f"{run}.progress.jsonl"
    told = (
        [
            line
            for line in path.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]
        if path.exists()
        else []
    )
    return json.loads(told[-1]) if told else {}


def at_work(log: Path, run: str) -> str:
    """What a run is doing.

    Args:
        log: Folder of the progress files.
        run: Workspace.

    Returns:
        Its latest stage.
    """
    return last_event(log, run).get("stage", "Airflow starts it")


def failures(log: Path, runs: list[str]) -> str:
    """The first sentence of failure among some runs.

    Args:
        log: Folder of the progress files.
        runs: Workspaces.

    Returns:
        A sentence, or "".
    """
    last = [last_event(log, run) for run in runs]
    return next(
        (event["sentence"] for event in last if event.get("event") == "failed"), ""
    )


def run_of(month: str) -> str:
    """The name that Airflow gives to a month's run of a backfill (the month has ended then), as a folder.

    Returns:
        Workspace.
    """
    return re.sub(
        r"[^A-Za-z0-9._-]+", "-", f"backfill__{shifted(month, 1)}-01T00:00:00+00:00"
    )


def month_line(folder: Path) -> list[str]:
    """A month in a row of a table.

    Args:
        folder: Of a finished month.

    Returns:
        Month, verdict, MAE, coverage, drifted, retraining.
    """
    verdict, run, answer = (
        read_optional_json(folder / f"{name}.json")
        for name in ("verdict", "run", "retraining")
    )
    number = lambda value, form: "" if value is None else format(value, form)
    outcome = (
        ""
        if not run["asked"]
        else f"failed: {answer['failed']}"
        if answer["failed"]
        else f"promoted: version {answer['champion_version']}"
        if answer["promoted"]
        else f"refused: {answer['reasons'][0]}"
    )
    return [
        folder.name,
        verdict["verdict"],
        number(verdict.get("mae"), ",.0f"),
        number(verdict.get("coverage"), ".0%"),
        ", ".join(verdict.get("drifted") or [])[:40],
        outcome,
    ]


def follow_months(
    root: Path,
    months: list[str],
    processes: dict[str, subprocess.Popen],
    progress: Any,
    bar: Any,
):
    """Show the months until all are finished; a month that fails stops the replay with its sentence.

    Args:
        root: Checkout.
        months: Of the backfill.
        progress: Rich progress.
        bar: Its task.
    """
    history, log, left = (
        history_folder(root),
        settings(root).paths.state / "log",
        list(months),
    )
    commit = read_optional_json(history.parent / "replay.json")["commit"][:8]
    while left:
        check_alive(processes)
        while left and is_finished(history / left[0]):
            month, verdict, mae, coverage, drifted, outcome = month_line(
                history / left.pop(0)
            )
            progress.console.print(
                f"  {month}  {verdict:<18} MAE {mae or '–':>7}  {f'[yellow]{drifted}[/]  ' if drifted else ''}{outcome[:110]}"
            )
            progress.advance(bar)
        if not left:
            return
        if sentence := failures(log, list(map(run_of, left))):
            raise WorkbookError(f"{sentence} (logs: {log})")
        asked = (history / left[0] / "run.json").exists()
        progress.update(
            bar,
            description=f"{left[0]}: retraining, {at_work(log, f'retrain-{left[0]}-{commit}')}"
            if asked
            else f"{left[0]}: {at_work(log, run_of(left[0]))}",
        )
        time.sleep(0.5)
