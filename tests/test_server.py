"The generated server as strangers meet it: attacked, killed, given a new model while it works, and alone in an environment of its own."

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile

import psutil
import pytest

from housemlops.serving.running import ask, free_port, wait_until_alive
from housemlops.settings import end_with_parent
from postgres import Server as Postgres


class Live:
    "A generated server in a process of its own, on the same port whenever it is started"

    def __init__(self, folder: Path, **options: object):
        self.folder, self.port = folder, free_port()
        self.environ = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("HOUSE_", "PYTHONPATH"))
        } | {f"HOUSE_{k.upper()}": str(v) for k, v in options.items()}
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Live":
        self.errors = NamedTemporaryFile("w")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "app.py",
                "--port",
                str(self.port),
                "--log-level",
                "warning",
            ],
            cwd=self.folder,
            env=self.environ,
            stderr=self.errors,
            preexec_fn=partial(end_with_parent, os.getpid()),
        )
        wait_until_alive(self.url, self.process, 60, self.errors.name)
        return self

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(20)
        self.errors.close()

    @property
    def memory(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 2**20  # MB


def lines(server: Live, path: str, bodies, found: list) -> None:
    "Ask for one body after the other on one connection; stop when the server is gone"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with contextlib.suppress(OSError, http.client.HTTPException):
        for body in bodies:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            found.append((answer.status, answer.read()))
    connection.close()


def crowd(
    server: Live, path: str, bodies: list, callers: int = 8
) -> list[tuple[int, bytes]]:
    "Answers to many bodies, asked for by several callers at once"
    found = [[] for _ in range(callers)]
    threads = [
        threading.Thread(
            target=lines, args=(server, path, bodies[i::callers], found[i])
        )
        for i in range(callers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answer for part in found for answer in part]


@pytest.fixture(scope="module")
def release(sample) -> Path:
    return sample.release


@pytest.fixture(scope="module")
def houses(sample) -> list[dict]:
    "The test sales, as requests"
    import pandas as pd

    from housemlops.contract import as_request, load_contract

    contract, table = (
        load_contract("sample"),
        pd.read_parquet(sample.build / "prepare/test.parquet"),
    )
    rows = [
        {
            name: value
            for name, value in row.items()
            if value is not None and value == value
        }
        for row in table[contract.inputs].to_dict("records")
    ]
    return [as_request(row, contract) for row in rows]


@pytest.fixture(scope="module")
def server(release, tmp_path_factory):
    with Live(
        release,
        database_url=f"sqlite:///{tmp_path_factory.mktemp('log')}/predictions.db",
    ) as live:
        yield live


def test_it_gives_the_evaluated_prices_whatever_the_letter_case(
    sample, champion, server, houses
):
    import pandas as pd

    from housemlops.contract import load_contract
    from housemlops.model.prices import predict_prices

    contract = load_contract("sample")
    expected = predict_prices(
        champion,
        pd.read_parquet(sample.build / "prepare/test.parquet"),
        contract,
    )
    texts = {name for name in contract.inputs if contract.columns[name].categories}
    for change in (str, str.upper, str.lower, str.swapcase, "  {}".format):
        bodies = [
            json.dumps(
                {
                    name: change(value) if name in texts else value
                    for name, value in house.items()
                }
            )
            for house in houses
        ]
        answers = []
        lines(server, "/predict", bodies, answers)
        assert {status for status, _ in answers} == {200}
        for (_, text), wanted in zip(answers, expected.itertuples(), strict=True):
            answer = json.loads(text)
            assert answer["price"] / wanted.price == pytest.approx(
                1, rel=1e-4
            ) and answer["high"] / wanted.high == pytest.approx(1, rel=1e-4)


# JSON Schema cannot say that the data of a tensor are as many as its shape says, nor that
# the rows of a data frame have a value for each of its columns.
CONFIG = """
[parameters]
"path.name" = "{model}"
"path.number" = "{version}"

[[operations]]
include-path-regex = "/(infer|invocations)$"
checks.positive_data_acceptance.enabled = false
warnings = false
"""


def schemathesis(server: Live, folder: Path, *options: str) -> None:
    "Let schemathesis ask a server whatever its description allows and forbids, of the model that it serves"
    note = json.loads((server.folder / "model/release.json").read_text())
    config = CONFIG.format(**note)
    (folder / "schemathesis.toml").write_text(config)
    done = subprocess.run(
        [
            Path(sys.executable).with_name("st"),
            "run",
            f"{server.url}/openapi.json",
            "--max-examples",
            "10",
            "--seed",
            "1",
            "--no-color",
            *options,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    found_nothing = done.returncode == 0 and "No issues found" in done.stdout
    assert found_nothing, done.stdout[-5000:]


def test_schemathesis_finds_nothing(server, tmp_path):
    schemathesis(server, tmp_path)


def test_schemathesis_finds_nothing_where_keys_are_set(release, tmp_path):
    key = "a-key-of-sixteen-letters"
    log = f"sqlite:///{tmp_path}/log.db"
    with Live(release, database_url=log, api_keys=key) as live:
        schemathesis(live, tmp_path, "--header", f"Authorization: Bearer {key}")


def malformed(house: dict, dice: random.Random) -> bytes:
    "A body that the contract does not allow, in one of many ways"
    good, number, name = (
        json.dumps(house),
        dice.choice([k for k, v in house.items() if not isinstance(v, str)]),
        dice.choice([*house]),
    )
    ways = [
        lambda: good[: dice.randrange(len(good) - 1)].encode(),
        lambda: dice.randbytes(dice.randrange(1, 500)),
        lambda: b"[" * dice.randrange(1, 20000),
        lambda: b'{"a":' * dice.randrange(1, 20000),
        lambda: json.dumps(
            house
            | {
                number: dice.choice(
                    [
                        True,
                        "3",
                        None if number == "area" else [],
                        {},
                        1e300,
                        -1e300,
                        10 ** dice.randrange(20, 4000),
                    ]
                )
            }
        ).encode(),
        lambda: (
            json.dumps(house | {number: "@"})
            .replace(
                '"@"',
                dice.choice(
                    [
                        "Infinity",
                        "-Infinity",
                        "1e999",
                        "-1e999",
                        "0x10",
                        "1_0",
                        "01",
                    ]
                ),
            )
            .encode()
        ),
        lambda: (
            json.dumps(house | {name: "@"})
            .replace(
                '"@"',
                dice.choice(
                    [
                        '"\\ud800"',
                        '"\\udfff"',
                        '"\\u0000"',
                        '"\\u001f"',
                        '"' + "x" * 5000 + '"',
                    ]
                ),
            )
            .encode()
        ),
        lambda: json.dumps(house | {dice.randbytes(8).hex(): 1}).encode(),
        lambda: good.encode("utf-16"),
        lambda: b"\xff" + good.encode(),
        lambda: json.dumps([house] * dice.randrange(3)).encode(),
        lambda: json.dumps({k: v for k, v in house.items() if k != "area"}).encode(),
        lambda: b"",
    ]
    return dice.choice(ways)()


def test_ten_thousand_malformed_bodies(server, houses):
    dice = random.Random(0)
    bodies = [malformed(dice.choice(houses), dice) for _ in range(10_000)]
    crowd(server, "/predict", bodies[:500])
    before = server.memory
    for path, part in (
        ("/predict", bodies[:7000]),
        ("/explain", bodies[7000:8000]),
        ("/predict/batch", bodies[8000:9000]),
        ("/invocations", bodies[9000:]),
    ):
        answers = crowd(server, path, part)
        assert len(answers) == len(part) and {status for status, _ in answers} == {
            422
        }, {status for status, _ in answers}
    assert server.memory < before + 30, "memory grows with nonsense"
    assert ask(f"{server.url}/livez")[0] == 200


def test_limits(release, tmp_path, houses):
    with Live(
        release,
        database_url=f"sqlite:///{tmp_path}/log.db",
        max_bytes=100_000,
        max_rows=10,
        api_keys="a key of sixteen letters,another one that is good",
    ) as live:

        def status(path, key, host="127.0.0.1", body=None):
            connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=20)
            connection.request(
                "POST" if body else "GET",
                path,
                body,
                {
                    "Host": host,
                    "Content-Type": "application/json",
                    **({"X-API-Key": key} if key else {}),
                },
            )
            return connection.getresponse().status

        good = "another one that is good"
        assert [
            status(path, "")
            for path in (
                "/livez",
                "/readyz",
                "/",
                "/model",
                "/metrics",
                "/swagger",
                "/openapi.json",
                "/nowhere",
            )
        ] == [200, 200] + [401] * 6
        assert [
            status("/model", key)
            for key in (
                "a key of sixteen letters",
                good,
                good[:-1],
                good + "x",
                "ä",
                good.upper(),
            )
        ] == [200, 200, 401, 401, 401, 401]
        assert [
            status("/model", good, host)
            for host in ("localhost", "evil.example", "127.0.0.1.evil.example", "")
        ] == [200, 400, 400, 400]
        assert status("/predict", good, body=b"x" * 100_001) == 413 and status(
            "/predict/batch", good, body=json.dumps({"houses": houses[:11]})
        ) in (413, 422)
        assert (
            status("/predict/batch", good, body=json.dumps({"houses": houses[:10]}))
            == 200
        )


def acknowledged(live: Live, houses: list[dict], predictions: int) -> list[str]:
    "Ids that clients received, with the server killed midway and started again"
    bodies, found = (
        [json.dumps(houses[i % len(houses)]) for i in range(predictions)],
        [],
    )
    for part, kill in (
        (bodies[: predictions // 2], True),
        (bodies[predictions // 2 :], False),
    ):
        with live:
            if kill:
                threading.Timer(
                    2.0, lambda: os.kill(live.process.pid, signal.SIGKILL)
                ).start()
            answers = crowd(live, "/predict", part, callers=16)
            assert {status for status, _ in answers} == {200} and (
                kill or len(answers) == len(part)
            )
            found += [json.loads(text)["id"] for _, text in answers]
    return found


def test_killed_under_load_every_id_is_in_the_log(release, houses, tmp_path):
    live = Live(release, database_url=f"sqlite:///{tmp_path}/predictions.db")
    ids = acknowledged(live, houses, 20_000)
    with contextlib.closing(sqlite3.connect(tmp_path / "predictions.db")) as log:
        logged = [id for (id,) in log.execute("SELECT id FROM predictions")]
    assert (
        len(ids) > 10_000
        and len({*logged}) == len(logged)
        and {*ids} <= {*logged}
        and len(ids) == len({*ids})
    )
    with live:
        assert ask(f"{live.url}/predictions/{ids[0]}")[1]["inputs"]


def test_killed_under_load_with_postgresql_and_the_database_gone_for_a_while(
    release, houses, tmp_path, need
):
    need("postgres")
    database = Postgres(tmp_path)
    try:
        database.start()
        live = Live(release, database_url=database.url)
        ids = acknowledged(live, houses, 20_000)
        with live:
            database.stop()
            refused = ask(f"{live.url}/predict", houses[0])
            assert (
                refused[0] == 503
                and "log" in refused[1]["detail"]
                and "house:" not in refused[1]["detail"]
            ), refused
            assert [ask(f"{live.url}/{path}")[0] for path in ("livez", "readyz")] == [
                200,
                503,
            ]
            database.start()
            end = time.monotonic() + 30
            while ask(f"{live.url}/readyz")[0] != 200 and time.monotonic() < end:
                time.sleep(0.2)
            answer = ask(f"{live.url}/predict", houses[0])
            assert answer[0] == 200, answer
        import psycopg

        with psycopg.connect(database.url) as log:
            logged = [id for (id,) in log.execute("SELECT id FROM predictions")]
    finally:
        database.remove()
    assert len({*logged}) == len(logged) and {*ids, answer[1]["id"]} <= {*logged}


def lead(link: Path, target: Path) -> None:
    "Let a link lead to another release, in one step"
    link.with_suffix(".next").symlink_to(target)
    link.with_suffix(".next").rename(link)


def release_of(release: Path, folder: Path, **note: object) -> Path:
    "A copy of a release, called another version"
    shutil.copytree(release / "model", folder)
    (folder / "release.json").write_text(
        json.dumps(json.loads((folder / "release.json").read_text()) | note)
    )
    return folder


def wait_until_ready(live: Live, version: int, stale: bool, reason: str) -> None:
    "Wait until a server says that it answers with a version, and why with no newer one"
    end = time.monotonic() + 30
    while True:
        ready = ask(f"{live.url}/readyz")[1]
        now = (ready["version"], ready["stale"])
        if now == (version, stale) and reason in ready["reason"]:
            return
        assert time.monotonic() < end, ready
        time.sleep(0.1)


def test_a_new_model_takes_over_without_a_gap(release, houses, tmp_path):
    one, two = (
        release_of(release, tmp_path / name, version=number, model_sha256=name * 16)
        for name, number in (("aaaa", 1), ("bbbb", 2))
    )
    three = release_of(
        release, tmp_path / "cccc", version=3, program="of another contract"
    )
    broken = release_of(release, tmp_path / "dddd", version=4)
    (broken / "plan.json").write_text((broken / "plan.json").read_text() + " ")
    link, answers, body = tmp_path / "current", [], json.dumps(houses[0])
    lead(link, one)
    with Live(release, database_url=f"sqlite:///{tmp_path}/log.db", model=link) as live:
        stop = threading.Event()

        def endless():
            while not stop.is_set():
                yield body

        threads = [
            threading.Thread(target=lines, args=(live, "/predict", endless(), answers))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for target, *state in (
            (one, 1, False, ""),
            (two, 2, False, ""),
            (one, 1, False, ""),
            (three, 1, True, "answers other requests"),
            (broken, 1, True, "plan.json is not the file"),
            (two, 2, False, ""),
        ):
            lead(link, target)
            wait_until_ready(live, *state)
        stop.set()
        for thread in threads:
            thread.join()
        early = next(
            json.loads(text)["id"]
            for _, text in answers
            if json.loads(text)["version"] == 1
        )
        receipt = ask(f"{live.url}/predictions/{early}")[1]
    assert {status for status, _ in answers} == {200} and {
        json.loads(text)["version"] for _, text in answers
    } == {1, 2}
    assert receipt["version"] == 1 and receipt["explanation"]["columns"]


def test_its_own_tests_pass_in_an_environment_of_its_own(release, tmp_path):
    alone, home = (
        shutil.copytree(release, tmp_path / "server"),
        tmp_path / "environment",
    )
    own = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("PYTHON", "HOUSE", "VIRTUAL"))
    }

    def run(*command: object) -> str:
        done = subprocess.run(
            list(map(str, command)),
            cwd=alone,
            env=own | {"VIRTUAL_ENV": str(home)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    uv = Path(sys.executable).with_name("uv")
    run(uv, "venv", "--quiet", "--python", sys.executable, home)
    run(uv, "pip", "install", "--quiet", "--requirements", "requirements.txt")
    installed = {line.split("==")[0] for line in run(uv, "pip", "freeze").splitlines()}
    assert not installed & {"housemlops", "scikit-learn", "pandas", "mlflow"}
    assert (
        sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
        < 250 * 2**20
    )
    assert "OK" in run(home / "bin/python", "test_server.py")


def test_generated_again_it_is_the_same_bytes(sample):
    from housemlops.settings import folder_sha256

    code = "import sys; from housemlops.serve import run_serve; run_serve(sys.argv[1], 'sample')"

    current = sample.state / "serve/current"

    def generate() -> str:
        shutil.rmtree(current.resolve())
        subprocess.run(
            [sys.executable, "-c", code, sample.build],
            cwd=sample.path,
            env=sample.environ,
            check=True,
        )
        return folder_sha256(current.resolve())

    assert generate() == generate()
