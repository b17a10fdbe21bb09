"""Ask git and the checkout which code and which data a folder holds."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from housemlops.settings import WorkbookError


def git(*arguments: str, root: Path, **environment: str) -> str:
    """Run a git command, without hooks and without the variables of an outer git command.

    Args:
        arguments: Of the git command.
        root: Working directory.
        environment: More variables.

    Returns:
        Its standard output.

    Raises:
        WorkbookError: With git's last line, when the command fails.
    """
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith("GIT_")
    }
    command = [
        "git",
        "-c",
        "core.hooksPath=/dev/null",
        "-c",
        "core.quotePath=off",
        *arguments,
    ]
    done = subprocess.run(
        command, cwd=root, env=clean | environment, capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise WorkbookError(f"git {arguments[0]} says: {last}")
    return done.stdout.rstrip()


def changed_inputs(files: Iterable[str]) -> list[str]:
    """Return the changed files that can change a result: all but dvc.lock, which is one."""
    return [file for file in files if file != "dvc.lock"]


def code_lineage(root: Path) -> dict:
    """Return which code a workspace or checkout holds.

    Returns:
        git_commit, git_branch, uncommitted (files) and lifecycle (its run, or "").
    """
    if (root / "lineage.json").exists():
        return json.loads((root / "lineage.json").read_text(encoding="utf-8"))
    try:
        status = git("status", "--porcelain", root=root).splitlines()
        return {
            "git_commit": git("rev-parse", "HEAD", root=root),
            "git_branch": git("branch", "--show-current", root=root),
            "uncommitted": changed_inputs(line[3:] for line in status),
            "lifecycle": "",
        }
    except WorkbookError:
        return {"git_commit": "", "git_branch": "", "uncommitted": [], "lifecycle": ""}


def data_md5(root: Path, dataset: str) -> str:
    """Return DVC's hash of a ledger as it is now, or "" when it is not there."""
    ledger = root / f"data/{dataset}.csv"
    return hashlib.md5(ledger.read_bytes()).hexdigest() if ledger.exists() else ""
