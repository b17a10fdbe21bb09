"""The services that `housemlops up` starts: their commands, ports and health checks."""

import os
import socket
import sys
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

import psutil

from housemlops.operations.supervisor import Service, local
from housemlops.pipeline.scheduler import airflow_environment
from housemlops.serving.running import live_environment
from housemlops.settings import Settings, WorkbookError


LISTENERS = {
    "front": "the front page",
    "airflow": "Airflow",
    "mlflow": "MLflow",
    "server": "the prediction server",
    "jupyter": "JupyterLab",
}


def airflow_services(chosen: Settings, root: Path) -> list[Service]:
    """Return Airflow's four processes, the API server first.

    They share one health document.
    """
    port = chosen.airflow.port
    shared = {
        "env": airflow_environment(root)
        | {"AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "20"},  # seconds
        "health": local(port, "/api/v2/monitor/health"),
        "after": ("airflow-database",),
    }
    airflow = [sys.executable, "-m", "airflow"]
    api_server = ["api-server", "--host", "127.0.0.1", "--port", str(port)]
    services = [
        Service(
            "airflow",
            [*airflow, *api_server],
            title="Airflow",
            about="Runs the stages in order, on a schedule or when you ask",
            page=local(port, "/dags/house_prices_lifecycle"),
            part="metadatabase",
            **shared,
        )
    ]
    options = {
        "scheduler": ["--skip-serve-logs"],
        "dag-processor": [],
        "triggerer": ["--skip-serve-logs"],
    }
    for name, more in options.items():
        part = name.replace("-", "_")
        command = [*airflow, name, *more]
        services.append(Service(name, command, part=part, of="airflow", **shared))
    return services


def mlflow_command(port: int, artifacts: str) -> list[str]:
    """Return the command of an MLflow server that keeps artifacts in a folder."""
    hosts = f"127.0.0.1:{port},localhost:{port}"
    options = {
        "--workers": "1",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--allowed-hosts": hosts,
        "--artifacts-destination": artifacts,
    }
    command = [sys.executable, "-m", "mlflow", "server"]
    for option, value in options.items():
        command += [option, value]
    return command


def mlflow_services(chosen: Settings) -> list[Service]:
    """Return MLflow's server; none when the tracking server is elsewhere."""
    store, url = chosen.mlflow, local(chosen.mlflow.port)
    if store.tracking_uri.startswith("http"):
        return []
    command = mlflow_command(store.port, store.artifacts)
    command += ["--backend-store-uri", store.tracking_uri]
    command += ["--default-artifact-root", Path(store.artifacts).as_uri()]
    service = Service(
        "mlflow",
        command,
        title="MLflow",
        about="Remembers every run, and which model is the champion",
        page=url,
        health=f"{url}/health",
        after=("mlflow-database",),
        env={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )
    return [service]


def server_service(chosen: Settings) -> Service:
    """Return the generated prediction server, wherever the link `current` points."""
    url = local(chosen.server.port)
    return Service(
        "server",
        [sys.executable, "app.py", "--port", str(chosen.server.port)],
        title="Prediction server",
        about="Asks the champion for a price, and shows what drove it",
        page=url,
        health=f"{url}/readyz",
        env=live_environment(chosen),
        follow=chosen.paths.state / "serve/current",
        same="app.py",
    )


def jupyter_service(chosen: Settings, root: Path, token: str) -> Service:
    """Return JupyterLab on the notebooks, opening the first page of the workbook."""
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
        title="JupyterLab",
        about="Step through the notebooks and change them",
        page=local(port, f"/lab/tree/index.ipynb?token={token}"),
        health=local(port, "/api"),
        env={"JUPYTER_TOKEN": token},
    )


def jobs(chosen: Settings) -> list[Service]:
    """Return what must happen once before the servers run, and the site after."""
    state, store = chosen.paths.state, chosen.mlflow.tracking_uri
    mlflow_files = [state / f"mlflow/migrated-{version('mlflow')}"]
    if store.startswith("sqlite:///"):
        mlflow_files.append(Path(store.removeprefix("sqlite:///")))
    airflow_files = [
        state / "airflow/airflow.db",
        state / f"airflow/migrated-{version('apache-airflow')}",
    ]
    python = [sys.executable, "-c"]
    prepare = (
        "from housemlops.pipeline.scheduler import prepare_airflow; "
        "from housemlops.settings import repo_root; "
        "prepare_airflow(repo_root())"
    )
    return [
        Service("airflow-database", [*python, prepare], once=tuple(airflow_files)),
        Service(
            "mlflow-database",
            [*python, "from housemlops.settings import tracking; tracking()"],
            once=tuple(mlflow_files),
            env={"HOUSEMLOPS_MLFLOW_TRACKING_URI": store},
        ),
        Service(
            "site",
            [*python, "from housemlops.site.build import build_docs; build_docs()"],
            title="Site",
            about="The notebooks to read and search, with the reference",
            page="/site/",
            once=(state / "site/index.html",),
            after=("airflow", "mlflow", "jupyter"),
        ),
    ]


def services(chosen: Settings, root: Path, token: str) -> list[Service]:
    """Return everything that `up` runs, in the order of the front page.

    Args:
        chosen: Settings.
        root: Repository.
        token: Of JupyterLab.
    """
    return [
        jupyter_service(chosen, root, token),
        *airflow_services(chosen, root),
        *mlflow_services(chosen),
        server_service(chosen),
        *jobs(chosen),
    ]


def is_free(port: int) -> bool:
    """Return whether nobody listens on a port of 127.0.0.1."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def port_owner(port: int) -> str:
    """Return " by python (process 123)", or "" when the system does not tell."""
    with suppress(psutil.Error):
        for one in psutil.net_connections("tcp"):
            listens = one.status == psutil.CONN_LISTEN and one.laddr.port == port
            if listens and one.pid:
                return f" by {psutil.Process(one.pid).name()} (process {one.pid})"
    return ""


def require_free_ports(chosen: Settings) -> None:
    """Raise WorkbookError when a port is in use, or given to two services."""
    labels = {}
    for section, label in LISTENERS.items():
        port = getattr(chosen, section).port
        advice = (
            f"choose another with `port` in section [{section}] of settings.ini, or "
            f"HOUSEMLOPS_{section.upper()}_PORT={port + 1}"
        )
        if port in labels:
            raise WorkbookError(
                f"Port {port} is given to both {labels[port]} and {label}: {advice}."
            )
        if not is_free(port):
            raise WorkbookError(
                f"Port {port}, wanted for {label}, is in use{port_owner(port)}: stop "
                f"that program or {advice}."
            )
        labels[port] = label
