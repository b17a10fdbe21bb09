"""Make a workspace on a machine that has only git and the DVC remote."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from housemlops.core.repository import git
from housemlops.orchestrate import (
    dvc,
    head_commit,
    ready_sources,
    set_as_of,
)
from housemlops.settings import (
    WorkbookError,
    params,
    settings,
)


def fetch_code(source: str, commit: str, workspace: Path, **variables: str):
    """One commit of the code, without its history, as a git checkout.

    Args:
        source: Git URL.
        commit: Hash.
        workspace: Made; must not exist.
        **variables: More of git's environment.
    """
    workspace.mkdir(parents=True)
    git("init", "--quiet", root=workspace)
    try:
        git(
            "fetch",
            "--quiet",
            "--depth",
            "1",
            source,
            commit,
            root=workspace,
            **variables,
        )
    except WorkbookError as error:
        raise WorkbookError(
            f"{source} does not give the commit {commit[:10]} ({error}); push it there, or correct `code` in section [apart] of settings.ini."
        ) from None
    git("checkout", "--quiet", "--detach", "FETCH_HEAD", root=workspace)


def copy_code(root: Path, workspace: Path):
    """The code that is here already, as a git checkout of its own.

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
    git(
        "-c",
        "user.name=housemlops",
        "-c",
        "user.email=housemlops@localhost",
        "commit",
        "--quiet",
        "--message",
        "The copy of the image",
        root=workspace,
    )


def point_dvc(root: Path, workspace: Path):
    """Give a checkout the shared DVC remote and a cache of its own.

    Args:
        root: Where the settings are.
        workspace: A checkout.
    """
    state, remote = settings(root).paths.state, settings(root).apart.remote
    if not remote:
        raise WorkbookError(
            "Tasks that share no disk hand on their data through a DVC remote: write its URL as `remote` into section [apart] of settings.ini."
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


def fetch_ledger(workspace: Path):
    """The ledger of the data set: from the remote that travels with the code, or else from the shared one.

    Args:
        workspace: Pointed at the shared remote.
    """
    from configparser import ConfigParser

    if not (
        workspace / (name := f"data/{params(workspace).get('dataset')}.csv.dvc")
    ).exists():
        return
    committed = ConfigParser(interpolation=None)
    committed.read(workspace / ".dvc/config")
    try:
        dvc(
            "pull",
            "--remote",
            committed.get("core", "remote", fallback="apart"),
            name,
            root=workspace,
        )
    except WorkbookError:
        dvc("pull", name, root=workspace)


BUILT_FROM = "HOUSEMLOPS_COMMIT"  # variable of an image: the commit that it holds


def make_ready(root: Path, workspace: Path, conf: dict):
    """A checkout in which a stage of a run can work.

    Args:
        root: Where the settings are.
        workspace: Made; must not exist.
        conf: Of the run: workspace, as_of, commit, branch, uncommitted.
    """
    source = settings(root).apart.code
    commit = (
        conf.get("commit")
        or os.environ.get(BUILT_FROM)
        or ("" if not source else head_commit(root))
    )
    fetch_code(source, commit, workspace) if source else copy_code(root, workspace)
    ready_sources(
        root,
        workspace,
        commit or git("rev-parse", "HEAD^{tree}", root=workspace),
        conf.get("uncommitted", []),
    )
    set_as_of(workspace, conf["as_of"])
    point_dvc(root, workspace)
    fetch_ledger(workspace)
    found = {
        "git_commit": commit,
        "git_branch": conf.get("branch", ""),
        "uncommitted": conf.get("uncommitted", []),
        "lifecycle": conf["workspace"],
    }
    (workspace / "lineage.json").write_text(json.dumps(found, indent=1))


@contextlib.contextmanager
def empty_folder(home: Path, stage: str) -> Iterator[Path]:
    """A folder for one task, removed after it; what killed tasks left is removed, too.

    Args:
        home: Of such folders.
        stage: Its name.

    Returns:
        Does not exist yet.
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
