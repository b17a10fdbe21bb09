"""Monitoring: a month that says nothing is never a pass, a month that is like the others is seldom an alarm, and no house is asked about twice."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from housemlops import drift, monitor
from housemlops.contract import load_contract, sale_months
from housemlops.monitoring import answers as sale_answers
from housemlops.monitoring import verdict as verdicts
from housemlops.prediction_log import PredictionLog
from housemlops.prepare import sort_out, split_at_random
from housemlops.settings import WorkbookError, repo_root

LIMITS = YAML(typ="safe").load((repo_root() / "params.yaml").read_text())["monitor"]
SHA256 = "0" * 64


def answers(sales, contract, seed=0):
    "Of an imagined champion: ten percent beside the truth, in intervals that hold nine prices in ten"
    prices = sales[contract.target] * np.exp(
        np.random.default_rng(seed).normal(0, 0.1, len(sales))
    )
    when = sale_months(sales, contract)
    return pd.DataFrame(
        {
            "month": "" if when is None else when,
            "sale": "",
            "price": prices,
            "low": prices * np.exp(-0.165),
            "high": prices * np.exp(0.165),
            "version": 1,
            "model_sha256": SHA256[:12],
        },
        index=sales.index,
    )


class World:
    "A ledger, what a champion learned from, and a window of sales that it has not seen"

    def __init__(
        self, ledgers: Path, dataset: str, as_of: str = "2010-07", delay: int = 1
    ):
        self.contract, path = load_contract(dataset), ledgers / f"{dataset}.csv"
        raw = pd.read_csv(path, dtype=str, keep_default_na=False)
        raw.index.name = "row"
        sales = sort_out(raw, self.contract)[0]
        when = sale_months(sales, self.contract)
        if when is None:
            newest = split_at_random(len(sales), 0.2, 0)
            self.month, self.reference, self.current = (
                None,
                sales[~newest],
                sales[newest],
            )
        else:
            self.month, self.reference = (
                str(pd.Period(as_of, "M") - 1),
                sales[when < str(pd.Period(as_of, "M") - 12)],
            )
            self.current = monitor.current_sales(
                sales[when < as_of], self.contract, as_of, LIMITS["months"], delay
            )
        self.then = answers(self.reference, self.contract, 1)["price"].to_numpy()
        told = answers(sales, self.contract)
        self.answers = told.loc[self.current.index]
        self.champion = {
            "model": "imagined",
            "version": 1,
            "model_sha256": SHA256,
            "champion_as_of": as_of,
            "level": 0.9,
            "expected_mae": float(
                (told["price"] - sales[self.contract.target]).abs().mean()
            ),
        }

    def judge(self, current=None, answers=None, **also) -> dict:
        current = self.current if current is None else current
        answers = self.answers.loc[current.index] if answers is None else answers
        given = {"month": self.month} | also
        result = verdicts.judge(
            self.reference,
            self.then,
            current,
            answers,
            self.contract,
            self.champion,
            given.pop("limits", LIMITS),
            **given,
        )
        json.dumps(result, allow_nan=False)  # what is written must be JSON
        assert (
            result["reasons"]
            and all(result["reasons"])
            and {*verdicts.EMPTY_VERDICT} <= {*result}
        )
        assert (
            result["alarm"] == (result["verdict"] not in ("ok", "insufficient data"))
            and result["retrain"] <= result["alarm"]
        )
        return result

    def checks(self, result, **wanted):
        return [
            item
            for item in result["checks"]
            if all(item[name] == value for name, value in wanted.items())
        ]


@pytest.fixture(scope="module")
def ames(ledgers):
    return World(ledgers, "ames")


@pytest.fixture(scope="module")
def windsor(ledgers):
    return World(ledgers, "windsor")


@pytest.mark.slow
def test_a_month_like_the_others_is_no_alarm(ames, windsor):
    for world in (ames, windsor):
        result = world.judge()
        assert (
            result["verdict"] == "ok"
            and not result["alarm"]
            and result["drifted"] == []
        ), result["reasons"]
        assert result["labelled"] <= result["rows"] == len(world.current)
    assert ames.judge()["naive"] > 0, "without correction there is always something"
    assert (
        windsor.judge()["months"] == [] or windsor.judge()["months"][0]["month"] is None
    )


@pytest.mark.slow
def test_a_bootstrap_of_the_month_is_seldom_an_alarm(ames):
    random, alarms = np.random.default_rng(0), 0
    for _ in range(100):
        taken = random.integers(len(ames.current), size=len(ames.current))
        alarms += ames.judge(
            *(
                table.iloc[taken].reset_index(drop=True)
                for table in (ames.current, ames.answers)
            )
        )["alarm"]
    print(f"{alarms} alarms in 100 bootstraps of an unshifted month")
    assert alarms <= 5


def test_too_little_is_never_a_pass(ames):
    for rows in (0, 1, LIMITS["min_rows"] - 1):
        result = ames.judge(ames.current[:rows])
        assert (result["verdict"], result["rows"]) == (
            "insufficient data",
            rows,
        ) and str(rows) in result["reasons"][0]
    newest = sale_months(ames.current, ames.contract) == ames.month
    result = ames.judge(ames.current[~newest])
    assert (
        result["verdict"] == "insufficient data"
        and f"there is no sale of {ames.month}" in result["reasons"]
    )


def test_without_prices_errors_are_not_judged(ames):
    blind = ames.current.assign(**{ames.contract.target: np.nan})
    result = ames.judge(blind)
    assert (
        result["verdict"] == "insufficient data"
        and result["mae"] is None
        and "errors are not judged" in result["reasons"][0]
    )
    assert ames.checks(result, name="regression quality")[0][
        "passed"
    ] is None and not ames.checks(result, name="target drift")
    others = ames.judge(answers=ames.answers.assign(model_sha256="an older one"))
    assert (
        others["verdict"] == "insufficient data"
        and others["mae"]
        and others["mae_ratio"] is None
    ), "the answers of another champion say nothing about this one"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_missing_or_infinite_is_bad_data(ames, value):
    result = ames.judge(ames.current.assign(area=value))
    assert (
        result["verdict"] == "data quality"
        and not result["retrain"]
        and "area: 100% are missing" in result["reasons"][0]
    )
    assert not ames.checks(result, name="input drift", column="area")


def test_whatever_is_missing_there_is_a_verdict(ames, windsor):
    for world in (ames, windsor):
        assert world.judge(
            world.current.assign(
                **dict.fromkeys(world.contract.named("feature"), np.nan)
            )
        )["alarm"]
        coded = next(
            name
            for name in world.contract.named("feature")
            if world.contract.columns[name].categories
        )
        assert world.judge(world.current.assign(**{coded: None}))["alarm"]


def test_unknown_categories_and_quarantine_are_limits(ames):
    some = ames.current.index[: len(ames.current) // 8]
    changed = ames.current.copy()
    changed.loc[some, "Neighborhood"] = "Atlantis"
    result = ames.judge(changed)
    assert (
        result["verdict"] == "data quality"
        and "an unknown Neighborhood, such as 'Atlantis'" in result["reasons"][0]
    )
    assert ames.judge(quarantined=1)["verdict"] == "ok"
    assert ames.judge(quarantined=len(ames.current))["verdict"] == "data quality"


def test_each_kind_of_drift_is_caught_by_its_check(ames):
    known = ames.current[ames.contract.target]
    dearer = ames.judge(ames.current.assign(**{ames.contract.target: known * 1.4}))
    assert (
        dearer["verdict"] == "degraded"
        and ames.contract.target in dearer["drifted"]
        and dearer["retrain"]
    )
    assert not ames.checks(dearer, name="input drift", passed=False), (
        "inflation cannot be seen in the inputs"
    )
    metres = ames.judge(ames.current.assign(area=ames.current["area"] * 0.0929))
    assert (metres["verdict"], metres["drifted"]) == (
        "drift",
        ["area"],
    ) and "area: the median is" in metres["reasons"][0]
    large = ames.current[ames.answers["price"] > np.median(ames.then)]
    assert "prediction" in ames.judge(large)["drifted"]
    narrow = ames.judge(
        answers=ames.answers.assign(
            low=ames.answers["price"] * 0.97, high=ames.answers["price"] * 1.03
        )
    )
    assert (
        narrow["verdict"] == "degraded"
        and narrow["mae_ratio"] < 1.25
        and "promise 90%" in narrow["reasons"][0]
    )


def test_age_and_incomplete_months(ames):
    ames.champion["champion_as_of"] = "2009-01"
    try:
        old, partly = ames.judge(), ames.judge(complete=False, why="8 sales")
    finally:
        ames.champion["champion_as_of"] = "2010-07"
    assert old["verdict"] == "old champion" and old["retrain"] and not partly["retrain"]
    assert f"{ames.month} is incomplete: 8 sales" in partly["reasons"]


def test_a_price_that_is_not_known_yet_changes_nothing(ledgers):
    late, early = (
        World(ledgers, "ames", "2009-06", 2),
        World(ledgers, "ames", "2009-06", 0),
    )
    when = sale_months(early.current, early.contract)
    assert late.current[late.contract.target].isna().equals(when >= "2009-04")
    keys = [
        [
            sale_answers.sale_key(request)
            for request in sale_answers.sale_requests(world.current, world.contract)
        ]
        for world in (late, early)
    ]
    assert keys[0] == keys[1] and len({*keys[0]}) > 0.9 * len(keys[0])


def test_correction_is_holms():
    p = np.random.default_rng(0).uniform(size=50)
    by_hand = [max((50 - sorted(p).index(q)) * q for q in p if q <= one) for one in p]
    np.testing.assert_allclose(drift.holm_correction(p), np.minimum(by_hand, 1))
    assert drift.holm_correction(np.array([])).size == 0


@pytest.fixture
def build(sample, tmp_path) -> Path:
    "A copy of the outputs of all stages"
    return shutil.copytree(sample.build, tmp_path / "build")


@pytest.fixture
def watch(build, tmp_path):
    "Monitor a build with a prediction log of its own"
    limits, none = (
        LIMITS | {"min_rows": 10},
        pd.DataFrame(columns=[*sale_answers.ANSWER_COLUMNS]),
    )

    def watch(given=none):
        return monitor.monitor_champion(
            build, "sample", 1, limits, given, f"sqlite:///{tmp_path}/predictions.db"
        )

    return watch


def asked(tmp_path):
    return [
        row["inputs"]
        for row in PredictionLog(f"sqlite:///{tmp_path}/predictions.db").read()
    ]


@pytest.mark.slow
def test_no_house_is_asked_about_twice(watch, build, tmp_path):
    def written():
        return {path.name: path.read_bytes() for path in (build / "monitor").iterdir()}

    first, files = watch(), written()
    assert len(asked(tmp_path)) == first["rows"]
    again = watch()
    assert (
        again == first and written() == files and len(asked(tmp_path)) == first["rows"]
    ), "the same bytes, and no new question"
    given = sale_answers.read_earlier_answers(build / "monitor/predictions.csv")
    (tmp_path / "predictions.db").unlink()
    assert watch(given) == first and written() == files
    assert not (tmp_path / "predictions.db").exists(), "all had been answered before"
    watch(given[3:])
    assert (
        len(asked(tmp_path)) == 3
        and written()["predictions.csv"] == files["predictions.csv"]
    )


@pytest.mark.slow
def test_a_kill_between_two_answers_costs_no_answer(
    watch, build, tmp_path, monkeypatch
):
    real, count = sale_answers.ask, []

    def killed(*question, **options):
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        return real(*question, **options)

    monkeypatch.setattr(sale_answers, "ask", killed)
    with pytest.raises(KeyboardInterrupt):
        watch()
    assert len(asked(tmp_path)) == 3
    monkeypatch.setattr(sale_answers, "ask", real)
    assert len(asked(tmp_path)) < watch()["rows"] == len(asked(tmp_path))


@pytest.mark.slow
def test_without_a_champion_there_is_a_verdict_and_a_page(watch, build):
    shutil.rmtree(build / "serve")
    (build / "serve/model").mkdir(parents=True)
    (build / "serve/model/release.json").write_text('{"version": null}')
    result = watch()
    assert (result["verdict"], result["alarm"], result["retrain"]) == (
        "no champion",
        False,
        False,
    )
    assert "no champion" in (build / "monitor/report.html").read_text() and {
        *verdicts.EMPTY_VERDICT
    } <= {*result}


@pytest.mark.slow
def test_a_server_that_refuses_is_a_sentence(watch, build, monkeypatch):
    monkeypatch.setattr(
        sale_answers, "ask", lambda *_, **__: (422, {"detail": [{"msg": "too small"}]})
    )
    with pytest.raises(WorkbookError, match="refused a sale"):
        watch()


@pytest.mark.slow
@pytest.mark.browser
def test_the_report_is_small_and_opens_without_a_network(watch, build, browser):
    watch()
    report, wrong = build / "monitor/report.html", []
    assert report.stat().st_size < 2_500_000
    page = browser.new_page()
    page.on(
        "console",
        lambda message: wrong.append(message.text) if message.type == "error" else None,
    )
    page.on(
        "request",
        lambda request: (
            wrong.append(request.url)
            if not request.url.startswith(("file:", "data:", "blob:"))
            else None
        ),
    )
    page.goto(f"file://{report}")
    page.frame_locator("iframe").get_by_text("prediction", exact=True).wait_for()
    assert not wrong
    page.close()
