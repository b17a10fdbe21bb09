"""Release a champion to the clusters: promote it by a commit, and revert it."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from housemlops.cluster.manifests import cluster_names
from housemlops.cluster.model_store import (
    fetch_release,
    store_release,
    store_url,
    without_passwords,
)
from housemlops.cluster.release_commit import (
    BranchMoved,
    check_commit,
    checkout_head,
    commit_file,
    commit_message,
    push,
    remote_head,
)
from housemlops.cluster.release_file import parse_release, release_file, update_release
from housemlops.core.files import read_json
from housemlops.core.repository import git
from housemlops.lineage import find_model
from housemlops.model.registry import registered_name
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
    """What became of a promotion or a rollback."""

    commit: str
    subject: str
    release: dict[str, str]
    sentence: str  # for people


def production_version(mlflow, dataset: str, what: str):
    """Return the registered version to be released.

    Raises:
        WorkbookError: There is no such version, or it is in development.
    """
    name = registered_name(dataset)
    version = find_model(mlflow.MlflowClient(), dataset, what)
    if version.name == name:
        return version
    raise WorkbookError(
        f"{what} is in development: make it champion first "
        f"(`housemlops promote {what} --why ...`), then release {name} by its number"
    )


def build_release(mlflow, version, scratch: Path) -> Path:
    """Generate the server of a version, and return its folder `model`, the release."""
    generate(mlflow, version, scratch)
    return scratch / "model"


def web_page(url: str) -> str:
    """Return the web page of a remote; its address when it is no server."""
    match = re.fullmatch(
        r"(?:(?:https?|ssh)://(?:[^@/]*@)?|[\w.-]+@)"  # scheme and user
        r"([\w.-]+)(?::\d+(?=/))?"  # host and port
        r"[:/](.+?)(?:\.git)?/?",
        url,
    )
    return f"https://{match[1]}/{match[2]}" if match else without_passwords(url)


def require_environment(root: Path, env: str) -> None:
    """Raise when there is no such environment, with the nearest name."""
    names = cluster_names(root)
    if env not in names:
        raise WorkbookError(
            f"There is no environment {env!r} in deploy/clusters; there are "
            f"{', '.join(names)}.{did_you_mean(env, names)}"
        )


def environment_before(chosen: Settings, env: str) -> str:
    """Return the environment whose release an environment takes; "" for the first."""
    order = [name.strip() for name in chosen.release.order.split(",")]
    return order[order.index(env) - 1] if env in order[1:] else ""


def read_release_at(root: Path, commit: str, env: str) -> str:
    """Return the text of an environment's release.env in a commit."""
    return git("show", f"{commit}:{release_file(env)}", root=root) + "\n"


def release_fields(note: dict, uri: str, sha256: str, run_id: str) -> dict[str, str]:
    """Return the fields of release.env for a release with this release.json."""
    return {
        "MODEL_NAME": note["model"],
        "MODEL_VERSION": str(note["version"]),
        "MODEL_TAG": f"v{note['version']}",
        "MODEL_URI": uri,
        "MODEL_SHA256": sha256,
        "RUN_ID": run_id,
        "DATA_MD5": note["data_md5"],
    }


def release_from_registry(
    root: Path, chosen: Settings, dataset: str, what: str
) -> tuple[dict, dict]:
    """Build the release of a registered version, and store it.

    Returns:
        The fields of release.env, and the content of release.json.
    """
    mlflow = tracking(chosen)
    version = production_version(mlflow, dataset, what)
    with TemporaryDirectory() as scratch:
        folder = build_release(mlflow, version, Path(scratch))
        tag = f"v{version.version}"
        uri = store_release(store_url(chosen), version.name, tag, folder)
        note, sha256 = read_json(folder / "release.json"), folder_sha256(folder)
    return release_fields(note, uri, sha256, version.run_id), note


def release_from_environment(
    root: Path, chosen: Settings, base: str, env: str
) -> tuple[dict, dict]:
    """Take what an environment runs, byte for byte, into the store of this one.

    Returns:
        The fields of release.env, and the content of release.json.
    """
    release = parse_release(read_release_at(root, base, env))
    name, number = release["MODEL_NAME"], release["MODEL_VERSION"]
    if number == "0":
        raise WorkbookError(
            f"{env} has no model yet: housemlops promote --env {env} --why ..."
        )
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "fetched"
        folder.mkdir()
        if not fetch_release(release["MODEL_URI"], folder):
            mlflow = tracking(chosen)
            dataset = name.removeprefix(f"{chosen.mlflow.model}-")
            version = production_version(mlflow, dataset, number)
            folder = build_release(mlflow, version, Path(scratch))
        sha256, wanted = folder_sha256(folder), release["MODEL_SHA256"]
        if sha256 != wanted:
            raise WorkbookError(
                f"{without_passwords(release['MODEL_URI'])} has the SHA-256 "
                f"{sha256[:12]}, but {env} runs {wanted[:12]}, so nothing was promoted"
            )
        uri = store_release(store_url(chosen), name, release["MODEL_TAG"], folder)
        return release | {"MODEL_URI": uri}, read_json(folder / "release.json")


def require_change(env: str, now: dict[str, str], release: dict[str, str]) -> None:
    """Raise when there is nothing to promote, or a model of another name."""
    name = release["MODEL_NAME"]
    if now["MODEL_SHA256"] == release["MODEL_SHA256"]:
        raise WorkbookError(
            f"{env} runs {name} {release['MODEL_TAG']} already, so there is nothing to "
            "promote"
        )
    if now["MODEL_VERSION"] != "0" and now["MODEL_NAME"] != name:
        raise WorkbookError(
            f"{env} serves {now['MODEL_NAME']}, and this is {name}: see dataset in "
            f"params.yaml; to change what {env} is for, commit its MODEL_NAME with "
            "MODEL_VERSION=0 and MODEL_TAG=v0 first"
        )


def follow_commit(root: Path, chosen: Settings, commit: str) -> str:
    """Move the checkout to a commit, and return a sentence about where it is now."""
    branch, remote, short = chosen.release.branch, chosen.release.remote, commit[:12]
    try:
        git("merge", "--quiet", "--ff-only", commit, root=root)
    except WorkbookError as error:
        if remote:
            return (
                f"commit {short} on {remote}/{branch}; this checkout could not follow: "
                "git pull"
            )
        raise WorkbookError(
            f"{branch} could not take the commit ({error}), so nothing was promoted"
        ) from None
    if remote:
        return f"commit {short} on {remote}/{branch}"
    return f"commit {short} on {branch}: git push, and the cluster takes it"


def publish(
    root: Path, chosen: Settings, commit: str, request: str, follow: bool
) -> str:
    """Push a commit, or a branch that requests to merge it; move the checkout to it.

    Args:
        root: Checkout.
        chosen: Settings.
        commit: To be pushed.
        request: Name of the branch of a request.
        follow: Whether to move the checkout.

    Returns:
        A sentence about where the commit is.
    """
    branch, remote = chosen.release.branch, chosen.release.remote
    if remote and chosen.release.request:
        push(root, remote, commit, request, new=True)
        page = web_page(git("remote", "get-url", remote, root=root))
        return (
            f"{remote} has the branch {request}: open a request to merge it into "
            f"{branch} at {page}"
        )
    if remote:
        push(root, remote, commit, branch, new=False)
    if follow:
        return follow_commit(root, chosen, commit)
    return f"commit {commit[:12]} on {remote}/{branch}"


def commit_release(
    root: Path,
    chosen: Settings,
    base: str,
    env: str,
    release: dict,
    note: dict,
    why: str,
    follow: bool,
) -> Promotion:
    """Commit a release on top of a commit, check its effect, and publish it."""
    text = read_release_at(root, base, env)
    require_change(env, parse_release(text), release)
    message = commit_message(env, note, release, why)
    file, text = release_file(env), update_release(text, release)
    commit = commit_file(root, base, file, text, message)
    check_commit(root, commit, env)
    name, tag = release["MODEL_NAME"], release["MODEL_TAG"]
    place = publish(root, chosen, commit, f"promote/{env}/{tag}", follow)
    sentence = f"{name} {tag} for {env}: {place}"
    if release["MODEL_URI"].startswith("file:"):
        sentence += (
            ". Its files are in a folder of this machine; a cluster wants [release] "
            "store in settings.ini to be one that it can read, such as s3://models"
        )
    return Promotion(commit, message.splitlines()[0], release, sentence)


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
        why: Reason.
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
    require_environment(root, env)
    source = "" if what else from_env or environment_before(chosen, env)
    if source:
        require_environment(root, source)
        why += f" (as in {source})"
    if env == source:
        raise WorkbookError(f"{env} cannot take its release from itself")
    base = checkout_head(root, chosen)
    if source:
        release, note = release_from_environment(root, chosen, base, source)
    else:
        dataset = dataset or params(root)["dataset"]
        release, note = release_from_registry(root, chosen, dataset, what)
    return commit_release(root, chosen, base, env, release, note, why, follow=True)


def last_change(root: Path, base: str, env: str) -> tuple[str, str]:
    """Return the newest change of an environment's release that was not reverted.

    Returns:
        Commit and subject; empty when there is none.
    """
    form = "--format=%H%x00%s%x00%b%x01"
    log = git("log", form, base, "--", release_file(env), root=root)
    reverted = set()
    for entry in log.split("\1"):
        if not entry.strip():
            continue
        commit, subject, body = entry.strip().split("\0")
        revert = re.search(r"This reverts commit ([0-9a-f]{40})", body)
        if commit in reverted:
            continue
        if revert is None:
            return commit, subject
        reverted.add(revert[1])
    return "", ""


def rollback_in(
    env: str, why: str = "asked for by hand", root: Path | None = None
) -> Promotion:
    """Revert an environment's last promotion, as `git revert` does."""
    root = root or repo_root()
    require_environment(root, env)
    chosen, file = settings(root), release_file(env)
    base = checkout_head(root, chosen)
    commit, subject = last_change(root, base, env)
    if not subject.startswith(f"deploy({env}): "):
        raise WorkbookError(
            f"The last change of {file} is no promotion ({commit[:12]} {subject}): "
            f"look at it, then git revert {commit[:12]}"
        )
    now = read_release_at(root, base, env)
    if now != read_release_at(root, commit, env):
        raise WorkbookError(
            f"{file} was edited since {commit[:12]} ({subject}): correct it by hand"
        )
    text = read_release_at(root, f"{commit}^", env)
    release = parse_release(text)
    if release["MODEL_VERSION"] == "0":
        raise WorkbookError(
            f"{subject} is the first promotion to {env}: there is none before it to go "
            "back to"
        )
    title = f'Revert "{subject}"'
    message = f"{title}\n\n{why}\n\nThis reverts commit {commit}.\n"
    new = commit_file(root, base, file, text, message)
    check_commit(root, new, env)
    branch = f"rollback/{env}/{parse_release(now)['MODEL_TAG']}"
    place = publish(root, chosen, new, branch, follow=True)
    name, tag = release["MODEL_NAME"], release["MODEL_TAG"]
    return Promotion(new, title, release, f"{name} {tag} again for {env}: {place}")


def release_champion(root: Path, dataset: str) -> Promotion | None:
    """Promote the champion to the cluster that the settings name.

    The commit goes on top of the remote branch, whatever the checkout's state is.

    Args:
        root: Repository or workspace.
        dataset: Name of the data set.

    Returns:
        None where nothing is to be done.
    """
    chosen = settings(root)
    env = chosen.release.cluster
    if not env:
        return None
    if not chosen.release.remote:
        raise WorkbookError(
            "[release] cluster in settings.ini needs a remote to push to: set "
            "[release] remote"
        )
    require_environment(root, env)
    release, note = release_from_registry(root, chosen, dataset, "")
    why, attempts = "the champion of a run of the lifecycle", 3
    while True:
        base = remote_head(root, chosen)
        now = parse_release(read_release_at(root, base, env))
        if now["MODEL_SHA256"] == release["MODEL_SHA256"]:
            return None
        try:
            return commit_release(
                root, chosen, base, env, release, note, why, follow=False
            )
        except BranchMoved:
            attempts -= 1
            if not attempts or chosen.release.request:
                raise
