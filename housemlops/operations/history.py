"""Record what each replayed month did."""

import json
import shutil
from pathlib import Path

from housemlops.core.files import read_optional_json, write_note
from housemlops.operations.timeline import is_finished as finished
from housemlops.operations.timeline import month_span
from housemlops.pipeline.graph import loops, pipeline
from housemlops.settings import (
    params,
    settings,
    tracking,
    whole_folder,
)


def shifted(month: str, by: int) -> str:
    """A month some months later or earlier.

    Args:
        month: YYYY-MM.
        by: Months, negative for the past.

    Returns:
        YYYY-MM.
    """
    year, number = map(int, month.split("-"))
    years, rest = divmod(year * 12 + number - 1 + by, 12)
    return f"{years:04}-{rest + 1:02}"


def learning_as_of(month: str, delay: int) -> str:
    """What a retraining may know: the sales whose prices were known when the month had ended.

    Args:
        month: That asks for a retraining.
        delay: label_delay_months.

    Returns:
        YYYY-MM.
    """
    return shifted(month, 1 - delay)


def history_folder(root: Path) -> Path:
    """Where the months are remembered.

    Args:
        root: Checkout.

    Returns:
        A folder per month in it.
    """
    return settings(root).paths.state / "history"


def is_finished(folder: Path) -> bool:
    """Whether a month has been watched, and its retraining, if it asked for one, was answered.

    Args:
        folder: Of a month.
    """
    return finished(
        {
            name: read_optional_json(folder / f"{name}.json")
            for name in ("run", "retraining")
        }
    )


def unanswered(history: Path, before: str) -> list[str]:
    """Earlier months whose retraining has not been answered yet.

    Args:
        before: Month.

    Returns:
        Months.
    """
    return [
        folder.name
        for folder in sorted(history.glob("????-??"))
        if folder.name < before
        and (folder / "run.json").exists()
        and not is_finished(folder)
    ]


def place_champion(workspace: Path, current: Path):
    """Put the server of the champion into a workspace, or a note that there is none.

    Args:
        current: Live release; need not exist.
    """
    with whole_folder(workspace / "build/serve") as folder:
        if current.exists():
            shutil.copytree(
                current,
                folder,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        else:
            (folder / "model").mkdir()
            (folder / "model/release.json").write_text(
                json.dumps(
                    {"version": None, "reasons": ["no model has been promoted yet"]}
                )
            )


def earlier_answers(history: Path, months: list[str]) -> list[str]:
    """The champion's answers to the sales of earlier months.

    Args:
        months: That the month still needs.

    Returns:
        Lines of a CSV file, the columns' names first; empty when there are none.
    """
    tables = [
        (history / month / "predictions.csv").read_text(encoding="utf-8").splitlines()
        for month in months
        if (history / month / "predictions.csv").exists()
    ]
    rows = {
        tuple(line.split(",")[:2]): line
        for table in tables
        for line in table[1:]
        if line.split(",")[0] in months
    }
    return [*tables[0][:1], *sorted(rows.values())] if tables else []


def place(root: Path, workspace: Path, month: str):
    """Give a month's run the champion of that time and its earlier answers, once.

    Args:
        root: Checkout.
        month: It is about.
    """
    if (workspace / "placed").exists():
        return
    chosen = params(workspace)
    place_champion(workspace, settings(root).paths.state / "serve/current")
    back = chosen["monitor"]["months"] - 1 + chosen["label_delay_months"]
    if lines := earlier_answers(
        history_folder(root), month_span(shifted(month, -back), shifted(month, -1))
    ):
        (workspace / "data/predictions.csv").write_text(
            "\n".join(lines) + "\n", encoding="utf-8"
        )
    (workspace / "placed").touch()


def may_ask(verdict: dict, month: str, as_of: str, asked: list[str], pause: int) -> str:
    """Whether a month may ask for a retraining.

    Args:
        verdict: Of the stage monitor.
        month: It is about.
        as_of: What a retraining would know.
        asked: Months that have asked before.
        pause: retrain_pause_months.

    Returns:
        "" when it may; otherwise why not.
    """
    if not verdict["retrain"]:
        return "the verdict asks for none"
    known = verdict.get("champion_as_of")
    if known and as_of <= known:
        return f"there is nothing new to learn: the champion knows all prices known as of {known}"
    last = max([*asked, *([shifted(known, -1)] if known else [])], default="")
    if last and month < (free := shifted(last, pause)):
        return f"the last retraining was in {last}; the next is possible in {free} (retrain_pause_months: {pause})"
    return ""


AGE_AGAIN = "an alarm for age alone is raised in the first month that finds a champion old, and again only in a month that asks for a retraining"


def raises_alarm(verdict: dict, asked: bool, earlier: list[dict]) -> bool:
    """Say whether a month's verdict is an alarm that people have not had before, as AGE_AGAIN says.

    Args:
        verdict: Of the stage monitor.
        asked: Whether the month asks for a retraining.
        earlier: Verdicts of the months before.
    """
    if verdict["verdict"] != "old champion" or asked:
        return verdict["alarm"]
    known = [
        each
        for each in earlier
        if each.get("verdict") == "old champion"
        and each.get("version") == verdict.get("version")
    ]
    return verdict["alarm"] and not known


def mlflow_runs(root: Path, workspace: Path, stages: list[str]) -> dict[str, dict]:
    """Which MLflow runs made the results in a workspace.

    Args:
        root: Checkout.

    Returns:
        Stage -> experiment_id and run_id.
    """
    found = {
        stage: read_optional_json(workspace / f"reports/{stage}.run.json")
        for stage in stages
    }
    if lacking := [stage for stage in stages if not found[stage]]:
        mlflow, given = tracking(settings(root)), params(workspace)
        for run in mlflow.search_runs(
            experiment_names=[settings(root).mlflow.experiment],
            output_format="list",
            max_results=200,
            filter_string=f"tags.as_of = '{given['as_of']}' and tags.dataset = '{given['dataset']}' and attributes.status = 'FINISHED'",
        ):
            if run.info.run_name in lacking and not found[run.info.run_name]:
                found[run.info.run_name] = {
                    "experiment_id": run.info.experiment_id,
                    "run_id": run.info.run_id,
                }
    return {stage: note for stage, note in found.items() if note}


def stage_seconds(root: Path, workspace: Path) -> dict[str, float]:
    """How long the stages of a run took.

    Args:
        root: Checkout.

    Returns:
        Stage -> seconds of its last event; and total.
    """
    path = settings(root).paths.state / f"log/{workspace.name}.progress.jsonl"
    told = (
        [json.loads(line) for line in path.read_text().splitlines()]
        if path.exists()
        else []
    )
    seconds = {
        event["stage"]: round(event["seconds"], 1)
        for event in told
        if "seconds" in event
    }
    return seconds | {"total": round(sum(seconds.values()), 1)}


def outputs(workspace: Path, stages: list[str]) -> dict[str, str]:
    """What the stages wrote, as DVC knows it.

    Returns:
        Path -> MD5.
    """
    from ruamel.yaml import YAML

    lock = YAML(typ="safe").load((workspace / "dvc.lock").read_text(encoding="utf-8"))[
        "stages"
    ]
    return {out["path"]: out["md5"] for stage in stages for out in lock[stage]["outs"]}


def run_facts(root: Path, workspace: Path, stages: list[str]) -> dict:
    """Which run it was, of which code, and what it wrote.

    Args:
        root: Checkout.
    """
    code = read_optional_json(workspace / "lineage.json")
    return {
        "run": workspace.name,
        "workspace": str(workspace.relative_to(settings(root).paths.state)),
        "commit": code["git_commit"],
        "uncommitted": code["uncommitted"],
        "seconds": stage_seconds(root, workspace),
        "outs": outputs(workspace, stages),
        "mlflow": mlflow_runs(root, workspace, stages),
    }


def record_month(root: Path, workspace: Path, month: str) -> dict:
    """Remember what a month's run found; run again, it says the same.

    Args:
        root: Checkout.
        workspace: Of a month's run.
        month: It is about.

    Returns:
        run.json.
    """
    history, stages, given = (
        history_folder(root),
        list(loops(pipeline(workspace))["watch"]),
        params(workspace),
    )
    folder, verdict = (
        history / month,
        read_optional_json(workspace / "build/monitor/verdict.json"),
    )
    asked = [
        note.parent.name
        for note in sorted(history.glob("????-??/run.json"))
        if note.parent.name < month and read_optional_json(note)["asked"]
    ]
    why_not = may_ask(
        verdict,
        month,
        learning_as_of(month, given["label_delay_months"]),
        asked,
        given["retrain_pause_months"],
    )
    earlier = [
        read_optional_json(path)
        for path in sorted(history.glob("????-??/verdict.json"))
        if path.parent.name < month
    ]
    note = {
        "month": month,
        "asked": not why_not,
        "why_not": why_not,
        "alarm": raises_alarm(verdict, not why_not, earlier),
        **run_facts(root, workspace, stages),
    }
    with whole_folder(folder) as draft:
        if folder.exists() and note["asked"]:
            shutil.copytree(folder, draft, dirs_exist_ok=True)
        for name in ("verdict.json", "predictions.csv", "report.html"):
            shutil.copy(workspace / "build/monitor" / name, draft)
        for stage in stages:
            shutil.copy(workspace / f"reports/{stage}.html", draft)
        write_note(draft / "run.json", note)
    return note


def record_retraining(
    root: Path, workspace: Path, month: str, reasons: list[str]
) -> dict:
    """Remember what became of a retraining.

    Args:
        root: Checkout.
        workspace: Of the retraining.
        month: That asked.
        reasons: Why it asked.

    Returns:
        retraining.json.
    """
    folder, stages = (
        history_folder(root) / month,
        list(loops(pipeline(workspace))["learn"]),
    )
    receipt, metrics = (
        read_optional_json(workspace / "build/promote/receipt.json"),
        read_optional_json(workspace / "build/evaluate/metrics.json"),
    )
    with whole_folder(folder / "retraining") as draft:
        for stage in stages:
            shutil.copy(workspace / f"reports/{stage}.html", draft)
        shutil.copy(workspace / "build/evaluate/card.md", draft)
    note = {
        "month": month,
        "as_of": str(params(workspace)["as_of"]),
        "asked_for": reasons,
        "promoted": receipt["promoted"],
        "reasons": receipt["reasons"],
        "version": receipt["champion_version"] if receipt["promoted"] else None,
        "development_version": receipt["development_version"],
        "champion_version": receipt["champion_version"],
        "model_sha256": receipt["model_sha256"],
        "gates": receipt["gates"],
        "duel": receipt["duel"],
        "metrics": metrics["model"],
        "failed": "",
        **run_facts(root, workspace, stages),
    }
    write_note(folder / "retraining.json", note)
    return note
