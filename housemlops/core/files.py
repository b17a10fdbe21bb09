"""Read and write small files, and hash them."""

import hashlib
import json
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
