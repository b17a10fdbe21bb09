"The promotion log and the hash of its newest line in MLflow: changed, cut and rewritten logs, and a stop between any two writes."

import hashlib
import json
from pathlib import Path

import mlflow
import pytest

from housemlops import promote
from housemlops.model.registry import make_name
from housemlops.promote import (
    NEWEST,
    WRITING,
    check_newest,
    read_promotions,
    record,
    record_decision,
    tag_newest_lines,
)
from housemlops.settings import WorkbookError

NAME, OTHER = "house-prices-sample", "house-prices-ames"


class Stop(Exception):
    "The machine stops."


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    "A client of an MLflow store of its own"
    home = tmp_path_factory.mktemp("store")
    return mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")


@pytest.fixture
def client(store):
    "The same without the models of another test"
    yield store
    for model in store.search_registered_models():
        store.delete_registered_model(model.name)


@pytest.fixture
def log(client, tmp_path) -> Path:
    "A log of three promotions, and one of another model in between"
    path = tmp_path / "promotions.jsonl"
    for name, version in ((NAME, 1), (NAME, 2), (OTHER, 1), (NAME, 3)):
        record_decision(client, path, name, action="promoted", version=version)
    return path


def test_a_log_that_nobody_has_touched_is_accepted(client, log):
    for name in (NAME, OTHER, "house-prices-windsor"):
        check_newest(client, log, name)
    assert len(read_promotions(log)) == 4


def last_line_changed(lines: list[bytes]) -> list[bytes]:
    return [*lines[:-1], lines[-1].replace(b'"version": 3', b'"version": 4')]


def last_line_removed(lines: list[bytes]) -> list[bytes]:
    return lines[:-1]


def last_two_removed(lines: list[bytes]) -> list[bytes]:
    return lines[:-2]


def everything_removed(lines: list[bytes]) -> list[bytes]:
    return []


def rewritten(lines: list[bytes]) -> list[bytes]:
    "All versions are others, and all links fit."
    found, before = [], ""
    for line in lines:
        entry = json.loads(line)
        entry |= {"version": entry["version"] + 7, "before": before}
        found.append(json.dumps(entry).encode())
        before = hashlib.sha256(found[-1]).hexdigest()
    return found


@pytest.mark.parametrize(
    "change",
    [
        last_line_changed,
        last_line_removed,
        last_two_removed,
        everything_removed,
        rewritten,
    ],
)
def test_a_changed_end_is_noticed(client, log, change):
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"".join(line + b"\n" for line in change(lines)))
    read_promotions(log)  # the chain alone is whole
    words = f"promotions.jsonl: .* about {NAME} .*{NEWEST}.* restore the log"
    with pytest.raises(WorkbookError, match=words):
        check_newest(client, log, NAME)
    with pytest.raises(WorkbookError, match=words):
        record_decision(client, log, NAME, action="promoted", version=4)


def test_a_changed_line_in_the_middle_is_named_by_its_number(client, log):
    log.write_bytes(log.read_bytes().replace(b'"version": 2', b'"version": 5'))
    with pytest.raises(WorkbookError, match="Line 3 of promotions.jsonl"):
        check_newest(client, log, NAME)


def test_a_line_that_continues_the_chain_by_other_means_is_noticed(client, log):
    record(log, model=NAME, action="promoted", version=4)
    with pytest.raises(WorkbookError, match="line 4 about .* is not the newest"):
        check_newest(client, log, NAME)


def test_a_log_from_before_the_tag_is_accepted_once(client, log):
    client.delete_registered_model_tag(NAME, NEWEST)
    check_newest(client, log, NAME)
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(WorkbookError, match="its last line"):
        check_newest(client, log, NAME)


@pytest.mark.parametrize("stop_at", ["announcement", "line", "tag"])
def test_a_stop_before_a_write_is_healed(client, log, monkeypatch, stop_at):
    real = type(client).set_registered_model_tag

    def set_tag(self, name, key, value):
        if key == {"announcement": WRITING, "tag": NEWEST}.get(stop_at):
            raise Stop
        real(self, name, key, value)

    def no_file(*_):
        raise Stop

    monkeypatch.setattr(type(client), "set_registered_model_tag", set_tag)
    if stop_at == "line":
        monkeypatch.setattr(promote, "open", no_file, raising=False)
    with pytest.raises(Stop):
        record_decision(client, log, NAME, action="promoted", version=4)
    monkeypatch.undo()
    check_newest(client, log, NAME)
    record_decision(client, log, NAME, action="promoted", version=5)
    check_newest(client, log, NAME)
    written = [4] if stop_at == "tag" else []
    versions = [entry["version"] for entry in read_promotions(log)]
    assert versions == [1, 2, 1, 3, *written, 5]


def test_a_line_cut_short_is_written_again(client, log):
    with log.open("ab") as file:
        file.write(b'{"time": "2026-')
    check_newest(client, log, NAME)
    record_decision(client, log, NAME, action="promoted", version=4)
    assert [entry["version"] for entry in read_promotions(log)] == [1, 2, 1, 3, 4]


def test_tags_follow_the_log_that_counts(client, log, tmp_path):
    "A worker whose decision was not kept takes the log of the one that was first."
    kept = tmp_path / "kept.jsonl"
    kept.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:2]))
    make_name(client, "house-prices-windsor")
    tag_newest_lines(client, kept)
    for name in (NAME, OTHER, "house-prices-windsor"):
        check_newest(client, kept, name)
    with pytest.raises(WorkbookError, match="line 2 about"):
        check_newest(client, log, NAME)
