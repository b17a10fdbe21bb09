"""Define the view `houses` of the log: one typed column for each input."""

from collections.abc import Mapping, Sequence

from sqlalchemy import (
    REAL,
    BigInteger,
    ColumnElement,
    Double,
    Engine,
    Integer,
    Numeric,
    Text,
    and_,
    case,
    cast,
    column,
    func,
    literal,
    select,
    table,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.schema import CreateView

from housemlops.serving.database import locked_transaction

VIEW = "houses"
OWN_COLUMNS = ("id", "time", "price", "low", "high", "model", "version")
INPUT_ROLES = ("feature", "date")
SQLITE_NUMBERS = {"number": REAL, "integer": Integer}
POSTGRESQL_NUMBERS = {"number": Double, "integer": BigInteger}
MAX_NAME = 63  # bytes of a column's name in PostgreSQL


def view_names(names: Sequence[str]) -> list[str]:
    """Return names that differ also where case does not count, of 63 bytes at most."""
    result = []
    used = {name.casefold() for name in OWN_COLUMNS}
    for name in names:
        unique = name.encode()[:MAX_NAME].decode(errors="ignore")
        number = 2
        while unique.casefold() in used:
            start = name.encode()[: MAX_NAME - 5].decode(errors="ignore")
            unique = f"{start}_{number}"
            number += 1
        result.append(unique)
        used.add(unique.casefold())
    return result


def sqlite_column(name: str, kind: str) -> ColumnElement:
    """Return a value of `inputs` with its type, or NULL, in SQLite."""
    inputs = column("inputs")
    if name.isascii() and name.isprintable() and not set("'\"\\") & set(name):
        path = f'$."{name}"'
        value, value_type = (
            func.json_extract(inputs, path),
            func.json_type(inputs, path),
        )
    else:  # a path cannot express it
        entry = func.json_each(inputs).table_valued("key", "value", "type")
        named = select(entry.c.value).where(entry.c.key == name)
        value = named.scalar_subquery()
        value_type = named.with_only_columns(entry.c.type).scalar_subquery()
    if kind not in SQLITE_NUMBERS:
        return cast(value, Text)
    is_number = value_type.in_(["integer", "real"])
    return case((is_number, cast(value, SQLITE_NUMBERS[kind])))


def postgresql_column(name: str, kind: str) -> ColumnElement:
    """Return a value of `inputs` with its type, or NULL, in PostgreSQL."""
    value = column("inputs", JSONB)[literal(name, Text)]
    if kind not in POSTGRESQL_NUMBERS:
        return value.astext
    number = cast(value, Numeric)
    is_number = and_(func.jsonb_typeof(value) == "number", func.abs(number) < 9e18)
    return case((is_number, cast(number, POSTGRESQL_NUMBERS[kind])))


def create_view(contract: Mapping, dialect: str) -> CreateView:
    """Return the statement that creates the view for a contract.

    Args:
        contract: As in `contract.json`.
        dialect: "sqlite" or "postgresql".
    """
    make_column = sqlite_column if dialect == "sqlite" else postgresql_column
    kinds = {
        name: entry["type"]
        for name, entry in contract["columns"].items()
        if entry.get("role", "feature") in INPUT_ROLES
    }
    columns = [column(name) for name in OWN_COLUMNS]
    for name, label in zip(kinds, view_names(list(kinds))):
        columns.append(make_column(name, kinds[name]).label(label))
    return CreateView(select(*columns).select_from(table("predictions")), VIEW)


DEFINITIONS = {  # query for the definition of the view
    "sqlite": f"SELECT sql FROM sqlite_master WHERE type = 'view' AND name = '{VIEW}'",
    "postgresql": f"SELECT obj_description(to_regclass('{VIEW}'), 'pg_class')",
}


def replace_view(engine: Engine, contract: Mapping) -> bool:
    """Create the view, unless it is as it should be.

    PostgreSQL rewrites a view, so its definition is kept as a comment.

    Returns:
        Whether it had to be created.
    """
    kind = engine.dialect.name
    with engine.connect() as connection:
        statement = create_view(contract, kind)
        definition = str(statement.compile(dialect=engine.dialect))
        query = DEFINITIONS[kind]
        if connection.exec_driver_sql(query).scalar() == definition:
            return False
    with locked_transaction(engine) as connection:
        connection.exec_driver_sql(f"DROP VIEW IF EXISTS {VIEW}")
        connection.execute(statement)
        if kind == "postgresql":
            quoted = literal(definition).compile(
                dialect=engine.dialect, compile_kwargs={"literal_binds": True}
            )
            connection.exec_driver_sql(f"COMMENT ON VIEW {VIEW} IS {quoted}")
    return True
