"""The models, the protocols and the tables of benchmarks/accuracy.py."""

import inspect
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from housemlops.contract import Contract, cast, feature_plan, load_contract, sale_months
from housemlops.estimators import (
    blend,
    candidates,
    choose,
    compare,
    members,
    one_thread,
)
from housemlops.settings import repo_root
from housemlops.train import training_arrays
from lib.checkout import fetch_table, progress

HGB = {
    "max_iter": 700,
    "learning_rate": 0.04,
    "max_leaf_nodes": 6,
    "min_samples_leaf": 4,
    "l2_regularization": 1.0,
    "max_features": 0.15,
    "early_stopping": False,
    "random_state": 0,
}
LIGHTGBM = {
    "n_estimators": 2000,
    "learning_rate": 0.02,
    "num_leaves": 8,
    "min_child_samples": 5,
    "colsample_bytree": 0.1,
    "subsample": 0.7,
    "subsample_freq": 1,
    "reg_lambda": 1.0,
}
XGBOOST = {
    "n_estimators": 2000,
    "learning_rate": 0.02,
    "max_depth": 4,
    "min_child_weight": 3,
    "colsample_bytree": 0.1,
    "subsample": 0.6,
    "reg_lambda": 1.0,
}
CATBOOST = {
    "iterations": 1500,
    "learning_rate": 0.04,
    "depth": 6,
    "rsm": 0.2,
    "l2_leaf_reg": 3,
    "one_hot_max_size": 64,
}
BOOSTED = (
    "tuned LightGBM",
    "tuned XGBoost",
    "tuned CatBoost",
)  # blended in equal parts
RESAMPLES = 2000

Model = Callable[[list[dict]], object]  # a feature plan -> an unfitted estimator


def parameters() -> dict:
    return YAML(typ="safe").load(repo_root() / "params.yaml")["train"]


def our_blend(plan: list[dict]):
    "The blend, with the parameters of params.yaml"
    known = parameters()
    return blend(
        members(
            plan,
            **{
                name: known[name]
                for name in inspect.signature(members).parameters
                if name in known
            },
        )
    )


class Chosen:
    "What the stage `train` takes: the best of its candidates by cross-validation inside the sales that it is fitted to"

    def __init__(self, plan: list[dict]):
        self.plan = plan

    def fit(self, X: np.ndarray, y: np.ndarray):
        known = parameters()
        parts = members(
            self.plan,
            **{
                name: known[name]
                for name in inspect.signature(members).parameters
                if name in known
            },
        )
        self.model = choose(
            compare(candidates(parts, X, y, known["folds"], known["seed"]), y), parts
        )[1].fit(X, y)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.model.predict(X)


def plain_inputs(plan: list[dict]):  # -> sklearn ColumnTransformer
    "Numbers imputed and scaled, a column for each category"
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    names = categories(plan)
    scaled = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    return ColumnTransformer(
        [("categories", OneHotEncoder(handle_unknown="ignore"), names)],
        remainder=scaled,
    )


def ridge(plan: list[dict]):
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    return make_pipeline(plain_inputs(plan), Ridge(20))


def random_forest(plan: list[dict]):
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(300, random_state=0, n_jobs=2)


def tuned_hgb(plan: list[dict]):
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(**HGB)


def lightgbm(plan: list[dict], **tuning):
    from lightgbm import LGBMRegressor

    return LGBMRegressor(random_state=0, n_jobs=2, verbose=-1, **tuning)


def xgboost(plan: list[dict], **tuning):
    from xgboost import XGBRegressor

    return XGBRegressor(
        random_state=0, n_jobs=2, enable_categorical=True, tree_method="hist", **tuning
    )


def catboost(plan: list[dict], **tuning):
    from catboost import CatBoostRegressor

    return CatBoostRegressor(
        random_seed=0,
        thread_count=2,
        verbose=False,
        allow_writing_files=False,
        cat_features=categories(plan),
        **tuning,
    )


PEERS: dict[str, tuple[str, Model]] = {  # name -> module it needs, how it is made
    "ridge": ("sklearn", ridge),
    "random forest": ("sklearn", random_forest),
    "tuned HistGradientBoosting": ("sklearn", tuned_hgb),
    "default LightGBM": ("lightgbm", lightgbm),
    "default CatBoost": ("catboost", catboost),
    "tuned LightGBM": ("lightgbm", lambda plan: lightgbm(plan, **LIGHTGBM)),
    "tuned XGBoost": ("xgboost", lambda plan: xgboost(plan, **XGBOOST)),
    "tuned CatBoost": ("catboost", lambda plan: catboost(plan, **CATBOOST)),
}


def categories(plan: list[dict]) -> list[str]:
    return [feature["name"] for feature in plan if feature["kind"] == "category"]


def as_frame(
    X: np.ndarray, plan: list[dict]
) -> pd.DataFrame:  # (n_sales, n_features), categories as such
    "The feature matrix as the peers like it"
    frame = pd.DataFrame(X, columns=[feature["name"] for feature in plan])
    return frame.astype(dict.fromkeys(categories(plan), int)).astype(
        dict.fromkeys(categories(plan), "category")
    )


def with_after_sale(contract: Contract) -> Contract:
    "The contract with the columns known only after the sale among the features"
    columns = {
        name: column.model_copy(update={"role": "feature"})
        if column.role == "after_sale"
        else column
        for name, column in contract.columns.items()
    }
    return contract.model_copy(update={"columns": columns})


def load_sales(dataset: str) -> tuple[pd.DataFrame, Contract]:  # typed
    "All sales of a data set, also those that the stage `prepare` would set aside, and its contract"
    contract = load_contract(dataset)
    raw = pd.read_csv(fetch_table(dataset), dtype=str, keep_default_na=False)
    return cast(raw, contract)[0], contract


def ten_folds(n: int) -> list[tuple[np.ndarray, np.ndarray]]:  # train and test rows
    from sklearn.model_selection import KFold

    return list(KFold(10, shuffle=True, random_state=0).split(np.arange(n)))


def in_time(
    months: pd.Series, starts: list[str], end: str = "9999-12"
) -> list[tuple[np.ndarray, np.ndarray]]:  # train and test rows
    "Train before each start, test from it to the next"
    return [
        (np.flatnonzero(months < a), np.flatnonzero((months >= a) & (months < b)))
        for a, b in zip(starts, [*starts[1:], end])
    ]


def out_of_sample(
    model, X, y: np.ndarray, splits: list, label: str
) -> tuple[np.ndarray, float]:  # log price, NaN where not asked; seconds a fit
    "Predictions of each test row by a model that has not seen it"
    found, seconds = np.full(len(y), np.nan), 0.0
    for i, (known, asked) in enumerate(splits, 1):
        progress(f"  {label}, {i} of {len(splits)}")
        start, rows = time.perf_counter(), X.iloc if isinstance(X, pd.DataFrame) else X
        with one_thread():
            fitted = model().fit(rows[known], y[known])
        seconds += time.perf_counter() - start
        found[asked] = fitted.predict(rows[asked])
    progress("")
    return found, seconds / len(splits)


def difference(ours: np.ndarray, theirs: np.ndarray, y: np.ndarray) -> dict[str, str]:
    "Ours less theirs in RMSLE and MAE, with paired bootstrap intervals and a verdict"
    rows = np.random.default_rng(0).integers(0, len(y), (RESAMPLES, len(y)))

    def gap(loss, root):
        pair = [loss(guess) for guess in (ours, theirs)]
        draws, whole = (
            root(pair[0][at].mean(-1)) - root(pair[1][at].mean(-1))
            for at in (rows, slice(None))
        )
        low, high = np.quantile(draws, [0.025, 0.975])
        return whole, low, high, "real" if low > 0 or high < 0 else "luck"

    rmsle, mae = (
        gap(lambda guess: (guess - y) ** 2, np.sqrt),
        gap(lambda guess: np.abs(np.exp(guess) - np.exp(y)), np.asarray),
    )
    return {
        "ours less it, RMSLE": "{:+.4f} [{:+.4f}, {:+.4f}] {}".format(*rmsle),
        "ours less it, MAE": "{:+,.0f} [{:+,.0f}, {:+,.0f}] {}".format(*mae),
    }


def figures(guess: np.ndarray, y: np.ndarray, seconds: float) -> dict[str, str]:
    "RMSLE, MAE and R² of a model"
    error, price = np.exp(guess) - np.exp(y), np.exp(y)
    return {
        "RMSLE": f"{np.sqrt(np.mean((guess - y) ** 2)):.4f}",
        "MAE": f"{np.mean(np.abs(error)):,.0f}",
        "R²": f"{1 - np.sum(error**2) / np.sum((price - price.mean()) ** 2):.3f}",
        "fit": f"{seconds:.1f} s",
    }


def predictions(
    X: np.ndarray,
    y: np.ndarray,
    plan: list[dict],
    splits: list,
    peers: dict[str, tuple[str, Model]],
    ours: Model = our_blend,
) -> dict[str, tuple[np.ndarray, float] | None]:  # name -> log price, seconds
    "Ours and the peers on the same splits; None where a peer is not installed"
    found, frame = (
        {"ours": out_of_sample(lambda: ours(plan), X, y, splits, "ours")},
        as_frame(X, plan),
    )
    for name, (module, make) in peers.items():
        found[name] = (
            out_of_sample(lambda: make(plan), frame, y, splits, name)
            if find_spec(module)
            else None
        )
    if not peers.keys() >= {*BOOSTED}:
        return found
    parts = [found[name] for name in BOOSTED]
    found["blend of the tuned three"] = (
        (
            np.mean([guess for guess, _ in parts], axis=0),
            sum(seconds for _, seconds in parts),
        )
        if all(parts)
        else None
    )
    return found


def report(title: str, found: dict, y: np.ndarray) -> None:
    "Print a table: ours, the peers, and how far ours is ahead"
    asked = ~np.isnan(found["ours"][0])
    ours, table = found["ours"][0][asked], {}
    for name, pair in found.items():
        if pair is None:
            table[name] = {"RMSLE": "not installed"}
        else:
            table[name] = figures(pair[0][asked], y[asked], pair[1]) | (
                difference(ours, pair[0][asked], y[asked]) if name != "ours" else {}
            )
    print(
        f"\n{title}: {asked.sum():,} sales\n{pd.DataFrame(table).T.fillna('').to_string()}",
        flush=True,
    )


def ames(
    title: str,
    splits_of: Callable[[pd.DataFrame, Contract], list],
    peers: dict[str, tuple[str, Model]],
) -> None:
    "A protocol on Ames: ours and the peers with the type of the sale, and ours without it"
    sales, contract = load_sales("ames")
    full, splits = with_after_sale(contract), splits_of(sales, contract)
    X, y = training_arrays(sales, full)
    found = predictions(X, y, feature_plan(full), splits, peers)
    before, _ = training_arrays(sales, contract)
    found["ours, known before the sale"] = out_of_sample(
        lambda: our_blend(feature_plan(contract)),
        before,
        y,
        splits,
        "ours, known before the sale",
    )
    report(title, found, y)


def windsor(peers: dict[str, tuple[str, Model]]) -> None:
    "Ten folds on Windsor; ours is what the stage would choose inside each fold's training sales"
    sales, contract = load_sales("windsor")
    X, y = training_arrays(sales, contract)
    report(
        "Windsor, ten folds",
        predictions(X, y, feature_plan(contract), ten_folds(len(y)), peers, Chosen),
        y,
    )


def quarters() -> list[str]:
    return [str(month) for month in pd.period_range("2009-01", "2010-07", freq="3M")]


def missing_modules(peers: dict[str, tuple[str, Model]]) -> list[str]:
    """Return the modules that the peers need and this environment has not."""
    return sorted({module for module, _ in peers.values() if not find_spec(module)})


def split_in_time(sales: pd.DataFrame, contract: Contract) -> list:
    """Return one split: train before 2009-01, test from then on."""
    return in_time(sale_months(sales, contract), ["2009-01"])


def split_by_quarter(sales: pd.DataFrame, contract: Contract) -> list:
    """Return a split for each quarter from 2009: train on all sales before it."""
    return in_time(sale_months(sales, contract), quarters())


def split_in_folds(sales: pd.DataFrame, contract: Contract) -> list:
    """Return the ten folds."""
    return ten_folds(len(sales))


AMES = {  # protocol -> its title, how the sales are split
    "split": ("Ames, one split in time", split_in_time),
    "rolling": ("Ames, rolling origin", split_by_quarter),
    "folds": ("Ames, ten folds", split_in_folds),
}


def run_protocol(name: str, peers: dict[str, tuple[str, Model]]) -> None:
    """Fit ours and the peers as a protocol says, and print the table."""
    if name == "windsor":
        windsor(peers)
    else:
        ames(*AMES[name], peers)
