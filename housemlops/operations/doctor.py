"""Check that this machine and this checkout have what the workbook needs."""

# Each check returns "", or a sentence that says what is wrong and what to do. Its
# docstring says what holds otherwise.

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

from housemlops.settings import Settings, WorkbookError, params, repo_root, settings

NEEDED_GB = 2  # of free disk


def check_python() -> str:
    """Python 3.11, 3.12 or 3.13, in a virtual environment."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return f"Python {sys.version.split()[0]} runs this; use 3.11, 3.12 or 3.13."
    if sys.prefix == sys.base_prefix:
        return (
            "This Python is not a virtual environment; run 'make run', which makes one."
        )
    return ""


def locked_versions(lock: Path) -> dict[str, str]:
    """Return the versions that a lock pins on every platform, by package."""
    versions = {}
    for line in lock.read_text().splitlines():
        name, pinned, version = line.split(" ")[0].partition("==")
        if pinned and ";" not in line:
            versions[name] = version
    return versions


def check_packages() -> str:
    """Installed versions are those of requirements.lock."""
    from importlib.metadata import distributions

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lock = repo_root() / "requirements.lock"
    if not lock.exists():
        return (
            "There is no requirements.lock; restore it with 'git checkout "
            "requirements.lock'."
        )
    locked = locked_versions(lock)
    installed = {canonicalize_name(one.name): one.version for one in distributions()}
    project = tomllib.loads((repo_root() / "pyproject.toml").read_text())
    for line in project["dependency-groups"]["run"]:
        name = canonicalize_name(Requirement(line).name)
        if name in locked and name not in installed:
            return f"{name} is not installed; run 'make run', which installs it."
    for name, version in sorted(installed.items()):
        if locked.get(name, version) != version:
            return (
                f"{name} is {version}, requirements.lock says {locked[name]}; run "
                "'make run', which installs it."
            )
    return ""


def check_git() -> str:
    """A checkout with a commit."""
    from housemlops.core.repository import head_commit

    head_commit(repo_root())
    return ""


def check_data() -> str:
    """The ledger is here, or the DVC remote can give it."""
    from housemlops.core.repository import data_md5

    root, dataset = repo_root(), params()["dataset"]
    if data_md5(root, dataset):
        return ""
    status = ["status", "--cloud", "--quiet", f"data/{dataset}.csv.dvc"]
    command = [sys.executable, "-m", "dvc", *status]
    done = subprocess.run(command, cwd=root, capture_output=True)
    if done.returncode in (0, 1):
        return ""
    return (
        f"data/{dataset}.csv is missing and the DVC remote does not answer; see 'dvc "
        "remote list'."
    )


def check_sync() -> str:
    """Notebooks and package agree."""
    from housemlops.operations.notebook_sync import sync_notebooks

    changed = sync_notebooks(repo_root(), write=False)
    return f"Out of step: {', '.join(changed)}; run 'housemlops sync'." * bool(changed)


def check_store() -> str:
    """The tracking store opens."""
    from housemlops.settings import tracking

    try:
        tracking().search_experiments(max_results=1)
    except WorkbookError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0]
        uri = settings().mlflow.tracking_uri
        return f"The tracking store {uri} does not open: {reason}"
    return ""


def check_ports() -> str:
    """Ports are free, or ours."""
    from housemlops.pipeline.scheduler import is_listening

    chosen, taken = settings(), []
    for name in Settings.model_fields:
        port = getattr(getattr(chosen, name), "port", 0)
        if port and is_listening(port):
            taken.append(f"{name} {port}")
    if not taken:
        return ""
    return (
        f"These ports are in use: {', '.join(taken)}; that is fine while 'housemlops "
        "up' runs, otherwise choose others in settings.ini."
    )


def check_disk() -> str:
    """Two gigabytes free."""
    free = shutil.disk_usage(repo_root()).free / 1e9
    if free >= NEEDED_GB:
        return ""
    return (
        f"Only {free:.1f} GB of disk is free; runs want {NEEDED_GB} GB. 'rm -r "
        "var/workspaces' frees the most."
    )


CHECKS = (
    check_python,
    check_packages,
    check_git,
    check_data,
    check_sync,
    check_store,
    check_ports,
    check_disk,
)


def run_check(check: Callable[[], str]) -> dict:
    """Make a check.

    Returns:
        Name, ok, and a sentence about what holds, or what is wrong.
    """
    try:
        problem = check()
    except WorkbookError as error:
        problem = str(error)
    name = check.__name__.removeprefix("check_")
    return {"name": name, "ok": not problem, "sentence": problem or check.__doc__}


def examine(show: Callable[[dict], object]) -> dict:
    """Make every check, and call a function with each result as soon as it is there.

    Returns:
        ok, and the results of all checks.
    """
    results = []
    for check in CHECKS:
        results.append(run_check(check))
        show(results[-1])
    return {"ok": all(result["ok"] for result in results), "checks": results}
