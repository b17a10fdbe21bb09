"""What a DAG does besides its stages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from housemlops.settings import params

RETRAINING_ASSET = "house_prices_retraining_asked_for"


class StageHooks:
    """Calls around the stages of a DAG; this class does nothing, subclasses do.

    Attributes:
        loop: Selection of stages, a key of `pipeline.graph.loops`.
    """

    loop = "all"

    def latest_month(self, root: Path) -> str:
        """Return the latest month, YYYY-MM, that a run may replay."""
        return str(params(root)["as_of"])

    def before(self, root: Path, workspace: Path, stage: str, conf: dict) -> None:
        """Act just before a stage."""

    def after(self, root: Path, workspace: Path, stage: str, conf: dict) -> dict | None:
        """Act just after a stage.

        Returns:
            Content of the asset event that asks for a retraining, if there is to be one.
        """

    def failed(self, root: Path, stage: str, conf: dict, sentence: str) -> None:
        """Act when a stage has failed."""

    def fetch_champion(self, root: Path, workspace: Path) -> None:
        """Fetch the champion of the registry, on a machine that has no releases."""

    def replace_promotion_log(self, client: Any, log: Path) -> None:
        """Make the registry follow a promotion log that another run has continued.

        Args:
            client: MlflowClient.
            log: The other run's.
        """

    def effect_holds(self, stage: str, build: Path) -> bool:
        """Tell whether a stage's effect outside of DVC is still there.

        Args:
            stage: Its name.
            build: Folder with its outputs.
        """
        return True


def newest_event(events: Mapping[Any, list] | None) -> dict:
    """Return the content of the newest asset event that started a run.

    Args:
        events: Asset -> its events.

    Returns:
        Empty when there are none.
    """
    every = []
    for each in (events or {}).values():
        every += each
    if not every:
        return {}
    newest = max(every, key=lambda event: event.timestamp)
    return dict(newest.extra or {})


def run_conf(context: Mapping) -> dict:
    """Return what was asked of a run, by an asset event or by the person who started it."""
    conf = context["dag_run"].conf or {}
    return newest_event(context.get("triggering_asset_events")) | conf
