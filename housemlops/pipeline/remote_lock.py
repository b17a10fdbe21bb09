"""Keep in MLflow what later stages of a run on other machines need."""

# These are the lines of dvc.lock of each stage, and the memory: the promotion log and the
# history, which outlive the machine of a task.

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from housemlops.pipeline.notebook import StageFailed
from housemlops.pipeline.task import STOPPED, run_environment
from housemlops.processes import read_lines, started
from housemlops.settings import WorkbookError, settings, tracking

LOG = "promotions.jsonl"
MEMORY = (LOG, "history/*.json", "history/*/*.json", "history/*/*.csv")  # in the state


class Store(NamedTuple):
    """An MLflow experiment that keeps files.

    Attributes:
        mlflow: The module, connected.
        experiment: Its name.
    """

    mlflow: Any
    experiment: str

    def find_runs(self, kept: str, of: str = "") -> list:
        """Return the MLflow runs that keep something, the oldest first.

        Args:
            kept: What they keep.
            of: Lifecycle that it belongs to.
        """
        condition = f"tags.kept = '{kept}'" + (f" and tags.of = '{of}'" if of else "")
        return self.mlflow.search_runs(
            experiment_names=[self.experiment],
            filter_string=condition,
            output_format="list",
            order_by=["attributes.start_time ASC"],
        )

    def find_or_create_run(self, kept: str, of: str = "") -> str:
        """Return the id of the MLflow run that keeps something."""
        runs = self.find_runs(kept, of)
        if runs:
            return runs[0].info.run_id
        experiment = self.mlflow.get_experiment_by_name(self.experiment)
        tags = {"kept": kept} | ({"of": of} if of else {})
        run = self.mlflow.MlflowClient().create_run(
            experiment.experiment_id, run_name=kept, tags=tags
        )
        return run.info.run_id


def connect_store(root: Path) -> Store:
    """Return the store of the experiment that settings.ini names."""
    chosen = settings(root)
    return Store(tracking(chosen), chosen.mlflow.experiment)


def take_lock(store: Store, workspace: Path, lifecycle: str, stages: list[str]) -> None:
    """Write dvc.lock with what this run has kept about some stages, and nothing else.

    The lines of another run would be wrong where a stage ran again with the same inputs.

    Args:
        store: Of the lines.
        workspace: Its dvc.lock is rewritten.
        lifecycle: Name of the run.
        stages: Those before.
    """
    lines, client = {}, store.mlflow.MlflowClient()
    for run in store.find_runs("dvc.lock", lifecycle):
        kept = [item.path for item in client.list_artifacts(run.info.run_id)]
        for stage in stages:
            if f"{stage}.json" in kept:
                uri = f"{run.info.artifact_uri}/{stage}.json"
                lines[stage] = json.loads(store.mlflow.artifacts.load_text(uri))
    with (workspace / "dvc.lock").open("w") as file:
        YAML().dump({"schema": "2.0", "stages": lines}, file)


def hand_on_lock(store: Store, workspace: Path, lifecycle: str, stage: str) -> None:
    """Keep the lines of a stage for the stages after it.

    Args:
        store: Of the lines.
        workspace: Where the stage ran.
        lifecycle: Name of the run.
        stage: Its name.
    """
    lock = YAML(typ="safe").load((workspace / "dvc.lock").read_text())
    text = json.dumps(lock["stages"][stage], indent=1)
    run = store.find_or_create_run("dvc.lock", lifecycle)
    store.mlflow.MlflowClient().log_text(run, text, f"{stage}.json")


def restore(root: Path, workspace: Path, stages: list[str], only: str = "none") -> None:
    """Let DVC restore stages from the remote; none of them may run.

    Args:
        root: Where the settings are.
        workspace: Ready.
        stages: With all that is before them.
        only: Stage that may run.

    Raises:
        StageFailed: When outputs of a stage are not in the remote.
        WorkbookError: With DVC's error, when it fails for another reason.
    """
    if not stages:
        return
    command = [sys.executable, "-m", "dvc", "repro", "--pull", *stages]
    environment = run_environment(root, workspace) | {"HOUSEMLOPS_ONLY_STAGE": only}
    with started(command, cwd=workspace, env=environment) as process:
        lines = [line.rstrip() for line in read_lines(process)]
    print("\n".join(lines), flush=True)
    errors = [line for line in lines if line.startswith("ERROR: ")]
    for line in lines:
        if line.startswith(STOPPED):
            raise StageFailed(line.removeprefix(STOPPED))
    if process.returncode:
        error = (errors or ["no message"])[0].removeprefix("ERROR: ")
        raise WorkbookError(f"The stages before could not be restored: {error}")


def recall(store: Store, state: Path) -> dict[str, bytes]:
    """Copy the memory into a state folder.

    Args:
        store: Of the memory.
        state: Written into.

    Returns:
        Path -> content.
    """
    runs, memory = store.find_runs("memory"), {}
    if not runs:
        return memory
    with tempfile.TemporaryDirectory() as folder:
        run = runs[0].info.run_id
        download = store.mlflow.artifacts.download_artifacts
        home = Path(download(run_id=run, dst_path=folder))
        for path in home.rglob("*"):
            if path.is_file():
                memory[path.relative_to(home).as_posix()] = path.read_bytes()
    for name, content in memory.items():
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        draft = state / f"{name}.{os.getpid()}"
        draft.write_bytes(content)
        draft.replace(state / name)
    return memory


def remembered(state: Path) -> dict[str, bytes]:
    """Return the memory as it is in a state folder: path -> content."""
    memory = {}
    for pattern in MEMORY:
        for path in state.glob(pattern):
            memory[path.relative_to(state).as_posix()] = path.read_bytes()
    return memory


def keep(
    store: Store,
    state: Path,
    before: dict[str, bytes],
    replace_log: Callable[[Any, Path], None] | None = None,
) -> None:
    """Keep what is new in the memory; the promotion log only if no other run continued it.

    Args:
        store: Of the memory.
        state: With the memory as it is now.
        before: Memory as it was fetched.
        replace_log: Called with an MLflow client and the log that another run continued.

    Raises:
        ConnectionError: When another run has continued the promotion log.
    """
    new = {}
    for name, content in remembered(state).items():
        if content != before.get(name):
            new[name] = content
    if not new:
        return
    client = store.mlflow.MlflowClient()
    if LOG in new:
        with tempfile.TemporaryDirectory() as folder:
            kept = recall(store, Path(folder)).get(LOG, b"")
            lost = kept != before.get(LOG, b"") or not new[LOG].startswith(kept)
            if lost and replace_log:
                replace_log(client, Path(folder) / LOG)
        if lost:
            raise ConnectionError(
                "Another run has decided about a promotion meanwhile; this one must "
                "decide again."
            )
    run = store.find_or_create_run("memory")
    for name in new:
        folder = Path(name).parent.as_posix()
        client.log_artifact(run, str(state / name), None if folder == "." else folder)
