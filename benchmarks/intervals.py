"""Do the intervals hold across time? Train on the sales before a month, test on those of the months after it, again and again.

    python benchmarks/intervals.py              # seven origins, some five minutes
    python benchmarks/intervals.py 2009-01:19   # one: trained before 2009-01, tested on the nineteen months from then on

Each line is a method on the same model: errors of the training sales out of fold, with one width for all in logs or in dollars; quantile
regression, calibrated on held-out sales (CQR); and ours, as the stage `train` makes it. Coverage should be 90 %, overall and in each third
of the price that was paid; width is the mean of high less low, as a share of the predicted and of the paid price.
"""

import inspect
import sys
import warnings

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from housemlops import train
from housemlops.contract import feature_plan, load_contract
from housemlops.ingest import sale_months
from housemlops.predict import interval
from housemlops.prepare import sort_out
from housemlops.settings import repo_root

ORIGINS = [
    "2009-01:19",
    "2009-08:12",
    "2008-01:12",
    "2008-07:12",
    "2009-01:12",
    "2009-07:12",
    "2010-01:12",
]


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
    (X, y), (Z, z) = (
        train.training_arrays(known, contract),
        train.training_arrays(later, contract),
    )
    parts = train.members(
        plan,
        **{
            name: parameters[name]
            for name in inspect.signature(train.members).parameters
            if name in parameters
        },
    )
    guesses = train.candidates(parts, X, y, parameters["folds"], parameters["seed"])
    name, model = train.choose(train.compare(guesses, y), parts)
    rows, forecast = train.honest_sales(
        model, X, y, months[months < start], guesses[name], parameters["seed"]
    )
    calibration = train.calibrate(X, y, guesses[name], rows, forecast, plan, level)
    with train.one_thread():
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


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    contract, parameters = (
        load_contract("ames"),
        YAML(typ="safe").load(repo_root() / "params.yaml")["train"],
    )
    sales, _, _ = sort_out(
        pd.read_csv(repo_root() / "data/ames.csv", dtype=str, keep_default_na=False),
        contract,
    )
    tables = []
    for origin in sys.argv[1:] or ORIGINS:
        start, count = origin.split(":")
        tables.append(at_origin(sales, contract, parameters, start, int(count)))
        print(tables[-1].to_string(header=len(tables) == 1), flush=True)
    if len(tables) > 1:
        print(
            "mean over origins",
            pd.concat(tables).groupby("method", sort=False).mean().round(1).to_string(),
            sep="\n",
        )
