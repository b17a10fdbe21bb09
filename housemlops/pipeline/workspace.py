"""Give each run a git worktree of its own, with DVC's cache shared."""

import hashlib
import os
import re
import shutil
import time
from configparser import ConfigParser
from pathlib import Path

from housemlops.core.files import write_json
from housemlops.core.repository import data_md5, dvc, git, head_commit, snapshot
from housemlops.pipeline.export import prepare_sources
from housemlops.settings import params, settings

DAY = 86_400  # seconds


def share_cache(root: Path, workspace: Path) -> None:
    """Give a worktree the checkout's DVC cache and its private remote settings."""
    local = ConfigParser(interpolation=None)
    local.read(root / ".dvc/config.local")
    site_cache = str(settings(root).paths.state / "dvc")
    local.read_dict({"cache": {"dir": str(root / ".dvc/cache")}})
    local.read_dict({"core": {"site_cache_dir": site_cache}})
    with (workspace / ".dvc/config.local").open("w") as file:
        local.write(file)


def place_ledger(root: Path, workspace: Path, edits: bool) -> list[str]:
    """Put the DVC-tracked ledger of the data set into a worktree.

    It is copied from the checkout, or from DVC's cache, where it is the version that the
    commit asks for, and pulled otherwise.

    Args:
        root: Checkout.
        workspace: Its worktree.
        edits: Take a ledger that was edited in the checkout.

    Returns:
        The edited ledgers that were taken.
    """
    from ruamel.yaml import YAML

    dataset = params(workspace).get("dataset")
    name = f"data/{dataset}.csv"
    pointer, theirs, mine = workspace / f"{name}.dvc", root / name, workspace / name
    if not pointer.exists():
        return []
    wanted = YAML(typ="safe").load(pointer.read_text())["outs"][0]["md5"]
    if theirs.exists() and data_md5(root, dataset) == wanted:
        shutil.copyfile(theirs, mine)
        return []
    if edits and theirs.exists():
        shutil.copyfile(theirs, mine)
        dvc("add", name, root=workspace)
        return [name]
    cached = root / f".dvc/cache/files/md5/{wanted[:2]}/{wanted[2:]}"
    if cached.exists() and hashlib.md5(cached.read_bytes()).hexdigest() == wanted:
        shutil.copyfile(cached, mine)
    else:
        dvc("pull", f"{name}.dvc", root=workspace)
    return []


def set_as_of(workspace: Path, as_of: str) -> None:
    """Write a month, YYYY-MM, into params.yaml and keep its comments."""
    from ruamel.yaml import YAML

    yaml, path = YAML(), workspace / "params.yaml"
    yaml.preserve_quotes = True
    content = yaml.load(path.read_text(encoding="utf-8"))
    if str(content.get("as_of")) == as_of:
        return
    content["as_of"] = as_of
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


def run_name(run: str) -> str:
    """Return the id of a DAG run as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", run)


def workspace_path(root: Path, run: str) -> Path:
    """Return the folder in which a DAG run works."""
    return settings(root).paths.state / "workspaces" / run_name(run)


def fill_workspace(
    root: Path, workspace: Path, commit: str, as_of: str, changed: list[str]
) -> None:
    """Make a worktree at a commit that is ready but for its ledger.

    Args:
        root: Checkout.
        workspace: Folder; what is there is removed.
        commit: Hash.
        as_of: Month, YYYY-MM.
        changed: Files with uncommitted edits when the commit was made.
    """
    shutil.rmtree(workspace, ignore_errors=True)
    git("worktree", "prune", root=root)
    git("worktree", "add", "--detach", str(workspace), commit, root=root)
    prepare_sources(root, workspace, commit, changed)
    set_as_of(workspace, as_of)
    share_cache(root, workspace)


def make_workspace(
    root: Path,
    run: str,
    as_of: str,
    edits: bool,
    taken: tuple[str, list[str]] | None = None,
) -> Path:
    """Make the workspace of a run once; later calls find it.

    lineage.json is written last: a workspace without it is incomplete, and made again.

    Args:
        root: Checkout.
        run: Id of the DAG run.
        as_of: Month, YYYY-MM.
        edits: Include uncommitted edits.
        taken: Snapshot that several runs share; made now when not given.
    """
    from filelock import FileLock

    workspace = workspace_path(root, run)
    workspace.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(workspace.parent / ".making"):
        if (workspace / "lineage.json").exists():
            return workspace
        if taken:
            commit, changed = taken
        else:
            commit, changed = snapshot(root) if edits else (head_commit(root), [])
            if changed:  # git keeps a commit that has a name
                reference = f"refs/housemlops/{workspace.name}"
                git("update-ref", reference, commit, root=root)
        fill_workspace(root, workspace, commit, as_of, changed)
        changed = changed + place_ledger(root, workspace, edits)
        lineage = {
            "git_commit": commit,
            "git_branch": git("branch", "--show-current", root=root),
            "uncommitted": changed,
            "lifecycle": workspace.name,
        }
        write_json(workspace / "lineage.json", lineage)
    return workspace


def finish_workspace(root: Path, workspace: Path, latest: bool = True) -> None:
    """Mark a workspace as done, and remove the oldest ones.

    Args:
        root: Checkout.
        workspace: All its stages are done.
        latest: Make it var/latest, because the whole lifecycle ran in it.
    """
    state = settings(root).paths.state
    (workspace / "finished").touch()
    if latest:
        link = state / f".latest-{os.getpid()}"
        link.symlink_to(workspace.relative_to(state))
        link.replace(state / "latest")
    prune_workspaces(root, keep=workspace)


def is_idle(workspace: Path) -> bool:
    """Tell whether nobody works in a workspace: it is finished, or older than a day."""
    age = time.time() - (workspace / "lineage.json").stat().st_mtime
    return (workspace / "finished").exists() or age > DAY


def prune_workspaces(root: Path, keep: Path) -> None:
    """Remove idle workspaces beyond the number that settings.ini keeps.

    Args:
        root: Checkout.
        keep: Workspace that stays.
    """
    chosen = settings(root)
    state, limit = chosen.paths.state, chosen.workspaces.keep
    lineages = list((state / "workspaces").glob("*/lineage.json"))
    lineages.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for old in [path.parent for path in lineages[limit:]]:
        if old == keep or not is_idle(old):
            continue
        git("worktree", "remove", "--force", "--force", str(old), root=root)
        for file in (state / "log").glob(f"{old.name}.*"):
            file.unlink()
