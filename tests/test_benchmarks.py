"""Each benchmark starts without an activated environment, or says what to do."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checkout import ROOT
from housemlops.core.repository import snapshot

SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py"))
JUNIT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites name="pytest tests"><testsuite name="pytest" tests="{count}"
 time="{wall}" timestamp="2026-11-02T10:00:{second}.000000+00:00" hostname="here">
{cases}</testsuite></testsuites>
"""
CASE = '<testcase classname="{0}" name="{1}" time="{2}" />'


def start(script: Path | str, *arguments: str, folder: Path) -> subprocess.Popen:
    """Start a script as a shell without the environment's programs would."""
    return subprocess.Popen(
        [sys.executable, script, *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONUTF8": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Return the exit code, standard output and standard error."""
    printed, errors = process.communicate(timeout=60)
    return process.returncode, printed, errors


def run(script: Path | str, *arguments: str, folder: Path) -> tuple[int, str, str]:
    """Run a script to its end."""
    return finish(start(script, *arguments, folder=folder))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    """A clone of this checkout as it is now, without var/ and pulled data."""
    path = tmp_path_factory.mktemp("fresh") / "clone"
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, path], check=True)
    subprocess.run(["git", "checkout", "--quiet", snapshot(ROOT)[0]], cwd=path)
    return path


def test_each_script_explains_itself_from_any_folder(tmp_path):
    running = {
        name: start(ROOT / "benchmarks" / name, "--help", folder=tmp_path)
        for name in SCRIPTS
    }
    for name, process in running.items():
        code, printed, errors = finish(process)
        assert (code, errors) == (0, ""), name
        assert printed.startswith(f"usage: {name}"), name
        assert f".venv/bin/python benchmarks/{name}" in printed, name
        assert "It prints" in printed and " need" in printed, name


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_readme_names_each_script(name):
    assert f"`{name}`" in (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")


def test_wrong_arguments_give_usage(tmp_path):
    wrong = {
        "accuracy.py": ["nonsense"],
        "intervals.py": ["2009-13:2"],
        "notebooks.py": ["nonsense"],
        "replay.py": ["--from", "2009-07", "--to", "2009-06"],
        "serving.py": ["--only", "nonsense"],
        "suite.py": ["--nonsense"],
    }
    assert sorted(wrong) == SCRIPTS
    running = {
        name: start(ROOT / "benchmarks" / name, *arguments, folder=tmp_path)
        for name, arguments in wrong.items()
    }
    for name, process in running.items():
        code, printed, errors = finish(process)
        assert (code, printed) == (2, ""), name
        assert errors.startswith(f"usage: {name}"), name


def test_in_a_fresh_clone_a_sentence_says_what_is_missing(fresh, tmp_path):
    (tmp_path / "kept.txt").touch()
    missing = {
        "serving.py": ([], "type `make run` first"),
        "suite.py": ([], "run `make test` first"),
        "replay.py": (["--folder", "."], "is not a clone that this benchmark made"),
    }
    running = {
        name: start(fresh / "benchmarks" / name, *arguments, folder=tmp_path)
        for name, (arguments, _) in missing.items()
    }
    for name, process in running.items():
        code, _, errors = finish(process)
        assert code == 1, (name, errors)
        assert missing[name][1] in errors, name
        assert len(errors.splitlines()) == 1, errors
    assert (tmp_path / "kept.txt").exists()


def test_missing_data_is_pulled_or_a_sentence_says_why_not(fresh, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "from lib.checkout import enter_checkout, fetch_table; "
        "enter_checkout(); print(fetch_table('windsor'))"
    )
    offline = tmp_path / "offline"
    subprocess.run(["git", "clone", "--quiet", fresh, offline], check=True)
    shutil.rmtree(offline / "data/remote")
    pulled = start("-c", code, str(fresh / "benchmarks"), folder=tmp_path)
    refused = [
        start(offline / "benchmarks" / name, folder=tmp_path)
        for name in ("accuracy.py", "intervals.py")
    ]

    status, printed, errors = finish(pulled)
    assert status == 0, errors
    table = fresh / "data/windsor.csv"
    assert printed.strip() == str(table) and table.stat().st_size > 10_000
    assert errors == "data/windsor.csv is missing: fetching it with DVC.\n"

    for process in refused:
        status, _, errors = finish(process)
        assert status == 1, errors
        first, second = errors.splitlines()
        assert first == "data/ames.csv is missing: fetching it with DVC."
        assert second.startswith("data/ames.csv could not be fetched: dvc pull")


def test_a_benchmark_finds_this_environment_and_this_checkout(fresh, tmp_path):
    code = (
        "import shutil, sys; sys.path.insert(0, sys.argv[1]); "
        "from lib.checkout import enter_checkout; enter_checkout(); "
        "import housemlops; print(shutil.which('uvicorn'), housemlops.__file__)"
    )
    status, printed, errors = run(
        "-c", code, str(fresh / "benchmarks"), folder=tmp_path
    )
    assert status == 0, errors
    uvicorn, module = printed.split()
    assert uvicorn == str(Path(sys.executable).with_name("uvicorn"))
    assert module == str(fresh / "housemlops/__init__.py")


def write_junit(path: Path, wall: float, second: str, *cases: tuple) -> Path:
    """Write a report as pytest does with --junitxml and the family xunit2."""
    text = "\n".join(CASE.format(*case) for case in cases)
    values = {"count": len(cases), "wall": wall, "second": second, "cases": text}
    path.write_text(JUNIT.format(**values), encoding="utf-8")
    return path


def test_the_suite_is_summed_by_file_and_against_the_clock(tmp_path):
    tests = write_junit(
        tmp_path / "junit-tests.xml",
        10,
        "00",
        ("tests.test_one", "test_slow[a.b]", 9.5),
        ("tests.test_one.TestClass", "test_quick", 0.5),
        ("tests.test_two", "test_other", 6),
    )
    notebooks = write_junit(
        tmp_path / "junit-notebooks.xml", 8, "04", ("nbs.train.ipynb", "Cell 1", 4)
    )
    script = ROOT / "benchmarks/suite.py"
    code, printed, errors = run(script, tests.name, notebooks.name, folder=tmp_path)
    assert (code, errors) == (0, "")
    rows = [line.split() for line in printed.splitlines()]
    assert ["tests/test_one.py", "2", "10.0", "test_slow[a.b]", "(9.5)"] in rows
    assert ["nbs/train.ipynb", "1", "4.0", "Cell", "1", "(4.0)"] in rows
    assert ["6.0", "tests/test_two.py::test_other"] in rows
    assert rows[-3:] == [
        ["junit-tests.xml", "16.0", "10.0", "1.60"],
        ["junit-notebooks.xml", "4.0", "8.0", "0.50"],
        ["all", "20.0", "12.0", "1.67"],
    ]


def test_the_suite_shows_the_twenty_slowest_tests(tmp_path):
    cases = [("tests.test_many", f"test_{i:02}", i) for i in range(30)]
    write_junit(tmp_path / "junit-tests.xml", 435, "00", *cases)
    script = ROOT / "benchmarks/suite.py"
    _, printed, _ = run(script, "junit-tests.xml", folder=tmp_path)
    slowest = [line.split()[1] for line in printed.splitlines() if "py::" in line]
    assert slowest == [f"tests/test_many.py::test_{i:02}" for i in range(29, 9, -1)]


@pytest.mark.parametrize("text", ["", "<html/>", "<testsuites><testsuite/>", None])
def test_a_report_that_cannot_be_read_is_named(text, tmp_path):
    if text is not None:
        (tmp_path / "junit-tests.xml").write_text(text)
    script = ROOT / "benchmarks/suite.py"
    code, _, errors = run(script, "junit-tests.xml", folder=tmp_path)
    assert code == 1 and len(errors.splitlines()) == 1, errors
    assert "junit-tests.xml" in errors
