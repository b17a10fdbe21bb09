"""Run a stage in a pod of a Kubernetes cluster."""

import json
import os
from pathlib import Path
from typing import Any

from housemlops.pipeline.hooks import RETRAINING_ASSET, StageHooks, run_conf
from housemlops.pipeline.remote import run_facts
from housemlops.settings import (
    WorkbookError,
    settings,
)

PASSED_ON = (
    "HOUSEMLOPS_MLFLOW_TRACKING_URI",
    "HOUSEMLOPS_MLFLOW_EXPERIMENT",
    "HOUSEMLOPS_MLFLOW_MODEL",
    "HOUSEMLOPS_APART_CODE",
    "HOUSEMLOPS_APART_REMOTE",
    "AWS_ENDPOINT_URL",
    "AWS_DEFAULT_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
)


SCRATCH = "/scratch"


def pod_form(root: Path, stage: str) -> dict:
    """Return what of a stage's pod does not depend on the run, as the operator's arguments.

    Args:
        root: Checkout.
        stage: Its name.

    Raises:
        WorkbookError: When settings.ini names no image.
    """
    from kubernetes.client import models as k8s

    image = settings(root).apart.image
    if not image:
        raise WorkbookError(
            "Tasks in pods need the image of the workbook: write it as `image` into "
            "section [apart] of settings.ini, or set HOUSEMLOPS_APART_IMAGE."
        )
    confined = k8s.V1SecurityContext(
        allow_privilege_escalation=False,
        read_only_root_filesystem=True,
        capabilities=k8s.V1Capabilities(drop=["ALL"]),
    )
    places = {"HOME": f"{SCRATCH}/home", "HOUSEMLOPS_PATHS_STATE": f"{SCRATCH}/state"}
    return {
        "name": f"stage-{stage}",
        "image": image,
        "cmds": ["housemlops"],
        "labels": {
            "app.kubernetes.io/name": "stage",
            "app.kubernetes.io/component": stage,
            "app.kubernetes.io/part-of": "housemlops",
        },
        "env_vars": places
        | {name: os.environ[name] for name in PASSED_ON if name in os.environ},
        "env_from": [
            k8s.V1EnvFromSource(secret_ref=k8s.V1SecretEnvSource(name="stage"))
        ],
        "volumes": [
            k8s.V1Volume(
                name=name, empty_dir=k8s.V1EmptyDirVolumeSource(size_limit=size)
            )
            for name, size in (("scratch", "4Gi"), ("tmp", "1Gi"))
        ],
        "volume_mounts": [
            k8s.V1VolumeMount(name=name, mount_path=path)
            for name, path in (("scratch", SCRATCH), ("tmp", "/tmp"))
        ],
        "container_resources": k8s.V1ResourceRequirements(
            requests={"cpu": "500m", "memory": "1Gi"},
            limits={"cpu": "2", "memory": "4Gi"},
        ),
        "security_context": k8s.V1PodSecurityContext(
            run_as_non_root=True,
            run_as_user=1000,
            run_as_group=1000,
            fs_group=1000,
            seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
        ),
        "container_security_context": confined,
        "xcom_sidecar_container_security_context": confined,
        "automount_service_account_token": False,
        "startup_timeout_seconds": 600,
        "active_deadline_seconds": 7200,
        "on_finish_action": "delete_succeeded_pod",
        "in_cluster": True,
        "get_logs": True,
        "log_events_on_failure": True,
        "deferrable": True,
        "poll_interval": 10,
    }


def pod_arguments(task: Any, run: Any, conf: dict) -> list[str]:
    """Return the arguments of the command housemlops in a stage's pod.

    Args:
        task: An operator of a stage.
        run: The DAG run.
        conf: What was asked for.
    """
    facts = run_facts(Path(task.root), task.hooks, run, conf)
    return ["stage-apart", task.task_id, "--conf", json.dumps(facts)]


def pod_operator() -> type:
    """Return the Airflow operator of a stage in a pod.

    It is defined on demand, because importing it takes seconds.
    """
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
    from airflow.sdk import Asset, AssetAlias

    class PodOperator(KubernetesPodOperator):
        ui_color = "#dbe7f3"

        def __init__(self, *, task_id: str, root: str, hooks: StageHooks, **rest):
            super().__init__(
                task_id=task_id,
                **pod_form(Path(root), task_id),
                do_xcom_push=bool(rest.get("outlets")),
                **rest,
            )
            self.root, self.hooks = root, hooks

        def execute(self, context):
            self.arguments = pod_arguments(self, context["dag_run"], run_conf(context))
            return super().execute(context)

        def trigger_reentry(self, context, event):
            result = super().trigger_reentry(context, event)
            if result and result.get("event"):
                asset_events = context["outlet_events"][AssetAlias(RETRAINING_ASSET)]
                asset_events.add(Asset(RETRAINING_ASSET), extra=result["event"])
            return result

    return PodOperator
