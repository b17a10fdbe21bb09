"""Ask git and the checkout which code and which data a folder holds."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from housemlops.processes import run_captured
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


def head_commit(root: Path) -> str:
    """Return the hash of HEAD.

    Raises:
        WorkbookError: When the folder is not the top of a checkout, or has no commit.
    """
    try:
        top = git("rev-parse", "--show-toplevel", root=root)
    except WorkbookError as error:
        raise WorkbookError(
            f"{root.name} is not a git checkout that can be read ({error}); a run needs "
            "one: clone the repository, or run 'git init' and commit."
        ) from None
    if Path(top).resolve() != root.resolve():
        raise WorkbookError(
            f"{root.name} is a folder inside the git checkout {Path(top).name}; a run "
            "needs a checkout of its own."
        )
    try:
        return git("rev-parse", "--verify", "HEAD", root=root)
    except WorkbookError:
        raise WorkbookError(
            f"{root.name} has no commit yet; commit once, then run."
        ) from None


def working_tree(root: Path) -> str:
    """Return the hash of a git tree that holds the checkout as it is now.

    It is written with a copy of the index, so that git status stays as it is.
    """
    index = git("rev-parse", "--path-format=absolute", "--git-path", "index", root=root)
    with TemporaryDirectory() as scratch:
        copy = shutil.copy(index, scratch)
        git("add", "--all", root=root, GIT_INDEX_FILE=copy)
        return git("write-tree", root=root, GIT_INDEX_FILE=copy)


def snapshot(root: Path) -> tuple[str, list[str]]:
    """Commit the checkout as it is now, without changing a branch, the index or a file.

    Returns:
        The commit, and the files that differ from HEAD.
    """
    head, tree = head_commit(root), working_tree(root)
    differing = git("diff", "--name-only", head, tree, root=root).splitlines()
    changed = changed_inputs(differing)
    if not changed:
        return head, []
    date = git("show", "-s", "--format=%cI", head, root=root)
    author = {}
    for role in ("AUTHOR", "COMMITTER"):
        author[f"GIT_{role}_NAME"] = "housemlops"
        author[f"GIT_{role}_EMAIL"] = "housemlops@localhost"
        author[f"GIT_{role}_DATE"] = date
    message = "Snapshot of uncommitted edits"
    command = ["commit-tree", tree, "-p", head, "-m", message]
    return git(*command, root=root, **author), changed


def dvc(*arguments: str, root: Path) -> None:
    """Run a DVC command, without showing its output.

    Raises:
        WorkbookError: With DVC's error, when the command fails.
    """
    done = run_captured([sys.executable, "-m", "dvc", *arguments], cwd=root)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        error = (lines or ["no message"])[0].removeprefix("ERROR: ")
        raise WorkbookError(f"dvc {arguments[0]} failed: {error}")
