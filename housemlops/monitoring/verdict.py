"""Come to a verdict about the champion from a window of the newest sales."""

import numpy as np
import pandas as pd

from housemlops.contract import Contract
from housemlops.drift import (
    NO_ALARM,
    RULES,
    drift_checks,
    error_checks,
    finite,
    judge_differences,
    make_check,
    rule_sentence,
)

EMPTY_VERDICT = {
    "alarm": False,
    "retrain": False,
    "rows": 0,
    "labelled": 0,
    "tested": 0,
    "naive": 0,
    "drifted": [],
    "mae": None,
    "mae_low": None,
    "mae_high": None,
    "currency": None,
    "expected_mae": None,
    "mae_ratio": None,
    "coverage": None,
    "level": None,
    "checks": [],
    "months": [],
    "model": None,
    "version": None,
    "model_sha256": None,
    "champion_as_of": None,
}


def data_quality_checks(
    current: pd.DataFrame, contract: Contract, quarantined: int, most: float
) -> list[dict]:
    """Compare the shares of sales in quarantine and of unknown categories with a limit.

    Args:
        current: Sales of the window, typed.
        contract: Of the data set.
        quarantined: Sales of the window that `prepare` set aside.
        most: Largest share.
    """
    arrived = len(current) + quarantined
    reason = f"{quarantined} of {arrived} sales are in quarantine"
    checks = [share_check(None, quarantined / max(arrived, 1), most, reason)]
    for name in contract.named("feature"):
        categories = contract.columns[name].categories
        values = current[name].dropna()
        unknown = values[~values.isin(categories or ())]
        if categories and len(unknown):
            share = len(unknown) / len(current)
            example = unknown.value_counts().sort_index().idxmax()
            reason = (
                f"{share:.0%} of the sales have an unknown {name}, such as {example!r}"
            )
            checks.append(share_check(name, share, most, reason))
    return checks


def share_check(column: str | None, share: float, most: float, reason: str) -> dict:
    """Return a check of data quality that compares a share with its limit."""
    passed = not RULES["unexpected values"].broken(share, most)
    return make_check(
        "data quality",
        "limit",
        reason,
        most,
        column=column,
        effect=share,
        passed=passed,
    )


def age_checks(month: str | None, as_of: str, most: int) -> list[dict]:
    """Compare the champion's age with its limit, where sales have dates.

    Args:
        month: The newest, such as "2010-07".
        as_of: First month that the champion was not trained on.
        most: Months.
    """
    if month is None:
        return []
    age = (pd.Period(month, "M") + 1 - pd.Period(as_of, "M")).n
    reason = f"the champion was trained {age} months ago, {most} are allowed"
    passed = not RULES["age"].broken(age, most)
    return [
        make_check(
            "age", "limit", reason, float(most), effect=float(age), passed=passed
        )
    ]


def rule_of(check: dict) -> str:
    """Return the name of the rule that judges a check, a key of `RULES`."""
    if check["name"] != "data quality":
        return check["name"]
    return "unexpected values" if check["test"] == "limit" else "missing"


def deciding_rule(
    rows: int, has_newest: bool, failed: list[str], judged: bool, min_rows: int
) -> str:
    """Return the name of the first broken rule, or "ok".

    Args:
        rows: Number of sales.
        has_newest: Whether some are of the newest month.
        failed: Names of the rules that checks have broken.
        judged: Whether the errors could be judged.
        min_rows: Sales that are needed.
    """
    if RULES["too few"].broken(rows, has_newest, min_rows):
        return "too few"
    for name in RULES:
        if name in failed:
            return name
    return "unknown errors" if RULES["unknown errors"].broken(judged) else "ok"


def consequences(verdict: str, complete: bool) -> tuple[bool, bool]:
    """Return whether a verdict is an alarm, and whether it asks for a retraining."""
    alarm = verdict not in NO_ALARM
    return alarm, alarm and complete and verdict != "data quality"


def prediction_errors(prices: pd.Series, answers: pd.DataFrame) -> pd.DataFrame:
    """Return the errors of answers, missing where the price is not known.

    Args:
        prices: Money, indexed as `answers`.
        answers: Columns as in `answers.ANSWER_COLUMNS`.

    Returns:
        The answers with two more columns: error (absolute, money) and inside (1 when
        the price lies within the interval, else 0).
    """
    inside = prices.between(answers["low"], answers["high"]).astype(float)
    return answers.assign(
        error=(answers["price"] - prices).abs(), inside=inside.where(prices.notna())
    )


def monthly_figures(errors: pd.DataFrame) -> list[dict]:
    """Return the rows and errors of each month, as far as prices are known.

    Args:
        errors: From `prediction_errors`.
    """
    figures = []
    for month, part in errors.groupby("month"):
        known = part[part["error"].notna()]
        mae, coverage = known["error"].mean(), known["inside"].mean()
        figures.append(
            {
                "month": month or None,
                "rows": len(part),
                "labelled": len(known),
                "mae": float(mae) if len(known) else None,
                "coverage": float(coverage) if len(known) else None,
                "version": int(part["version"].mode().max()),
            }
        )
    return figures


def judge_errors(
    errors: pd.DataFrame, champion: dict, limits: dict
) -> tuple[dict, list[dict]]:
    """Judge the errors of the champion's own answers.

    Args:
        errors: From `prediction_errors`.
        champion: From `read_champion`.
        limits: The section `monitor` of params.yaml.

    Returns:
        Figures and checks. Where the errors cannot be judged, the figures are those of
        all answers, earlier champions' included.
    """
    known = errors[errors["error"].notna()]
    own = known[known["model_sha256"] == champion["model_sha256"][:12]]
    figures, checks = error_checks(
        own["error"].to_numpy(), own["inside"].to_numpy(), champion, limits
    )
    if len(known) and not figures:
        figures = {
            "mae": float(known["error"].mean()),
            "coverage": float(known["inside"].mean()),
        }
    return figures, checks


def explain(
    checks: list[dict],
    failed: list[dict],
    compared: list[dict],
    rows: int,
    min_rows: int,
    missing_month: str,
) -> list[str]:
    """Return the reasons of a verdict as sentences, the most important first.

    Args:
        checks: All; the first is that of the errors.
        failed: In the order of the rules.
        compared: Checks that compare a column.
        rows: Number of sales.
        min_rows: Sales that are needed.
        missing_month: The newest month, when it has no sales, else "".
    """
    reasons = []
    if rows < min_rows:
        reasons.append(f"{rows} sales are too few to judge, {min_rows} are asked")
    elif missing_month:
        reasons.append(f"there is no sale of {missing_month}")
    reasons += [check["reason"] for check in failed]
    if not failed:
        reasons.append(checks[0]["reason"])
        if compared:
            reasons.append(f"none of {len(compared)} comparisons is an alarm")
    return reasons


def judge(
    reference: pd.DataFrame,
    reference_prices: np.ndarray,
    current: pd.DataFrame,
    answers: pd.DataFrame,
    contract: Contract,
    champion: dict,
    limits: dict,
    month: str | None = None,
    complete: bool = True,
    why: str = "",
    quarantined: int = 0,
) -> dict:
    """Judge the champion by the sales of a window.

    Args:
        reference: Sales that the champion learned from, typed.
        reference_prices: The champion's predictions for them.
        current: Sales of the window, typed; the target is missing where it is not known.
        answers: Columns as in `answers.ANSWER_COLUMNS`, indexed as `current`.
        contract: Of the data set.
        champion: From `read_champion`.
        limits: The section `monitor` of params.yaml.
        month: The newest of the window, None where sales have no dates.
        complete: Whether all sales of that month have arrived.
        why: The reason when they have not.
        quarantined: Sales of the window that `prepare` set aside.

    Returns:
        The content of verdict.json.
    """
    rows, min_rows = len(current), limits["min_rows"]
    errors = prediction_errors(finite(current[contract.target]), answers)
    figures, checks = judge_errors(errors, champion, limits)
    judged = checks[0]["passed"] is not None
    checks += data_quality_checks(current, contract, quarantined, limits["max_misfits"])
    checks += age_checks(month, champion["champion_as_of"], limits["max_age_months"])
    if rows >= min_rows:
        checks += drift_checks(
            reference,
            reference_prices,
            current,
            answers["price"].to_numpy(),
            contract,
            limits["min_effect"],
            min_rows,
        )
    checks = judge_differences(checks, limits["alpha"])
    compared = [check for check in checks if check["p"] is not None and check["column"]]
    failed = [check for check in checks if check["passed"] is False]
    failed.sort(key=lambda check: list(RULES).index(rule_of(check)))
    has_newest = month is None or month in set(answers["month"])
    broken = [rule_of(check) for check in failed]
    rule = deciding_rule(rows, has_newest, broken, judged, min_rows)
    verdict = RULES[rule].verdict
    missing_month = "" if has_newest else month
    reasons = explain(checks, failed, compared, rows, min_rows, missing_month)
    if not complete:
        reasons.append(f"{month} is incomplete" + (f": {why}" if why else ""))
    alarm, retrain = consequences(verdict, complete)
    drifted = [check["column"] for check in failed if check in compared]
    return {
        "month": month,
        "complete": complete,
        "verdict": verdict,
        "rule": rule_sentence(rule, limits),
        "reasons": reasons,
        **EMPTY_VERDICT,
        **champion,
        **figures,
        "alarm": alarm,
        "retrain": retrain,
        "rows": rows,
        "labelled": int(errors["error"].notna().sum()),
        "tested": len(compared),
        "naive": sum(check["p"] < limits["alpha"] for check in compared),
        "drifted": list(dict.fromkeys(drifted)),
        "checks": checks,
        "months": monthly_figures(errors),
    }
