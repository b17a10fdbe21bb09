"""Write the pages of a replay and of its months."""

import hashlib
import json
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path

from housemlops.core.files import read_json
from housemlops.operations.timeline import (
    SIGNS,
    is_finished,
    judgement,
    outcome,
    read_months,
)
from housemlops.pipeline.graph import graph, pipeline
from housemlops.settings import (
    Settings,
    WorkbookError,
    repo_root,
    settings,
    whole_folder,
)
from housemlops.site.templates import fill, offline, percent, show_number
from housemlops.site.timeline_picture import history_svg


def weighted(months: list[dict], name: str) -> float | None:
    """The mean of a figure over all the sales whose price is known.

    Args:
        months: Of `read_months`.
        name: Mae or coverage.

    Returns:
        Nothing before the first price is revealed.
    """
    known = [
        (month["sales"]["labelled"], month["sales"][name])
        for month in months
        if month["sales"].get("labelled") and month["sales"].get(name) is not None
    ]
    return (
        sum(rows * value for rows, value in known) / sum(rows for rows, _ in known)
        if known
        else None
    )


def history_facts(months: list[dict]) -> list[tuple[str, str, str]]:
    """The figures of a history, for the top of its page.

    Args:
        months: Of `read_months`.

    Returns:
        Label, value, note.
    """
    verdicts, words = (
        [month["verdict"] for month in months if month["verdict"]],
        [outcome(month) for month in months],
    )
    alarms, naive = (
        sum(judgement(month) == "alarm" for month in months),
        sum(bool(found.get("naive")) for found in verdicts),
    )
    finished, drifted = (
        sum(is_finished(month) for month in months),
        sum(bool(found.get("drifted")) for found in verdicts),
    )
    currency = next(
        (found["currency"] for found in verdicts if found.get("currency")), ""
    )
    sales, asked = (
        sum(month["sales"].get("labelled") or 0 for month in months),
        sum(map(bool, words)),
    )
    return [
        (
            "months",
            f"{finished}",
            "all finished" if finished == len(months) else f"of {len(months)} finished",
        ),
        (
            "MAE",
            show_number(weighted(months, "mae")),
            f"{currency} on {sales:,} sales, priced before their price was known".strip(),
        ),
        (
            "coverage",
            percent(weighted(months, "coverage")),
            f"of the prices within their interval; {percent(next((found['level'] for found in verdicts if found.get('level')), None))} asked",
        ),
        (
            "months with drift",
            f"{drifted}",
            f"after correction; uncorrected tests find some in {naive}",
        ),
        (
            "months with an alarm",
            f"{alarms}",
            f"{asked} retraining{'s' * (asked != 1)} asked for",
        ),
        (
            "promotions",
            str(words.count("promoted")),
            f"{words.count('refused')} refused"
            + (f", {words.count('failed')} failed" if words.count("failed") else ""),
        ),
    ]


def duel_sentence(duel: dict | None) -> str:
    """How a challenger did against the champion.

    Args:
        duel: Of the stage promote.

    Returns:
        Empty when there was none.
    """
    if not duel:
        return ""
    return (
        f"On {duel['rows']:,} sales new to both, its MAE was {show_number(duel['mae'])} and the champion's {show_number(duel['champion_mae'])}: "
        f"{duel['change']:+.1%} ({duel.get('confidence', 0.9):.0%} interval {duel['low']:+.1%} to {duel['high']:+.1%})."
    )


def retraining_story(month: dict) -> dict:
    """A retraining in sentences.

    Args:
        month: Of `read_months`, with a retraining asked for.

    Returns:
        Month, outcome, title, why, lines.
    """
    found, word = month["retraining"], outcome(month)
    reasons = (
        found.get("asked_for")
        or month["verdict"].get("reasons")
        or ["no reason is recorded"]
    )
    titles = {
        "promoted": f"version {found.get('champion_version')} is champion",
        "refused": f"refused, version {found.get('champion_version')} stays champion",
        "failed": "failed",
        "waiting": "asked for, and not answered yet",
    }
    metrics = found.get("metrics") or {}
    mae = (metrics.get("model") or metrics).get("mae")
    learned = (
        f"The challenger learned from the sales before {found['as_of']}"
        + (f"; on its test its MAE was {show_number(mae)}." if mae else ".")
        if found.get("as_of")
        else ""
    )
    against = [found["failed"]] if found.get("failed") else found.get("reasons") or []
    lost = any(
        gate["name"] == "champion" and not gate["passed"]
        for gate in found.get("gates") or ()
    )  # then the duel is among the reasons
    lines = [learned, "" if lost else duel_sentence(found.get("duel"))]
    return {
        "month": month["month"],
        "outcome": word,
        "title": titles[word],
        "why": reasons,
        "lines": [text for text in lines if text],
        "against": against if word != "promoted" else [],
    }


def first_champion(note: dict) -> str:
    """How the champion of the first month became champion.

    Args:
        note: first.json of a replay; empty when there is none.

    Returns:
        Empty when nothing is recorded.
    """
    if not note:
        return ""
    despite = (
        f", despite these gates: {'; '.join(note['reasons'])}"
        if note.get("reasons")
        else ""
    )
    decided = (
        f"It was promoted by hand ({note.get('why', 'no reason is recorded')}){despite}"
        if note.get("by_hand")
        else "It passed every gate"
    )
    return f"The first champion learned from the sales before {note['as_of']}; on its test its MAE was {show_number(note['metrics']['mae'])}. {decided}."


PUT_BACK = """{const block = Object.assign(document.createElement("script"), {type: "text/plain", id: %s, textContent: %s})
document.currentScript.before(block)}"""  # a block of data as a program that puts it where it was


def share_blocks(
    page: str, shared: dict[str, str], folder: str, least: int = 10_000
) -> str:
    """Move large styles and scripts to files that many pages share.

    Args:
        page: HTML.
        shared: File name -> content; receives the blocks.
        folder: Of the shared files, as seen from the page.
        least: Characters.

    Returns:
        HTML.
    """

    def move(match):
        kind, form, mark, content = match.groups()
        if len(content) < least or (mark and form != "plain"):
            return match[0]
        if form == "plain":
            content = PUT_BACK % (json.dumps(mark), json.dumps(content))
        name = (
            hashlib.sha256(content.encode()).hexdigest()[:12]
            + {"style": ".css", "script": ".js"}[kind]
        )
        shared[name] = content
        return (
            f'<link rel="stylesheet" href="{folder}/{name}">'
            if kind == "style"
            else f'<script src="{folder}/{name}"></script>'
        )

    return re.sub(
        r"""(?s)<(style|script)(?: type="text/(css|javascript|plain)")?(?: id="([\w-]+)")?>(.*?)</\1>""",
        move,
        page,
    )


CARD = '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title><style>{style}</style></head><body class="plain"><main>{body}</main></body></html>'


def card_page(text: str, title: str, style: str) -> str:
    """A model card as a page.

    Args:
        text: Markdown.
        style: CSS.

    Returns:
        HTML.
    """
    from markdown_it import MarkdownIt

    return CARD.format(
        title=escape(title),
        style=style,
        body=MarkdownIt("commonmark", {"html": False}).enable("table").render(text),
    )


def month_pages(
    history: Path, month: str, stages: Iterable[str] = ()
) -> dict[str, Path]:
    """The pages that a month left: reports, then the executed notebooks; below them those of a retraining, with its model card.

    Args:
        history: One folder a month.
        stages: In the order of running.

    Returns:
        Name beside the page -> file of the month.
    """
    folder, order = Path(history) / month, list(stages)

    def place(path):
        return order.index(path.stem) if path.stem in order else -1, path.name

    found = [
        *sorted(folder.glob("*.html"), key=place),
        *sorted(
            [*folder.glob("retraining/*.html"), *folder.glob("retraining/*.md")],
            key=place,
        ),
    ]
    return {
        f"{month}/{path.relative_to(folder).with_suffix('.html').as_posix()}": path
        for path in found
    }


def write_month_pages(
    history: Path, months: list[dict], out: Path, style: str, icon: str = ""
) -> None:
    """Copy the pages of the months, small and silent.

    Args:
        history: One folder a month.
        months: Of `read_months`.
        out: Receives the copies, and the blocks that they share.
        style: CSS of the cards.
        icon: From `out`; empty for none.
    """
    shared: dict[str, str] = {}
    for month in months:
        for name, path in month_pages(history, month["month"]).items():
            text, up = (
                path.read_text(encoding="utf-8", errors="replace"),
                "../" * name.count("/"),
            )
            page = (
                card_page(text, f"Model card, {month['month']}", style)
                if path.suffix == ".md"
                else share_blocks(text, shared, f"{up}shared")
            )
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(offline(page, icon and up + icon), encoding="utf-8")
    (out / "shared").mkdir(parents=True, exist_ok=True)
    for name, content in shared.items():
        (out / f"shared/{name}").write_text(content, encoding="utf-8")


def mlflow_address(chosen: Settings) -> str:
    """Where MLflow's pages are while the house is up.

    Returns:
        Http://…
    """
    return (
        chosen.mlflow.tracking_uri.rstrip("/")
        if chosen.mlflow.tracking_uri.startswith("http")
        else f"http://127.0.0.1:{chosen.mlflow.port}"
    )


def mlflow_links(month: dict, address: str) -> list[tuple[str, str]]:
    """The MLflow runs of a month and of its retraining.

    Args:
        month: Of `read_months`.
        address: Of MLflow.

    Returns:
        Stage, address of its run.
    """
    runs = {
        **(month["run"].get("mlflow") or {}),
        **(month["retraining"].get("mlflow") or {}),
    }
    return [
        (stage, f"{address}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}")
        for stage, run in runs.items()
        if run and run.get("run_id")
    ]


def table_rows(
    history: Path, months: list[dict], address: str, stages: Iterable[str] = ()
) -> list[dict]:
    """The rows of the table.

    Args:
        history: One folder a month.
        months: Of `read_months`.
        address: Of MLflow.
        stages: In the order of running.

    Returns:
        What the template writes.
    """

    def row(month):
        verdict, sales, pages = (
            month["verdict"],
            month["sales"],
            month_pages(history, month["month"], stages),
        )
        drifted, reasons = verdict.get("drifted") or [], verdict.get("reasons") or []
        word, paused = (
            outcome(month),
            month["run"].get("why_not")
            if verdict.get("retrain") and not month["run"].get("asked")
            else "",
        )
        return {
            "month": month["month"],
            "judgement": judgement(month),
            "sign": SIGNS[judgement(month)],
            "verdict": verdict.get("verdict") or "not looked at yet",
            "incomplete": bool(verdict) and verdict.get("complete") is False,
            "finished": is_finished(month),
            "reasons": reasons if judgement(month) != "ok" else [],
            "rows": sales.get("rows"),
            "mae": show_number(sales.get("mae")),
            "expected": show_number(verdict.get("expected_mae")),
            "coverage": percent(sales.get("coverage")),
            "drifted": f"{len(drifted)} ({percent(len(drifted) / verdict['tested'])})"
            if verdict.get("tested")
            else "–",
            "naive": verdict.get("naive"),
            "version": verdict.get("version"),
            "outcome": word,
            "paused": paused,
            "champion": month["retraining"].get("champion_version"),
            "pages": [
                (Path(name).stem, name) for name in pages if name.count("/") == 1
            ],
            "again": [(Path(name).stem, name) for name in pages if name.count("/") > 1],
            "runs": mlflow_links(month, address),
        }

    return [row(month) for month in months]


def history_body(
    history: Path,
    months: list[dict],
    root: Path,
    prefix: str = "",
    mark: str = "",
    level: int = 2,
) -> str:
    """Figures, picture, retrainings and table.

    Args:
        history: One folder a month.
        months: Of `read_months`, at least one.
        root: Repository.
        prefix: Of the links to the pages of a month.
        mark: Before each anchor, where a page shows more than one history.
        level: Of its headings.

    Returns:
        HTML.
    """
    stories = [retraining_story(month) for month in months if outcome(month)]
    return fill(
        root,
        "history_body.html.jinja",
        facts=history_facts(months),
        svg=history_svg(months, mark),
        stories=stories,
        prefix=prefix,
        mark=mark,
        level=level,
        rows=table_rows(
            history, months, mlflow_address(settings(root)), list(graph(pipeline(root)))
        ),
        first=first_champion(read_json(Path(history) / "first.json", {})),
        signs=SIGNS,
        commit=next(
            (
                month["run"]["commit"]
                for month in reversed(months)
                if month["run"].get("commit")
            ),
            "",
        ),
    )


def write_history(history: Path, out: Path, root: Path | None = None) -> Path:
    """Write the page of the months, with copies of all that it links to.

    Args:
        history: One folder a month.
        out: Folder that is made, or replaced as a whole.
        root: Repository; found when not given.

    Returns:
        The page, `index.html` in that folder.
    """
    root, history, months = (
        Path(root or repo_root()),
        Path(history),
        read_months(history),
    )
    if not months:
        raise WorkbookError(
            f"There is no month in {history}; run `housemlops replay-history` first."
        )
    style = (root / "nbs/site/static/history.css").read_text(encoding="utf-8")
    with whole_folder(out) as draft:
        write_month_pages(history, months, draft, style)
        body = history_body(history, months, root)
        (draft / "index.html").write_text(
            fill(
                root,
                "history.html.jinja",
                body=body,
                style=style,
                first=months[0]["month"],
                last=months[-1]["month"],
            ),
            encoding="utf-8",
        )
    return Path(out) / "index.html"
