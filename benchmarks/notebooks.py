"""How long does each notebook take to run on the sample, the start of its kernel included?

    .venv/bin/python benchmarks/notebooks.py               # all of them, about eight minutes on two cores
    .venv/bin/python benchmarks/notebooks.py ingest train  # some of them

It prints the seconds of each notebook and keeps them in nbs/site/notebooks.json, from which the site's tables are made: commit that file.
It needs nothing but the environment; the sample of the stages is made first, once.
"""

import argparse
import json
import os
import subprocess
import sys
import time

from lib.checkout import ROOT, make_parser, run_benchmark

KEPT = ROOT / "nbs/site/notebooks.json"
TIME_LIMIT = 600  # seconds, of a cell


def notebook_names() -> set[str]:
    """Return the names of the notebooks that can be timed."""
    return {path.stem for path in (ROOT / "nbs").glob("*.ipynb")}


def parse_arguments() -> argparse.Namespace:
    """Return what was asked for on the command line."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="of a notebook, without .ipynb"
    )
    arguments = parser.parse_args()
    unknown = sorted({*arguments.names} - notebook_names())
    if unknown:
        known = ", ".join(sorted(notebook_names()))
        parser.error(f"there is no notebook {', '.join(unknown)}; choose from {known}")
    return arguments


def all_names() -> list[str]:
    """Return all notebooks: the stages in their order, then the others by name."""
    from housemlops.pipeline.graph import graph, pipeline

    stages = [*graph(pipeline(ROOT))]
    return [*stages, *sorted(notebook_names() - {*stages})]


def make_sample() -> None:
    """Make the sample of every stage, so that no notebook is charged for it."""
    code = "from housemlops.pipeline.sample import open_build; open_build('sample', 'monitor')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def execution_seconds(name: str) -> float:
    """Return how long a notebook takes.

    Raises:
        WorkbookError: One of its cells failed.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError
    from nbformat import read

    from housemlops.settings import WorkbookError

    began = time.monotonic()
    client = NotebookClient(
        read(ROOT / f"nbs/{name}.ipynb", as_version=4),
        timeout=TIME_LIMIT,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT / "nbs")}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        reason = f"{error.ename}: {error.evalue}"
    except CellTimeoutError:
        reason = f"a cell took more than {TIME_LIMIT} seconds"
    else:
        return round(time.monotonic() - began, 1)
    raise WorkbookError(
        f"nbs/{name}.ipynb could not be timed: {reason}. "
        "Open it with `housemlops lab` to see the cell."
    )


def keep_seconds(seconds: dict[str, float]) -> None:
    """Write the seconds of the notebooks that still exist."""
    names = sorted(seconds.keys() & notebook_names())
    content = {
        "made by": "benchmarks/notebooks.py",
        "cores": os.cpu_count(),
        "seconds": {name: seconds[name] for name in names},
    }
    KEPT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main(arguments: argparse.Namespace) -> None:
    """Time the notebooks that were asked for, and keep the seconds of each."""
    seconds = {}
    if KEPT.exists():
        seconds = json.loads(KEPT.read_text(encoding="utf-8"))["seconds"]
    make_sample()
    for name in arguments.names or all_names():
        seconds[name] = execution_seconds(name)
        print(f"{name:16}{seconds[name]:6.1f} s", flush=True)
        keep_seconds(seconds)


if __name__ == "__main__":
    run_benchmark(main, parse_arguments())
