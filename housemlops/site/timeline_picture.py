"""Draw the months of a replay as one SVG picture."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from housemlops.operations.timeline import SIGNS, judgement, outcome, read_months
from housemlops.settings import (
    repo_root,
)
from housemlops.site.templates import fill, percent, show_number


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round tick marks within a range.

    Args:
        most: Ticks.

    Returns:
        Round numbers from low to high.
    """
    rough = (high - low) / most
    step = next(
        factor * 10.0 ** math.floor(math.log10(rough))
        for factor in (1, 2, 5, 10)
        if factor * 10.0 ** math.floor(math.log10(rough)) >= rough * (1 - 1e-9)
    )
    return [
        round(number * step, 10)
        for number in range(
            math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1
        )
    ]


def scale(
    low: float, high: float, top: float, height: float
) -> Callable[[float], float]:
    """Where a value is drawn; values outside are drawn at the edge.

    Args:
        low: Value at the bottom.
        high: Value at the top.
        top: Place.
        height: Places between.

    Returns:
        Value -> place.
    """
    return lambda value: round(
        top + height * (1 - (min(max(value, low), high) - low) / (high - low)), 1
    )


def runs_of(points: list[tuple | None]) -> list[list[tuple]]:
    """Split points at the gaps.

    Args:
        points: Nothing where unknown.

    Returns:
        The unbroken pieces.
    """
    pieces = [[]]
    for point in points:
        if point is not None:
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def line(points: list[tuple[float, float] | None]) -> str:
    """A line through points, broken at the gaps; a lone point is a short dash.

    Args:
        points: X, y.

    Returns:
        Path of SVG.
    """

    def piece(run):
        return (
            f"M{run[0][0] - 4} {run[0][1]}h8"
            if len(run) == 1
            else "M" + "L".join(f"{x} {y}" for x, y in run)
        )

    return "".join(map(piece, runs_of(points)))


def band(points: list[tuple[float, float, float] | None]) -> str:
    """The area between two lines, broken at the gaps.

    Args:
        points: X, y of the lower end, y of the upper end.

    Returns:
        Path of SVG.
    """

    def piece(run):
        run = (
            [(run[0][0] - 4, *run[0][1:]), (run[0][0] + 4, *run[0][1:])]
            if len(run) == 1
            else run
        )
        return (
            "M"
            + "L".join(f"{x} {low}" for x, low, _ in run)
            + "L"
            + "L".join(f"{x} {high}" for x, _, high in reversed(run))
            + "Z"
        )

    return "".join(map(piece, runs_of(points)))


LEFT, PLOT = 76, 910  # places: left of the first month, and for all the months together


def value_range(
    values: Iterable[float | None], low: float | None = None, high: float | None = None
) -> tuple[float, float] | None:
    """A range that shows all values, with a little air.

    Args:
        low: A bound that is always shown.

    Returns:
        Nothing without a value.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    bottom, top = min(known), max(known)
    air = 0.08 * (top - bottom) or 0.1 * abs(top) or 1
    return bottom - air if low is None else min(
        low, bottom
    ), top + air if high is None else max(high, top)


def panel(
    months: list[dict],
    top: float,
    height: float,
    bounds: tuple[float, float] | None,
    own: Callable[[dict], float | None],
    judged: Callable[[dict], tuple],
    expected: Callable[[dict], float | None],
    words: Callable[[float], str],
) -> dict:
    """Dots for the months, a line with its interval for the months judged together, and a dashed line for the promise.

    Args:
        months: Of `read_months`.
        top: Place.
        bounds: Of `value_range`.
        own: The figure of a month's own sales.
        judged: The figure of the months judged together, and its ends; each may be
            missing.
        expected: What was promised.
        words: A value for people.

    Returns:
        What the template draws.
    """
    if bounds is None:
        return {"top": top, "height": height, "ticks": []}
    step, place = PLOT / len(months), scale(*bounds, top, height)
    xs = [round(LEFT + (i + 0.5) * step, 1) for i in range(len(months))]
    most = (
        max((month["sales"].get("labelled") or 0 for month in months), default=0) or 1
    )
    dots = [
        {
            "x": x,
            "y": place(value),
            "r": round(
                2 + 3 * math.sqrt((month["sales"].get("labelled") or 0) / most), 1
            ),
        }
        for x, month in zip(xs, months)
        if (value := own(month)) is not None
    ]
    joint = [judged(month) for month in months]
    promise = "".join(
        f"M{x - step / 2:.1f} {place(value)}h{step:.1f}"
        for x, month in zip(xs, months)
        if (value := expected(month)) is not None
    )
    return {
        "top": top,
        "height": height,
        "ticks": [
            (place(value), words(value))
            for value in ticks(*bounds, 5 if height > 120 else 3)
        ],
        "dots": dots,
        "promise": promise,
        "line": line(
            [
                (x, place(found[0])) if found[0] is not None else None
                for x, found in zip(xs, joint)
            ]
        ),
        "band": band(
            [
                (x, *map(place, found[1:])) if None not in found else None
                for x, found in zip(xs, joint)
            ]
        ),
    }


def ribbon(values: list) -> list[tuple[object, float, float]]:
    """Neighbouring months of the same value as one piece.

    Args:
        values: One a month.

    Returns:
        Value, x, width.
    """
    step, found = PLOT / len(values), []
    for i, value in enumerate(values):
        if found and found[-1][0] == value:
            found[-1][2] += 1
        else:
            found.append([value, i, 1])
    return [
        (value, round(LEFT + start * step, 1), round(count * step, 1))
        for value, start, count in found
    ]


def reigns(months: list[dict]) -> list[dict]:
    """The champions and their months.

    Args:
        months: Of `read_months`.

    Returns:
        Version, x, width.
    """
    found = ribbon([month["verdict"].get("version") for month in months])
    return [
        {"version": version, "x": x, "width": width}
        for version, x, width in found
        if version is not None
    ]


def caption(months: list[dict]) -> str:
    """What the picture shows, for those who do not see it.

    Args:
        months: Of `read_months`.

    Returns:
        One sentence for each thing that happened.
    """
    told = {
        "promoted": "a challenger was promoted",
        "refused": "a challenger was refused",
        "failed": "a retraining failed",
        "waiting": "a retraining was asked for",
    }
    alarms = [month["month"] for month in months if judgement(month) == "alarm"]
    events = [
        f"{told[word]} after {month['month']}"
        for month in months
        if (word := outcome(month))
    ]
    return f"Alarms: {', '.join(alarms) or 'none'}. Retraining: {'; '.join(events) or 'none'}."


def history_svg(months: list[dict], root: Path | None = None, mark: str = "") -> str:
    """Draw error, coverage, drift, verdicts and champions, month by month.

    Args:
        months: Of `read_months`, at least one.
        root: Repository; found when not given.
        mark: Before each anchor, where a page shows more than one history.

    Returns:
        An SVG element with light and dark colours.
    """
    verdicts, step = [month["verdict"] for month in months], PLOT / len(months)

    def of(name):
        return lambda month: month["verdict"].get(name)

    def judged(*names):
        return lambda month: tuple(month["verdict"].get(name) for name in names)

    def own(name):
        return lambda month: month["sales"].get(name)

    errors = [
        value
        for month in months
        for value in (
            own("mae")(month),
            *judged("mae", "mae_low", "mae_high", "expected_mae")(month),
        )
    ]
    shares = [
        value
        for month in months
        for value in (own("coverage")(month), of("coverage")(month), of("level")(month))
    ]
    tested = sorted(found["tested"] for found in verdicts if found.get("tested"))
    most = max(
        [
            4,
            *(found.get("naive") or 0 for found in verdicts),
            *(len(found.get("drifted") or ()) for found in verdicts),
        ]
    )
    mae = panel(
        months,
        84,
        190,
        value_range(errors),
        own("mae"),
        judged("mae", "mae_low", "mae_high"),
        of("expected_mae"),
        show_number,
    )
    coverage = panel(
        months,
        320,
        90,
        value_range(shares, low=0.7, high=1),
        own("coverage"),
        lambda month: (month["verdict"].get("coverage"), None, None),
        of("level"),
        percent,
    )
    count = scale(0, most, 456, 90)
    columns = [
        {
            "month": month["month"],
            "x": round(LEFT + i * step, 1),
            "middle": round(LEFT + (i + 0.5) * step, 1),
            "judgement": judgement(month),
            "sign": SIGNS[judgement(month)],
            "outcome": outcome(month),
            "version": month["retraining"].get("champion_version"),
            "naive": count(month["verdict"].get("naive") or 0),
            "drifted": count(len(month["verdict"].get("drifted") or ())),
            "word": month["verdict"].get("verdict") or "not finished",
            "january": month["month"].endswith("-01"),
        }
        for i, month in enumerate(months)
    ]
    return fill(
        Path(root or repo_root()),
        "history.svg.jinja",
        mark=mark,
        columns=columns,
        mae=mae,
        coverage=coverage,
        reigns=reigns(months),
        alarms=[
            (x, width)
            for alarming, x, width in ribbon(
                [judgement(month) == "alarm" for month in months]
            )
            if alarming
        ],
        step=step,
        counts=[(count(value), f"{value:.0f}") for value in ticks(0, most, 3)],
        left=LEFT,
        plot=PLOT,
        caption=caption(months),
        wide=min(0.64 * step, 34),
        currency=next(
            (f", {found['currency']}" for found in verdicts if found.get("currency")),
            "",
        ),
        tested=" to ".join(map(str, sorted({*tested[:1], *tested[-1:]}))),
    )


def save_history_picture(history: Path, root: Path | None = None) -> Path:
    """Draw the months again for the site's page of the months.

    Args:
        history: One folder a month.
        root: Repository; found when not given.

    Returns:
        Nbs/site/history.svg.
    """
    path = Path(root or repo_root()) / "nbs/site/history.svg"
    path.write_text(history_svg(read_months(history), root), encoding="utf-8")
    return path
