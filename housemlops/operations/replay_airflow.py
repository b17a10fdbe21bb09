"""The embedded Airflow that replays months."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from housemlops.pipeline.scheduler import is_listening, prepare_airflow
from housemlops.settings import (
    WorkbookError,
    settings,
)


def replay_environment(root: Path, port: int, until: str) -> dict[str, str]:
    """The settings of a replay: the checkout's MLflow store under other names, and everything else of its own.

    Args:
        root: Checkout.
        port: Of its Airflow.
        until: Last month.

    Returns:
        Variables to add.
    """
    chosen = settings(root)
    names = {
        "PATHS_STATE": chosen.paths.state / "replay",
        "MLFLOW_TRACKING_URI": chosen.mlflow.tracking_uri,
        "MLFLOW_ARTIFACTS": chosen.mlflow.artifacts,
        "MLFLOW_EXPERIMENT": f"{chosen.mlflow.experiment}-replay",
        "MLFLOW_MODEL": f"{chosen.mlflow.model}-replay",
        "AIRFLOW_PORT": port,
        "AIRFLOW_UNTIL": until,
        "SERVER_DATABASE_URL": "",
        "ALERTS_WEBHOOK": "",
        "ALERTS_EMAIL": "",
        "RELEASE_CLUSTER": "",
    }
    return {f"HOUSEMLOPS_{name}": str(value) for name, value in names.items()}


@contextlib.contextmanager
def environment(
    variables: dict[str, str],
) -> Iterator[None]:
    "Set environment variables for as long as the block runs."
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def fresh_airflow(root: Path, mark: str) -> dict[str, str]:
    """An empty Airflow database, and settings for a single job.

    Args:
        root: Checkout.
        mark: Of the processes.

    Returns:
        Environment of its processes.
    """
    home = settings(root).paths.state / "airflow"
    for file in home.glob("airflow.db*"):
        file.unlink()
    if (empty := next(home.glob("empty-*.db"), None)) and (
        home / f"migrated-{empty.stem.removeprefix('empty-')}"
    ).exists():
        shutil.copy(empty, home / "airflow.db")
    found = prepare_airflow(root)
    version = max(
        home.glob("migrated-*"), key=lambda path: path.stat().st_mtime
    ).name.removeprefix("migrated-")
    if not (home / f"empty-{version}.db").exists():
        shutil.copy(home / "airflow.db", home / f"empty-{version}.db")
    quick = {
        "CORE__PARALLELISM": 6,
        "CORE__DEFAULT_TASK_RETRIES": 2,
        "CORE__DEFAULT_TASK_RETRY_DELAY": 5,
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": 1,
        "LOGGING__LOGGING_LEVEL": "WARNING",
    }
    return (
        found
        | {f"AIRFLOW__{name}": str(value) for name, value in quick.items()}
        | {
            mark: "1",
            "SPT_NOENV": "1",
            "MALLOC_ARENA_MAX": "2",
            "PYTHONUNBUFFERED": "1",
        }
    )


def start_airflow(
    root: Path, variables: dict[str, str], patience: float = 180
) -> dict[str, subprocess.Popen]:
    """Start the API server and, when it answers, the scheduler.

    Args:
        root: Checkout.
        variables: From `fresh_airflow`.
        patience: Seconds.

    Returns:
        By name.
    """
    from housemlops.operations.services import airflow_services
    from housemlops.operations.supervisor import open_log

    chosen, found, end = settings(root), {}, time.monotonic() + patience
    services = {service.name: service for service in airflow_services(chosen, root)}
    for name in ("airflow", "scheduler"):
        while found and not is_listening(chosen.airflow.port):
            check_alive(found)
            if time.monotonic() > end:
                raise WorkbookError(
                    f"Airflow did not become ready: look at its logs in {chosen.paths.state / 'log'}."
                )
            time.sleep(0.2)
        with open_log(chosen.paths.state / f"log/{name}.log") as log:
            found[name] = subprocess.Popen(
                services[name].command,
                cwd=root,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    return found


class AirflowEnded(Exception):
    "One of Airflow's processes has ended by itself."


def check_alive(
    processes: dict[str, subprocess.Popen],
):
    "Raise when one of Airflow's processes has ended."
    for name, process in processes.items():
        if process.poll() is not None:
            raise AirflowEnded(name)
