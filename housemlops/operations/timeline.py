"""Read what a replay has recorded, month by month."""

import re
from collections.abc import Iterable
from pathlib import Path

from housemlops.core.files import read_optional_json

MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")


def month_span(first: str, last: str) -> list[str]:
    """All the months from one to another.

    Args:
        first: Month.
        last: Month.

    Returns:
        Months, both ends included.
    """
    start, end = (12 * int(month[:4]) + int(month[5:]) - 1 for month in (first, last))
    return [
        f"{number // 12:04}-{number % 12 + 1:02}" for number in range(start, end + 1)
    ]


def revealed(verdicts: Iterable[dict]) -> dict[str, dict]:
    """What became known of each month's sales, by the newest verdict that speaks of them.

    Args:
        verdicts: Oldest first.

    Returns:
        Month -> rows, labelled, mae, coverage, version.
    """
    return {
        sales["month"]: sales
        for verdict in verdicts
        for sales in verdict.get("months") or ()
    }


def read_months(history: Path) -> list[dict]:
    """The months of a history folder; one that left nothing is there, and empty.

    Args:
        history: One folder a month; need not exist.

    Returns:
        Month, verdict, run, retraining, sales; oldest first, without gaps.
    """
    names = sorted(
        path.name
        for path in Path(history).glob("*")
        if path.is_dir() and MONTH.fullmatch(path.name)
    )
    if not names:
        return []
    span = month_span(names[0], names[-1])
    files = {
        file: {
            month: read_optional_json(history / month / f"{file}.json")
            for month in span
        }
        for file in ("verdict", "run", "retraining")
    }
    sales = revealed(files["verdict"].values())
    return [
        {
            "month": month,
            "sales": sales.get(month, {}),
            **{file: found[month] for file, found in files.items()},
        }
        for month in span
    ]


SIGNS = {
    "ok": "✓",
    "alarm": "!",
    "repeated": "=",
    "unknown": "?",
    "missing": "…",
}  # a sign as well as a colour, for those who see none


def judgement(month: dict) -> str:
    """Say whether a month was fine, an alarm, an alarm that was raised before, not judged, or not looked at.

    Args:
        month: Of `read_months`.

    Returns:
        A key of SIGNS.
    """
    verdict = month["verdict"]
    if not verdict:
        return "missing"
    if verdict.get("alarm"):
        return "alarm" if month["run"].get("alarm", True) else "repeated"
    return "ok" if verdict.get("verdict") == "ok" else "unknown"


def outcome(month: dict) -> str:
    """What came of the retraining that a month asked for.

    Args:
        month: Of `read_months`.

    Returns:
        Promoted, refused, failed, waiting, or empty when nothing was asked.
    """
    found = month["retraining"]
    if not found:
        return "waiting" if month["run"].get("asked") else ""
    return (
        "failed"
        if found.get("failed")
        else "promoted"
        if found.get("promoted")
        else "refused"
    )


def is_finished(month: dict) -> bool:
    """Whether a month is recorded, and its retraining, if it asked for one, was answered.

    Args:
        month: Of `read_months`.
    """
    return bool(month["run"]) and outcome(month) != "waiting"
