"""Make a workspace on a machine that has only git and the DVC remote."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

from housemlops.core.files import write_json
from housemlops.core.repository import dvc, git, head_commit
from housemlops.pipeline.export import prepare_sources
from housemlops.pipeline.workspace import set_as_of
from housemlops.settings import (
    WorkbookError,
    params,
    settings,
)


def fetch_code(source: str, commit: str, workspace: Path, **variables: str):
    """Fetch one commit of the code, without its history, as a git checkout.

    Args:
        source: Git URL.
        commit: Hash.
        workspace: Made; must not exist.
        **variables: More of git's environment.

    Raises:
        WorkbookError: When the repository does not have the commit.
    """
    workspace.mkdir(parents=True)
    git("init", "--quiet", root=workspace)
    try:
        command = ["fetch", "--quiet", "--depth", "1", source, commit]
        git(*command, root=workspace, **variables)
    except WorkbookError as error:
        raise WorkbookError(
            f"{source} does not give the commit {commit[:10]} ({error}); push it there, "
            "or correct `code` in section [apart] of settings.ini."
        ) from None
    git("checkout", "--quiet", "--detach", "FETCH_HEAD", root=workspace)


def copy_code(root: Path, workspace: Path):
    """Copy the code that is here already into a git checkout of its own.

    Args:
        root: A copy of the code that is no git checkout, as in an image.
        workspace: Made; must not exist.
    """
    left = shutil.ignore_patterns(
        "var", "build", "reports", ".venv", ".git", "__pycache__", "cache", "tmp"
    )
    shutil.copytree(root, workspace, ignore=left)
    git("init", "--quiet", root=workspace)
    git("add", "--all", root=workspace)
    author = ["-c", "user.name=housemlops", "-c", "user.email=housemlops@localhost"]
    commit = ["commit", "--quiet", "--message", "The copy of the image"]
    git(*author, *commit, root=workspace)


def point_dvc(root: Path, workspace: Path):
    """Give a checkout the shared DVC remote and a cache of its own.

    Args:
        root: Where the settings are.
        workspace: A checkout.
    """
    state, remote = settings(root).paths.state, settings(root).apart.remote
    if not remote:
        raise WorkbookError(
            "Tasks that share no disk hand on their data through a DVC remote: write its "
            "URL as `remote` into section [apart] of settings.ini."
        )
    lines = [
        "[core]",
        "remote = apart",
        f"site_cache_dir = {state / 'dvc'}",
        "[cache]",
        f"dir = {state / 'cache'}",
        "['remote \"apart\"']",
        f"url = {remote}",
    ]
    (workspace / ".dvc/config.local").write_text("\n".join(lines) + "\n")


def fetch_ledger(workspace: Path) -> None:
    """Pull the ledger of the data set.

    The remote that travels with the code is tried first, then the shared one.

    Args:
        workspace: Pointed at the shared remote.
    """
    pointer = f"data/{params(workspace).get('dataset')}.csv.dvc"
    if not (workspace / pointer).exists():
        return
    committed = ConfigParser(interpolation=None)
    committed.read(workspace / ".dvc/config")
    remote = committed.get("core", "remote", fallback="apart")
    try:
        dvc("pull", "--remote", remote, pointer, root=workspace)
    except WorkbookError:
        dvc("pull", pointer, root=workspace)


BUILT_FROM = "HOUSEMLOPS_COMMIT"  # variable of an image: the commit that it holds


def make_ready(root: Path, workspace: Path, conf: dict) -> None:
    """Make a checkout in which a stage of a run can work.

    Args:
        root: Where the settings are.
        workspace: Made; must not exist.
        conf: Of the run: workspace, as_of, commit, branch, uncommitted.
    """
    source, changed = settings(root).apart.code, conf.get("uncommitted", [])
    commit = conf.get("commit") or os.environ.get(BUILT_FROM, "")
    if source:
        commit = commit or head_commit(root)
        fetch_code(source, commit, workspace)
    else:
        copy_code(root, workspace)
    tree = git("rev-parse", "HEAD^{tree}", root=workspace)
    prepare_sources(root, workspace, commit or tree, changed)
    set_as_of(workspace, conf["as_of"])
    point_dvc(root, workspace)
    fetch_ledger(workspace)
    lineage = {
        "git_commit": commit,
        "git_branch": conf.get("branch", ""),
        "uncommitted": changed,
        "lifecycle": conf["workspace"],
    }
    write_json(workspace / "lineage.json", lineage)


@contextlib.contextmanager
def empty_folder(home: Path, stage: str) -> Iterator[Path]:
    """Give a block a folder for one task, and remove it afterwards.

    Folders that killed tasks left are removed, too.

    Args:
        home: Of such folders.
        stage: Its name.
    """
    import psutil

    for left in home.glob("*-*"):
        if not psutil.pid_exists(int(left.name.rpartition("-")[2])):
            shutil.rmtree(left, ignore_errors=True)
    folder = home / f"{stage}-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
