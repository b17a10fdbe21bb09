"""Read and write small files, and hash them."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def file_md5(path: Path) -> str:
    """Return the MD5 of a file's bytes, the name under which DVC stores it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def write_json(path: Path, value: dict | list) -> None:
    """Write plain data as JSON that people can read and compare.

    Another process sees the old file or the whole new one, never a part of it.

    Raises:
        ValueError: For a number that JSON does not have, such as NaN.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)


def read_json(path: Path, default: Any = None) -> Any:
    """Return what a file of JSON holds.

    Args:
        path: File.
        default: Returned when there is no such file.

    Raises:
        FileNotFoundError: When there is no such file, and no default.
    """
    path = Path(path)
    if default is not None and not path.is_file():
        return default
    return json.loads(path.read_text(encoding="utf-8"))


def read_yaml(path: Path) -> dict:
    """Return what a file of YAML holds, or an empty dict when there is no such file."""
    from ruamel.yaml import YAML

    if not path.is_file():
        return {}
    return YAML(typ="safe").load(path.read_text(encoding="utf-8")) or {}
