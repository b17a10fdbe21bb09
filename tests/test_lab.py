"The way of a new reader, in a real browser: `housemlops lab`, two notebooks with Run All, an exercise failed and passed."

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_up import free_ports, refuses, until

from housemlops.settings import repo_root

ROOT = repo_root()
pytestmark = [pytest.mark.slow, pytest.mark.browser]
WRONG = "known = len(known_at(ledger, contract, '2009-02'))\nsummer = 0.5"
RIGHT = "before = known_at(ledger, contract, '2009-01')\nknown = len(before)\nsummer = sale_months(before, contract).str[5:].isin(['06', '07', '08']).mean()"


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    "What a learner has cloned; their notebooks are theirs to change"
    root = tmp_path_factory.mktemp("reader") / "housemlops"
    for name in ("nbs", "housemlops"):
        shutil.copytree(
            ROOT / name,
            root / name,
            ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"),
        )
    (root / "data").mkdir()
    for path in [*ROOT.glob("data/*.yaml"), ROOT / "data/sample.csv"]:
        shutil.copy(path, root / "data")
    for name in ("settings.ini", "params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root / name)
    return root


@pytest.fixture(scope="module")
def lab(house):
    "`housemlops lab` on a free port, and nothing left of it afterwards"
    [port] = free_ports(1)
    environ = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("HOUSEMLOPS_", "JUPYTER", "JPY"))
    } | {
        "PYTHONPATH": str(house),
        "HOUSEMLOPS_JUPYTER_PORT": str(port),
        "JUPYTER_TOKEN": "reader",
        "BROWSER": "true",
        "HOME": str(house.parent),
    }
    with (house.parent / "lab.log").open("w") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("housemlops"), "lab"],
            cwd=house,
            env=environ,
            start_new_session=True,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        until(
            lambda: process.poll() is not None or not refuses(port),
            180,
            "JupyterLab answers",
        )
        assert process.poll() is None, (house.parent / "lab.log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


class Reader:
    "A person in front of JupyterLab"

    def __init__(self, browser, lab, house, shots):
        self.lab, self.house, self.shots, self.asked, self.errors = (
            lab,
            house,
            shots,
            [],
            [],
        )
        self.page = browser.new_page(viewport={"width": 1400, "height": 1000})
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def look(self, name):
        self.page.screenshot(path=str(self.shots / f"{name}.png"))

    @property
    def notebook(self):
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")

    def ready(self, path):
        "Wait until a notebook is shown and its kernel is ready"
        self.page.locator(
            ".lm-TabBar-tab.lm-mod-current", has_text=Path(path).name
        ).first.wait_for(timeout=240_000)
        self.notebook.locator(".jp-Cell").first.wait_for(timeout=240_000)
        self.notebook.locator(
            ".jp-KernelName", has_text=re.compile("^(?!No Kernel)")
        ).wait_for(timeout=240_000)
        self.page.get_by_text(re.compile(r"\| Idle$")).wait_for(timeout=240_000)

    def follow(self, link, path):
        "Click a link in the notebook"
        self.notebook.get_by_role("link", name=link, exact=True).first.click()
        self.ready(path)

    def back_to(self, path):
        "Click the tab of a notebook that is open"
        self.page.locator(".lm-TabBar-tab", has_text=path).first.click()
        self.ready(path)

    def run_all(self, path) -> dict:
        "Run ▸ Run All Cells, save, and read what is on the disk then"
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

        def finished():
            self.page.keyboard.press("Control+s")
            try:
                notebook = json.loads((self.house / "nbs" / path).read_text())
            except ValueError:
                return None  # in the middle of being saved
            code = [
                cell
                for cell in notebook["cells"]
                if cell["cell_type"] == "code" and "".join(cell["source"]).strip()
            ]
            self.page.wait_for_timeout(400)
            return (
                notebook
                if all(cell["execution_count"] for cell in code)
                or any(faults(notebook))
                else None
            )

        return until(finished, 600, f"all cells of {path} ran")

    def cell(self, text):
        return self.notebook.locator(".jp-CodeCell", has_text=text).first

    def answer(self, cell, text):
        "Replace a cell's text and run it, then run the cell below"
        cell.scroll_into_view_if_needed()
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(text)
        self.page.keyboard.press("Shift+Enter")
        self.page.keyboard.press("Shift+Enter")


def faults(notebook):
    return [
        output["evalue"]
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
        if output["output_type"] == "error"
    ]


def test_a_new_reader(browser, lab, house, tmp_path):
    reader, began = Reader(browser, lab, house, tmp_path), time.monotonic()
    reader.page.goto(f"{lab}/?token=reader")
    reader.ready("index.ipynb")
    assert reader.page.locator(".jp-Dialog").count() == 0, (
        "nothing to click away, no kernel to choose"
    )
    reader.look("1-index")
    for path in ("ingest.ipynb", "prepare.ipynb"):
        reader.back_to("index.ipynb")
        reader.follow(path.removesuffix(".ipynb"), path)
        assert faults(reader.run_all(path)) == []
        reader.look(f"2-{path}")
    reader.follow("exercises/prepare", "exercises/prepare.ipynb")
    reader.back_to("ingest.ipynb")
    reader.follow("exercises/ingest", "exercises/ingest.ipynb")
    told = json.dumps(reader.run_all("exercises/ingest.ipynb"))
    assert told.count("Not attempted") >= 4 and "Error" not in told
    reader.answer(reader.cell("known = ..."), WRONG)
    verdict = reader.cell("check(1)").locator(".jp-OutputArea")
    until(
        lambda: "Not yet" in verdict.inner_text(),
        90,
        "the wrong answer is not yet right",
    )
    assert "known counts January 2009 too" in verdict.inner_text()
    reader.look("3-not-yet")
    reader.answer(reader.cell("known = len"), RIGHT)
    until(lambda: "Correct" in verdict.inner_text(), 90, "the right answer is correct")
    reader.look("4-correct")
    reader.back_to("index.ipynb")
    assert "exercises solved" in json.dumps(reader.run_all("index.ipynb"))
    reader.page.get_by_text("exercises solved").first.scroll_into_view_if_needed()
    reader.look("5-progress")
    assert reader.page.get_by_text("1 of 4", exact=True).count() == 1
    assert [
        url for url in reader.asked if not url.startswith((lab, "data:", "blob:"))
    ] == [], "nothing is asked of another host"
    assert reader.errors == []
    print(f"{time.monotonic() - began:.0f} s; screenshots in {tmp_path}")
