"""Replay past months through Airflow."""

import contextlib
import json
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from housemlops.core.files import read_json, write_json
from housemlops.core.repository import data_md5, git
from housemlops.operations.history import (
    history_folder,
    is_finished,
    run_facts,
    shift_month,
    training_month,
)
from housemlops.operations.loops import no_champion_yet
from housemlops.operations.process_guard import guarded, stop_marked
from housemlops.operations.replay_airflow import (
    AirflowEnded,
    check_alive,
    environment,
    fresh_airflow,
    replay_environment,
    run_airflow_commands,
    start_airflow,
)
from housemlops.operations.replay_progress import (
    check_runs,
    current_stage,
    follow_months,
)
from housemlops.operations.timeline import month_span
from housemlops.core.repository import head_commit, snapshot
from housemlops.pipeline.task import run_environment
from housemlops.pipeline.workspace import workspace_path
from housemlops.pipeline.graph import loops, pipeline
from housemlops.processes import run_captured
from housemlops.settings import WorkbookError, params, repo_root, settings, tracking

STARTS = 3  # of Airflow, when it ends by itself
WHY_FIRST = "the first model of the replay: nothing better existed"


def check_months(first: str, last: str, limit: str) -> list[str]:
    """Return the months from one to another.

    Args:
        first: YYYY-MM.
        last: YYYY-MM.
        limit: as_of of params.yaml.

    Raises:
        WorkbookError: They are no months, or nothing is known of them.
    """
    for month in (first, last):
        if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month):
            raise WorkbookError(
                f"{month!r} is not a month; write YYYY-MM, for example 2009-05."
            )
    if first > last:
        raise WorkbookError(
            f"The replay would end ({last}) before it begins ({first}); exchange "
            "--from and --to."
        )
    if last >= limit:
        raise WorkbookError(
            f"as_of in params.yaml is {limit}, so {shift_month(limit, -1)} is the last "
            "month that can be replayed."
        )
    return month_span(first, last)


@contextlib.contextmanager
def only_replay(state: Path) -> Iterator[None]:
    """Refuse a second replay on the same state folder."""
    from filelock import FileLock, Timeout

    state.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(state / "running.lock").acquire(timeout=0)
    except Timeout:
        raise WorkbookError(
            "A replay is at work in this checkout already; wait for it, or stop it "
            "with Ctrl-C where it runs."
        ) from None
    with lock:
        yield


def replay_identity(root: Path, first: str) -> dict:
    """Return what the results of a replay rest on: first month, code and data."""
    commit, changed = snapshot(root)
    return {
        "first": first,
        "commit": commit,
        "uncommitted": changed,
        "data_md5": data_md5(root, params(root)["dataset"]),
    }


def start_over(root: Path, identity: dict) -> None:
    """Delete an earlier replay: its months, champions and answers.

    Versions in development stay, because results in DVC's cache name them.
    """
    from housemlops.model.registry import registered_name

    state = settings(root).paths.state
    for path in state.iterdir():
        if path.name in ("airflow", "running.lock"):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    git("worktree", "prune", root=root)
    client = tracking(settings(root)).MlflowClient()
    name = registered_name(params(root)["dataset"])
    if client.search_registered_models(f"name = '{name}'"):
        client.delete_registered_model(name)
    if identity["uncommitted"]:
        git("update-ref", "refs/housemlops/replay", identity["commit"], root=root)
    write_json(state / "replay.json", identity)


def resume(root: Path, identity: dict) -> None:
    """Continue an earlier replay of the same snapshot, or start over.

    A retraining that failed is tried again.
    """
    if read_json(settings(root).paths.state / "replay.json", {}) != identity:
        start_over(root, identity)
    for note in history_folder(root).glob("????-??/retraining.json"):
        if read_json(note)["failed"]:
            note.unlink()


def unfinished_months(history: Path, months: list[str]) -> list[str]:
    """Return the first unfinished month and all after it."""
    for i, month in enumerate(months):
        if not is_finished(history / month):
            return months[i:]
    return []


def first_training(root: Path, identity: dict) -> dict:
    """Return the configuration of the run that trains the first champion."""
    before, delay = (
        shift_month(identity["first"], -1),
        params(root)["label_delay_months"],
    )
    return {
        "as_of": training_month(before, delay),
        "workspace": f"first-{identity['commit'][:8]}",
        "commit": identity["commit"],
        "uncommitted": identity["uncommitted"],
    }


def promote_despite_gates(root: Path, workspace: Path, version: int) -> None:
    """Promote a version in development by hand."""
    program = Path(sys.executable).with_name("housemlops")
    promote = ["promote", f"dev/{version}", "--why", WHY_FIRST, "--despite-gates"]
    environ = run_environment(root, workspace)
    done = run_captured([program, *promote], cwd=workspace, env=environ)
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise WorkbookError(
            "The first champion could not be promoted: "
            f"{last_line.removeprefix('Stopped: ')}"
        )


def first_champion(
    root: Path, processes: dict[str, subprocess.Popen], identity: dict, show
) -> dict:
    """Wait for the first champion, and promote it by hand where the gates do not.

    Args:
        root: Checkout.
        processes: Of Airflow.
        identity: Of the replay.
        show: Called with a line for the progress bar.

    Returns:
        Content of first.json.
    """
    conf = first_training(root, identity)
    state, workspace = (
        settings(root).paths.state,
        workspace_path(root, conf["workspace"]),
    )
    while not (workspace / "finished").exists():
        check_alive(processes)
        check_runs(state / "log", [workspace.name])
        show(f"the first champion: {current_stage(state / 'log', workspace.name)}")
        time.sleep(0.5)
    receipt = read_json(workspace / "build/promote/receipt.json")
    if not receipt["promoted"]:
        promote_despite_gates(root, workspace, receipt["development_version"])
    release = read_json(state / "serve/current/model/release.json", {})
    stages = list(loops(pipeline(workspace))["learn"])
    note = {
        "month": identity["first"],
        "as_of": conf["as_of"],
        "promoted": True,
        "by_hand": not receipt["promoted"],
        "why": WHY_FIRST,
        "reasons": receipt["reasons"],
        "metrics": read_json(workspace / "build/evaluate/metrics.json")["model"],
        "model_sha256": receipt["model_sha256"],
        "champion_version": release.get("version"),
        **run_facts(root, workspace, stages),
    }
    history_folder(root).mkdir(exist_ok=True)
    write_json(history_folder(root) / "first.json", note)
    return note


def first_champion_line(note: dict) -> str:
    """Return a line about the first champion."""
    line = f"  First champion: as of {note['as_of']}, MAE {note['metrics']['mae']:,.0f}"
    if note["by_hand"]:
        line += f", promoted by hand despite: {'; '.join(note['reasons'])}"
    return line


def airflow_commands(
    root: Path, identity: dict, months: list[str], parallel: int
) -> list[list[str]]:
    """Return the commands that fill Airflow's database: the months, and a backfill.

    Where there is no champion yet, the last one starts the training of the first.
    """
    snapshot_of = {name: identity[name] for name in ("commit", "uncommitted")}
    backfill = {
        "--dag-id": "house_prices",
        "--from-date": f"{months[0]}-01",
        "--to-date": f"{months[-1]}-01",
        "--max-active-runs": str(parallel),
        "--reprocess-behavior": "completed",
        "--dag-run-conf": json.dumps(snapshot_of),
    }
    create = ["backfill", "create"]
    for option, value in backfill.items():
        create += [option, value]
    pool = ["pools", "set", "default_pool", "3", "tasks at a time, most urgent first"]
    commands = [pool, ["dags", "reserialize"], create]
    if no_champion_yet(history_folder(root)):
        conf = first_training(root, identity)
        (workspace_path(root, conf["workspace"]) / "finished").unlink(missing_ok=True)
        trigger = ["dags", "trigger", "house_prices_retrain"]
        commands.append([*trigger, "--conf", json.dumps(conf)])
    return commands


def replay_months(
    root: Path,
    identity: dict,
    months: list[str],
    parallel: int,
    mark: str,
    progress,
    bar,
) -> None:
    """Start Airflow with a backfill of some months, and follow it to its end.

    Args:
        root: Checkout.
        identity: Of the replay.
        months: To do.
        parallel: Months at a time.
        mark: Variable that finds the processes.
        progress: Rich progress.
        bar: Its task.

    Raises:
        AirflowEnded: A process of Airflow has ended.
    """

    def show(line):
        progress.update(bar, description=line)

    show("Airflow starts")
    environ = fresh_airflow(root, mark)
    commands = airflow_commands(root, identity, months, parallel)
    run_airflow_commands(root, environ, commands)
    processes = start_airflow(root, environ)
    if no_champion_yet(history_folder(root)):
        note = first_champion(root, processes, identity, show)
        progress.console.print(first_champion_line(note))
    follow_months(root, months, processes, progress, bar)


def replay_with_restarts(
    root: Path, identity: dict, months: list[str], parallel: int, console
) -> None:
    """Replay months; where Airflow ends by itself, start all of it again.

    Args:
        root: Checkout.
        identity: Of the replay.
        months: All of the replay, those that are done included.
        parallel: Months at a time.
        console: Rich console.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    mark, starts = f"HOUSEMLOPS_UP_{secrets.token_hex(8)}", 0
    history = history_folder(root)
    left = unfinished_months(history, months)
    with guarded(mark), Progress(*columns, console=console, transient=True) as progress:
        done = len(months) - len(left)
        bar = progress.add_task("", total=len(months), completed=done)
        while left:
            try:
                replay_months(root, identity, left, parallel, mark, progress, bar)
            except AirflowEnded as ended:
                starts += 1
                stop_marked(mark, grace=2)
                if starts == STARTS:
                    raise WorkbookError(
                        f"Airflow lost its {ended} three times; its logs are in "
                        f"{history.parent}/log. The same command continues."
                    ) from None
                progress.console.print(
                    f"  Airflow lost its {ended}; all of it is started again"
                )
            left = unfinished_months(history, months)


def outcome_text(history: Path, months: list[str]) -> str:
    """Return a sentence about what came of the months."""
    alarms, retrainings = 0, []
    for month in months:
        alarms += bool(read_json(history / month / "verdict.json")["alarm"])
        retrainings.append(read_json(history / month / "retraining.json", {}))
    retrainings = [note for note in retrainings if note]
    promoted = sum(bool(note["promoted"]) for note in retrainings)
    failed = sum(bool(note["failed"]) for note in retrainings)
    refused = len(retrainings) - promoted - failed
    text = (
        f"{len(months)} months: {alarms} with an alarm, {len(retrainings)} retrainings "
        f"asked for, {promoted} promoted, {refused} refused"
    )
    return text + (f", {failed} failed" if failed else "")


def replay_history(
    first: str, last: str, root: Path | None = None, parallel: int = 8
) -> Path:
    """Replay past months through Airflow, and write the page about them.

    Args:
        first: Month to begin with, YYYY-MM.
        last: Month to end with, YYYY-MM.
        root: Checkout; found when not given.
        parallel: Months at a time.

    Returns:
        The page.
    """
    from rich.console import Console

    from housemlops.serving.running import free_port
    from housemlops.site.timeline_page import write_history

    began, root = time.monotonic(), Path(root or repo_root())
    console = Console(highlight=False, soft_wrap=True)
    head_commit(root)
    months = check_months(first, last, str(params(root)["as_of"]))
    with (
        environment(replay_environment(root, free_port(), last)),
        only_replay(settings(root).paths.state),
    ):
        history, identity = history_folder(root), replay_identity(root, first)
        resume(root, identity)
        left = unfinished_months(history, months)
        if left:
            line = f"replaying {left[0]} to {left[-1]} at {identity['commit'][:10]}"
            done = len(months) - len(left)
            if done:
                line = f"{done} of {len(months)} months are done; {line}"
            console.print(line)
            replay_with_restarts(root, identity, months, parallel, console)
        console.print(outcome_text(history, months))
        page = write_history(history, settings(root).paths.state / "page")
        console.print(f"Replayed in {time.monotonic() - began:.0f} s: {page}")
    return page
