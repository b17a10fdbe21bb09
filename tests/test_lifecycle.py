"The lifecycle end to end: Airflow, DVC, papermill, MLflow and the generated server, on the sample, in a clone."

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from checkout import STAGES


@pytest.fixture(autouse=True)
def untouched(learner):
    "After each test the checkout is as it was committed"
    yield
    learner.git("checkout", "--quiet", ".")
    learner.git("clean", "--quiet", "--force")
    assert learner.git("status", "--porcelain") == ""


def test_first_run_says_what_came_of_it(learner):
    for words in (
        "MAE",
        "MSE",
        "house-prices-sample version 1",
        "POST http://127.0.0.1:",
        "), by house-prices-sample version 1",
        "Intervals: 90% asked",
    ):
        assert words in learner.first_text
    assert "uncommitted" not in learner.first_text


def test_lineage_in_mlflow(learner):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{learner.path}/var/mlflow/mlflow.db")
    home = client.get_experiment_by_name("house-prices").experiment_id
    runs = {
        run.info.run_name: run
        for run in client.search_runs([home], order_by=["start_time"])
    }
    assert {*STAGES} <= {*runs}
    train, release = runs["train"], learner.build("serve/model/release.json")
    assert (
        train.data.tags["data_md5"] == release["data_md5"]
        and train.data.tags["uncommitted"] == "no"
    )
    assert train.data.tags["git_commit"] == learner.git("rev-parse", "HEAD")
    assert train.data.tags["model_sha256"] == release["model_sha256"]
    assert (
        train.data.metrics["test_mae"]
        == learner.build("evaluate/metrics.json")["model"]["mae"]
    )
    assert "train.html" in {
        Path(item.path).name
        for item in client.list_artifacts(train.info.run_id, "notebook")
    }


def test_second_run_restores_all_and_gives_the_same(learner):
    "Its workspaces are gone: what a run needs is in the cache"
    head = learner.git("rev-parse", "HEAD")
    shutil.rmtree(learner.path / "var/workspaces")
    result = learner.json("run")
    done = {stage["stage"]: stage["outcome"] for stage in result["stages"]}
    assert [*done] == STAGES and not {"ran", "failed"} & {*done.values()}, result
    assert learner.outs() == learner.first
    assert learner.git("rev-parse", "HEAD") == head
    assert (result["git_commit"], result["uncommitted"]) == (head, [])
    assert result["champion"] == {"name": "house-prices-sample", "version": 1}
    assert all(metric["passed"] for metric in result["metrics"]), result["metrics"]
    assert {*STAGES} <= {file.stem for file in Path(result["reports"]).iterdir()}
    answer = result["prediction"]
    assert answer["low"] < answer["price"] < answer["high"]
    chain = learner.json("trace", answer["id"])
    assert chain["ok"] and chain["links"][0]["name"] == "prediction", chain


def kernel_at_work(workspaces: Path, patience: float = 300.0) -> int:
    "Process id of the kernel that works in one of the workspaces, a few seconds after its start"
    end = time.monotonic() + patience
    while time.monotonic() < end:
        for process in psutil.process_iter(["cmdline"]):
            with contextlib.suppress(psutil.Error):
                if "ipykernel_launcher" in (process.info["cmdline"] or []) and Path(
                    process.cwd()
                ).is_relative_to(workspaces):
                    time.sleep(3)
                    return process.pid
        time.sleep(0.2)
    raise AssertionError("no kernel has started")


@pytest.mark.parametrize("stage", ["train"])
def test_a_killed_kernel_fails_its_stage_and_running_again_gives_the_same(
    learner, stage
):
    run = subprocess.Popen(
        [Path(sys.executable).with_name("housemlops"), "run", "--force", stage],
        cwd=learner.path,
        env=learner.environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    os.kill(kernel_at_work(learner.path / "var/workspaces"), signal.SIGKILL)
    text = run.communicate(timeout=900)[0]
    assert (
        run.returncode == 1
        and f"{stage} stopped because the kernel" in text
        and "Traceback" not in text
    ), text
    done, text = learner.run("--force", stage)
    assert done[stage] == "ran" and learner.outs() == learner.first, text


FITS = """
import time
from joblib import Parallel, delayed
from housemlops.estimators import one_process_per_core
with one_process_per_core(): Parallel()(delayed(time.sleep)(60) for _ in range(8))
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="Linux ends a process with its parent"
)
def test_fits_that_run_side_by_side_end_with_their_stage():
    stage = subprocess.Popen([sys.executable, "-c", FITS], stderr=subprocess.DEVNULL)
    me, end = psutil.Process(stage.pid), time.monotonic() + 60
    while (
        len(
            workers := [
                child
                for child in me.children()
                if "LokyProcess" in " ".join(child.cmdline())
            ]
        )
        < min(2, os.cpu_count())
        and time.monotonic() < end
    ):
        time.sleep(0.2)
    time.sleep(3)  # they have begun
    assert workers
    stage.kill()
    stage.wait()
    assert not psutil.wait_procs(workers, timeout=10)[1]


def test_a_train_parameter_and_tight_gates(learner):
    "Only train and what follows run again, nothing is promoted, and the server still answers"
    before, head = (
        (learner.path / "var/serve/current").resolve(),
        learner.git("rev-parse", "HEAD"),
    )
    learner.params(
        lambda p: (
            p["train"].update(ridge_alpha=11.0),
            p["evaluate"]["thresholds"]["sample"].update(mae=1),
        )
    )
    done, text = learner.run()
    assert [done[stage] for stage in ("ingest", "prepare", "train")] == [
        "restored",
        "restored",
        "ran",
    ], text
    assert (
        "Not promoted: MAE is" in text and "), by house-prices-sample version" in text
    ), text
    receipt = learner.build("promote/receipt.json")
    assert (
        not receipt["promoted"]
        and receipt["champion_sha256"] != receipt["model_sha256"]
    )
    assert (learner.path / "var/serve/current").resolve() == before
    assert "with uncommitted changes" in text and "params.yaml" in text
    assert (
        learner.git("diff", "--name-only") == "params.yaml"
        and learner.git("stash", "list") == ""
        and learner.git("rev-parse", "HEAD") == head
    )
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{learner.path}/var/mlflow/mlflow.db")
    newest = client.search_runs(
        [client.get_experiment_by_name("house-prices").experiment_id],
        "attributes.run_name = 'train'",
        max_results=1,
    )[0]
    assert (
        "params.yaml" in newest.data.tags["uncommitted"]
        and newest.data.params["ridge_alpha"] == "11.0"
    )


def test_a_misspelt_parameter_is_refused_before_a_kernel_starts(learner):
    learner.params(
        lambda p: p["train"].update(ridge_alfa=p["train"].pop("ridge_alpha"))
    )
    done, text = learner.run(code=1)
    assert (
        done["train"] == "failed" and "ridge_alpha" in text and "Traceback" not in text
    ), text
    assert not (learner.path / "var/latest/reports/train.failed.ipynb").exists()
