"Tasks that share no disk: the same hashes on two Celery workers, a worker killed in the middle of a stage, and pods as the namespace wants them."

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from celery_cluster import PROGRAMS, celery_cluster, wait_until

from checkout import ROOT, STAGES, clone
from housemlops.core.repository import snapshot
from housemlops.model.registry import registered_name
from housemlops.pipeline import remote, remote_lock, remote_workspace
from housemlops.pipeline.dags import build_dag
from housemlops.pipeline.graph import graph, pipeline
from housemlops.pipeline.notebook import StageFailed
from housemlops.pipeline.pods import pod_arguments, pod_form
from housemlops.pipeline.remote_lock import Store
from housemlops.pipeline.scheduler import airflow_environment
from housemlops.settings import WorkbookError, params, settings, tracking


@pytest.fixture
def programs(need, monkeypatch):
    "The programs of the services, which Debian keeps outside of PATH."
    folders = ["/usr/sbin", *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    monkeypatch.setenv("PATH", os.pathsep.join([os.environ["PATH"], *folders]))
    for name in PROGRAMS:
        need(name)


@pytest.fixture
def database_folder():
    "A folder that PostgreSQL's user can reach."
    folder = Path(tempfile.mkdtemp(prefix="housemlops-postgres-"))
    yield folder
    shutil.rmtree(folder)


def living(home: Path) -> list[psutil.Process]:
    "Return the processes that work for a cluster."
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            state = process.environ().get("HOUSEMLOPS_PATHS_STATE", "")
            if str(home) in state and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return [process for process in found if process.pid != os.getpid()]


def worker_of(home: Path, stage: str) -> str:
    "Return the worker whose kernel has begun with a stage, or nothing."
    for process in living(home):
        with suppress(psutil.Error):
            kernel = "ipykernel_launcher" in process.cmdline()
            if kernel and f"/apart/{stage}-" in process.cwd():
                return process.environ()["WORKER_NAME"]
    return ""


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two lifecycles
def test_two_workers_without_a_shared_disk_give_the_same_bytes_and_one_may_die(
    programs, database_folder, first_run, tmp_path
):
    "kill -9 of a worker's whole process group while it trains: the other takes the stage up"
    checkout, home = clone(tmp_path / "workbook"), tmp_path / "cluster"
    home.mkdir()
    workers = ["worker-1", "worker-2"]
    with celery_cluster(checkout, home, database_folder, workers) as cluster:
        conf = cluster.start_run(str(params(checkout.path)["as_of"]))
        killed = wait_until(lambda: worker_of(home, "train"), "training", 900)
        time.sleep(2)
        os.killpg(cluster.processes[killed].pid, signal.SIGKILL)
        ended = ("success", "failed")
        wait_until(lambda: cluster.state() in ended, "the run", 900)
        assert cluster.state() == "success", cluster.logs()
        rows = {row["stage"]: row for row in cluster.tasks()}
        outs = checkout.outs(restore_run(cluster.code, home / "latest", conf))
        champion = tracking(settings(cluster.code)).MlflowClient()
        name = registered_name("sample")
        assert champion.get_model_version_by_alias(name, "champion").version == "1"
    assert {*rows} == {*STAGES}
    assert {row["answer"] for row in rows.values()} == {"ran"}
    tries = {stage: row["try"] for stage, row in rows.items()}
    assert tries == dict.fromkeys(STAGES, 1) | {"train": 2}
    assert {row["worker"] for row in rows.values()} | {killed} == {*workers}
    assert outs == json.loads((first_run / "first.json").read_text())["outs"]
    assert living(home) == []
    for name in {*workers} - {killed}:
        assert not list((home / name).glob("state/apart/*"))


def restore_run(code: Path, workspace: Path, conf: dict) -> Path:
    "Restore all outputs of a run from the DVC remote, into a new workspace."
    remote_workspace.make_ready(code, workspace, conf)
    stages = list(graph(pipeline(workspace)))
    store = remote_lock.connect_store(code)
    remote_lock.take_lock(store, workspace, conf["workspace"], stages)
    remote_lock.restore(code, workspace, stages)
    return workspace


# A stage apart


def test_stages_before_are_never_run_again(tmp_path, monkeypatch):
    for name, value in {
        "PATHS_STATE": tmp_path / "state",
        "APART_CODE": ROOT.as_uri(),
        "APART_REMOTE": tmp_path / "remote",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }.items():
        monkeypatch.setenv(f"HOUSEMLOPS_{name}", str(value))
    with pytest.raises(StageFailed, match="outputs of ingest .* not in the DVC remote"):
        remote.stage_apart(
            "prepare",
            {
                "workspace": "early",
                "as_of": "2010-08",
                "commit": snapshot(ROOT)[0],
                "uncommitted": snapshot(ROOT)[1],
            },
            ROOT,
        )
    assert list((tmp_path / "state/apart").iterdir()) == []


def test_mistakes_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("HOUSEMLOPS_PATHS_STATE", str(tmp_path / "state"))
    with pytest.raises(WorkbookError, match="no stage 'trian'. Did you mean 'train'"):
        remote.stage_apart("trian", {}, ROOT)
    monkeypatch.setenv("HOUSEMLOPS_APART_CODE", ROOT.as_uri())
    facts = {"workspace": "run", "as_of": "2010-08", "commit": "0" * 40}
    with pytest.raises(WorkbookError, match="does not give the commit 0000000000"):
        remote.stage_apart("ingest", facts, ROOT)
    with pytest.raises(WorkbookError, match="write its URL as `remote` into section"):
        remote_workspace.point_dvc(ROOT, tmp_path)


def test_the_memory_is_the_registrys_and_the_promotion_log_is_continued_by_one_only(
    tmp_path,
):
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.create_experiment(
        "house", artifact_location=(tmp_path / "artifacts").as_uri()
    )
    one, two = tmp_path / "one", tmp_path / "two"
    for state in (one, two):
        (state / "history/2008-05").mkdir(parents=True)
    assert remote_lock.recall(Store(mlflow, "house"), one) == {}
    (one / remote_lock.LOG).write_bytes(b"first\n")
    (one / "history/2008-05/run.json").write_text("{}")
    (one / "history/2008-05/report.html").write_text("too large to travel")
    remote_lock.keep(Store(mlflow, "house"), one, {})
    before = remote_lock.recall(Store(mlflow, "house"), two)
    assert (
        before
        == {remote_lock.LOG: b"first\n", "history/2008-05/run.json": b"{}"}
        == remote_lock.remembered(two)
    )
    for state, line in ((one, b"first\nsecond\n"), (two, b"first\nthird\n")):
        (state / remote_lock.LOG).write_bytes(line)
    remote_lock.keep(Store(mlflow, "house"), one, before)
    with pytest.raises(ConnectionError, match="decide again"):
        remote_lock.keep(Store(mlflow, "house"), two, before)
    assert (
        remote_lock.recall(Store(mlflow, "house"), two)[remote_lock.LOG]
        == b"first\nsecond\n"
        == (two / remote_lock.LOG).read_bytes()
    )


def test_a_task_takes_the_lines_of_its_own_run_only(tmp_path):
    import mlflow
    from ruamel.yaml import YAML

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.create_experiment(
        "house", artifact_location=(tmp_path / "artifacts").as_uri()
    )

    def lock():
        return YAML(typ="safe").load((tmp_path / "dvc.lock").read_text())["stages"]

    for run, md5 in (("one", "1" * 32), ("two", "2" * 32), ("two", "3" * 32)):
        (tmp_path / "dvc.lock").write_text(
            json.dumps(
                {
                    "schema": "2.0",
                    "stages": {
                        "ingest": {"outs": [{"md5": md5}]},
                        "train": {"outs": []},
                    },
                }
            )
        )
        remote_lock.hand_on_lock(Store(mlflow, "house"), tmp_path, run, "ingest")
    for run, md5 in (("one", "1" * 32), ("two", "3" * 32)):
        remote_lock.take_lock(
            Store(mlflow, "house"), tmp_path, run, ["ingest", "prepare"]
        )
        assert lock() == {"ingest": {"outs": [{"md5": md5}]}}
    remote_lock.take_lock(Store(mlflow, "house"), tmp_path, "three", ["ingest"])
    assert (
        lock() == {} and len(Store(mlflow, "house").find_runs("dvc.lock", "two")) == 1
    )


# Pods


@pytest.fixture(scope="module")
def pods(tmp_path_factory):
    "The lifecycle with a pod for each stage, and the pod that each would ask for"
    patch = pytest.MonkeyPatch()
    for name, value in {
        "HOUSEMLOPS_PATHS_STATE": tmp_path_factory.mktemp("state"),
        "HOUSEMLOPS_AIRFLOW_TASKS": "pods",
        "HOUSEMLOPS_APART_IMAGE": "registry.example/housemlops-workbook:1.2.3",
        "HOUSEMLOPS_APART_REMOTE": "s3://dvc",
        "HOUSEMLOPS_MLFLOW_TRACKING_URI": "http://mlflow.mlflow:5000",
    }.items():
        patch.setenv(name, str(value))
    for name, value in airflow_environment(ROOT).items():
        patch.setenv(name, value)
    dag = build_dag(ROOT)
    run = type(
        "Run",
        (),
        {
            "run_id": "manual__2026-11-22T10:00:00+00:00",
            "conf": {"commit": "c" * 40},
            "data_interval_end": None,
        },
    )

    def pod(task):
        task.namespace, task.arguments = (
            "airflow",
            pod_arguments(task, run, run.conf),
        )
        return task.build_pod_request_obj(dry_run=True)

    found = {task.task_id: pod(task) for task in dag.tasks}
    patch.undo()
    return dag, found


def test_pods_have_the_edges_of_dvc_yaml(pods):
    assert {task.task_id: task.upstream_task_ids for task in pods[0].tasks} == {
        name: set(before) for name, before in graph(pipeline(ROOT)).items()
    }
    assert all(task.deferrable and task.retries == 2 for task in pods[0].tasks)


@pytest.mark.parametrize("stage", STAGES)
def test_a_pod_is_valid_and_restricted(pods, stage):
    import kubernetes_validate
    from kubernetes.client import ApiClient

    body = ApiClient().sanitize_for_serialization(pods[1][stage])
    kubernetes_validate.validate(
        body, kubernetes_validate.latest_version(), strict=True
    )
    spec, [container] = body["spec"], body["spec"]["containers"]
    assert (
        spec["securityContext"]["runAsNonRoot"]
        and spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        and spec["automountServiceAccountToken"] is False
    )
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {*spec} & {"hostNetwork", "hostPID", "hostIPC"} <= {
        "hostNetwork"
    } and not spec.get("hostNetwork")
    assert all({*volume} == {"name", "emptyDir"} for volume in spec["volumes"]) and {
        mount["name"] for mount in container["volumeMounts"]
    } == {volume["name"] for volume in spec["volumes"]}
    assert {*container["resources"]} == {"requests", "limits"} and all(
        {*part} == {"cpu", "memory"} for part in container["resources"].values()
    )
    assert (
        container["command"] == ["housemlops"]
        and container["args"][:3] == ["stage-apart", stage, "--conf"]
        and container["image"] == "registry.example/housemlops-workbook:1.2.3"
    )
    facts = json.loads(container["args"][3])
    assert facts == {
        "workspace": "manual__2026-11-22T10-00-00-00-00",
        "as_of": "2010-08",
        "commit": "c" * 40,
        "loop": "all",
    }
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    assert (
        given["HOUSEMLOPS_APART_REMOTE"] == "s3://dvc"
        and given["HOUSEMLOPS_MLFLOW_TRACKING_URI"] == "http://mlflow.mlflow:5000"
    )
    written = {name: value for name, value in given.items() if value.startswith("/")}
    assert written and all(
        any(value.startswith(mount["mountPath"]) for mount in container["volumeMounts"])
        for value in written.values()
    )
    assert not any(
        word in name
        for name in given
        for word in ("SECRET", "PASSWORD", "TOKEN", "DATABASE_URL")
    ) and container["envFrom"] == [{"secretRef": {"name": "stage"}}]


def test_pods_without_an_image_are_refused():
    with pytest.raises(WorkbookError, match="image of the workbook"):
        pod_form(ROOT, "train")


def test_here_the_dag_imports_neither_kubernetes_nor_celery():
    code = "import sys; from pathlib import Path; from housemlops.pipeline.dags import build_dag; build_dag(Path.cwd())\nprint([name for name in ('kubernetes', 'celery', 'housemlops.pipeline.remote') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr
