"""Names that are offered at the Tab key."""

import ast
import contextlib
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

from housemlops.settings import repo_root


def completing(names: Callable[[], Iterable[str]]) -> Callable[[], list[str]]:
    """Return what typer calls: names, or none where they cannot be read."""

    def offer() -> list[str]:
        with contextlib.suppress(Exception):
            return list(names())
        return []

    return offer


def stage_names() -> list[str]:
    """Return the stages of dvc.yaml."""
    from housemlops.pipeline.graph import pipeline

    return list(pipeline(repo_root()))


def dataset_names() -> list[str]:
    """Return the data sets that have a contract."""
    files = sorted((repo_root() / "data").glob("*.contract.yaml"))
    return [file.name.removesuffix(".contract.yaml") for file in files]


def lab_names() -> list[str]:
    """Return the labs, the easier ones first."""
    from housemlops.learning.labs import lab_rows

    return [row[0] for row in lab_rows()]


def shift_names() -> list[str]:
    """Return the shifts, read from the text of a module whose import takes seconds."""
    text = Path(find_spec("housemlops.simulate").origin).read_text(encoding="utf-8")
    for line in ast.parse(text).body:
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "SHIFTS":
            return [key.value for key in line.value.keys]
    return []


def environment_names() -> list[str]:
    """Return the clusters of deploy/."""
    from housemlops.cluster.manifests import cluster_names

    return cluster_names(repo_root())
