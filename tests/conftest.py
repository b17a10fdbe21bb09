"""What the tests share: finished runs, a visible skip for a missing tool, and which tests share a worker."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

from checkout import (
    CANARIES,
    ROOT,
    SECRETS,
    STAGES,
    Checkout,
    Sample,
    clone,
    copy_checkout,
)
from trap import can_trace, traced

CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def skip(reason: str):
    "Skip a test and say why, or fail where skips are not allowed."
    if os.environ.get("HOUSEMLOPS_NO_SKIPS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def find_tool(name: str) -> str:
    "The path of a program; without it the test skips."
    if path := shutil.which(name):
        return path
    skip(f"{name} is not installed, so this is not tested")


@pytest.fixture(scope="session")
def strace():
    "Ask for strace, and for the permission to trace."
    find_tool("strace")
    if not can_trace():
        skip("strace may not trace processes here, so this is not tested")


@pytest.fixture(scope="session")
def need():
    "Ask for a program by name: `need('chromium')`."
    return find_tool


@pytest.fixture(scope="module")
def browser(need):
    "Headless Chromium"
    executable = need("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id) -> Callable[[str, Callable[[Path], None]], Path]:
    "Make a folder once for all workers: `once(name, make)` calls make(folder) in one of them."
    base = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        base = base.parent

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        made = base / f"{name}-shared"
        with FileLock(base / f"{name}.lock"):
            if not (made / "done").exists():
                shutil.rmtree(made, ignore_errors=True)
                made.mkdir()
                make(made)
                (made / "done").touch()
        return made

    return folder


@pytest.fixture(scope="session")
def first_run(once) -> Path:
    "A folder with a checkout that has run the lifecycle once, what came of it in first.json, and what it tried to reach"

    def make(folder: Path):
        cache = {"XDG_CACHE_HOME": str(folder / "cache")}  # as on a new machine
        checkout = clone(folder / "workbook", SECRETS | cache)
        ini = checkout.path / "settings.ini"
        sender = f"sender = {CANARIES['sender']}@localhost"
        ini.write_text(re.sub(r"(?m)^sender =.*", sender, ini.read_text()))
        checkout.git("commit", "--quiet", "--all", "--message", "chore: a sender")
        trap = partial(traced, log=folder / "reached.txt") if can_trace() else list
        done, text = checkout.run(under=trap)
        assert done == dict.fromkeys(STAGES, "ran"), text
        receipt = checkout.build("promote/receipt.json")
        first = {"outs": checkout.outs(), "text": text, "receipt": receipt}
        (folder / "first.json").write_text(json.dumps(first))
        copy_checkout(checkout, folder / "copy")

    return once("first", make)


@pytest.fixture(scope="session")
def learner(first_run) -> Checkout:
    "That checkout, for tests that run it again; they share one worker"
    checkout = Checkout(first_run / "workbook", SECRETS)
    first = json.loads((first_run / "first.json").read_text())
    checkout.first, checkout.first_text = first["outs"], first["text"]
    return checkout


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Sample:
    "A checkout with the outputs of all stages, run as functions on the sample; each worker has its own"
    return Sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="session")
def champion(sample) -> Path:
    "The model folder of the sample's champion"
    from housemlops.settings import folder_sha256

    version = sample.registry().get_model_version_by_alias(
        "house-prices-sample", "champion"
    )
    source = sample.registry().get_model_version_download_uri(
        version.name, version.version
    )
    model = Path(source.removeprefix("file://"))
    assert folder_sha256(model) == version.tags["model_sha256"]
    return model


@pytest.fixture(scope="session")
def ledgers(once) -> Path:
    "The folder data/ of a fresh clone, after `dvc pull -R data`; for reading"

    def make(folder: Path):
        path = folder / "clone"
        subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, path], check=True)
        subprocess.run(
            [sys.executable, "-m", "dvc", "pull", "--quiet", "--recursive", "data"],
            cwd=path,
            check=True,
        )

    return once("ledgers", make) / "clone/data"


def pytest_configure(config):
    "Markers, so that `pytest -m 'not slow'` gives a quick answer."
    for line in (
        "slow: takes more than a few seconds, or starts services; `make check` leaves it out",
        "browser: opens a page in headless Chromium",
        "long: takes minutes of its own, many processes side by side; `make test-long` runs it",
    ):
        config.addinivalue_line("markers", line)


# Whole replays, workers, supervisors and browsers in JupyterLab: `make test-long`.
LONG = {"test_history", "test_trust", "test_scale", "test_up", "test_lab"}


# Each of these tries dozens of clusters, clones or servers, and takes a minute or more.
NOT_IN_CHECK = {"test_deploy", "test_limits", "test_release", "test_server"}


def pytest_itemcollected(item):
    "Mark what takes long, and allow 1800 s for it and for all that may be the first to need a lifecycle."
    if item.path.stem in LONG:
        item.add_marker(pytest.mark.long)
    if item.path.stem in NOT_IN_CHECK or "first_run" in item.fixturenames:
        item.add_marker(pytest.mark.slow)
    makes_lifecycle = {"first_run", "sample"} & {*item.fixturenames}
    long = makes_lifecycle or item.get_closest_marker("slow")
    if long and not item.get_closest_marker("timeout"):
        item.add_marker(pytest.mark.timeout(1800))


# Which worker runs what. A module is run by one worker, so that its fixtures are made once, but for two cases:
# modules that share the learner's checkout, and modules whose tests have nothing in common.
SHARED = dict.fromkeys(("test_lifecycle", "test_canary", "test_offline"), "learner")
SPREAD = {"test_deploy", "test_labs", "test_notebooks"}

# What takes longest begins first, so that no worker is left with it at the end.
FIRST = [
    "learner",
    "test_history",
    "test_trust",
    "test_scale",
    "test_windsor",
    "test_walkthrough",
    "test_site",
    "test_labs",
]


def group_of(nodeid: str) -> str:
    "The tests of one group are run by one worker, one after the other."
    module = Path(nodeid.partition("::")[0]).stem
    return nodeid if module in SPREAD else SHARED.get(module, module)


class GroupScheduling(LoadScopeScheduling):
    "Hand out whole groups to the workers of pytest-xdist."

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def pytest_xdist_make_scheduler(config, log):
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items):
    "Put the longest groups first, and the search for secrets after all runs of the learner's checkout."

    def place(item) -> tuple[int, bool]:
        group = group_of(item.nodeid)
        module = group if group in FIRST else item.path.stem
        first = FIRST.index(module) if module in FIRST else len(FIRST)
        return first, module != item.path.stem and item.path.stem == "test_canary"

    items.sort(key=place)
