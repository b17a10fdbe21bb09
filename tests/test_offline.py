"Nothing leaves the machine: the lifecycle, the server, a kernel and JupyterLab are traced; each connection and name look-up counts."

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import psutil
import pytest

from checkout import ROOT
from housemlops import NO_TELEMETRY
from housemlops.serve import ask
from housemlops.serving.running import free_port
from trap import attempts, plain_environment, traced

# ONNX Runtime keeps its events in this folder of the cache; a later process sends them, if it runs long enough.
KEPT = "Microsoft"

REACH = """
import socket
for address in ("192.0.2.1", "127.0.0.1"):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect((address, 9))
try:
    socket.getaddrinfo("nobody.invalid", 9)
except OSError:
    pass
"""


@pytest.fixture
def new_machine(tmp_path) -> dict[str, str]:
    "The environment of somebody who starts for the first time, without the variables of this package"
    return plain_environment() | {"XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture
def log(strace, tmp_path) -> Iterator[Path]:
    "Where a test writes what it traces; in the end that is nothing, and nothing is kept to be sent later"
    log = tmp_path / "reached.txt"
    yield log
    assert [str(attempt) for attempt in attempts(log)] == []
    assert not (tmp_path / "cache" / KEPT).exists()


def answers(url: str) -> bool:
    try:
        return ask(url)[0] == 200
    except OSError:
        return False


@contextmanager
def running(command: list, ready: str, **options) -> Iterator[None]:
    "A traced server, from its first answer to its end"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, **options)
    try:
        end = time.monotonic() + 300
        while not answers(ready):
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.1)
        yield
    finally:
        for server in psutil.Process(process.pid).children():
            server.terminate()
        process.wait(30)


def test_the_trap_sees_connections_and_look_ups(strace, tmp_path):
    "Those of a process that is started by another one, too, and not those to this machine"
    starter = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {REACH!r}, 'inner'])"
    environ = plain_environment() | {"RES_OPTIONS": "timeout:1 attempts:1"}
    command = traced([sys.executable, "-c", starter], tmp_path / "reached.txt")
    subprocess.run(command, env=environ, check=True)
    found = attempts(tmp_path / "reached.txt")
    assert all(attempt.program.endswith("inner") for attempt in found), found
    connected, *asked = [attempt.target for attempt in found]
    assert connected == "192.0.2.1 port 9"
    assert asked and all(target.startswith("name look-up") for target in asked)


def test_the_lifecycle_reaches_nothing(strace, first_run):
    "Of `housemlops run` and all that it starts: Airflow, DVC, kernels, MLflow, the generated server"
    log = first_run / "reached.txt"
    assert "ipykernel" in log.read_text()
    assert [str(attempt) for attempt in attempts(log)] == []
    assert not (first_run / "cache" / KEPT).exists()


def test_the_server_reaches_nothing(learner, new_machine, log, tmp_path):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "app.py", "--port", str(port), "--log-level", "warning"]
    database = {"HOUSE_DATABASE_URL": f"sqlite:///{tmp_path}/predictions.db"}
    example = learner.build("serve/model/example.json")
    house = {name: value for name, value in example.items() if value is not None}
    with running(
        traced(command, log),
        f"{url}/readyz",
        cwd=learner.path / "var/serve/current",
        env=new_machine | database,
    ):
        for route in ("predict", "explain"):
            status, answer = ask(f"{url}/{route}", house)
            assert status == 200, answer


@pytest.mark.slow
def test_a_plain_kernel_reaches_nothing(learner, new_machine, log, tmp_path):
    "One that no command of ours has started"
    graph = learner.path / "var/serve/current/model/graph.onnx"
    code = f"""
import onnxruntime, os
onnxruntime.InferenceSession({str(graph)!r})
print(*(os.environ.get(name) for name in {[*NO_TELEMETRY]}))
"""
    path = tmp_path / "plain.ipynb"
    cell = nbformat.v4.new_code_cell(code)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    jupyter = Path(sys.executable).with_name("jupyter")
    done = subprocess.run(
        traced([jupyter, "execute", "--inplace", path], log),
        env=new_machine,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    outputs = nbformat.read(path, 4).cells[0].outputs
    assert outputs[0].text.split() == [*NO_TELEMETRY.values()]


@pytest.mark.slow
def test_a_plain_jupyterlab_reaches_nothing(new_machine, log, tmp_path):
    "Asked for news and for its newest version, as its page does"
    port = free_port()
    options = ["--no-browser", "--allow-root", "--ServerApp.port_retries=0"]
    command = [sys.executable, "-m", "jupyterlab", f"--port={port}", *options]
    url, token = f"http://127.0.0.1:{port}", "token=of-this-test"
    with running(
        traced(command, log),
        f"{url}/api",
        cwd=tmp_path,
        env=new_machine | {"JUPYTER_TOKEN": token.partition("=")[2]},
    ):
        assert ask(f"{url}/lab/api/news?{token}") == (200, {"news": []})
        status, answer = ask(f"{url}/lab/api/update?{token}")
        assert (status, answer["notification"]) == (200, None)


def test_a_model_that_is_loaded_elsewhere_keeps_nothing(
    learner, new_machine, log, tmp_path
):
    "By MLflow, in a process that knows nothing of this package"
    model = learner.path / "var/latest/build/train/model"
    code = f"from mlflow import pyfunc; pyfunc.load_model({str(model)!r})"
    environ = new_machine | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    command = traced([sys.executable, "-P", "-c", code], log)
    subprocess.run(command, cwd=tmp_path, env=environ, check=True)


@pytest.mark.parametrize(
    "path, name",
    [
        ("housemlops/templates/Dockerfile.jinja", "ORT_DISABLE_TELEMETRY"),
        ("deploy/images/server/Dockerfile", "ORT_DISABLE_TELEMETRY"),
        ("deploy/images/mlflow/Dockerfile", "MLFLOW_DISABLE_TELEMETRY"),
    ],
)
def test_an_image_without_the_package_switches_telemetry_off(path, name):
    lines = (ROOT / path).read_text().splitlines()
    environ = [line.split() for line in lines if line.startswith("ENV ")]
    assert any(f"{name}={NO_TELEMETRY[name]}" in words for words in environ)
