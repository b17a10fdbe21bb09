"""Draw the modules of the package and their imports."""

import ast
import json
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from housemlops.pipeline.closure import notebook_code
from housemlops.pipeline.graph import listed
from housemlops.settings import (
    WorkbookError,
    repo_root,
)
from housemlops.site.lifecycle_picture import lifecycle
from housemlops.site.templates import fill


LESSONS = {"pipeline.workspace": "orchestrate"}  # plain module -> notebook about it


def imported_modules(code: str) -> set[str]:
    """Modules of this package that Python code imports, at its top or inside functions.

    Args:
        code: Python, without IPython's magic commands.

    Returns:
        Their names without the package, such as `cluster.network`.
    """
    names = set()
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        name = f"housemlops.{node.module}" if node.level else node.module
        if name.startswith("housemlops."):
            names.add(name.removeprefix("housemlops."))
    return names


def notebook_imports(root: Path) -> dict[str, list[str]]:
    """Find which notebooks each notebook but the index rests on.

    A notebook that exports a module rests on what the module imports, a lesson on what its
    cells import. Plain modules have no notebook: what they import counts instead, and the
    lesson about them where `LESSONS` names one.

    Args:
        root: Repository.

    Returns:
        Notebook -> notebooks whose modules it imports.
    """
    code = {}
    for path in sorted((root / "nbs").glob("*.ipynb")):
        if path.stem != "index":
            notebook = json.loads(path.read_text(encoding="utf-8"))
            code[path.stem] = notebook_code(notebook)
    exporting = {name for name in code if f"#| default_exp {name}" in code[name]}
    package = root / "housemlops"

    def follow(text: str, seen: set[str]) -> set[str]:
        found = set()
        for name in imported_modules(text) - seen:
            seen.add(name)
            module = package / f"{name.replace('.', '/')}.py"
            if name in LESSONS:
                found.add(LESSONS[name])
            if name in exporting:
                found.add(name)
            elif module.is_file():
                found |= follow(module.read_text(encoding="utf-8"), seen)
        return found

    needs = {}
    for name, text in code.items():
        if name in exporting:
            text = (package / f"{name}.py").read_text(encoding="utf-8")
        needs[name] = sorted(follow(text, set()) - {name})
    return needs


def beneath(needs: dict[str, list[str]], rooms: Iterable[str]) -> set[str]:
    """Follow imports down to the ground.

    Args:
        needs: From `notebook_imports`.
        rooms: To begin with.

    Returns:
        These rooms, and all that they rest on.
    """
    found, ahead = set(), list(rooms)
    while ahead:
        if (room := ahead.pop()) in found or room not in needs:
            continue
        found.add(room)
        ahead += needs[room]
    return found


GROUPS = (
    "What the stages rest on",
    "What works with their results",
    "What runs, follows and teaches them",
)


def room_groups(root: Path) -> dict[str, list[str]]:
    """Notebooks that are no stage in their groups, each after those whose modules it imports.

    Args:
        root: Repository.

    Returns:
        Heading -> names of notebooks.
    """
    stages, needs = lifecycle(root), notebook_imports(root)
    try:
        order = [
            room
            for room in TopologicalSorter(needs).static_order()
            if room not in stages
        ]
    except CycleError as error:
        circle = ", ".join(error.args[1])
        raise WorkbookError(
            f"These rooms import each other: {circle}; move what they share to an earlier room."
        ) from None
    named = [
        Path(dep).stem
        for stage in stages.values()
        for dep in listed(stage.get("deps"))
        if Path(dep).parent == Path("housemlops")
    ]
    low, centre = beneath(needs, [*stages, *named]), "orchestrate"
    group = {
        room: 0 if room in low else 2 if centre in beneath(needs, [room]) else 1
        for room in order
    }
    return {
        title: [room for room in order if group[room] == i]
        for i, title in enumerate(GROUPS)
    }


def support_rooms(root: Path) -> list[str]:
    """Notebooks that are no stage, in the order of reading.

    Args:
        root: Repository.

    Returns:
        Names of notebooks.
    """
    return [room for rooms in room_groups(root).values() for room in rooms]


def reduced(needs: dict[str, list[str]]) -> dict[str, list[str]]:
    """Leave out the arrows that others imply.

    Args:
        needs: Without circles.

    Returns:
        The same, without what follows from the rest.
    """
    return {
        room: [
            low
            for low in lows
            if not any(low in beneath(needs, [other]) for other in lows if other != low)
        ]
        for room, lows in needs.items()
    }


CELL, TALL, AISLE, STOREY = (
    118,
    34,
    22,
    104,
)  # a room's width and height, the space beside it, from one row to the next


def storeys(root: Path) -> list[tuple[str, list[str]]]:
    """The rows of the picture.

    Args:
        root: Repository.

    Returns:
        Heading, empty where a row continues the one below; rooms; from the ground
            up.
    """
    low, *high = room_groups(root).items()
    rows = []
    for title, rooms in [
        low,
        (
            "The stages",
            [name for name in lifecycle(root) if (root / f"nbs/{name}.ipynb").exists()],
        ),
        *high,
    ]:
        wide = -(-len(rooms) // (-(-len(rooms) // 8) or 1)) or 1
        rows += [
            (title if i == 0 else "", rooms[i : i + wide])
            for i in range(0, len(rooms), wide)
        ]
    return rows


def settled(rows: list[list[str]], needs: dict[str, list[str]]) -> list[list[str]]:
    """Order the upper rows so that fewer arrows cross.

    Args:
        rows: Rooms, from the ground up.
        needs: From `reduced`.

    Returns:
        The same rooms; from the third row on, each near those it rests on.
    """
    seat, done = {}, []
    for i, rooms in enumerate(rows):

        def pull(room):
            return [seat[low] for low in needs.get(room, ()) if low in seat]

        if i > 1:
            rooms = sorted(
                rooms,
                key=lambda room: (
                    sum(pull(room)) / len(pull(room)) if pull(room) else 0.5
                ),
            )
        done.append(rooms)
        seat |= {room: (j + 0.5) / len(rooms) for j, room in enumerate(rooms)}
    return done


def places(rows: list[list[str]]) -> dict[str, tuple[float, float]]:
    """Where each room stands, every row in the middle.

    Args:
        rows: Rooms, from the ground up.

    Returns:
        Room -> its upper left corner, in units of the drawing.
    """
    width = max((len(rooms) for rooms in rows), default=0) * (CELL + AISLE)
    return {
        room: (
            (width - len(rooms) * (CELL + AISLE)) / 2
            + i * (CELL + AISLE)
            + AISLE / 2
            + 8,
            (len(rows) - 1 - n) * STOREY + 54,
        )
        for n, rooms in enumerate(rows)
        for i, room in enumerate(rooms)
    }


def arrow(
    low: tuple[float, float], high: tuple[float, float], out: float, into: float
) -> str:
    """From a room to one that is built on it: straight to its neighbour, over the heads of a row, or up.

    Args:
        low: Corner of the room that is imported.
        high: Corner of the room that imports.
        out: Where on the upper edge of the one it leaves, 0 to 1.
        into: Where on the lower edge of the other it arrives.

    Returns:
        Path of an SVG.
    """
    (x1, y1), (x2, y2) = low, high
    if y1 == y2 and 0 < x2 - x1 <= CELL + AISLE:
        return f"M{x1 + CELL:.0f} {y1 + TALL / 2:.0f}H{x2 - 3:.0f}"
    if y1 == y2:
        return f"M{x1 + CELL * out:.0f} {y1:.0f}C{x1 + CELL * out:.0f} {y1 - 34:.0f} {x2 + CELL / 2:.0f} {y1 - 34:.0f} {x2 + CELL / 2:.0f} {y1 - 3:.0f}"
    a, b, bend = x1 + CELL * out, x2 + CELL * into, (y1 - y2 - TALL) * 0.55
    return f"M{a:.0f} {y1:.0f}C{a:.0f} {y1 - bend:.0f} {b:.0f} {y2 + TALL + bend:.0f} {b:.0f} {y2 + TALL + 3:.0f}"


def house_svg(root: Path | None = None) -> str:
    """Draw all rooms, and what stands on what.

    Args:
        root: Repository; found when not given.

    Returns:
        An SVG element with light and dark colours.
    """
    root = Path(root or repo_root())
    needs = reduced(notebook_imports(root))
    headings, rows = zip(*storeys(root))
    rows = settled(rows, needs)
    corner = places(rows)
    pairs = [
        (low, high) for high in corner for low in needs.get(high, ()) if low in corner
    ]

    def share(pair, end):
        beside = sorted(
            (
                other
                for other in pairs
                if other[end] == pair[end]
                and corner[other[0]][1] != corner[other[1]][1]
            ),
            key=lambda other: corner[other[1 - end]][0],
        )
        return (beside.index(pair) + 1) / (len(beside) + 1) if pair in beside else 0.7

    arrows = [
        {
            "path": arrow(
                corner[low], corner[high], share((low, high), 0), share((low, high), 1)
            ),
            "low": low,
            "high": high,
            "far": corner[low][1] - corner[high][1] > STOREY,
        }
        for low, high in pairs
    ]
    titles = [
        {"text": title, "y": corner[rooms[0]][1] - 12}
        for title, rooms in zip(headings, rows)
        if title and rooms
    ]
    width, height = (
        max((corner[room][i] for room in corner), default=0) for i in (0, 1)
    )
    return fill(
        root,
        "house.svg.jinja",
        rooms=[
            {"name": room, "x": x, "y": y, "stage": room in lifecycle(root)}
            for room, (x, y) in corner.items()
        ],
        arrows=arrows,
        titles=titles,
        cell=CELL,
        tall=TALL,
        width=int(width + CELL + AISLE),
        height=int(height + TALL + 10),
    )
