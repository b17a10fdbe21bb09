"The rules of the monthly verdict as a table of cases: what is found, and the verdict, the alarm and the reasons that follow."

import numpy as np
import pandas as pd
import pytest

from housemlops import drift
from housemlops.contract import Contract
from housemlops.monitoring import verdict as verdicts
from housemlops.operations.history import AGE_AGAIN, raises_alarm
from housemlops.settings import params, repo_root

PAGE = (repo_root() / "nbs/site/pages/why-monitoring.md").read_text(encoding="utf-8")
LIMITS = params()["monitor"]
SHA256 = "0" * 64
EXPECTED = 10_000.0
SENTENCES = {
    verdict: rows["when"].tolist()
    for verdict, rows in drift.rules_table(LIMITS).groupby(level=0)
}


def contract() -> Contract:
    "A town whose houses have an area and a view."
    words = {"description": "of the house"}
    return Contract(
        name="town",
        title="A town",
        source="made up",
        currency="USD",
        target="price",
        columns={
            "price": words | {"role": "target", "type": "number", "required": True},
            "area": words | {"type": "number"},
            "view": words | {"type": "category", "categories": ("lake", "road")},
        },
    )


def month_of(
    rows: int = 200,
    error: float = 1.0,  # MAE over that of the test
    inside: float = 0.9,  # share of prices within the intervals
    area: float = 1.0,  # factor
    strange: float = 0.0,  # share of an unknown view
    empty: float = 0.0,  # share without an area
    known: bool = True,  # whether prices are
    **also,
) -> dict:
    "Judge a month with these properties."
    random = np.random.default_rng(0)
    spread = random.lognormal(0, 0.2, 1000)
    reference = pd.DataFrame(
        {"price": 200_000 * spread, "area": 1500 * spread, "view": "lake"}
    )
    now = reference.iloc[np.linspace(0, 999, rows).astype(int)].reset_index(drop=True)
    now["area"] *= area
    now.loc[: int(strange * rows) - 1, "view"] = "volcano"
    now.loc[: int(empty * rows) - 1, "area"] = np.nan
    sign = np.where(np.arange(rows) % 2, 1, -1)
    answers = pd.DataFrame({"price": now["price"] + sign * error * EXPECTED})
    held = np.arange(rows) < inside * rows
    answers["low"] = now["price"] - np.where(held, 1, -1)
    answers["high"] = now["price"] + np.where(held, 1, 2)
    answers = answers.assign(
        month=also.pop("newest", "2010-07"), version=1, model_sha256=SHA256[:12]
    )
    if not known:
        now["price"] = np.nan
    champion = {
        "version": 1,
        "model_sha256": SHA256,
        "champion_as_of": also.pop("trained", "2010-01"),
        "expected_mae": EXPECTED,
        "level": 0.9,
    }
    then = reference["price"] + EXPECTED * np.where(np.arange(1000) % 2, 1, -1)
    return verdicts.judge(
        reference,
        then.to_numpy(),
        now,
        answers,
        contract(),
        champion,
        LIMITS,
        month="2010-07",
        **also,
    )


RATIO, MISFITS, AGE = (
    LIMITS[name] for name in ("max_mae_ratio", "max_misfits", "max_age_months")
)
CASES = {
    # what is found: verdict, alarm, asks for a retraining, words of the first reason
    "a usual month": ({}, "ok", False, False, "1.00 times"),
    "29 sales": ({"rows": 29}, "insufficient data", False, False, "29 sales are too"),
    "30 sales": ({"rows": 30}, "ok", False, False, "1.00 times"),
    "no sale of the month": (
        {"newest": "2010-06"},
        "insufficient data",
        False,
        False,
        "there is no sale of 2010-07",
    ),
    "no price known": (
        {"known": False},
        "insufficient data",
        False,
        False,
        "errors are not judged",
    ),
    "MAE at the limit": ({"error": RATIO}, "ok", False, False, "1.25 times"),
    "MAE above it": (
        {"error": RATIO + 0.05},
        "degraded",
        True,
        True,
        "1.30 times the 10,000",
    ),
    "intervals too narrow": (
        {"inside": 0.7},
        "degraded",
        True,
        True,
        "70% of the prices lie within intervals that promise 90%",
    ),
    "intervals a little too narrow": ({"inside": 0.86}, "ok", False, False, ""),
    "larger houses": ({"area": 1.5}, "drift", True, True, "area: the median is"),
    "slightly larger houses": ({"area": 1.01}, "ok", False, False, ""),
    "an unknown view, often": (
        {"strange": MISFITS + 0.05},
        "data quality",
        True,
        False,
        "10% of the sales have an unknown view, such as 'volcano'",
    ),
    "an unknown view, seldom": ({"strange": MISFITS}, "ok", False, False, ""),
    "many in quarantine": (
        {"quarantined": 20},
        "data quality",
        True,
        False,
        "20 of 220 sales are in quarantine",
    ),
    "an area is often missing": (
        {"empty": 0.5},
        "data quality",
        True,
        False,
        "area: 50% are missing",
    ),
    "12 months old": ({"trained": "2009-08"}, "ok", False, False, ""),
    "13 months old": (
        {"trained": "2009-07"},
        "old champion",
        True,
        True,
        f"13 months ago, {AGE} are allowed",
    ),
    "old, and the month is incomplete": (
        {"trained": "2009-07", "complete": False, "why": "8 sales"},
        "old champion",
        True,
        False,
        "13 months ago",
    ),
    "old and degraded": (
        {"trained": "2009-07", "error": 2},
        "degraded",
        True,
        True,
        "2.00 times",
    ),
    "degraded and misfits": (
        {"strange": 0.5, "error": 2},
        "data quality",
        True,
        False,
        "unknown view",
    ),
    "29 sales, old and degraded": (
        {"rows": 29, "trained": "2009-07", "error": 2},
        "insufficient data",
        False,
        False,
        "29 sales are too few",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_case_of_the_rules(name):
    found, verdict, alarm, retrain, words = CASES[name]
    result = month_of(**found)
    told = (result["verdict"], result["alarm"], result["retrain"])
    assert told == (verdict, alarm, retrain), result["reasons"]
    assert words in result["reasons"][0]
    assert result["rule"] in SENTENCES[verdict], "the rule in words is of this verdict"


@pytest.mark.parametrize(
    "mae, low, broken",
    [
        (1.26, 1.01, True),  # large, and not by chance
        (1.26, 0.99, False),  # large, and its interval reaches down to the promise
        (1.25, 1.20, False),  # at the limit
        (1.24, 1.20, False),  # certain, and not large enough
    ],
)
def test_what_an_interval_above_it_means(mae, low, broken):
    "Above the MAE of the test split, not above the limit: the sentence says so."
    rule = drift.RULES["regression quality"]
    assert rule.broken(mae, low, 1.0, LIMITS["max_mae_ratio"]) == broken
    assert rule.sentence.endswith(
        "the lower end of its interval is above that of the test split"
    )


OLD = {"verdict": "old champion", "version": 1, "alarm": True}


@pytest.mark.parametrize(
    "verdict, asked, earlier, raised",
    [
        (OLD, True, [], True),
        (OLD, False, [], True),
        (OLD, False, [OLD], False),
        (OLD, True, [OLD, OLD], True),
        (OLD | {"version": 2}, False, [OLD], True),
        (OLD, False, [OLD, {"verdict": "ok", "alarm": False}], False),
        ({"verdict": "drift", "version": 1, "alarm": True}, False, [OLD], True),
        ({"verdict": "ok", "version": 1, "alarm": False}, False, [OLD], False),
    ],
)
def test_an_alarm_for_age_is_raised_once(verdict, asked, earlier, raised):
    assert raises_alarm(verdict, asked, earlier) == raised


def test_every_check_has_a_rule_and_every_rule_a_case():
    for name in CASES:
        for item in month_of(**CASES[name][0])["checks"]:
            assert verdicts.rule_of(item) in drift.RULES
    known = {rule.verdict for rule in drift.RULES.values()}
    assert known - {case[1] for case in CASES.values()} == {
        "no champion",  # tests/test_monitor.py
        "target drift",  # below: errors are seen first
    }


def test_prices_alone_are_seen_last():
    names = [*drift.RULES]
    order = verdicts.deciding_rule(200, True, ["age", "target drift"], True, 30)
    assert order == "target drift" and names.index(order) < names.index("age")


def test_the_site_prints_the_rules():
    for verdict, sentences in SENTENCES.items():
        for sentence in sentences:
            assert f"| {verdict} | {sentence} |" in PAGE
    for sentence in (drift.ALARM, drift.RETRAIN, AGE_AGAIN):
        assert sentence in PAGE.replace("\n", " ")
