"""Describe the API of the generated server in tables."""

import os
import subprocess
import sys
from pathlib import Path

from housemlops.core.files import read_json
from housemlops.settings import (
    folder_sha256,
)

DESCRIBE = "import json, app; print(json.dumps(app.app.openapi()))"


def interface(server: Path, kept: Path) -> dict:
    """What a generated server says of its routes.

    Args:
        server: Folder of a generated server; need not exist.
        kept: Folder in which descriptions are kept.

    Returns:
        OpenAPI; empty when there is no server that answers.
    """
    if not (server / "model").is_dir():
        return {}
    path = kept / f"{folder_sha256(server)[:12]}.json"
    if not path.is_file():
        own = {
            name: value
            for name, value in os.environ.items()
            if name != "PYTHONPATH" and not name.startswith("HOUSE_")
        }
        done = subprocess.run(
            [sys.executable, "-B", "-c", DESCRIBE],
            cwd=server,
            env=own | {"HOUSE_DATABASE_URL": "sqlite:///:memory:"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            return {}
        kept.mkdir(parents=True, exist_ok=True)
        path.write_text(done.stdout.strip().splitlines()[-1], encoding="utf-8")
    return read_json(path, {})


def schema_type(schema: dict) -> str:
    """The type that a schema asks for.

    Args:
        schema: Of OpenAPI.

    Returns:
        For people.
    """
    if name := schema.get("$ref", "").rpartition("/")[2]:
        return f"[{name}](#{name.lower()})"
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return " or ".join(dict.fromkeys(map(schema_type, choices)))
    if schema.get("type") == "array":
        return f"list of {schema_type(schema.get('items', {}))}"
    return (
        "nothing"
        if schema.get("type") == "null"
        else str(schema.get("type", "anything"))
    )


def schema_limits(schema: dict) -> str:
    """Which values a schema allows.

    Args:
        schema: Of OpenAPI.

    Returns:
        For people.
    """
    if choices := schema.get("anyOf"):
        return "; ".join(filter(None, map(schema_limits, choices)))
    ends = [
        f"{words} {schema[name]:g}"
        for name, words in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "to"),
            ("exclusiveMaximum", "below"),
        )
        if name in schema
    ]
    return ", ".join(map(str, schema.get("enum", ()))) or " ".join(ends)


def field_rows(schema: dict) -> list[tuple[str, str, str, str, bool]]:
    """The fields of an object, as rows of a table.

    Args:
        schema: Of an object, in OpenAPI.

    Returns:
        Name, type, allowed values, meaning, whether it must be given.
    """

    def plain(text):
        return str(text).replace("|", "\\|").replace("\n", " ")

    needed = schema.get("required", ())
    return [
        (
            name,
            plain(schema_type(part)),
            plain(schema_limits(part)),
            plain(part.get("description", "")),
            name in needed,
        )
        for name, part in schema.get("properties", {}).items()
    ]


def routes(described: dict) -> list[dict[str, str]]:
    """The routes of a server, as rows of a table.

    Args:
        described: OpenAPI.

    Returns:
        Method, path, summary, asks, answers.
    """

    def content(part):
        return next(
            (
                schema_type(kind["schema"])
                for kind in part.get("content", {}).values()
                if kind.get("schema")
            ),
            "",
        )

    return [
        {
            "method": method.upper(),
            "path": path,
            "summary": route.get("summary", ""),
            "asks": content(route.get("requestBody", {})),
            "answers": " · ".join(
                f"{status} {content(answer)}".strip()
                for status, answer in route.get("responses", {}).items()
            ),
        }
        for path, methods in described.get("paths", {}).items()
        for method, route in methods.items()
    ]
