"""Execute a notebook, and make the result a function of its inputs."""

import atexit
import gc
import hashlib
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from housemlops.settings import WorkbookError


class StageFailed(WorkbookError):
    """A stage did not finish; the sentence names the cell.

    Args:
        sentence: For people.
        result: What is known of the run, for `housemlops run --json`.
    """

    def __init__(self, sentence: str, result: dict | None = None):
        super().__init__(sentence)
        self.result = result or {}


def speed_up_start():
    """Spare this process seconds of start-up.

    papermill imports a JSON schema checker that compiles a grammar of international
    web addresses; the checker does without where the module counts as not installed.
    The garbage collector is asked rarely, and not at all at the end.
    """
    sys.modules.setdefault("rfc3987_syntax", None)
    gc.set_threshold(50_000, 20, 100)
    atexit.register(gc.freeze)


def cell_line(cell: dict, number: int, total: int, seconds: float) -> str:
    """Return what the log says about an executed cell: number, seconds, first line."""
    code = [
        line
        for line in cell["source"].splitlines()
        if line.strip() and not line.startswith("#")
    ]
    return f"[{number:>3}/{total}] {seconds:5.1f} s  {code[0][:80] if code else ''}"


def reporting_engine() -> type:
    """Return papermill's engine, with a line in the log after each code cell."""
    from papermill.engines import NBClientEngine

    class Reporting(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **options):
            complete, clock = nb_man.cell_complete, [time.monotonic()]

            def report(cell, cell_index=0, **more):
                complete(cell, cell_index=cell_index, **more)
                seconds, clock[0] = time.monotonic() - clock[0], time.monotonic()
                if cell.cell_type == "code":
                    total = len(nb_man.nb.cells)
                    print(cell_line(cell, cell_index + 1, total, seconds), flush=True)

            nb_man.cell_complete = report
            return super().execute_managed_notebook(nb_man, kernel_name, **options)

    return Reporting


def check_executed(notebook: dict, stage: str):
    """Refuse a notebook in which a code cell did not run.

    A kernel that dies leaves a notebook whose cells all look complete, so the absence
    of an error is not enough: each cell must have an execution count.

    Raises:
        StageFailed: With the number of the first such cell.
    """
    for number, cell in enumerate(notebook["cells"], 1):
        skipped = "skip-execution" in cell["metadata"].get("tags", [])
        if cell["cell_type"] != "code" or not cell["source"] or skipped:
            continue
        failed = any(output["output_type"] == "error" for output in cell["outputs"])
        if failed or cell["execution_count"] is None:
            raise StageFailed(
                f"{stage} stopped at cell {number} of nbs/{stage}.ipynb, which did not run to its end; run it again."
            )


def strip_paths(value: Any, places: dict[str, str]) -> Any:
    """Remove from the JSON of an output what differs between two machines.

    Args:
        value: A JSON value.
        places: Absolute folder -> what to write instead.

    Returns:
        The same, without these folders and without memory addresses.
    """
    if isinstance(value, list):
        return [strip_paths(item, places) for item in value]
    if isinstance(value, dict):
        return {
            key: item if key.startswith("image/") else strip_paths(item, places)
            for key, item in value.items()
        }
    if not isinstance(value, str):
        return value
    for place, name in places.items():
        value = value.replace(place, name)
    return re.sub(r"\bat 0x[0-9a-f]{6,}", "at 0x…", value)


def stable_style_ids(output: dict) -> dict:
    """Replace the random names that pandas gives to styled tables by hashes of the content."""
    text = json.dumps(output)
    for name in dict.fromkeys(re.findall(r"#T_([0-9a-f]{5})_", text)):
        digest = hashlib.md5(text.replace(name, "").encode()).hexdigest()
        text = text.replace(f"T_{name}", f"T_{digest[:5]}")
    return json.loads(text)


def normalise(notebook: dict, places: dict[str, str]) -> dict:
    """Take out of an executed notebook what is not a function of its inputs.

    Args:
        notebook: Changed in place.
        places: Absolute folder -> what to write instead.

    Returns:
        The same notebook.
    """
    notebook["metadata"] = {
        "kernelspec": notebook["metadata"]["kernelspec"],
        "language_info": {
            "name": "python",
            "pygments_lexer": "ipython3",
            "file_extension": ".py",
        },
    }
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags")
        cell["metadata"] = {"tags": tags} if tags else {}
        if "injected-parameters" in (tags or []):
            cell["id"] = "injected-parameters"
        for output in cell.get("outputs", []):
            output.update(stable_style_ids(strip_paths(dict(output), places)))
    return notebook


def as_html(notebook: dict, title: str) -> str:
    """Render an executed notebook as one page that loads nothing."""
    from nbconvert import HTMLExporter

    links = (
        "require_js_url",
        "mathjax_url",
        "mermaid_js_url",
        "mermaid_layout_elk_js_url",
        "jquery_url",
        "jupyter_widgets_base_url",
    )
    exporter = HTMLExporter(embed_images=True, **dict.fromkeys(links, ""))
    return exporter.from_notebook_node(notebook, {"metadata": {"name": title}})[0]


def stage_failure(error: Exception, stage: str) -> StageFailed:
    """Say in one sentence why a notebook stopped.

    Args:
        error: From papermill or nbclient.
        stage: Name of the notebook.
    """
    if getattr(error, "ename", "") == "WorkbookError":
        return StageFailed(f"{stage}: {error.evalue}")
    if hasattr(error, "ename"):
        print(
            f"\nThe failing cell of nbs/{stage}.ipynb:\n\n{error.source}\n\n"
            + re.sub(r"\x1b\[[\d;]*m", "", "\n".join(error.traceback)),
            flush=True,
        )
        why = " ".join(str(error.evalue).split())[:200] or "no message"
        return StageFailed(
            f"{stage} stopped in a cell of nbs/{stage}.ipynb with {error.ename}: {why}"
        )
    # jupyter_client says in words only that a kernel died while it started
    if type(error).__name__ == "DeadKernelError" or "Kernel died" in str(error):
        return StageFailed(
            f"{stage} stopped because the kernel of nbs/{stage}.ipynb died, as when it is killed or out of memory; run it again."
        )
    return StageFailed(f"{stage} stopped: {type(error).__name__}: {error}")


def without_lessons(notebook: dict) -> dict:
    """Turn the cells tagged `lesson` of a notebook into text, in place.

    A scheduled run executes what makes the result and its report.
    """
    for place, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code" and "lesson" in cell["metadata"].get("tags", []):
            notebook["cells"][place] = type(cell)(
                cell_type="markdown",
                id=cell["id"],
                metadata=cell["metadata"],
                source=f"*Demonstration, skipped in a scheduled run:*\n\n```python\n{cell['source']}\n```",
            )
    return notebook


def execute(source: Path, draft: Path, values: dict[str, Any], folder: Path) -> dict:
    """Execute a notebook with papermill.

    Args:
        source: The notebook.
        draft: Written after each cell.
        values: Parameters.
        folder: Working directory.

    Returns:
        The executed notebook.

    Raises:
        StageFailed: When a cell raises, the kernel dies or a cell did not run.
    """
    import nbformat
    from papermill import execute_notebook
    from papermill.engines import papermill_engines
    from traitlets.config import Config

    papermill_engines.register("reporting", reporting_engine())
    try:
        execute_notebook(
            without_lessons(nbformat.read(source, as_version=4)),
            draft,
            values,
            engine_name="reporting",
            progress_bar=False,
            cwd=folder,
            kernel_name="python3",
            language="python",
            coalesce_streams=True,
            config=Config(KernelManager={"transport": "ipc"}),
        )
        notebook = nbformat.read(draft, as_version=4)
        check_executed(notebook, source.stem)
    except StageFailed:
        raise
    except Exception as error:
        raise stage_failure(error, source.stem) from error
    return notebook
