"The Airflow DAGs: a month watched, a retraining when one is asked for, the whole lifecycle on demand; their tasks are stages of dvc.yaml."

from pathlib import Path

from housemlops.operations.loops import build_dags

watch, learn, lifecycle = build_dags(Path(__file__).resolve().parent.parent)
