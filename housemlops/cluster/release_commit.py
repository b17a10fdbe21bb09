"""Commit a release to the branch that the clusters follow, and push it."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from housemlops.cluster.manifests import read_cluster
from housemlops.cluster.model_store import without_passwords
from housemlops.cluster.release_file import release_faults
from housemlops.cluster.schemas import schema_faults
from housemlops.core.repository import git
from housemlops.model.gates import figure
from housemlops.settings import Settings, WorkbookError

AUTHOR = {
    "GIT_AUTHOR_NAME": "housemlops",
    "GIT_AUTHOR_EMAIL": "housemlops@localhost",
    "GIT_COMMITTER_NAME": "housemlops",
    "GIT_COMMITTER_EMAIL": "housemlops@localhost",
}


class BranchMoved(WorkbookError):
    """Somebody else has pushed to the branch in the meantime."""


def card_section(card: str, title: str) -> str:
    """Return a section of a model card in Markdown, without its heading, or ""."""
    pattern = rf"(?ms)^## {re.escape(title)}\n(.*?)(?=^## |\Z)"
    match = re.search(pattern, card)
    return match[1].strip() if match else ""


def commit_message(env: str, note: dict, release: dict[str, str], why: str) -> str:
    """Return a promotion's message: subject, reason, and a summary of the model card.

    Args:
        env: Environment.
        note: Content of release.json.
        release: Fields of release.env.
        why: Reason.
    """
    card = note.get("card", "")
    metrics = note.get("metrics", {}).items()
    summary = ", ".join(f"{name.upper()} {figure(value)}" for name, value in metrics)
    parts = [
        f"deploy({env}): {release['MODEL_NAME']} {release['MODEL_TAG']}",
        why,
        card_section(card, "Figures on the test, and gates") or summary,
        card_section(card, "Data"),
        f"MLflow run {release['RUN_ID']}\n"
        f"Model SHA-256 {note['model_sha256']}\n"
        f"Release SHA-256 {release['MODEL_SHA256']}\n"
        f"{without_passwords(release['MODEL_URI'])}",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def author(root: Path) -> dict[str, str]:
    """Return who commits, as variables: you, or the workbook if git has no name."""
    own = {name: os.environ[name] for name in AUTHOR if os.environ.get(name)}
    try:
        git("var", "GIT_COMMITTER_IDENT", root=root, **own)
    except WorkbookError:
        return AUTHOR | own
    return own


def commit_file(root: Path, base: str, file: str, text: str, message: str) -> str:
    """Commit one file on top of a commit, beside every branch and checkout.

    Returns:
        The new commit.
    """
    with TemporaryDirectory() as scratch:
        content = Path(scratch) / "content"
        content.write_text(text)
        index = {"GIT_INDEX_FILE": f"{scratch}/index"}
        git("read-tree", base, root=root, **index)
        blob = git("hash-object", "-w", f"--path={file}", str(content), root=root)
        entry = f"100644,{blob},{file}"
        git("update-index", "--add", "--cacheinfo", entry, root=root, **index)
        tree = git("write-tree", root=root, **index)
    command = ("commit-tree", tree, "-p", base, "-m", message)
    return git(*command, root=root, **author(root))


def check_commit(root: Path, commit: str, env: str) -> None:
    """Render what a cluster would get from a commit, and check its release.

    Raises:
        WorkbookError: The release would not reach the server.
    """
    with TemporaryDirectory() as scratch:
        archive, tree = f"{scratch}/tree.zip", Path(scratch) / "tree"
        folders = ("deploy", "tests/flux-schemas")
        git("archive", f"--output={archive}", commit, *folders, root=root)
        shutil.unpack_archive(archive, tree)
        cluster = read_cluster(tree, env)
        faults = [
            *cluster.faults,
            *schema_faults(tree, cluster),
            *release_faults(tree, cluster),
        ]
    if faults:
        raise WorkbookError(
            "deploy/ would not be right with this release, so nothing was promoted: "
            f"{faults[0]}"
        )


def git_error(done: subprocess.CompletedProcess) -> str:
    """Return the first line in which git says what is wrong."""
    lines = done.stderr.strip().splitlines() or ["git ended without a message"]
    causes = [line for line in lines if re.match(r"(fatal|error|ssh|remote):", line)]
    return without_passwords((causes or lines)[0])


def remote_git(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run a git command that talks to a remote, without hooks."""
    environ = os.environ | {"LC_ALL": "C"}
    for name in os.environ:
        needed = name.startswith(("GIT_SSH", "GIT_ASKPASS", "GIT_CONFIG"))
        if name.startswith("GIT_") and not needed:
            del environ[name]
    command = ["git", "-c", "core.hooksPath=/dev/null", *arguments]
    return subprocess.run(
        command, cwd=root, env=environ, capture_output=True, text=True
    )


def remote_head(root: Path, chosen: Settings) -> str:
    """Fetch the branch that the clusters follow, and return its newest commit."""
    remote, branch = chosen.release.remote, chosen.release.branch
    here = f"refs/remotes/{remote}/{branch}"
    refspec = f"+refs/heads/{branch}:{here}"
    done = remote_git(root, "fetch", "--quiet", "--no-tags", remote, refspec)
    if done.returncode:
        raise WorkbookError(
            f"The remote {remote} does not give its branch {branch} "
            f"({git_error(done)}), so nothing was promoted"
        )
    return git("rev-parse", here, root=root)


def checkout_head(root: Path, chosen: Settings) -> str:
    """Return the commit of a person's checkout, which a promotion goes on top of.

    Raises:
        WorkbookError: The checkout is on another branch, has edits in deploy/, or is
            not at the head of the remote branch.
    """
    branch = chosen.release.branch
    current = git("branch", "--show-current", root=root)
    if current != branch:
        place = f"on {current}" if current else "on no branch (detached HEAD)"
        raise WorkbookError(
            f"The clusters follow the branch {branch}, and this checkout is {place}: "
            f"git switch {branch}"
        )
    status = ("status", "--porcelain", "--untracked-files=all", "--", "deploy")
    edits = [line[3:] for line in git(*status, root=root).splitlines()]
    edits += git("diff", "--cached", "--name-only", root=root).splitlines()
    if edits:
        raise WorkbookError(
            f"{edits[0]} is changed and not committed: commit it or take it back, then "
            "promote"
        )
    head = git("rev-parse", "HEAD", root=root)
    if chosen.release.remote:
        require_same(root, head, remote_head(root, chosen), chosen)
    return head


def require_same(root: Path, head: str, theirs: str, chosen: Settings) -> None:
    """Raise when a checkout is not at the head of the remote branch."""
    branch = chosen.release.branch
    upstream = f"{chosen.release.remote}/{branch}"
    counts = ("rev-list", "--left-right", "--count", f"{head}...{theirs}")
    ahead, behind = map(int, git(*counts, root=root).split())
    if ahead and behind:
        raise WorkbookError(
            f"{branch} and {upstream} have diverged ({ahead} commits here, {behind} "
            "there): git pull --rebase, git push, then promote"
        )
    if ahead:
        raise WorkbookError(
            f"{branch} is ahead of {upstream} by {ahead}, and a promotion would push "
            "that along: git push, then promote"
        )
    if behind:
        raise BranchMoved(
            f"{branch} is behind {upstream} by {behind}: git pull, then promote"
        )


def push(root: Path, remote: str, commit: str, branch: str, new: bool) -> None:
    """Push a commit to a branch.

    Raises:
        BranchMoved: The branch is not what it was, or exists and should be new.
    """
    lease = [f"--force-with-lease=refs/heads/{branch}:"] if new else []
    target = f"{commit}:refs/heads/{branch}"
    done = remote_git(root, "push", "--porcelain", *lease, remote, target)
    # The very commit may be there, made within the same second.
    exists = new and re.search(r"(?m)^=\t", done.stdout)
    if not done.returncode and not exists:
        return
    rejection = re.search(r"(?m)^!\t\S+\t(.*)$", done.stdout)
    if exists or (rejection and rejection[1].startswith("[rejected]")):
        if new:
            raise BranchMoved(
                f"{remote} has a branch {branch} already: merge it or delete it, then "
                "promote"
            )
        raise BranchMoved(
            f"{remote}/{branch} has moved in the meantime, so nothing was promoted: "
            "git pull, then promote"
        )
    reason = rejection[1] if rejection else git_error(done)
    raise WorkbookError(
        f"The push to {remote} failed ({reason}), so nothing was promoted"
    )
