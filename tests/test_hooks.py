"""What `make hooks` installs: checks before a commit that download nothing, and a merge driver for notebooks."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from checkout import ROOT, Checkout


def test_every_hook_is_a_program_of_the_environment():
    config = YAML(typ="safe").load(ROOT / ".pre-commit-config.yaml")
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    for hook in config["repos"][0]["hooks"]:
        program = hook["entry"].split()[0]
        assert hook["language"] == "system"
        assert program.startswith(".venv/bin/")
        assert Path(sys.executable).with_name(Path(program).name).exists()


def write_notebook(path: Path, sources: list[str], output: str) -> None:
    """Write a notebook whose first cell has a stored output."""
    cells = [
        {
            "cell_type": "code",
            "id": f"cell-{i}",
            "execution_count": None,
            "metadata": {},
            "outputs": [],
            "source": source,
        }
        for i, source in enumerate(sources)
    ]
    printed = {"output_type": "stream", "name": "stdout", "text": output}
    cells[0]["outputs"].append(printed)
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook, indent=1) + "\n", encoding="utf-8")


def commit(folder: Path, branch: str, sources: list[str], output: str) -> None:
    """Commit a version of the notebook to a branch, which starts at the current one."""
    git = Checkout(folder).git
    git("checkout", "--quiet", "-B", branch)
    write_notebook(folder / "lesson.ipynb", sources, output)
    git("add", ".")
    git("commit", "--quiet", "--no-verify", "--message", branch)


@pytest.fixture
def two_branches(tmp_path) -> Path:
    """Make a repository in which `make hooks` was typed and two people edit a notebook."""
    folder = tmp_path / "two people"  # a space, as in many home folders
    folder.mkdir()
    for name in ("Makefile", ".gitattributes", ".gitignore", ".pre-commit-config.yaml"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv").symlink_to(Path(sys.prefix), target_is_directory=True)
    Checkout(folder).git("init", "--quiet", "--initial-branch", "main")
    installed = ["--assume-old", ".venv/.test"]
    subprocess.run(["make", *installed, "hooks"], cwd=folder, check=True)
    commit(folder, "main", ["1 + 1", "2 + 2"], "first run")
    commit(folder, "hers", ["1 + 1", "2 + 2 + 2"], "her run")
    Checkout(folder).git("checkout", "--quiet", "main")
    return folder


def merge(folder: Path, branch: str) -> tuple[int, list[str]]:
    """Merge a branch; return git's exit status and the sources of the cells."""
    merged = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "merge", branch],
        cwd=folder,
        capture_output=True,
    )
    notebook = json.loads((folder / "lesson.ipynb").read_text(encoding="utf-8"))
    return merged.returncode, ["".join(cell["source"]) for cell in notebook["cells"]]


def test_hooks_merge_notebooks_whose_stored_outputs_differ(two_branches):
    commit(two_branches, "his", ["1 + 1 + 1", "2 + 2"], "his run")
    conflict, sources = merge(two_branches, "hers")
    assert (conflict, sources) == (0, ["1 + 1 + 1", "2 + 2 + 2"])
    assert (two_branches / ".git/hooks/pre-commit").exists()


def test_a_conflict_in_a_cell_leaves_a_notebook_that_opens(two_branches):
    commit(two_branches, "his", ["1 + 1", "2 + 2 + 3"], "his run")
    conflict, sources = merge(two_branches, "hers")
    assert conflict == 1
    assert [source for source in sources if "+ 2" in source] == [
        "2 + 2 + 3",
        "2 + 2 + 2",
    ]
