"""Run a stage in a pod of a Kubernetes cluster."""

import json
import os
from pathlib import Path
from typing import Any

from housemlops.orchestrate import (
    ASKED,
    newest_extra,
)
from housemlops.pipeline.remote import facts_of
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
    """Everything about a stage's pod that does not depend on the run.

    Args:
        root: Checkout.
        stage: Its name.

    Returns:
        Arguments of the operator.
    """
    from kubernetes.client import models as k8s

    image = settings(root).apart.image
    if not image:
        raise WorkbookError(
            "Tasks in pods need the image of the workbook: write it as `image` into section [apart] of settings.ini, or set HOUSEMLOPS_APART_IMAGE."
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
    """What a stage's pod is told about the run.

    Args:
        task: An operator of a stage.
        run: The DAG run.
        conf: What was asked for.

    Returns:
        Of the command housemlops.
    """
    return [
        "stage-apart",
        task.task_id,
        "--conf",
        json.dumps(facts_of(task, run, conf, Path(task.root))),
    ]


def pod_operator():
    "The Airflow operator of a stage in a pod; defined on demand, because importing it takes seconds."
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
    from airflow.sdk import Asset, AssetAlias

    class PodOperator(KubernetesPodOperator):
        ui_color = "#dbe7f3"

        def __init__(self, *, task_id: str, root: str, beside: Any, **rest):
            super().__init__(
                task_id=task_id,
                **pod_form(Path(root), task_id),
                do_xcom_push=bool(rest.get("outlets")),
                **rest,
            )
            self.root, self.beside = root, beside

        def execute(self, context):
            run = context["dag_run"]
            conf = newest_extra(context.get("triggering_asset_events")) | (
                run.conf or {}
            )
            self.arguments = pod_arguments(self, run, conf)
            return super().execute(context)

        def trigger_reentry(self, context, event):
            found = super().trigger_reentry(context, event)
            if found and found.get("event"):
                context["outlet_events"][AssetAlias(ASKED)].add(
                    Asset(ASKED), extra=found["event"]
                )
            return found

    return PodOperator
