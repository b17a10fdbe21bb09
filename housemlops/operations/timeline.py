"""Read what a replay has recorded, month by month."""

import re
from collections.abc import Iterable
from pathlib import Path

from housemlops.core.files import read_json

MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")


def month_span(first: str, last: str) -> list[str]:
    """Return all the months from one to another, both ends included."""
    start, end = (12 * int(month[:4]) + int(month[5:]) - 1 for month in (first, last))
    months = [divmod(number, 12) for number in range(start, end + 1)]
    return [f"{year:04}-{month + 1:02}" for year, month in months]


def revealed(verdicts: Iterable[dict]) -> dict[str, dict]:
    """Return what became known of each month's sales, by the newest verdict about them.

    Args:
        verdicts: Oldest first.

    Returns:
        Month -> rows, labelled, mae, coverage, version.
    """
    sales = {}
    for verdict in verdicts:
        for month in verdict.get("months") or ():
            sales[month["month"]] = month
    return sales


def read_months(history: Path) -> list[dict]:
    """Return the months of a history folder, oldest first, without gaps.

    Args:
        history: One folder a month; need not exist.

    Returns:
        Month, verdict, run, retraining, sales; empty notes where nothing was written.
    """
    folders = [path for path in Path(history).glob("*") if path.is_dir()]
    names = sorted(path.name for path in folders if MONTH.fullmatch(path.name))
    months = []
    for month in month_span(names[0], names[-1]) if names else ():
        note = {"month": month, "sales": {}}
        for file in ("verdict", "run", "retraining"):
            note[file] = read_json(history / month / f"{file}.json", {})
        months.append(note)
    sales = revealed(note["verdict"] for note in months)
    for note in months:
        note["sales"] = sales.get(note["month"], {})
    return months


# A sign beside each colour, for those who see no colours.
SIGNS = {"ok": "✓", "alarm": "!", "repeated": "=", "unknown": "?", "missing": "…"}


def judgement(month: dict) -> str:
    """Return what monitoring said about a month, as a key of SIGNS.

    Args:
        month: Of `read_months`.

    Returns:
        Repeated: an alarm that was raised before; unknown: not judged; missing: not
        monitored.
    """
    verdict = month["verdict"]
    if not verdict:
        return "missing"
    if verdict.get("alarm"):
        return "alarm" if month["run"].get("alarm", True) else "repeated"
    return "ok" if verdict.get("verdict") == "ok" else "unknown"


def outcome(month: dict) -> str:
    """Return what came of the retraining that a month asked for.

    Args:
        month: Of `read_months`.

    Returns:
        Promoted, refused, failed, waiting, or "" when none was asked for.
    """
    retraining = month["retraining"]
    if not retraining:
        return "waiting" if month["run"].get("asked") else ""
    if retraining.get("failed"):
        return "failed"
    return "promoted" if retraining.get("promoted") else "refused"


def is_finished(month: dict) -> bool:
    """Return whether a month is recorded, and its retraining, if any, was answered."""
    return bool(month["run"]) and outcome(month) != "waiting"
