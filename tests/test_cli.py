"The command line: its version, names at the Tab key, and one JSON object for programs."

import importlib.metadata
import json
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from checkout import STAGES
from housemlops import cli
from housemlops.commands import application, completion, models, workbook
from housemlops.lineage import compared
from housemlops.operations import doctor
from housemlops.pipeline.lifecycle import check_finished, stage_outcomes
from housemlops.pipeline.notebook import StageFailed
from housemlops.pipeline.sample import copy_sample, kept_sample
from housemlops.pipeline.summary import (
    champion_version,
    print_summary,
    served_prediction,
    summarise_run,
)
from housemlops.settings import WorkbookError, repo_root

ROOT = repo_root()
HEAVY = {"airflow", "dvc", "fastapi", "mlflow", "numpy", "pandas", "papermill", "rich"}
RAN = {
    "ingest": {"stage": "ingest", "event": "restored", "seconds": 1.23456},
    "prepare": {"stage": "prepare", "event": "failed", "seconds": 2.0}
    | {"sentence": "prepare stopped: no column `price`"},
    "train": {"stage": "train", "event": "started"},
}


@pytest.fixture
def typed(capsys):
    "Type a command; gives its exit code, standard output and standard error"

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([*arguments])
        return (end.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    "The sample after all stages but the last, with a champion; a checkout on that data set beside it"
    home = tmp_path_factory.mktemp("finished")
    copy_sample(kept_sample(ROOT, STAGES[:-1], ROOT / "var/sample"), home)
    for name in ("dvc.yaml", "settings.ini"):
        (home / name).write_bytes((ROOT / name).read_bytes())
    (home / "params.yaml").write_text("dataset: sample\nas_of: 2010-08\n")
    return home


@pytest.fixture
def checkout(finished, monkeypatch) -> Path:
    "That checkout is the current folder"
    monkeypatch.chdir(finished)
    state = finished / "state"
    monkeypatch.setenv("HOUSEMLOPS_PATHS_STATE", str(state))
    monkeypatch.setenv(
        "HOUSEMLOPS_MLFLOW_TRACKING_URI", f"sqlite:///{state}/mlflow/mlflow.db"
    )
    monkeypatch.setenv("HOUSEMLOPS_MLFLOW_ARTIFACTS", str(state / "mlflow/artifacts"))
    return finished


def documented(verb: str) -> set[str]:
    "The keys that the notebook's table names for a verb"
    cells = json.loads((ROOT / "nbs/cli.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    row = re.search(rf"^\| `{verb} --json` \|([^|]*)\|", text, re.MULTILINE)
    return {*re.findall(r"`(\w+)`", row[1])}


def test_version(typed):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert typed("--version") == (0, f"housemlops {project['version']}\n", "")


def test_version_of_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("housemlops")
    assert re.fullmatch(r"\d+\.\d+\.\d+", application.package_version())


def imported(environment: dict, *arguments: str) -> set[str]:
    "The heavy packages that a command has imported when it ends"
    code = (
        "import atexit, sys; from housemlops.cli import main\n"
        f"atexit.register(lambda: print(*sys.modules, file=sys.stderr))\nmain({[*arguments]})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout, done.stderr
    return HEAVY & {*done.stderr.split()}


def tab_pressed(line: str) -> dict[str, str]:
    "What bash sets when the Tab key is pressed at the end of a line"
    return {
        "_HOUSEMLOPS_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }


def test_version_and_completion_import_nothing_heavy():
    assert imported({}, "--version") == set()
    assert imported(tab_pressed("housemlops simulate --shift ")) == set()


COMPLETED = {
    "tra": {"trace"},
    "trace --j": {"--json"},
    "run --force ": {*STAGES},
    "stage p": {"prepare", "promote"},
    "stage-apart tr": {"train"},
    "land sales.csv --dataset ": {"ames", "sample", "windsor"},
    "simulate --shift in": {"inflation"},
    "break let": {"letter-case"},
    "check let": {"letter-case"},
    "mend let": {"letter-case"},
    "promote --env ": {"local", "production"},
    "promote --from l": {"local"},
    "rollback --env p": {"production"},
}


@pytest.mark.parametrize("line", COMPLETED)
def test_names_are_completed(line, typed, monkeypatch):
    for name, value in tab_pressed(f"housemlops {line}").items():
        monkeypatch.setenv(name, value)
    code, out, err = typed()
    assert ({*out.split()}, code, err) == (COMPLETED[line], 0, "")


def test_all_shifts_are_offered():
    from housemlops.simulate import SHIFTS

    assert completion.shift_names() == [*SHIFTS]


def test_completion_is_silent_where_names_cannot_be_read(typed, tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").write_text("stages: [")
    (tmp_path / "settings.ini").touch()
    monkeypatch.chdir(tmp_path)
    for name, value in tab_pressed("housemlops run --force ").items():
        monkeypatch.setenv(name, value)
    assert typed() == (0, "\n", "")


@pytest.mark.slow  # starts the generated server
def test_run_as_json_is_what_is_printed(checkout, capsys):
    found = summarise_run(checkout, checkout)
    assert json.loads(json.dumps(found)) == found
    known = {"run", "as_of", "git_commit", "git_branch", "uncommitted"}
    assert documented("run") == known | {"stages", "seconds"} | {*found}
    receipt = json.loads((checkout / "build/promote/receipt.json").read_text())
    assert found["champion"] == {"name": "house-prices-sample", "version": 1}
    assert found["promoted"] and found["metrics"] == receipt["gates"]
    assert "mae" in {metric["name"] for metric in found["metrics"]}
    answer = found["prediction"]
    assert answer["low"] < answer["price"] < answer["high"] and answer["version"] == 1
    assert answer["address"].startswith("http://127.0.0.1:")
    assert (found["reports"], found["site"]) == (
        str(checkout / "state/latest/reports"),
        None,
    )
    print_summary(checkout, found, Console(width=200, highlight=False))
    text = capsys.readouterr().out
    for words in (
        "Champion: house-prices-sample version 1",
        f"housemlops trace {answer['id']}",
        f"POST {answer['address']} gave {answer['price']:,.0f} USD",
        "Executed notebooks: state/latest/reports",
        "Intervals: 90% asked",
        *(metric["name"].upper() for metric in found["metrics"]),
    ):
        assert words in text


@pytest.mark.slow
def test_without_a_champion_there_is_no_prediction(checkout, monkeypatch, tmp_path):
    assert champion_version(checkout, "house-prices-windsor") is None
    monkeypatch.setenv("HOUSEMLOPS_PATHS_STATE", str(tmp_path))
    assert served_prediction(checkout) is None


def test_a_failed_run_says_what_became_of_its_stages():
    log = Path("var/log/run-1.log")
    with pytest.raises(StageFailed) as failed:
        check_finished(RAN, STAGES, "failed", log, {"run": "run-1"})
    assert failed.value.result == {
        "run": "run-1",
        "stages": [
            {"stage": "ingest", "outcome": "restored", "seconds": 1.235},
            {"stage": "prepare", "outcome": "failed", "seconds": 2.0},
        ],
    }
    with pytest.raises(StageFailed, match="Airflow could not run the DAG"):
        check_finished({}, STAGES, "failed", log, {})
    ended = {"ingest": RAN["ingest"]}
    assert check_finished(ended, ["ingest"], "success", log, {}) is None
    assert stage_outcomes(ended) == failed.value.result["stages"][:1]


def test_an_error_of_a_failed_run_keeps_what_is_known(capsys):
    def fail():
        print("progress")
        raise StageFailed("train stopped", {"run": "run-1", "stages": []})

    with pytest.raises(StageFailed):
        application.report(fail, print, as_json=True)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": "train stopped", "run": "run-1", "stages": []}
    assert err == "progress\n"


def check_error(typed, *command: str) -> None:
    "With --json an error is one object; without, only a sentence on standard error"
    code, out, err = typed(*command, "--json")
    told = json.loads(out)
    assert code == 1 and [*told] == ["error"]
    assert err.splitlines()[-1] == f"Stopped: {told['error']}"
    plain_code, plain_out, plain_err = typed(*command)
    assert (plain_code, plain_err.splitlines()[-1]) == (1, err.splitlines()[-1])
    assert told["error"] not in plain_out


@pytest.mark.parametrize("option", [("--as-of", "May 2009"), ("--force", "trian")])
def test_an_error_of_run_is_one_object(option, typed, monkeypatch):
    monkeypatch.chdir(ROOT)
    check_error(typed, "run", *option)


@pytest.mark.slow
@pytest.mark.parametrize("command", [("trace", "99"), ("replay",)])
def test_an_error_of_trace_or_replay_is_one_object(command, checkout, typed):
    check_error(typed, *command)


def test_an_unexpected_error_is_one_object(typed, tmp_path, monkeypatch):
    for name in ("dvc.yaml", "settings.ini"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "CHECKS", (lambda: 1 / 0,))
    code, out, err = typed("doctor", "--json")
    assert json.loads(out) == {
        "error": "unexpected ZeroDivisionError: division by zero"
    }
    assert code == 1 and "traceback: " in err


@pytest.mark.slow
def test_trace_as_json(checkout, typed):
    "The stages of the sample ran as functions, so there is no executed notebook and the chain is not whole"
    code, out, err = typed("trace", "--json")
    result = json.loads(out)
    assert (code, result["ok"], {*result}) == (1, False, documented("trace"))
    assert all({*link} == {"name", "says", "ok"} for link in result["links"])
    links = {link["name"]: link for link in result["links"]}
    assert links["model version"]["says"] == "house-prices-sample version 1 (champion)"
    broken = [name for name, link in links.items() if not link["ok"]]
    assert broken == ["executed notebook"]
    code, out, _ = typed("trace", "1")
    assert code == 1 and out.count("✓") == len(result["links"]) - 1
    for link in result["links"]:
        assert f"{link['name']:<18}{link['says']}" in out


def test_replay_as_json(capsys):
    rows = compared({"mae": 1.0, "mse": 2.0}, {"mae": 1.0, "mse": 2.0 + 1e-15})
    result = models.replay_result(rows)
    assert {*result} == documented("replay")
    assert (result["equal"], result["differences"]) == (False, ["mse"])
    assert result["figures"] == rows
    models.print_replay(result)
    out = capsys.readouterr().out
    assert "differs" in out and "are equal" not in out
    same = models.replay_result(rows[:1])
    assert (same["equal"], same["differences"]) == (True, [])
    models.print_replay(same)
    assert "All 1 figures are equal." in capsys.readouterr().out


def test_doctor_as_json(typed, monkeypatch):
    "Of the real checks three quick ones; a port that is taken makes the last one fail"
    checks = (doctor.check_git, doctor.check_disk, doctor.check_ports)
    monkeypatch.setattr(doctor, "CHECKS", checks)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("HOUSEMLOPS_FRONT_PORT", str(port))
        code, out, err = typed("doctor", "--json")
        plain_code, plain, _ = typed("doctor")
    result = json.loads(out)
    assert (code, plain_code, result["ok"]) == (1, 1, False)
    assert {*result} == documented("doctor")
    assert all({*check} == {"name", "ok", "sentence"} for check in result["checks"])
    by_name = {check["name"]: check for check in result["checks"]}
    assert by_name["git"] == {"name": "git", "ok": True, "sentence": checks[0].__doc__}
    assert f"front {port}" in by_name["ports"]["sentence"]
    assert not by_name["ports"]["ok"]
    for check in result["checks"]:
        assert check["sentence"] in " ".join(plain.split())


def test_a_healthy_doctor(typed, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_git,))
    code, out, _ = typed("doctor", "--json")
    assert code == 0 and json.loads(out)["ok"]
    assert typed("doctor")[:2] == (0, f"✓ {doctor.check_git.__doc__}\n")


def test_check_deploy_as_json(typed, tmp_path, monkeypatch):
    "A file that is no YAML is found before anything is rendered"
    for name in ("dvc.yaml", "settings.ini"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    code, out, err = typed("check-deploy", "--json")
    assert code == 1 and "There is no deploy/clusters" in json.loads(out)["error"]
    (tmp_path / "deploy/clusters/local").mkdir(parents=True)
    (tmp_path / "deploy/clusters/local/apps.yaml").write_text("spec: [")
    code, out, _ = typed("check-deploy", "--json")
    result = json.loads(out)
    assert {*result} == documented("check-deploy")
    assert (code, result["ok"], result["objects"]) == (1, False, None)
    assert result["clusters"] == ["local"] and "is no YAML" in result["faults"][0]
    code, plain, _ = typed("check-deploy")
    assert code == 1 and all(f"✗ {fault}" in plain for fault in result["faults"])


def test_all_well_in_deploy(capsys):
    workbook.print_deploy(
        {"ok": True, "faults": [], "clusters": ["a", "b"], "objects": 7}
    )
    assert capsys.readouterr().out == "All well: 7 objects in 2 clusters.\n"


def test_without_json_errors_and_results_are_for_people(capsys):
    def fail():
        raise WorkbookError("no")

    result = application.report(
        lambda: {"ok": True}, lambda found: print("fine"), False
    )
    assert result == {"ok": True} and capsys.readouterr().out == "fine\n"
    with pytest.raises(WorkbookError):
        application.report(fail, print, as_json=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "asked, lock, sentence",
    [
        ("pytest", "", None),
        (
            "pytest",
            "pytest==0.1 \\\n    --hash=sha256:00\n",
            "requirements.lock says 0.1",
        ),
        (
            "no-such-package",
            "no-such-package==1.0 \\\n",
            "no-such-package is not installed",
        ),
        (
            "no-such-package",
            "no-such-package==1.0 ; sys_platform == 'win32' \\\n",
            None,
        ),
    ],
)
def test_doctor_compares_what_is_installed_with_the_lock(
    tmp_path, monkeypatch, asked, lock, sentence
):
    (tmp_path / "requirements.lock").write_text(lock)
    groups = f'[dependency-groups]\nrun = ["{asked}>0"]\n'
    (tmp_path / "pyproject.toml").write_text(groups)
    monkeypatch.setattr(doctor, "repo_root", lambda: tmp_path)
    found = doctor.check_packages()
    assert found == "" if sentence is None else sentence in found
