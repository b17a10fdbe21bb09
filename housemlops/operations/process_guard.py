"""End every process that a supervisor started, also when the supervisor is killed."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import psutil

from housemlops.processes import end_marked, marked_processes


def stop_marked(mark: str, grace: float = 6.0) -> int:
    """Ask processes with a mark to end, then kill what is left.

    Only those that no other of them started are asked, so that each can end its own
    children in order: JupyterLab its kernels, a server after its last response.

    Args:
        mark: Name of an environment variable that they have.
        grace: Seconds between asking and killing.

    Returns:
        How many processes there were.
    """
    members = marked_processes(mark)
    ids = {process.pid for process in members}
    for process in members:
        with suppress(psutil.Error):
            if process.ppid() not in ids:
                process.terminate()
    psutil.wait_procs(members, timeout=grace)
    end_marked(mark, grace=0, limit=30)
    return len(members)


def reap_orphans(own: Iterable[int] = ()) -> None:
    """Reap adopted processes that have ended.

    Args:
        own: Processes that somebody else waits for.
    """
    for process in psutil.Process().children():
        with suppress(psutil.Error, ChildProcessError):
            if process.pid not in own and process.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(process.pid, os.WNOHANG)


def stop_after_parent(mark: str) -> None:
    """Wait until the supervisor is gone, then stop what it left.

    The supervisor alone holds the other end of standard input.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    stop_marked(mark, grace=4.0)


@contextmanager
def guarded(mark: str) -> Iterator[None]:
    """Stop the processes with a mark when the block ends, or this process is killed."""
    code = (
        "from housemlops.operations.process_guard import stop_after_parent; "
        f"stop_after_parent({mark!r})"
    )
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # 36 is PR_SET_CHILD_SUBREAPER
    command = [sys.executable, "-c", code]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        stop_marked(mark)
        reap_orphans([guard.pid])
        guard.stdin.close()
        guard.wait()
