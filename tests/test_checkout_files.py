"""A checkout has the same bytes on every machine, also where git is set to write CRLF."""

import subprocess
from pathlib import Path

import pytest

from checkout import ROOT

SCRIPTS = [
    "Makefile",
    ".ci/run",
    "*.sh",
    "*.py",
    "*.lock",
    "*.in",
    "*.yaml",
    "*.ipynb",
]
TABLE = b"price,rooms\r\n100,3\r\n"  # as a spreadsheet may write it


def git(folder: Path, *arguments: str, given: bytes = b"") -> bytes:
    """Run git in a folder and return what it prints."""
    return subprocess.run(
        ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", *arguments],
        cwd=folder,
        input=given,
        check=True,
        capture_output=True,
    ).stdout


@pytest.fixture(scope="module")
def crlf_clone(tmp_path_factory) -> Path:
    """Clone the committed state as git for Windows does by default."""
    path = tmp_path_factory.mktemp("crlf") / "clone"
    crlf = ["--config", "core.autocrlf=true"]
    git(ROOT, "clone", "--quiet", "--shared", *crlf, str(ROOT), str(path))
    return path


def test_scripts_locks_and_notebooks_have_no_carriage_return(crlf_clone):
    names = git(crlf_clone, "ls-files", "-z", *SCRIPTS).decode().split("\0")[:-1]
    assert {"Makefile", ".ci/run", "deploy/bootstrap/up.sh", "requirements.lock"} <= {
        *names
    }
    assert [name for name in names if b"\r" in (crlf_clone / name).read_bytes()] == []


def test_every_file_has_the_bytes_that_git_holds(crlf_clone):
    names, blobs = [], []
    for entry in git(crlf_clone, "ls-files", "--stage", "-z").decode().split("\0")[:-1]:
        about, name = entry.split("\t")
        mode, blob, _ = about.split(" ")
        if mode == "120000":  # a link: git holds its target
            continue
        names.append(name)
        blobs.append(blob)
    assert "data/sample.csv" in names
    hashed = git(
        crlf_clone,
        *("hash-object", "--no-filters", "--stdin-paths"),
        given="\n".join(names).encode(),
    )
    assert dict(zip(names, hashed.decode().split())) == dict(zip(names, blobs))
    assert git(crlf_clone, "status", "--porcelain") == b""


@pytest.mark.parametrize("name", ["data/mine.csv", "data/remote/files/md5/00/11"])
def test_a_table_keeps_its_own_line_ends(crlf_clone, name):
    path = crlf_clone / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(TABLE)
    git(crlf_clone, "add", "--force", name)
    assert git(crlf_clone, "cat-file", "blob", f":{name}") == TABLE
    git(crlf_clone, "rm", "--quiet", "--force", name)
