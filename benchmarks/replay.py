"""How long does the time machine take, and how much memory? The whole replay, in a fresh clone with an empty cache, and then once more.

    .venv/bin/python benchmarks/replay.py                              # 31 months of Ames, some twenty minutes on two cores
    .venv/bin/python benchmarks/replay.py --from 2009-06 --to 2009-10  # five of them
    .venv/bin/python benchmarks/replay.py --quick                      # two of them
    .venv/bin/python benchmarks/replay.py --again                      # continue in the clone of the last time

It prints the seconds and the peak of the memory of both replays, the seconds of each stage, and what the months showed.

The clone is this checkout as it is, uncommitted edits included, in a scratch folder (--folder). Every process of the replay is found by a mark in
its environment, also when its parent has gone. Memory is their proportional set size (PSS): pages that processes share are counted once. A stage's
seconds are from its start to its end, while other months may be at work beside it, so their sum is larger than the whole.

It needs git, some 4 GB of memory and Linux, which alone tells the PSS. The clone fetches its data by itself.
"""

import argparse
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from statistics import median
from tempfile import gettempdir

import psutil

from lib.checkout import ROOT, absolute_path, make_parser, run_benchmark

MARK = "HOUSEMLOPS_BENCHMARK_MARK"
OWN_CLONE = ".git/housemlops-benchmark"  # marks a clone that may be replaced
PORTS = ("AIRFLOW", "MLFLOW", "SERVER", "FRONT", "JUPYTER")


class Watch(threading.Thread):
    "The memory of all processes that carry a mark, looked at every so often until it is told to stop"

    def __init__(self, mark: str, every: float = 1.0):
        super().__init__(daemon=True)
        self.mark, self.every, self.over = mark, every, threading.Event()
        self.peak, self.processes, self.known = 0.0, 0, {}

    def ours(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error, OSError):
            key = process.pid, process.create_time()
            if key not in self.known:
                self.known[key] = process.environ().get(MARK) == self.mark
            return self.known[key]
        return False

    def look(self) -> tuple[float, int]:
        "MB of all of them, and how many there are"
        total, count = 0, 0
        for process in filter(self.ours, psutil.process_iter()):
            with suppress(psutil.Error, OSError):
                total, count = total + process.memory_full_info().pss, count + 1
        return total / 1e6, count

    def run(self):
        while not self.over.wait(self.every):
            memory, processes = self.look()
            if memory > self.peak:
                self.peak, self.processes = memory, processes


def clone(folder: Path) -> None:
    "This checkout as it is, without what it has run"
    from housemlops.core.repository import snapshot
    from housemlops.settings import WorkbookError

    if folder.exists() and any(folder.iterdir()) and not (folder / OWN_CLONE).exists():
        raise WorkbookError(
            f"{folder} is not a clone that this benchmark made, so it is not replaced: "
            "name another folder with --folder."
        )
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, folder], check=True)
    (folder / OWN_CLONE).touch()
    subprocess.run(
        [
            "git",
            "-C",
            folder,
            "checkout",
            "--quiet",
            "-B",
            "main",
            snapshot(ROOT)[0],
        ],
        check=True,
    )


def replay(
    folder: Path, first: str, last: str
) -> tuple[float, Watch, int]:  # seconds, memory, processes left over
    "One replay in the clone; its own words are printed"
    mark = secrets.token_hex(8)
    ports = {
        f"HOUSEMLOPS_{name}_PORT": str(21000 + os.getpid() % 9000 + i)
        for i, name in enumerate(PORTS)
    }
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HOUSEMLOPS_", "AIRFLOW", "MLFLOW"))
    }
    watch, began = Watch(mark), time.monotonic()
    watch.start()
    subprocess.run(
        [
            Path(sys.executable).with_name("housemlops"),
            "replay-history",
            "--from",
            first,
            "--to",
            last,
        ],
        cwd=folder,
        env={**kept, **ports, MARK: mark, "PYTHONPATH": str(folder)},
        check=True,
    )
    seconds = time.monotonic() - began
    watch.over.set()
    watch.join()
    return seconds, watch, watch.look()[1]


def stages(
    history: Path,
) -> dict[
    str, list[float]
]:  # stage -> seconds of each run, those of the first champion included
    "What the stages took, as the months remember"
    found = defaultdict(list)
    for note in [
        *sorted(history.glob("*/run.json")),
        *sorted(history.glob("*/retraining.json")),
        *history.glob("first.json"),
    ]:
        for stage, seconds in json.loads(note.read_text()).get("seconds", {}).items():
            if stage != "total":
                found[stage].append(seconds)
    return found


def folder_size(folder: Path) -> float:  # MB
    return (
        sum(
            path.stat().st_size
            for path in folder.rglob("*")
            if path.is_file() and not path.is_symlink()
        )
        / 1e6
    )


def parse_month(text: str) -> str:
    """Return a month; anything else is wrong usage."""
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a month such as 2009-06")
    return text


def parse_arguments() -> argparse.Namespace:
    """Return what was asked for on the command line."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--from",
        dest="first",
        type=parse_month,
        default="2008-01",
        help="first month (default: 2008-01)",
    )
    parser.add_argument(
        "--to",
        dest="last",
        type=parse_month,
        default="2010-07",
        help="last month (default: 2010-07)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="the same as --from 2009-06 --to 2009-07"
    )
    parser.add_argument(
        "--folder",
        type=absolute_path,
        default=Path(gettempdir()) / "housemlops-replay",
        help="where the clone is made (default: housemlops-replay among the temporary files)",
    )
    parser.add_argument(
        "--again", action="store_true", help="continue in the clone that is there"
    )
    if parser.parse_args().quick:
        parser.set_defaults(first="2009-06", last="2009-07")
    arguments = parser.parse_args()
    if arguments.first > arguments.last:
        parser.error(f"--from {arguments.first} is later than --to {arguments.last}")
    return arguments


def main(given: argparse.Namespace) -> None:
    """Replay the months twice, and print the time, the memory and the stages."""
    from housemlops.operations.timeline import read_months
    from housemlops.settings import WorkbookError
    from housemlops.site.timeline_page import history_facts

    if given.again and not (given.folder / OWN_CLONE).exists():
        raise WorkbookError(
            f"There is no clone in {given.folder} to continue in: leave out --again."
        )
    print(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {psutil.virtual_memory().total / 1e9:.0f} GB, Python {platform.python_version()}"
    )
    if not given.again:
        clone(given.folder)
    state = given.folder / "var/replay"
    for name in (["continued"] if given.again else ["from an empty cache"]) + [
        "nothing changed"
    ]:
        seconds, watch, left = replay(given.folder, given.first, given.last)
        print(
            f"{name}: {seconds:.0f} s, at most {watch.peak:,.0f} MB (PSS) in {watch.processes} processes, {left} left over\n"
        )
    print(f"{'stage':<10} {'runs':>5} {'median s':>9} {'all s':>7}")
    taken = stages(state / "history")
    for stage, seconds in taken.items():
        print(
            f"{stage:<10} {len(seconds):>5} {median(seconds):>9.1f} {sum(seconds):>7.0f}"
        )
    print(
        f"{'all':<10} {sum(map(len, taken.values())):>5} {'':>9} {sum(map(sum, taken.values())):>7.0f}"
    )
    print()
    for label, value, note in history_facts(read_months(state / "history")):
        print(f"{label}: {value}, {note}")
    for name in ("page", "history"):
        print(f"{name}: {folder_size(state / name):.0f} MB")


if __name__ == "__main__":
    run_benchmark(main, parse_arguments())
