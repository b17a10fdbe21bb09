"""Find the files of the package that decide the result of a stage, and hold dvc.yaml to them."""

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from housemlops.pipeline.graph import listed, pipeline
from housemlops.settings import WorkbookError

RUNNER = "housemlops/pipeline/stage.py"  # runs every stage
ENVIRONMENT = (
    "etc/ipython/ipython_kernel_config.py",
    "requirements.lock",
)  # of every stage
NAME = re.compile(r"\bhousemlops(?:\.\w+)+")


def module_path(root: Path, parts: list[str]) -> str | None:
    """Return the file of a dotted name, its folder if that holds data, or None.

    Args:
        root: Workspace or checkout.
        parts: Such as ["housemlops", "settings", "tracking"]; what follows the module is left out.
    """
    folder = root
    for number, part in enumerate(parts, 1):
        if (folder / f"{part}.py").is_file():
            return (folder / f"{part}.py").relative_to(root).as_posix()
        folder /= part
        if not (folder / "__init__.py").is_file():
            return None
        if number == 2 and part in data_folders(root):
            return folder.relative_to(root).as_posix()
    return None


def data_folders(root: Path) -> set[str]:
    """Return the folders of the package whose files are copied or run, not imported."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["housemlops"]
    return {pattern.split("/")[0] for pattern in patterns}


def docstrings(tree: ast.AST) -> set[int]:
    """Return the ids of the nodes that are strings without effect."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def names_in(
    tree: ast.AST, package: list[str], folders: set[str]
) -> Iterator[list[str]]:
    """Yield the dotted names that code may import, in statements and in strings.

    Args:
        tree: Parsed code.
        package: Dotted name of the package that the code is in, for relative imports.
        folders: From `data_folders`; a string that is one of them counts.
    """
    ignored = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            yield from ([*base, alias.name] for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) in ignored:
                continue
            yield from (name.split(".") for name in NAME.findall(node.value))
            if node.value in folders:
                yield ["housemlops", node.value]


def imported(root: Path, code: str, package: list[str]) -> set[str]:
    """Return the files and folders of the package that code imports or names, without what those import."""
    names = names_in(ast.parse(code), package, data_folders(root))
    paths = {module_path(root, name) for name in names if name[0] == "housemlops"}
    return paths - {None}


def closure(root: Path, start: set[str]) -> set[str]:
    """Return files of the package and all that they import, directly or not.

    Args:
        root: Workspace or checkout.
        start: Paths relative to it.
    """
    found, ahead = set(), sorted(start)
    while ahead:
        path = ahead.pop()
        if path in found:
            continue
        found.add(path)
        if path.endswith(".py"):
            code = (root / path).read_text(encoding="utf-8")
            ahead += imported(root, code, list(Path(path).parent.parts))
    return found


def notebook_code(notebook: dict, leave_out: str = "") -> str:
    """Return the code of a notebook as Python without magics.

    Args:
        notebook: As its file holds it.
        leave_out: Tag of cells to leave out, such as "lesson", which a scheduled run skips.
    """
    from IPython.core.inputtransformer2 import TransformerManager

    python, code = TransformerManager(), []
    for cell in notebook["cells"]:
        left_out = leave_out in cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code" and not left_out:
            code.append(python.transform_cell("".join(cell["source"])))
    return "\n".join(code)


def stage_sources(root: Path, stage: str) -> set[str]:
    """Return all files outside data/ and build/ that decide the result of a stage.

    Args:
        root: Workspace or checkout.
        stage: Its name.

    Returns:
        Its notebook, its module and what both import, what runs it, and what makes the environment.
    """
    name = f"nbs/{stage}.ipynb"
    notebook = json.loads((root / name).read_text(encoding="utf-8"))
    start = imported(root, notebook_code(notebook, "lesson"), [])
    start |= {f"housemlops/{stage}.py", RUNNER}
    return {name, *ENVIRONMENT, *closure(root, start)}


def listed_sources(root: Path, stage: str) -> set[str]:
    """Return the deps of a stage in dvc.yaml that are outside data/ and build/."""
    deps = listed(pipeline(root)[stage]["deps"])
    return {dep for dep in deps if not dep.startswith(("data/", "build/"))}


def check_dependencies(root: Path, stage: str):
    """Refuse to run a stage that uses a file which dvc.yaml does not list among its deps.

    DVC would restore its result although that file has changed.

    Raises:
        WorkbookError: With all such files.
    """
    missing = sorted(stage_sources(root, stage) - listed_sources(root, stage))
    if missing:
        raise WorkbookError(
            f"{stage} uses files that are not among its deps in dvc.yaml, so that a change of them would go unnoticed; add there: {', '.join(missing)}"
        )
