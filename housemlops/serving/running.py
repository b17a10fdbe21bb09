"""Start a generated server and ask it."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from housemlops.settings import Settings, WorkbookError, end_with_parent, settings


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ask(url: str, body: object = None, timeout: float = 10.0) -> tuple[int, object]:
    """Send a GET, or a POST of JSON, past any proxy, since the servers are on this machine.

    Returns:
        The status and the decoded JSON of the answer.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=timeout
        ) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def wait_until_alive(
    url: str, process: subprocess.Popen, patience: float, errors: str | Path
) -> None:
    """Wait until a server answers /livez.

    Args:
        url: Of the server.
        process: That was started.
        patience: Seconds.
        errors: File that the server writes its errors to.

    Raises:
        WorkbookError: With the last line of its errors, when it does not answer.
    """
    end = time.monotonic() + patience
    while time.monotonic() < end and process.poll() is None:
        try:
            if ask(f"{url}/livez", timeout=1)[0] == 200:
                return
        except OSError:
            time.sleep(0.1)
    told = (
        Path(errors).read_text(errors="replace").strip().splitlines()[-1:]
        if process.poll() is not None
        else ["no answer"]
    )
    raise WorkbookError(
        f"The generated server did not start: {' '.join(told) or 'it ended without a word'}"
    )


@contextmanager
def running(
    server: Path, patience: float = 30.0, environ: dict[str, str] | None = None
) -> Iterator[str]:
    """Run a generated server on a free loopback port.

    Args:
        server: Folder of a generated server.
        patience: Seconds to wait for it.
        environ: Settings of the server; its predictions are forgotten when none is given.

    Yields:
        Its address.

    Raises:
        WorkbookError: When it does not start.
    """
    if not (server / "app.py").exists():
        raise WorkbookError(
            f"There is no generated server in {server}: run the stage `serve`"
        )
    port = free_port()
    command = [sys.executable, "app.py", "--port", str(port), "--log-level", "warning"]
    with TemporaryDirectory() as scratch, open(f"{scratch}/errors.txt", "w") as errors:
        own = {
            name: value
            for name, value in os.environ.items()
            if name != "PYTHONPATH" and not name.startswith("HOUSE_")
        }
        own["PYTHONDONTWRITEBYTECODE"] = "1"  # the folder stays as it was generated
        if environ is None:
            environ = {"HOUSE_DATABASE_URL": f"sqlite:///{scratch}/predictions.db"}
        process = subprocess.Popen(
            command,
            cwd=server,
            env=own | environ,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            preexec_fn=partial(end_with_parent, os.getpid()),
        )
        try:
            wait_until_alive(f"http://127.0.0.1:{port}", process, patience, errors.name)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def serve_folder() -> Path:
    """Return the folder of the releases."""
    return settings().paths.state / "serve"


def live_environment(chosen: Settings) -> dict[str, str]:
    """Return the variables of the live server, on top of those of the process.

    It follows the current release, and keeps its prediction log.
    """
    home = chosen.paths.state / "serve"
    return {
        "HOUSE_MODEL": str(home / "current/model"),
        "HOUSE_DATABASE_URL": chosen.server.database_url
        or f"sqlite:///{home / 'predictions.db'}",
        "PYTHONPATH": "",
    }
