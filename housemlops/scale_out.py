"""Run the lifecycle on Celery workers."""

import contextlib
import getpass
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from housemlops.core.repository import data_md5, git
from housemlops.orchestrate import (
    STOPPED,
    dvc,
    head_commit,
    place_ledger,
    private_file,
    run_month,
    snapshot,
)
from housemlops.pipeline.graph import graph, pipeline
from housemlops.pipeline.notebook import StageFailed
from housemlops.pipeline.remote_lock import recall, restore, take_lock
from housemlops.pipeline.remote_workspace import fetch_code, make_ready, point_dvc
from housemlops.processes import run_captured
from housemlops.settings import (
    WorkbookError,
    params,
    repo_root,
    settings,
    tracking,
)

PROGRAMS = {
    "initdb": "postgresql",
    "postgres": "postgresql",
    "redis-server": "redis-server",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}


def programs() -> dict[str, str]:  # name -> path
    "The programs that Debian brings, or a sentence that names the packages."
    places = os.pathsep.join(
        [
            os.environ.get("PATH", ""),
            "/usr/sbin",
            *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"))),
        ]
    )
    found = {name: shutil.which(name, path=places) for name in PROGRAMS}
    lacking = sorted({PROGRAMS[name] for name, path in found.items() if path is None})
    if lacking:
        raise WorkbookError(
            f"Scaling out needs programs that are not here: sudo apt-get install {' '.join(lacking)}"
        )
    return found


def free_ports(
    names: tuple[str, ...],
) -> dict[str, int]:
    "A free port on loopback for each name."
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in names]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return {name: probe.getsockname()[1] for name, probe in zip(names, probes)}


def database_user() -> dict:  # of a process
    "PostgreSQL refuses to run as root: who runs it then."
    if os.getuid():
        return {}
    import pwd

    user = next(
        user
        for name in ("postgres", "nobody")
        for user in pwd.getpwall()
        if user.pw_name == name
    )
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def make_database(
    found: dict[str, str],  # from `programs`
    password: str,
) -> Path:  # its folder, to be removed at the end
    "An empty PostgreSQL cluster with a password, where its user can reach it."
    folder, who = Path(tempfile.mkdtemp(prefix="housemlops-postgres-")), database_user()
    private_file(folder / "password", lambda: password)
    for path in (folder, folder / "password") if who else ():
        os.chown(path, who["user"], who["group"])
    options = [
        "--no-sync",
        "--username=house",
        "--auth=scram-sha-256",
        f"--pwfile={folder / 'password'}",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
    ]
    done = subprocess.run(
        [found["initdb"], "-D", folder / "data", *options],
        capture_output=True,
        text=True,
        cwd=folder,
        **who,
    )
    if done.returncode:
        shutil.rmtree(folder)
        raise WorkbookError(
            f"PostgreSQL's folder could not be made: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    return folder


def tied(
    command: list[str],
    how: signal.Signals = signal.SIGTERM,  # that ends it
    who: dict | None = None,  # from `database_user`
) -> list[str]:  # the same command, tied to its parent
    "A program that becomes somebody else where it must, and that Linux ends with the supervisor: it hides its environment, so the supervisor's guard could not find it."
    become = (
        f"os.setgroups([]); os.setgid({who['group']}); os.setuid({who['user']}); "
        if who
        else ""
    )
    end = (
        f"ctypes.CDLL(None).prctl(1, {int(how)}); " if sys.platform == "linux" else ""
    )  # 1 is PR_SET_PDEATHSIG
    return [
        sys.executable,
        "-c",
        f"import ctypes, os, sys; {become}{end}os.execv(sys.argv[1], sys.argv[1:])",
        *command,
    ]


def make_keys(
    found: dict[str, str],  # from `programs`
    folder: Path,  # made
    port: int,  # of sshd
):
    "Keys for the server and for the workers, and what sshd must know."
    folder.mkdir(parents=True, mode=0o700)
    for name in ("server", "worker"):
        subprocess.run(
            [
                found["ssh-keygen"],
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                name,
                "-f",
                folder / name,
            ],
            check=True,
            stdin=subprocess.DEVNULL,
        )
    (folder / "authorized").write_text(
        f"restrict {(folder / 'worker.pub').read_text()}"
    )
    options = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "server",
        "PidFile": "none",
        "AuthorizedKeysFile": folder / "authorized",
        "AllowUsers": getpass.getuser(),
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "UsePAM": "no",
        "StrictModes": "no",
        "Subsystem": "sftp internal-sftp",
        "MaxStartups": 100,
        "MaxSessions": 100,
    }
    (folder / "sshd_config").write_text(
        "".join(f"{name} {value}\n" for name, value in options.items())
    )
    if not os.getuid():
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)


def make_worker(
    home: Path,  # of the place
    name: str,  # such as worker-1
    commit: str,  # of the code
    ports: dict[str, int],
) -> Path:  # its folder
    "A folder for a worker: a home with the way to the place, and a checkout that came over SSH."
    folder, keys = home / name, home / "keys"
    ssh = folder / "home/.ssh"
    ssh.mkdir(parents=True, mode=0o700)
    shutil.copy(keys / "worker", ssh / "key")
    (ssh / "key").chmod(0o600)
    (ssh / "known_hosts").write_text(
        f"[127.0.0.1]:{ports['ssh']} {(keys / 'server.pub').read_text()}"
    )
    (ssh / "config").write_text(
        f"Host place\n  HostName 127.0.0.1\n  Port {ports['ssh']}\n  User {getpass.getuser()}\n  IdentityFile {ssh / 'key'}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {ssh / 'known_hosts'}\n  StrictHostKeyChecking yes\n"
    )
    (folder / "home/.gitconfig").write_text(
        f"[core]\n  sshCommand = ssh -F {ssh / 'config'}\n"
    )
    fetch_code(
        f"ssh://place{home}/code.git",
        commit,
        folder / "code",
        HOME=str(folder / "home"),
    )
    return folder


def worker_name() -> str:
    "What Airflow calls the machine of a task; it asks this function."
    return os.environ.get("WORKER_NAME") or socket.gethostname()


PORTS = ("postgres", "redis", "ssh", "mlflow", "airflow")


QUIET = 30  # seconds without a sign of life after which a task's machine is given up


def task_environment(
    home: Path,  # of the place
    ports: dict[str, int],
    keys: dict[str, str],  # passwords
) -> dict[str, str]:  # of every process
    "The workbook's settings that all share."
    names = {
        "PATHS_STATE": home / "state",
        "AIRFLOW_TASKS": "workers",
        "AIRFLOW_PORT": ports["airflow"],
        "AIRFLOW_UNTIL": "1970-01",
        "APART_CODE": (home / "code.git").as_uri(),
        "APART_REMOTE": home / "remote",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{ports['mlflow']}",
        "MLFLOW_PORT": ports["mlflow"],
        "MLFLOW_ARTIFACTS": "",
        "SERVER_DATABASE_URL": f"postgresql://house:{keys['postgres']}@127.0.0.1:{ports['postgres']}/predictions",
        "ALERTS_WEBHOOK": "",
        "ALERTS_EMAIL": "",
    }
    return {f"HOUSEMLOPS_{name}": str(value) for name, value in names.items()}


def airflow_variables(
    code: Path,  # the place's checkout
    ports: dict[str, int],
    keys: dict[str, str],  # passwords
) -> dict[str, str]:  # of all of Airflow's processes
    "The embedded Airflow, with Celery instead of its own processes."
    from housemlops.orchestrate import airflow_environment

    queue = f"redis://:{keys['redis']}@127.0.0.1:{ports['redis']}"
    options = {
        "CORE__EXECUTOR": "CeleryExecutor",
        "CORE__HOSTNAME_CALLABLE": "housemlops.scale_out.worker_name",
        "CELERY__BROKER_URL": f"{queue}/0",
        "CELERY__RESULT_BACKEND": f"{queue}/1",
        "CELERY__WORKER_CONCURRENCY": 1,
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": QUIET,
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": 5,
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": 0.5,
        "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": 3600,
    }
    return airflow_environment(code) | {
        f"AIRFLOW__{name}": str(value) for name, value in options.items()
    }


def place_variables(
    ports: dict[str, int],
    keys: dict[str, str],  # passwords
    workers: int,
) -> dict[str, str]:  # of Airflow's processes at the place, on top
    "What only the place may know."
    database = f"postgresql+psycopg://house:{keys['postgres']}@127.0.0.1:{ports['postgres']}/airflow"
    return {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": database,
        "AIRFLOW__CORE__PARALLELISM": str(workers),
    }


SEALED = (
    "AIRFLOW__API_AUTH__JWT_SECRET",
    "AIRFLOW__API__SECRET_KEY",
    "AIRFLOW__CORE__FERNET_KEY",
)  # of Airflow's own processes


def worker_environment(
    home: Path,  # of the place
    name: str,  # of the worker
    shared: dict[str, str],  # from `airflow_variables`
    runtime: Path,  # for Jupyter's sockets, whose paths must be short
) -> dict[str, str]:  # on top of what all processes have
    "A worker's own folders, and the way to the place; none of Airflow's secrets."
    folder = home / name
    own = {
        "HOME": folder / "home",
        "HOUSEMLOPS_PATHS_STATE": folder / "state",
        "AIRFLOW_HOME": folder / "airflow",
        "AIRFLOW__CORE__DAGS_FOLDER": folder / "code/dags",
        "WORKER_NAME": name,
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": folder / "airflow/logs",
        "PYTHONPATH": folder / "code",
        "JUPYTER_RUNTIME_DIR": runtime / name,
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder}/none.db",
        "HOUSEMLOPS_APART_CODE": f"ssh://place{home}/code.git",
        "HOUSEMLOPS_APART_REMOTE": f"ssh://place{home}/remote",
    }
    return {key: value for key, value in shared.items() if key not in SEALED} | {
        key: str(value) for key, value in own.items()
    }


def base_services(
    found: dict[str, str],  # from `programs`
    home: Path,  # of the place
    data: Path,  # PostgreSQL's folder
    ports: dict[str, int],
):  # -> list of up.Service
    "What must be there first: the database, the queue, the way in."
    from housemlops.operations.supervisor import Service

    postgres = [
        found["postgres"],
        "-D",
        str(data / "data"),
        "-h",
        "127.0.0.1",
        "-p",
        str(ports["postgres"]),
        "-k",
        "",
        "-c",
        "max_connections=200",
        "-c",
        "fsync=off",
    ]
    return [
        Service("postgres", tied(postgres, signal.SIGINT, database_user()), cwd=data),
        Service("redis", tied([found["redis-server"], str(home / "redis.conf")])),
        Service(
            "sshd",
            tied([found["sshd"], "-D", "-e", "-f", str(home / "keys/sshd_config")]),
        ),
    ]


def mlflow_service(
    home: Path,  # of the place
    ports: dict[str, int],
    keys: dict[str, str],  # passwords
):  # -> up.Service
    "MLflow's server: metadata in the database, and all artefacts pass through it."
    from housemlops.operations.services import mlflow_command
    from housemlops.operations.supervisor import Service

    return Service(
        "mlflow",
        mlflow_command(ports["mlflow"], str(home / "mlflow")),
        env={
            "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg://house:{keys['postgres']}@127.0.0.1:{ports['postgres']}/mlflow",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
    )


def airflow_place(
    code: Path,  # the place's checkout
    variables: dict[str, str],  # from `place_environment`
):  # -> list of up.Service
    "Airflow without its triggerer: nothing here waits for an event."
    from housemlops.operations.services import airflow_services

    return [
        service
        for service in airflow_services(settings(code), code)
        if service.name != "triggerer" and not service.env.update(variables)
    ]


def worker_service(
    home: Path,  # of the place
    name: str,  # of the worker
    variables: dict[str, str],  # from `worker_environment`
):  # -> up.Service
    "A Celery worker of Airflow, one stage at a time."
    from housemlops.operations.supervisor import Service

    command = [
        sys.executable,
        "-m",
        "airflow",
        "celery",
        "worker",
        "--queues",
        "default",
        "--concurrency",
        "1",
        "--celery-hostname",
        name,
        "--skip-serve-logs",
    ]
    return Service(name, command, env=variables, cwd=home / name / "code")


def wait_until(
    house: Any,  # up.House
    what: str,  # for the message
    holds: Any,  # -> true when it does
    patience: float = 180,  # seconds
) -> Any:  # what it returned
    "Wait for something of the house."
    end = time.monotonic() + patience
    while time.monotonic() < end and not house.stopping.is_set():
        if found := holds():
            return found
        if lost := next(
            (child for child in house.children if child.crashes >= 3), None
        ):
            raise WorkbookError(
                f"{lost.service.name} does not start: {lost.problem} (log: {lost.log})"
            )
        time.sleep(0.2)
    raise WorkbookError(
        "Stopped before the end."
        if house.stopping.is_set()
        else f"{what} did not come within {patience:.0f} s; the logs are in {house.chosen.paths.state / 'log'}."
    )


@contextlib.contextmanager
def tended(
    house: Any,  # up.House
    say: Any,  # called with a name and a line
) -> Iterator[None]:
    "Start what is due and start again what died, beside the block."
    from housemlops.operations.process_guard import reap_orphans

    over = threading.Event()

    def work():
        while not over.wait(0.2):
            for child in list(house.children):
                house.update(child, say)
            reap_orphans(
                [child.process.pid for child in house.children if child.process]
            )

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def add(
    house: Any,  # up.House
    services: list,  # of up.Service
):
    "More services for the house."
    from housemlops.operations.supervisor import Child

    house.children = [
        *house.children,
        *(
            Child(service, house.chosen.paths.state / f"log/{service.name}.log")
            for service in services
        ),
    ]


def opens(
    port: int,  # on loopback
) -> bool:
    "Does anybody listen?"
    from housemlops.orchestrate import answers

    return answers(port)


def create_databases(
    ports: dict[str, int],
    password: str,
):
    "A database for each who needs one."
    import psycopg

    with psycopg.connect(
        f"postgresql://house:{password}@127.0.0.1:{ports['postgres']}/postgres",
        autocommit=True,
    ) as connection:
        for name in ("airflow", "mlflow", "predictions"):
            connection.execute(f"create database {name}")


def accepts(
    ports: dict[str, int],
    password: str,
) -> bool:
    "Whether PostgreSQL lets us in."
    import psycopg

    try:
        psycopg.connect(
            f"postgresql://house:{password}@127.0.0.1:{ports['postgres']}/postgres",
            connect_timeout=2,
        ).close()
    except psycopg.OperationalError:
        return False
    return True


def waiting_workers(
    ports: dict[str, int],
    password: str,
) -> str:  # names of the workers that listen to the queue
    "Who has announced themselves to Celery."
    import redis

    with redis.Redis(host="127.0.0.1", port=ports["redis"], password=password) as queue:
        return " ".join(
            member.decode() for member in queue.smembers("_kombu.binding.celery.pidbox")
        )


def travelling_snapshot(
    root: Path,  # checkout
    home: Path,  # of the place
) -> dict:  # commit, branch, uncommitted
    "The checkout as it is now, as a commit in a repository that others can reach."
    commit, changed = snapshot(root)
    dataset = params(root).get("dataset")
    pointer = root / f"data/{dataset}.csv.dvc"
    if (
        pointer.exists()
        and (now := data_md5(root, dataset))
        and now not in pointer.read_text()
    ):
        raise WorkbookError(
            f"data/{dataset}.csv is not the version that {pointer.name} names, and only that one can travel: run 'dvc add data/{dataset}.csv' first."
        )
    git("init", "--quiet", "--bare", str(home / "code.git"), root=root)
    for name in ("uploadpack.allowAnySHA1InWant", "receive.shallowUpdate"):
        git("config", name, "true", root=home / "code.git")
    git(
        "push", "--quiet", str(home / "code.git"), f"{commit}:refs/heads/run", root=root
    )
    return {
        "commit": commit,
        "branch": git("branch", "--show-current", root=root),
        "uncommitted": changed,
    }


def push_ledger(
    root: Path,  # checkout
    home: Path,  # of the place, with its own checkout in code
):
    "Put the ledger of the data set into the shared remote, unless it travels with the code."
    code = home / "code"
    name = f"data/{params(code).get('dataset')}.csv.dvc"
    with contextlib.suppress(WorkbookError):
        return dvc("pull", name, root=code) if (code / name).exists() else None
    place_ledger(root, code, edits=False)
    point_dvc(code, code)
    dvc("commit", "--force", name, root=code)
    dvc("push", name, root=code)


@contextlib.contextmanager
def only_one_place(
    home: Path,  # of the place
) -> Iterator[None]:
    "Refuse a second place on the same state folder, and empty it."
    from filelock import FileLock, Timeout

    home.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(home.with_suffix(".lock")).acquire(timeout=0)
    except Timeout:
        raise WorkbookError(
            "Workers of this checkout are at work already: wait for them, or stop them with Ctrl-C where they run."
        ) from None
    with lock:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(mode=0o700)
        yield


def start_place(
    house: Any,  # up.House
    home: Path,  # of the place
    found: dict[str, str],  # from `programs`
    data: Path,  # PostgreSQL's folder
    ports: dict[str, int],
    keys: dict[str, str],  # passwords
    workers: int,
):
    "All that the workers share, in the order in which it needs each other."
    code = home / "code"
    private_file(
        home / "redis.conf",
        lambda: (
            f'bind 127.0.0.1\nport {ports["redis"]}\nrequirepass {keys["redis"]}\nsave ""\nappendonly no\ndir {home}\nset-proc-title no\n'
        ),
    )
    make_keys(found, home / "keys", ports["ssh"])
    add(house, base_services(found, home, data, ports))
    wait_until(house, "PostgreSQL", lambda: accepts(ports, keys["postgres"]), 60)
    create_databases(ports, keys["postgres"])
    add(house, [mlflow_service(home, ports, keys)])
    variables = airflow_variables(code, ports, keys) | place_variables(
        ports, keys, workers
    )
    done = run_captured(
        [sys.executable, "-m", "airflow", "db", "migrate"],
        cwd=code,
        env=os.environ | variables,
    )
    if done.returncode:
        raise WorkbookError(
            f"Airflow's database could not be made: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    add(house, airflow_place(code, variables))


def start_workers(
    house: Any,  # up.House
    home: Path,  # of the place
    names: list[str],  # of the workers
    commit: str,  # of the code
    ports: dict[str, int],
    keys: dict[str, str],  # passwords
    runtime: Path,  # for Jupyter's sockets
):  # -> ask for Airflow's API as ask(method, path, body)
    "The workers; then wait until everybody knows everybody."
    from housemlops.orchestrate import live_airflow

    code = home / "code"
    wait_until(house, "sshd", lambda: opens(ports["ssh"]), 30)
    for name in names:
        make_worker(home, name, commit, ports)
    add(
        house,
        [
            worker_service(
                home,
                name,
                worker_environment(
                    home, name, airflow_variables(code, ports, keys), runtime
                ),
            )
            for name in names
        ],
    )
    wait_until(house, "MLflow", lambda: opens(ports["mlflow"]))
    tracking(settings(code))
    api = wait_until(house, "Airflow", lambda: live_airflow(code))
    wait_until(
        house,
        "A worker",
        lambda: all(name in waiting_workers(ports, keys["redis"]) for name in names),
    )
    return api


ENDS = {
    "postgres": signal.SIGINT,
    "redis": signal.SIGTERM,
    "sshd": signal.SIGTERM,
}  # what each takes for an orderly end


def end_base(
    house: Any,  # up.House
):
    "End what hides its environment from the supervisor's guard."
    running = [
        child
        for child in house.children
        if child.service.name in ENDS and child.process and child.process.poll() is None
    ]
    for child in running:
        child.process.send_signal(ENDS[child.service.name])
    for child in running:
        try:
            child.process.wait(5)
        except subprocess.TimeoutExpired:
            child.process.kill()


def patiently(
    house: Any,  # up.House
    question: Any,  # -> answer
) -> Any:  # its answer
    "Ask a server that may be busy, until it answers."
    import httpx

    def answer():
        try:
            return {"found": question()}
        except httpx.TransportError:
            return None

    return wait_until(house, "Airflow's answer", answer)["found"]


def start_run(
    house: Any,  # up.House
    api: Any,  # of Airflow
    conf: dict,  # of the run
) -> str:  # dag_run_id
    "Ask Airflow for a run, once, however often we must ask."
    import httpx

    def ask_once():
        try:
            return api(
                "POST",
                "dags/house_prices_lifecycle/dagRuns",
                {"dag_run_id": conf["workspace"], "logical_date": None, "conf": conf},
            )
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 409:
                raise

    patiently(house, ask_once)
    return conf["workspace"]


def dag_run(
    api: Any,  # of Airflow
    path: str = "",  # below the run
    run: str = "",
) -> dict:
    "Ask Airflow about the run."
    return api("GET", f"dags/house_prices_lifecycle/dagRuns/{run}{path}")


def told_by(
    api: Any,  # of Airflow
    run: str,  # dag_run_id
    stage: str,
) -> dict:  # as `stage_apart` returns it
    "What a task has handed back to Airflow."
    value = dag_run(api, f"/taskInstances/{stage}/xcomEntries/return_value", run)[
        "value"
    ]
    return json.loads(value) if isinstance(value, str) else value


def why(
    home: Path,  # of the place
    stage: str,
) -> str:  # a sentence
    "Why a task has failed, from the logs of the workers."
    logs = sorted(
        home.glob(f"worker-*/airflow/logs/**/task_id={stage}/attempt=*.log"),
        key=lambda path: path.stat().st_mtime,
    )
    lines = [
        json.loads(line).get("event", "")
        for path in logs
        for line in path.read_text().splitlines()
        if line.startswith("{")
    ]
    return next(
        (
            line.removeprefix(STOPPED)
            for line in reversed(lines)
            if line.startswith(STOPPED)
        ),
        f"{stage} failed; its logs are below {home}.",
    )


def follow_workers(
    house: Any,  # up.House
    api: Any,  # of Airflow
    run: str,  # dag_run_id
    home: Path,  # of the place
    console: Any,  # rich console
) -> list[dict]:  # stage, worker, try, answer, seconds, and those of its steps
    "Show the run while it happens: which worker has which stage, and what it cost to have no disk."
    from housemlops.orchestrate import MARKS

    rows, tries = {}, {}
    with console.status("  Airflow hands out the first stage") as status:
        while True:
            over, tasks = patiently(
                house,
                lambda: (
                    dag_run(api, run=run)["state"],
                    dag_run(api, "/taskInstances", run)["task_instances"],
                ),
            )
            for task in tasks:
                stage, number = task["task_id"], task["try_number"]
                if task["state"] == "running":
                    status.update(f"  {stage} on {task['hostname']}")
                if number > tries.setdefault(stage, 1) or (
                    task["state"] == "up_for_retry" and number == tries[stage]
                ):
                    tries[stage] = number + (task["state"] == "up_for_retry")
                    console.print(
                        f"  {stage:<10} [yellow]its worker is gone or could not reach the place; another try[/]"
                    )
                if task["state"] == "success" and stage not in rows:
                    told = patiently(house, lambda: told_by(api, run, stage))
                    rows[stage] = {
                        "stage": stage,
                        "worker": task["hostname"],
                        "try": number,
                        "answer": told["answer"],
                        "seconds": round(task["duration"], 1),
                        "steps": told["seconds"],
                    }
                    beside = task["duration"] - told["seconds"]["stage"]
                    console.print(
                        f"  {stage:<10}{task['duration']:6.1f} s  {MARKS[told['answer']]} on {task['hostname']}{f', at try {number}' if number > 1 else ''}, {beside:.1f} s of it to fetch, to hand on and to start"
                    )
            if over == "failed":
                raise StageFailed(
                    why(
                        home,
                        next(
                            task["task_id"]
                            for task in tasks
                            if task["state"] == "failed"
                        ),
                    )
                )
            if over == "success":
                return list(rows.values())
            if house.stopping.wait(1):
                raise WorkbookError("Stopped before the end.")


def collect(
    home: Path,  # of the place
    conf: dict,  # of the run
) -> Path:  # workspace with every output, and dvc.lock
    "What the workers made, fetched from the remote to the place that serves; nothing may run here."
    from housemlops.serve import publish

    workspace = home / "latest"
    make_ready(home / "code", workspace, conf)
    stages, chosen = graph(pipeline(workspace)), settings(home / "code")
    take_lock(
        tracking(chosen),
        chosen.mlflow.experiment,
        workspace,
        conf["workspace"],
        list(stages),
    )
    restore(
        home / "code",
        workspace,
        [
            stage
            for stage in stages
            if not any(stage in before for before in stages.values())
        ],
    )
    if (workspace / "build/serve/app.py").exists():
        publish(workspace / "build/serve")
    recall(tracking(chosen), chosen.mlflow.experiment, chosen.paths.state)
    return workspace


def tell(
    home: Path,  # of the place
    workspace: Path,  # with all outputs
    console: Any,  # rich console
):
    "What the run achieved: gates, champion, a real prediction."
    from rich.table import Table

    from housemlops.orchestrate import ask_prediction, champion_version, gate_rows

    receipt = json.loads((workspace / "build/promote/receipt.json").read_text())
    table = Table("gate", "value", "limit", "verdict", title="Test sales")
    for row in gate_rows(receipt["gates"]):
        table.add_row(*row)
    console.print(table)
    console.print(
        f"Champion: {receipt['model_name']} version {champion_version(home / 'code', receipt['model_name']) or 'none yet'}"
    )
    if (release := settings(home / "code").paths.state / "serve/current").exists():
        url, answer = ask_prediction(release, home / "code")
        console.print(
            f"Prediction: POST {url} gave {answer['price']:,.0f} {answer['currency']} ({answer['low']:,.0f} to {answer['high']:,.0f} at {answer['level']:.0%}), logged in PostgreSQL"
        )


def scale_out(
    workers: int = 2,
    stay: bool = False,  # keep everything after the run, until Ctrl-C
    as_of: str = "",  # YYYY-MM; empty: as params.yaml says
    root: Path | None = None,  # checkout; found when not given
    console: Any = None,  # rich console
) -> list[dict]:  # stage, worker, try, answer, seconds
    "Run the lifecycle once on workers that share no disk; everything it needs is started here and stopped again."
    from rich.console import Console

    from housemlops.operations.process_guard import guarded
    from housemlops.operations.replay_airflow import environment
    from housemlops.operations.supervisor import Supervisor, local, stop_on_signals

    root, console, began, mark = (
        Path(root or repo_root()),
        console or Console(highlight=False, soft_wrap=True),
        time.monotonic(),
        f"HOUSEMLOPS_UP_{secrets.token_hex(8)}",
    )
    head_commit(root)
    month, home, names = (
        run_month(str(params(root)["as_of"]), None, {"as_of": as_of}),
        settings(root).paths.state / "scale",
        [f"worker-{number}" for number in range(1, workers + 1)],
    )
    found, ports, keys = (
        programs(),
        free_ports(PORTS),
        {name: secrets.token_urlsafe(24) for name in ("postgres", "redis")},
    )

    def say(name, line):
        console.print(f"  {name:<10} [yellow]{line}[/]")

    with (
        only_one_place(home),
        environment(task_environment(home, ports, keys)),
        contextlib.ExitStack() as stack,
    ):
        facts = travelling_snapshot(root, home)
        fetch_code((home / "code.git").as_uri(), facts["commit"], home / "code")
        edited = (
            f" [yellow]with uncommitted changes[/]: {', '.join(facts['uncommitted'][:8])}"
            if facts["uncommitted"]
            else ""
        )
        console.print(
            f"{workers} workers and the place between them, at {facts['commit'][:10]}{edited}"
        )
        house, data = (
            Supervisor(settings(home / "code"), home / "code", mark, []),
            make_database(found, keys["postgres"]),
        )
        stack.callback(shutil.rmtree, data, ignore_errors=True)
        runtime = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="hm-", ignore_cleanup_errors=True)
            )
        )
        stack.enter_context(stop_on_signals(house))
        stack.enter_context(guarded(mark))
        stack.callback(end_base, house)
        stack.enter_context(tended(house, say))
        start_place(house, home, found, data, ports, keys, workers)
        push_ledger(root, home)
        api = start_workers(house, home, names, facts["commit"], ports, keys, runtime)
        console.print(
            f"PostgreSQL, Redis, sshd, MLflow, Airflow and {', '.join(names)} are up after {time.monotonic() - began:.0f} s"
        )
        conf = {
            "workspace": f"run-{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(2)}",
            "as_of": month,
            **facts,
        }
        rows = follow_workers(house, api, start_run(house, api, conf), home, console)
        console.print(
            f"Lifecycle: {sum(row['seconds'] for row in rows):.1f} s of work on {len({row['worker'] for row in rows})} workers"
        )
        with open(home / "collected.log", "w") as log, contextlib.redirect_stdout(log):
            workspace = collect(home, conf)
        (home / "rows.json").write_text(json.dumps(rows, indent=1))
        tell(home, workspace, console)
        if stay:
            console.print(
                f"Airflow: {local(ports['airflow'], '/dags/house_prices_lifecycle')}\nMLflow: {local(ports['mlflow'])}\nCtrl-C stops all of it"
            )
            house.stopping.wait()
    console.print(
        f"Total: {time.monotonic() - began:.1f} s. No process is left; what each worker has is below {home}"
    )
    return rows
