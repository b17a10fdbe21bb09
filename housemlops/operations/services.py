"""The services that `housemlops up` starts: their commands, ports and health checks."""

import os
import socket
import sys
from contextlib import closing, suppress
from pathlib import Path

import psutil

from housemlops.operations.supervisor import Service, local
from housemlops.orchestrate import airflow_environment
from housemlops.serving.running import live_environment
from housemlops.settings import Settings, WorkbookError


def airflow_services(chosen: Settings, root: Path) -> list[Service]:
    """Airflow: its database, then four processes that share one health document.

    Args:
        root: Repository.

    Returns:
        The API server first.
    """
    port = chosen.airflow.port
    environment = {
        **airflow_environment(root),
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "20",
    }  # seconds
    shared = dict(
        env=environment,
        health=local(port, "/api/v2/monitor/health"),
        after=("airflow-database",),
    )
    airflow = [sys.executable, "-m", "airflow"]
    parts = {
        "scheduler": ["--skip-serve-logs"],
        "dag-processor": [],
        "triggerer": ["--skip-serve-logs"],
    }
    return [
        Service(
            "airflow",
            [*airflow, "api-server", "--host", "127.0.0.1", "--port", str(port)],
            "Airflow",
            "Runs the stages in order, on a schedule or when you ask",
            local(port, "/dags/house_prices_lifecycle"),
            part="metadatabase",
            **shared,
        ),
        *(
            Service(
                name,
                [*airflow, name, *options],
                part=name.replace("-", "_"),
                of="airflow",
                **shared,
            )
            for name, options in parts.items()
        ),
    ]


REPLACE_LAUNCHER = """
import os, mlflow.server
from mlflow.cli import cli
def become(command, extra_env=None, **_): os.execvpe(command[0], command, {**os.environ, **(extra_env or {})})
mlflow.server._exec_cmd = become
cli()
"""


def mlflow_services(chosen: Settings) -> list[Service]:
    """MLflow: its database and experiment, then the server.

    Returns:
        None when the tracking server is elsewhere.
    """
    store, url = chosen.mlflow, local(chosen.mlflow.port)
    if store.tracking_uri.startswith("http"):
        return []
    hosts = f"127.0.0.1:{store.port},localhost:{store.port}"
    options = {
        "--workers": "1",
        "--host": "127.0.0.1",
        "--port": str(store.port),
        "--allowed-hosts": hosts,
        "--backend-store-uri": store.tracking_uri,
        "--artifacts-destination": store.artifacts,
        "--default-artifact-root": Path(store.artifacts).as_uri(),
    }
    return [
        Service(
            "mlflow",
            [
                sys.executable,
                "-c",
                REPLACE_LAUNCHER,
                "server",
                *(word for pair in options.items() for word in pair),
            ],
            "MLflow",
            "Remembers every run, and which model is the champion",
            url,
            f"{url}/health",
            after=("mlflow-database",),
            env={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
    ]


def server_service(
    chosen: Settings,
) -> Service:
    "The generated prediction server, wherever the link `current` points."
    url = local(chosen.server.port)
    command = [sys.executable, "app.py", "--port", str(chosen.server.port)]
    return Service(
        "server",
        command,
        "Prediction server",
        "Asks the champion for a price, and shows what drove it",
        url,
        f"{url}/readyz",
        env=live_environment(chosen),
        follow=chosen.paths.state / "serve/current",
        same="app.py",
    )


def jupyter_service(chosen: Settings, root: Path, token: str) -> Service:
    """JupyterLab on the notebooks, opening the first page of the workbook.

    Args:
        root: Repository.
        token: Secret.
    """
    port = chosen.jupyter.port
    options = [
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={root / 'nbs'}",
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--allow-root")
    return Service(
        "jupyter",
        [sys.executable, "-m", "jupyterlab", *options],
        "JupyterLab",
        "Step through the notebooks and change them",
        local(port, f"/lab/tree/index.ipynb?token={token}"),
        local(port, "/api"),
        env={"JUPYTER_TOKEN": token},
    )


def jobs(chosen: Settings, root: Path) -> list[Service]:
    """What must happen once before the servers run, and the site after.

    Args:
        root: Repository.
    """
    from importlib.metadata import version

    state, store = chosen.paths.state, chosen.mlflow.tracking_uri

    def job(name, code, done, **more):
        return Service(name, [sys.executable, "-c", code], once=done, **more)

    database = (
        [Path(store.removeprefix("sqlite:///"))]
        if store.startswith("sqlite:///")
        else []
    )
    return [
        job(
            "airflow-database",
            "from housemlops.orchestrate import prepare_airflow, repo_root; prepare_airflow(repo_root())",
            (
                state / "airflow/airflow.db",
                state / f"airflow/migrated-{version('apache-airflow')}",
            ),
        ),
        job(
            "mlflow-database",
            "from housemlops.settings import tracking; tracking()",
            (*database, state / f"mlflow/migrated-{version('mlflow')}"),
            env={"HOUSEMLOPS_MLFLOW_TRACKING_URI": store},
        ),
        job(
            "site",
            "from housemlops.site.build import build_docs; build_docs()",
            (state / "site/index.html",),
            title="Site",
            page="/site/",
            about="The notebooks to read and search, with the reference",
            after=("airflow", "mlflow", "jupyter"),
        ),
    ]


def services(chosen: Settings, root: Path, token: str) -> list[Service]:
    """Everything that `up` runs.

    Args:
        root: Repository.
        token: Of JupyterLab.

    Returns:
        In the order of the front page.
    """
    return [
        jupyter_service(chosen, root, token),
        *airflow_services(chosen, root),
        *mlflow_services(chosen),
        server_service(chosen),
        *jobs(chosen, root),
    ]


LISTENERS = {
    "front": "the front page",
    "airflow": "Airflow",
    "mlflow": "MLflow",
    "server": "the prediction server",
    "jupyter": "JupyterLab",
}


def is_free(port: int) -> bool:
    """Whether a server could listen on this port.

    Returns:
        Nobody listens on 127.0.0.1.
    """
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """Who listens on a port.

    Returns:
        " by python (process 123)", or nothing when the system does not tell.
    """
    with suppress(psutil.Error):
        for found in psutil.net_connections("tcp"):
            if (
                found.status == psutil.CONN_LISTEN
                and found.laddr.port == port
                and found.pid
            ):
                return f" by {psutil.Process(found.pid).name()} (process {found.pid})"
    return ""


def refuse_taken(
    chosen: Settings,
):
    "Stop with one sentence when a port is in use, or given to two services."
    seen = {}
    for section, label in LISTENERS.items():
        port = getattr(chosen, section).port
        advice = f"choose another with `port` in section [{section}] of settings.ini, or HOUSEMLOPS_{section.upper()}_PORT={port + 1}"
        if port in seen:
            raise WorkbookError(
                f"Port {port} is given to both {seen[port]} and {label}: {advice}."
            )
        if not is_free(port):
            raise WorkbookError(
                f"Port {port}, wanted for {label}, is in use{holder(port)}: stop that program or {advice}."
            )
        seen[port] = label
