"""Read and write small files, and hash them."""

import hashlib
import json
import os
from pathlib import Path


def file_md5(path: Path) -> str:
    """Return the MD5 of a file's bytes, the name under which DVC stores it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def write_json(path: Path, value: dict | list) -> None:
    """Write plain data as JSON that people can read and compare."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict:
    """Return what a file of JSON holds."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_optional_json(path: Path) -> dict:
    """Return what a file of JSON holds, or an empty dict when there is no such file."""
    return read_json(path) if path.is_file() else {}


def read_yaml(path: Path) -> dict:
    """The content of a YAML file.

    Args:
        path: Need not exist.

    Returns:
        Empty when there is nothing.
    """
    from ruamel.yaml import YAML

    return (
        (YAML(typ="safe").load(path.read_text(encoding="utf-8")) or {})
        if path.is_file()
        else {}
    )


def write_note(path: Path, note: dict):
    """Write a note so that nobody ever sees half of it.

    Args:
        path: JSON.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(
        json.dumps(note, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    draft.replace(path)
