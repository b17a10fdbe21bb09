"""Remember in MLflow what stages on other machines made, so that the next stage finds it."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from housemlops.orchestrate import (
    STOPPED,
    run_environment,
)
from housemlops.pipeline.notebook import StageFailed
from housemlops.processes import read_lines, started
from housemlops.settings import (
    WorkbookError,
)


def lock_runs(mlflow: Any, experiment: str, lifecycle: str) -> list:
    """Where the lines of dvc.lock of a run are.

    Args:
        mlflow: Connected.
        experiment: Its name.
        lifecycle: Name of the run.

    Returns:
        Of MLflow runs; one, as a rule.
    """
    return mlflow.search_runs(
        experiment_names=[experiment],
        filter_string=f"tags.kept = 'dvc.lock' and tags.of = '{lifecycle}'",
        output_format="list",
        order_by=["attributes.start_time ASC"],
    )


def take_lock(
    mlflow: Any, experiment: str, workspace: Path, lifecycle: str, stages: list[str]
):
    """Write into dvc.lock what this run has noted about some stages, and nothing else: lines of another run would mislead.

    Args:
        mlflow: Connected.
        experiment: Its name.
        workspace: Its dvc.lock is rewritten.
        lifecycle: Name of the run.
        stages: Those before.
    """
    from ruamel.yaml import YAML

    lines, client = {}, mlflow.MlflowClient()
    for run in lock_runs(mlflow, experiment, lifecycle):
        there = {
            Path(item.path).stem: item.path
            for item in client.list_artifacts(run.info.run_id)
        }
        lines |= {
            stage: json.loads(
                mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{there[stage]}")
            )
            for stage in stages
            if stage in there
        }
    with open(workspace / "dvc.lock", "w") as file:
        YAML().dump({"schema": "2.0", "stages": lines}, file)


def hand_on_lock(
    mlflow: Any, experiment: str, workspace: Path, lifecycle: str, stage: str
):
    """Put the lines of a stage where the next ones look.

    Args:
        mlflow: Connected.
        experiment: Its name.
        workspace: Where the stage has been.
        lifecycle: Name of the run.
        stage: Its name.
    """
    from ruamel.yaml import YAML

    client, runs = mlflow.MlflowClient(), lock_runs(mlflow, experiment, lifecycle)
    run = (
        runs[0]
        if runs
        else client.create_run(
            mlflow.get_experiment_by_name(experiment).experiment_id,
            run_name="dvc.lock",
            tags={"kept": "dvc.lock", "of": lifecycle},
        )
    )
    client.log_text(
        run.info.run_id,
        json.dumps(
            YAML(typ="safe").load((workspace / "dvc.lock").read_text())["stages"][
                stage
            ],
            indent=1,
        ),
        f"{stage}.json",
    )


def restore(root: Path, workspace: Path, stages: list[str], only: str = "none"):
    """Let DVC restore stages from the remote; none of them may run.

    Args:
        root: Where the settings are.
        workspace: Ready.
        stages: With all that is before them.
        only: Stage that may run.
    """
    if not stages:
        return
    command = [sys.executable, "-m", "dvc", "repro", "--pull", *stages]
    environment = run_environment(root, workspace) | {"HOUSEMLOPS_ONLY_STAGE": only}
    with started(command, cwd=workspace, env=environment) as process:
        lines = [line.rstrip() for line in read_lines(process)]
    print("\n".join(lines), flush=True)
    told = [line.removeprefix(STOPPED) for line in lines if line.startswith(STOPPED)]
    errors = [
        line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")
    ]
    if told:
        raise StageFailed(told[0])
    if process.returncode:
        raise WorkbookError(
            f"The stages before could not be restored: {(errors or ['no message'])[0]}"
        )


LOG = "promotions.jsonl"


MEMORY = (
    LOG,
    "history/*.json",
    "history/*/*.json",
    "history/*/*.csv",
)  # what outlives a worker, below its state folder


ELSEWHERE = ("serve",)  # stages whose effect belongs to the place that serves


def memory_run(mlflow: Any, experiment: str):
    """The run that carries the memory.

    Args:
        mlflow: Connected.
        experiment: Its name.

    Returns:
        -> MLflow run, or None.
    """
    found = mlflow.search_runs(
        experiment_names=[experiment],
        filter_string="tags.kept = 'memory'",
        output_format="list",
        max_results=1,
        order_by=["attributes.start_time ASC"],
    )
    return found[0] if found else None


def recall(mlflow: Any, experiment: str, state: Path) -> dict[str, bytes]:
    """The memory as the registry has it.

    Args:
        mlflow: Connected.
        experiment: Its name.
        state: Written into.

    Returns:
        Path -> content.
    """
    if (run := memory_run(mlflow, experiment)) is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(
            mlflow.artifacts.download_artifacts(run_id=run.info.run_id, dst_path=folder)
        )
        found = {
            path.relative_to(home).as_posix(): path.read_bytes()
            for path in home.rglob("*")
            if path.is_file()
        }
    for name, content in found.items():
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        draft = state / f"{name}.{os.getpid()}"
        draft.write_bytes(content)
        draft.replace(state / name)
    return found


def remembered(state: Path) -> dict[str, bytes]:
    """The memory as it is here.

    Returns:
        Path -> content.
    """
    return {
        path.relative_to(state).as_posix(): path.read_bytes()
        for pattern in MEMORY
        for path in state.glob(pattern)
    }


def keep(mlflow: Any, experiment: str, state: Path, before: dict[str, bytes]):
    """Put back what is new; the promotion log only if nobody else has continued it.

    Args:
        mlflow: Connected.
        experiment: Its name.
        before: As it was fetched.
    """
    new = {
        name: content
        for name, content in remembered(state).items()
        if content != before.get(name)
    }
    if not new:
        return
    if LOG in new:
        with tempfile.TemporaryDirectory() as folder:
            there = recall(mlflow, experiment, Path(folder)).get(LOG, b"")
            lost = there != before.get(LOG, b"") or not new[LOG].startswith(there)
            if lost:
                from housemlops.promote import tag_newest_lines

                tag_newest_lines(mlflow.MlflowClient(), Path(folder) / LOG)
        if lost:
            raise ConnectionError(
                "Another run has decided about a promotion meanwhile; this one must decide again."
            )
    client, run = mlflow.MlflowClient(), memory_run(mlflow, experiment)
    if run is None:
        run = client.create_run(
            mlflow.get_experiment_by_name(experiment).experiment_id,
            run_name="memory",
            tags={"kept": "memory"},
        )
    for name in new:
        client.log_artifact(
            run.info.run_id,
            str(state / name),
            str(Path(name).parent) if "/" in name else None,
        )


LOOPS = {
    "watch": "Watch",
    "learn": "Learn",
    "all": "Lifecycle",
}  # and their classes in the room history
