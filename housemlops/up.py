"""Run all services on this machine under one supervisor."""

import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from housemlops.core.files import read_json, write_json
from housemlops.front import serve_front_page, summary
from housemlops.operations.process_guard import guarded, reap_orphans
from housemlops.operations.services import require_free_ports, services
from housemlops.operations.supervisor import (
    Child,
    Report,
    Supervisor,
    local,
    stop_on_signals,
    watch_health,
)
from housemlops.settings import Settings, WorkbookError, repo_root, settings


@contextmanager
def only_one(chosen: Settings) -> Iterator[None]:
    """Refuse a second `up` on the same state folder."""
    from filelock import FileLock, Timeout

    state = chosen.paths.state
    state.mkdir(parents=True, exist_ok=True)
    note = state / "up.json"
    try:
        lock = FileLock(state / "up.lock").acquire(timeout=0)
    except Timeout:
        running = read_json(note, {})
        raise WorkbookError(
            f"Already running at {running.get('page', 'another terminal')}. Stop it "
            f"with Ctrl-C in its terminal, or `kill {running.get('pid', '')}`."
        ) from None
    with lock:
        write_json(note, {"pid": os.getpid(), "page": local(chosen.front.port)})
        try:
            yield
        finally:
            note.unlink(missing_ok=True)


def overview(supervisor: Supervisor):
    """Return a rich panel with the address of each service."""
    from rich.panel import Panel
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for wraps in (False, False, True):
        table.add_column(no_wrap=not wraps)
    table.add_row(
        "[bold]front page", f"[bold]{supervisor.address}", "links all of these"
    )
    for child in supervisor.children:
        if not child.service.title:
            continue
        url, has_token, _ = child.service.page.partition("?")
        if child.service.once:
            url = local(supervisor.chosen.front.port, url)
        note = child.problem if child.state == "waiting" else ""
        if has_token:
            note = "with its token from the front page"
        table.add_row(child.service.title, url, note)
    memory = sum(supervisor.memory.values())
    title = (
        f"all healthy after {supervisor.ready:.0f} s · {supervisor.processes} "
        f"processes · {memory:,.0f} MB"
    )
    return Panel(table, title=title, subtitle="Ctrl-C stops all of it", expand=False)


def supervise(supervisor: Supervisor, console, report: Report) -> None:
    """Update the children until the supervisor stops.

    Args:
        supervisor: Its children are started when they may be.
        console: rich.console.Console.
        report: Called with a service's name and a line.
    """
    while not supervisor.stopping.wait(0.3):
        for child in supervisor.children:
            supervisor.update(child, report)
        running = [child.process for child in supervisor.children if child.process]
        reap_orphans([process.pid for process in running])
        if not supervisor.ready and summary(supervisor)[0] == "healthy":
            supervisor.ready = time.time() - supervisor.started_at
            supervisor.measure()
            console.print(overview(supervisor))


def up(root: Path | None = None) -> None:
    """Run everything on this machine until Ctrl-C.

    Args:
        root: Repository; found when not given.
    """
    from rich.console import Console
    from rich.text import Text

    root = Path(root or repo_root())
    chosen, console = settings(root), Console(highlight=False)
    mark = f"HOUSEMLOPS_UP_{secrets.token_hex(8)}"

    def report(name, line):
        console.print(Text.assemble((f"{name:>16}  ", "bold"), line), soft_wrap=True)

    with only_one(chosen):
        require_free_ports(chosen)
        children = []
        for service in services(chosen, root, secrets.token_hex(16)):
            log = chosen.paths.state / f"log/{service.name}.log"
            children.append(Child(service, log))
        supervisor = Supervisor(chosen, root, mark, children)
        with (
            stop_on_signals(supervisor),
            guarded(mark),
            serve_front_page(supervisor),
        ):
            report(
                "front page", f"{supervisor.address} shows the progress of the start"
            )
            watcher = threading.Thread(
                target=watch_health, args=(supervisor, report), daemon=True
            )
            watcher.start()
            supervise(supervisor, console, report)
            console.print("stopping …")
    console.print("Stopped: no process and no port is left.")
