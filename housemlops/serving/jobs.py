"""Run a server's background jobs, whatever they raise."""

import asyncio
import logging
from collections.abc import Callable

from housemlops.engine import LiveModel
from housemlops.serving.metrics import Metrics
from housemlops.serving.service import PredictionService

LOGGER = logging.getLogger("uvicorn.error")
LONGEST_WAIT = 60  # seconds, after failures


class BackgroundJob:
    """A function that is called again and again.

    Args:
        name: What it does, in words.
        work: The function.
        seconds: Between two calls.
    """

    def __init__(self, name: str, work: Callable[[], object], seconds: float):
        self.name = name
        self.work = work
        self.seconds = seconds
        self.trouble = ""  # of the last call
        self.failures = 0  # in a row

    async def run(self) -> None:
        """Call the function for ever, in a thread."""
        while True:
            await asyncio.sleep(await asyncio.to_thread(self.run_once))

    def run_once(self) -> float:
        """Call the function; log an error, and when it works again.

        Returns:
            Seconds to wait: after failures 1, 2, 4 and so on up to 60.
        """
        try:
            self.work()
        except Exception as error:
            kind = type(error).__name__
            if not self.failures:
                LOGGER.error("Could not %s: %s: %s", self.name, kind, error)
            self.failures += 1
            self.trouble = f"could not {self.name}: {kind}, {self.failures} times"
            return min(LONGEST_WAIT, 2 ** (self.failures - 1))
        if self.failures:
            LOGGER.warning("Could %s again.", self.name)
        self.failures, self.trouble = 0, ""
        return self.seconds


def update_model(live_model: LiveModel, metrics: Metrics) -> None:
    """Load a newer model if there is one, and log if it cannot be used."""
    before = live_model.trouble
    if live_model.update():
        LOGGER.warning("Now serving version %s.", live_model.release.note["version"])
    elif live_model.trouble != before:
        LOGGER.error("The new release is not loaded: %s", live_model.trouble)
    metrics.stale.set(bool(live_model.trouble))


def background_jobs(
    service: PredictionService, metrics: Metrics, retention_days: int
) -> list[BackgroundJob]:
    """Return the jobs of a server."""

    def look_for_model() -> None:
        update_model(service.live_model, metrics)

    def purge() -> None:
        service.log.purge(retention_days)

    jobs = [
        BackgroundJob("look for a new model", look_for_model, 1),
        BackgroundJob("check the prediction log", service.check_log, 1),
    ]
    if retention_days:
        jobs.append(BackgroundJob("delete old predictions", purge, 3600))
    return jobs
