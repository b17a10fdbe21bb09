"""What the tests share: a visible skip for a missing tool, and the markers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checkout import ROOT, STAGES, Checkout, clone

CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_tool(name: str) -> str:
    "The path of a program. Without it the test skips and says so, or fails where skips are not allowed."
    if path := shutil.which(name):
        return path
    reason = f"{name} is not installed, so this is not tested"
    if os.environ.get("HOUSEMLOPS_NO_SKIPS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


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
def learner(tmp_path_factory) -> Checkout:
    "A checkout that has run the lifecycle once"
    checkout = clone(tmp_path_factory.mktemp("learner") / "workbook")
    done, text = checkout.run()
    assert done == dict.fromkeys(STAGES, "ran"), text
    checkout.first, checkout.first_text = checkout.outs(), text
    return checkout


@pytest.fixture(scope="session")
def ledgers(tmp_path_factory) -> Path:
    "The folder data/ of a fresh clone, after `dvc pull -R data`; for reading"
    path = tmp_path_factory.mktemp("ledgers") / "clone"
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, path], check=True)
    subprocess.run(
        [sys.executable, "-m", "dvc", "pull", "--quiet", "--recursive", "data"],
        cwd=path,
        check=True,
    )
    return path / "data"


@pytest.fixture(scope="session")
def champion(learner) -> Path:
    "The model folder of that checkout's champion, whatever was tried there since"
    import mlflow

    from housemlops.settings import folder_sha256

    client = mlflow.MlflowClient(f"sqlite:///{learner.path}/var/mlflow/mlflow.db")
    version = client.get_model_version_by_alias("house-prices-sample", "champion")
    model = Path(
        client.get_model_version_download_uri(
            version.name, version.version
        ).removeprefix("file://")
    )
    assert folder_sha256(model) == version.tags["model_sha256"]
    return model


def pytest_configure(config):
    "Markers, so that `pytest -m 'not slow'` gives a quick answer."
    config.addinivalue_line("markers", "slow: takes more than ten seconds")
    config.addinivalue_line("markers", "browser: opens a page in headless Chromium")


def pytest_collection_modifyitems(items):
    "Cleaned notebooks keep their outputs but no execution counts, which nbval takes for cells that never ran"
    for item in items:
        if item.__class__.__name__ == "IPyNbCell" and item.cell.get("outputs"):
            item.cell["execution_count"] = item.cell["execution_count"] or 0
