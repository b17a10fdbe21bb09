"""Run a stage on a machine that shares no disk with this checkout."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from housemlops.core.files import read_json
from housemlops.core.repository import dvc
from housemlops.pipeline.graph import ancestors, loops, pipeline
from housemlops.pipeline.hooks import StageHooks
from housemlops.pipeline.notebook import StageFailed
from housemlops.pipeline.remote_lock import (
    Store,
    connect_store,
    hand_on_lock,
    keep,
    recall,
    restore,
    take_lock,
)
from housemlops.pipeline.remote_workspace import empty_folder, make_ready
from housemlops.pipeline.task import (
    STOPPED,
    effect_holds,
    progress_writer,
    repro,
    run_month,
)
from housemlops.pipeline.workspace import run_name
from housemlops.settings import (
    WorkbookError,
    did_you_mean,
    repo_root,
    settings,
    tracking,
)

SERVED_ELSEWHERE = ("serve",)  # stages whose effect belongs to the machine that serves
XCOM = Path("/airflow/xcom")  # folder in a pod whose return.json Airflow reads
REFRESH = 10.0  # seconds between looks at the memory


@contextlib.contextmanager
def refreshed(store: Store, state: Path, memory: dict[str, bytes]) -> Iterator[None]:
    """Fetch the memory again and again while a block waits for other runs.

    Args:
        store: Of the memory.
        state: Written into.
        memory: Kept up to date.
    """
    over = threading.Event()

    def refresh() -> None:
        while not over.wait(REFRESH):
            memory.update(recall(store, state))

    thread = threading.Thread(target=refresh, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def needs_memory(workspace: Path, stage: str, loop: str) -> bool:
    """Tell whether a stage reads and writes the promotion log or the history."""
    last = stage == list(loops(pipeline(workspace))[loop])[-1]
    return stage == "promote" or (last and loop != "all")


def run_with_hooks(
    root: Path, workspace: Path, stage: str, conf: dict, hooks: StageHooks
) -> tuple[str, dict | None]:
    """Run a stage between its hooks, with the memory that they need.

    Args:
        root: Where the settings are.
        workspace: With the outputs of the stages before.
        stage: Its name.
        conf: Of the run.
        hooks: What is done besides the stage.

    Returns:
        ran, restored or unchanged; the content of the asset event, if there is one.
    """
    if not needs_memory(workspace, stage, hooks.loop):
        hooks.before(root, workspace, stage, conf)
        outcome = run_or_restore(root, workspace, stage, conf, hooks)
        return outcome, hooks.after(root, workspace, stage, conf)
    store, state = connect_store(root), settings(root).paths.state
    memory = recall(store, state)
    with refreshed(store, state, memory):
        hooks.fetch_champion(root, workspace)
        hooks.before(root, workspace, stage, conf)
    outcome = run_or_restore(root, workspace, stage, conf, hooks)
    event = hooks.after(root, workspace, stage, conf)
    keep(store, state, memory, hooks.replace_promotion_log)
    return outcome, event


def report_failure(
    root: Path, stage: str, conf: dict, hooks: StageHooks, sentence: str
) -> None:
    """Call the hook of a failed stage, with the memory."""
    store, state = connect_store(root), settings(root).paths.state
    memory = recall(store, state)
    hooks.failed(root, stage, conf, sentence)
    keep(store, state, memory, hooks.replace_promotion_log)


def run_or_restore(
    root: Path, workspace: Path, stage: str, conf: dict, hooks: StageHooks
) -> str:
    """Run a stage under DVC, and once more where its effect is gone.

    Returns:
        ran, restored or unchanged.
    """
    report, force = progress_writer(root, workspace), stage == conf.get("force")
    outcome = repro(root, workspace, stage, report, force, pull=True)
    if outcome == "ran" or stage in SERVED_ELSEWHERE:
        return outcome
    if effect_holds(root, workspace, stage, hooks):
        return outcome
    return repro(root, workspace, stage, report, force=True, pull=True)


class StepTimes:
    """The seconds that each step of a task takes."""

    def __init__(self):
        self.last, self.seconds = time.monotonic(), {}

    def end(self, step: str) -> None:
        """Note the time since the end of the step before."""
        now = time.monotonic()
        self.seconds[step], self.last = round(now - self.last, 1), now


def connect_early(root: Path) -> None:
    """Connect to MLflow in a thread, because its import takes seconds.

    What is wrong with the connection is reported where it is used.
    """

    def connect() -> None:
        with contextlib.suppress(Exception):
            tracking(settings(root))

    threading.Thread(target=connect, daemon=True).start()


def stage_apart(
    stage: str,
    conf: dict,
    root: Path | None = None,
    hooks: StageHooks | None = None,
) -> dict:
    """Run one stage in an empty folder: code from git, data from and to the DVC remote.

    Args:
        stage: Its name in dvc.yaml.
        conf: Of the run: workspace, as_of, commit, branch, uncommitted, force.
        root: Where the settings are; found when not given.
        hooks: What is done besides the stage; nothing when not given.

    Returns:
        answer: ran, restored or unchanged; seconds: of each step; run: MLflow's, when it
        ran; event: content of the asset event that asks for a retraining, or None.

    Raises:
        StageFailed: When the stage fails, or outputs of earlier stages are missing.
        WorkbookError: When something else is wrong.
    """
    root, hooks, times = Path(root or repo_root()), hooks or StageHooks(), StepTimes()
    stages = pipeline(root)
    if stage not in stages:
        raise WorkbookError(
            f"dvc.yaml has no stage {stage!r}.{did_you_mean(stage, stages)}"
        )
    connect_early(root)
    with empty_folder(settings(root).paths.state / "apart", stage) as folder:
        workspace, lifecycle = folder / conf["workspace"], conf["workspace"]
        make_ready(root, workspace, conf)
        times.end("code")
        before, store = loops(pipeline(workspace))[hooks.loop], connect_store(root)
        take_lock(store, workspace, lifecycle, ancestors(before, stage))
        restore(root, workspace, before[stage], only=stage)
        times.end("data")
        try:
            outcome, event = run_with_hooks(root, workspace, stage, conf, hooks)
        except StageFailed as error:
            report_failure(root, stage, conf, hooks, str(error))
            raise
        times.end("stage")
        dvc("push", "--run-cache", stage, root=workspace)
        hand_on_lock(store, workspace, lifecycle, stage)
        times.end("push")
        run = workspace / f"reports/{stage}.run.json"
        result = {
            "answer": outcome,
            "seconds": times.seconds,
            "run": read_json(run) if run.exists() else {},
            "event": event,
        }
    if XCOM.is_dir():
        (XCOM / "return.json").write_text(json.dumps(result))
    return result


def run_facts(root: Path, hooks: StageHooks, run: Any, conf: dict) -> dict:
    """Return what all tasks of a run must agree about.

    Args:
        root: Checkout of this process.
        hooks: Give the latest month and the loop.
        run: The DAG run.
        conf: What was asked for.
    """
    return conf | {
        "workspace": run_name(conf.get("workspace") or run.run_id),
        "as_of": run_month(hooks.latest_month(root), run.data_interval_end, conf),
        "loop": hooks.loop,
    }


def run_apart(root: Path, task: Any, run: Any, conf: dict) -> tuple[dict, dict | None]:
    """Run a stage on a worker.

    Args:
        root: Checkout of the worker.
        task: Operator; its task_id is the stage, and its page is set to the MLflow run.
        run: The DAG run.
        conf: What was asked for.

    Returns:
        What `stage_apart` returns; the content of the asset event, if there is one.

    Raises:
        StageFailed: An error of the stage, which is final.
        ConnectionError: Any other error, so that Airflow tries again.
    """
    facts = run_facts(root, task.hooks, run, conf)
    try:
        result = stage_apart(task.task_id, facts, root, task.hooks)
    except WorkbookError as error:
        print(f"{STOPPED}{error}", flush=True)
        if isinstance(error, StageFailed):
            raise
        raise ConnectionError(str(error)) from error
    if result["run"]:
        ids = result["run"]
        path = f"experiments/{ids['experiment_id']}/runs/{ids['run_id']}"
        task.page = f"{settings(root).mlflow.tracking_uri}/#/{path}"
    times = f"{result['answer']}, {result['seconds']}"
    print(f"{task.task_id}: {times}\n{task.page}", flush=True)
    return result, result["event"]
