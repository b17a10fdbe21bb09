"Secrets of the environment and of settings.ini stay there: after a run, a failed stage and the site, no file holds one."

import base64
import gzip
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from checkout import CANARIES, SECRETS, Checkout

pytestmark = pytest.mark.slow


def forms(secret: str) -> list[bytes]:
    "How a secret may be written: as it is, in an address, in base64 at any offset"
    shifted = [
        base64.b64encode(b"-" * skip + secret.encode())[4:-4] for skip in range(3)
    ]
    return [secret.encode(), quote(secret, safe="").encode(), *shifted]


def texts(path: Path) -> Iterator[bytes]:
    "A file's bytes, and what they unpack to"
    yield (data := path.read_bytes())
    if data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    if data[:2] == b"PK":
        import zipfile

        with zipfile.ZipFile(path) as packed:
            yield from map(packed.read, packed.namelist())


def leaks(folders: list[Path], canaries: dict[str, str]) -> list[str]:  # "name in file"
    "Which secret is in which file; a workspace has a copy of settings.ini, and that is no leak"
    files = [
        path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name != "settings.ini"
    ]
    assert files
    wanted = {name: forms(secret) for name, secret in canaries.items()}
    return [
        f"{name} in {path}"
        for path in files
        for text in texts(path)
        for name, written in wanted.items()
        if any(form in text for form in written)
    ]


def test_a_leak_would_be_found(tmp_path):
    secret = CANARIES["aws"]
    (tmp_path / "a.json").write_text(f'{{"key": "{secret}"}}')
    (tmp_path / "b.html").write_text(f'<a href="http://x/{quote(secret, safe="")}">')
    (tmp_path / "c.log.gz").write_bytes(gzip.compress(f"key {secret}".encode()))
    (tmp_path / "d.txt").write_text(
        base64.b64encode(f"Basic me:{secret}".encode()).decode()
    )
    (tmp_path / "settings.ini").write_text(secret)
    assert [
        Path(leak.partition(" in ")[2]).name for leak in leaks([tmp_path], CANARIES)
    ] == ["a.json", "b.html", "c.log.gz", "d.txt"]


def shown(text: str, canaries: dict[str, str] = CANARIES) -> list[str]:
    "The secrets that a text shows"
    return [name for name, secret in canaries.items() if secret in text]


def test_no_secret_in_what_runs_leave(learner):
    "Executed notebooks, logs, databases, MLflow artefacts, the generated server, the site; of all runs of this checkout so far"
    code, text = learner.housemlops("docs")
    assert code == 0, text
    assert shown(learner.first_text + text) == []
    assert leaks([learner.path / "var"], CANARIES) == []
    for part in (
        "latest/reports/train.html",
        "mlflow/mlflow.db",
        "airflow/logs",
        "serve/current",
        "site/index.html",
    ):
        assert (learner.path / "var" / part).exists(), part


def test_no_password_of_the_prediction_log_in_what_a_run_leaves(
    learner, need, tmp_path, monkeypatch
):
    import postgres

    need("initdb")
    canaries = {"database": f"canary-{secrets.token_hex(12)}"}
    monkeypatch.setattr(postgres, "PASSWORD", canaries["database"])
    with postgres.postgres(tmp_path) as url:
        with_database = Checkout(
            learner.path, SECRETS | {"HOUSEMLOPS_SERVER_DATABASE_URL": url}
        )
        done, text = with_database.run("--force", "serve")
    assert done["serve"] == "ran" and shown(text, canaries) == [], text
    assert leaks([learner.path / "var"], canaries) == []


def test_no_secret_in_what_a_failed_stage_leaves(learner):
    "With the traceback of a notebook that stopped in the middle"
    workspace = (learner.path / "var/latest").resolve()
    params = workspace / "params.yaml"
    params.write_text(re.sub(r"(?m)^( +trees:).*", r"\1 -1", params.read_text()))
    done = subprocess.run(
        [Path(sys.executable).with_name("housemlops"), "stage", "train"],
        cwd=workspace,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=learner.environ
        | {
            "PYTHONPATH": str(workspace),
            "HOUSEMLOPS_PATHS_STATE": str(learner.path / "var"),
        },
    )
    assert done.returncode == 1 and "Stopped: train" in done.stdout, done.stdout
    assert shown(done.stdout) == []
    assert (workspace / "reports/train.failed.html").exists()
    assert leaks([learner.path / "var"], CANARIES) == []
