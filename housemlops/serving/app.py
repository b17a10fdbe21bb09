"""Make the FastAPI app of a model's server."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from housemlops.engine import LiveModel
from housemlops.prediction_log import PredictionLog
from housemlops.serving.database import LogUnavailable
from housemlops.serving import pages, routes
from housemlops.serving.dialects import Frame, InferRequest, add_dialects
from housemlops.serving.guard import WITHOUT_KEY, DirectRoute, Guard
from housemlops.serving.jobs import background_jobs
from housemlops.serving.metrics import Metrics
from housemlops.serving.options import Options, read_options
from housemlops.serving.requests import HouseReader, request_model
from housemlops.serving.responses import error_response
from housemlops.serving.dependencies import Server, model_reference
from housemlops.serving.service import PredictionService

SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "password": {"type": "http", "scheme": "basic"},
}


def document_keys(schema: dict) -> None:
    """Describe in an OpenAPI document how a key is sent, and which routes need one."""
    schema["components"]["securitySchemes"] = SECURITY_SCHEMES
    schema["security"] = [{name: []} for name in SECURITY_SCHEMES]
    for path, methods in schema["paths"].items():
        name = "V2Problem" if path.startswith("/v2") else "Problem"
        content = {"application/json": {"schema": model_reference(name)}}
        for route in methods.values():
            if path in WITHOUT_KEY:
                route["security"] = []
            else:
                route["responses"]["401"] = {
                    "description": "No key",
                    "content": content,
                }


def make_openapi(app: FastAPI, models: list[type[BaseModel]], keys: bool) -> dict:
    """Return FastAPI's OpenAPI document, with the models that routes read themselves."""
    if app.openapi_schema is None:
        schema = FastAPI.openapi(app)
        pairs = [(model, "validation") for model in models]
        template = "#/components/schemas/{model}"
        _, definitions = models_json_schema(pairs, ref_template=template)
        schema["components"]["schemas"] |= definitions["$defs"]
        if keys:
            document_keys(schema)
    return app.openapi_schema


def make_server(home: Path, program: str | None, options: Options) -> Server:
    """Load the model and make what the routes share."""
    live_model = LiveModel(options.model, program)
    release = live_model.release
    House = request_model(release.contract, release.example)
    CsvHouse = request_model(release.contract, from_text=True)
    service = PredictionService(House, live_model, PredictionLog(options.database_url))
    metrics = Metrics()
    return Server(
        home=home,
        live_model=live_model,
        service=service,
        metrics=metrics,
        jobs=background_jobs(service, metrics, options.retention_days),
        reader=HouseReader(House, options.max_rows),
        csv_reader=HouseReader(CsvHouse, options.max_rows),
    )


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the log, run the background jobs, and close the log at the end."""
    server: Server = app.state.server
    with suppress(LogUnavailable):
        await asyncio.to_thread(server.service.open_log)
    tasks = [asyncio.create_task(job.run()) for job in server.jobs]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.to_thread(server.service.close)


async def answer_error(request: Request, error: HTTPException):
    """Answer with an error, in the form of the protocol of the request."""
    return error_response(request.scope, error)


def add_middleware(app: FastAPI, options: Options) -> None:
    """Add the checks that stand before every route; the last added comes first."""
    server: Server = app.state.server
    predict = DirectRoute("/predict", partial(routes.predict_body, server))
    app.add_middleware(
        Guard,
        options=options,
        metrics=server.metrics,
        direct_routes={("POST", "/predict"): predict},
    )
    if options.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key"],
        )
    app.add_middleware(
        TrustedHostMiddleware, allowed_hosts=options.allowed_hosts, www_redirect=False
    )


def create_app(
    home: Path, program: str | None = None, environ: Mapping[str, str] | None = None
) -> FastAPI:
    """Make the server of a model.

    Args:
        home: Folder of the program; relative paths start here.
        program: Hash of the program; a release for another one is not loaded.
        environ: Options; those of the process if not given.

    Raises:
        OptionError: An option cannot be used.
        ReleaseError: The model cannot be served.
        LogUnavailable: The log's address cannot be used.
    """
    options = read_options(os.environ if environ is None else environ, home)
    server = make_server(home, program, options)
    release = server.live_model.release
    note = release.note
    app = FastAPIOffline(
        title=f"House prices: {note['title']}",
        version=str(note["version"]),
        description=f"Prices in {note['currency']}, each with the interval that holds "
        f"{release.level:.0%} of sale prices, by `{note['model']}`. "
        "The same prices are given by the Open Inference Protocol "
        f"(`/v2/models/{note['model']}/infer`) and to clients of MLflow's scoring "
        "server (`/invocations`).",
        docs_url=None,  # `pages` has an own one, escaped and with a policy
        redoc_url=None,
        redirect_slashes=False,  # `Guard` removes a slash at the end of a path
        lifespan=lifespan,
    )
    app.state.server = server
    app.add_exception_handler(StarletteHTTPException, answer_error)
    app.include_router(routes.router)
    app.include_router(pages.router)
    add_dialects(app)
    reader = server.reader
    models = [reader.Houses, reader.CurveRequest, InferRequest, Frame]
    app.openapi = partial(make_openapi, app, models, bool(options.api_keys))
    add_middleware(app, options)
    return app
