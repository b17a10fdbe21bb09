"""`up` seen from outside: all of it becomes healthy, one page shows it, one signal ends it, and nothing is left."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = ("front", "airflow", "mlflow", "server", "jupyter")

SERVER = """
import sys
import uvicorn
from fastapi import FastAPI
app = FastAPI(docs_url="/swagger")
@app.get("/livez")
def livez(): return "ok"
@app.get("/readyz")
def readyz(): return "ok"
if __name__ == "__main__": uvicorn.run(app, port=int(sys.argv[sys.argv.index("--port") + 1]))
"""

DAG = """
import subprocess
from airflow.sdk import DAG, task
with DAG("sleepy", schedule="@once", is_paused_upon_creation=False):
    @task
    def sleep(): subprocess.run(["sleep", "1234"], start_new_session=True, check=True)
    sleep()
"""


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [
            stack.enter_context(contextlib.closing(socket.socket()))
            for _ in range(number)
        ]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def until(condition, seconds: float, what: str):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError, KeyError):
            if found := condition():
                return found
        time.sleep(0.3)
    raise AssertionError(f"Not within {seconds} s: {what}")


def refuses(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture
def checkout(tmp_path):
    "A small repository of its own, with a server that was promoted, a site that was built and one tiny DAG."
    root = tmp_path / "repo"
    for folder in ("dags", "var/serve/releases/one", "var/site"):
        (root / folder).mkdir(parents=True)
    for name in ("nbs", "housemlops"):
        (root / name).symlink_to(ROOT / name)
    for name in ("settings.ini", "params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root / name)
    (root / "dags/sleepy.py").write_text(DAG)
    (root / "var/serve/releases/one/app.py").write_text(SERVER)
    (root / "var/serve/current").symlink_to("releases/one")
    (root / "var/site/index.html").write_text("the site")
    return root


@pytest.fixture
def ports():
    return dict(zip(SECTIONS, free_ports(len(SECTIONS))))


@pytest.fixture
def up(checkout, ports):
    "Start `up` in the small repository; whatever a failed test left is killed."
    env = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "HOUSEMLOPS_PATHS_STATE": str(checkout / "var"),
        **{
            f"HOUSEMLOPS_{name.upper()}_PORT": str(port) for name, port in ports.items()
        },
    }
    started = []

    def start() -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", "from housemlops.up import up; up()"],
            cwd=checkout,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_all_healthy_then_one_signal_leaves_nothing(checkout, ports, up):
    supervisor = up()
    address = re.search(r"http://\S+", supervisor.stdout.readline())[0]
    front = httpx.Client(
        base_url=f"http://127.0.0.1:{ports['front']}", timeout=10, trust_env=False
    )

    def state(name: str) -> str:
        return front.get("/status").json()["services"][name]["state"]

    ready = until(
        lambda: supervisor.poll() is not None or front.get("/status").json()["ready"],
        600,
        "all healthy",
    )
    assert supervisor.poll() is None, supervisor.stdout.read()
    print(f"healthy after {ready:.0f} s")

    page = front.get("/").text
    assert "all healthy" in page
    for port in ports.values():
        assert not refuses(port)
    for name in ("airflow", "mlflow", "server"):
        assert f"http://127.0.0.1:{ports[name]}" in page
    assert front.get("/site/").text == "the site"
    assert front.get("/", headers={"Host": "attacker.example"}).status_code == 400

    second = up()
    assert (
        "Already running at" in second.communicate(timeout=90)[0] and second.returncode
    )

    services = front.get("/status").json()["services"]
    lab = services["jupyter"]["page"].split("/lab")[0]
    assert "token=" not in str(services) + page
    token = re.search(r"token=(\w+)", front.get(address).text)[1]
    httpx.post(
        f"{lab}/api/kernels",
        headers={"Authorization": f"token {token}"},
        json={"name": "python3"},
    ).raise_for_status()
    os.kill(services["server"]["pid"], signal.SIGKILL)
    until(lambda: state("server") == "crashed", 60, "the crash is noticed")
    until(lambda: state("server") == "healthy", 120, "the server is started again")

    def members() -> list[psutil.Process]:
        return [
            process
            for pid in front.get("/status").json()["processes"]
            for process in [psutil.Process(pid)]
        ]

    until(
        lambda: any("1234" in process.cmdline() for process in members()),
        300,
        "Airflow runs the task",
    )
    known = {*members(), *psutil.Process(supervisor.pid).children(recursive=True)}

    began = time.monotonic()
    supervisor.send_signal(signal.SIGINT)
    told = supervisor.communicate(timeout=120)[0]
    assert time.monotonic() - began < 60
    assert supervisor.returncode == 0 and "Stopped" in told
    assert [process for process in known if process.is_running()] == []
    assert all(refuses(port) for port in ports.values())
    assert len(known) > 10


def test_a_port_in_use_is_refused_with_a_sentence(ports, up):
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", ports["server"]))
        taken.listen()
        refused = up()
        told = refused.communicate(timeout=120)[0]
    assert (
        refused.returncode
        and f"Port {ports['server']}, wanted for the prediction server, is in use"
        in told
    )
    assert f"HOUSEMLOPS_SERVER_PORT={ports['server'] + 1}" in told
