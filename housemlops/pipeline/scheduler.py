"""Configure the embedded Airflow, and start runs of a DAG."""

import atexit
import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from housemlops.core.http import request_json
from housemlops.processes import run_captured
from housemlops.settings import WorkbookError, settings

LIFECYCLE = "house_prices_lifecycle"  # dag_id
RunState = Callable[[], str]  # returns running, success or failed


def private_file(path: Path, make: Callable[[], str]) -> str:
    """Return the text of a file that only its owner can read, and that is made once.

    Args:
        path: File.
        make: Returns its text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    with (
        contextlib.suppress(FileExistsError),
        open(os.open(path, flags, 0o600), "w") as file,
    ):
        file.write(make())
    path.chmod(0o600)
    return path.read_text()


def new_keys() -> str:
    """Return new secrets of an Airflow, as JSON."""
    keys = {
        "jwt": secrets.token_urlsafe(48),
        "session": secrets.token_urlsafe(48),
        "fernet": urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    }
    return json.dumps(keys)


def new_password() -> str:
    """Return a new password of the user admin, as JSON."""
    return json.dumps({"admin": secrets.token_urlsafe(18)})


def airflow_options(root: Path, home: Path) -> dict[str, object]:
    """Return the configuration of an Airflow that listens on loopback and starts few processes.

    Args:
        root: Checkout.
        home: Airflow's folder.

    Returns:
        SECTION__KEY -> value.
    """
    url = f"http://127.0.0.1:{settings(root).airflow.port}"
    keys = json.loads(private_file(home / "secrets.json", new_keys))
    private_file(home / "passwords.json", new_password)
    return {
        "CORE__DAGS_FOLDER": root / "dags",
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__LOAD_EXAMPLES": False,
        "CORE__PARALLELISM": 2,
        "CORE__FERNET_KEY": keys["fernet"],
        "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": True,
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": home / "passwords.json",
        "CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "API__HOST": "127.0.0.1",
        "API__PORT": settings(root).airflow.port,
        "API__BASE_URL": url,
        "API__WORKERS": 1,
        "API__SECRET_KEY": keys["session"],
        "API_AUTH__JWT_SECRET": keys["jwt"],
        "DAG_PROCESSOR__PARSING_PROCESSES": 1,
        "LOGGING__BASE_LOG_FOLDER": home / "logs",
    }


def airflow_environment(root: Path) -> dict[str, str]:
    """Return the variables that configure the embedded Airflow of a checkout."""
    state = settings(root).paths.state
    home = state / "airflow"
    home.mkdir(parents=True, mode=0o700, exist_ok=True)
    options = airflow_options(root, home)
    environment = {f"AIRFLOW__{name}": str(value) for name, value in options.items()}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return environment | {
        "AIRFLOW_HOME": str(home),
        "HOUSEMLOPS_PATHS_STATE": str(state),
        "PYTHONPATH": str(root),
        "PATH": programs,
    }


def prepare_airflow(root: Path) -> dict[str, str]:
    """Make Airflow's folder and database when they are missing.

    The database is migrated once for each version of Airflow.

    Returns:
        The environment of every Airflow process.

    Raises:
        WorkbookError: When the database cannot be migrated.
    """
    from filelock import FileLock

    environment = os.environ | airflow_environment(root)
    home = Path(environment["AIRFLOW_HOME"])
    marker = home / f"migrated-{version('apache-airflow')}"
    with FileLock(home / ".migrating"):
        if marker.exists() and (home / "airflow.db").exists():
            return environment
        migrate = [sys.executable, "-m", "airflow", "db", "migrate"]
        done = run_captured(migrate, cwd=root, env=environment)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise WorkbookError(
                f"Airflow's database could not be migrated: {lines[-1]}"
            )
        marker.touch()
    return environment


def is_listening(port: int) -> bool:
    """Tell whether a server listens on a port of loopback."""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0


class AirflowApi:
    """The API of a running Airflow.

    Args:
        url: Of the API server.
    """

    def __init__(self, url: str):
        self.url = url
        self.token = request_json(f"{url}/auth/token")[1]["access_token"]

    def call(self, path: str, body: dict | None = None) -> dict:
        """Send a GET, or a POST of a body, and return the answer.

        Raises:
            OSError: When there is no answer, or one that reports an error.
        """
        status, answer = request_json(f"{self.url}/api/v2/{path}", body, self.token)
        if status >= 400:
            raise OSError(f"Airflow answers {status} to {path}: {answer}")
        return answer


def live_airflow(root: Path, name: str = LIFECYCLE) -> AirflowApi | None:
    """Return the running Airflow of this checkout, if it can start a run.

    Args:
        root: Checkout.
        name: dag_id; it may not be paused.
    """
    url = f"http://127.0.0.1:{settings(root).airflow.port}"
    try:
        health = request_json(f"{url}/api/v2/monitor/health", timeout=2)[1]
        if health["scheduler"]["status"] != "healthy":
            return None
        api = AirflowApi(url)
        dag = api.call(f"dags/{name}/details")
        ours = Path(dag["fileloc"]).is_relative_to(root)
        return api if ours and not dag["is_paused"] else None
    except (OSError, KeyError, TypeError, ValueError):
        return None


def start_live(api: AirflowApi, name: str, conf: dict) -> RunState:
    """Hand a run to the scheduler that is at work.

    Args:
        api: From `live_airflow`.
        name: dag_id.
        conf: Of the run.
    """
    body = {"logical_date": None, "conf": conf}
    run = api.call(f"dags/{name}/dagRuns", body)["dag_run_id"]

    def state() -> str:
        now = api.call(f"dags/{name}/dagRuns/{run}")["state"]
        return now if now in ("success", "failed") else "running"

    return state


def start_once(root: Path, name: str, conf: dict, log: Path) -> RunState:
    """Let Airflow run a DAG once in a process of its own.

    Args:
        root: Checkout.
        name: dag_id.
        conf: Of the run.
        log: Receives all output.
    """
    command = [sys.executable, "-m", "airflow", "dags", "test", name]
    command += ["--conf", json.dumps(conf)]
    environment = prepare_airflow(root) | {"HOUSEMLOPS_AIRFLOW_TASKS": "here"}
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    atexit.register(process.terminate)

    def state() -> str:
        if process.poll() is None:
            return "running"
        return "failed" if process.returncode else "success"

    return state
