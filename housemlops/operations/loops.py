"""The DAGs of a replay: the monthly run, and the retraining that monitoring asks for."""

import os
import time
from pathlib import Path
from typing import Any

from housemlops.core.files import read_optional_json, write_note
from housemlops.operations.history import (
    history_folder,
    is_finished,
    learning_as_of,
    place,
    record_month,
    record_retraining,
    shifted,
    unanswered,
)
from housemlops.pipeline.hooks import StageHooks
from housemlops.pipeline.dags import build_dag
from housemlops.pipeline.workspace import finish_workspace
from housemlops.pipeline.graph import loops, pipeline
from housemlops.settings import (
    WorkbookError,
    params,
    settings,
    tracking,
)


def tell(about: Any, folder: Path):
    """Tell people; a channel in trouble is noted and stops nothing.

    Args:
        about: Of the room `alert`.
        folder: Of a month.
    """
    from housemlops.alert import notify

    try:
        notify(about(folder))
    except Exception as error:
        print(
            f"The message about {folder.name} could not be delivered: {type(error).__name__}: {error}",
            flush=True,
        )


def no_champion_yet(
    history: Path,
) -> bool:
    "Whether this is a replay whose first champion is still in training."
    return (history.parent / "replay.json").exists() and not (
        history / "first.json"
    ).exists()


def wait_for_answers(history: Path, month: str, patience: float = 3600):
    """Wait until the retrainings that earlier months asked for are answered, and a replay has its first champion.

    Args:
        patience: Seconds.
    """
    end = time.monotonic() + patience
    while waiting := [
        *(["the replay"] if no_champion_yet(history) else []),
        *unanswered(history, month),
    ]:
        if time.monotonic() > end:
            raise WorkbookError(
                f"The retraining that {waiting[0]} asked for was not answered: look at house_prices_retrain in Airflow, then clear this task."
            )
        time.sleep(0.5)


def leave_a_core():
    "Keep this task, and what it starts, off the first core where there are several: that one is for what everything waits for."
    cores = sorted(getattr(os, "sched_getaffinity", lambda _: [])(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[1:])


class WorkbookHooks(StageHooks):
    """What every DAG of the workbook needs of the stages' modules."""

    def effect_holds(self, stage, build):
        """Ask the stage's module whether its effect outside of DVC is still there."""
        match stage:  # an import takes seconds
            case "train":
                from housemlops.train import train_holds as holds
            case "evaluate":
                from housemlops.evaluate import evaluate_holds as holds
            case "promote":
                from housemlops.promote import promote_holds as holds
            case "serve":
                from housemlops.serve import serve_holds as holds
            case "monitor":
                from housemlops.monitor import monitor_holds as holds
            case _:
                return True
        return bool(holds(build))

    def replace_promotion_log(self, client, log):
        """Make the tags of the registry follow the log of another run."""
        from housemlops.promote import tag_newest_lines

        tag_newest_lines(client, log)


class Watch(WorkbookHooks):
    """What a month's run does besides its stages."""

    loop = "watch"

    def fetch_champion(self, root, workspace):
        """Fetch the release of the registry's champion."""
        from housemlops.model.registry import champion, registered_name
        from housemlops.serve import deploy

        mlflow = tracking(settings(root))
        name = registered_name(params(workspace)["dataset"])
        version = champion(mlflow.MlflowClient(), name)
        if version:
            deploy(mlflow, version)

    def before(self, root, workspace, stage, conf):
        "The champion of that time, before the last stage; the stages before it give way to it and to a retraining."
        month = shifted(str(params(workspace)["as_of"]), -1)
        if stage != list(loops(pipeline(workspace))["watch"])[-1]:
            return leave_a_core()
        wait_for_answers(history_folder(root), month)
        place(root, workspace, month)

    def after(self, root, workspace, stage, conf):
        "Remember, tell, and ask for a retraining where the month may."
        from housemlops.alert import about_month

        month, given = shifted(str(params(workspace)["as_of"]), -1), params(workspace)
        if stage != list(loops(pipeline(workspace))["watch"])[-1]:
            return None
        note, folder = (
            record_month(root, workspace, month),
            history_folder(root) / month,
        )
        tell(about_month, folder)
        if is_finished(folder):
            return finish_workspace(root, workspace, latest=False)
        shared = {
            name: conf[name] for name in ("commit", "uncommitted") if name in conf
        }
        return {
            "month": month,
            "as_of": learning_as_of(month, given["label_delay_months"]),
            "reasons": read_optional_json(folder / "verdict.json")["reasons"],
            "workspace": f"retrain-{month}-{note['commit'][:8]}",
            **shared,
        }


class Lifecycle(WorkbookHooks):
    """What the whole lifecycle does besides its stages."""

    def after(self, root, workspace, stage, conf):
        "A new champion is live: promote it to the cluster that settings.ini names, if it names one."
        if stage != "serve" or not settings(root).release.cluster:
            return None
        from housemlops.cluster.release import release_champion

        promotion = release_champion(root, params(workspace)["dataset"])
        if promotion:
            print(promotion.sentence)


class Learn(Lifecycle):
    """What a retraining does besides its stages."""

    loop = "learn"

    def latest_month(self, root):
        "What is known when the prices are."
        given = params(root)
        return shifted(str(given["as_of"]), -given["label_delay_months"])

    def after(self, root, workspace, stage, conf):
        "Remember and tell what came of it, after the last stage."
        from housemlops.alert import about_retraining

        super().after(root, workspace, stage, conf)
        if stage != list(loops(pipeline(workspace))["learn"])[-1]:
            return
        if month := conf.get("month"):
            record_retraining(root, workspace, month, conf.get("reasons", []))
            tell(about_retraining, history_folder(root) / month)
            watched = (
                settings(root).paths.state
                / read_optional_json(history_folder(root) / month / "run.json")[
                    "workspace"
                ]
            )
            if watched.exists():
                finish_workspace(root, watched, latest=False)
        finish_workspace(root, workspace, latest=False)

    def failed(self, root, stage, conf, sentence):
        "A retraining that failed is an answer, too."
        from housemlops.alert import about_retraining

        if not (month := conf.get("month")):
            return
        write_note(
            history_folder(root) / month / "retraining.json",
            {
                "month": month,
                "as_of": conf.get("as_of"),
                "asked_for": conf.get("reasons", []),
                "promoted": False,
                "reasons": [],
                "failed": sentence,
            },
        )
        tell(about_retraining, history_folder(root) / month)


def hooks_of(loop: str) -> StageHooks:
    """Return the hooks of watch, learn or all."""
    return {"watch": Watch, "learn": Learn, "all": Lifecycle}[loop]()


def build_dags(root: Path) -> list:
    """The three DAGs of the workbook: watch, learn, and the whole lifecycle.

    Args:
        root: Checkout.

    Returns:
        Of airflow.sdk.DAG.
    """
    return [
        build_dag(root, "house_prices", "watch", Watch()),
        build_dag(root, "house_prices_retrain", "learn", Learn()),
        build_dag(root, "house_prices_lifecycle", hooks=Lifecycle()),
    ]
