"""Run a stage: its notebook with its parameters, as one MLflow run, with a report."""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from housemlops.core.repository import code_lineage, data_md5
from housemlops.model.registry import PROCESS
from housemlops.pipeline.closure import check_dependencies
from housemlops.pipeline.graph import pipeline
from housemlops.pipeline.notebook import as_html, execute, normalise, speed_up_start
from housemlops.pipeline.parameters import (
    check_parameters,
    parameter_types,
    read_notebook,
    stage_parameters,
)
from housemlops.settings import WorkbookError, params, repo_root, settings, tracking


def lineage_tags(root: Path, stage: str) -> dict[str, str]:
    """Return the MLflow tags that say from which code, data and parameters a stage's run comes.

    Args:
        root: Workspace or checkout.
        stage: Its name.
    """
    code, given = code_lineage(root), params(root)
    dataset = str(given.get("dataset", ""))
    return {
        "stage": stage,
        "dataset": dataset,
        "as_of": str(given.get("as_of", "")),
        "data_md5": data_md5(root, dataset),
        "git_commit": code["git_commit"],
        "git_branch": code["git_branch"] or "detached",
        "uncommitted": ", ".join(code["uncommitted"])[:5000] or "no",
        "lifecycle": code["lifecycle"],
        "dvc_stage_cmd": pipeline(root)[stage]["cmd"],
        "mlflow.source.name": f"nbs/{stage}.ipynb",
        "mlflow.source.type": "NOTEBOOK",
        "mlflow.source.git.commit": code["git_commit"],
    }


def this_process() -> str:
    """Return what tells this process from all others: host, process id, time of its start."""
    return json.dumps(
        [socket.gethostname(), os.getpid(), psutil.Process().create_time()]
    )


def is_gone(process: str) -> bool:
    """Tell whether a process of this machine has ended; of another one nothing is known."""
    host, number, began = json.loads(process)
    if host != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(number).create_time() - began) > 1
    except psutil.NoSuchProcess:
        return True


def close_abandoned_runs(client, experiment: str):
    """Set the MLflow runs of stages that were killed to KILLED.

    Args:
        client: MlflowClient.
        experiment: Id of the experiment.
    """
    for run in client.search_runs([experiment], f"tags.{PROCESS} != ''"):
        if is_gone(run.data.tags[PROCESS]):
            client.set_terminated(run.info.run_id, "KILLED")
            client.delete_tag(run.info.run_id, PROCESS)


def begin_run(root: Path, stage: str, note: Path) -> tuple:
    """Begin the MLflow run of a stage, with lineage, and tell its notebook.

    Args:
        root: Workspace or checkout.
        stage: Its name, and the run's.
        note: File that says which run it is, or why there is none.

    Returns:
        The MLflow client and the id of the run.
    """
    from nbformat.v4 import new_notebook

    told = {"error": "the MLflow run of the stage could not be begun"}
    try:
        client = tracking(settings(root)).MlflowClient()
        name = settings(root).mlflow.experiment
        experiment = client.get_experiment_by_name(name).experiment_id
        close_abandoned_runs(client, experiment)
        tags = {**lineage_tags(root, stage), PROCESS: this_process()}
        run = client.create_run(experiment, run_name=stage, tags=tags)
        told = {"experiment_id": experiment, "run_id": run.info.run_id}
    finally:
        draft = note.with_suffix(".draft")
        draft.write_text(json.dumps(told))
        draft.replace(note)
    as_html(new_notebook(), stage)  # compiles the template of the pages
    return client, told["run_id"]


@contextmanager
def mlflow_run(root: Path, stage: str) -> Iterator[Callable[[Path], None]]:
    """Give a block an MLflow run that ends FINISHED or FAILED.

    MLflow takes seconds to import, so the run is begun by a thread while the kernel
    starts; `housemlops.settings.tracking` in the notebook waits for it.

    Args:
        root: Workspace or checkout.
        stage: Its name, and the run's.

    Yields:
        A function that logs a file to the run.
    """
    note, status = root / f"reports/{stage}.run.json", "FAILED"
    note.unlink(missing_ok=True)
    os.environ["HOUSEMLOPS_RUN"] = str(note)
    with ThreadPoolExecutor(1) as beside:
        begun = beside.submit(begin_run, root, stage, note)

        def log(file: Path):
            client, run = begun.result()
            client.log_artifact(run, str(file), "notebook")

        try:
            yield log
            status = "FINISHED"
        finally:
            client, run = begun.result()
            client.set_terminated(run, status)
            client.delete_tag(run, PROCESS)
            os.environ.pop("HOUSEMLOPS_RUN", None)


def write_report(notebook: dict, root: Path, name: str) -> list[Path]:
    """Write an executed notebook for tools (.ipynb) and for people (.html).

    Args:
        notebook: Executed.
        root: Workspace or checkout.
        name: Of the report.

    Returns:
        Both files.
    """
    import nbformat

    state = settings(root).paths.state
    normalise(notebook, {str(root): ".", str(sys.prefix): ".venv", str(state): "var"})
    files = [root / f"reports/{name}.ipynb", root / f"reports/{name}.html"]
    nbformat.write(notebook, files[0])
    files[1].write_text(as_html(notebook, name), encoding="utf-8")
    return files


def stage_environment(folder: str) -> dict[str, str]:
    """Return the environment of a stage's kernel.

    What a user has set for Python, IPython, Jupyter and Matplotlib changes outputs, and
    is in no key of DVC's cache: it is left out, and so are their start-up files.

    Args:
        folder: Empty, for what IPython writes.
    """
    theirs = ("PYTHON", "IPYTHON", "JUPYTER", "MPL", "MATPLOTLIB")
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(theirs)
    }
    return (
        kept
        | {
            "IPYTHONDIR": folder,
            "MATPLOTLIBRC": os.devnull,
            "PYTHONDONTWRITEBYTECODE": "1",  # a model's folder stays as it was written
            "PYTHONHASHSEED": "0",
            "PYTHONUTF8": "1",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # addresses differ from run to run
        }
    )


@contextmanager
def own_environment(root: Path) -> Iterator[None]:
    """Give a block, and all that it starts, the environment of a stage.

    Args:
        root: Workspace or checkout, whose package is imported.
    """
    before = dict(os.environ)
    with TemporaryDirectory(prefix="ipython-") as folder:
        chosen = stage_environment(folder) | {"PYTHONPATH": str(root)}
        os.environ.clear()
        os.environ.update(chosen)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def run_stage(stage: str, root: Path | None = None):
    """Check parameters, execute the stage's notebook, write its report, remember it in MLflow.

    Args:
        stage: Its name in dvc.yaml.
        root: Workspace or checkout; found when not given.

    Raises:
        WorkbookError: When parameters do not agree or the notebook stops.
    """
    if os.environ.get("HOUSEMLOPS_ONLY_STAGE", stage) != stage:
        raise WorkbookError(
            f"The outputs of {stage} for this code, data and month are not in the DVC remote, and this task may not make them: run {stage} (in Airflow: clear its task)."
        )
    speed_up_start()
    import nbformat

    root = Path(root or repo_root())
    values = {"build": "build", **stage_parameters(root, stage)}
    source, draft = root / f"nbs/{stage}.ipynb", root / f"reports/{stage}.draft.ipynb"
    check_parameters(values, parameter_types(read_notebook(root, stage), stage), stage)
    check_dependencies(root, stage)
    draft.parent.mkdir(exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with own_environment(root), mlflow_run(root, stage) as log:
        try:
            for file in write_report(execute(source, draft, values, root), root, stage):
                log(file)
        except BaseException:
            if draft.exists():
                notebook = nbformat.read(draft, as_version=4)
                for file in write_report(notebook, root, f"{stage}.failed"):
                    log(file)
            raise
        finally:
            draft.unlink(missing_ok=True)
