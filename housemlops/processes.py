"""End what a program started together with it, and read its output no longer than it runs."""

# A pipe ends when the last process that holds it has ended, not when the program that was
# started has: a worker that outlives a killed notebook kernel keeps a reader waiting for ever.
# So readers here end with the program, and what it left behind is found by a variable in its
# environment, which descendants inherit from their first moment, whoever their parent is now.

import os
import queue
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryFile

import psutil


def marked_processes(mark: str) -> list[psutil.Process]:
    """Return the running processes whose environment has the variable `mark`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if mark in process.environ() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end_marked(mark: str, grace: float = 2.0, limit: float = 5.0) -> None:
    """Ask the processes with a mark to end, and kill those that have not.

    Args:
        mark: Name of the environment variable that they have.
        grace: Seconds between asking and killing.
        limit: Seconds after which nothing more is tried.
    """
    began = time.monotonic()
    for process in marked_processes(mark):
        with suppress(psutil.Error):
            process.terminate()
    while left := marked_processes(mark):
        waited = time.monotonic() - began
        if waited > limit:
            return
        for process in left if waited > grace else []:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)


@contextmanager
def marked(environ: dict[str, str] | None = None) -> Iterator[dict[str, str]]:
    """Give the environment for a child; with the block end the child and all its descendants.

    Args:
        environ: What the child gets; this process's environment when not given.
    """
    mark = f"HOUSEMLOPS_MARK_{secrets.token_hex(8)}"
    try:
        yield {**(os.environ if environ is None else environ), mark: "1"}
    finally:
        end_marked(mark)


@contextmanager
def started(
    command: list, env: dict[str, str] | None = None, **options
) -> Iterator[subprocess.Popen]:
    """Start a program to be read with `read_lines`; with the block end all that it started.

    Args:
        command: Program and arguments.
        env: Its environment; that of this process when not given.
        options: More arguments of `subprocess.Popen`.
    """
    with marked(env) as environ:
        yield subprocess.Popen(
            command,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            **options,
        )


def read_lines(process: subprocess.Popen, grace: float = 1.0) -> Iterator[str]:
    """Yield the lines that a process prints, until it has ended.

    Args:
        process: Started with its output as text in a pipe.
        grace: Seconds to empty the pipe in after the end, when somebody else holds it open.
    """
    lines = queue.SimpleQueue()

    def read():
        for line in process.stdout:
            lines.put(line)

    def finish():
        process.wait()
        reader.join(grace)
        lines.put(None)

    # The reader may block in a read for as long as the pipe is held: nobody waits for it.
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    threading.Thread(target=finish, daemon=True).start()
    yield from iter(lines.get, None)


def run_captured(
    command: list, env: dict[str, str] | None = None, **options
) -> subprocess.CompletedProcess:
    """Run a program and return its output as text; with it end all that it started.

    Like `subprocess.run(…, capture_output=True, text=True)`, but the output goes to
    files, so that a process that the program left behind cannot make the caller wait.

    Args:
        command: Program and arguments.
        env: Its environment; that of this process when not given.
        options: More arguments of `subprocess.run`.
    """
    with TemporaryFile() as out, TemporaryFile() as err, marked(env) as environ:
        done = subprocess.run(
            command, env=environ, stdout=out, stderr=err, text=True, **options
        )
        for file, name in ((out, "stdout"), (err, "stderr")):
            file.seek(0)
            setattr(done, name, file.read().decode(errors="replace"))
    return done
