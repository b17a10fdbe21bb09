"""Contracts as strangers may write them: the generated server starts and prices, and texts stay texts.

`TEST_CONTRACTS` says how many contracts are drawn; one in 25 is started as a server in a process of its own.
"""

import ast
import html.parser
import importlib
import json
import math
import os
import shutil
import sqlite3
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from starlette.testclient import TestClient

from housemlops.contract import (
    Contract,
    as_contract,
    can_be_asked,
    feature_plan,
    infer_contract,
    load_contract,
    request_example,
)
from housemlops.core.files import write_json
from housemlops.estimators import members
from housemlops.intervals import calibrate
from housemlops.model.folder import proof_of, sales_to_ask, typical_house
from housemlops.model.onnx_export import to_onnx
from housemlops.predict import LARGEST, clean_category
from housemlops.serve import (
    check_openapi,
    check_server,
    one_line,
    publish,
    release_note,
    split_requests,
    trial_houses,
    write_project,
)
from housemlops.serving.running import running
from housemlops.settings import WorkbookError
from housemlops.train import training_arrays

DRAWN = int(os.environ.get("TEST_CONTRACTS", "15"))
ROWS = 30  # sales that the model of a drawn contract learns from

# What does something where a text is taken for a program. Each sets PWNED in the environment, makes a file or a script.
HOSTILE = [
    'x" + __import__("os").environ.setdefault("PWNED", "quote") + "',
    "x' + __import__('os').environ.setdefault('PWNED', 'quote') + '",
    'x"\n__import__("os").environ["PWNED"] = "line"\n"',
    "x\n    __import__('os').environ['PWNED'] = 'indented'\n    #",
    "x\r__import__('os').environ['PWNED'] = 'return'\r#",
    '"""\n__import__("os").environ["PWNED"] = "triple"\n"""',
    "x\nRUN touch pwned\n",
    "$(touch pwned) `touch pwned`; touch pwned #",
    "{{ 7 * 7 }}{% raw %}{# #}",
    "{{ cycler.__init__.__globals__.os.environ.setdefault('PWNED', 'jinja') }}",
    "</title><script>window.pwned = 1</script>",
    '"><img src=x onerror="window.pwned = 1">',
    "</select><script>window.pwned = 1</script>",
    "[a](javascript:alert(1)) <b>b</b> *c* _d_ `e` | f | ~~g~~ $h$ &amp;",
    "# coding: utf-7",
    "a\\",
    "\\",
    "a\u2028b\u2029c\x85d\xa0e\u200bf\ufeffg",
    "%s %(a)s {0} {a!r} %",
    "ß İ ﬁ ½ m² Ⅷ 日本 العربية 🏠",
    "'; DROP TABLE predictions; --",
    "long " * 40,
]
NAMES = [
    *("class", "None", "True", "match", "STR", "INT", "float", "int", "str"),
    *("x", "X", "column_0_x", "column_1_x", "column_0", "column_1_x_"),
    *("Area (m²)", "½ bath", "m²", "ﬁ", "fi", "größe", "_", "-", "1", " x", "x "),
    *("House", "Field", "BaseModel", "ConfigDict", "model_config", "model_dump"),
    *("json", "copy", "dict", "__init__", "__class__", "self", "cls", "id", "time"),
    *("price", "version", "inputs", "columns", "route", 'so "called"', "back\\slash"),
]

texts = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(
        st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"),
        max_size=40,
    ),
)
names = st.one_of(st.sampled_from(NAMES), texts).filter(str.strip)
categories = (
    st.one_of(names, st.text("k", min_size=101, max_size=300))
    .map(lambda text: " ".join(text.splitlines()).replace("\t", " ").strip())
    .filter(bool)
)
ends = st.one_of(
    st.integers(-1000, 1000),
    st.integers(-LARGEST, LARGEST),
    st.floats(-LARGEST, LARGEST),
)


@st.composite
def columns(draw) -> dict:
    "A column, as in the YAML of a contract"
    kind = draw(
        st.sampled_from(
            ["number", "integer", "category", "category", "ordinal", "date"]
        )
    )
    column = {"type": kind, "description": draw(texts), "group": draw(texts)}
    column["required"] = draw(st.booleans())
    for key in ("unit", "absent"):
        if draw(st.booleans()):
            column[key] = draw(texts)
    if kind in ("number", "integer") and draw(st.booleans()):
        low, high = sorted(draw(ends) for _ in range(2))
        if kind == "integer":
            low, high = int(low), int(high)
        column["range"] = [low, high]
    if kind in ("category", "ordinal"):
        column["categories"] = draw(
            st.lists(categories, min_size=1, max_size=5, unique_by=clean_category)
        )
    return column


@st.composite
def contracts(draw) -> Contract:
    "A contract that is valid, and hostile wherever it may be"
    inputs = draw(
        st.dictionaries(
            names.filter(lambda n: n != "paid"), columns(), min_size=1, max_size=6
        )
    )
    numbers = [n for n, c in inputs.items() if c["type"] in ("number", "integer")]
    derived = {}
    if numbers and draw(st.booleans()):
        name = draw(names.filter(lambda name: name not in inputs and name != "paid"))
        some = draw(
            st.lists(st.sampled_from(numbers), min_size=1, max_size=3, unique=True)
        )
        operation = draw(st.sampled_from(["sum", "product", "log"]))
        given = {"sum": dict.fromkeys(some, 0.5), "product": some, "log": some[0]}
        derived[name] = {"description": draw(texts), operation: given[operation]}
    target = {"type": "number", "description": "Price", "role": "target"}
    content = {
        "name": draw(names),
        "title": draw(texts),
        "source": draw(texts),
        "currency": draw(texts),
        "target": "paid",
        "ignore_case": draw(st.booleans()),
        "columns": {"paid": target | {"required": True}} | inputs,
        "derived": derived,
    }
    return as_contract(content, "drawn.contract.yaml")


def sales_of(contract: Contract) -> pd.DataFrame:  # (ROWS, n_columns) typed
    "Sales that a contract allows, every category and both ends of each range among them"
    dice, table = np.random.default_rng(0), {}
    for name, column in contract.columns.items():
        if name == contract.target:
            values = dice.uniform(50_000, 500_000, ROWS)
        elif column.is_number:
            low, high = column.range or (0, 1000)
            values = np.linspace(low, high, ROWS)
            values = np.round(values) if column.type == "integer" else values
        elif column.type == "date":
            values = [f"{2006 + i // 12}-{i % 12 + 1:02}-01" for i in range(ROWS)]
        else:
            values = [
                column.categories[i % len(column.categories)] for i in range(ROWS)
            ]
        values = pd.Series(values, dtype="float64" if column.is_number else "object")
        if not column.required:
            values[dice.choice(ROWS, 3, replace=False)] = None
        table[name] = values
    return pd.DataFrame(table)


def write_server(folder: Path, contract: Contract) -> Path:
    "A server with a small model, made by the functions that make the real ones"
    sales, plan = sales_of(contract), feature_plan(contract)
    X, y = training_arrays(sales, contract)
    model = members(plan, 20.0, 1.0, 5, 0.1, seed=0)["ridge"].fit(X, y)
    guess, rows = model.predict(X), np.arange(ROWS)
    artifacts, server = folder / "artifacts", folder / "server"
    artifacts.mkdir(parents=True)
    server.mkdir()
    facts = {
        "contract": contract.model_dump(mode="json"),
        "plan": plan,
        "example": request_example(sales.tail(1), contract),
        "typical": typical_house(sales, contract),
        "proof": proof_of(model, sales, contract),
        "interval": calibrate(X, y, guess, rows, guess, plan, 0.9),
    }
    (artifacts / "graph.onnx").write_bytes(to_onnx(model, X.shape[1]))
    for name, fact in facts.items():
        write_json(artifacts / f"{name}.json", fact)
    version = SimpleNamespace(
        name="house-prices-drawn", version=1, tags={"model_sha256": "0" * 64}
    )
    note = release_note(version, contract, {"dataset": "drawn"})
    write_project(server, artifacts, contract, note, {"metrics": {}, "card": ""})
    return server


@contextmanager
def imported(server: Path, log: Path):
    "The app of a generated server, imported into this process and forgotten again"
    own = {"app", "serving"}

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in own]:
            del sys.modules[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOUSE_DATABASE_URL", f"sqlite:///{log}")
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.syspath_prepend(str(server))
        forget()
        try:
            yield importlib.import_module("app").app
        finally:
            forget()


class Tags(html.parser.HTMLParser):
    "What a browser would make of a page"

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.handlers, self.options = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag == "option":
            self.options.append(dict(attrs).get("value"))

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "option" and self.options[-1] is None:
            self.options[-1] = " ".join(data.split())


def check_programs(server: Path, contract: Contract) -> None:
    "The generated programs hold the statements of the templates, and nothing else"
    app = ast.parse((server / "app.py").read_text(encoding="utf-8"))
    assert contract.title in ast.get_docstring(app, clean=False)
    assert [type(node).__name__ for node in app.body] == [
        *("Expr", "Import", "Import", "ImportFrom", "Expr", *["ImportFrom"] * 5),
        *("Assign", "Assign", "Try", "If"),
    ]


def check_texts(server: Path, contract: Contract) -> None:
    "README and Dockerfile show the contract's texts, and do nothing with them"
    readme = (server / "README.md").read_text(encoding="utf-8")
    inline = MarkdownIt("commonmark").parse(readme)[1]
    shown = "".join(token.content for token in inline.children)
    assert {token.type for token in inline.children} <= {"text", "text_special"}
    assert shown == f"House prices: {one_line(contract.title)}".strip()
    dockerfile = (server / "Dockerfile").read_text(encoding="utf-8")
    assert dockerfile.count("RUN") == 2 and "pwned" not in dockerfile


def check_pages(client: TestClient, contract: Contract) -> None:
    "The pages have one script of their own, and a policy that allows no other"
    page, docs = client.get("/"), client.get("/swagger")
    found, described = Tags(page.text), Tags(docs.text)
    assert found.tags.count("script") == 1 and described.tags.count("script") == 2
    assert not {"img", "b", "title2"} & {*found.tags} and not found.handlers
    assert not {"img", "b"} & {*described.tags} and not described.handlers
    for answer in (page, docs):
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "'unsafe-inline'" not in policy.partition("script-src")[2].split(";")[0]
    for name in contract.inputs:
        listed = {
            clean_category(text) for text in contract.columns[name].categories or ()
        }
        assert listed <= {clean_category(option or "") for option in found.options}, (
            name
        )


def check_answers(client: TestClient, contract: Contract, example: dict) -> None:
    "Every way to ask for a price answers, and every listed value is priced as known"
    for piece in split_requests(trial_houses(contract, example)):
        answer = client.post("/predict/batch", json={"houses": list(piece.values())})
        assert answer.status_code == 200, answer.text
        for what, found in zip(piece, answer.json()["prices"], strict=True):
            assert found["low"] <= found["price"] <= found["high"] < math.inf, what
            assert found["price"] > 0 and found["warnings"] == [], (what, found)
    one = client.post("/predict", json=example).json()
    why = client.post("/explain", json=example)
    receipt = client.get(f"/predictions/{one['id']}").json()
    assert why.status_code == 200 and receipt["inputs"] == example
    for name, value in example.items():
        asked = {"house": example, "column": name, "values": [value]}
        curve = client.post("/curve", json=asked).json()
        assert math.isclose(curve["prices"][0], one["price"], rel_tol=1e-4), curve
    assert client.post("/predict", json=example | {"no such": 1}).status_code == 422
    assert client.get("/v2/models/house-prices-drawn").status_code == 200
    assert (
        client.get("/readyz").status_code == client.get("/metrics").status_code == 200
    )


def draws(number: int):
    "How a test draws contracts: the same ones in each run, unless many are asked for"
    return settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=DRAWN < 100,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[*HealthCheck],
    )


@draws(DRAWN)
@given(contracts())
def test_a_server_prices_whatever_its_contract_is_called(contract):
    note(contract.model_dump_json())
    with TemporaryDirectory() as scratch:
        server, log = write_server(Path(scratch), contract), Path(scratch) / "log.db"
        check_programs(server, contract)
        check_texts(server, contract)
        example = request_example(sales_of(contract).tail(1), contract)
        with (
            imported(server, log) as app,
            TestClient(app, "http://127.0.0.1") as client,
        ):
            check_answers(client, contract, example)
            check_pages(client, contract)
            check_openapi(client.get("/openapi.json").json(), contract)
        with closing(sqlite3.connect(log)) as opened:
            logged = opened.execute("SELECT * FROM houses").fetchall()
        assert len(logged) > 1
        assert not [*Path(scratch).rglob("*pwned*")] and not Path("pwned").exists()
    assert "PWNED" not in os.environ


@draws(max(1, DRAWN // 25))
@given(contracts())
def test_a_server_passes_its_check_in_a_process_of_its_own(contract):
    note(contract.model_dump_json())
    with TemporaryDirectory() as scratch:
        server = write_server(Path(scratch), contract)
        before = sorted(server.rglob("*"))
        check_server(server)
        assert sorted(server.rglob("*")) == before


PLAIN = {
    "name": "plain",
    "title": "Plain houses",
    "source": "nowhere",
    "currency": "USD",
    "target": "paid",
    "columns": {
        "paid": {
            "type": "number",
            "description": "P",
            "role": "target",
            "required": True,
        },
        "area": {"type": "number", "description": "Area", "range": [10, 500]},
        "style": {
            "type": "category",
            "description": "Style",
            "categories": ["low", "k" * 130],
        },
    },
}


def column(**keys: object) -> dict:
    "A change of the plain contract: one more column"
    return {"columns": PLAIN["columns"] | {"new": {"description": "New"} | keys}}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    "The server of the plain contract; for reading"
    folder = tmp_path_factory.mktemp("plain")
    return write_server(folder, as_contract(PLAIN, "plain.contract.yaml"))


MISTAKES = [
    (column(type="number", range=[0, math.inf]), "column `new`: range: 1: .*finite"),
    (column(type="number", range=[math.nan, 1]), "column `new`: range: 0: .*finite"),
    (column(type="number", range=[2, 1]), "column `new`: range: .*from low to high"),
    (column(type="number", range=[1]), "column `new`: range: .*two ends"),
    (column(type="number", range=[0, 1e300]), "column `new`: range: its ends lie"),
    (column(type="integer", range=[0.5, 3]), "column `new`: range: .*must be whole"),
    (column(type="date", range=[1, 2]), "column `new`: range: only a number"),
    (
        column(type="category", categories=["a\nb"]),
        "`new`: categories: 0: .*line break",
    ),
    (column(type="category", categories=["a\n"]), "`new`: categories: 0: .*line break"),
    (column(type="category", categories=["a\tb"]), "`new`: categories: 0: .*a tab"),
    (column(type="category", categories=["a", " "]), "`new`: categories: 1: .*empty"),
    (
        column(type="category", categories=["a", "a "]),
        "`new`: categories: 'a' is listed",
    ),
    (
        column(type="category", categories=[20]),
        "`new`: categories: 0: 20 is not a text",
    ),
    (column(type="category", categories=["k" * 1001]), "has 1001 characters"),
    (column(type="category"), "lists its categories"),
    (column(type="number", unitt="m"), "`new`: unitt: .*Did you mean 'unit'"),
    (column(type="numbr"), "`new`: type: Input should be 'number'"),
    (column(), "column `new`: type: this key is missing"),
    (column(type="number", description="a\x00"), "`new`: description: the control"),
    ({"columns": {**PLAIN["columns"], "": PLAIN["columns"]["area"]}}, "not be empty"),
    ({"columns": {**PLAIN["columns"], 1: PLAIN["columns"]["area"]}}, "1 is not a text"),
    ({"columns": {"paid": PLAIN["columns"]["paid"]}}, "no column has the role feature"),
    ({"titel": "x"}, "titel: there is no such key. Did you mean 'title'"),
    ({"title": "x" * 301}, "title: this has 301 characters, and may have 300"),
    ({"target": "style"}, "exactly one column, `style`"),
    (
        {"derived": {"area": {"description": "d", "log": "area"}}},
        "derived `area` has the name of a column",
    ),
]


@pytest.mark.parametrize("change, sentence", MISTAKES)
def test_a_mistake_is_a_sentence_with_column_and_key(change, sentence):
    with pytest.raises(WorkbookError, match=sentence) as raised:
        as_contract(PLAIN | change, "plain.contract.yaml")
    lines = str(raised.value).splitlines()
    assert all(line.startswith("plain.contract.yaml: ") for line in lines)
    assert "pydantic" not in str(raised.value)


def test_each_of_several_mistakes_has_a_sentence():
    wrong = {"a": {"type": "number"}, "b": {"type": "date", "description": 3}}
    with pytest.raises(WorkbookError) as raised:
        as_contract(PLAIN | {"columns": PLAIN["columns"] | wrong, "nam": 1}, "c.yaml")
    assert [line.split(": ")[1] for line in str(raised.value).splitlines()] == [
        "column `a`",
        "column `b`",
        "nam",
    ]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("name: a\nname: b\n", "line 2: `name` is there twice"),
        ("name: [a\ntitle: b\n", "line 2: "),
        ("", "keys with values are wanted"),
    ],
)
def test_a_file_that_is_no_contract_is_a_sentence(tmp_path, text, sentence):
    path = tmp_path / "own.contract.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(WorkbookError, match=f"own.contract.yaml: {sentence}"):
        load_contract(str(path))


def test_a_drafted_contract_can_be_loaded():
    "Free text, line breaks and huge numbers are in many tables"
    table = pd.DataFrame(
        {
            "paid": ["1", "2", "3"],
            "remark": ["one\ntwo", "z" * 2000, "short"],
            "number": ["9" * 18, "1", "2"],
            "odd": ["inf", "1", "2"],
        }
    )
    draft = as_contract(infer_contract(table, "own", "paid"), "own.contract.yaml")
    assert draft.columns["remark"].categories == ("short",)
    assert draft.columns["number"].range[1] == LARGEST


def test_the_example_and_the_proof_are_sales_that_can_be_asked():
    "A ledger may hold texts that the contract does not list, and no request may carry"
    contract = as_contract(PLAIN, "plain.contract.yaml")
    sales = sales_of(contract)
    sales.loc[29, "style"] = "of two\nlines"
    sales.loc[28, "style"] = "z" * 131
    sales.loc[27, "area"] = 501.0
    sales.loc[26, "style"] = "line\n"
    sales.loc[25, ["style", "area"]] = None
    fine = can_be_asked(sales, contract)
    assert [*fine[~fine].index] == [26, 27, 28, 29]
    assert [*sales_to_ask(sales, contract).index] == [*range(26)]
    with pytest.raises(WorkbookError, match="No sale of plain can be asked"):
        sales_to_ask(sales.tail(4), contract)


BREAK = {
    "app.py": ("PROGRAM = ", "PROGRAM = = ", "did not start"),
    "serving/predict.py": (
        "return value  # as nearly all of them are",
        'raise ValueError("is not read")',
        "does not price the example: `area`: is not read",
    ),
    "serving/engine.py": ("np.exp(log_price)", "np.inf * log_price", "did not start"),
    "serving/dependencies.py": ("#/components", "#/nowhere", "OpenAPI .* not valid"),
}


@pytest.mark.parametrize("name", BREAK)
def test_a_server_that_fails_never_becomes_current(plain, tmp_path, monkeypatch, name):
    "The one before it stays, and what is wrong is one sentence"
    monkeypatch.setenv("HOUSEMLOPS_PATHS_STATE", str(tmp_path / "state"))
    current = tmp_path / "state/serve/current"
    current.parent.mkdir(parents=True)
    current.symlink_to("releases/before")
    server = Path(shutil.copytree(plain, tmp_path / "server"))
    old, new, sentence = BREAK[name]
    text = (server / name).read_text(encoding="utf-8")
    assert old in text
    (server / name).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(WorkbookError, match=sentence) as raised:
        publish(server)
    assert "\n" not in str(raised.value)
    assert os.readlink(current) == "releases/before"
    assert not (tmp_path / "state/serve/releases").exists()


def test_a_server_that_passes_becomes_current(plain, tmp_path, monkeypatch):
    monkeypatch.setenv("HOUSEMLOPS_PATHS_STATE", str(tmp_path / "state"))
    assert publish(plain) == (tmp_path / "state/serve/current").resolve()


def test_pieces_fit_into_a_request():
    houses = {str(i): {"text": "x" * 1000} for i in range(1200)}
    pieces = [*split_requests(houses)]
    assert {what: house for piece in pieces for what, house in piece.items()} == houses
    assert all(len(json.dumps([*piece.values()])) < 520_000 for piece in pieces)
    assert max(map(len, pieces)) <= 500


@pytest.mark.slow
@pytest.mark.browser
def test_no_title_runs_and_swagger_works_under_its_policy(browser, tmp_path):
    title = "</title><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>"
    server = write_server(tmp_path, as_contract(PLAIN | {"title": title}, "plain"))
    with running(server) as url:
        for path, seen in (
            ("/", "#price"),
            ("/swagger", "#operations-prices-predict_predict_post"),
        ):
            page, wrong = browser.new_page(), []
            page.on("console", lambda message: wrong.append(message.text))
            page.goto(url + path)
            page.wait_for_selector(seen)
            assert page.evaluate("window.pwned") is None
            assert title in page.content() or "&lt;script&gt;" in page.content()
            assert not [text for text in wrong if "Content Security Policy" in text], (
                wrong
            )
            page.close()
