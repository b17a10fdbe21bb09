"""Record what each month of production did."""

import json
import shutil
from pathlib import Path

from housemlops.core.files import read_json, read_yaml, write_json
from housemlops.operations.timeline import is_finished as is_month_finished
from housemlops.operations.timeline import month_span
from housemlops.pipeline.graph import loops, pipeline
from housemlops.settings import params, settings, tracking, whole_folder

AGE_AGAIN = (
    "an alarm for age alone is raised in the first month that finds a champion old, "
    "and again only in a month that asks for a retraining"
)
NO_CHAMPION = {"version": None, "reasons": ["no model has been promoted yet"]}


def shift_month(month: str, by: int) -> str:
    """Return the month, YYYY-MM, that is some months later, or earlier if negative."""
    years, rest = divmod(int(month[:4]) * 12 + int(month[5:]) - 1 + by, 12)
    return f"{years:04}-{rest + 1:02}"


def training_month(month: str, delay: int) -> str:
    """Return as_of of a retraining: the sales whose prices a month's end reveals.

    Args:
        month: That asks for a retraining, YYYY-MM.
        delay: label_delay_months.
    """
    return shift_month(month, 1 - delay)


def history_folder(root: Path) -> Path:
    """Return where the months are recorded, each in a folder of its own."""
    return settings(root).paths.state / "history"


def is_finished(folder: Path) -> bool:
    """Return whether a month is recorded, and its retraining, if any, was answered."""
    names = ("run", "retraining")
    notes = {name: read_json(folder / f"{name}.json", {}) for name in names}
    return is_month_finished(notes)


def notes_before(history: Path, month: str, name: str) -> dict[str, dict]:
    """Return the notes of one name of all earlier months, by month."""
    paths = sorted(history.glob(f"????-??/{name}.json"))
    earlier = [path for path in paths if path.parent.name < month]
    return {path.parent.name: read_json(path) for path in earlier}


def unanswered_months(history: Path, before: str) -> list[str]:
    """Return the earlier months whose retraining has not been answered yet."""
    months = notes_before(history, before, "run")
    return [month for month in months if not is_finished(history / month)]


def place_champion(workspace: Path, current: Path) -> None:
    """Put the server of the champion into a workspace, or a note that there is none.

    Args:
        workspace: Of a run.
        current: Live release; need not exist.
    """
    with whole_folder(workspace / "build/serve") as folder:
        if current.exists():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(current, folder, dirs_exist_ok=True, ignore=ignore)
        else:
            (folder / "model").mkdir()
            (folder / "model/release.json").write_text(json.dumps(NO_CHAMPION))


def earlier_predictions(history: Path, months: list[str]) -> list[str]:
    """Return the champions' predictions for the sales of earlier months.

    Returns:
        Lines of a CSV file with its header; empty when there are none.
    """
    header, rows = [], {}
    for month in months:
        path = history / month / "predictions.csv"
        if not path.exists():
            continue
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        header = header or [first]
        for line in lines:
            sold, sale = line.split(",")[:2]
            if sold in months:
                rows[sold, sale] = line  # a later month knows better
    return header + sorted(rows.values())


def place_inputs(root: Path, workspace: Path, month: str) -> None:
    """Give a month's run the champion of that time and its predictions, once.

    Args:
        root: Checkout.
        workspace: Of the run.
        month: It is about.
    """
    if (workspace / "placed").exists():
        return
    given = params(workspace)
    place_champion(workspace, settings(root).paths.state / "serve/current")
    back = given["monitor"]["months"] - 1 + given["label_delay_months"]
    months = month_span(shift_month(month, -back), shift_month(month, -1))
    lines = earlier_predictions(history_folder(root), months)
    if lines:
        text = "\n".join(lines) + "\n"
        (workspace / "data/predictions.csv").write_text(text, encoding="utf-8")
    (workspace / "placed").touch()


def may_ask(verdict: dict, month: str, as_of: str, asked: list[str], pause: int) -> str:
    """Return why a month may not ask for a retraining, or "" when it may.

    Args:
        verdict: Of the stage monitor.
        month: It is about.
        as_of: What a retraining would know.
        asked: Months that have asked before.
        pause: retrain_pause_months.
    """
    if not verdict["retrain"]:
        return "the verdict asks for none"
    known = verdict.get("champion_as_of")
    if known and as_of <= known:
        return (
            "there is nothing new to learn: the champion knows all prices known as of "
            f"{known}"
        )
    retrained = [*asked, shift_month(known, -1)] if known else asked
    if not retrained or month >= shift_month(max(retrained), pause):
        return ""
    last = max(retrained)
    return (
        f"the last retraining was in {last}; the next is possible in "
        f"{shift_month(last, pause)} (retrain_pause_months: {pause})"
    )


def raises_alarm(verdict: dict, asked: bool, earlier: list[dict]) -> bool:
    """Return whether a month's verdict is an alarm that is new, as AGE_AGAIN says.

    Args:
        verdict: Of the stage monitor.
        asked: Whether the month asks for a retraining.
        earlier: Verdicts of the months before.
    """
    if verdict["verdict"] != "old champion" or asked:
        return verdict["alarm"]
    old = [one for one in earlier if one.get("verdict") == "old champion"]
    known = verdict.get("version") in [one.get("version") for one in old]
    return verdict["alarm"] and not known


def mlflow_runs(root: Path, workspace: Path, stages: list[str]) -> dict[str, dict]:
    """Return which MLflow runs made the results in a workspace.

    Returns:
        Stage -> experiment_id and run_id.
    """
    runs = {}
    for stage in stages:
        note = read_json(workspace / f"reports/{stage}.run.json", {})
        if note:
            runs[stage] = note
    if len(runs) == len(stages):
        return runs
    # A stage whose results came from the cache ran in an earlier workspace.
    mlflow, given = tracking(settings(root)), params(workspace)
    found = mlflow.search_runs(
        experiment_names=[settings(root).mlflow.experiment],
        output_format="list",
        max_results=200,
        filter_string=(
            f"tags.as_of = '{given['as_of']}' and "
            f"tags.dataset = '{given['dataset']}' and attributes.status = 'FINISHED'"
        ),
    )
    for run in found:
        stage, info = run.info.run_name, run.info
        if stage in stages and stage not in runs:
            runs[stage] = {"experiment_id": info.experiment_id, "run_id": info.run_id}
    return {stage: runs[stage] for stage in stages if stage in runs}


def stage_seconds(root: Path, workspace: Path) -> dict[str, float]:
    """Return how many seconds the stages of a run took, and the total."""
    path = settings(root).paths.state / f"log/{workspace.name}.progress.jsonl"
    seconds = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        event = json.loads(line)
        if "seconds" in event:
            seconds[event["stage"]] = round(event["seconds"], 1)
    return seconds | {"total": round(sum(seconds.values()), 1)}


def output_hashes(workspace: Path, stages: list[str]) -> dict[str, str]:
    """Return the MD5 of what the stages wrote, as DVC knows it, by path."""
    lock, hashes = read_yaml(workspace / "dvc.lock"), {}
    for stage in stages:
        for output in lock["stages"][stage]["outs"]:
            hashes[output["path"]] = output["md5"]
    return hashes


def run_facts(root: Path, workspace: Path, stages: list[str]) -> dict:
    """Return which run it was, of which code, and what it wrote."""
    code = read_json(workspace / "lineage.json")
    return {
        "run": workspace.name,
        "workspace": str(workspace.relative_to(settings(root).paths.state)),
        "commit": code["git_commit"],
        "uncommitted": code["uncommitted"],
        "seconds": stage_seconds(root, workspace),
        "outs": output_hashes(workspace, stages),
        "mlflow": mlflow_runs(root, workspace, stages),
    }


def month_note(root: Path, workspace: Path, month: str, stages: list[str]) -> dict:
    """Return the content of run.json of a month."""
    history, given = history_folder(root), params(workspace)
    verdict = read_json(workspace / "build/monitor/verdict.json")
    runs = notes_before(history, month, "run")
    asked = [earlier for earlier, note in runs.items() if note["asked"]]
    as_of = training_month(month, given["label_delay_months"])
    why_not = may_ask(verdict, month, as_of, asked, given["retrain_pause_months"])
    verdicts = list(notes_before(history, month, "verdict").values())
    return {
        "month": month,
        "asked": not why_not,
        "why_not": why_not,
        "alarm": raises_alarm(verdict, not why_not, verdicts),
        **run_facts(root, workspace, stages),
    }


def record_month(root: Path, workspace: Path, month: str) -> dict:
    """Record what a month's run found; repeated, it writes the same.

    Args:
        root: Checkout.
        workspace: Of a month's run.
        month: It is about.

    Returns:
        Content of run.json.
    """
    folder = history_folder(root) / month
    stages = list(loops(pipeline(workspace))["watch"])
    note = month_note(root, workspace, month, stages)
    with whole_folder(folder) as draft:
        if folder.exists() and note["asked"]:
            shutil.copytree(folder, draft, dirs_exist_ok=True)
        for name in ("verdict.json", "predictions.csv", "report.html"):
            shutil.copy(workspace / "build/monitor" / name, draft)
        for stage in stages:
            shutil.copy(workspace / f"reports/{stage}.html", draft)
        write_json(draft / "run.json", note)
    return note


def record_retraining(
    root: Path, workspace: Path, month: str, reasons: list[str]
) -> None:
    """Record what became of a retraining.

    Args:
        root: Checkout.
        workspace: Of the retraining.
        month: That asked.
        reasons: Why it asked.
    """
    folder = history_folder(root) / month
    stages = list(loops(pipeline(workspace))["learn"])
    receipt = read_json(workspace / "build/promote/receipt.json")
    metrics = read_json(workspace / "build/evaluate/metrics.json")
    with whole_folder(folder / "retraining") as draft:
        for stage in stages:
            shutil.copy(workspace / f"reports/{stage}.html", draft)
        shutil.copy(workspace / "build/evaluate/card.md", draft)
    copied = (
        "promoted",
        "reasons",
        "development_version",
        "champion_version",
        "model_sha256",
        "gates",
        "duel",
    )
    note = {
        "month": month,
        "as_of": str(params(workspace)["as_of"]),
        "asked_for": reasons,
        "version": receipt["champion_version"] if receipt["promoted"] else None,
        "metrics": metrics["model"],
        "failed": "",
        **{name: receipt[name] for name in copied},
        **run_facts(root, workspace, stages),
    }
    write_json(folder / "retraining.json", note)


def record_failure(root: Path, conf: dict, sentence: str) -> None:
    """Record that the retraining that a month asked for has failed.

    Args:
        root: Checkout.
        conf: Configuration of the run.
        sentence: What went wrong.
    """
    note = {
        "month": conf["month"],
        "as_of": conf.get("as_of"),
        "asked_for": conf.get("reasons", []),
        "promoted": False,
        "reasons": [],
        "failed": sentence,
    }
    write_json(history_folder(root) / conf["month"] / "retraining.json", note)
