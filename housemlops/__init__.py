"""The whole life of a house-price model, exported from the notebooks in nbs/."""

import os

# What the packages that we use would send to their makers, switched off. Each reads its variable when it is imported,
# which is after this; child processes inherit them. A value that is set already stays as it is.
NO_TELEMETRY = {
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",  # Airflow before 3.3
    "DO_NOT_TRACK": "1",  # Evidently
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # also what MLflow's page reports
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}
for name, value in NO_TELEMETRY.items():
    os.environ.setdefault(name, value)
