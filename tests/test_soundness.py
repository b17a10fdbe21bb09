"What is there but not sound does not count: trainings that did not end, broken chains, damaged releases, foreign start-up files."

import json
import os
import socket
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import nbformat
import pytest
from mlflow.tracking._tracking_service import utils

from checkout import ROOT, STAGES, Sample
from housemlops.core.files import read_json
from housemlops.model.lineage import check_training
from housemlops.model.registry import PROCESS, find_training
from housemlops.pipeline.notebook import execute
from housemlops.pipeline.sample import copy_sample, kept_sample
from housemlops.pipeline.stage import (
    close_abandoned_runs,
    own_environment,
    this_process,
)
from housemlops.promote import run_promote
from housemlops.serve import is_intact, is_live, publish
from housemlops.settings import WorkbookError, folder_sha256, settings, tracking

PROMOTION = {
    "tolerance": 0.03,
    "confidence": 0.9,
    "min_rows": 30,
    "resamples": 100,
    "seed": 0,
}


@pytest.fixture
def made(sample, tmp_path, monkeypatch) -> Sample:
    "A fresh copy of the sample's stores that a test may damage, as the settings of this process."
    kept = kept_sample(ROOT, STAGES, settings(ROOT).paths.state / "sample")
    copy_sample(kept, tmp_path / "made")
    monkeypatch.chdir(sample.path)
    state = tmp_path / "made/state"
    monkeypatch.setenv("HOUSEMLOPS_PATHS_STATE", str(state))
    monkeypatch.setenv(
        "HOUSEMLOPS_MLFLOW_TRACKING_URI", f"sqlite:///{state}/mlflow/mlflow.db"
    )
    monkeypatch.setenv("HOUSEMLOPS_MLFLOW_ARTIFACTS", str(state / "mlflow/artifacts"))
    return tmp_path / "made"


@pytest.fixture
def mlflow(made, monkeypatch):
    # The copies have the same run ids, by which MLflow remembers where artifacts are.
    monkeypatch.setattr(utils, "_artifact_repos_cache", OrderedDict())
    return tracking()


@pytest.fixture
def trained(made, mlflow):
    "The training of the sample's model, marked as the run of a stage with notebook and data."
    client = mlflow.MlflowClient()
    run = find_training(mlflow, folder_sha256(made / "build/train/model"))
    source = read_json(made / "build/ingest/source.json")
    tags = {"stage": "train", "git_commit": "", **source}
    for name in ("stage", "git_commit", "dataset", "as_of", "data_md5"):
        client.set_tag(run.info.run_id, name, tags[name])
    client.log_text(run.info.run_id, "page", "notebook/train.html")
    return client.get_run(run.info.run_id)


def promote(made: Path) -> dict:
    return run_promote(made / "build", "sample", **PROMOTION)


def a_dead_process() -> str:
    "What `this_process` said in a process that has ended."
    code = "from housemlops.pipeline.stage import this_process; print(this_process())"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("status", ["FAILED", "KILLED", "RUNNING"])
def test_a_training_that_did_not_end_well_is_no_ancestor(made, mlflow, trained, status):
    client, number = mlflow.MlflowClient(), trained.info.run_id
    assert find_training(mlflow, trained.data.tags["model_sha256"]) is not None
    client.update_run(number, status)
    assert find_training(mlflow, trained.data.tags["model_sha256"]) is None
    with pytest.raises(WorkbookError, match="no finished training .* --force train"):
        promote(made)


@pytest.mark.slow
def test_a_training_at_work_or_killed_after_it_logged_does_not_count(
    mlflow, trained, monkeypatch
):
    client, number = mlflow.MlflowClient(), trained.info.run_id
    sha256 = trained.data.tags["model_sha256"]
    experiment = trained.info.experiment_id
    elsewhere = json.dumps(["another-host", 1, 0.0])
    for process in (this_process(), elsewhere):
        client.set_tag(number, PROCESS, process)
        close_abandoned_runs(client, experiment)
        assert client.get_run(number).info.status == "FINISHED"
        assert find_training(mlflow, sha256) is None
    monkeypatch.setenv("HOUSEMLOPS_RUN_ID", number)
    assert find_training(mlflow, sha256).info.run_id == number  # in its own notebook
    monkeypatch.delenv("HOUSEMLOPS_RUN_ID")
    client.set_tag(number, PROCESS, a_dead_process())
    close_abandoned_runs(client, experiment)
    run = client.get_run(number)
    assert run.info.status == "KILLED" and PROCESS not in run.data.tags
    assert find_training(mlflow, sha256) is None


def test_a_process_id_that_is_used_again_is_another_process():
    from housemlops.pipeline.stage import is_gone

    assert not is_gone(this_process())
    assert is_gone(json.dumps([socket.gethostname(), os.getpid(), 0.0]))


@pytest.mark.slow
def test_promote_refuses_a_training_without_its_notebook_or_data(
    made, mlflow, trained, tmp_path
):
    client, number = mlflow.MlflowClient(), trained.info.run_id
    check_training(mlflow, trained, Path.cwd())
    before = promote(made)
    page = next((made / "state/mlflow/artifacts").rglob("notebook/train.html"))
    page.rename(page.with_name("train.failed.html"))
    with pytest.raises(WorkbookError, match='broken at "executed notebook"'):
        promote(made)
    page.with_name("train.failed.html").rename(page)
    assert promote(made) == before
    client.set_tag(number, "data_md5", "0" * 32)
    with pytest.raises(WorkbookError, match='broken at "data"'):
        promote(made)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a bit", "a lost file", "a file too many"])
def test_a_damaged_live_release_is_noticed_and_written_anew(made, damage):
    release = (made / "state/serve/current").resolve()
    graph = release / "model/graph.onnx"
    assert is_live(made / "build") and is_intact(release)
    if damage == "a bit":
        content = bytearray(graph.read_bytes())
        content[len(content) // 2] ^= 1
        graph.write_bytes(content)
    elif damage == "a lost file":
        graph.unlink()
    else:
        (release / "left-over.txt").write_text("")
    assert not is_live(made / "build")
    assert publish(made / "build/serve") == release
    assert is_live(made / "build") and is_intact(release)
    assert folder_sha256(release) == folder_sha256(made / "build/serve")


@pytest.mark.slow
def test_start_up_files_and_variables_of_a_user_do_not_reach_a_stage(
    tmp_path, monkeypatch
):
    startup = tmp_path / "ipython/profile_default/startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("import sys; sys.theirs = 'theirs'")
    (tmp_path / "startup.py").write_text("import sys; sys.theirs_too = 'theirs'")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/matplotlibrc").write_text("figure.dpi: 33")
    theirs = {
        "IPYTHONDIR": tmp_path / "ipython",
        "PYTHONSTARTUP": tmp_path / "startup.py",
        "PYTHONOPTIMIZE": "1",
        "PYTHONWARNINGS": "error",
        "MATPLOTLIBRC": tmp_path / "theirs/matplotlibrc",
    }
    for name, value in theirs.items():
        monkeypatch.setenv(name, str(value))
    code = (
        "import sys, os, matplotlib\n"
        "[hasattr(sys, 'theirs'), hasattr(sys, 'theirs_too'), sys.flags.optimize, "
        "os.environ.get('PYTHONWARNINGS'), matplotlib.rcParams['figure.dpi'] == 33]"
    )
    cells = [
        nbformat.v4.new_code_cell("", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    nbformat.write(notebook, tmp_path / "look.ipynb")
    before = dict(os.environ)
    with own_environment(tmp_path):
        done = execute(tmp_path / "look.ipynb", tmp_path / "draft.ipynb", {}, tmp_path)
    told = done.cells[-1].outputs[-1].data["text/plain"]
    assert told == "[False, False, 0, None, False]"
    assert dict(os.environ) == before
