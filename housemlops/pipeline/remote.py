"""Run a stage on a machine that shares no disk with this checkout."""

import contextlib
import importlib
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from housemlops.orchestrate import (
    STOPPED,
    dvc,
    effect_holds,
    noter,
    repro,
    run_month,
)
from housemlops.pipeline.graph import ancestors, loops, pipeline
from housemlops.pipeline.notebook import StageFailed
from housemlops.pipeline.remote_lock import (
    ELSEWHERE,
    LOOPS,
    hand_on_lock,
    keep,
    recall,
    restore,
    take_lock,
)
from housemlops.pipeline.remote_workspace import empty_folder, make_ready
from housemlops.settings import (
    WorkbookError,
    did_you_mean,
    params,
    repo_root,
    settings,
    tracking,
)


def champion_from_registry(root: Path, workspace: Path):
    """Make the champion's release where a month's run looks for it.

    Args:
        root: Where the settings are.
    """
    from housemlops.model.registry import champion, registered_name
    from housemlops.serve import deploy

    mlflow = tracking(settings(root))
    if standing := champion(
        mlflow.MlflowClient(), registered_name(params(workspace)["dataset"])
    ):
        deploy(mlflow, standing)


@contextlib.contextmanager
def looking_again(
    mlflow: Any, experiment: str, state: Path, before: dict[str, bytes]
) -> Iterator[None]:
    """Fetch the memory again and again while the block waits for others.

    Args:
        mlflow: Connected.
        experiment: Its name.
        state: Written into.
        before: Kept up to date.
    """
    over = threading.Event()

    def look():
        while not over.wait(10):
            before.update(recall(mlflow, experiment, state))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def beside_stage(root: Path, workspace: Path, stage: str, conf: dict) -> Iterator[dict]:
    """What is done before and after a stage, with the memory that it needs.

    Args:
        root: Where the settings are.
        workspace: With the outputs of the stages before.
        stage: Its name.
        conf: Of the run.

    Returns:
        Receives the event, when there is one.
    """
    loop, chosen, told = conf.get("loop", "all"), settings(root), {}
    beside, last = (
        getattr(importlib.import_module("housemlops.operations.loops"), LOOPS[loop])(),
        stage == list(loops(pipeline(workspace))[loop])[-1],
    )
    state, experiment = chosen.paths.state, chosen.mlflow.experiment
    try:
        if stage != "promote" and not (last and loop != "all"):
            beside.before(root, workspace, stage, conf)
            yield told
            told["event"] = beside.after(root, workspace, stage, conf)
            return
        before = recall(mlflow := tracking(chosen), experiment, state)
        with looking_again(mlflow, experiment, state, before):
            if loop == "watch":
                champion_from_registry(root, workspace)
            beside.before(root, workspace, stage, conf)
        yield told
        told["event"] = beside.after(root, workspace, stage, conf)
        keep(mlflow, experiment, state, before)
    except StageFailed as error:
        before = recall(mlflow := tracking(chosen), experiment, state)
        beside.failed(root, stage, conf, str(error))
        keep(mlflow, experiment, state, before)
        raise


def perform(root: Path, workspace: Path, stage: str, conf: dict) -> str:
    """The stage itself, and once more where its effect is no longer there.

    Args:
        root: Where the settings are.
        workspace: With the outputs of the stages before.
        stage: Its name.
        conf: Of the run.

    Returns:
        Ran, restored or unchanged.
    """
    note, force = noter(root, workspace), stage == conf.get("force")
    answer = repro(root, workspace, stage, note, force, pull=True)
    if answer == "ran" or stage in ELSEWHERE or effect_holds(root, workspace, stage):
        return answer
    return repro(root, workspace, stage, note, force=True, pull=True)


def stage_apart(stage: str, conf: dict, root: Path | None = None) -> dict:
    """One stage in an empty folder: code from git, data from the DVC remote, its outputs back there.

    Args:
        stage: Its name in dvc.yaml.
        conf: Of the run: workspace, as_of, loop, commit, branch, uncommitted,
            force.
        root: Where the settings are; found when not given.

    Returns:
        Answer: ran, restored or unchanged; seconds: of each step; run: MLflow's,
            when it ran; event: that asks for a retraining.
    """
    root, clock, seconds = Path(root or repo_root()), [time.monotonic()], {}

    def took(step):
        seconds[step], clock[0] = (
            round(time.monotonic() - clock[0], 1),
            time.monotonic(),
        )

    if stage not in pipeline(root):
        raise WorkbookError(
            f"dvc.yaml has no stage {stage!r}.{did_you_mean(stage, pipeline(root))}"
        )

    def connect():
        with contextlib.suppress(Exception):
            tracking(
                settings(root)
            )  # takes seconds; what is wrong with it is told below

    threading.Thread(target=connect, daemon=True).start()
    with empty_folder(settings(root).paths.state / "apart", stage) as folder:
        make_ready(root, workspace := folder / conf["workspace"], conf)
        took("code")
        before, noted = (
            loops(pipeline(workspace))[conf.get("loop", "all")],
            (
                tracking(settings(root)),
                settings(root).mlflow.experiment,
                workspace,
                conf["workspace"],
            ),
        )
        take_lock(*noted, ancestors(before, stage))
        restore(root, workspace, before[stage], only=stage)
        took("data")
        with beside_stage(root, workspace, stage, conf) as told:
            answer = perform(root, workspace, stage, conf)
        took("stage")
        dvc("push", "--run-cache", stage, root=workspace)
        hand_on_lock(*noted, stage)
        took("push")
        run = workspace / f"reports/{stage}.run.json"
        found = {
            "answer": answer,
            "seconds": seconds,
            "run": json.loads(run.read_text()) if run.exists() else {},
            **told,
        }
    if (box := Path("/airflow/xcom")).is_dir():
        (box / "return.json").write_text(
            json.dumps(found)
        )  # a pod hands back what it found
    return found


def facts_of(task: Any, run: Any, conf: dict, root: Path) -> dict:
    """What all tasks of a run agree about.

    Args:
        task: Its beside gives the latest month.
        run: The DAG run.
        conf: What was asked for.
        root: Checkout of this process.

    Returns:
        What a stage apart must know.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", conf.get("workspace") or run.run_id)
    month = run_month(task.beside.limit(root), run.data_interval_end, conf)
    loop = next(
        (loop for loop, kind in LOOPS.items() if kind == type(task.beside).__name__),
        "all",
    )
    return conf | {"workspace": name, "as_of": month, "loop": loop}


def run_apart(root: Path, task: Any, run: Any, conf: dict) -> tuple[dict, dict | None]:
    """What a task does on a worker.

    Args:
        root: Checkout of the worker.
        task: Its task_id is the stage; its page is set.
        run: The DAG run.
        conf: What was asked for.

    Returns:
        As `stage_apart` returns it; of the asset event.
    """
    try:
        told = stage_apart(task.task_id, facts_of(task, run, conf, root), root)
    except WorkbookError as error:
        print(f"{STOPPED}{error}", flush=True)
        if isinstance(error, StageFailed):
            raise
        raise ConnectionError(str(error)) from error
    if told["run"]:
        task.page = f"{settings(root).mlflow.tracking_uri}/#/experiments/{told['run']['experiment_id']}/runs/{told['run']['run_id']}"
    print(
        f"{task.task_id}: {told['answer']}, {told['seconds']}\n{task.page}", flush=True
    )
    return told, told.get("event")
