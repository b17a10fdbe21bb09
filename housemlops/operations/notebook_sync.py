"""Keep the notebooks clean, and the modules that they export in step with them."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

COPIED = ("nbs", "housemlops", "pyproject.toml")


def write_synced_copy(root: Path, copy: Path) -> None:
    """Clean and export a copy of the notebooks.

    The blanks of the exercises are made from their solutions.

    Args:
        root: Repository.
        copy: Folder that receives nbs/ and housemlops/ as they should be.
    """
    from housemlops.learning.exercises import write_blanks
    from housemlops.pipeline.export import export_modules, run_tool

    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, ignore=ignore)
        else:
            shutil.copy(root / name, copy)
    write_blanks(copy)
    run_tool("ruff", "format", "--quiet", "nbs", root=copy)
    run_tool("nbdev-clean", root=copy)
    export_modules(copy)


def changed_files(root: Path, copy: Path) -> list[str]:
    """Return the files of a synced copy that the repository has otherwise, or not."""
    changed = []
    for folder in ("nbs", "housemlops"):
        for path in sorted((copy / folder).rglob("*")):
            file = path.relative_to(copy)
            if not path.is_file() or "__pycache__" in file.parts:
                continue
            ours = root / file
            if not ours.exists() or ours.read_bytes() != path.read_bytes():
                changed.append(str(file))
    return changed


def sync_notebooks(root: Path, write: bool) -> list[str]:
    """Clean the notebooks and export the package from them.

    Args:
        root: Repository.
        write: Whether to write the changes.

    Returns:
        The files that change, from the root.
    """
    with TemporaryDirectory() as folder:
        copy = Path(folder)
        write_synced_copy(root, copy)
        changed = changed_files(root, copy)
        for file in changed if write else ():
            shutil.copy(copy / file, root / file)
    return changed
