"The Airflow DAG house_prices: one task per stage of dvc.yaml."
from pathlib import Path

from housemlops.orchestrate import build_dag

dag = build_dag(Path(__file__).resolve().parent.parent)
