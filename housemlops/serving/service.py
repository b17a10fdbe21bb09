"""Price houses in batches, and commit each prediction to the log first."""

import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fastapi import HTTPException
from pydantic import BaseModel

from housemlops.engine import Busy, Estimate, LiveModel, MicroBatcher, Release
from housemlops.prediction_log import PredictionLog
from housemlops.serving.database import LogUnavailable
from housemlops.serving.responses import log_unavailable

LOGGER = logging.getLogger("uvicorn.error")  # the server's own output
RETRY_SECONDS = 1.0  # between two attempts to open the log


@dataclass
class PredictionRequest:
    """Houses that arrived in one HTTP request, and later their predictions."""

    route: str
    houses: list[BaseModel]
    predictions: list[dict] = field(default_factory=list)


class PredictionService:
    """Price houses in batches; commit each prediction to the log before returning it."""

    def __init__(
        self, House: type[BaseModel], live_model: LiveModel, log: PredictionLog
    ):
        self.live_model = live_model
        self.log = log
        self.log_is_open = False
        self.log_trouble = ""  # why the log is unavailable
        self.retry_at = 0.0
        self.field_names = {
            field.alias: name for name, field in House.model_fields.items()
        }
        self.batcher = MicroBatcher(self.predict_batch)

    def open_log(self) -> None:
        """Create or update the log's tables.

        Raises:
            LogUnavailable: The database does not answer; it is asked once a second.
        """
        if time.monotonic() < self.retry_at:
            raise LogUnavailable("the prediction log is unavailable", self.log_trouble)
        try:
            self.log.migrate()
            self.log.make_view(self.live_model.release.contract)
            if self.log_trouble:
                self.log.probe()
        except LogUnavailable as error:
            self.mark_log_lost(error)
            raise
        if self.log_trouble:
            LOGGER.warning("The prediction log is back: predictions are returned.")
        self.log_is_open = True
        self.log_trouble = ""

    def mark_log_lost(self, error: LogUnavailable) -> None:
        """Return no predictions until the log is back; log each reason once."""
        if self.log_trouble != error.reason:
            LOGGER.error("No prediction is returned: %s", error)
        self.log_is_open = False
        self.log_trouble = error.reason
        self.retry_at = time.monotonic() + RETRY_SECONDS

    def check_log(self) -> None:
        """Open the log if it is closed; else check that it holds what was committed."""
        try:
            if not self.log_is_open:
                self.open_log()
                return
            self.log.check()
            self.log.checkpoint()
        except LogUnavailable as error:
            if self.log_is_open:
                self.mark_log_lost(error)

    def log_problem(self) -> str:
        """Say, without secrets, why no prediction is returned; "" if one can be."""
        if self.log_is_open:
            return ""
        reason = self.log_trouble or "it is being opened"
        return f"the prediction log is unavailable: {reason}"

    def require_log(self) -> None:
        """Raise the error 503 if no prediction can be returned now."""
        if not self.log_is_open:
            raise log_unavailable()

    def feature_values(self, house: BaseModel, inputs: Sequence[str]) -> list:
        """Return the values of a house in the order of the model's inputs."""
        values, names = house.__dict__, self.field_names
        return [values[names[column]] for column in inputs]

    def to_prediction(self, estimate: Estimate, release: Release) -> dict:
        """Return a prediction as it is answered."""
        note = release.note
        return {
            "id": f"{note['model_sha256'][:12]}-{secrets.token_hex(8)}",
            "price": estimate.price,
            "low": estimate.low,
            "high": estimate.high,
            "level": release.level,
            "currency": note["currency"],
            "unit": note["unit"],
            "model": note["model"],
            "version": note["version"],
            "warnings": estimate.warnings,
        }

    def to_log_row(
        self, prediction: dict, house: BaseModel, route: str, release: Release
    ) -> dict:
        """Return a prediction as it is logged, with the house it was made for."""
        return {
            **prediction,
            "time": datetime.now(UTC),
            "model_sha256": release.note["model_sha256"],
            "data_md5": release.note.get("data_md5"),
            "route": route,
            "inputs": house.model_dump_json(by_alias=True, exclude_none=True),
        }

    def predict_batch(self, requests: list[PredictionRequest]) -> None:
        """Fill in the predictions of requests: one call of the model, one commit.

        Raises:
            LogUnavailable: The log could not be written; nothing may be returned.
        """
        if not self.log_is_open:
            self.open_log()
        release = self.live_model.release
        features = []
        for request in requests:
            for house in request.houses:
                features.append(self.feature_values(house, release.inputs))
        estimates = iter(release.predict(features))
        rows = []
        for request in requests:
            for house in request.houses:
                prediction = self.to_prediction(next(estimates), release)
                request.predictions.append(prediction)
                row = self.to_log_row(prediction, house, request.route, release)
                rows.append(row)
        try:
            self.log.write(rows)
        except LogUnavailable as error:
            self.mark_log_lost(error)
            raise

    async def predict(self, route: str, houses: list[BaseModel]) -> list[dict]:
        """Return the predictions of houses, committed to the log.

        Raises:
            HTTPException: 503, if the log is unavailable or too many requests wait.
        """
        request = PredictionRequest(route, houses)
        try:
            await self.batcher.submit(request)
        except LogUnavailable:
            raise log_unavailable() from None
        except Busy as error:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from None
        return request.predictions

    def close(self) -> None:
        """Finish the requests that wait, and close the log."""
        self.batcher.close()
        self.log.close()
