"""Draw the months of a replay as one picture."""

import math
from itertools import groupby
from pathlib import Path

from housemlops.operations.timeline import SIGNS, judgement, outcome, read_months
from housemlops.settings import repo_root
from housemlops.site.figures import LIGHT, figure_svg, new_figure
from housemlops.site.templates import percent, show_number

MARKS = {"promoted": "▲", "refused": "✕", "failed": "✕", "waiting": "?"}
EVENTS = {
    "promoted": "a challenger was promoted",
    "refused": "a challenger was refused",
    "failed": "a retraining failed",
    "waiting": "a retraining was asked for",
}


def values(months: list[dict], part: str, name: str) -> list[float]:
    """Return a figure of each month, NaN where it is unknown.

    Args:
        months: Of `read_months`.
        part: `verdict` for what monitoring knew when the month ended, `sales` for what
            became known of the month's own sales later.
        name: Such as `mae`.
    """
    found = [month[part].get(name) for month in months]
    return [math.nan if value is None else float(value) for value in found]


def consecutive(items: list) -> list[tuple[object, int, int]]:
    """Return each run of equal neighbours as its value, first position and length."""
    runs, start = [], 0
    for value, group in groupby(items):
        length = len(list(group))
        runs.append((value, start, length))
        start += length
    return runs


def describe_months(months: list[dict]) -> str:
    """Return what the picture shows, for those who do not see it."""
    alarms = [month["month"] for month in months if judgement(month) == "alarm"]
    events = [
        f"{EVENTS[outcome(month)]} after {month['month']}"
        for month in months
        if outcome(month)
    ]
    return (
        f"Alarms: {', '.join(alarms) or 'none'}. "
        f"Retraining: {'; '.join(events) or 'none'}."
    )


def style_panel(axes, title: str, formatter) -> None:
    """Give a panel its title, legend, grid and number format."""
    axes.set_title(title, loc="left", color=LIGHT["text"], fontsize=10, weight="bold")
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        legend = axes.legend(
            handles,
            labels,
            loc="lower right",
            bbox_to_anchor=(1, 0.97),
            ncols=len(labels),
            frameon=False,
            fontsize=8.5,
            labelcolor=LIGHT["muted"],
        )
        legend.set_in_layout(False)
    axes.grid(axis="y", color=LIGHT["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_facecolor("none")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=LIGHT["muted"], labelsize=8.5)
    axes.yaxis.set_major_formatter(formatter)
    axes.yaxis.get_major_locator().set_params(nbins=5)


def draw_metric(axes, months: list[dict], name: str, expected: str) -> None:
    """Draw a metric: each month's own, that of the verdict, and what was expected."""
    positions = range(len(months))
    known = values(months, "verdict", name)
    low, high = (values(months, "verdict", f"{name}_{end}") for end in ("low", "high"))
    sizes = [5 + 20 * (month["sales"].get("labelled") or 0) / 100 for month in months]
    axes.fill_between(
        positions, low, high, color=LIGHT["primary"], alpha=0.17, linewidth=0
    )
    axes.plot(positions, known, color=LIGHT["primary"], label="known when it ended")
    axes.scatter(
        positions,
        values(months, "sales", name),
        s=sizes,
        facecolor=LIGHT["paper"],
        edgecolor=LIGHT["primary"],
        zorder=3,
        label="of its own sales, known later",
    )
    axes.step(
        positions,
        values(months, "verdict", expected),
        where="mid",
        color=LIGHT["text"],
        linestyle="--",
        linewidth=1,
        label="expected",
    )
    drawn = [*known, *values(months, "sales", name)]
    if all(map(math.isnan, drawn)):
        axes.text(
            0.5,
            0.5,
            "no price is known yet",
            transform=axes.transAxes,
            ha="center",
            color=LIGHT["muted"],
        )


def draw_drift(axes, months: list[dict]) -> None:
    """Draw how many columns drifted, by uncorrected and by corrected tests."""
    naive = [month["verdict"].get("naive") or 0 for month in months]
    drifted = [len(month["verdict"].get("drifted") or ()) for month in months]
    positions = range(len(months))
    axes.bar(
        positions, naive, 0.64, color=LIGHT["pale"], label="at 5 % each, uncorrected"
    )
    axes.bar(
        positions,
        drifted,
        0.38,
        color=LIGHT["accent"],
        label="after correction, and large enough to matter",
    )
    axes.set_ylim(0, max(4, *naive, *drifted) * 1.05)


def draw_events(axes, months: list[dict]) -> None:
    """Mark months with an alarm and months with a retraining."""
    for i, month in enumerate(months):
        if judgement(month) == "alarm":
            axes.axvspan(i - 0.5, i + 0.5, color=LIGHT["accent"], alpha=0.1, lw=0)
        event = outcome(month)
        if event:
            colour = LIGHT["primary" if event == "promoted" else "accent"]
            style = "-" if event == "promoted" else ":"
            axes.axvline(i, color=colour, linestyle=style, linewidth=1)


def draw_summary(axes, months: list[dict]) -> None:
    """Write the verdict, the retraining and the champion of each month below."""
    axes.set_ylim(3, 0)
    axes.set_facecolor("none")
    axes.spines[:].set_visible(False)
    axes.set_yticks([0.5, 1.5, 2.5], ["verdict", "retraining", "champion"])
    for i, month in enumerate(months):
        judged, event = judgement(month), outcome(month)
        colour = {"ok": "primary", "alarm": "accent"}.get(judged, "muted")
        axes.text(i, 0.5, SIGNS[judged], color=LIGHT[colour], ha="center", va="center")
        if event:
            colour = "primary" if event == "promoted" else "accent"
            axes.text(
                i, 1.5, MARKS[event], color=LIGHT[colour], ha="center", va="center"
            )
    versions = [month["verdict"].get("version") for month in months]
    for version, start, length in consecutive(versions):
        if version is None:
            continue
        axes.barh(2.5, length - 0.1, 0.75, start - 0.45, color=LIGHT["grid"])
        words = f"version {version}" if length > 2 else str(version)
        axes.text(
            start + (length - 1) / 2,
            2.5,
            words,
            color=LIGHT["text"],
            fontsize=8.5,
            ha="center",
            va="center",
        )
    labels = [
        f"{month['month'][5:]}\n{month['month'][:4]}"
        if i == 0 or month["month"].endswith("-01")
        else month["month"][5:]
        for i, month in enumerate(months)
    ]
    axes.set_xticks(range(len(months)), labels)
    axes.tick_params(length=0, labelcolor=LIGHT["muted"], labelsize=8.5)


def link_months(axes, months: list[dict], prefix: str) -> dict[str, str]:
    """Put a link over the summary of each month; return address -> label."""
    from matplotlib.patches import Rectangle

    links = {}
    for i, month in enumerate(months):
        address = f"#{prefix}m{month['month']}"
        cover = Rectangle((i - 0.5, 0), 1, 3, color=LIGHT["text"], alpha=0, url=address)
        axes.add_patch(cover)
        verdict = month["verdict"].get("verdict") or "not finished"
        event = outcome(month)
        words = f"{month['month']}: {verdict}"
        links[address] = f"{words}, {event}" if event else words
    return links


def draw_months(months: list[dict], prefix: str = ""):
    """Draw error, coverage, drift, verdicts and champions, month by month.

    Args:
        months: Of `read_months`, at least one.
        prefix: Before each anchor, where a page shows more than one history.

    Returns:
        A figure, and the address and label of each link in it.
    """
    from matplotlib import rc_context

    verdicts = [month["verdict"] for month in months]
    currencies = [each["currency"] for each in verdicts if each.get("currency")]
    with rc_context({"font.family": "sans-serif", "font.size": 9}):
        figure = new_figure(10.4, 7)
        panels = figure.subplots(
            4, 1, sharex=True, height_ratios=[4, 2, 2, 1.3], squeeze=True
        )
        mae, coverage, drift, summary = panels
        for axes in (mae, coverage, drift):
            draw_events(axes, months)
        draw_metric(mae, months, "mae", "expected_mae")
        unit = f", {currencies[0]}" if currencies else ""
        style_panel(mae, f"Mean absolute error{unit}", lambda y, _: show_number(y))
        draw_metric(coverage, months, "coverage", "level")
        coverage.set_ylim(bottom=min(0.7, coverage.get_ylim()[0]), top=1.02)
        style_panel(coverage, "Prices within their interval", lambda y, _: percent(y))
        draw_drift(drift, months)
        style_panel(drift, "Columns that drifted", lambda y, _: f"{y:.0f}")
        draw_summary(summary, months)
        links = link_months(summary, months, prefix)
        summary.set_xlim(-0.6, len(months) - 0.4)
        figure.subplots_adjust(0.075, 0.06, 0.99, 0.96, hspace=0.35)
    return figure, links


def history_svg(months: list[dict], prefix: str = "") -> str:
    """Return the picture of the months as an SVG element with a text alternative.

    Args:
        months: Of `read_months`, at least one.
        prefix: Before each anchor, where a page shows more than one history.
    """
    figure, links = draw_months(months, prefix)
    first, last = months[0]["month"], months[-1]["month"]
    title = f"The months from {first} to {last}: error, coverage, drift"
    return figure_svg(figure, title, describe_months(months), links)


def save_history_picture(history: Path, root: Path | None = None) -> Path:
    """Draw the example of the site's months page anew; return nbs/site/history.svg.

    Args:
        history: Folder with one folder a month.
        root: Repository; found when not given.
    """
    path = Path(root or repo_root()) / "nbs/site/history.svg"
    path.write_text(history_svg(read_months(history)), encoding="utf-8")
    return path
