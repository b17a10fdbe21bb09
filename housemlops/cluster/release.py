"""Release a champion to the clusters: package it, move it between environments, take it back."""

import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from housemlops.cluster.manifests import clusters
from housemlops.cluster.model_store import (
    bare,
    bring,
    file_of,
    in_production,
    keep,
    made,
    store_of,
)
from housemlops.cluster.release_commit import (
    Moved,
    check_commit,
    commit_with,
    head_here,
    head_of,
    message,
    push,
    release_of,
    rewritten,
)
from housemlops.cluster.release_file import parsed
from housemlops.core.files import read_json
from housemlops.core.repository import git
from housemlops.serve import generate
from housemlops.settings import (
    Settings,
    WorkbookError,
    did_you_mean,
    folder_sha256,
    params,
    repo_root,
    settings,
    tracking,
)


class Promotion(NamedTuple):
    "What became of a promotion"

    commit: str
    subject: str
    release: dict[str, str]
    sentence: str  # for people


def page_of(url: str) -> str:
    """The web address of a remote.

    Returns:
        Where a person can look; the address itself when it is no server.
    """
    found = re.fullmatch(
        r"(?:(?:https?|ssh)://(?:[^@/]*@)?|[\w.-]+@)([\w.-]+)(?::\d+(?=/))?[:/](.+?)(?:\.git)?/?",
        url,
    )
    return f"https://{found[1]}/{found[2]}" if found else bare(url)


def put_in_place(
    root: Path, chosen: Settings, commit: str, branch: str, follow: bool
) -> str:
    """Push a commit, or hand it in as a request; then let the checkout follow.

    Args:
        branch: Of a request.
        follow: The checkout, too.

    Returns:
        A sentence.
    """
    into, remote, short = chosen.release.branch, chosen.release.remote, commit[:12]
    if remote and chosen.release.request:
        push(root, remote, commit, branch, new=True)
        return f"{remote} has the branch {branch}: open a request to merge it into {into} at {page_of(git('remote', 'get-url', remote, root=root))}"
    if remote:
        push(root, remote, commit, into, new=False)
    if not follow:
        return f"commit {short} on {remote}/{into}"
    try:
        git("merge", "--quiet", "--ff-only", commit, root=root)
    except WorkbookError as error:
        if remote:
            return f"commit {short} on {remote}/{into}; this checkout could not follow: git pull"
        raise WorkbookError(
            f"{into} could not take the commit ({error}), so nothing was promoted"
        ) from None
    return (
        f"commit {short} on {remote}/{into}"
        if remote
        else f"commit {short} on {into}: git push, and the cluster takes it"
    )


def known(root: Path, env: str) -> str:
    "An environment that there is; WorkbookError with the nearest name"
    if env in (names := clusters(root)):
        return env
    raise WorkbookError(
        f"There is no environment {env!r} in deploy/clusters; there are {', '.join(names)}.{did_you_mean(env, names)}"
    )


def one_before(chosen: Settings, env: str) -> str:
    """The environment whose release an environment takes.

    Returns:
        Empty for the first.
    """
    order = [name.strip() for name in chosen.release.order.split(",")]
    return order[order.index(env) - 1] if env in order[1:] else ""


def from_registry(
    root: Path, chosen: Settings, dataset: str, what: str
) -> tuple[dict, dict]:
    """Release a registered version: make it, and keep it in the store.

    Returns:
        The seven fields, release.json.
    """
    mlflow = tracking(chosen)
    version = in_production(mlflow, dataset, what)
    with made(mlflow, version) as folder:
        note, sha256 = read_json(folder / "release.json"), folder_sha256(folder)
        return release_of(
            note,
            keep(store_of(chosen), version.name, f"v{version.version}", folder),
            sha256,
            version.run_id,
        ), note


def from_environment(
    root: Path, chosen: Settings, base: str, env: str
) -> tuple[dict, dict]:
    """What an environment runs, byte for byte, kept in the store of this one.

    Returns:
        The seven fields, release.json.
    """
    release = parsed(git("show", f"{base}:{file_of(env)}", root=root))
    name, number = release["MODEL_NAME"], release["MODEL_VERSION"]
    if number == "0":
        raise WorkbookError(
            f"{env} has no model yet: housemlops promote --env {env} --why ..."
        )
    with TemporaryDirectory() as scratch:
        folder, wanted = Path(scratch), release["MODEL_SHA256"]
        if not bring(release["MODEL_URI"], folder):
            mlflow, server = tracking(chosen), folder / "server"
            server.mkdir()
            generate(
                mlflow,
                in_production(
                    mlflow, name.removeprefix(f"{chosen.mlflow.model}-"), number
                ),
                server,
            )
            folder = server / "model"
        if (found := folder_sha256(folder)) != wanted:
            raise WorkbookError(
                f"{bare(release['MODEL_URI'])} has the SHA-256 {found[:12]}, but {env} runs {wanted[:12]}, so nothing was promoted"
            )
        return release | {
            "MODEL_URI": keep(store_of(chosen), name, release["MODEL_TAG"], folder)
        }, read_json(folder / "release.json")


def refuse_same(env: str, now: dict[str, str], release: dict[str, str]) -> None:
    "WorkbookError when there is nothing to promote, or something of another name"
    if now["MODEL_SHA256"] == release["MODEL_SHA256"]:
        raise WorkbookError(
            f"{env} runs {release['MODEL_NAME']} {release['MODEL_TAG']} already, so there is nothing to promote"
        )
    if now["MODEL_VERSION"] != "0" and now["MODEL_NAME"] != release["MODEL_NAME"]:
        raise WorkbookError(
            f"{env} serves {now['MODEL_NAME']}, and this is {release['MODEL_NAME']}: see dataset in params.yaml; to change what {env} is for, commit its MODEL_NAME with MODEL_VERSION=0 and MODEL_TAG=v0 first"
        )


def promote_to(
    env: str,
    what: str = "",
    why: str = "asked for by hand",
    from_env: str = "",
    root: Path | None = None,
    dataset: str = "",
) -> Promotion:
    """Promote a model to an environment by a commit.

    Args:
        env: Environment: a folder of deploy/clusters.
        what: Version; empty: what the environment before it runs, or the champion.
        from_env: Take what this environment runs.
        root: Checkout.
        dataset: That of params.yaml when not given.
    """
    root = root or repo_root()
    chosen = settings(root)
    if what and from_env:
        raise WorkbookError(
            "Name a version or an environment to take it from, not both"
        )
    source = "" if what else from_env or one_before(chosen, known(root, env))
    for name in filter(None, (env, source)):
        known(root, name)
    if env == source:
        raise WorkbookError(f"{env} cannot take its release from itself")
    base = head_here(root, chosen)
    release, note = (
        from_environment(root, chosen, base, source)
        if source
        else from_registry(root, chosen, dataset or params(root)["dataset"], what)
    )
    return promoted(
        root,
        chosen,
        base,
        env,
        release,
        note,
        why + (f" (as in {source})" if source else ""),
        follow=True,
    )


def promoted(
    root: Path,
    chosen: Settings,
    base: str,
    env: str,
    release: dict,
    note: dict,
    why: str,
    follow: bool,
) -> Promotion:
    "Commit a release on top of a commit, check what it makes of the cluster, and put it in place"
    text = git("show", f"{base}:{file_of(env)}", root=root)
    refuse_same(env, parsed(text), release)
    commit = commit_with(
        root,
        base,
        file_of(env),
        rewritten(text, release),
        said := message(env, note, release, why),
    )
    check_commit(root, commit, env)
    where = put_in_place(
        root, chosen, commit, f"promote/{env}/{release['MODEL_TAG']}", follow
    )
    own = (
        ". Its files are in a folder of this machine; a cluster wants [release] store in settings.ini to be one that it can read, such as s3://models"
        if release["MODEL_URI"].startswith("file:")
        else ""
    )
    return Promotion(
        commit,
        said.splitlines()[0],
        release,
        f"{release['MODEL_NAME']} {release['MODEL_TAG']} for {env}: {where}{own}",
    )


def effective(root: Path, base: str, env: str) -> tuple[str, str]:
    """The newest change of an environment's release that was not taken back.

    Returns:
        Commit and subject; empty when there is none.
    """
    told, undone = (
        git("log", "--format=%H%x00%s%x00%b%x01", base, "--", file_of(env), root=root),
        set(),
    )
    for commit, subject, body in (
        entry.strip().split("\0") for entry in told.split("\1") if entry.strip()
    ):
        if commit in undone:
            continue
        if found := re.search(r"This reverts commit ([0-9a-f]{40})", body):
            undone.add(found[1])
        else:
            return commit, subject
    return "", ""


def rollback_in(
    env: str, why: str = "asked for by hand", root: Path | None = None
) -> Promotion:
    "Take an environment's last promotion back, as `git revert` does"
    root = root or repo_root()
    chosen, file = settings(root), file_of(known(root, env))
    base = head_here(root, chosen)
    commit, subject = effective(root, base, env)
    if not subject.startswith(f"deploy({env}): "):
        raise WorkbookError(
            f"The last change of {file} is no promotion ({commit[:12]} {subject}): look at it, then git revert {commit[:12]}"
        )
    now, then = (
        git("show", f"{at}:{file}", root=root) + "\n" for at in (base, f"{commit}^")
    )
    if now.strip() != git("show", f"{commit}:{file}", root=root).strip():
        raise WorkbookError(
            f"{file} was edited since {commit[:12]} ({subject}): correct it by hand"
        )
    if parsed(then)["MODEL_VERSION"] == "0":
        raise WorkbookError(
            f"{subject} is the first promotion to {env}: there is none before it to go back to"
        )
    said = f'Revert "{subject}"\n\n{why}\n\nThis reverts commit {commit}.\n'
    new = commit_with(root, base, file, then, said)
    check_commit(root, new, env)
    where = put_in_place(
        root, chosen, new, f"rollback/{env}/{parsed(now)['MODEL_TAG']}", follow=True
    )
    return Promotion(
        new,
        said.splitlines()[0],
        parsed(then),
        f"{parsed(then)['MODEL_NAME']} {parsed(then)['MODEL_TAG']} again for {env}: {where}",
    )


def release_champion(
    root: Path, dataset: str, attempts: int = 3, told: Callable = print
) -> Promotion | None:
    """Promote the champion to the cluster that the settings name, on top of what its remote has.

    Args:
        root: Repository or workspace.

    Returns:
        None where nothing is to be done.
    """
    chosen = settings(root)
    if not (env := chosen.release.cluster):
        return None
    if not chosen.release.remote:
        raise WorkbookError(
            "[release] cluster in settings.ini needs a remote to push to: set [release] remote"
        )
    release, note = from_registry(root, chosen, dataset, "")
    for attempt in range(1, attempts + 1):
        base = head_of(root, chosen)
        now = parsed(git("show", f"{base}:{file_of(known(root, env))}", root=root))
        if now["MODEL_SHA256"] == release["MODEL_SHA256"]:
            return None
        try:
            done = promoted(
                root,
                chosen,
                base,
                env,
                release,
                note,
                "the champion of a run of the lifecycle",
                follow=False,
            )
        except Moved:
            if attempt == attempts or chosen.release.request:
                raise
        else:
            told(done.sentence)
            return done
