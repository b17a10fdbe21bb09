"""Find and end every process that one supervisor started."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import psutil

MARK = "HOUSEMLOPS_UP"


def carries(
    process: psutil.Process,
    mark: str,
) -> bool:
    "Whether a process was started, directly or not, by the `up` with this mark."
    try:
        return (
            process.environ().get(MARK) == mark
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.Error:
        return False


def family(mark: str) -> list[psutil.Process]:
    """Every running process with this mark, wherever it has moved.

    Returns:
        Without ourselves.
    """
    return [
        process
        for process in psutil.process_iter()
        if process.pid != os.getpid() and carries(process, mark)
    ]


def parent(process: psutil.Process) -> int:
    """Number of the parent process.

    Returns:
        0 when the process is gone.
    """
    with suppress(psutil.Error):
        return process.ppid()
    return 0


def heads(members: list[psutil.Process]) -> list[psutil.Process]:
    """Those that no other member started.

    Args:
        members: A family.
    """
    numbers = {process.pid for process in members}
    return [process for process in members if parent(process) not in numbers]


def is_gone(
    process: psutil.Process,
) -> bool:
    "Whether a process has ended; if it was our child, we take leave of it."
    with suppress(psutil.Error, ChildProcessError):
        if process.status() != psutil.STATUS_ZOMBIE:
            return False
        if parent(process) == os.getpid():
            os.waitpid(process.pid, os.WNOHANG)
    return True


def wait_for(processes: list[psutil.Process], patience: float):
    """Wait until all have ended, or patience has.

    Args:
        patience: Seconds.
    """
    end = time.monotonic() + patience
    while time.monotonic() < end and not all(
        [is_gone(process) for process in processes]
    ):
        time.sleep(0.05)


def stop(mark: str, grace: float = 6.0) -> int:
    """Ask the house to end, then end what is left of it.

    Args:
        grace: Seconds between asking and killing.

    Returns:
        How many processes there were.
    """
    members = family(mark)
    for process in heads(members):
        with suppress(psutil.Error):
            process.terminate()
    wait_for(members, grace)
    while left := family(mark):
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        wait_for(left, 2)
    return len(members)


def collect_orphans(own: Iterable[int]):
    """Take leave of adopted processes that ended, so that their numbers become free.

    Args:
        own: Processes that somebody else waits for.
    """
    for process in psutil.Process().children():
        with suppress(psutil.Error, ChildProcessError):
            if process.pid not in own and process.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(process.pid, os.WNOHANG)


def guard(
    mark: str,
):
    "Wait until the supervisor is gone, then stop what it left. Runs in a process of its own."
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    stop(mark, grace=4.0)


@contextmanager
def guarded(
    mark: str,
) -> Iterator[None]:
    "Keep a guard beside us for as long as the block runs; nothing of the house is left after it."
    command = [
        sys.executable,
        "-c",
        f"from housemlops.operations.process_family import guard; guard({mark!r})",
    ]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    watchman = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        stop(mark)
        collect_orphans([watchman.pid])
        watchman.stdin.close()
        watchman.wait()
