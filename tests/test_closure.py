"Each stage depends on all that decides its result: what its module and its notebook import, and what runs it."

import ast
import json
import re
import shutil
import subprocess
import sys

import pytest

from checkout import ROOT, STAGES, Checkout, clone
from housemlops.pipeline.closure import (
    check_dependencies,
    closure,
    listed_sources,
    stage_sources,
)
from housemlops.pipeline.graph import listed, pipeline
from housemlops.settings import WorkbookError

SOURCES = {stage: stage_sources(ROOT, stage) for stage in STAGES}
MODULES = sorted(
    {path for paths in SOURCES.values() for path in paths if ".py" in path}
)


@pytest.mark.parametrize("stage", STAGES)
def test_the_deps_of_a_stage_are_what_it_imports(stage):
    assert listed_sources(ROOT, stage) == SOURCES[stage]


def test_no_stage_imports_another():
    for stage, sources in SOURCES.items():
        assert not sources & {f"housemlops/{other}.py" for other in STAGES} - {
            f"housemlops/{stage}.py"
        }


@pytest.mark.parametrize("path", MODULES)
def test_no_module_of_a_stage_is_imported_by_a_made_up_name(path):
    dynamic = {"import_module", "__import__", "find_spec", "exec"}
    tree = ast.parse((ROOT / path).read_text())
    called = {
        getattr(node.func, "attr", getattr(node.func, "id", ""))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    assert not called & dynamic


def test_packages_hold_no_code_of_their_own():
    for path in ROOT.glob("housemlops/*/__init__.py"):
        assert re.fullmatch(r'(""".*"""\n)?', path.read_text()), path


@pytest.mark.parametrize(
    "line, path",
    [
        ("from . import alert", "housemlops/alert.py"),
        ("from housemlops import alert as a", "housemlops/alert.py"),
        ("def f():\n    import housemlops.alert", "housemlops/alert.py"),
        ("from .core import files", "housemlops/core/files.py"),
        ("name = 'housemlops.alert'", "housemlops/alert.py"),
        ("code = 'from housemlops.alert import x; x()'", "housemlops/alert.py"),
        ("folder.joinpath('templates')", "housemlops/templates"),
    ],
)
def test_every_way_to_import_is_found(tmp_path, line, path):
    shutil.copytree(ROOT / "housemlops", tmp_path / "housemlops")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "housemlops/new.py").write_text(line)
    assert path in closure(tmp_path, {"housemlops/new.py"})


def test_a_stage_that_uses_more_than_its_deps_refuses_to_run(tmp_path):
    for name in ("housemlops", "nbs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("dvc.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    check_dependencies(tmp_path, "prepare")
    with (tmp_path / "housemlops/predict.py").open("a") as module:
        module.write("\nfrom housemlops.alert import about_duel\n")
    with pytest.raises(
        WorkbookError, match=r"prepare uses files .* add there: housemlops/alert\.py$"
    ):
        check_dependencies(tmp_path, "prepare")


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> Checkout:
    "A clone in which DVC takes all outputs as they are for results of this code."
    checkout = clone(tmp_path_factory.mktemp("known") / "workbook")
    for stage in pipeline(checkout.path).values():
        for out in listed(stage["outs"]):
            path = checkout.path / out
            path.parent.mkdir(exist_ok=True)
            path.write_text(out)
    dvc(checkout, "commit", "--force", "--quiet", *STAGES)
    return checkout


def dvc(checkout: Checkout, *arguments: str) -> str:
    "Run a DVC command in a checkout."
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(
        command,
        cwd=checkout.path,
        env=checkout.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("path", [*MODULES, "requirements.lock"])
def test_an_edit_reruns_exactly_the_stages_that_use_the_file(known, path):
    file = known.path / path
    before = file.read_bytes()
    try:
        file.write_bytes(before + b"\n# edited\n")
        status = json.loads(dvc(known, "status", "--json", *STAGES))
    finally:
        file.write_bytes(before)
    assert set(status) == {stage for stage in STAGES if path in SOURCES[stage]}
