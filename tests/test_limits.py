"""What a server bears: odd options, foreign web pages, thousands of mistakes, clients that wait, a log that is lost."""

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
import pytest
from fastapi import HTTPException
from starlette.testclient import TestClient

from housemlops.engine import LiveModel
from housemlops.prediction_log import COLUMNS, PredictionLog
from housemlops.serving import log_backup
from housemlops.serving.app import create_app
from housemlops.serving.database import LogUnavailable
from housemlops.serving.jobs import BackgroundJob
from housemlops.serving.options import OptionError, read_options
from housemlops.serving.requests import request_model
from housemlops.serving.running import ask, free_port, wait_until_alive
from housemlops.serving.service import PredictionRequest, PredictionService
from housemlops.settings import end_with_parent

OWN = "http://127.0.0.1"


@pytest.fixture(scope="module")
def release(sample) -> Path:
    "The generated server of a first run"
    return sample.release


@pytest.fixture(scope="module")
def House(release):
    "The request model of the generated server"
    return request_model(json.loads((release / "model/contract.json").read_text()))


@pytest.fixture(scope="module")
def example(release) -> dict:
    house = json.loads((release / "model/example.json").read_text())
    return {name: value for name, value in house.items() if value is not None}


@pytest.fixture
def app(release, tmp_path):
    "Make the app in this process, with options"

    def make(**options):
        environ = {
            "HOUSE_MODEL": str(release / "model"),
            "HOUSE_DATABASE_URL": f"sqlite:///{tmp_path}/predictions.db",
        } | {f"HOUSE_{name.upper()}": str(value) for name, value in options.items()}
        return create_app(release, environ=environ)

    return make


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("RETENTION_DAYS", "999999", "36500"),
        ("RETENTION_DAYS", "-1", "0"),
        ("API_KEYS", ",", "holds no key"),
        ("API_KEYS", " , ", "holds no key"),
        ("ALLOWED_HOSTS", "", "names no host"),
        ("ALLOWED_HOSTS", "a.*.b", "no name of a host"),
        ("ALLOWED_ORIGINS", "app.example", "no origin"),
        ("ALLOWED_ORIGINS", "https://app.example/path", "no origin"),
        ("MAX_BYTES", "99999999999", "67108864"),
        ("MAX_ROWS", "1000000", "100000"),
        ("MAX_HEADER_BYTES", "1", "1024"),
        ("MAX_CONNECTIONS", "0", "1"),
        ("REQUEST_SECONDS", "0", "1"),
        ("KEEP_ALIVE_SECONDS", "nan", "integer"),
        ("GRACE_SECONDS", "-1", "0"),
    ],
)
def test_an_option_out_of_bounds_is_one_sentence(name, value, why):
    with pytest.raises(OptionError, match=f"HOUSE_{name}.*{why}") as error:
        read_options({f"HOUSE_{name}": value}, Path())
    assert "\n" not in str(error.value)


def test_a_server_with_such_an_option_ends_with_exit_code_2(release):
    done = subprocess.run(
        [sys.executable, "app.py", "--port", str(free_port())],
        cwd=release,
        env={"PATH": os.environ["PATH"], "HOUSE_RETENTION_DAYS": "999999"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done
    assert done.stderr.startswith("HOUSE_RETENTION_DAYS")


def test_only_json_from_pages_that_may_ask(app, example):
    body = json.dumps(example)
    cases = [
        ({"Content-Type": "application/json"}, 200),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({}, 200),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Origin": OWN}, 415),
        ({"Sec-Fetch-Site": "cross-site"}, 415),
        ({"Content-Type": "application/json", "Origin": OWN}, 200),
        ({"Content-Type": "application/json", "Origin": "null"}, 403),
        ({"Content-Type": "application/json", "Origin": "http://127.0.0.1:81"}, 403),
        ({"Content-Type": "application/json", "Origin": "http://evil.example"}, 403),
        ({"Content-Type": "application/json", "Origin": "https://app.example"}, 200),
        ({"Content-Type": "text/plain", "Origin": "http://evil.example"}, 403),
    ]
    with TestClient(app(allowed_origins="https://app.example"), OWN) as client:
        for headers, status in cases:
            answer = client.post("/predict", content=body, headers=headers)
            assert answer.status_code == status, (headers, answer.text)
        routes = [
            (path, route)
            for path, methods in client.get("/openapi.json").json()["paths"].items()
            for route in methods
            if route != "get"
        ]
        foreign = {"Content-Type": "application/json", "Origin": "http://evil.example"}
        for path, method in routes:
            answer = client.request(method, path, content=body, headers=foreign)
            assert answer.status_code == 403, path
        preflight = {
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        }
        allowed = client.options("/predict", headers=preflight)
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        answer = client.post("/predict", json=example, headers=cases[-2][0])
        assert answer.headers["access-control-allow-origin"] == "https://app.example"


def loop_time(app, path: str, body: bytes) -> tuple[httpx.Response, float]:
    "An answer, and the seconds of processor that the event loop's own thread took"

    async def measure():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=OWN) as client:
            began = time.thread_time()
            headers = {"Content-Type": "application/json"}
            answer = await client.post(path, content=body, headers=headers)
            return answer, time.thread_time() - began

    return asyncio.run(measure())


def test_the_twentieth_mistake_is_the_last_and_others_are_answered_meanwhile(
    app, example
):
    many = {f"unknown {i}": 1 for i in range(40_000)}
    wrong = [example | {"no such column": i} for i in range(400)]
    tensors = [{"name": str(i)} for i in range(20_000)]
    bodies = {
        "/predict": many,
        "/explain": many,
        "/predict/batch": {"houses": [many]},
        "/curve": {"house": many, "column": "x", "values": [1]},
        "/invocations": {"dataframe_records": wrong},
        "/v2/models/house-prices-sample/infer": {"inputs": tensors},
    }
    made = app()
    for path, body in bodies.items():
        answer, seconds = loop_time(made, path, json.dumps(body).encode())
        assert answer.status_code == 422, (path, answer.text[:500])
        assert len(answer.json().get("detail", [])) <= 20 and len(answer.text) < 5000, (
            path
        )
        assert seconds < 0.1, (path, seconds)
    assert loop_time(made, "/predict/batch", b'{"extra": 1}')[0].json()["detail"] == [
        {"loc": ["body", "houses"], "msg": "Field required", "type": "missing"},
        {
            "loc": ["body", "extra"],
            "msg": "Extra inputs are not permitted",
            "type": "extra_forbidden",
        },
    ]


def test_numbers_of_five_thousand_digits_are_refused(app, example):
    integer = next(n for n, v in example.items() if isinstance(v, int))
    others = {name: value for name, value in example.items() if name != integer}
    number = next(n for n, v in others.items() if not isinstance(v, str))
    text = json.dumps(others | {number: "@"}).replace('"@"', "9" * 5000)
    body = text[:-1] + f', "{integer}": 3.5}}'
    for path, whole in (
        ("/predict", body),
        ("/predict/batch", f'{{"houses":[{body}]}}'),
    ):
        assert loop_time(app(), path, whole.encode())[0].status_code == 422


def test_a_job_that_fails_is_shown_and_tried_again(caplog):
    left = [OverflowError("date value out of range"), KeyError("x"), None]

    def work():
        error = left.pop(0)
        if error:
            raise error

    job = BackgroundJob("delete old predictions", work, 3600)
    with caplog.at_level(logging.WARNING, "uvicorn.error"):
        assert job.run_once() == 1 and "OverflowError" in job.trouble
        assert job.run_once() == 2 and "2 times" in job.trouble
        assert job.run_once() == 3600 and not job.trouble
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    job.failures = 9
    job.work = lambda: 1 / 0
    assert job.run_once() == 60


def test_readyz_shows_a_job_that_fails(app, tmp_path):
    log = PredictionLog(f"sqlite:///{tmp_path}/predictions.db")
    log.write([row() | {"time": datetime.now(UTC) - timedelta(days=90)}])
    log.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "predictions.db")) as file:
        file.execute(
            "CREATE TRIGGER keep BEFORE DELETE ON predictions BEGIN SELECT RAISE(ABORT, 'kept'); END"
        )
    with TestClient(app(retention_days=30), OWN) as client:
        ready = until(lambda: client.get("/readyz").json(), lambda r: r["background"])
    assert "delete old predictions" in ready["background"][0], ready
    assert ready["status"] == "ready" and str(tmp_path) not in str(ready)


def until(look, enough, seconds: float = 10.0):
    "What was seen when it was enough"
    end = time.monotonic() + seconds
    while not enough(seen := look()):
        assert time.monotonic() < end, seen
        time.sleep(0.05)
    return seen


def row() -> dict:
    "A row of the log"
    return dict.fromkeys(COLUMNS, "x") | {
        "id": f"{time.monotonic_ns():x}",
        "time": datetime.now(UTC),
        "version": 1,
        "price": 1.0,
        "low": 1.0,
        "high": 1.0,
        "level": 0.9,
        "warnings": [],
        "inputs": "{}",
    }


@pytest.fixture
def service(release, House, tmp_path):
    "A service whose log is in a folder that can go away"
    (tmp_path / "data").mkdir()
    log = PredictionLog(f"sqlite:///{tmp_path}/data/predictions.db")
    service = PredictionService(House, LiveModel(release / "model"), log)
    service.open_log()
    yield service
    service.close()


def predicts(service, House, example) -> bool:
    "Whether a prediction is returned now"

    async def predict():
        return await service.predict("predict", [House.model_validate(example)])

    service.retry_at = 0.0  # do not wait for a second
    try:
        return bool(asyncio.run(predict()))
    except HTTPException as error:
        assert error.status_code == 503 and "/" not in error.detail, error.detail
        return False


def test_a_lost_and_a_returned_log_are_one_line_each(
    service, House, example, tmp_path, caplog
):
    caplog.set_level(logging.WARNING, "uvicorn.error")
    assert predicts(service, House, example) and not caplog.records
    (tmp_path / "data").rename(tmp_path / "away")
    for _ in range(3):
        assert not predicts(service, House, example)
    assert "/" not in service.log_problem()
    (tmp_path / "away").rename(tmp_path / "data")
    assert predicts(service, House, example) and predicts(service, House, example)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert str(tmp_path) in caplog.text and "is back" in caplog.text


def test_a_full_disk_is_one_line_and_a_reason(service, House, example, caplog):
    caplog.set_level(logging.WARNING, "uvicorn.error")
    assert predicts(service, House, example)
    service.log.writer.driver_connection.execute("PRAGMA max_page_count = 1")
    houses = [House.model_validate(example)] * 200
    with pytest.raises(LogUnavailable):
        service.predict_batch([PredictionRequest("batch", houses)])
    assert (
        service.log_problem() == "the prediction log is unavailable: its disk is full"
    )
    assert predicts(service, House, example)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_a_backup_copied_over_the_log_is_noticed_at_the_next_look(
    service, House, example, tmp_path, caplog
):
    caplog.set_level(logging.WARNING, "uvicorn.error")
    live = tmp_path / "data/predictions.db"
    assert predicts(service, House, example)
    log_backup.backup(f"sqlite:///{live}", tmp_path / "backup.db")
    for _ in range(30):
        assert predicts(service, House, example)
    service.check_log()
    assert service.log_is_open
    live.write_bytes((tmp_path / "backup.db").read_bytes())
    service.check_log()
    assert not service.log_is_open and service.log_problem(), "nothing was noticed"
    assert len(caplog.records) == 1 and "No prediction is returned" in caplog.text


def test_what_explain_and_curve_answer_is_not_logged_and_says_so(
    app, example, tmp_path
):
    with TestClient(app(), OWN) as client:
        column = next(iter(example))
        client.post("/predict", json=example)
        asked = {"house": example, "column": column, "values": [example[column]]}
        answers = [
            client.post("/explain", json=example),
            client.post("/curve", json=asked),
        ]
        schema = client.get("/openapi.json").json()
    assert [answer.status_code for answer in answers] == [200, 200]
    assert all("id" not in answer.json() for answer in answers)
    for path in ("/explain", "/curve"):
        assert "nothing is logged" in schema["paths"][path]["post"]["description"]
    log = PredictionLog(f"sqlite:///{tmp_path}/predictions.db")
    assert [kept["route"] for kept in log.read()] == ["predict"]
    log.close()


def test_the_readme_says_what_is_logged(release):
    text = (release / "README.md").read_text()
    assert "No price leaves" not in text
    assert "`/explain` and `/curve`" in text and "they log nothing" in text
    assert "log_backup backup FILE" in text and "python app.py" in text


# A live server, with few files, and clients that keep it waiting.


def few_files(parent: int) -> None:
    end_with_parent(parent)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))


@pytest.fixture(scope="module")
def live(release, tmp_path_factory):
    "A server that may have 100 files open: its port and its process"
    port, folder = free_port(), tmp_path_factory.mktemp("live")
    errors = folder / "errors.txt"
    log = errors.open("w")
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port), "--log-level", "warning"],
        cwd=release,
        env={
            "PATH": os.environ["PATH"],
            "HOUSE_DATABASE_URL": f"sqlite:///{folder}/predictions.db",
            "HOUSE_REQUEST_SECONDS": "2",
            "HOUSE_GRACE_SECONDS": "1",
        },
        stderr=log,
        preexec_fn=partial(few_files, os.getpid()),
    )
    try:
        wait_until_alive(f"http://127.0.0.1:{port}", process, 60, errors)
        yield port, process, errors
    finally:
        process.kill()
        process.wait()
        log.close()


def opened(port: int, text: bytes) -> socket.socket:
    "A connection on which something was sent"
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(text)
    return connection


def alive(port: int) -> bool:
    return ask(f"http://127.0.0.1:{port}/livez", timeout=10)[0] == 200


HALF = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"


def test_sixty_megabytes_in_a_header_end_at_the_limit(live):
    port, *_ = live
    sent = 0
    with opened(port, b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: ") as long:
        with contextlib.suppress(OSError):
            for _ in range(600):
                long.sendall(b"x" * 100_000)
                sent += 100_000
        answer = b""
        with contextlib.suppress(OSError):
            answer = long.recv(1000)
    assert sent < 30_000_000 and answer[:12] in (b"HTTP/1.1 431", b""), (sent, answer)
    with opened(
        port, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"a: b\r\n" * 4000
    ) as long:
        assert long.recv(1000).startswith(b"HTTP/1.1 431")
    assert alive(port)


def test_a_hundred_and_ten_half_requests_neither_block_nor_stay(live):
    port, *_ = live
    with contextlib.ExitStack() as stack:
        half = [
            stack.enter_context(opened(port, HALF if i % 2 else HALF[:40]))
            for i in range(110)
        ]
        assert alive(port)
        began = time.monotonic()
        ends = []
        for connection in half:
            with contextlib.suppress(ConnectionError):
                ends.append(connection.recv(1000)[:12])
        assert time.monotonic() - began < 45, "half-sent requests do not end"
    assert b"HTTP/1.1 408" in ends and {*ends} <= {b"HTTP/1.1 408", b""}, {*ends}
    assert alive(port)


def test_a_request_that_comes_in_pieces_is_answered(live):
    port, *_ = live
    body = b'{"x": 1}'
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n"
    with opened(port, head[:50]) as connection:
        for piece in (head[50:], body[:3], body[3:] + head + body + head[:9]):
            connection.sendall(piece)
        found = b""
        while found.count(b"HTTP/1.1 422") < 2:
            found += connection.recv(10_000) or b"HTTP/1.1 422" * 3
        assert found.count(b"HTTP/1.1 422") == 2


def test_sigterm_ends_it_within_its_grace(live):
    port, process, errors = live
    with opened(port, HALF):
        assert alive(port)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(10)
    assert time.monotonic() - began < 30
    said = errors.read_text()
    assert "Traceback" not in said and "allows for 36 connections" in said, said
