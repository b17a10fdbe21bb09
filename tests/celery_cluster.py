"""An Airflow with Celery workers that share no disk, started for a test.

PostgreSQL holds the metadata of Airflow and MLflow and the prediction log, Redis the queue,
sshd gives access to the code and the DVC remote. Each worker has folders of its own.
"""

import getpass
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import redis

from checkout import Checkout
from housemlops.core.repository import dvc, git
from housemlops.pipeline.remote_workspace import fetch_code, point_dvc
from housemlops.pipeline.scheduler import airflow_environment, live_airflow
from housemlops.pipeline.workspace import place_ledger
from housemlops.processes import end_marked
from housemlops.settings import params

PROGRAMS = ("initdb", "postgres", "redis-server", "sshd", "ssh", "ssh-keygen")
SERVICES = ("postgres", "redis", "ssh", "mlflow", "airflow")
HEARTBEAT_TIMEOUT = 30  # seconds after which the scheduler gives up a task's machine
AIRFLOW_SECRETS = (  # that a worker does not need
    "AIRFLOW__API_AUTH__JWT_SECRET",
    "AIRFLOW__API__SECRET_KEY",
    "AIRFLOW__CORE__FERNET_KEY",
)


def worker_name() -> str:
    """Return what Airflow calls the machine of a task; Airflow calls this function."""
    return os.environ.get("WORKER_NAME") or socket.gethostname()


def free_ports() -> dict[str, int]:
    """Return a free port on loopback for each service."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in SERVICES]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
    return dict(zip(SERVICES, ports))


def accepts_connections(port: int) -> bool:
    """Tell whether somebody listens on a port of loopback."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], Any], what: str, limit: float = 180) -> Any:
    """Return the first true value of a condition that is asked again and again.

    Raises:
        TimeoutError: After `limit` seconds.
    """
    end = time.monotonic() + limit
    while time.monotonic() < end:
        with suppress(psycopg.OperationalError, OSError):
            if value := condition():
                return value
        time.sleep(0.2)
    raise TimeoutError(f"{what}: not within {limit} s")


def database_owner() -> dict:
    """Return the user that runs PostgreSQL, which refuses to run as root."""
    if os.getuid():
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def airflow(*arguments: str) -> list[str]:
    """Return an Airflow command."""
    return [sys.executable, "-m", "airflow", *arguments]


class CeleryCluster:
    """The services, the workers and the run.

    Args:
        checkout: What is run, as it is committed.
        home: Empty folder for all services and workers.
        workers: Their names.
    """

    def __init__(self, checkout: Checkout, home: Path, workers: list[str]):
        self.checkout, self.home, self.workers = checkout, home, workers
        self.code, self.ports = home / "code", free_ports()
        self.password = secrets.token_urlsafe(24)
        self.mark = f"HOUSEMLOPS_MARK_{secrets.token_hex(8)}"
        self.processes: dict[str, subprocess.Popen] = {}
        self.commit = checkout.git("rev-parse", "HEAD")

    # Environments

    def database(self, name: str, driver: str = "postgresql+psycopg") -> str:
        """Return the URL of a database."""
        server = f"postgres:{self.password}@127.0.0.1:{self.ports['postgres']}"
        return f"{driver}://{server}/{name}"

    def settings_variables(self) -> dict[str, str]:
        """Return the workbook's settings that all processes share."""
        names = {
            "PATHS_STATE": self.home / "state",
            "AIRFLOW_TASKS": "workers",
            "AIRFLOW_PORT": self.ports["airflow"],
            "AIRFLOW_UNTIL": "1970-01",
            "APART_CODE": (self.home / "code.git").as_uri(),
            "APART_REMOTE": self.home / "remote",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.ports['mlflow']}",
            "SERVER_DATABASE_URL": self.database("predictions", "postgresql"),
        }
        variables = {f"HOUSEMLOPS_{key}": str(value) for key, value in names.items()}
        return variables | {self.mark: "1"}

    def airflow_variables(self) -> dict[str, str]:
        """Return the configuration of the embedded Airflow, with Celery."""
        queue = f"redis://:{self.password}@127.0.0.1:{self.ports['redis']}"
        options = {
            "CORE__EXECUTOR": "CeleryExecutor",
            "CORE__HOSTNAME_CALLABLE": "celery_cluster.worker_name",
            "CELERY__BROKER_URL": f"{queue}/0",
            "CELERY__RESULT_BACKEND": f"{queue}/1",
            "CELERY__WORKER_CONCURRENCY": 1,
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": HEARTBEAT_TIMEOUT,
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": 5,
            "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": 0.5,
            "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": 3600,
            "DATABASE__SQL_ALCHEMY_CONN": self.database("airflow"),
            "DATABASE__SQL_ALCHEMY_CONN_ASYNC": self.database("airflow"),
            "CORE__PARALLELISM": len(self.workers),
        }
        variables = {f"AIRFLOW__{name}": str(value) for name, value in options.items()}
        return airflow_environment(self.code) | variables | self.python_path(self.code)

    def python_path(self, code: Path) -> dict[str, str]:
        """Return where Python finds a copy of the package, and `worker_name`."""
        return {"PYTHONPATH": os.pathsep.join([str(code), str(Path(__file__).parent)])}

    def worker_variables(self, name: str) -> dict[str, str]:
        """Return the environment of a worker: folders of its own, none of Airflow's secrets."""
        folder = self.home / name
        own = {
            "HOME": folder / "home",
            "WORKER_NAME": name,
            "AIRFLOW_HOME": folder / "airflow",
            "AIRFLOW__CORE__DAGS_FOLDER": folder / "code/dags",
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": folder / "airflow/logs",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder}/none.db",
            "JUPYTER_RUNTIME_DIR": folder / "j",
            "HOUSEMLOPS_PATHS_STATE": folder / "state",
            "HOUSEMLOPS_APART_CODE": f"ssh://place{self.home}/code.git",
            "HOUSEMLOPS_APART_REMOTE": f"ssh://place{self.home}/remote",
        }
        hidden = (*AIRFLOW_SECRETS, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC")
        shared = self.airflow_variables()
        shared = {key: value for key, value in shared.items() if key not in hidden}
        own_code = self.python_path(folder / "code")
        return shared | {key: str(value) for key, value in own.items()} | own_code

    # Processes

    def start(self, name: str, command: list, env: dict | None = None, **options):
        """Start a process that ends with this one; its output goes to a log file."""
        with (self.home / f"{name}.log").open("w") as log:
            self.processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *map(str, command)],
                env=os.environ | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **options,
            )

    def stop(self):
        """End all processes, also those that a killed worker left."""
        end_marked(self.mark)
        for process in reversed(self.processes.values()):
            fast = signal.SIGINT if "postgres" in process.args[3] else signal.SIGTERM
            process.send_signal(fast)
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start_database(self, folder: Path):
        """Start PostgreSQL in a folder that its user can reach, with three databases."""
        owner = database_owner()
        (folder / "password").write_text(self.password)
        if owner:
            for path in (folder, folder / "password"):
                os.chown(path, owner["user"], owner["group"])
        options = ["--no-sync", "--username=postgres", "--auth=scram-sha-256"]
        options += [f"--pwfile={folder / 'password'}", "--encoding=UTF8"]
        initdb = ["initdb", "-D", folder / "data", "--locale=C.UTF-8", *options]
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **owner)
        postgres = ["postgres", "-D", folder / "data", "-h", "127.0.0.1", "-k", ""]
        postgres += ["-p", self.ports["postgres"]]
        postgres += ["-c", "max_connections=200", "-c", "fsync=off"]
        self.start("postgres", postgres, cwd=folder, **owner)
        url = self.database("postgres", "postgresql")
        connect = lambda: psycopg.connect(url, autocommit=True)
        with wait_until(connect, "PostgreSQL") as connection:
            for name in ("airflow", "mlflow", "predictions"):
                connection.execute(f"create database {name}")

    def start_sshd(self):
        """Start sshd with keys of its own."""
        keys = self.home / "keys"
        keys.mkdir(mode=0o700)
        for name in ("server", "worker"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / name]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        (keys / "authorized").write_text(
            f"restrict {(keys / 'worker.pub').read_text()}"
        )
        options = {
            "Port": self.ports["ssh"],
            "ListenAddress": "127.0.0.1",
            "HostKey": keys / "server",
            "PidFile": "none",
            "AuthorizedKeysFile": keys / "authorized",
            "UsePAM": "no",
            "StrictModes": "no",
            "Subsystem": "sftp internal-sftp",
            "MaxStartups": 100,
            "MaxSessions": 100,
        }
        lines = [f"{name} {value}\n" for name, value in options.items()]
        (keys / "sshd_config").write_text("".join(lines))
        if not os.getuid():
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        sshd = shutil.which("sshd")
        self.start("sshd", [sshd, "-D", "-e", "-f", keys / "sshd_config"])

    def start_mlflow(self):
        """Start MLflow's server; all artefacts pass through it."""
        options = ["--workers", "1", "--host", "127.0.0.1"]
        options += ["--port", self.ports["mlflow"]]
        options += ["--allowed-hosts", f"127.0.0.1:{self.ports['mlflow']}"]
        options += ["--artifacts-destination", self.home / "mlflow"]
        env = {
            "MLFLOW_BACKEND_STORE_URI": self.database("mlflow"),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        self.start("mlflow", [sys.executable, "-m", "mlflow", "server", *options], env)

    def start_airflow(self):
        """Start Airflow without its triggerer: no task here is deferred."""
        env = self.airflow_variables()
        migrate = airflow("db", "migrate")
        options = {"env": os.environ | env, "cwd": self.code}
        subprocess.run(migrate, check=True, capture_output=True, **options)
        port = str(self.ports["airflow"])
        api_server = airflow("api-server", "--host", "127.0.0.1", "--port", port)
        self.start("airflow", api_server, env, cwd=self.code)
        scheduler = airflow("scheduler", "--skip-serve-logs")
        self.start("scheduler", scheduler, env, cwd=self.code)
        self.start("dag-processor", airflow("dag-processor"), env, cwd=self.code)

    def start_worker(self, name: str):
        """Start a worker with a home, a cache and a checkout that came over SSH."""
        folder, keys = self.home / name, self.home / "keys"
        ssh = folder / "home/.ssh"
        ssh.mkdir(parents=True, mode=0o700)
        shutil.copy(keys / "worker", ssh / "key")
        address = f"[127.0.0.1]:{self.ports['ssh']}"
        host_key = (keys / "server.pub").read_text()
        (ssh / "known_hosts").write_text(f"{address} {host_key}")
        options = {
            "Host": "place",
            "HostName": "127.0.0.1",
            "Port": self.ports["ssh"],
            "User": getpass.getuser(),
            "IdentityFile": ssh / "key",
            "UserKnownHostsFile": ssh / "known_hosts",
        }
        lines = [f"{option} {value}\n" for option, value in options.items()]
        (ssh / "config").write_text("".join(lines))
        git_config = f"[core]\n  sshCommand = ssh -F {ssh / 'config'}\n"
        (folder / "home/.gitconfig").write_text(git_config)
        url = f"ssh://place{self.home}/code.git"
        fetch_code(url, self.commit, folder / "code", HOME=str(folder / "home"))
        command = airflow("celery", "worker", "--celery-hostname", name)
        command += ["--queues", "default", "--concurrency", "1", "--skip-serve-logs"]
        self.start(name, command, self.worker_variables(name), cwd=folder / "code")

    def publish_code(self):
        """Put the commit into a repository, and its data into a remote, that all can reach."""
        repository, root = self.home / "code.git", self.checkout.path
        git("init", "--quiet", "--bare", str(repository), root=root)
        git("config", "uploadpack.allowAnySHA1InWant", "true", root=repository)
        git(
            "push",
            "--quiet",
            str(repository),
            f"{self.commit}:refs/heads/run",
            root=root,
        )
        fetch_code(repository.as_uri(), self.commit, self.code)

    def publish_ledger(self):
        """Push the ledger of the data set to the shared DVC remote."""
        pointer = f"data/{params(self.code)['dataset']}.csv.dvc"
        if not (self.code / pointer).exists():
            return  # it is in the repository
        place_ledger(self.checkout.path, self.code, edits=False)
        point_dvc(self.code, self.code)
        dvc("commit", "--force", pointer, root=self.code)
        dvc("push", pointer, root=self.code)

    def waiting_workers(self) -> str:
        """Return the names of the workers that listen to the queue."""
        with redis.Redis(port=self.ports["redis"], password=self.password) as queue:
            members = queue.smembers("_kombu.binding.celery.pidbox")
        return " ".join(member.decode() for member in members)

    def start_all(self, database: Path):
        """Start the services, then the workers, and wait until all are ready."""
        self.publish_code()
        self.start_database(database)
        configuration = self.home / "redis.conf"
        configuration.write_text(
            f"bind 127.0.0.1\nport {self.ports['redis']}\n"
            f'requirepass {self.password}\nsave ""\ndir {self.home}\n'
        )
        self.start("redis", ["redis-server", configuration])
        self.start_sshd()
        self.start_mlflow()
        self.start_airflow()
        self.publish_ledger()
        wait_until(lambda: accepts_connections(self.ports["ssh"]), "sshd")
        for name in self.workers:
            self.start_worker(name)
        wait_until(lambda: accepts_connections(self.ports["mlflow"]), "MLflow")
        wait_until(lambda: live_airflow(self.code), "Airflow")
        for name in self.workers:
            wait_until(lambda name=name: name in self.waiting_workers(), name)

    # The run

    def api(self, path: str, body: dict | None = None) -> dict:
        """Ask Airflow's API about the lifecycle, again while it is too busy to answer."""
        address = f"dags/house_prices_lifecycle/dagRuns{path}"

        def call() -> dict | None:
            api = live_airflow(self.code)
            return api and api.call(address, body)

        return wait_until(call, path)

    def start_run(self, as_of: str) -> dict:
        """Start a lifecycle and return its configuration."""
        facts = {"commit": self.commit, "branch": "main", "uncommitted": []}
        conf = {"workspace": "run", "as_of": as_of, **facts}
        body = {"dag_run_id": "run", "logical_date": None, "conf": conf}
        self.api("", body)
        return conf

    def state(self) -> str:
        """Return the state of the run."""
        return self.api("/run")["state"]

    def tasks(self) -> list[dict]:
        """Return stage, worker, number of tries and answer of each task that has ended."""
        rows = []
        for task in self.api("/run/taskInstances")["task_instances"]:
            stage = task["task_id"]
            path = f"/run/taskInstances/{stage}/xcomEntries/return_value"
            value = self.api(path)["value"]
            answer = json.loads(value) if isinstance(value, str) else value
            rows.append(
                {
                    "stage": stage,
                    "worker": task["hostname"],
                    "try": task["try_number"],
                    "answer": answer["answer"],
                }
            )
        return rows

    def logs(self) -> str:
        """Return the end of all logs, for the message of a failed test."""
        files = [
            *self.home.glob("*.log"),
            *self.home.glob("worker-*/airflow/logs/**/*.log"),
        ]
        return "\n".join(f"{file}\n{file.read_text()[-3000:]}" for file in files)


@contextmanager
def celery_cluster(checkout: Checkout, home: Path, database: Path, workers: list[str]):
    """Give a block a cluster that is ready for a run; end all of its processes with it."""
    cluster = CeleryCluster(checkout, home, workers)
    before = dict(os.environ)
    os.environ.update(cluster.settings_variables())
    try:
        cluster.start_all(database)
        yield cluster
    finally:
        cluster.stop()
        os.environ.clear()
        os.environ.update(before)
