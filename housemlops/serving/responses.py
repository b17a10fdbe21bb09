"""Describe what the server answers, as pydantic models."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

Money = Annotated[float, Field(ge=0)]
Value = int | float | str | None


class Prediction(BaseModel):
    """A predicted price, its interval, and the model that made it."""

    id: str = Field(
        description="of this prediction: the first digits of the model's SHA-256, "
        "and a random number"
    )
    price: Money = Field(description="predicted sale price")
    low: Money = Field(description="lower limit of the interval around the price")
    high: Money = Field(description="upper limit")
    level: float = Field(description="share of sale prices that such intervals hold")
    currency: str
    unit: str
    model: str
    version: int
    warnings: list[str] = Field(
        description="values that were not understood, and how they were treated"
    )


class Predictions(BaseModel):
    prices: list[Prediction]


class Contribution(BaseModel):
    """What one column moved."""

    name: str
    value: Value = Field(description="of this house")
    typical: Value = Field(description="of the typical house")
    money: float
    percent: float


class Explanation(BaseModel):
    """The way from the typical price to this one.

    `typical_price`, every `money`, `others` and `remainder` add up to `price`.
    """

    price: Money
    typical_price: Money = Field(
        description="price of a typical house of the training data"
    )
    columns: list[Contribution] = Field(description="the ten that moved the price most")
    others: float = Field(description="what the other columns moved")
    remainder: float = Field(
        description="what three or more columns do together, and none of them alone"
    )
    currency: str
    model: str
    version: int


class Curve(BaseModel):
    """How the price moves along one column, all else equal."""

    column: str
    values: list[Value]
    prices: list[Money | None] = Field(
        description="null where the contract allows no such value"
    )
    lows: list[Money | None]
    highs: list[Money | None]
    currency: str
    warnings: list[str] = Field(description="why there is no price for a value")


class Receipt(BaseModel):
    """A prediction as the log holds it."""

    id: str
    time: datetime
    route: str
    price: Money
    low: Money
    high: Money
    level: float
    currency: str
    model: str
    version: int
    model_sha256: str
    data_md5: str | None = Field(description="MD5 of the ledger used for training")
    warnings: list[str]
    inputs: dict = Field(description="the house, as it was understood")
    explanation: Explanation | None = Field(
        description="as of /explain, by the model that made the prediction"
    )
    explanation_note: str = Field(description="why there is none")


class Readiness(BaseModel):
    """Whether the server can answer, and with which model."""

    status: str
    model: str
    version: int
    model_sha256: str
    stale: bool = Field(description="whether a newer model could not be loaded")
    reason: str = Field(description="why it is stale or not ready")
    background: list[str] = Field(description="background jobs that fail")


class Problem(BaseModel):
    """What was wrong."""

    detail: str | list[dict]


class V2Problem(BaseModel):
    """What was wrong, by the V2 protocol."""

    error: str


def error_statuses(*statuses: int, model: type[BaseModel] = Problem) -> dict:
    """Return the `responses` of a route that may answer with these errors."""
    return {status: {"model": model} for status in statuses}


PREDICTION_ERRORS = error_statuses(403, 413, 415, 422, 503)


def route_path(scope: Mapping) -> str:
    """Return the path of a request without the prefix of a proxy."""
    return scope["path"].removeprefix(scope.get("root_path", ""))


def as_sentence(detail: str | list[dict]) -> str:
    """Return the detail of an error as one text."""
    if isinstance(detail, str):
        return detail
    messages = []
    for error in detail:
        place = ".".join(map(str, error["loc"][1:]))
        messages.append(f"{place}: {error['msg']}" if place else error["msg"])
    return "; ".join(messages)


def error_response(scope: Mapping, error: HTTPException) -> JSONResponse:
    """Answer with an error, in the form of the protocol of the request."""
    if route_path(scope).startswith("/v2"):
        content = {"error": as_sentence(error.detail)}
    else:
        content = {"detail": error.detail}
    return JSONResponse(content, error.status_code, error.headers)


def log_unavailable() -> HTTPException:
    """Return the error while the log is unavailable, without where it is or why."""
    return HTTPException(
        503,
        "The prediction log is unavailable, so no prediction is returned. "
        "Try again in a moment.",
        {"Retry-After": "1"},
    )
