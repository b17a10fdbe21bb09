"""Every notebook runs from top to bottom in a kernel of its own, as in JupyterLab.

A cell with the tag `check-output` must also give again what is stored in it.
"""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

from checkout import ROOT

NOTEBOOKS = sorted(path.stem for path in (ROOT / "nbs").glob("*.ipynb"))


def text_of(cell) -> list[str]:
    "The outputs of a cell as text, in order; pieces of one stream are one."
    shown = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            if shown and shown[-1][0] == output["name"]:
                shown[-1][1] += output["text"]
            else:
                shown.append([output["name"], output["text"]])
        for kind, data in sorted(output.get("data", {}).items()):
            if kind.startswith("text/"):
                shown.append([kind, data])
    return [f"{kind}:\n{text.rstrip()}" for kind, text in shown]


def execute(notebook, sockets: Path) -> None:
    "Execute a notebook in place, with this checkout's modules, in the folder nbs/."
    # Kernels that start side by side may choose the same TCP port; a folder of sockets is their own.
    manager = {"transport": "ipc", "ip": str(sockets / "kernel")}
    NotebookClient(
        notebook,
        timeout=900,
        startup_timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT / "nbs")}},
        config=Config(KernelManager=manager),
    ).execute()


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_and_its_marked_cells_give_what_is_stored(name, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    stored = nbformat.read(ROOT / f"nbs/{name}.ipynb", as_version=4)
    executed = copy.deepcopy(stored)
    try:
        with TemporaryDirectory() as sockets:
            execute(executed, Path(sockets))
    except CellExecutionError as error:
        pytest.fail(f"nbs/{name}.ipynb: {error}", pytrace=False)
    for before, after in zip(stored.cells, executed.cells):
        if "check-output" in before.metadata.get("tags", []):
            assert text_of(after) == text_of(before), before.source


def test_a_changed_output_of_a_marked_cell_is_seen():
    cell = nbformat.v4.new_code_cell("1 + 1", id="sum")
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="a\n"),
        nbformat.v4.new_output("stream", name="stdout", text="b\n"),
        nbformat.v4.new_output("execute_result", data={"text/plain": "2"}),
    ]
    assert text_of(cell) == ["stdout:\na\nb", "text/plain:\n2"]
    other = copy.deepcopy(cell)
    other.outputs[2].data["text/plain"] = "3"
    assert text_of(other) != text_of(cell)


def test_cells_with_a_stored_result_are_marked_in_several_notebooks():
    marked = [
        name
        for name in NOTEBOOKS
        if "check-output" in (ROOT / f"nbs/{name}.ipynb").read_text(encoding="utf-8")
    ]
    assert len(marked) >= 7
