"""Hold what the routes of a server share, and hand it to them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from pydantic import BaseModel

from housemlops.engine import LiveModel
from housemlops.serving.jobs import BackgroundJob
from housemlops.serving.metrics import Metrics
from housemlops.serving.requests import HouseReader, read_body
from housemlops.serving.service import PredictionService


@dataclass
class Server:
    """What the routes share.

    Args:
        home: Folder of the program.
        reader: Of houses in JSON.
        csv_reader: Of houses in CSV, where numbers are text.
    """

    home: Path
    live_model: LiveModel
    service: PredictionService
    metrics: Metrics
    jobs: list[BackgroundJob]
    reader: HouseReader
    csv_reader: HouseReader

    async def predict(self, route: str, houses: list[BaseModel]) -> list[dict]:
        """Return logged predictions, and count them."""
        predictions = await self.service.predict(route, houses)
        self.metrics.count_predictions(predictions)
        return predictions


async def get_server(request: Request) -> Server:
    """Return what the routes of the app share."""
    return request.app.state.server


CurrentServer = Annotated[Server, Depends(get_server)]


async def read_house(request: Request, server: CurrentServer) -> BaseModel:
    """Read a house from the body."""
    return await read_body(server.reader.read_house, await request.body())


async def read_houses(request: Request, server: CurrentServer) -> list[BaseModel]:
    """Read houses from the body."""
    return await read_body(server.reader.read_houses, await request.body())


async def read_curve(request: Request, server: CurrentServer) -> BaseModel:
    """Read a house, a column and values from the body."""
    return await read_body(server.reader.read_curve, await request.body())


async def require_log(server: CurrentServer) -> None:
    """Raise the error 503 if no prediction can be returned now."""
    server.service.require_log()


HouseBody = Annotated[BaseModel, Depends(read_house)]
HousesBody = Annotated[list[BaseModel], Depends(read_houses)]
CurveBody = Annotated[BaseModel, Depends(read_curve)]
LogIsOpen = Depends(require_log)


def json_body(schema: dict) -> dict:
    """Describe, for `openapi_extra`, a body that a route reads itself."""
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def model_reference(name: str) -> dict:
    """Return the reference to a model in the OpenAPI document."""
    return {"$ref": f"#/components/schemas/{name}"}
