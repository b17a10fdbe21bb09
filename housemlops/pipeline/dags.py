"""Build Airflow's DAGs from dvc.yaml: one task for each stage."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from housemlops.pipeline.graph import loops, pipeline
from housemlops.pipeline.hooks import RETRAINING_ASSET, StageHooks, run_conf
from housemlops.pipeline.parameters import read_notebook
from housemlops.pipeline.task import run_task, tee_log
from housemlops.settings import WorkbookError, settings

DESCRIPTIONS = {
    "watch": "A month: its sales, the champion's predictions, a verdict",
    "learn": "A challenger, and the gates",
    "all": "The whole life of a house-price model",
}
LEARNING_WEIGHT = 100  # a retraining comes before the runs of months


def stage_operator() -> type:
    """Return the Airflow operator of a stage.

    It is defined on demand, because importing Airflow takes seconds. Airflow serialises a
    DAG without its code, so the link to the notebook travels as an XCom, which `get_link`
    fills when the task ends.
    """
    from airflow.sdk import Asset, AssetAlias, BaseOperator, BaseOperatorLink
    from airflow.sdk.exceptions import AirflowFailException

    class ExecutedNotebook(BaseOperatorLink):
        name = "Executed notebook"

        def get_link(self, operator, *, ti_key):
            return operator.page

    class StageOperator(BaseOperator):
        operator_extra_links = (ExecutedNotebook(),)
        ui_color = "#dbe7f3"

        def __init__(self, *, root: str, hooks: StageHooks, **rest):
            super().__init__(**rest)
            self.root, self.hooks, self.page = root, hooks, ""

        def execute(self, context):
            root, run = Path(self.root), context["dag_run"]
            run_stage = task_runner(root)
            try:
                with tee_log(root, run, self.task_id):
                    outcome, event = run_stage(root, self, run, run_conf(context))
            except WorkbookError as error:
                raise AirflowFailException(str(error)) from None
            if event:
                asset_events = context["outlet_events"][AssetAlias(RETRAINING_ASSET)]
                asset_events.add(Asset(RETRAINING_ASSET), extra=event)
            return outcome

    return StageOperator


def task_runner(root: Path) -> Callable:
    """Return what does a task's work: in a workspace, or on a machine without its disk."""
    if settings(root).airflow.tasks == "here":
        return run_task
    from housemlops.pipeline.remote import run_apart

    return run_apart


def operator_class(root: Path) -> type:
    """Return the operator that settings.ini chooses for stages."""
    if settings(root).airflow.tasks != "pods":
        return stage_operator()
    from housemlops.pipeline.pods import pod_operator

    return pod_operator()


def notebook_doc(root: Path, name: str) -> str:
    """Return title and summary of a notebook, as Markdown."""
    return "".join(read_notebook(root, name)["cells"][0]["source"])


def build_dag(
    root: Path,
    name: str = "house_prices_lifecycle",
    loop: str = "all",
    hooks: StageHooks | None = None,
):
    """Return a selection of the stages of dvc.yaml as an Airflow DAG.

    Args:
        root: Checkout.
        name: dag_id.
        loop: watch, learn or all.
        hooks: What the DAG does besides its stages.
    """
    from airflow.sdk import DAG, Asset, CronDataIntervalTimetable

    until, before = settings(root).airflow.until, loops(pipeline(root))[loop]
    end = None
    if until and loop == "watch":
        end = datetime.strptime(until, "%Y-%m").replace(tzinfo=UTC)
    schedules = {
        "watch": CronDataIntervalTimetable("@monthly", "UTC"),
        "learn": [Asset(RETRAINING_ASSET)],
    }
    dag = DAG(
        name,
        schedule=schedules.get(loop),
        start_date=datetime(1970, 1, 1, tzinfo=UTC),
        end_date=end,
        catchup=False,
        is_paused_upon_creation=False,
        max_active_runs=1 if loop == "learn" else 2,
        tags=["housemlops"],
        description=DESCRIPTIONS[loop],
        doc_md=notebook_doc(root, "index"),
    )
    operator, tasks = operator_class(root), {}
    with dag:
        for number, stage in enumerate(before, 1):
            tasks[stage] = operator(
                task_id=stage,
                root=str(root),
                hooks=hooks or StageHooks(),
                doc_md=notebook_doc(root, stage),
                **task_options(root, loop, number, last=number == len(before)),
            )
    for stage, earlier in before.items():
        for other in earlier:
            tasks[other].set_downstream(tasks[stage])
    return dag


def task_options(root: Path, loop: str, number: int, last: bool) -> dict:
    """Return Airflow's options of a task.

    The last stage of a month, monitoring, waits for that of the month before, and may ask
    for a retraining; the stages before it run side by side. When there is more to do than
    the machine can, learning comes before monitoring, and that before preparing months.

    Args:
        root: Checkout.
        loop: watch, learn or all.
        number: Place of the stage, from 1.
        last: Whether it is the last stage.
    """
    from airflow.sdk import AssetAlias

    monitors = loop == "watch" and last
    options = {
        "weight_rule": "absolute",
        "priority_weight": number + (LEARNING_WEIGHT if loop == "learn" else 0),
        "depends_on_past": monitors,
        "outlets": [AssetAlias(RETRAINING_ASSET)] if monitors else [],
    }
    if settings(root).airflow.tasks != "here":  # a machine may be lost
        options |= {"retries": 2, "retry_delay": timedelta(seconds=5)}
    return options
