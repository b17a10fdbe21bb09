"""Run all services on this machine under one supervisor."""

import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from housemlops.core.files import read_optional_json
from housemlops.front import front_door, summary
from housemlops.operations.process_family import collect_orphans, guarded
from housemlops.operations.services import refuse_taken, services
from housemlops.operations.supervisor import (
    Child,
    House,
    local,
    stop_on_signals,
    tend,
    watch,
    weigh,
)
from housemlops.settings import Settings, WorkbookError, repo_root, settings


@contextmanager
def only_one(
    chosen: Settings,
) -> Iterator[None]:
    "Refuse a second `up` on the same state folder."
    from filelock import FileLock, Timeout

    state = chosen.paths.state
    state.mkdir(parents=True, exist_ok=True)
    note = state / "up.json"
    try:
        lock = FileLock(state / "up.lock").acquire(timeout=0)
    except Timeout:
        found = read_optional_json(note)
        raise WorkbookError(
            f"The house is already up at {found.get('page', 'another terminal')}: stop it there with Ctrl-C, or with `kill {found.get('pid', '')}`."
        ) from None
    with lock:
        note.write_text(
            json.dumps({"pid": os.getpid(), "page": local(chosen.front.port)})
        )
        try:
            yield
        finally:
            note.unlink(missing_ok=True)


def panel(
    house: House,
):  # rich panel
    "Where everything is."
    from rich.panel import Panel
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for wraps in (False, False, True):
        table.add_column(no_wrap=not wraps)
    table.add_row(
        "[bold]front page",
        f"[bold]{house.address}",
        "links all of these",
    )
    for child in house.children:
        url = child.service.page.split("?")[0]
        note = (
            "with its token from the front page"
            if "?" in child.service.page
            else child.trouble
            if child.state == "waiting"
            else ""
        )
        if child.service.title:
            table.add_row(
                child.service.title,
                local(house.chosen.front.port, url) if child.service.once else url,
                note,
            )
    title = f"all healthy after {house.ready:.0f} s · {house.processes} processes · {sum(house.memory.values()):,.0f} MB"
    return Panel(table, title=title, subtitle="Ctrl-C stops all of it", expand=False)


def keep(
    house: House,
    console,  # rich.console.Console
    say,  # called with a name and a line for the terminal
):
    "Tend the children until the house is told to stop."
    while not house.stopping.wait(0.3):
        for child in house.children:
            tend(house, child, say)
        collect_orphans(
            [child.process.pid for child in house.children if child.process]
        )
        if not house.ready and summary(house)[0] == "well":
            house.ready = time.time() - house.began
            weigh(house)
            console.print(panel(house))


def up(
    root: Path | None = None,  # repository; found when not given
):
    "Everything live on this machine, until Ctrl-C."
    from rich.console import Console
    from rich.text import Text

    root = Path(root or repo_root())
    chosen, console, mark = (
        settings(root),
        Console(highlight=False),
        secrets.token_hex(8),
    )
    log = chosen.paths.state / "log"

    def say(name, line):
        console.print(Text.assemble((f"{name:>16}  ", "bold"), line), soft_wrap=True)

    with only_one(chosen):
        refuse_taken(chosen)
        children = [
            Child(service, log / f"{service.name}.log")
            for service in services(chosen, root, secrets.token_hex(16))
        ]
        house = House(chosen, root, mark, children)
        with stop_on_signals(house), guarded(mark), front_door(house):
            say(
                "front page",
                f"{house.address} shows how far the start has come",
            )
            watcher = threading.Thread(target=watch, args=(house, say), daemon=True)
            watcher.start()
            keep(house, console, say)
            console.print("stopping …")
    console.print("Stopped: no process and no port is left.")
