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

from checkout import Checkout, clone

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


@pytest.fixture(scope="module")
def canaries() -> dict[str, str]:
    return {
        name: f"canary/{secrets.token_hex(12)}"
        for name in ("webhook", "smtp", "aws", "tracking", "token", "sender")
    } | {"database": f"canary-{secrets.token_hex(12)}"}


@pytest.fixture(scope="module")
def house(canaries, need, tmp_path_factory) -> Iterator[Checkout]:
    "A checkout full of secrets, with its prediction log in PostgreSQL, that ran the lifecycle"
    import postgres

    need("initdb")
    home = tmp_path_factory.mktemp("canary")
    checkout = clone(home / "workbook")
    checkout.environ |= {
        "HOUSEMLOPS_ALERTS_WEBHOOK": f"http://127.0.0.1:9/hooks/{canaries['webhook']}",
        "AIRFLOW_CONN_SMTP_DEFAULT": f"smtp://me:{quote(canaries['smtp'], safe='')}@127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "example",
        "AWS_SECRET_ACCESS_KEY": canaries["aws"],
        "MLFLOW_TRACKING_PASSWORD": canaries["tracking"],
        "GIT_TOKEN": canaries["token"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres, "PASSWORD", canaries["database"])
        with postgres.postgres(home) as url:
            ini = checkout.path / "settings.ini"
            kept = re.sub(
                r"(?m)^sender =.*",
                f"sender = {canaries['sender']}@localhost",
                re.sub(
                    r"(?m)^database_url =.*", f"database_url = {url}", ini.read_text()
                ),
            )
            assert url in kept and canaries["sender"] in kept
            ini.write_text(kept)
            done, checkout.text = checkout.run()
            assert set(done.values()) == {"ran"}, checkout.text
            yield checkout


def test_a_leak_would_be_found(tmp_path, canaries):
    secret = canaries["aws"]
    (tmp_path / "a.json").write_text(f'{{"key": "{secret}"}}')
    (tmp_path / "b.html").write_text(f'<a href="http://x/{quote(secret, safe="")}">')
    (tmp_path / "c.log.gz").write_bytes(gzip.compress(f"key {secret}".encode()))
    (tmp_path / "d.txt").write_text(
        base64.b64encode(f"Basic me:{secret}".encode()).decode()
    )
    (tmp_path / "settings.ini").write_text(secret)
    assert [
        Path(leak.partition(" in ")[2]).name for leak in leaks([tmp_path], canaries)
    ] == ["a.json", "b.html", "c.log.gz", "d.txt"]


def test_no_secret_in_what_a_run_leaves(house, canaries):
    "Executed notebooks, logs, databases, MLflow artefacts, the generated server, the site"
    found, text = house.housemlops("docs")
    assert found == 0, text
    assert [
        name for name, secret in canaries.items() if secret in house.text + text
    ] == []
    assert leaks([house.path / "var"], canaries) == []
    for part in (
        "latest/reports/train.html",
        "mlflow/mlflow.db",
        "airflow/logs",
        "serve/current",
        "site/index.html",
    ):
        assert (house.path / "var" / part).exists(), part


def test_no_secret_in_what_a_failed_stage_leaves(house, canaries):
    "With the traceback of a notebook that stopped in the middle"
    workspace = (house.path / "var/latest").resolve()
    params = workspace / "params.yaml"
    params.write_text(re.sub(r"(?m)^( +trees:).*", r"\1 -1", params.read_text()))
    done = subprocess.run(
        [Path(sys.executable).with_name("housemlops"), "stage", "train"],
        cwd=workspace,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=house.environ
        | {
            "PYTHONPATH": str(workspace),
            "HOUSEMLOPS_PATHS_STATE": str(house.path / "var"),
        },
    )
    assert (
        done.returncode == 1
        and "Stopped: train" in done.stdout
        and [name for name, secret in canaries.items() if secret in done.stdout] == []
    ), done.stdout
    assert (workspace / "reports/train.failed.html").exists() and leaks(
        [house.path / "var"], canaries
    ) == []
