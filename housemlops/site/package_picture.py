"""Draw the modules of the package and their imports."""

import ast
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from housemlops.pipeline.graph import listed
from housemlops.settings import (
    WorkbookError,
    repo_root,
)
from housemlops.site.templates import fill
from housemlops.site.lifecycle_picture import lifecycle


def imported_rooms(
    module: Path,  # a Python file
) -> set[str]:  # names of modules of this package
    "Rooms that a module imports, at its top or inside its functions."
    nodes = [
        node
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
    ]
    names = [
        f"housemlops.{node.module}" if node.level else node.module
        for node in nodes
        if node.module
    ]
    return {name.split(".")[1] for name in names if name.startswith("housemlops.")}


def room_imports(
    root: Path,  # repository
) -> dict[str, list[str]]:  # notebook -> notebooks whose modules it imports
    "What each notebook but the index imports from the others."
    names = {path.stem for path in (root / "nbs").glob("*.ipynb")} - {"index"}
    modules = {name: root / f"housemlops/{name}.py" for name in sorted(names)}
    return {
        name: sorted(
            (imported_rooms(module) if module.exists() else set()) & names - {name}
        )
        for name, module in modules.items()
    }


def beneath(
    needs: dict[str, list[str]],  # from `room_imports`
    rooms: Iterable[str],  # to begin with
) -> set[str]:  # these rooms, and all that they rest on
    "Follow imports down to the ground."
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


def room_groups(
    root: Path,  # repository
) -> dict[str, list[str]]:  # heading -> names of notebooks
    "Notebooks that are no stage in their groups, each after those whose modules it imports."
    stages, needs = lifecycle(root), room_imports(root)
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


def support_rooms(
    root: Path,  # repository
) -> list[str]:  # names of notebooks
    "Notebooks that are no stage, in the order of reading."
    return [room for rooms in room_groups(root).values() for room in rooms]


def reduced(
    needs: dict[str, list[str]],  # without circles
) -> dict[str, list[str]]:  # the same, without what follows from the rest
    "Leave out the arrows that others imply."
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


def storeys(
    root: Path,  # repository
) -> list[
    tuple[str, list[str]]
]:  # heading, empty where a row continues the one below; rooms; from the ground up
    "The rows of the picture."
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


def settled(
    rows: list[list[str]],  # rooms, from the ground up
    needs: dict[str, list[str]],  # from `reduced`
) -> list[
    list[str]
]:  # the same rooms; from the third row on, each near those it rests on
    "Order the upper rows so that fewer arrows cross."
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


def places(
    rows: list[list[str]],  # rooms, from the ground up
) -> dict[
    str, tuple[float, float]
]:  # room -> its upper left corner, in units of the drawing
    "Where each room stands, every row in the middle."
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
    low: tuple[float, float],  # corner of the room that is imported
    high: tuple[float, float],  # corner of the room that imports
    out: float,  # where on the upper edge of the one it leaves, 0 to 1
    into: float,  # where on the lower edge of the other it arrives
) -> str:  # path of an SVG
    "From a room to one that is built on it: straight to its neighbour, over the heads of a row, or up."
    (x1, y1), (x2, y2) = low, high
    if y1 == y2 and 0 < x2 - x1 <= CELL + AISLE:
        return f"M{x1 + CELL:.0f} {y1 + TALL / 2:.0f}H{x2 - 3:.0f}"
    if y1 == y2:
        return f"M{x1 + CELL * out:.0f} {y1:.0f}C{x1 + CELL * out:.0f} {y1 - 34:.0f} {x2 + CELL / 2:.0f} {y1 - 34:.0f} {x2 + CELL / 2:.0f} {y1 - 3:.0f}"
    a, b, bend = x1 + CELL * out, x2 + CELL * into, (y1 - y2 - TALL) * 0.55
    return f"M{a:.0f} {y1:.0f}C{a:.0f} {y1 - bend:.0f} {b:.0f} {y2 + TALL + bend:.0f} {b:.0f} {y2 + TALL + 3:.0f}"


def house_svg(
    root: Path | None = None,  # repository; found when not given
) -> str:  # an SVG element with light and dark colours
    "Draw all rooms, and what stands on what."
    root = Path(root or repo_root())
    needs = reduced(room_imports(root))
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
