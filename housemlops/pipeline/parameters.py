"""Make dvc.yaml, params.yaml and a notebook's parameters cell agree before a kernel starts."""

import ast
import json
from pathlib import Path
from typing import Any

from housemlops.pipeline.graph import pipeline
from housemlops.settings import WorkbookError, did_you_mean, params

TYPES = {kind.__name__: kind for kind in (str, int, float, bool, list, dict)}


def stage_parameters(root: Path, stage: str) -> dict[str, Any]:
    """Return what params.yaml gives a stage: the keys listed under its params in dvc.yaml.

    Args:
        root: Repository or workspace.
        stage: Its name in dvc.yaml.

    Returns:
        Name -> value; a section contributes each of its keys.

    Raises:
        WorkbookError: For a stage or a key that is not there.
    """
    stages, given, found = pipeline(root), params(root), {}
    if stage not in stages:
        raise WorkbookError(
            f"dvc.yaml has no stage {stage!r}.{did_you_mean(stage, stages)}"
        )
    for key in stages[stage].get("params", []):
        value = given
        for part in key.split("."):
            if part not in value:
                raise WorkbookError(
                    f"dvc.yaml gives {stage} the parameter {key}, which params.yaml does not have.{did_you_mean(part, value)}"
                )
            value = value[part]
        found |= value if isinstance(value, dict) else {key.split(".")[-1]: value}
    return found


def read_notebook(root: Path, stage: str) -> dict:
    """Return the notebook of a stage, as plain JSON."""
    return json.loads((root / f"nbs/{stage}.ipynb").read_text(encoding="utf-8"))


def parameter_lines(notebook: dict, stage: str) -> list[ast.stmt]:
    """Return the assignments of a notebook's one parameters cell.

    Raises:
        WorkbookError: When there is no such cell, or more than one.
    """
    cells = [
        cell
        for cell in notebook["cells"]
        if "parameters" in cell["metadata"].get("tags", [])
    ]
    if len(cells) != 1:
        raise WorkbookError(
            f"nbs/{stage}.ipynb has {len(cells)} cells tagged 'parameters'; it needs exactly one."
        )
    return ast.parse("".join(cells[0]["source"])).body


def parameter_types(notebook: dict, stage: str) -> dict[str, Any]:
    """Return the name of each parameter with its annotation, or the type of its default."""
    found = {}
    for line in parameter_lines(notebook, stage):
        if isinstance(line, ast.AnnAssign):
            found[line.target.id] = eval(
                ast.unparse(line.annotation), {"__builtins__": TYPES}
            )
        elif isinstance(line, ast.Assign):
            found[line.targets[0].id] = type(ast.literal_eval(line.value))
    return found


def parameter_defaults(notebook: dict, stage: str) -> dict[str, Any]:
    """Return the values that a notebook uses when a reader steps through it."""
    found = {}
    for line in parameter_lines(notebook, stage):
        target = line.target if isinstance(line, ast.AnnAssign) else line.targets[0]
        found[target.id] = ast.literal_eval(line.value)
    return found


def check_parameters(given: dict[str, Any], expected: dict[str, Any], stage: str):
    """Refuse unknown, missing and ill-typed parameters.

    Args:
        given: From params.yaml.
        expected: From `parameter_types`.
        stage: For the messages.

    Raises:
        WorkbookError: One sentence about the first mistake.
    """
    from pydantic import TypeAdapter, ValidationError

    for name in given:
        if name not in expected:
            raise WorkbookError(
                f"The parameters cell of nbs/{stage}.ipynb does not declare {name!r}, which params.yaml gives it.{did_you_mean(name, expected)}"
            )
    for name in expected:
        if name not in given:
            raise WorkbookError(
                f"nbs/{stage}.ipynb declares the parameter {name!r}, which params.yaml does not give it.{did_you_mean(name, given)}"
            )
    for name, kind in expected.items():
        try:
            TypeAdapter(kind).validate_python(given[name], strict=True)
        except ValidationError:
            plain = isinstance(kind, type) and not getattr(kind, "__args__", None)
            wanted = kind.__name__ if plain else str(kind)
            raise WorkbookError(
                f"The parameter {name!r} of {stage} is {given[name]!r}, which is not {wanted}; correct it in params.yaml."
            ) from None
