"""Run the whole lifecycle once through Airflow, and follow it."""

import json
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from housemlops.core.repository import code_lineage, head_commit
from housemlops.pipeline.graph import graph, pipeline
from housemlops.pipeline.notebook import StageFailed
from housemlops.pipeline.parameters import stage_parameters
from housemlops.pipeline.scheduler import (
    LIFECYCLE,
    RunState,
    live_airflow,
    start_live,
    start_once,
)
from housemlops.pipeline.summary import print_summary, summarise_run
from housemlops.pipeline.task import run_month
from housemlops.pipeline.workspace import make_workspace
from housemlops.settings import params, repo_root, settings

MARKS = {
    "ran": "[green]✓[/] ran",
    "restored": "[cyan]✓[/] restored from the cache",
    "unchanged": "[cyan]✓[/] unchanged",
    "failed": "[red]✗[/] failed",
}


def read_events(path: Path, state: RunState) -> Iterator[dict]:
    """Yield the events of a run as they come, until it ends.

    Args:
        path: Progress file.
        state: Of the run.
    """
    seen = 0
    while True:
        running = state() == "running"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        complete = [line for line in lines[seen:] if line.endswith("\n")]
        yield from map(json.loads, complete)
        seen += len(complete)
        if not running:
            return
        time.sleep(0.3)


def show_progress(
    stages: list[str], path: Path, state: RunState, console: Console
) -> dict[str, dict]:
    """Show a run while it happens: a line for each stage that has ended, a bar for the next.

    Args:
        stages: In order.
        path: Progress file.
        state: Of the run.
        console: Receives the lines.

    Returns:
        Stage -> its last event.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("  {task.description}"), BarColumn(), TimeElapsedColumn()
    last = {}
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("Airflow starts", total=None)
        for event in read_events(path, state):
            stage, kind = event["stage"], event["event"]
            last[stage] = event
            place = f"{stages.index(stage) + 1} of {len(stages)}"
            progress.update(
                bar,
                description=f"{stage} ({place})",
                completed=event.get("cell", 0),
                total=event.get("cells"),
            )
            if kind in MARKS:
                seconds = f"{event['seconds']:6.1f} s"
                progress.console.print(f"  {stage:<10}{seconds}  {MARKS[kind]}")
    return last


def stage_outcomes(last: dict[str, dict]) -> list[dict]:
    """Return stage, outcome and seconds of each stage that has ended.

    Args:
        last: Stage -> its last event.
    """
    return [
        {
            "stage": stage,
            "outcome": event["event"],
            "seconds": round(event["seconds"], 3),
        }
        for stage, event in last.items()
        if event["event"] in MARKS
    ]


def check_finished(
    last: dict[str, dict], stages: list[str], state: str, log: Path, known: dict
) -> None:
    """Raise when a stage has failed, or Airflow did not run all of them.

    Args:
        last: Stage -> its last event.
        stages: All of them.
        state: Of the run: success or failed.
        log: Of the run.
        known: Of the run, for `run --json`.

    Raises:
        StageFailed: With the sentence of the stage.
    """
    result = known | {"stages": stage_outcomes(last)}
    for event in last.values():
        if event["event"] == "failed":
            raise StageFailed(f"{event['sentence']} (log: {log})", result)
    if state == "failed" or len(last) < len(stages):
        raise StageFailed(f"Airflow could not run the DAG; its log is {log}", result)


def start_run(root: Path, conf: dict, log: Path, console: Console) -> RunState:
    """Start the lifecycle in the Airflow that is at work, or else in one for this run.

    Two schedulers on one run would do everything twice.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    if not (settings(root).paths.state / "airflow/airflow.db").exists():
        console.print("Airflow's database is made, once (about 10 s).")
    api = live_airflow(root)
    if api:
        return start_live(api, LIFECYCLE, conf)
    return start_once(root, LIFECYCLE, conf, log)


def import_mlflow() -> None:
    """Import MLflow, which takes seconds and is needed for the summary."""
    import mlflow  # noqa: F401


def describe_code(run: str, lineage: dict) -> str:
    """Return a line about the code of a run.

    Args:
        run: Its name.
        lineage: From `code_lineage`.
    """
    branch = lineage["git_branch"] or "a detached HEAD"
    line = f"Run {run} of {branch} at {lineage['git_commit'][:10]}"
    if lineage["uncommitted"]:
        files = ", ".join(lineage["uncommitted"][:8])
        line += f" [yellow]with uncommitted changes[/]: {files}"
    return line


def run_lifecycle(
    root: Path | None = None,
    as_of: str = "",
    force: str = "",
    console: Console | None = None,
) -> dict:
    """Run the lifecycle with the uncommitted edits of a checkout, and print what came of it.

    Args:
        root: Checkout; found when not given.
        as_of: Month, YYYY-MM; as params.yaml says when empty.
        force: A stage to run although nothing has changed.
        console: Receives the report.

    Returns:
        run, as_of, commit, stages, seconds and what `summarise_run` gives, ready for JSON.

    Raises:
        WorkbookError: When a stage fails, or the checkout cannot be run.
    """
    began, root = time.monotonic(), Path(root or repo_root())
    console = console or Console(highlight=False, soft_wrap=True)
    head_commit(root)
    run = f"run-{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(2)}"
    month = run_month(str(params(root)["as_of"]), None, {"as_of": as_of})
    if force:
        stage_parameters(root, force)
    log = settings(root).paths.state / f"log/{run}.log"
    conf = {"workspace": run, "as_of": month, "force": force}
    state = start_run(root, conf, log, console)
    # While Airflow starts, make the workspace: the first task finds it ready.
    workspace = make_workspace(root, run, month, edits=True)
    lineage = code_lineage(workspace)
    console.print(describe_code(run, lineage))
    stages = list(graph(pipeline(workspace)))
    threading.Thread(target=import_mlflow, daemon=True).start()
    last = show_progress(stages, log.with_suffix(".progress.jsonl"), state, console)
    facts = ("git_commit", "git_branch", "uncommitted")
    known = {"run": run, "as_of": month} | {name: lineage[name] for name in facts}
    check_finished(last, stages, state(), log, known)
    console.print(f"Lifecycle: {time.monotonic() - began:.1f} s")
    result = known | {"stages": stage_outcomes(last)} | summarise_run(root, workspace)
    print_summary(root, result, console)
    seconds = time.monotonic() - began
    console.print(f"Total: {seconds:.1f} s")
    return result | {"seconds": round(seconds, 3)}
