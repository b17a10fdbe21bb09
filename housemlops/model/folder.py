"""Write a model folder: the ONNX graph, facts about the model, and a script for MLflow."""

import hashlib
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from housemlops import predict
from housemlops.contract import (
    Contract,
    as_request,
    can_be_asked,
    feature_plan,
    mlflow_signature,
    request_example,
)
from housemlops.core.files import write_json
from housemlops.predict import encode
from housemlops.settings import WorkbookError, folder_sha256

MODEL_CLASS = """
import json
import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported

import mlflow
import onnxruntime
import pandas as pd


class HousePrice(mlflow.pyfunc.PythonModel):
    "Prices and their intervals by the functions above and the ONNX graph"

    def load_context(self, context):
        facts = {}
        for name in ("contract", "plan", "interval"):
            with open(context.artifacts[name], encoding="utf-8") as file:
                facts[name] = json.load(file)
        self.target, self.plan = facts["contract"]["target"], facts["plan"]
        self.calibration = facts["interval"]
        self.session = onnxruntime.InferenceSession(
            context.artifacts["graph"], providers=["CPUExecutionProvider"]
        )

    def predict(self, context, model_input: pd.DataFrame, params=None):
        X = encode(model_input, self.plan)
        log_price = self.session.run(None, {"X": X})[0].ravel().astype(np.float64)
        low, high = interval(log_price, X, self.calibration)
        return pd.DataFrame({self.target: np.exp(log_price), "low": low, "high": high})


mlflow.models.set_model(HousePrice())
"""


def most_frequent(values: pd.Series) -> object:
    """Return the most frequent value, the smallest of several."""
    return values.value_counts(dropna=False).sort_index(kind="stable").idxmax()


def median_value(values: pd.Series) -> object | None:
    """Return the upper median, or None when most values are missing."""
    present = values.dropna()
    if len(present) * 2 < len(values):
        return None
    return present.sort_values().iloc[len(present) // 2]


def typical_house(train: pd.DataFrame, contract: Contract) -> dict:
    """Return the median of each number and date, and the most frequent category.

    Args:
        train: Typed sales.
        contract: Of the sales.

    Returns:
        column -> value as in a request; without columns that most sales lack.
    """
    house = {}
    for name in contract.inputs:
        categories = contract.columns[name].categories
        house[name] = (most_frequent if categories else median_value)(train[name])
    return as_request(house, contract)


def sales_to_ask(train: pd.DataFrame, contract: Contract) -> pd.DataFrame:
    """Return the sales that a request may carry.

    Raises:
        WorkbookError: There is none.
    """
    sales = train[can_be_asked(train, contract)]
    if sales.empty:
        raise WorkbookError(
            f"No sale of {contract.name} can be asked of a server: each has a value "
            "outside the limits of its column, such as a text of several lines"
        )
    return sales


def proof_of(model, train: pd.DataFrame, contract: Contract, rows: int = 20) -> dict:
    """Return some training houses as requests, and their prices by the fitted model.

    Returns:
        houses: One request each; prices: in money.
    """
    sales = sales_to_ask(train, contract)
    places = np.linspace(0, len(sales) - 1, min(rows, len(sales))).astype(int)
    some = sales.iloc[places]
    prices = np.exp(model.predict(encode(some, feature_plan(contract))))
    return {
        "houses": [request_example(some.iloc[[i]], contract) for i in range(len(some))],
        "prices": prices.round(2).tolist(),
    }


def model_requirements() -> list[str]:
    """Return the packages that the model needs, with the versions it was made with."""
    names = ("mlflow", "numpy", "onnxruntime", "pandas")
    return [f"{name}=={version(name)}" for name in names]


def model_source(summary: dict) -> dict:
    """Return which data a model was fitted on, from the summary of stage `prepare`."""
    names = ("dataset", "as_of", "data_md5")
    source = {name: summary["source"][name] for name in names}
    source["train_rows"] = summary["train"]
    if "train_months" in summary:
        source["train_months"] = summary["train_months"]
    return source


def write_parts(parts: Path, graph: bytes, facts: dict[str, Any]) -> None:
    """Write the files that MLflow copies into a model folder."""
    parts.mkdir(parents=True)
    (parts / "graph.onnx").write_bytes(graph)
    for name, fact in facts.items():
        write_json(parts / f"{name}.json", fact)
    functions = Path(predict.__file__).read_text(encoding="utf-8")
    script = parts / "house_price.py"
    script.write_text(functions + MODEL_CLASS, encoding="utf-8")


def write_model(
    folder: Path,
    graph: bytes,
    contract: Contract,
    example: dict,
    source: dict,
    facts: dict[str, Any],
) -> str:
    """Write an MLflow model folder. The same model gives the same bytes.

    Args:
        folder: Must not exist.
        graph: Of `to_onnx`.
        contract: Of the data.
        example: A request.
        source: Of `model_source`, kept as metadata.
        facts: Written as one JSON file each.

    Returns:
        The SHA-256 of the folder.
    """
    import mlflow.pyfunc

    parts = folder.with_name("parts")
    facts = {
        "contract": contract.model_dump(mode="json"),
        "plan": feature_plan(contract),
        "example": example,
        **facts,
    }
    write_parts(parts, graph, facts)
    files = {"graph": str(parts / "graph.onnx")}
    files |= {name: str(parts / f"{name}.json") for name in facts}
    house = {k: v if isinstance(v, str) else float(v) for k, v in example.items()}
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(parts / "house_price.py"),
        signature=mlflow_signature(contract),
        input_example=pd.DataFrame([house]),
        metadata=source,
        artifacts=files,
        pip_requirements=model_requirements(),
    )
    shutil.rmtree(parts)
    clean_description(folder / "MLmodel", hashlib.sha256(graph).hexdigest())
    return folder_sha256(folder)


def clean_description(path: Path, sha256: str) -> None:
    """Make a model's description independent of time, machine and random names.

    Args:
        path: Of the file `MLmodel`.
        sha256: Of the graph; it becomes the model's identifier.
    """
    yaml = YAML()
    text = yaml.load(path.read_text(encoding="utf-8"))
    text |= {"utc_time_created": "1970-01-01 00:00:00", "model_uuid": sha256[:32]}
    python = text["flavors"]["python_function"]
    python["model_code_path"] = Path(python["model_code_path"]).name
    for artifact in python["artifacts"].values():
        artifact["uri"] = artifact["path"]
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(text, file)
