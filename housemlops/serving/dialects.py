"""Answer clients of MLflow's scoring server and of the Open Inference Protocol V2."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, FailFast, Field, TypeAdapter

from housemlops.serving.guard import is_csv
from housemlops.serving.requests import parse_model, read_body, unprocessable
from housemlops.serving.responses import (
    PREDICTION_ERRORS,
    V2Problem,
    error_statuses,
)
from housemlops.serving.dependencies import (
    CurrentServer,
    LogIsOpen,
    json_body,
    model_reference,
)

INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
JSON_TYPES = {  # of a tensor's data, by its datatype
    "BOOL": (bool,),
    "BYTES": (str,),
    **dict.fromkeys(INTEGERS, (int,)),
    **dict.fromkeys(("FP16", "FP32", "FP64"), (int, float)),
}
OUTPUTS = {  # of an answer, with their datatypes
    "price": "FP64",
    "low": "FP64",
    "high": "FP64",
    "id": "BYTES",
    "warnings": "BYTES",
}


class Tensor(BaseModel):
    """A column, by the V2 protocol."""

    name: str
    shape: list[int] = Field(description="[n] or [n, 1], for n houses")
    datatype: Literal[tuple(JSON_TYPES)]
    data: list


class RequestedOutput(BaseModel):
    """An output that the client wants."""

    name: Literal[tuple(OUTPUTS)]


class InferRequest(BaseModel):
    """Houses, one tensor a column."""

    id: str | None = Field(None, max_length=200)
    inputs: Annotated[list[Tensor], Field(min_length=1), FailFast()]
    outputs: list[RequestedOutput] | None = Field(
        None,
        max_length=len(OUTPUTS),
        description="those that are wanted; all when left out",
    )


class OutputTensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: list


class InferResponse(BaseModel):
    """Predictions, one tensor for each output."""

    model_name: str
    model_version: str
    id: str | None = Field(None, description="that of the request")
    outputs: list[OutputTensor]


class Frame(BaseModel):
    """A data frame: names of columns, and rows."""

    columns: Annotated[list[str], FailFast()]
    data: Annotated[list[list], FailFast()]


class Invocation(BaseModel):
    """Houses, in one of the forms that MLflow's scoring server takes."""

    dataframe_split: Frame | None = None
    dataframe_records: list | None = None
    instances: list | None = None
    inputs: list | dict | None = None


class InvocationResponse(BaseModel):
    """For each house its price, under the target's name, low, high, id, warnings."""

    predictions: list[dict]


INFER_REQUEST = TypeAdapter(InferRequest)
INVOCATION = TypeAdapter(Invocation)


def check_names(names: Sequence[str], location: Sequence) -> None:
    """Raise the error 422 if a column is there twice."""
    seen = set()
    for name in names:
        if name in seen:
            raise unprocessable(location, f"{name[:100]!r} is there twice")
        seen.add(name)


def rows_of_columns(columns: dict[str, list], location: Sequence) -> list[dict]:
    """Return the rows of columns, which must be of one length."""
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        raise unprocessable(location, "the columns differ in length")
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def rows_of_table(names: list[str], rows: list[list], location: Sequence) -> list[dict]:
    """Return the rows of a table as objects."""
    check_names(names, location)
    if any(len(row) != len(names) for row in rows):
        raise unprocessable(location, "each row must have a value for each column")
    return [dict(zip(names, row)) for row in rows]


def tensor_values(tensor: Tensor) -> list:
    """Return the data of a tensor, one value a house."""
    location, data = ["body", "inputs", tensor.name[:100]], tensor.data
    if tensor.shape not in ([len(data)], [len(data), 1]):
        raise unprocessable(
            location,
            "data must hold one value for each house, and shape say how many: "
            "[n] or [n, 1]",
        )
    if len(tensor.shape) == 2:  # the data may be nested as well
        nested = [isinstance(value, list) and len(value) == 1 for value in data]
        data = [value[0] if inner else value for value, inner in zip(data, nested)]
    types = (*JSON_TYPES[tensor.datatype], type(None))
    if any(type(value) not in types for value in data):
        message = f"data must be {tensor.datatype}, as datatype says"
        raise unprocessable(location, message)
    return data


def rows_of_tensors(request: InferRequest) -> list[dict]:
    """Return the houses of a V2 request."""
    location = ["body", "inputs"]
    check_names([tensor.name for tensor in request.inputs], location)
    columns = {tensor.name: tensor_values(tensor) for tensor in request.inputs}
    return rows_of_columns(columns, location)


def rows_of_csv(body: bytes) -> list[dict]:
    """Return the houses of a CSV file, their values as text."""
    try:
        lines = csv.reader(io.StringIO(body.decode("utf-8-sig"), ""), strict=True)
        table = [line for line in lines if line]
    except (csv.Error, UnicodeDecodeError) as error:
        message = f"Invalid CSV: {error}"
        raise unprocessable(["body"], message, "csv_invalid") from None
    header = table[0] if table else []
    return rows_of_table(header, table[1:], ["body"])


def rows_of_invocation(request: Invocation) -> list[dict]:
    """Return the houses of a request to /invocations."""
    forms = [name for name, value in request if value is not None]
    if len(forms) != 1:
        raise unprocessable(["body"], f"give exactly one of {', '.join(FORMS)}")
    houses, location = getattr(request, forms[0]), ["body", forms[0]]
    if isinstance(houses, Frame):
        return rows_of_table(houses.columns, houses.data, location)
    if isinstance(houses, dict):
        if not all(isinstance(values, list) for values in houses.values()):
            raise unprocessable(location, "each column must be a list")
        return rows_of_columns(houses, location)
    if not all(isinstance(row, dict) for row in houses):
        raise unprocessable(location, "each row must be an object")
    return houses


mlflow = APIRouter(tags=["MLflow"])


@mlflow.get(
    "/ping",
    summary="Can it answer?",
    dependencies=[LogIsOpen],
    response_class=PlainTextResponse,
    responses=error_statuses(503),
)
@mlflow.get(
    "/health",
    summary="Can it answer?",
    dependencies=[LogIsOpen],
    response_class=PlainTextResponse,
    responses=error_statuses(503),
)
async def ping():
    return "\n"


@mlflow.get(
    "/version",
    summary="The version of the model",
    response_class=PlainTextResponse,
)
async def version(server: CurrentServer):
    return str(server.live_model.release.note["version"])


RECORDS = {"type": "array", "items": model_reference("House"), "minItems": 1}
COLUMNS = {"type": "object", "additionalProperties": {"type": "array"}}
FORMS = {  # of a JSON body; exactly one is given
    "dataframe_split": model_reference("Frame"),
    "dataframe_records": RECORDS,
    "instances": RECORDS,
    "inputs": {"anyOf": [RECORDS, COLUMNS]},
}


def describe_invocation() -> dict:
    """Describe the body of /invocations in each of its forms, for `openapi_extra`."""
    forms = [
        {"type": "object", "properties": {name: schema}, "required": [name]}
        for name, schema in FORMS.items()
    ]
    description = json_body({"oneOf": forms})
    csv_schema = {"type": "string", "description": "A line of names, then the houses"}
    description["requestBody"]["content"]["text/csv"] = {"schema": csv_schema}
    return description


@mlflow.post(
    "/invocations",
    summary="Price the houses of a data frame",
    description="In one of the forms that MLflow's scoring server takes.",
    response_model=InvocationResponse,
    responses=PREDICTION_ERRORS,
    openapi_extra=describe_invocation(),
)
async def invocations(request: Request, server: CurrentServer):
    def read_csv(body: bytes) -> list[BaseModel]:
        return server.csv_reader.validate_houses(rows_of_csv(body), ("body", "data"))

    def read_json(body: bytes) -> list[BaseModel]:
        rows = rows_of_invocation(parse_model(INVOCATION, body))
        return server.reader.validate_houses(rows, ("body", "data"))

    read = read_csv if is_csv(dict(request.scope["headers"])) else read_json
    houses = await read_body(read, await request.body())
    target = server.live_model.release.note["target"]
    predictions = []
    for prediction in await server.predict("invocations", houses):
        others = {name: prediction[name] for name in OUTPUTS if name != "price"}
        predictions.append({target: prediction["price"]} | others)
    return JSONResponse({"predictions": predictions})


v2 = APIRouter(tags=["V2 protocol"])
v2_model = APIRouter(
    tags=["V2 protocol"], responses=error_statuses(404, model=V2Problem)
)
V2_NOT_READY = error_statuses(503, model=V2Problem)


def datatype_of(column: Mapping) -> str:
    """Return the datatype in which V2's clients send a column."""
    return "FP64" if column["type"] in ("number", "integer") else "BYTES"


async def check_model(name: str, server: CurrentServer) -> None:
    """Raise the error 404 unless the path names the served model."""
    known = server.live_model.release.note["model"]
    if name != known:
        raise HTTPException(404, f"there is no model {name[:100]!r}, but {known!r}")


async def check_version(number: str, server: CurrentServer) -> None:
    """Raise the error 404 unless the path names the served version."""
    known = str(server.live_model.release.note["version"])
    if number != known:
        message = f"there is no version {number[:100]!r}, but {known!r}"
        raise HTTPException(404, message)


@v2.get("/v2", summary="The server")
async def v2_server(server: CurrentServer) -> dict:
    version = str(server.live_model.release.note["version"])
    return {"name": "house-prices", "version": version, "extensions": []}


@v2.get("/v2/health/live", summary="Is the process alive?")
async def v2_live() -> dict:
    return {"live": True}


@v2.get(
    "/v2/health/ready",
    summary="Can it answer?",
    dependencies=[LogIsOpen],
    responses=V2_NOT_READY,
)
async def v2_ready() -> dict:
    return {"ready": True}


def describe_tensors(datatypes: Mapping[str, str]) -> list[dict]:
    """Describe the inputs or outputs of the model, of any number of houses."""
    return [
        {"name": name, "datatype": datatype, "shape": [-1]}
        for name, datatype in datatypes.items()
    ]


@v2_model.get("", summary="The inputs and outputs of the model")
async def v2_metadata(server: CurrentServer) -> dict:
    release = server.live_model.release
    columns = release.contract["columns"]
    inputs = {name: datatype_of(columns[name]) for name in release.inputs}
    return {
        "name": release.note["model"],
        "versions": [str(release.note["version"])],
        "platform": "onnx",
        "inputs": describe_tensors(inputs),
        "outputs": describe_tensors(OUTPUTS),
    }


@v2_model.get(
    "/ready",
    summary="Can the model answer?",
    dependencies=[LogIsOpen],
    responses=V2_NOT_READY,
)
async def v2_model_ready(server: CurrentServer) -> dict:
    return {"name": server.live_model.release.note["model"], "ready": True}


def as_tensors(predictions: list[dict], names: Sequence[str]) -> list[dict]:
    """Return predictions as one tensor for each output."""
    tensors = []
    for name in names:
        data = [prediction[name] for prediction in predictions]
        if name == "warnings":
            data = ["; ".join(warnings) for warnings in data]
        tensor = {"name": name, "datatype": OUTPUTS[name], "shape": [len(data)]}
        tensors.append(tensor | {"data": data})
    return tensors


@v2_model.post(
    "/infer",
    summary="Price houses, one tensor a column",
    response_model=InferResponse,
    responses=error_statuses(403, 413, 415, 422, 503, model=V2Problem),
    openapi_extra=json_body(model_reference("InferRequest")),
)
async def v2_infer(request: Request, server: CurrentServer):
    if "inference-header-content-length" in request.headers:
        message = "send tensors as JSON, in `data`: binary_data is not supported"
        raise HTTPException(415, message)

    def read(body: bytes) -> tuple[InferRequest, list[BaseModel]]:
        asked = parse_model(INFER_REQUEST, body)
        rows = rows_of_tensors(asked)
        return asked, server.reader.validate_houses(rows, ("body", "inputs"))

    asked, houses = await read_body(read, await request.body())
    predictions = await server.predict("infer", houses)
    names = [output.name for output in asked.outputs or ()]
    content = {
        "model_name": predictions[0]["model"],
        "model_version": str(predictions[0]["version"]),
        "outputs": as_tensors(predictions, names or list(OUTPUTS)),
    }
    if asked.id:
        content["id"] = asked.id
    return JSONResponse(content)


def add_dialects(app: FastAPI) -> None:
    """Add the routes; those of a V2 model with and without its version."""
    app.include_router(mlflow)
    app.include_router(v2)
    path, checks = "/v2/models/{name}", [Depends(check_model)]
    app.include_router(v2_model, prefix=path, dependencies=checks)
    path, checks = f"{path}/versions/{{number}}", [*checks, Depends(check_version)]
    app.include_router(v2_model, prefix=path, dependencies=checks)
