"""Price tables with the files of a model, and measure its intervals."""

from pathlib import Path

import numpy as np
import pandas as pd

from housemlops.contract import Contract


def predict_onnx(graph: bytes, X: np.ndarray) -> np.ndarray:
    """Return the prices (n,) of a feature matrix (n, n_features) by the ONNX form of a model."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return np.exp(session.run(None, {"X": X})[0].ravel().astype(np.float64))


def predict_prices(
    model: Path, table: pd.DataFrame, contract: Contract
) -> pd.DataFrame:
    """Return the prices of a table by an MLflow model.

    Args:
        model: MLflow model folder. It is shown only what is known before the sale.
        table: Typed sales, one a row.
        contract: Of the table.

    Returns:
        One row a sale, in money; the price is under the target's name.
    """
    import mlflow.pyfunc

    found = mlflow.pyfunc.load_model(str(model)).predict(table[contract.inputs])
    if isinstance(found, pd.DataFrame):
        return found.set_index(table.index)
    return pd.DataFrame({contract.target: found}, table.index)


def coverage_width(
    actual: np.ndarray, predicted: np.ndarray, low: np.ndarray, high: np.ndarray
) -> dict[str, float]:
    """Return the share of prices within their interval, and its mean width over the predicted price.

    All four are money, (n_sales,).
    """
    return {
        "coverage": float(np.mean((low <= actual) & (actual <= high))),
        "width": float(np.mean((high - low) / predicted)),
    }
