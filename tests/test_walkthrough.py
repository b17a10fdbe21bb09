"""The contributor's page, executed as it stands: its commands are typed and its files are written in a fresh clone, in the order of the page."""

import json
import re
import subprocess

import pandas as pd
import pytest
from ruamel.yaml import YAML

from checkout import ROOT, clone
from housemlops.pipeline.graph import graph, loops, pipeline
from housemlops.site.lifecycle_picture import lifecycle_svg
from housemlops.site.package_picture import read_layers

pytestmark = pytest.mark.timeout(1800)  # the whole page, in a fixture

BLOCK = re.compile(
    r"^```(?:\{code-block\} )?(sh|yaml|python)\n(?::caption: (\S+)\n\n)?(.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PAGE = BLOCK.findall(
    (ROOT / "nbs/site/pages/contribute.md").read_text(encoding="utf-8")
)


def merged(old, new):
    "What a reader does who writes the lines of `new` into a file"
    for key, value in new.items():
        old[key] = (
            merged(old[key], value) if isinstance(value, dict) and key in old else value
        )
    return old


def notebook(text):
    "The cells that a reader makes of a listing"
    cells = []
    for i, part in enumerate(re.split(r"(?m)^# %%", text)[1:]):
        head, body = part.split("\n", 1)
        tags = re.findall(r'tags=\["(\w+)"\]', head)
        cell = {
            "id": f"cell-{i}",
            "metadata": {"tags": tags} if tags else {},
            "source": body.strip("\n"),
        }
        if "[markdown]" in head:
            cells.append(
                cell
                | {
                    "cell_type": "markdown",
                    "source": re.sub(r"(?m)^# ?", "", cell["source"]),
                }
            )
        else:
            cells.append(
                cell | {"cell_type": "code", "execution_count": None, "outputs": []}
            )
    return {
        "cells": cells,
        "metadata": {
            "kernelspec": {
                "display_name": "python3",
                "language": "python",
                "name": "python3",
            }
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    "A clone in which the page was followed from top to bottom, and what its commands printed"
    checkout, yaml, said = (
        clone(tmp_path_factory.mktemp("walk") / "workbook"),
        YAML(),
        [],
    )
    checkout.git("config", "user.name", "reader")
    checkout.git("config", "user.email", "reader@localhost")
    for kind, file, text in PAGE:
        path = checkout.path / file
        if kind == "sh":
            done = subprocess.run(
                ["sh", "-e", "-c", text],
                cwd=checkout.path,
                env=checkout.environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=900,
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}"
            said.append(done.stdout)
        elif kind == "yaml":
            content = merged(
                yaml.load(path.read_text(encoding="utf-8")), yaml.load(text)
            )
            with path.open("w", encoding="utf-8") as stream:
                yaml.dump(content, stream)
        else:
            path.write_text(json.dumps(notebook(text)), encoding="utf-8")
    return checkout, "\n".join(said)


def test_the_page_has_what_is_executed():
    kinds = [kind for kind, *_ in PAGE]
    assert (
        kinds.count("sh") == 5
        and kinds.count("yaml") == 4
        and kinds.count("python") == 1
    )
    assert all(file for kind, file, _ in PAGE if kind != "sh")


@pytest.mark.slow
def test_a_table_of_ones_own_is_adopted(walked):
    checkout, said = walked
    sales, summary = (
        pd.read_csv(checkout.path / "houses.csv"),
        json.loads((checkout.path / "build/prepare/summary.json").read_text()),
    )
    assert (
        summary["rows"]
        == len(sales)
        == summary["train"]
        + summary["test"]
        + summary["quarantined"]
        + summary["repeated"]
        and summary["test"] >= 20
    )
    contract = (checkout.path / "data/mine.contract.yaml").read_text()
    assert "square feet" in contract and "Our own sales" in contract
    assert "Next: review data/mine.contract.yaml" in said


@pytest.mark.slow
def test_git_gets_the_pointer_and_not_the_table(walked):
    kept = walked[0].git("show", "--name-only", "--format=%s", "HEAD").split("\n")
    assert (
        kept[0] == "feat: our own sales"
        and {"data/mine.csv.dvc", "data/mine.contract.yaml", "params.yaml"} <= {*kept}
        and "data/mine.csv" not in kept
    )


@pytest.mark.slow
def test_a_stage_is_added(walked):
    checkout, said = walked
    found = json.loads((checkout.path / "build/spread/quantiles.json").read_text())
    assert (
        list(found) == ["0.1", "0.5", "0.9"]
        and 0 < found["0.1"] < found["0.5"] < found["0.9"]
    )
    assert "def run_spread(" in (checkout.path / "housemlops/spread.py").read_text()
    assert (checkout.path / "reports/spread.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_graph_the_dags_and_the_pictures_follow(walked):
    checkout, said = walked
    stages = pipeline(checkout.path)
    assert graph(stages)["spread"] == ["prepare"] and "spread" in loops(stages)["watch"]
    assert re.search(r"prepare → .*spread", said) or "spread →" in said
    picture = (checkout.path / "nbs/site/lifecycle.svg").read_text()
    assert picture == lifecycle_svg(checkout.path) and "how the prices" in picture
    layer = next(names for names in read_layers(checkout.path) if "train" in names)
    assert "spread" in layer
