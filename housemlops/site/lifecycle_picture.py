"""Draw the lifecycle from dvc.yaml."""

import re
import textwrap
from html import escape
from pathlib import Path

from housemlops.pipeline.graph import graph, listed, pipeline
from housemlops.settings import (
    repo_root,
)
from housemlops.site.templates import fill


def lifecycle(root: Path) -> dict[str, dict]:
    """The stages of dvc.yaml, each after those it waits for.

    Args:
        root: Repository.

    Returns:
        Stage -> its entry in dvc.yaml, in the order of running.
    """
    stages = pipeline(root)
    return {name: stages[name] for name in graph(stages)}


ROOM, GAP = (
    132,
    22,
)  # width of a room and of the door beside it, in units of the drawing


def beams(needs: dict[str, list[str]], floor: int) -> list[dict]:
    """The arcs from a room to those further on that read from it.

    Args:
        needs: Stage -> stages it reads, in order of running.
        floor: Y of the ceiling of the rooms.

    Returns:
        Path, x of its arrow head, title.
    """
    order = list(needs)
    far = [
        (order.index(source), order.index(target))
        for target in order
        for source in needs[target]
    ]

    def beam(a, b):
        x1, x2 = (
            a * (ROOM + GAP) + 0.68 * ROOM + 8,
            b * (ROOM + GAP) + (0.44 - 0.05 * (b - a)) * ROOM + 8,
        )
        rise = min(16 + 18 * (b - a), floor - 6)
        path = f"M{x1:.1f} {floor}C{x1:.1f} {floor - 1.3 * rise:.1f} {x2:.1f} {floor - 1.3 * rise:.1f} {x2:.1f} {floor - 6}"
        return {
            "path": path,
            "x": f"{x2:.1f}",
            "title": f"{order[b]} reads what {order[a]} writes",
        }

    return [beam(a, b) for a, b in far if b - a > 1]


def room_lines(stage: dict) -> list[str]:
    """What a stage writes, in a few short lines.

    Args:
        stage: Its entry in dvc.yaml.

    Returns:
        Lines of at most 15 characters.
    """
    outs = [out for out in listed(stage.get("outs")) if not out.startswith("reports/")]
    words = stage.get("desc") or ", ".join(outs)
    return textwrap.wrap(
        re.sub(r"\$\{(\w+)\}", r"<\1>", words), 15, break_on_hyphens=False
    )


def lifecycle_svg(root: Path | None = None) -> str:
    """Draw the lifecycle from dvc.yaml.

    Args:
        root: Repository; found when not given.

    Returns:
        An SVG element with light and dark colours.
    """
    root = Path(root or repo_root())
    stages = lifecycle(root)
    needs = graph(stages)
    span = max(
        (
            i - list(stages).index(source)
            for i, name in enumerate(stages)
            for source in needs[name]
        ),
        default=1,
    )
    floor = 12 if span == 1 else 30 + 18 * span
    loop = {
        name: (stage.get("meta") or {}).get("loop") for name, stage in stages.items()
    }
    rooms = [
        {
            "name": name,
            "when": ("when asked" if loop[name] == "learn" else "every month")
            if any(loop.values())
            else "",
            "lines": [escape(line) for line in room_lines(stage)],
            "x": 8 + i * (ROOM + GAP),
            "middle": 8 + i * (ROOM + GAP) + ROOM // 2,
            "door": name in needs.get(following, ()),
        }
        for i, (name, stage, following) in enumerate(
            zip(stages, stages.values(), [*list(stages)[1:], ""])
        )
    ]
    height = 66 + 17 * max((len(room["lines"]) for room in rooms), default=0)
    return fill(
        root,
        "lifecycle.svg.jinja",
        rooms=rooms,
        arcs=beams(needs, floor),
        floor=floor,
        gap=GAP,
        room_width=ROOM,
        room_height=height,
        width=16 + len(rooms) * (ROOM + GAP) - GAP,
        height=floor + height + 8,
    )


def save_picture(root: Path | None = None) -> Path:
    """Draw the lifecycle again for the README.

    Args:
        root: Repository; found when not given.

    Returns:
        Nbs/site/lifecycle.svg.
    """
    path = Path(root or repo_root()) / "nbs/site/lifecycle.svg"
    path.write_text(lifecycle_svg(root), encoding="utf-8")
    return path
