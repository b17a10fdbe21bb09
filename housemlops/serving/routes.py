"""Answer the server's own routes: predictions, explanations, health, metrics."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from housemlops.engine import Release
from housemlops.predict import value_reader
from housemlops.serving.database import LogUnavailable
from housemlops.serving.responses import (
    PREDICTION_ERRORS,
    Curve,
    Explanation,
    Prediction,
    Predictions,
    Readiness,
    Receipt,
    error_statuses,
    log_unavailable,
)
from housemlops.serving.requests import read_body
from housemlops.serving.dependencies import (
    CurrentServer,
    CurveBody,
    HouseBody,
    HousesBody,
    Server,
    json_body,
    model_reference,
)

NOT_LOGGED = (
    "For a house that is being looked at: nothing is logged, and the answer has no id. "
    "It is given also while the prediction log is unavailable."
)
PredictionId = Annotated[str, Path(pattern="^[0-9a-f]{12}-[0-9a-f]{16}$")]

router = APIRouter()


async def predict_body(server: Server, body: bytes) -> Response:
    """Price the house in a body."""
    house = await read_body(server.reader.read_house, body)
    predictions = await server.predict("predict", [house])
    return JSONResponse(predictions[0])


@router.post(
    "/predict",
    tags=["prices"],
    summary="Price one house",
    response_model=Prediction,
    responses=PREDICTION_ERRORS,
    openapi_extra=json_body(model_reference("House")),
)
async def predict(request: Request, server: CurrentServer):
    return await predict_body(server, await request.body())


@router.post(
    "/predict/batch",
    tags=["prices"],
    summary="Price many houses",
    response_model=Predictions,
    responses=PREDICTION_ERRORS,
    openapi_extra=json_body(model_reference("Houses")),
)
async def predict_batch(houses: HousesBody, server: CurrentServer):
    return JSONResponse({"prices": await server.predict("batch", houses)})


def explanation_of(release: Release, house: dict) -> dict:
    """Explain the price of a house, with the model that was asked."""
    names = ("currency", "model", "version")
    origin = {name: release.note[name] for name in names}
    return release.explain(house) | origin


@router.post(
    "/explain",
    tags=["reasons"],
    summary="What pushed the price of a house up or down",
    description=NOT_LOGGED,
    response_model=Explanation,
    responses=error_statuses(403, 413, 415, 422),
    openapi_extra=json_body(model_reference("House")),
)
def explain(house: HouseBody, server: CurrentServer):
    release, values = server.live_model.release, house.model_dump(by_alias=True)
    return JSONResponse(explanation_of(release, values))


def curve_of(release: Release, house: dict, column: str, values: list) -> dict:
    """Price a house with other values of a column.

    Where the contract allows no such value there is a gap and a warning.
    """
    contract = release.contract
    read = value_reader(contract["columns"][column], contract["ignore_case"])
    known, errors = [], {}
    for index, value in enumerate(values):
        try:
            known.append(read(value))
        except ValueError as error:
            known.append(house[column])
            errors[index] = f"values[{index}]: {error}"
    curve = release.curve(house, column, known)
    for name in ("prices", "lows", "highs"):
        curve[name] = list(curve[name])
        for index in errors:
            curve[name][index] = None
    return {
        **curve,
        "values": values,
        "currency": release.note["currency"],
        "warnings": list(errors.values()),
    }


@router.post(
    "/curve",
    tags=["reasons"],
    summary="How the price moves along one column",
    description=NOT_LOGGED,
    response_model=Curve,
    responses=error_statuses(403, 413, 415, 422),
    openapi_extra=json_body(model_reference("CurveRequest")),
)
def curve(asked: CurveBody, server: CurrentServer):
    house = asked.house.model_dump(by_alias=True)
    release = server.live_model.release
    return JSONResponse(curve_of(release, house, asked.column, asked.values))


@router.get(
    "/predictions/{id}",
    tags=["prices"],
    summary="A prediction, as the log holds it",
    response_model=Receipt,
    responses=error_statuses(404, 422, 503),
)
def receipt(id: PredictionId, server: CurrentServer):
    try:
        row = server.service.log.find(id)
    except LogUnavailable:
        raise log_unavailable() from None
    if row is None:
        raise HTTPException(404, "no prediction has this id")
    release = server.live_model.release_of(row["model_sha256"])
    if release:
        explanation, note = explanation_of(release, row["inputs"]), ""
    else:
        explanation = None
        note = f"version {row['version']} made it, and this server no longer has it"
    return row | {"explanation": explanation, "explanation_note": note}


@router.get("/livez", tags=["health"], summary="Is the process alive?")
async def livez() -> dict[str, str]:
    return {"status": "alive"}


@router.get(
    "/readyz",
    tags=["health"],
    summary="Can it answer, and with which model?",
    response_model=Readiness,
    responses={503: {"model": Readiness}},
)
async def readyz(server: CurrentServer):
    problem = server.service.log_problem()
    live_model = server.live_model
    note = live_model.release.note
    content = {
        "status": "not ready" if problem else "ready",
        "model": note["model"],
        "version": note["version"],
        "model_sha256": note["model_sha256"],
        "stale": bool(live_model.trouble),
        "reason": problem or live_model.trouble,
        "background": [job.trouble for job in server.jobs if job.trouble],
    }
    return JSONResponse(content, 503 if problem else 200)


@router.get("/model", tags=["model"], summary="The model, its metrics and its card")
async def model(server: CurrentServer) -> dict:
    return server.live_model.release.note


@router.get(
    "/metrics",
    tags=["health"],
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
)
async def metrics(server: CurrentServer):
    text = generate_latest(server.metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
