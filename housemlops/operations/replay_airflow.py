"""The embedded Airflow that replays months."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from housemlops.operations.services import airflow_services
from housemlops.operations.supervisor import start_process
from housemlops.pipeline.scheduler import is_listening, prepare_airflow
from housemlops.processes import run_captured
from housemlops.settings import WorkbookError, settings

# Runs several of Airflow's commands in one process: its start takes seconds.
RUN_COMMANDS = """
import json, sys
from airflow.cli.cli_parser import get_parser
for words in json.loads(sys.argv[1]):
    chosen = get_parser().parse_args(words)
    chosen.func(chosen)
"""


class AirflowEnded(Exception):
    """One of Airflow's processes has ended by itself."""


def replay_environment(root: Path, port: int, until: str) -> dict[str, str]:
    """Return the settings of a replay, as environment variables.

    It has a state folder and names of its own in the checkout's MLflow store.

    Args:
        root: Checkout.
        port: Of its Airflow.
        until: Last month.
    """
    chosen = settings(root)
    values = {
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
    return {f"HOUSEMLOPS_{name}": str(value) for name, value in values.items()}


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for as long as the block runs."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def fresh_airflow(root: Path, mark: str) -> dict[str, str]:
    """Create an empty Airflow database, and return the environment of its processes.

    Args:
        root: Checkout.
        mark: Variable that finds the processes.
    """
    for file in (settings(root).paths.state / "airflow").glob("airflow.db*"):
        file.unlink()
    return prepare_airflow(root) | {
        "AIRFLOW__CORE__PARALLELISM": "6",
        "AIRFLOW__CORE__DEFAULT_TASK_RETRIES": "2",
        "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "5",  # seconds
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "1",  # seconds
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "SPT_NOENV": "1",  # a process title must not overwrite the mark
        "MALLOC_ARENA_MAX": "2",
        "PYTHONUNBUFFERED": "1",
        mark: "1",
    }


def run_airflow_commands(root: Path, environ: dict[str, str], commands: list) -> None:
    """Run commands of Airflow, one after the other.

    Raises:
        WorkbookError: With Airflow's last line, when one fails.
    """
    command = [sys.executable, "-c", RUN_COMMANDS, json.dumps(commands)]
    done = run_captured(command, cwd=root, env=environ)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise WorkbookError(f"Airflow refused the backfill: {lines[-1]}")


def start_airflow(root: Path, environ: dict[str, str]) -> dict[str, subprocess.Popen]:
    """Start the API server and, when it answers, the scheduler.

    Args:
        root: Checkout.
        environ: From `fresh_airflow`.

    Returns:
        The processes by their names.

    Raises:
        WorkbookError: The API server does not answer within three minutes.
    """
    chosen = settings(root)
    log = chosen.paths.state / "log"
    services = {service.name: service for service in airflow_services(chosen, root)}
    api_server = start_process(
        services["airflow"].command, log / "airflow.log", environ, root
    )
    processes = {"airflow": api_server}
    end = time.monotonic() + 180
    while not is_listening(chosen.airflow.port):
        check_alive(processes)
        if time.monotonic() > end:
            raise WorkbookError(
                f"Airflow did not become ready: look at its logs in {log}."
            )
        time.sleep(0.2)
    processes["scheduler"] = start_process(
        services["scheduler"].command, log / "scheduler.log", environ, root
    )
    return processes


def check_alive(processes: dict[str, subprocess.Popen]) -> None:
    """Raise AirflowEnded when one of Airflow's processes has ended."""
    for name, process in processes.items():
        if process.poll() is not None:
            raise AirflowEnded(name)
