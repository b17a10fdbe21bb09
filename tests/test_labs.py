"Every fault of the labs: it is there, an ordinary check catches it, it can be mended, and the checkout that it was cloned from is as before."

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from checkout import clone
from housemlops.core.repository import git
from housemlops.learning.faults import LABS, find_lab
from housemlops.learning.lab_tools import swap
from housemlops.learning.labs import (
    break_lab,
    check_lab,
    lab_environment,
    lab_rows,
    labs_home,
    mend_lab,
    told,
)
from housemlops.settings import WorkbookError, repo_root, settings
from housemlops.widgets import first_values, interactive, offer, sliders

ROOT = repo_root()
pytestmark = pytest.mark.slow


def cells(notebook: str, last: str) -> str:
    "A program that runs the cells of a notebook up to the one that holds a text, on the outputs of its workspace"
    return (
        f"import json\nfrom pathlib import Path\ncells = [''.join(c['source']) for c in json.load(open('nbs/{notebook}.ipynb'))['cells'] if c['cell_type'] == 'code']\n"
        f"[end] = [i for i, cell in enumerate(cells) if {last!r} in cell]\n"
        "for cell in cells[:end + 1]: exec(cell if 'open_build(build' not in cell else \"build = Path('build')\")"
    )


def pytest_of(file: str, words: str) -> str:
    "A program that runs the tests of a file whose names have these words"
    return f"import pytest, sys; sys.exit(pytest.main(['-q', '-x', '-p', 'no:cacheprovider', 'tests/{file}.py', '-k', '{words}']))"


CAUGHT = {  # lab -> the check that Lab.caught names, as a program that fails, and what it says
    "letter-case": (
        "from housemlops.contract import load_contract; from housemlops.learning.lab_tools import prepared; from housemlops.monitoring.verdict import data_quality_checks\n"
        "wrong = [c['reason'] for c in data_quality_checks(prepared()[1], load_contract('sample'), 0, 0.05) if not c['passed']]; assert not wrong, wrong",
        "100% of the sales have an unknown",
    ),
    "loss-twice": (cells("evaluate", "small = price_metrics"), "AssertionError"),
    "early-crown": (
        "from housemlops.promote import promote_holds; from pathlib import Path; assert promote_holds(Path('build')), 'another champion'",
        "another champion",
    ),
    "missing-data": (pytest_of("test_data", "recorded_bytes"), "dvc"),
    "left-over": (
        "from housemlops.promote import reprove; from pathlib import Path; reprove(Path('build/train/model'))",
        "no longer gives the prices it was trained to give",
    ),
    "row-number": (cells("contract", "Order=0, PID=0"), "AssertionError"),
    "cry-wolf": (pytest_of("test_monitor", "month_like_the_others"), "FAILED"),
    "open-secret": (
        "from housemlops.cluster.secrets import leaked_files; from pathlib import Path; found = list(leaked_files(Path('.'))); assert not found, found",
        "what looks like a key or a password",
    ),
    "lost-tag": (pytest_of("test_orchestrate", "lost_or_doubled"), "FAILED"),
    "shared-rows": (
        "from housemlops.contract import load_contract, row_fingerprints; from housemlops.evaluate import refuse_learned; from housemlops.learning.lab_tools import prepared\n"
        "contract, (train, test) = load_contract('sample'), prepared(); refuse_learned(row_fingerprints(train, contract), test, contract)",
        "has learned",
    ),
}


def checked(workspace: Path, name: str) -> tuple[int, str]:
    "What the ordinary check says in a workspace"
    done = subprocess.run(
        [sys.executable, "-c", CAUGHT[name][0]],
        cwd=workspace,
        env=lab_environment(workspace) | {"MPLBACKEND": "Agg"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    "A learner's checkout, which shares the sample with this one"
    house = clone(tmp_path_factory.mktemp("labs") / "checkout").path
    sample = settings(ROOT).paths.state / "sample"
    sample.mkdir(parents=True, exist_ok=True)
    (house / "var/sample").symlink_to(sample)
    (house / "notes.txt").write_text("not committed yet")
    return house


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


def state(checkout: Path) -> list[str]:
    "All that a lab must leave as it is"
    return [
        git(*command.split(), root=checkout)
        for command in (
            "status --porcelain",
            "rev-parse HEAD",
            "for-each-ref",
            "stash list",
            "worktree list",
            "diff HEAD",
        )
    ]


@pytest.mark.parametrize("name", [lab.name for lab in LABS])
def test_a_fault_is_found_caught_and_mended(house, home, name):
    "And the checkout is untouched"
    lab, before = find_lab(name), state(house)
    workspace = break_lab(name, root=house, home=home)
    text = "\n".join(told(name, workspace))
    assert lab.told in " ".join(text.split())
    assert lab.why not in text and lab.caught not in text

    verdict, why = check_lab(name, home)
    assert verdict == "not mended" and "the workspace stops with" not in why, why
    code, said = checked(workspace, name)
    assert code and CAUGHT[name][1] in said, said[-2000:]

    lines = mend_lab(name, home)
    assert lab.why in lines[0] and lab.caught in lines[-1]
    verdict, why = check_lab(name, home)
    assert verdict == "mended" and lab.caught in why, why
    assert state(house) == before, "the checkout was touched"


def test_there_are_ten_and_they_are_listed():
    assert {*CAUGHT} == {lab.name for lab in LABS} == {
        row[0] for row in lab_rows()
    } and len(LABS) >= 10
    named = [
        word.rpartition("::")[2]
        for lab in LABS
        for word in lab.caught.replace(",", " ").split()
        if "test_" in word and ".py" in word and "::" in word
    ]
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert all(f"def {name}(" in tests for name in named) and len(named) >= 5, named


def test_a_remedy_may_be_half_a_remedy(house, tmp_path):
    "A secret that is only deleted; a lesser loss that is still none; a module without its notebook; all said as 'mended, but'"
    home = tmp_path
    secret = break_lab("open-secret", root=house, home=home)
    again = break_lab("open-secret", again=True, root=house, home=home)
    assert again == secret
    file = again / "deploy/clusters/local/cluster-vars.yaml"
    file.write_text(
        "".join(
            line
            for line in file.read_text().splitlines(keepends=True)
            if "MLFLOW_DATABASE" not in line
        )
    )
    git("commit", "--quiet", "--all", "--message", "fix: no password here", root=again)
    state, why = check_lab("open-secret", home)
    assert state == "mended, but" and "still has the password" in why
    mend_lab("open-secret", home)
    assert check_lab("open-secret", home)[0] == "mended"
    loss = break_lab("loss-twice", root=house, home=home)
    swap(loss, "evaluate", "sum(losses) / len(actual)", "sum(losses) / len(losses)")
    state, why = check_lab("loss-twice", home)
    assert (
        state == "mended, but"
        and "not every sale counts the same" in why
        and "is not committed" in why
    )
    (loss / "housemlops/evaluate.py").write_text(
        (ROOT / "housemlops/evaluate.py").read_text()
    )
    state, why = check_lab("loss-twice", home)
    assert (
        state == "mended, but"
        and "nbs/evaluate.ipynb and housemlops/evaluate.py say different things" in why
    )
    (loss / "housemlops/evaluate.py").write_text("def broken(:\n")
    assert (
        check_lab("loss-twice", home)[0] == "not mended"
        and "SyntaxError" in check_lab("loss-twice", home)[1]
    )


def test_mistakes_are_one_sentence(house, tmp_path, monkeypatch):
    home = tmp_path
    for name in ("cry-wolf", "letter-case"):
        break_lab(name, root=house, home=home)
    for call, sentence in (
        (lambda: break_lab("loss-twise", home=home), "Did you mean 'loss-twice'"),
        (lambda: break_lab("cry-wolf", home=home), "--again"),
        (
            lambda: check_lab("cry-wolf", home / "elsewhere"),
            "housemlops break cry-wolf",
        ),
        (lambda: break_lab("cry-wolf", root=home / "letter-case"), "your own checkout"),
    ):
        with pytest.raises(WorkbookError, match=sentence):
            call()
    monkeypatch.chdir(home / "letter-case/nbs")
    assert labs_home() == home, "asked from inside the workspace"
    assert check_lab("letter-case")[0] == "not mended"


def test_a_picture_moves_only_where_somebody_watches(monkeypatch, capsys):
    drawn, controls = [], {"area": (100, 300, 10, 120), "quality": ["good", "poor"]}
    interactive(lambda **values: drawn.append(values), **controls)
    assert drawn == [first_values(controls)] == [
        {"area": 120, "quality": "good"}
    ] and capsys.readouterr().out.strip() == offer(controls)
    shown = []
    monkeypatch.setattr("housemlops.widgets.watched", lambda: True)
    monkeypatch.setattr("IPython.display.display", shown.append)
    interactive(lambda **values: drawn.append(values), **controls)
    shown[0].children[0].value = 250
    shown[0].children[1].value = "poor"
    assert drawn[-2:] == [
        {"area": 250, "quality": "good"},
        {"area": 250, "quality": "poor"},
    ]
    assert [
        type(made).__name__
        for made in sliders(controls | {"share": (0.0, 1.0, 0.1, 0.5)}).values()
    ] == ["IntSlider", "Dropdown", "FloatSlider"]


def test_no_notebook_stores_a_widget():
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        assert not notebook.metadata.get("widgets") and not any(
            "application/vnd.jupyter.widget-view+json" in output.get("data", {})
            for cell in notebook.cells
            for output in cell.get("outputs", [])
        ), path.name
