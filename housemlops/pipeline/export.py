"""Write the package that the notebooks export, and notebooks without outputs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from housemlops.core.repository import git
from housemlops.processes import run_captured
from housemlops.settings import WorkbookError, settings, whole_folder

FOLDERS = ("nbs", "housemlops")
KEPT_EXPORTS = 3  # commits


def strip_outputs(path: Path) -> None:
    """Remove from a notebook all that is not source: a stored output changes no result."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    notebook["metadata"] = {"kernelspec": kernel}
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags")
        cell["metadata"] = {"tags": tags} if tags else {}
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
        cell["source"] = "".join(cell["source"]).splitlines(keepends=True)
    text = json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def run_tool(*command: str, root: Path) -> None:
    """Run a program of this environment.

    Args:
        command: Program and arguments.
        root: Folder with nbs/, housemlops/ and pyproject.toml.

    Raises:
        WorkbookError: With the last line of its errors, when it fails.
    """
    program = Path(sys.executable).with_name(command[0])
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = run_captured([program, *command[1:]], cwd=root, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise WorkbookError(f"{command[0]} failed: {lines[-1]}")


def export_modules(root: Path) -> None:
    """Write the modules that the notebooks export, in the common format."""
    run_tool("nbdev-export", root=root)
    run_tool("ruff", "format", "--quiet", "housemlops", root=root)


def export_package(workspace: Path, changed: list[str]) -> None:
    """Export the notebooks of a worktree, so that nobody has to remember to do it.

    Args:
        workspace: A worktree.
        changed: Files with uncommitted edits.

    Raises:
        WorkbookError: When a module was edited and its notebook was not: the export
            would lose the edit.
    """
    export_modules(workspace)
    modules = git("diff", "--name-only", "--", "housemlops", root=workspace)
    for module in modules.splitlines():
        notebook = f"nbs/{Path(module).stem}.ipynb"
        in_package = Path(module).parent == Path("housemlops")
        exported = in_package and (workspace / notebook).exists()
        if exported and notebook not in changed:
            raise WorkbookError(
                f"{module} is not what {notebook} exports; move the change into the "
                "notebook, then run 'housemlops sync' and commit."
            )


def keep_export(workspace: Path, kept: Path) -> None:
    """Keep a worktree's notebooks and package, with byte code, and drop the oldest."""
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "housemlops"],
        cwd=workspace,
        stdout=subprocess.DEVNULL,
    )
    with whole_folder(kept) as draft:
        for name in FOLDERS:
            shutil.copytree(workspace / name, draft / name)
    exports = sorted(kept.parent.iterdir(), key=lambda path: path.stat().st_mtime)
    for old in exports[:-KEPT_EXPORTS]:
        shutil.rmtree(old, ignore_errors=True)


def prepare_sources(
    root: Path, workspace: Path, commit: str, changed: list[str]
) -> None:
    """Strip the notebooks of a worktree and export the package from them.

    Both depend on the commit alone, so later worktrees of a commit take a copy.

    Args:
        root: Checkout.
        workspace: Its worktree.
        commit: Hash.
        changed: Files with uncommitted edits.
    """
    kept = settings(root).paths.state / "exports" / commit
    if not kept.exists():
        for notebook in sorted((workspace / "nbs").rglob("*.ipynb")):
            strip_outputs(notebook)
        export_package(workspace, changed)
        keep_export(workspace, kept)
        return
    for name in FOLDERS:
        shutil.rmtree(workspace / name)
        shutil.copytree(kept / name, workspace / name)
