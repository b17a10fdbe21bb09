"""The DAGs of the workbook: the monthly run, the retraining, and the lifecycle."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from housemlops.core.files import read_json
from housemlops.operations.history import (
    history_folder,
    is_finished,
    place_inputs,
    record_failure,
    record_month,
    record_retraining,
    shift_month,
    training_month,
    unanswered_months,
)
from housemlops.pipeline.dags import build_dag
from housemlops.pipeline.graph import loops, pipeline
from housemlops.pipeline.hooks import StageHooks
from housemlops.pipeline.workspace import finish_workspace
from housemlops.settings import WorkbookError, params, settings, tracking


def send_message(compose: Callable[[Path], object], folder: Path) -> None:
    """Send a message; a channel in trouble is reported and stops nothing.

    Args:
        compose: Function of `alert` that writes a message about a month.
        folder: Of a month.
    """
    from housemlops.alert import notify

    try:
        notify(compose(folder))
    except Exception as error:
        print(
            f"The message about {folder.name} could not be delivered: "
            f"{type(error).__name__}: {error}",
            flush=True,
        )


def no_champion_yet(history: Path) -> bool:
    """Return whether this is a replay whose first champion is still in training."""
    replay = (history.parent / "replay.json").exists()
    return replay and not (history / "first.json").exists()


def wait_for_retrainings(history: Path, month: str, patience: float = 3600) -> None:
    """Wait until earlier months' retrainings, and a replay's first, are done.

    Args:
        history: Folder of all months.
        month: That waits.
        patience: Seconds.

    Raises:
        WorkbookError: One is not done in time.
    """
    end = time.monotonic() + patience
    while True:
        waiting = unanswered_months(history, month)
        if no_champion_yet(history):
            waiting = ["the replay", *waiting]
        if not waiting:
            return
        if time.monotonic() > end:
            raise WorkbookError(
                f"The retraining that {waiting[0]} asked for was not answered: look at "
                "house_prices_retrain in Airflow, then clear this task."
            )
        time.sleep(0.5)


def leave_first_core() -> None:
    """Keep this task off the first of several cores.

    That one is for the champion's tasks and retrainings, for which all others wait.
    """
    cores = sorted(getattr(os, "sched_getaffinity", lambda _: [])(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[1:])


def last_stage(workspace: Path, loop: str) -> str:
    """Return the last stage of a loop of dvc.yaml."""
    return list(loops(pipeline(workspace))[loop])[-1]


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
                from housemlops.serve import is_live as holds
            case "monitor":
                from housemlops.monitor import monitor_holds as holds
            case _:
                return True
        return bool(holds(build))

    def replace_promotion_log(self, client, log):
        """Make the tags of the registry follow the log of another run."""
        from housemlops.promote import tag_newest_lines

        tag_newest_lines(client, log)


class MonitoringHooks(WorkbookHooks):
    """What the monthly run does besides its stages."""

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
        """Place the champion of that time before the last stage.

        The stages before it leave a core to it and to a retraining.
        """
        if stage != last_stage(workspace, "watch"):
            return leave_first_core()
        month = shift_month(str(params(workspace)["as_of"]), -1)
        wait_for_retrainings(history_folder(root), month)
        place_inputs(root, workspace, month)

    def after(self, root, workspace, stage, conf):
        """Record the month, send a message, and ask for a retraining if it may."""
        from housemlops.alert import about_month

        if stage != last_stage(workspace, "watch"):
            return None
        given = params(workspace)
        month = shift_month(str(given["as_of"]), -1)
        folder = history_folder(root) / month
        note = record_month(root, workspace, month)
        send_message(about_month, folder)
        if is_finished(folder):
            return finish_workspace(root, workspace, latest=False)
        same = {name: conf[name] for name in ("commit", "uncommitted") if name in conf}
        return {
            "month": month,
            "as_of": training_month(month, given["label_delay_months"]),
            "reasons": read_json(folder / "verdict.json")["reasons"],
            "workspace": f"retrain-{month}-{note['commit'][:8]}",
            **same,
        }


class LifecycleHooks(WorkbookHooks):
    """What the whole lifecycle does besides its stages."""

    def after(self, root, workspace, stage, conf):
        """Promote a new champion to the cluster that settings.ini names, if any."""
        if stage != "serve" or not settings(root).release.cluster:
            return
        from housemlops.cluster.release import release_champion

        promotion = release_champion(root, params(workspace)["dataset"])
        if promotion:
            print(promotion.sentence)


class RetrainingHooks(LifecycleHooks):
    """What a retraining does besides its stages."""

    loop = "learn"

    def latest_month(self, root):
        """Return the latest as_of: prices are known some months after the sale."""
        given = params(root)
        return shift_month(str(given["as_of"]), -given["label_delay_months"])

    def after(self, root, workspace, stage, conf):
        """Record what became of the retraining, after its last stage."""
        from housemlops.alert import about_retraining

        super().after(root, workspace, stage, conf)
        if stage != last_stage(workspace, "learn"):
            return
        month = conf.get("month")
        if month:
            folder = history_folder(root) / month
            record_retraining(root, workspace, month, conf.get("reasons", []))
            send_message(about_retraining, folder)
            run = read_json(folder / "run.json")
            month_workspace = settings(root).paths.state / run["workspace"]
            if month_workspace.exists():
                finish_workspace(root, month_workspace, latest=False)
        finish_workspace(root, workspace, latest=False)

    def failed(self, root, stage, conf, sentence):
        """Record the failure: it is an answer to the month that asked, too."""
        from housemlops.alert import about_retraining

        if conf.get("month"):
            record_failure(root, conf, sentence)
            send_message(about_retraining, history_folder(root) / conf["month"])


def hooks_of(loop: str) -> StageHooks:
    """Return the hooks of watch, learn or all."""
    hooks = {"watch": MonitoringHooks, "learn": RetrainingHooks, "all": LifecycleHooks}
    return hooks[loop]()


def build_dags(root: Path) -> list:
    """Return the three DAGs of the workbook: monitoring, retraining and lifecycle."""
    return [
        build_dag(root, "house_prices", "watch", MonitoringHooks()),
        build_dag(root, "house_prices_retrain", "learn", RetrainingHooks()),
        build_dag(root, "house_prices_lifecycle", hooks=LifecycleHooks()),
    ]
