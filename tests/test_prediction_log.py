"The log of predictions keeps its promise, on SQLite and on PostgreSQL alike: faults, crashes, odd text, several at once."

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import psutil
import psycopg
import pytest
from sqlalchemy import text

from housemlops.contract import load_contract
from housemlops.prediction_log import PredictionLog
from housemlops.serve import program_files
from housemlops.serving import database as log_database
from housemlops.serving import log_backup
from housemlops.serving.database import LogUnavailable
from postgres import PASSWORD, Server

ODD = """it's "odd": 50 % off? %s %(id)s ? :id \\ \\u0041 ; -- é 😀 \u2028"""
NAMES = [
    "X1st.Flr.SF",
    "50 % of :area?",
    "it's",
    'so "called"',
    "back\\slash",
    "Größe 😀",
    "%s %(id)s",
    "price",
    "Price",
    "x" * 80,
    "x" * 79 + "y",
]
CONTRACT = {
    "columns": {
        "area": {"type": "number"},
        "rooms": {"type": "integer", "role": "feature"},
        "view": {"type": "ordinal"},
        "sold": {"type": "date", "role": "date"},
        "paid": {"type": "number", "role": "target"},
        **{name: {"type": "category"} for name in NAMES},
    }
}


def prediction(**house) -> dict:
    return {
        "id": f"0123456789ab-{secrets.token_hex(8)}",
        "time": datetime.now(UTC),
        "model": "house-prices",
        "version": 3,
        "model_sha256": "0123456789ab" + 52 * "0",
        "data_md5": None,
        "route": "predict",
        "price": 212_000.25,
        "low": 190_000.5,
        "high": 230_000.0,
        "level": 0.9,
        "currency": "USD",
        "warnings": [],
        "inputs": json.dumps(house),
    }


class File:
    "SQLite, whose folder can go away and come back"

    def __init__(self, folder: Path):
        self.folder, self.away = folder / "data", folder / "away"
        self.folder.mkdir()
        self.url = f"sqlite:///{self.folder}/predictions.db?timeout=0.5"

    def stop(self) -> None:
        self.folder.rename(self.away)

    def start(self) -> None:
        self.away.rename(self.folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory, need):
    need("initdb"), need("postgres")
    server = Server(tmp_path_factory.mktemp("postgres"), "-c", "fsync=off")
    server.start()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    "An empty database: `url`, `stop()` and `start()`"
    if request.param == "sqlite":
        yield File(tmp_path)
        return
    server = request.getfixturevalue("server")
    schema, base = f"test_{secrets.token_hex(4)}", server.url
    with psycopg.connect(base) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    server.url = f"{base}?options=-csearch_path%3D{schema}"
    yield server
    server.url = base


@pytest.fixture
def log(database):
    log = PredictionLog(database.url)
    log.migrate()
    yield log
    log.close()


def ask(log: PredictionLog, sql: str) -> list[dict]:
    with log.engine.connect() as connection:
        return [dict(row) for row in connection.execute(text(sql)).mappings()]


def ids(log: PredictionLog) -> list[str]:
    return [row["id"] for row in log.read()]


def python(code: str, *arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_what_was_written_is_found(log):
    rows = [
        prediction(
            area=120.5,
            rooms=4,
            view=ODD,
            none=None,
            big=2**53,
            **dict.fromkeys(NAMES, ODD),
        )
        | {"warnings": [ODD, ""], "data_md5": "0" * 32},
        prediction(),
        prediction(area=1e-7)
        | {
            "time": datetime(
                2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=30))
            )
        },
    ]
    log.write(rows)
    for row in rows:
        assert log.find(row["id"]) == {**row, "inputs": json.loads(row["inputs"])}
    assert (
        log.find("50 % of 'x' ? :id")
        is log.find("a\x00b")
        is log.find("\ud800")
        is log.find("")
        is None
    )
    assert ids(log) == [rows[2]["id"], rows[0]["id"], rows[1]["id"]]
    assert [row["id"] for row in log.read(since=rows[0]["time"])] == [
        rows[0]["id"],
        rows[1]["id"],
    ]


def test_the_character_zero_is_replaced(log):
    row = prediction(view="a\x00b")
    log.write([row])
    assert log.find(row["id"])["inputs"] == {"view": "a\ufffdb"}


@pytest.mark.parametrize(
    "bad",
    [{"id": None}, {"price": None}, {"inputs": "{not JSON"}, {"inputs": '"\ud800"'}],
)
def test_a_group_is_whole_or_not_there(log, bad):
    good = prediction()
    for group in ([good, prediction() | bad], [prediction() | bad], [good, good]):
        with pytest.raises(LogUnavailable):
            log.write(group)
    assert ids(log) == []
    log.write([good])
    assert ids(log) == [good["id"]]


WRITER = """
import json, secrets, sys
from datetime import datetime, timezone
from housemlops.prediction_log import PredictionLog
row, log = json.loads(sys.argv[2]), PredictionLog(sys.argv[1])
while True:
    group = [row | {"id": secrets.token_hex(8), "time": datetime.now(timezone.utc)} for _ in range(8)]
    log.write(group)
    print(*(row["id"] for row in group), flush=True)
"""


def test_a_killed_writer_loses_nothing(log, database):
    child = python(
        WRITER, database.url, json.dumps(prediction(area=100) | {"time": None})
    )
    lines = [child.stdout.readline()]
    time.sleep(0.7)
    child.send_signal(signal.SIGKILL)
    rest = child.communicate()[0]
    acknowledged, logged = (lines[0] + rest[: rest.rfind("\n") + 1]).split(), ids(log)
    assert child.returncode == -signal.SIGKILL and len(acknowledged) > 50
    assert (
        {*acknowledged} <= {*logged}
        and len({*logged}) == len(logged)
        and len(logged) % 8 == 0
    )


def test_it_refuses_while_the_database_is_away_and_recovers(log, database):
    kept = [prediction() for _ in range(3)]
    log.write(kept[:1])
    assert log.find(kept[0]["id"])
    database.stop()
    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(LogUnavailable) as error:
            log.write([prediction()])
        assert (
            time.monotonic() - start < 4
            and PASSWORD not in str(error.value)
            and "\n" not in str(error.value)
        )
    with pytest.raises(LogUnavailable):
        PredictionLog(database.url).migrate()
    database.start()
    log.write(kept[1:])
    assert [log.find(row["id"])["id"] for row in kept] == [row["id"] for row in kept]


def test_a_power_cut_of_the_server_loses_nothing_that_was_acknowledged(
    server, tmp_path
):
    log, rows, refused = PredictionLog(server.url), [], 0
    log.migrate()
    stop = threading.Timer(0.4, server.stop, [signal.SIGQUIT])
    stop.start()
    while not refused:
        group = [prediction() for _ in range(4)]
        try:
            log.write(group)
        except LogUnavailable:
            refused += 1
        else:
            rows += group
    stop.join()
    server.start()
    log.write([prediction()])
    logged = ids(log)
    assert (
        rows
        and {row["id"] for row in rows} <= {*logged}
        and len(logged) == len({*logged})
    )
    log.close()


def test_a_restart_at_night_refuses_nobody(server):
    log, rows = PredictionLog(server.url), [prediction(), prediction()]
    log.write(rows[:1])
    server.stop()
    server.start()
    log.write(rows[1:])
    assert log.find(rows[0]["id"]) and log.find(rows[1]["id"])
    log.close()


def test_a_connection_insists_on_what_an_administrator_switched_off(server):
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("ALTER ROLE house SET synchronous_commit = off")
    log = PredictionLog(server.url)
    assert ask(
        log,
        "SELECT current_setting('synchronous_commit') AS value, current_setting('statement_timeout') AS most",
    ) == [{"value": "on", "most": "5s"}]
    log.close()


def test_a_locked_file_is_waited_for_and_then_refused(tmp_path):
    log, other = (
        PredictionLog(File(tmp_path).url),
        PredictionLog(f"sqlite:///{tmp_path}/data/predictions.db"),
    )
    log.write([prediction()])
    with other.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(LogUnavailable, match="locked"):
            log.write([prediction()])
        connection.rollback()
    log.write([prediction()])
    assert len(ids(log)) == 2
    log.close(), other.close()


def test_a_removed_file_is_noticed(tmp_path):
    log = PredictionLog(File(tmp_path).url)
    log.write([prediction()])
    (tmp_path / "data/predictions.db").unlink()
    with pytest.raises(LogUnavailable):
        log.write([prediction()])
    row = prediction()
    log.write([row])
    assert ids(log) == [row["id"]]
    log.close()


def test_a_file_and_those_beside_it_are_their_owners_alone(tmp_path):
    log = PredictionLog(File(tmp_path).url)
    log.write([prediction()])
    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "data").iterdir()}
    assert len(modes) == 3 and {*modes.values()} == {0o600}, modes
    log.close()


DAMAGES = {
    "a backup copied over it": lambda file, old: file.write_bytes(old),
    "cut short": lambda file, old: os.truncate(file, 0),
    "cut in the middle": lambda file, old: os.truncate(file, 8192),
    "overwritten": lambda file, old: file.write_bytes(os.urandom(1 << 20)),
    "removed": lambda file, old: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("tidied", [True, False])
def test_a_damaged_file_is_noticed_before_more_is_acknowledged(
    tmp_path, damage, tidied
):
    log, file = PredictionLog(File(tmp_path).url), tmp_path / "data/predictions.db"
    log.write([prediction(text="x" * 300) for _ in range(500)])
    log_backup.backup(str(log.url).split("?")[0], tmp_path / "backup.db")
    log.check(), log.checkpoint()
    kept = [prediction(text="y" * 300) for _ in range(50)]
    for row in kept:
        log.write([row])
    log.check()
    if tidied:
        log.checkpoint()
    damage(file, (tmp_path / "backup.db").read_bytes())
    with pytest.raises(LogUnavailable) as error:
        log.check()
    assert str(tmp_path) not in error.value.reason
    acknowledged = []
    for _ in range(3):  # it goes on only with a file that is sound
        row = prediction()
        try:
            log.write([row])
            log.check()
        except LogUnavailable:
            continue
        acknowledged.append(row["id"])
    log.close()
    if acknowledged:
        fresh = PredictionLog(str(log.url))
        assert {*acknowledged} <= {*ids(fresh)}
        fresh.close()
        assert log_backup.count_predictions(file) >= len(acknowledged)


def test_rows_that_were_deleted_are_no_damage_for_long(log):
    rows = [prediction() for _ in range(3)]
    log.write(rows)
    log.check()
    with log.engine.begin() as connection:
        connection.execute(text("DELETE FROM predictions"))
    with pytest.raises(LogUnavailable):
        log.check()
    log.migrate()
    log.write(rows[:1])
    log.check()
    assert ids(log) == [rows[0]["id"]]


def test_purged_rows_are_not_missed(log):
    log.write([prediction() | {"time": datetime.now(UTC) - timedelta(days=60)}])
    log.check()
    assert log.purge(30) == 1
    log.check()


def write_program(folder: Path) -> None:
    "The generated program, without a model"
    for name, source in program_files(load_contract("windsor")).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")


def command(action: str, file: Path, url: str, folder: Path) -> subprocess.Popen:
    "`python -m serving.log_backup`, in a folder of its own"
    write_program(folder)
    return subprocess.run(
        [sys.executable, "-m", "serving.log_backup", action, str(file)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "", "HOUSE_DATABASE_URL": url},
        capture_output=True,
        text=True,
    )


def test_backup_and_restore(tmp_path):
    (tmp_path / "program").mkdir()
    backup, url = tmp_path / "backup.db", f"sqlite:///{tmp_path}/predictions.db"

    def run(action: str, file: Path = backup) -> tuple[int, str]:
        done = command(action, file, url, tmp_path / "program")
        assert len((done.stdout + done.stderr).splitlines()) == 1, done
        return done.returncode, done.stdout + done.stderr

    assert run("backup")[0] == 1, "there is no log yet"
    log, rows = PredictionLog(url), [prediction() for _ in range(3)]
    log.write(rows[:2])
    assert run("backup") == (0, "backup: 2 predictions, backup.db\n")
    assert backup.stat().st_mode & 0o777 == 0o600
    assert "exists already" in run("backup")[1]
    log.write(rows[2:])
    assert "is in use" in run("restore")[1]
    log.close()
    (tmp_path / "no.db").write_bytes(b"x" * 5000)
    assert "no sound prediction log" in run("restore", tmp_path / "no.db")[1]
    (tmp_path / "predictions.db").write_bytes(b"garbage" * 5000)
    assert run("restore") == (0, "restore: 2 predictions, backup.db\n")
    log = PredictionLog(url)
    assert {*ids(log)} == {row["id"] for row in rows[:2]}
    log.write(rows[2:])
    log.close()
    assert (tmp_path / "predictions.db").stat().st_mode & 0o777 == 0o600
    aside = list(tmp_path.glob("predictions.db.replaced-*"))
    assert len(aside) == 1 and aside[0].read_bytes().startswith(b"garbage")
    with pytest.raises(LogUnavailable, match="pg_dump"):
        log_backup.backup("postgresql://u@h/d", tmp_path / "other.db")


def refused_within(seconds: float, act) -> None:
    began = time.monotonic()
    with pytest.raises(LogUnavailable):
        act()
    assert time.monotonic() - began < seconds


def test_a_database_that_accepts_and_never_answers_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://house@127.0.0.1:{silent.getsockname()[1]}/d"
        refused_within(10, PredictionLog(url).migrate)


def family(process: subprocess.Popen) -> list[psutil.Process]:
    found = psutil.Process(process.pid)
    return [found, *found.children(recursive=True)]


@pytest.mark.slow
def test_a_database_that_hangs_is_given_up(server, monkeypatch):
    monkeypatch.setattr(log_database, "TIMEOUT", 0.5)
    log, rows = PredictionLog(server.url), [prediction() for _ in range(3)]
    log.migrate()
    log.write(rows[:1])
    log.check()
    stopped = family(server.process)
    for process in stopped:
        process.suspend()
    try:
        refused_within(10, lambda: log.write(rows[1:2]))
        refused_within(10, lambda: log.find(rows[0]["id"]))
    finally:
        for process in stopped:
            process.resume()
    log.write(rows[2:])
    log.check()
    assert log.find(rows[0]["id"]) and log.find(rows[2]["id"])
    log.close()


def test_several_write_read_and_purge_at_once(log, database):
    old = [
        prediction() | {"time": datetime.now(UTC) - timedelta(days=60)}
        for _ in range(1200)
    ]
    log.write(old)
    second = PredictionLog(database.url)
    groups = [[prediction() for _ in range(5)] for _ in range(80)]
    with ThreadPoolExecutor(8) as pool:
        writes = [
            pool.submit((log, second)[i % 2].write, group)
            for i, group in enumerate(groups)
        ]
        purged, reads = (
            pool.submit(log.purge, 30),
            [pool.submit(second.find, row["id"]) for row in old[::300]],
        )
        for task in (*writes, *reads):
            task.result()
        assert purged.result() == len(old)
    assert sorted(ids(second)) == sorted(row["id"] for group in groups for row in group)
    second.close()


START = """
import sys
from housemlops.prediction_log import PredictionLog
log = PredictionLog(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
log.migrate()
log.make_view({"columns": {"area": {"type": "number"}}})
print(log.migrate(), "alembic" in sys.modules)
"""


def test_many_may_start_at_once(database):
    children = [python(START, database.url, stdin=subprocess.PIPE) for _ in range(4)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n"), child.stdin.flush()
    answers = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0] * 4, answers
    late = python(START, database.url, stdin=subprocess.PIPE).communicate("go\n")
    assert late == ("ready\nNone False\n", ""), (
        "alembic is imported only when there is something to do"
    )


def test_a_newer_database_is_left_alone(log):
    with log.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0999'"))
    with pytest.raises(LogUnavailable, match="newer version"):
        log.migrate()


def test_the_view_has_typed_columns_under_their_own_names(log):
    log.make_view(CONTRACT)
    log.write(
        [
            prediction(
                area=120,
                rooms=4,
                view="fine",
                sold="2010-07",
                paid=1,
                **{name: f"{name}!" for name in NAMES},
            ),
            prediction(area="large", rooms=10**30, view=7),
            prediction(),
        ]
    )
    first, second, third = ask(log, "SELECT * FROM houses ORDER BY time")
    assert (
        first["area"],
        type(first["area"]),
        first["rooms"],
        type(first["rooms"]),
    ) == (120.0, float, 4, int)
    assert (first["view"], first["sold"], first["price"]) == (
        "fine",
        "2010-07",
        212_000.25,
    )
    assert [*first.values()][-len(NAMES) :] == [f"{name}!" for name in NAMES]
    assert (
        len(first) == 7 + 4 + len(NAMES)
        and [*first][11:14] == NAMES[:3]
        and "paid" not in first
    )
    assert (second["area"], second["view"]) == (None, "7")
    assert [*third.values()][7:] == [None] * (4 + len(NAMES))
    assert ask(
        log, "SELECT count(*) AS n FROM houses WHERE area > 100 AND time > '2020-01-01'"
    ) == [{"n": 1}]


def test_the_view_follows_the_contract(log):
    assert log.make_view(CONTRACT) and not log.make_view(CONTRACT)
    other = {"columns": {"view": {"type": "number"}, "garden": {"type": "category"}}}
    assert log.make_view(other) and not log.make_view(other)
    log.write([prediction(view="fine", garden="wild")])
    [row] = ask(log, "SELECT * FROM houses")
    assert (row["view"], row["garden"]) == (None, "wild")


def test_purge_deletes_what_is_old_and_nothing_else(log):
    now = datetime.now(UTC)
    rows = [
        prediction(view="secret of a house") | {"time": now - timedelta(days=age)}
        for age in (0, 1, 29.9, 30.1, 400)
        for _ in range(260)
    ]
    log.write(rows)
    assert log.purge(0) == 0
    assert log.purge(30) == 520 and log.purge(30) == 0
    assert (
        min(row["time"] for row in log.read()) > now - timedelta(days=30)
        and len(ids(log)) == 780
    )


def test_it_works_in_a_folder_of_its_own(tmp_path):
    write_program(tmp_path)
    code = "import sys; from serving.prediction_log import PredictionLog; PredictionLog('sqlite:///predictions.db').migrate(); print('housemlops' in sys.modules, 'psycopg' in sys.modules)"
    child = python(code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""})
    assert child.communicate() == ("False False\n", "")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "predictions.db",
        "mysql://u:p@h/d",
        "sqlite://",
        "sqlite:///:memory:",
        f"postgresql://u:a/{PASSWORD}@h/d",
        f"postgresql://u:a@{PASSWORD}@h/d",
        f"postgresql://u:{PASSWORD}@h:port/d",
        f"postgresql://house:{PASSWORD}@127.0.0.1:9/d",
        f"postgresql://127.0.0.1:9/d?password={PASSWORD}",
        "sqlite:////nowhere/at/all.db",
    ],
)
def test_an_unusable_database_is_one_sentence(url):
    with pytest.raises(LogUnavailable) as error:
        PredictionLog(url).migrate()
    assert (
        PASSWORD not in str(error.value)
        and "\n" not in str(error.value)
        and len(str(error.value)) > 30
    )


def test_a_password_is_not_repeated(server):
    log = PredictionLog(server.url)
    assert "no *** here" in str(
        log._unavailable(OSError(f"no {PASSWORD} here\nnor there"))
    )
    with pytest.raises(LogUnavailable) as error:
        PredictionLog(server.url.replace(PASSWORD, "my-other-secret")).migrate()
    assert "authentication failed" in str(error.value) and "my-other-secret" not in str(
        error.value
    )
