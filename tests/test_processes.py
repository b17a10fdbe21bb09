"A stage's processes end with it, and who reads a program's output waits for the program only."

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from checkout import ROOT
from housemlops.pipeline.notebook import StageFailed
from housemlops.pipeline.task import repro
from housemlops.processes import read_lines, run_captured, started

KERNEL = """
import time
from joblib import Parallel, delayed
from housemlops.estimators import one_process_per_core
with one_process_per_core(): Parallel()(delayed(time.sleep)(60) for _ in range(8))
"""

# A notebook's kernel has a session of its own, and its stage fails when it dies.
STAGE = f"""
import subprocess, sys
from pathlib import Path
kernel = subprocess.Popen([sys.executable, "-c", {KERNEL!r}], start_new_session=True)
Path("draft").write_text(str(kernel.pid))
Path("draft").rename("kernel")
sys.exit(kernel.wait() != 0)
"""

# Ends at once and leaves a process that holds its output, in a session of its own.
LEAVES = """
import subprocess
left = subprocess.Popen(["sleep", "60"], start_new_session=True)
print(left.pid, flush=True)
"""


@pytest.fixture(scope="module")
def stage_project(tmp_path_factory) -> Path:
    "A DVC project with a stage whose kernel starts workers, as that of `train` does"
    path = tmp_path_factory.mktemp("project")
    (path / "housemlops").symlink_to(ROOT / "housemlops")
    (path / "stage.py").write_text(STAGE)
    (path / "dvc.yaml").write_text("stages:\n  train:\n    cmd: python stage.py\n")
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--quiet", "--no-scm"], cwd=path, check=True)
    return path


def wait_for(what: str, found: Callable, patience: float = 60) -> Any:
    "What a function returns, as soon as that is something"
    end = time.monotonic() + patience
    while not (result := found()):
        assert time.monotonic() < end, f"no {what} within {patience} s"
        time.sleep(0.01)
    return result


def is_running(pid: int) -> bool:
    "Whether a process exists and is no zombie"
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def has_workers(kernel: psutil.Process) -> bool:
    "Whether a kernel has started a worker"
    for child in kernel.children():
        with contextlib.suppress(psutil.Error):
            if "LokyProcess" in " ".join(child.cmdline()):
                return True
    return False


def still_running(
    processes: list[psutil.Process], patience: float
) -> list[psutil.Process]:
    "Those that have not ended within some seconds; they are killed now"
    end = time.monotonic() + patience
    while left := [process for process in processes if is_running(process.pid)]:
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return left


def kill_kernel(kernel: psutil.Process, moment: float) -> list[psutil.Process]:
    "Kill a kernel some seconds after its first worker appeared; its children then"
    wait_for("worker", lambda: has_workers(kernel))
    time.sleep(moment)
    children = kernel.children()  # workers, and what cleans up after them
    kernel.kill()
    return children


@pytest.mark.parametrize("moment", [0.0, 0.2, 0.6])
def test_a_kernel_killed_while_its_workers_start_fails_its_stage(stage_project, moment):
    note = stage_project / "kernel"
    note.unlink(missing_ok=True)
    with ThreadPoolExecutor(1) as runner:
        run = runner.submit(repro, ROOT, stage_project, "train", None, force=True)
        wait_for("kernel", note.exists)
        children = kill_kernel(psutil.Process(int(note.read_text())), moment)
        try:
            with pytest.raises(StageFailed, match="failed to reproduce 'train'"):
                run.result(timeout=60)
        finally:
            left = still_running(children, patience=5)
    assert len(children) >= 2 and left == []


@pytest.mark.slow
def test_workers_that_start_without_their_parent_end_by_themselves():
    "Where a stage is typed by hand, nobody looks for what it left"
    kernel = psutil.Popen([sys.executable, "-c", KERNEL], cwd=ROOT)
    children = kill_kernel(kernel, 0)
    kernel.wait()
    left = still_running(children, patience=60)
    assert len(children) >= 2 and left == []


def test_a_reader_ends_with_its_process_and_what_that_left_ends_with_the_block():
    began = time.monotonic()
    with started([sys.executable, "-c", LEAVES]) as process:
        (line,) = read_lines(process)
        assert process.returncode == 0 and is_running(int(line))
    assert not is_running(int(line))
    assert time.monotonic() - began < 45


def test_captured_output_ends_with_its_process():
    began = time.monotonic()
    done = run_captured([sys.executable, "-c", LEAVES])
    assert not is_running(int(done.stdout))
    assert time.monotonic() - began < 45


def test_all_lines_are_read():
    program = "import sys; [print(i) for i in range(50_000)]; sys.exit(3)"
    with started([sys.executable, "-c", program]) as process:
        lines = [*read_lines(process)]
    assert lines == [f"{i}\n" for i in range(50_000)] and process.returncode == 3


def test_what_was_started_ends_with_a_caller_that_stops():
    with pytest.raises(KeyboardInterrupt):
        with started(["sleep", "60"]) as process:
            raise KeyboardInterrupt
    assert process.wait(5) == -signal.SIGTERM


def test_captured_output_and_input():
    program = (
        "import sys; print(sys.stdin.read()); print('é', file=sys.stderr); exit(4)"
    )
    done = run_captured(
        [sys.executable, "-c", program], input="in", env=os.environ | {"LC_ALL": "C"}
    )
    assert (done.returncode, done.stdout, done.stderr) == (4, "in\n", "é\n")
