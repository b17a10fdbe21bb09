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
from typing import Any

from housemlops.core.files import read_optional_json, write_note
from housemlops.core.repository import data_md5, git
from housemlops.operations.history import (
    history_folder,
    is_finished,
    run_facts,
    shifted,
)
from housemlops.operations.loops import no_champion_yet
from housemlops.operations.replay_airflow import (
    AirflowEnded,
    check_alive,
    environment,
    fresh_airflow,
    replay_environment,
    start_airflow,
)
from housemlops.operations.replay_progress import (
    at_work,
    champion_now,
    conf_of,
    failures,
    first_conf,
    follow_months,
)
from housemlops.operations.timeline import month_span
from housemlops.core.repository import head_commit, snapshot
from housemlops.pipeline.task import run_environment
from housemlops.pipeline.workspace import workspace_path
from housemlops.pipeline.graph import loops, pipeline
from housemlops.processes import run_captured
from housemlops.settings import (
    WorkbookError,
    params,
    repo_root,
    settings,
    tracking,
)


def replay_identity(root: Path, first: str) -> dict:
    """What the results of a replay rest on.

    Args:
        root: Checkout.
        first: Month.

    Returns:
        First, commit, uncommitted, data_md5.
    """
    commit, changed = snapshot(root)
    return {
        "first": first,
        "commit": commit,
        "uncommitted": changed,
        "data_md5": data_md5(root, params(root)["dataset"]),
    }


def start_over(root: Path, identity: dict):
    """Forget an earlier replay: its months, its champions, its answers. Versions in development stay: results in DVC's cache name them.

    Args:
        root: Checkout.
    """
    from housemlops.model.registry import registered_name

    state, name, client = (
        settings(root).paths.state,
        registered_name(params(root)["dataset"]),
        tracking(settings(root)).MlflowClient(),
    )
    for path in state.iterdir():
        if path.name not in ("airflow", "running.lock"):
            shutil.rmtree(
                path
            ) if path.is_dir() and not path.is_symlink() else path.unlink()
    git("worktree", "prune", root=root)
    if client.search_registered_models(f"name = '{name}'"):
        client.delete_registered_model(name)
    if identity["uncommitted"]:
        git("update-ref", "refs/housemlops/replay", identity["commit"], root=root)
    write_note(state / "replay.json", identity)


def to_do(history: Path, months: list[str]) -> list[str]:
    """The months that a replay still has to do.

    Returns:
        The first unfinished one and all after it.
    """
    done = [is_finished(history / month) for month in months]
    return months[done.index(False) :] if False in done else []


def take_up(root: Path, identity: dict):
    """Continue an earlier replay of the same snapshot, or start over; a retraining that failed is tried again.

    Args:
        root: Checkout.
    """
    state, history = settings(root).paths.state, history_folder(root)
    if read_optional_json(state / "replay.json") != identity:
        start_over(root, identity)
    for note in history.glob("????-??/retraining.json"):
        if read_optional_json(note)["failed"]:
            note.unlink()


def first_champion(
    root: Path, processes: dict[str, subprocess.Popen], identity: dict, show: Any
) -> dict:
    """Wait for the first champion, and promote it by hand where the gates do not.

    Args:
        root: Checkout.
        show: Called with a line for the progress bar.

    Returns:
        first.json.
    """
    history, log, conf = (
        history_folder(root),
        settings(root).paths.state / "log",
        first_conf(root, identity),
    )
    workspace = workspace_path(root, conf["workspace"])
    while not (workspace / "finished").exists():
        check_alive(processes)
        if sentence := failures(log, [workspace.name]):
            raise WorkbookError(f"{sentence} (logs: {log})")
        show(f"the first champion: {at_work(log, workspace.name)}")
        time.sleep(0.5)
    receipt, why = (
        read_optional_json(workspace / "build/promote/receipt.json"),
        "the first model of the replay: nothing better existed",
    )
    if not receipt["promoted"]:
        command = [
            Path(sys.executable).with_name("housemlops"),
            "promote",
            f"dev/{receipt['development_version']}",
            "--why",
            why,
            "--despite-gates",
        ]
        environment = run_environment(root, workspace)
        done = run_captured(command, cwd=workspace, env=environment)
        if done.returncode:
            raise WorkbookError(
                f"The first champion could not be promoted: {(done.stderr.strip().splitlines() or ['no message'])[-1].removeprefix('Stopped: ')}"
            )
    note = {
        "month": identity["first"],
        "as_of": conf["as_of"],
        "promoted": True,
        "by_hand": not receipt["promoted"],
        "why": why,
        "reasons": receipt["reasons"],
        "metrics": read_optional_json(workspace / "build/evaluate/metrics.json")[
            "model"
        ],
        "model_sha256": receipt["model_sha256"],
        **champion_now(root),
        **run_facts(root, workspace, list(loops(pipeline(workspace))["learn"])),
    }
    history.mkdir(exist_ok=True)
    write_note(history / "first.json", note)
    return note


IN_TURN = """import json, sys
from airflow.cli.cli_parser import get_parser
for words in json.loads(sys.argv[1]):
    chosen = get_parser().parse_args(words)
    chosen.func(chosen)"""


def fill_airflow(
    root: Path,
    variables: dict[str, str],
    months: list[str],
    parallel: int,
    identity: dict,
):
    """Put the DAGs, the months, and the training of a first champion where there is none, into Airflow's database, by Airflow's own commands.

    Args:
        root: Checkout.
        variables: From `fresh_airflow`.
        parallel: Months at a time.
    """
    commands = [
        ["pools", "set", "default_pool", "3", "tasks at a time, the most urgent first"],
        ["dags", "reserialize"],
        [
            "backfill",
            "create",
            "--dag-id",
            "house_prices",
            "--from-date",
            f"{months[0]}-01",
            "--to-date",
            f"{months[-1]}-01",
            "--max-active-runs",
            str(parallel),
            "--reprocess-behavior",
            "completed",
            "--dag-run-conf",
            json.dumps(conf_of(identity)),
        ],
    ]
    if no_champion_yet(history_folder(root)):
        conf = first_conf(root, identity)
        (workspace_path(root, conf["workspace"]) / "finished").unlink(missing_ok=True)
        commands.append(
            ["dags", "trigger", "house_prices_retrain", "--conf", json.dumps(conf)]
        )
    done = run_captured(
        [sys.executable, "-c", IN_TURN, json.dumps(commands)],
        cwd=root,
        env=variables,
    )
    told = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode:
        raise WorkbookError(
            f"Airflow refused the backfill: {(told or ['no message'])[-1]}"
        )


def let_months_pass(
    root: Path,
    identity: dict,
    months: list[str],
    parallel: int,
    mark: str,
    progress: Any,
    bar: Any,
):
    """One start of Airflow: the backfill, and the first champion if there is none.

    Args:
        root: Checkout.
        months: To do.
        parallel: Months at a time.
        mark: Of the processes.
        progress: Rich progress.
        bar: Its task.
    """
    show = lambda line: progress.update(bar, description=line)
    show("Airflow starts")
    variables = fresh_airflow(root, mark)
    fill_airflow(root, variables, months, parallel, identity)
    processes = start_airflow(root, variables)
    if no_champion_yet(history_folder(root)):
        note = first_champion(root, processes, identity, show)
        progress.console.print(
            f"  First champion: as of {note['as_of']}, MAE {note['metrics']['mae']:,.0f}"
            + (
                f", promoted by hand despite: {'; '.join(note['reasons'])}"
                if note["by_hand"]
                else ""
            )
        )
    follow_months(root, months, processes, progress, bar)


def check_months(first: str, last: str, limit: str) -> list[str]:
    """Refuse months that are none, or of which nothing is known.

    Args:
        first: YYYY-MM.
        last: YYYY-MM.
        limit: as_of of params.yaml.

    Returns:
        Months.
    """
    for month in (first, last):
        if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month):
            raise WorkbookError(
                f"{month!r} is not a month; write YYYY-MM, for example 2009-05."
            )
    if first > last:
        raise WorkbookError(
            f"The replay would end ({last}) before it begins ({first}); exchange --from and --to."
        )
    if last >= limit:
        raise WorkbookError(
            f"as_of in params.yaml is {limit}, so {shifted(limit, -1)} is the last month that can be replayed."
        )
    return month_span(first, last)


@contextlib.contextmanager
def only_replay(state: Path) -> Iterator[None]:
    """Refuse a second replay on the same state folder.

    Args:
        state: Of the replay.
    """
    from filelock import FileLock, Timeout

    state.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(state / "running.lock").acquire(timeout=0)
    except Timeout:
        raise WorkbookError(
            "A replay is at work in this checkout already; wait for it, or stop it with Ctrl-C where it runs."
        ) from None
    with lock:
        yield


def tell_outcome(history: Path, months: list[str], console: Any):
    """Print what came of the months.

    Args:
        console: Rich console.
    """
    verdicts, runs = (
        [read_optional_json(history / month / f"{name}.json") for month in months]
        for name in ("verdict", "run")
    )
    answers = [
        note
        for month in months
        if (note := read_optional_json(history / month / "retraining.json"))
    ]
    promoted, failed = (
        sum(bool(note[name]) for note in answers) for name in ("promoted", "failed")
    )
    console.print(
        f"{len(months)} months: {sum(verdict['alarm'] for verdict in verdicts)} with an alarm, {len(answers)} retrainings asked for, "
        f"{promoted} promoted, {len(answers) - promoted - failed} refused{f', {failed} failed' if failed else ''}"
    )


def replay_history(
    first: str,
    last: str,
    root: Path | None = None,
    parallel: int = 8,
    console: Any = None,
) -> Path:
    """Let the months pass again, through Airflow, and write the page about them.

    Args:
        first: Month to begin with, YYYY-MM.
        last: Month to end with, YYYY-MM.
        root: Checkout; found when not given.
        parallel: Months at a time.
        console: Rich console.

    Returns:
        The page.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    from housemlops.operations.process_guard import guarded, stop_marked
    from housemlops.serving.running import free_port
    from housemlops.site.timeline_page import write_history

    root, console, began, mark = (
        Path(root or repo_root()),
        console or Console(highlight=False, soft_wrap=True),
        time.monotonic(),
        f"HOUSEMLOPS_UP_{secrets.token_hex(8)}",
    )
    head_commit(root)
    months = check_months(first, last, str(params(root)["as_of"]))
    with (
        environment(replay_environment(root, free_port(), last)),
        only_replay(settings(root).paths.state),
    ):
        state, identity = settings(root).paths.state, replay_identity(root, first)
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        take_up(root, identity)
        if left := to_do(history_folder(root), months):
            console.print(
                f"{len(months) - len(left)} of {len(months)} months are done; "
                * (len(left) < len(months))
                + f"replaying {left[0]} to {left[-1]} at {identity['commit'][:10]}"
            )
            with (
                guarded(mark),
                Progress(*columns, console=console, transient=True) as progress,
            ):
                bar, starts = (
                    progress.add_task(
                        "", total=len(months), completed=len(months) - len(left)
                    ),
                    0,
                )
                while left := to_do(history_folder(root), months):
                    try:
                        let_months_pass(
                            root, identity, left, parallel, mark, progress, bar
                        )
                    except AirflowEnded as ended:
                        starts += 1
                        stop_marked(mark, grace=2)
                        if starts == 3:
                            raise WorkbookError(
                                f"Airflow lost its {ended} three times; its logs are in {state}/log. The same command continues."
                            ) from None
                        progress.console.print(
                            f"  Airflow lost its {ended}; all of it is started again"
                        )
        tell_outcome(history_folder(root), months, console)
        page = write_history(history_folder(root), state / "page")
        console.print(f"Replayed in {time.monotonic() - began:.0f} s: {page}")
    return page
