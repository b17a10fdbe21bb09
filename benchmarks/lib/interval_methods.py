"""The methods and the tables of benchmarks/intervals.py."""

import inspect
from pathlib import Path

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from housemlops import estimators, intervals, train
from housemlops.contract import feature_plan, load_contract, sale_months
from housemlops.predict import interval
from housemlops.prepare import sort_out
from housemlops.settings import WorkbookError, repo_root

LEAST = 100  # sales to train on


def one_width(errors: np.ndarray, level: float) -> float:
    "The conformal quantile of the errors' size"
    return np.sort(np.abs(errors))[
        min(int(np.ceil((len(errors) + 1) * level)), len(errors)) - 1
    ]


def quantile_regression(
    X: np.ndarray, y: np.ndarray, Z: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    "CQR (Romano et al., 2019): gradient-boosted quantiles, calibrated on the last quarter of a shuffle"
    from sklearn.ensemble import HistGradientBoostingRegressor

    rows = np.random.default_rng(0).permutation(len(y))
    fit, held = rows[: len(y) * 3 // 4], rows[len(y) * 3 // 4 :]
    low, high = (
        HistGradientBoostingRegressor(
            loss="quantile",
            quantile=q,
            max_iter=200,
            learning_rate=0.05,
            random_state=0,
        ).fit(X[fit], y[fit])
        for q in ((1 - level) / 2, (1 + level) / 2)
    )
    missed = np.maximum(low.predict(X[held]) - y[held], y[held] - high.predict(X[held]))
    more = np.sort(missed)[min(int(np.ceil((len(held) + 1) * level)), len(held)) - 1]
    return np.exp(low.predict(Z) - more), np.exp(high.predict(Z) + more)


def figures(
    paid: np.ndarray, predicted: np.ndarray, low: np.ndarray, high: np.ndarray
) -> dict[str, float]:
    "Coverage overall and by third, and the width, in percent"
    hit, third = (
        (low <= paid) & (paid <= high),
        np.argsort(np.argsort(paid, kind="stable")) * 3 // len(paid),
    )
    return {
        "coverage": hit.mean(),
        "cheapest": hit[third == 0].mean(),
        "middle": hit[third == 1].mean(),
        "dearest": hit[third == 2].mean(),
        "width": ((high - low) / predicted).mean(),
        "of paid": ((high - low) / paid).mean(),
    }


def at_origin(
    sales: pd.DataFrame, contract, parameters: dict, start: str, count: int
) -> pd.DataFrame:  # one row a method
    "All methods, trained before the month `start` and tested on the `count` months from then on"
    months, plan, level = (
        sale_months(sales, contract),
        feature_plan(contract),
        parameters["coverage"],
    )
    end = (pd.Period(start, "M") + count).strftime("%Y-%m")
    known, later = sales[months < start], sales[(months >= start) & (months < end)]
    if len(known) < LEAST or later.empty:
        raise WorkbookError(
            f"{start}:{count} leaves {len(known)} sales to train on and {len(later)} to "
            f"test on; the table has sales from {months.min()} to {months.max()}. "
            f"At least {LEAST} are needed before the first month, and one from it on."
        )
    (X, y), (Z, z) = (
        train.training_arrays(known, contract),
        train.training_arrays(later, contract),
    )
    parts = estimators.members(
        plan,
        **{
            name: parameters[name]
            for name in inspect.signature(estimators.members).parameters
            if name in parameters
        },
    )
    guesses = estimators.candidates(
        parts, X, y, parameters["folds"], parameters["seed"]
    )
    name, model = estimators.choose(estimators.compare(guesses, y), parts)
    rows, forecast = intervals.out_of_fold_predictions(
        model, X, y, months[months < start], guesses[name], parameters["seed"]
    )
    calibration = intervals.calibrate(X, y, guesses[name], rows, forecast, plan, level)
    with estimators.one_thread():
        predicted = np.exp(model.fit(X, y).predict(Z))
    log_width, width = (
        one_width(y - guesses[name], level),
        one_width(np.exp(y) - np.exp(guesses[name]), level),
    )
    limits = {
        "one width, logs": (
            predicted * np.exp(-log_width),
            predicted * np.exp(log_width),
        ),
        "one width, dollars": (predicted - width, predicted + width),
        "CQR": quantile_regression(X, y, Z, level),
        "ours": interval(np.log(predicted), Z, calibration),
    }
    table = (
        pd.DataFrame(
            {
                method: figures(np.exp(z), predicted, *pair)
                for method, pair in limits.items()
            }
        ).T
        * 100
    )
    table.index = pd.MultiIndex.from_product(
        [[f"{start}, {count} months, {len(z)} sales"], table.index],
        names=["tested from", "method"],
    )
    return table.round(1)


def compare_methods(table: Path, origins: list[tuple[str, int]]) -> None:
    """Print a table for each origin in the sales of Ames, and the mean over all of them."""
    parameters = YAML(typ="safe").load(repo_root() / "params.yaml")["train"]
    contract = load_contract("ames")
    raw = pd.read_csv(table, dtype=str, keep_default_na=False)
    sales, _, _ = sort_out(raw, contract)
    tables = []
    for start, count in origins:
        tables.append(at_origin(sales, contract, parameters, start, count))
        print(tables[-1].to_string(header=len(tables) == 1), flush=True)
    if len(tables) > 1:
        means = pd.concat(tables).groupby("method", sort=False).mean().round(1)
        print("mean over origins", means.to_string(), sep="\n")
