"""Parse requests strictly: what the contract does not allow is refused by name."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import HTTPException
from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
)
from pydantic_core import core_schema, from_json

from housemlops.predict import LARGEST, TEXT, limits_of, longest_of, value_reader

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
MAX_ERRORS = 20  # in an answer
SMALL_BODY = 4096  # bytes; larger bodies are parsed in a thread
NOT_BLANK = r"^[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$"


def describe_error(
    location: Sequence, message: str, kind: str = "value_error"
) -> dict[str, object]:
    """Return an error in pydantic's form."""
    return {"loc": [*location], "msg": message, "type": kind}


def unprocessable(
    location: Sequence, message: str, kind: str = "value_error"
) -> HTTPException:
    """Return the error 422 with one message."""
    return HTTPException(422, [describe_error(location, message, kind)])


def shorten(part: str | int) -> str | int:
    """Shorten the name of a field, which may be as long as a body."""
    return part if isinstance(part, int) else str(part)[:100]


def validation_errors(
    error: ValidationError, location: Sequence = ("body",)
) -> list[dict]:
    """Return the first errors of a validation, without what was sent."""
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    return [
        describe_error(
            (*location, *map(shorten, item["loc"])),
            item["msg"].removeprefix("Value error, "),
            item["type"],
        )
        for item in errors[:MAX_ERRORS]
    ]


def value_schema(column: Mapping) -> dict:
    """Return the JSON Schema of what `value_reader` accepts for a column."""
    if column["type"] in ("number", "integer"):
        low, high = limits_of(column)
        options = [{"type": column["type"], "minimum": low, "maximum": high}]
    elif column["type"] == "date":
        month = {"type": "string", "pattern": r"^[12]\d{3}-(0[1-9]|1[0-2])$"}
        options = [{"type": "string", "format": "date"}, month]
    else:
        pattern = NOT_BLANK if column["required"] else TEXT.pattern
        text = {"type": "string", "maxLength": longest_of(column), "pattern": pattern}
        code = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}
        options = [text, code, {"type": "boolean"}]
    if not column["required"]:
        options.append({"type": "null"})
        if column["type"] == "date":  # a blank text is missing
            options.append({"type": "string", "pattern": "^ {0,100}$"})
    return {"anyOf": options} if len(options) > 1 else options[0]


class ReadBy:
    """Have pydantic read a field by a function, and write it as it is.

    `PlainValidator` would also serialise each value by a function, which is slow.
    """

    def __init__(self, read: Callable[[object], object], schema: dict):
        self.read = read
        self.schema = schema

    def __get_pydantic_core_schema__(self, source, handler):
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, core, handler):
        return dict(self.schema)


def request_field(
    name: str, column: Mapping, read: Callable[[object], object], example: object
) -> tuple:
    """Return the type and the pydantic field of a column."""
    unit = f" [{column['unit']}]" if column["unit"] else ""
    categories = column["categories"]
    listed = f" ({', '.join(categories)})" if categories else ""
    field = Field(
        ... if column["required"] else None,
        alias=name,
        description=f"{column['description']}{unit}{listed}",
        examples=None if example is None else [example],
    )
    return Annotated[object, ReadBy(read, value_schema(column))], field


def request_model(
    contract: Mapping, example: Mapping | None = None, from_text: bool = False
) -> type[BaseModel]:
    """Make the pydantic model of a house: the columns known before the sale.

    Args:
        contract: As in `contract.json`.
        example: A house for the documentation.
        from_text: Whether numbers may be written as text, as in CSV.
    """
    fields = {}
    for name, column in contract["columns"].items():
        if column["role"] in ("feature", "date"):
            read = value_reader(column, contract["ignore_case"], from_text)
            shown = (example or {}).get(name)
            key = f"column_{len(fields)}"
            fields[key] = request_field(name, column, read, shown)
    config = ConfigDict(extra="forbid", title="House")
    return create_model(
        "House", __config__=config, __doc__="A house to be priced", **fields
    )


def parse_json(body: bytes) -> object:
    """Parse a body as JSON.

    Raises:
        HTTPException: 422, if it is none.
    """
    try:
        return from_json(body, cache_strings="keys")
    except ValueError as error:
        message = f"Invalid JSON: {error}"
        raise unprocessable(["body"], message, "json_invalid") from None


def parse_model(adapter: TypeAdapter, body: bytes) -> Any:
    """Parse a body of JSON as a model.

    Raises:
        HTTPException: 422, with the location of each error.
    """
    try:
        return adapter.validate_json(body)
    except ValidationError as error:
        raise HTTPException(422, validation_errors(error)) from None


def validate_object(
    adapter: TypeAdapter, known: frozenset[str], value: object, location: Sequence
) -> Any:
    """Validate a JSON object as a model.

    Unknown fields are sorted out before pydantic sees the object: each is an error,
    and a body has room for a hundred thousand.

    Raises:
        HTTPException: 422, with the first errors.
    """
    if not isinstance(value, dict):
        raise unprocessable(location, "Input should be an object", "model_type")
    unknown = islice((name for name in value if name not in known), MAX_ERRORS)
    errors = [
        describe_error(
            (*location, shorten(name)),
            "Extra inputs are not permitted",
            "extra_forbidden",
        )
        for name in unknown
    ]
    fields = {name: value[name] for name in known & value.keys()}
    try:
        result = adapter.validate_python(fields)
    except ValidationError as error:
        errors = [*validation_errors(error, location), *errors]
    if errors:
        raise HTTPException(422, errors[:MAX_ERRORS])
    return result


class HouseReader:
    """Read houses from bodies, and give up after twenty errors."""

    def __init__(self, House: type[BaseModel], max_rows: int):
        self.max_rows = max_rows
        columns = [field.alias for field in House.model_fields.values()]
        self.columns = frozenset(columns)
        self.Houses = create_model(
            "Houses",
            __config__=STRICT,
            __doc__="Houses to be priced",
            houses=(list[House], Field(min_length=1, max_length=max_rows)),
        )
        self.CurveRequest = create_model(
            "CurveRequest",
            __config__=STRICT,
            __doc__="A house, and the values of one of its columns to try",
            house=(House, ...),
            column=(Literal[tuple(columns)], ...),
            values=(
                list[float | int | str | None],
                Field(min_length=1, max_length=200),
            ),
        )
        self.house_adapter = TypeAdapter(House)
        self.list_adapter = TypeAdapter(Annotated[list[House], FailFast()])
        self.houses_adapter = TypeAdapter(self.Houses)
        self.curve_adapter = TypeAdapter(self.CurveRequest)

    def validate_house(self, value: object, location: Sequence) -> BaseModel:
        """Validate an object as a house."""
        return validate_object(self.house_adapter, self.columns, value, location)

    def validate_houses(self, rows: list, location: Sequence) -> list[BaseModel]:
        """Validate objects as houses: in one pass, or singly if there is an error.

        Raises:
            HTTPException: 422, with the first errors.
        """
        if not 0 < len(rows) <= self.max_rows:
            raise unprocessable(location, f"1 to {self.max_rows} houses")
        if all(isinstance(row, dict) and row.keys() <= self.columns for row in rows):
            with suppress(ValidationError):
                return self.list_adapter.validate_python(rows)
        return self.validate_singly(rows, location)

    def validate_singly(self, rows: list, location: Sequence) -> list[BaseModel]:
        """Validate objects one after the other, up to the twentieth error."""
        houses, errors = [], []
        for index, row in enumerate(rows):
            try:
                houses.append(self.validate_house(row, (*location, index)))
            except HTTPException as error:
                errors += error.detail
            if len(errors) >= MAX_ERRORS:
                break
        if errors:
            raise HTTPException(422, errors[:MAX_ERRORS])
        return houses

    def read_house(self, body: bytes) -> BaseModel:
        """Read the body of /predict and /explain.

        Most bodies are valid and are parsed in one pass.
        """
        if len(body) <= SMALL_BODY:
            with suppress(ValidationError):
                return self.house_adapter.validate_json(body)
        return self.validate_house(parse_json(body), ["body"])

    def read_houses(self, body: bytes) -> list[BaseModel]:
        """Read the body of /predict/batch."""
        value = parse_json(body)
        if isinstance(value, dict) and isinstance(value.get("houses"), list):
            location = ("body", "houses")
            value["houses"] = self.validate_houses(value["houses"], location)
        known = frozenset(self.Houses.model_fields)
        return validate_object(self.houses_adapter, known, value, ["body"]).houses

    def read_curve(self, body: bytes) -> BaseModel:
        """Read the body of /curve."""
        value = parse_json(body)
        if isinstance(value, dict) and "house" in value:
            value["house"] = self.validate_house(value["house"], ("body", "house"))
        known = frozenset(self.CurveRequest.model_fields)
        return validate_object(self.curve_adapter, known, value, ["body"])


async def read_body(read: Callable[[bytes], Any], body: bytes) -> Any:
    """Read a small body at once, a large one in a thread while others are answered."""
    if len(body) <= SMALL_BODY:
        return read(body)
    return await asyncio.to_thread(read, body)
