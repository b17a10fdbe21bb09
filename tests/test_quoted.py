"Figures that the README quotes and that can be told without a run are still true."

import re

import pytest

from housemlops.contract import load_contract
from housemlops.ingest import known_at, read_ledger
from housemlops.model.gates import limit_text
from housemlops.pipeline.graph import graph, pipeline
from housemlops.prepare import sort_out, split
from housemlops.settings import params, repo_root

ROOT = repo_root()
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_limits_of_the_gates():
    chosen = params(ROOT)["evaluate"]
    asked = {
        **chosen["thresholds"]["ames"],
        "gain": chosen["min_gain"],
        "slice": chosen["max_slice_ratio"],
    }
    quoted = dict(
        re.findall(
            r"│ ([A-Z0-9]+)\s+│ [\d.,]+\s+│ ([\d.,]+(?: to [\d.,]+)?)\s+│ passed",
            README,
        )
    )
    assert quoted == {name.upper(): limit_text(limit) for name, limit in asked.items()}


def test_the_stages():
    rows = re.findall(r"^\| \[(\w+)\]\(nbs/\w+\.ipynb\) \|", README, re.MULTILINE)
    assert rows == [*graph(pipeline(ROOT))]


@pytest.mark.parametrize(
    "page, figure",
    [
        ("evidence", "0.1087"),
        ("evidence", "11,988"),
        ("evidence", "0.1110"),
        ("evidence", "12,471"),
        ("why-serving", "4,787"),
        ("why-monitoring", "31 months"),
        ("cost-and-scale", "1.4 GB"),
        ("cost-and-scale", "4 GB"),
    ],
)
def test_measured_figures_are_those_of_the_site(page, figure):
    text = (ROOT / f"nbs/site/pages/{page}.md").read_text(encoding="utf-8")
    assert figure in README and figure in text


def test_local_links_lead_to_files():
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(linked) > 10
    assert [path for path in linked if not (ROOT / path).exists()] == []


@pytest.mark.slow
def test_how_many_sales(ledgers):
    "All of them, and those that the README's errors are of"
    chosen, contract = params(ROOT), load_contract("ames")
    ledger = read_ledger(ledgers / "ames.csv")
    assert f"on all {len(ledger):,} Ames sales" in README
    sound, _, _ = sort_out(known_at(ledger, contract, chosen["as_of"]), contract)
    _, test = split(
        sound,
        contract,
        *(chosen["prepare"][name] for name in ("test_months", "test_fraction", "seed")),
    )
    assert f"on the {len(test)} sales of the last twelve months" in README
