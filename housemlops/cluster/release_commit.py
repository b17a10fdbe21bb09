"""Commit a release to the branch that the clusters follow, and push it."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from housemlops.cluster.checks import schema_faults
from housemlops.cluster.manifests import read_cluster
from housemlops.cluster.model_store import bare
from housemlops.cluster.release_file import FIELDS, parsed, release_faults
from housemlops.core.repository import git
from housemlops.model.gates import figure
from housemlops.settings import (
    Settings,
    WorkbookError,
)


def rewritten(text: str, release: dict[str, str]) -> str:
    """A release.env that names another release.

    Args:
        text: Of release.env.
    """

    def line(old):
        return (
            f"{field}={release[field]}"
            if (field := old.partition("=")[0]) in release
            else old
        )

    lines = [
        *map(line, text.splitlines()),
        *(
            f"{field}={value}"
            for field, value in release.items()
            if field not in parsed(text)
        ),
    ]
    return "\n".join(lines) + "\n"


def release_of(note: dict, uri: str, sha256: str, run_id: str) -> dict[str, str]:
    """The seven fields of a release.

    Args:
        note: release.json.
    """
    return dict(
        zip(
            FIELDS,
            (
                note["model"],
                str(note["version"]),
                f"v{note['version']}",
                uri,
                sha256,
                run_id,
                note["data_md5"],
            ),
        )
    )


def section(card: str, title: str) -> str:
    """A section of a model card, without its heading.

    Args:
        card: Markdown.

    Returns:
        Empty when there is none.
    """
    found = re.search(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL
    )
    return found[1].strip() if found else ""


def message(env: str, note: dict, release: dict[str, str], why: str) -> str:
    """The message of a promotion: subject, reason, and the summary of the model card.

    Args:
        note: release.json.
    """
    card, measured = (
        note.get("card", ""),
        ", ".join(
            f"{name.upper()} {figure(value)}"
            for name, value in note.get("metrics", {}).items()
        ),
    )
    parts = [
        f"deploy({env}): {release['MODEL_NAME']} {release['MODEL_TAG']}",
        why,
        section(card, "Figures on the test, and gates") or measured,
        section(card, "Data"),
        f"MLflow run {release['RUN_ID']}\nModel SHA-256 {note['model_sha256']}\nRelease SHA-256 {release['MODEL_SHA256']}\n{bare(release['MODEL_URI'])}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def identity(root: Path) -> dict[str, str]:
    """Who commits: you, or the workbook where git does not know you.

    Returns:
        Environment variables.
    """
    who = {
        f"GIT_{role}_{part}": value
        for role in ("AUTHOR", "COMMITTER")
        for part, value in (("NAME", "housemlops"), ("EMAIL", "housemlops@localhost"))
    }
    said = {name: os.environ[name] for name in who if os.environ.get(name)}
    try:
        git("var", "GIT_COMMITTER_IDENT", root=root, **said)
    except WorkbookError:
        return who | said
    return said


def commit_with(root: Path, base: str, file: str, text: str, said: str) -> str:
    """A commit on top of another one in which one file is different.

    Args:
        base: Commit.

    Returns:
        Commit.
    """
    with TemporaryDirectory() as scratch:
        (Path(scratch) / "content").write_text(text)
        index = {"GIT_INDEX_FILE": f"{scratch}/index"}
        git("read-tree", base, root=root, **index)
        blob = git(
            "hash-object", "-w", f"--path={file}", f"{scratch}/content", root=root
        )
        git(
            "update-index",
            "--add",
            "--cacheinfo",
            f"100644,{blob},{file}",
            root=root,
            **index,
        )
        tree = git("write-tree", root=root, **index)
    return git("commit-tree", tree, "-p", base, "-m", said, root=root, **identity(root))


def check_commit(root: Path, commit: str, env: str) -> None:
    "Render what a cluster would get from a commit; WorkbookError when the release does not reach the server"
    with TemporaryDirectory() as scratch:
        git(
            "archive",
            f"--output={scratch}/tree.zip",
            commit,
            "deploy",
            "tests/flux-schemas",
            root=root,
        )
        shutil.unpack_archive(f"{scratch}/tree.zip", f"{scratch}/tree")
        cluster = read_cluster(Path(scratch) / "tree", env)
        faults = [
            *cluster.faults,
            *schema_faults(Path(scratch) / "tree", cluster),
            *release_faults(Path(scratch) / "tree", cluster),
        ]
    if faults:
        raise WorkbookError(
            f"deploy/ would not be right with this release, so nothing was promoted: {faults[0]}"
        )


class Moved(WorkbookError):
    "Somebody else was faster"


def told_by(done: subprocess.CompletedProcess) -> str:
    "The first line in which git says what is wrong"
    lines = done.stderr.strip().splitlines()
    return bare(
        next(
            (line for line in lines if re.match(r"(fatal|error|ssh|remote): ?", line)),
            (lines or ["it ended without a word"])[0],
        )
    )


def call(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    "A git command that talks to a remote, without hooks"
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_")
        or name.startswith(("GIT_SSH", "GIT_ASKPASS", "GIT_CONFIG"))
    }
    return subprocess.run(
        ["git", "-c", "core.hooksPath=/dev/null", *arguments],
        cwd=root,
        env=clean | {"LC_ALL": "C"},
        capture_output=True,
        text=True,
    )


def head_of(root: Path, chosen: Settings) -> str:
    """The head of the branch that the clusters follow, asked of its remote.

    Returns:
        Commit.
    """
    remote, branch = chosen.release.remote, chosen.release.branch
    done = call(
        root,
        "fetch",
        "--quiet",
        "--no-tags",
        remote,
        f"+refs/heads/{branch}:refs/remotes/{remote}/{branch}",
    )
    if done.returncode:
        raise WorkbookError(
            f"The remote {remote} does not give its branch {branch} ({told_by(done)}), so nothing was promoted"
        )
    return git("rev-parse", f"refs/remotes/{remote}/{branch}", root=root)


def head_here(root: Path, chosen: Settings) -> str:
    """The commit of a person's checkout, when a promotion may go on top of it.

    Returns:
        Commit.
    """
    branch, remote = chosen.release.branch, chosen.release.remote
    here = git("branch", "--show-current", root=root)
    if here != branch:
        raise WorkbookError(
            f"The clusters follow the branch {branch}, and this checkout is {f'on {here}' if here else 'on no branch (detached HEAD)'}: git switch {branch}"
        )
    edits = [
        line[3:]
        for line in git(
            "status", "--porcelain", "--untracked-files=all", "--", "deploy", root=root
        ).splitlines()
    ]
    edits += git("diff", "--cached", "--name-only", root=root).splitlines()
    if edits:
        raise WorkbookError(
            f"{edits[0]} is changed and not committed: commit it or take it back, then promote"
        )
    head = git("rev-parse", "HEAD", root=root)
    if not remote or head == (theirs := head_of(root, chosen)):
        return head
    ahead, behind = map(
        int,
        git(
            "rev-list", "--left-right", "--count", f"{head}...{theirs}", root=root
        ).split(),
    )
    if ahead and behind:
        raise WorkbookError(
            f"{branch} and {remote}/{branch} have diverged ({ahead} commits here, {behind} there): git pull --rebase, git push, then promote"
        )
    if ahead:
        raise WorkbookError(
            f"{branch} is ahead of {remote}/{branch} by {ahead}, and a promotion would push that along: git push, then promote"
        )
    raise Moved(
        f"{branch} is behind {remote}/{branch} by {behind}: git pull, then promote"
    )


def push(root: Path, remote: str, commit: str, branch: str, new: bool) -> None:
    "Push a commit to a branch, new or not; Moved when the branch is not what it was"
    lease = [f"--force-with-lease=refs/heads/{branch}:"] if new else []
    done = call(
        root, "push", "--porcelain", *lease, remote, f"{commit}:refs/heads/{branch}"
    )
    there = new and re.search(
        r"^=\t", done.stdout, re.MULTILINE
    )  # the very commit, made within the same second
    if not done.returncode and not there:
        return
    refused = re.search(r"^!\t\S+\t(.*)$", done.stdout, re.MULTILINE)
    if there or (refused and refused[1].startswith("[rejected]")):
        raise Moved(
            f"{remote} has a branch {branch} already: merge it or delete it, then promote"
            if new
            else f"{remote}/{branch} has moved in the meantime, so nothing was promoted: git pull, then promote"
        )
    raise WorkbookError(
        f"The push to {remote} failed ({refused[1] if refused else told_by(done)}), so nothing was promoted"
    )
