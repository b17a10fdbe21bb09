"""Start, watch, restart and stop a set of services."""

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path

import psutil

from housemlops.processes import marked_processes
from housemlops.settings import Settings

LOG_BYTES = 5_000_000
Report = Callable[[str, str], None]  # a service's name, a line for the terminal


@dataclass
class Service:
    """A process to keep alive, or a job to run once."""

    name: str  # of its log file, and in messages
    command: list[str]
    title: str = ""  # of its card on the front page; empty: no card
    about: str = ""  # one line for the card
    page: str = ""  # URL that people open
    health: str = ""  # URL that answers 200 when the service is healthy
    part: str = ""  # its entry in a health document that several services share
    of: str = ""  # service whose card shows it
    after: tuple[str, ...] = ()  # services that must be healthy, and jobs done, before
    env: dict[str, str] = field(default_factory=dict)  # on top of what all share
    cwd: Path | None = None  # the repository when not given
    follow: Path | None = None  # link to run in; a new target means a restart,
    same: str = ""  # unless this file in it is the same
    once: tuple[Path, ...] = ()  # a job, and the files that say it is done


def local(port: int, path: str = "") -> str:
    """Return a URL on this machine; the path begins with /."""
    return f"http://127.0.0.1:{port}{path}"


@dataclass
class Child:
    """A service, and what is known about it now."""

    service: Service
    log: Path
    process: subprocess.Popen | None = None
    started_at: float = 0.0  # seconds since 1970
    folder: Path | None = None  # that it runs in
    crashes: int = 0  # in a row
    restart_at: float = 0.0  # no restart before this time
    problem: str = ""  # in words; empty: none is known
    announced: bool = False  # whether its readiness was announced

    @property
    def done(self) -> bool:
        """Whether this is a job that needs no run."""
        once = self.service.once
        return bool(once) and not self.process and all(path.exists() for path in once)

    @property
    def may_retry(self) -> bool:
        """Whether it is started again after a crash: a job up to three times."""
        return not self.service.once or self.crashes < 3

    @property
    def state(self) -> str:
        """Done, waiting, crashed, starting, healthy or unhealthy."""
        if self.done:
            return "done"
        if self.process is None:
            return "crashed" if self.crashes else "waiting"
        if not self.problem:
            return "healthy"
        starting = time.time() - self.started_at < 180 and not self.announced
        return "starting" if starting else "unhealthy"


def open_log(path: Path):
    """Open a log to append to, for its owner alone; set a large one aside first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_suffix(".old.log"))
    path.touch(mode=0o600)
    return path.open("ab")


def last_line(path: Path) -> str:
    """Return the last line of a log that has a letter in it, for a message."""
    if not path.exists():
        return ""
    text = path.read_bytes()[-4000:].decode(errors="replace")
    for line in reversed(text.splitlines()):
        if any(map(str.isalpha, line)):
            return line.strip()[:200]
    return ""


def start_process(command: list, log: Path, env: dict[str, str], cwd: Path):
    """Start a program in a session of its own, with its output in a log."""
    with open_log(log) as output:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop_child(child: Child, grace: float = 5.0) -> None:
    """Stop a child and what it started.

    Args:
        child: Runs.
        grace: Seconds between asking and killing.
    """
    with suppress(psutil.Error):
        process = psutil.Process(child.process.pid)
        members = [process, *process.children(recursive=True)]
        for member in members:
            with suppress(psutil.Error):
                member.terminate()
        for member in psutil.wait_procs(members, timeout=grace)[1]:
            with suppress(psutil.Error):
                member.kill()
    child.process.wait()
    child.process = None


def restart_delay(crashes: int) -> float:
    """Return the seconds to wait before the next start, after at least one crash."""
    return min(60.0, 2.0 ** (crashes - 1))


def record_exit(child: Child, now: float) -> str:
    """Record that a child's process ended by itself, and return what to report."""
    code, child.process = child.process.returncode, None
    ran = now - child.started_at
    if child.service.once and code == 0:
        for path in child.service.once:
            path.touch()
        return f"done in {ran:.0f} s"
    child.crashes = 1 if ran > 60 else child.crashes + 1
    delay = restart_delay(child.crashes)
    child.restart_at = now + delay
    reason = f"signal {-code}" if code < 0 else f"exit code {code}"
    child.problem = f"ended by itself ({reason}): {last_line(child.log)}"
    following = f"again in {delay:.0f} s" if child.may_retry else "given up"
    return f"{child.problem} · {following} · log/{child.log.name}"


def has_new_target(child: Child) -> bool:
    """Return whether the link that a child follows calls for a restart elsewhere."""
    link, file = child.service.follow, child.service.same
    if not link or not link.exists() or link.resolve() == child.folder:
        return False
    before, after = child.folder / file, link.resolve() / file
    same = file and before.exists() and before.read_bytes() == after.read_bytes()
    return not same


@dataclass
class Supervisor:
    """Everything that one `up` runs."""

    chosen: Settings
    root: Path  # repository
    mark: str  # name of the variable in the environment of all its processes
    children: list[Child]
    started_at: float = field(default_factory=time.time)
    ready: float = 0.0  # seconds until all was healthy; 0 before
    memory: dict[str, float] = field(default_factory=dict)  # child: megabytes
    processes: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))  # of the page

    @property
    def address(self) -> str:
        """The front page's address, with the key to the secrets on it."""
        return local(self.chosen.front.port, f"/?key={self.key}")

    def child(self, name: str) -> Child | None:
        """Return a child by its name."""
        children = {child.service.name: child for child in self.children}
        return children.get(name)

    def environment(self) -> dict[str, str]:
        """Return the environment that all its processes share."""
        tracking_uri = self.chosen.mlflow.tracking_uri
        if not tracking_uri.startswith("http"):
            tracking_uri = local(self.chosen.mlflow.port)
        paths = [str(self.root), os.environ.get("PYTHONPATH", "")]
        programs = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        return {
            **os.environ,
            self.mark: "1",
            "SPT_NOENV": "1",  # a process title must not overwrite the mark
            "PYTHONUNBUFFERED": "1",
            "MALLOC_ARENA_MAX": "2",
            "HOUSEMLOPS_PATHS_STATE": str(self.chosen.paths.state),
            "HOUSEMLOPS_MLFLOW_TRACKING_URI": tracking_uri,
            "PATH": os.pathsep.join(programs),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }

    def start(self, child: Child) -> None:
        """Start a child."""
        service = child.service
        child.folder = (service.follow or service.cwd or self.root).resolve()
        child.started_at, child.problem = time.time(), "starts"
        child.announced = False
        environ = self.environment() | service.env
        child.process = start_process(service.command, child.log, environ, child.folder)

    def may_start(self, child: Child) -> bool:
        """Return whether a child that does not run may be started now."""
        if child.done or not child.may_retry or time.time() < child.restart_at:
            return False
        needed = [self.child(name) for name in child.service.after]
        return all(one.state in ("healthy", "done") for one in needed if one)

    def update(self, child: Child, report: Report) -> None:
        """Record a child's end, restart it for a new release, or start it."""
        link = child.service.follow
        if child.process and child.process.poll() is not None:
            report(child.service.name, record_exit(child, time.time()))
        elif child.process and has_new_target(child):
            report(child.service.name, "a new release: restarting")
            stop_child(child)
        elif child.process is None and link and not link.exists():
            child.problem = "no champion yet: make run"
        elif child.process is None and self.may_start(child):
            self.start(child)

    def measure(self) -> None:
        """Measure the memory of each child, with all that it started, and our own."""
        members = marked_processes(self.mark)
        running = [child for child in self.children if child.process]
        names = {child.process.pid: child.service.name for child in running}
        memory = {"supervisor": megabytes(psutil.Process())}
        for process in members:
            with suppress(ProcessLookupError):
                # Each child leads a session of its own.
                name = names.get(os.getsid(process.pid), "others")
                memory[name] = memory.get(name, 0.0) + megabytes(process)
        self.memory, self.processes = memory, len(members) + 1


def heartbeat_problem(document: dict, part: str, since: float) -> str:
    """Return what a shared health document says is wrong with one process, or "".

    Args:
        document: Health document of Airflow.
        part: Entry in it.
        since: Start of the process, seconds since 1970.
    """
    entry = document.get(part) or {}
    heartbeat = entry.get(f"latest_{part}_heartbeat")
    if heartbeat and datetime.fromisoformat(heartbeat).timestamp() < since:
        return "no heartbeat yet"
    return "" if entry.get("status") == "healthy" else "no heartbeat"


def health_problem(child: Child, response) -> str:
    """Return what the response of a health check says is wrong with a child, or "".

    Args:
        child: Has a health address.
        response: httpx.Response; None: no answer.
    """
    if response is None:
        return "does not answer" + ("" if child.announced else " yet")
    if response.status_code != 200:
        return f"answers {response.status_code}"
    part = child.service.part
    return heartbeat_problem(response.json(), part, child.started_at) if part else ""


def fetch(client, url: str):
    """Return the response of a health address, or None without one."""
    import httpx

    try:
        return client.get(url)
    except httpx.HTTPError:
        return None


def record_health(child: Child, problem: str, asked: float, report: Report) -> None:
    """Record what a health check found, unless the child was started after it."""
    if child.process is None or child.started_at > asked:
        return
    child.problem = problem
    if not problem and not child.announced:
        child.announced = True
        report(
            child.service.name, f"ready after {time.time() - child.started_at:.0f} s"
        )


def megabytes(process: psutil.Process) -> float:
    """Return a process's proportional set size, or its unshared memory elsewhere."""
    try:
        info = process.memory_full_info()
    except psutil.Error:
        return 0.0
    return getattr(info, "pss", info.uss) / 2**20


def watch_health(supervisor: Supervisor, report: Report) -> None:
    """Check the health of all children, again and again, until the supervisor stops."""
    import httpx

    with httpx.Client(timeout=4, trust_env=False) as client:
        for turn in count():
            responses = {}  # several services share one document
            for child in supervisor.children:
                url, asked = child.service.health, time.time()
                if not child.process or not url:
                    continue
                if url not in responses:
                    responses[url] = asked, fetch(client, url)
                asked, response = responses[url]
                problem = health_problem(child, response)
                record_health(child, problem, asked, report)
            if turn % 5 == 0:
                supervisor.measure()
            if supervisor.stopping.wait(3 if supervisor.ready else 0.7):
                return


@contextmanager
def stop_on_signals(supervisor: Supervisor) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and a closed terminal stop a supervisor.

    A second signal kills its processes at once.
    """

    def stop(number, frame):
        if supervisor.stopping.is_set():
            for process in marked_processes(supervisor.mark):
                process.kill()
        supervisor.stopping.set()

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup has a closed terminal ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
