"""Start, watch, restart and stop a set of services."""

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path

import psutil

from housemlops.operations.process_family import MARK, family, is_gone, wait_for
from housemlops.settings import Settings


@dataclass
class Service:
    "A process to keep alive, or a job to run once."

    name: str  # of its log file, and in messages
    command: list[str]
    title: str = ""  # of its card on the front page; empty: no card
    about: str = ""  # one line for the card
    page: str = ""  # URL that people open
    health: str = ""  # URL that answers 200 when all is well
    part: str = (
        ""  # its entry in the health document, where one document speaks for several
    )
    of: str = ""  # service whose card shows it
    after: tuple[
        str, ...
    ] = ()  # services that must be well, and jobs that must be done, before
    env: dict[str, str] = field(default_factory=dict)  # on top of what all share
    cwd: Path | None = None  # the repository when not given
    follow: Path | None = (
        None  # folder or link to run in; a new target means a restart,
    )
    same: str = (
        ""  # unless this file in it is the same: then the process follows by itself
    )
    once: tuple[Path, ...] = ()  # a job, and the files that say it is done


def local(port: int, path: str = "") -> str:
    """An address on this machine, for this machine.

    Args:
        path: Begins with /.

    Returns:
        URL.
    """
    return f"http://127.0.0.1:{port}{path}"


@dataclass
class Child:
    "A service, and what is known about it now."

    service: Service
    log: Path
    process: subprocess.Popen | None = None
    began: float = 0.0  # time of its latest start
    place: Path | None = None  # folder it runs in
    crashes: int = 0  # in a row
    again: float = 0.0  # no restart before this time
    trouble: str = ""  # in words; empty: nothing known
    greeted: bool = False  # whether its readiness was announced

    @property
    def done(self) -> bool:
        "Whether this job needs no run."
        return (
            bool(self.service.once)
            and self.process is None
            and all(path.exists() for path in self.service.once)
        )

    @property
    def state(self) -> str:
        """One word for the light on the front page.

        Returns:
            Done, waiting, crashed, starting, well or ill.
        """
        if self.done:
            return "done"
        if self.process is None:
            return "crashed" if self.crashes else "waiting"
        if not self.trouble:
            return "well"
        return (
            "starting" if time.time() - self.began < 180 and not self.greeted else "ill"
        )


def open_log(path: Path, limit: int = 5_000_000):
    """Open a log to append to; a large one is set aside first.

    Args:
        limit: Bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > limit:
        path.replace(path.with_suffix(".old.log"))
    path.touch(mode=0o600)
    return path.open("ab")


def last_words(path: Path) -> str:
    """The end of a log, for a message.

    Returns:
        The last line that says something.
    """
    with suppress(OSError):
        lines = [
            line.strip()
            for line in path.read_bytes()[-4000:].decode(errors="replace").splitlines()
        ]
        return next(
            (line for line in reversed(lines) if any(map(str.isalpha, line))), ""
        )[:200]
    return ""


def start(child: Child, base: dict[str, str], folder: Path):
    """Start a child in a session of its own, with its output in its log.

    Args:
        base: Environment that all share.
        folder: Repository.
    """
    service = child.service
    child.place = (service.follow or service.cwd or folder).resolve()
    child.began, child.trouble, child.greeted = time.time(), "starts", False
    with open_log(child.log) as log:
        child.process = subprocess.Popen(
            service.command,
            cwd=child.place,
            env={**base, **service.env},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def halt(child: Child, grace: float = 5.0):
    """Stop one child and what it started.

    Args:
        grace: Seconds between asking and killing.
    """
    with suppress(psutil.Error):
        tree = [
            psutil.Process(child.process.pid),
            *psutil.Process(child.process.pid).children(recursive=True),
        ]
        for process in tree:
            process.terminate()
        wait_for(tree, grace)
        for process in tree:
            if not is_gone(process):
                process.kill()
    child.process.wait()
    child.process = None


def pause(crashes: int) -> float:
    """How long to wait before the next start.

    Args:
        crashes: In a row, at least 1.

    Returns:
        Seconds.
    """
    return min(60.0, 2.0 ** (crashes - 1))


def may_retry(child: Child) -> bool:
    """Whether a crashed child is started again.

    Returns:
        A server always, a job up to three times.
    """
    return not child.service.once or child.crashes < 3


def note_end(child: Child, now: float) -> str:
    """Record that a child's process ended by itself.

    Returns:
        What to tell.
    """
    code, child.process = child.process.returncode, None
    if child.service.once and code == 0:
        for path in child.service.once:
            path.touch()
        return f"done in {now - child.began:.0f} s"
    child.crashes = 1 if now - child.began > 60 else child.crashes + 1
    child.again = now + pause(child.crashes)
    child.trouble = f"ended by itself ({'signal' if code < 0 else 'exit code'} {abs(code)}): {last_words(child.log)}"
    following = (
        f"again in {pause(child.crashes):.0f} s" if may_retry(child) else "given up"
    )
    return f"{child.trouble} · {following} · log/{child.log.name}"


@dataclass
class House:
    "Everything that one `up` runs."

    chosen: Settings
    root: Path  # repository
    mark: str
    children: list[Child]
    began: float = field(default_factory=time.time)
    ready: float = 0.0  # seconds until all was well; 0 before
    memory: dict[str, float] = field(default_factory=dict)  # child: megabytes
    processes: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))  # of the page

    @property
    def address(self) -> str:
        "Where the front page is, with the key to the secrets on it."
        return local(self.chosen.front.port, f"/?key={self.key}")

    def child(self, name: str) -> Child | None:
        "A child by its name."
        return next(
            (child for child in self.children if child.service.name == name), None
        )


def shared_environment(chosen: Settings, root: Path, mark: str) -> dict[str, str]:
    """What every process of the house finds in its environment.

    Args:
        root: Repository.
    """
    shared = {
        MARK: mark,
        "SPT_NOENV": "1",
        "PYTHONUNBUFFERED": "1",
        "MALLOC_ARENA_MAX": "2",
        "HOUSEMLOPS_PATHS_STATE": str(chosen.paths.state),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(root), os.environ.get("PYTHONPATH")])
        ),
    }
    remote = chosen.mlflow.tracking_uri.startswith("http")
    return {
        **os.environ,
        **shared,
        "HOUSEMLOPS_MLFLOW_TRACKING_URI": chosen.mlflow.tracking_uri
        if remote
        else local(chosen.mlflow.port),
    }


def may_start(
    house: House,
    child: Child,
) -> bool:
    "Whether nothing stands against a start now."
    needed = [found for name in child.service.after if (found := house.child(name))]
    if (child.service.follow and not child.service.follow.exists()) or not may_retry(
        child
    ):
        return False
    return time.time() >= child.again and all(
        found.state in ("well", "done") for found in needed
    )


def moved_on(
    child: Child,
) -> bool:
    "Whether what a child follows leads elsewhere, and it must be restarted there."
    service = child.service
    if (
        not service.follow
        or not service.follow.exists()
        or (target := service.follow.resolve()) == child.place
    ):
        return False
    return not (
        service.same
        and (child.place / service.same).exists()
        and (target / service.same).read_bytes()
        == (child.place / service.same).read_bytes()
    )


def tend(house: House, child: Child, say):
    """Look at one child, and do what is due.

    Args:
        say: Called with the child's name and a line for the terminal.
    """
    if child.process and child.process.poll() is not None:
        say(child.service.name, note_end(child, time.time()))
    elif child.process and moved_on(child):
        say(child.service.name, "a new release: restarting")
        halt(child)
    elif child.process is None and not child.done and may_start(house, child):
        start(
            child, shared_environment(house.chosen, house.root, house.mark), house.root
        )
    elif (
        child.process is None
        and child.service.follow
        and not child.service.follow.exists()
    ):
        child.trouble = "no champion yet: make run"


def part_trouble(report: dict, part: str, since: float) -> str:
    """What is wrong with one process that a shared document speaks for.

    Args:
        report: Health document.
        part: Entry in it.
        since: Start of the process, seconds since 1970.

    Returns:
        Empty when well.
    """
    entry = report.get(part) or {}
    beat = entry.get(f"latest_{part}_heartbeat")
    if beat and datetime.fromisoformat(beat).timestamp() < since:
        return "no heartbeat yet"
    return "" if entry.get("status") == "healthy" else "no heartbeat"


def fetch(client, url: str) -> tuple[float, int, dict]:
    """Ask one health address.

    Args:
        client: httpx.Client.
        url: Health document.

    Returns:
        Time asked, status code (0: no answer), document.
    """
    import httpx

    asked = time.time()
    try:
        answer = client.get(url)
    except httpx.HTTPError:
        return asked, 0, {}
    is_json = answer.headers.get("content-type", "").startswith("application/json")
    return asked, answer.status_code, answer.json() if is_json else {}


def judge(child: Child, code: int, report: dict) -> str:
    """What an answer says about a child.

    Args:
        code: Status code.
        report: Health document.

    Returns:
        Empty when well.
    """
    if not code:
        return "does not answer" + ("" if child.greeted else " yet")
    if code != 200:
        return f"answers {code}"
    return (
        part_trouble(report, child.service.part, child.began)
        if child.service.part
        else ""
    )


def note_health(child: Child, answer: tuple[float, int, dict], say):
    """Update what we know of a child, and announce it when it becomes well.

    Args:
        answer: From `fetch`.
        say: Called with the child's name and a line for the terminal.
    """
    asked, code, report = answer
    if child.process is None or child.began > asked:
        return
    child.trouble = judge(child, code, report)
    if child.trouble or child.greeted:
        return
    child.greeted = True
    say(child.service.name, f"ready after {time.time() - child.began:.0f} s")


def megabytes(process: psutil.Process) -> float:
    """Memory of one process.

    Returns:
        Proportional set size where the system tells it, else the unshared part.
    """
    try:
        info = process.memory_full_info()
    except psutil.Error:
        return 0.0
    return getattr(info, "pss", info.uss) / 2**20


def weigh(
    house: House,
):
    "Take the memory of each child, with all that it started, and of ourselves."
    members = family(house.mark)
    sizes = {process.pid: megabytes(process) for process in members}
    owner = {
        child.process.pid: child.service.name
        for child in house.children
        if child.process
    }
    memory = {"supervisor": megabytes(psutil.Process())}
    for pid, size in sizes.items():
        with suppress(ProcessLookupError):
            name = owner.get(os.getsid(pid), "others")
            memory[name] = memory.get(name, 0.0) + size
    house.memory, house.processes = memory, len(members) + 1


def watch(house: House, say):
    """Ask all children, again and again, until the house stops.

    Args:
        say: Called with a name and a line for the terminal.
    """
    import httpx

    with (
        httpx.Client(timeout=4, trust_env=False) as client,
        ThreadPoolExecutor(len(house.children)) as pool,
    ):
        for turn in count():
            running = [
                child
                for child in house.children
                if child.process and child.service.health
            ]
            urls = list({child.service.health for child in running})
            answers = dict(zip(urls, pool.map(lambda url: fetch(client, url), urls)))
            for child in running:
                note_health(child, answers[child.service.health], say)
            if turn % 5 == 0:
                weigh(house)
            if house.stopping.wait(3 if house.ready else 0.7):
                return


@contextmanager
def stop_on_signals(
    house: House,
) -> Iterator[None]:
    "Let Ctrl-C, SIGTERM and a closed terminal end the house; a second one does not wait."

    def heard(number, frame):
        for process in family(house.mark) if house.stopping.is_set() else ():
            process.kill()
        house.stopping.set()

    signals = [
        signal.SIGINT,
        signal.SIGTERM,
        *(
            [signal.SIGHUP]
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
            else []
        ),
    ]  # nohup
    before = {number: signal.signal(number, heard) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
