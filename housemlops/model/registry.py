"""Find trainings and registered versions in MLflow."""

import os
from pathlib import Path

from housemlops.settings import WorkbookError, folder_sha256, settings

ALIAS = "champion"
PROCESS = "process"  # tag of a run whose stage is at work: host, process id, its start


def is_finished(run) -> bool:
    """Tell whether the stage of an MLflow run has ended well, or is the one that asks.

    MLflow calls a run FINISHED as soon as its notebook has logged to it; while the
    stage is at work, the run has the tag `process`.
    """
    own = run.info.run_id == os.environ.get("HOUSEMLOPS_RUN_ID")
    ended = PROCESS not in run.data.tags
    return own or (ended and run.info.status == "FINISHED")


def find_training(mlflow, sha256: str):
    """Return the newest finished MLflow run that trained the model with this SHA-256, or None."""
    runs = mlflow.search_runs(
        experiment_names=[settings().mlflow.experiment],
        output_format="list",
        filter_string=f"tags.model_sha256 = '{sha256}' and attributes.run_name = 'train'",
    )
    return next(filter(is_finished, runs), None)


def registered_name(dataset: str) -> str:
    """Return the name of a data set's model in production."""
    return f"{settings().mlflow.model}-{dataset}"


def development_name(dataset: str) -> str:
    """Return the name of a data set's model in development."""
    return f"{registered_name(dataset)}-dev"


def find_version(client, name: str, sha256: str):
    """Return the newest version of a model that has these bytes, or None."""
    found = [
        v
        for v in client.search_model_versions(f"name = '{name}'")
        if v.tags.get("model_sha256") == sha256
    ]
    return max(found, key=lambda v: int(v.version), default=None)


def make_name(client, name: str) -> None:
    """Make a registered model unless there is one."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def champion(client, name: str):
    """Return the version that bears the alias `champion`, or None when there is none yet."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, ALIAS)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def download(mlflow, version, folder: Path) -> Path:
    """Download the files of a registered version.

    Args:
        mlflow: From `tracking`.
        version: A ModelVersion.
        folder: To download into.

    Returns:
        The MLflow model folder.

    Raises:
        WorkbookError: When its bytes are not those that were registered.
    """
    model = Path(
        mlflow.artifacts.download_artifacts(
            f"models:/{version.name}/{version.version}", dst_path=str(folder)
        )
    )
    # MLflow adds this file to what it downloads
    (model / "registered_model_meta").unlink(missing_ok=True)
    found, wanted = folder_sha256(model), version.tags["model_sha256"]
    if found == wanted:
        return model
    raise WorkbookError(
        f"{version.name} version {version.version} has the SHA-256 {found[:12]}, but {wanted[:12]} was registered: "
        "its files were changed. If it is the champion, `housemlops rollback` goes back to the one before it"
    )
