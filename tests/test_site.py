"""The documentation site: complete, in order, without dead links, and silent on the network."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from housemlops.operations.timeline import read_months
from housemlops.pipeline.graph import listed
from housemlops.promote import record
from housemlops.settings import WorkbookError, folder_sha256, repo_root
from housemlops.site.build import build_docs
from housemlops.site.content import all_pages, gather, support_groups
from housemlops.site.evidence import claims
from housemlops.site.interface import interface
from housemlops.site.lifecycle_picture import lifecycle, lifecycle_svg
from housemlops.site.package_picture import (
    describe_packages,
    direct_arrows,
    find_imports,
    package_svg,
    read_layers,
)
from housemlops.site.timeline_page import write_history

ROOT = repo_root()


def md5(text):
    return hashlib.md5(text.encode()).hexdigest()


OPENAPI = {
    "info": {"description": "Prices in USD."},
    "components": {
        "schemas": {
            "House": {
                "description": "A house",
                "required": ["area"],
                "properties": {
                    "area": {
                        "type": "number",
                        "minimum": 100,
                        "description": "above | below ground",
                    }
                },
            }
        }
    },
    "paths": {
        "/predict": {
            "post": {
                "summary": "Price one house",
                "requestBody": {
                    "content": {
                        "application/json": {
                            "schema": {"$ref": "#/components/schemas/House"}
                        }
                    }
                },
                "responses": {
                    "200": {"description": "fine"},
                    "422": {"description": "not a house"},
                },
            }
        }
    },
}


def lock_of(stages):
    "A dvc.lock in which every hand-over agrees."

    def entry(path):
        return {
            "path": path,
            "hash": "md5",
            "md5": md5(path),
            "size": 2_500,
            "nfiles": 2,
        }

    return {
        name: {
            "cmd": stage["cmd"],
            "deps": [
                entry(path.replace("${dataset}", "ames"))
                for path in listed(stage["deps"])
            ],
            "outs": [entry(path) for path in listed(stage["outs"])],
        }
        for name, stage in stages.items()
    }


@pytest.fixture(scope="module", autouse=True)
def state(tmp_path_factory):
    "A state folder of its own, so that what this checkout has run and serves does not matter."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "HOUSEMLOPS_PATHS_STATE", str(folder := tmp_path_factory.mktemp("state"))
        )
        yield folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, state):
    "A folder that looks like a finished run, whose champion is served."
    folder = tmp_path_factory.mktemp("run")

    def put(name, text):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    put("build/train/model/model.onnx", "weights")
    sha = folder_sha256(folder / "build/train/model")
    put("params.yaml", "dataset: ames\nas_of: 2010-08\n")
    put(
        "data/ames.csv.dvc", f"outs:\n- md5: {md5('data/ames.csv')}\n  path: ames.csv\n"
    )
    put("dvc.lock", json.dumps({"schema": "2.0", "stages": lock_of(lifecycle(ROOT))}))
    put(
        "lineage.json",
        json.dumps({"git_commit": "c0ffee", "git_branch": "main", "uncommitted": []}),
    )
    put(
        "build/evaluate/metrics.json",
        json.dumps(
            {
                "model_sha256": sha,
                "model": {"mae": 13210.4, "mse": 4.1e8, "r2": 0.93},
                "baseline": {"mae": 51234, "mse": 5.1e9, "r2": 0},
                "thresholds": {"mae": 14000, "mse": 4.5e8, "r2": 0.91},
                "gates": [
                    {
                        "name": "mae",
                        "value": 13210.4,
                        "threshold": 14000,
                        "passed": True,
                        "reason": "",
                    }
                ],
            }
        ),
    )
    put(
        "build/promote/receipt.json",
        json.dumps(
            {
                "promoted": True,
                "reasons": ["every gate passed"],
                "model_name": "house-prices-ames",
                "version": 3,
                "alias": "champion",
                "model_sha256": sha,
                "champion_version": 3,
                "champion_sha256": sha,
            }
        ),
    )
    put(
        "build/prepare/summary.json",
        json.dumps(
            {
                "rows": 2930,
                "train": 2390,
                "test": 410,
                "quarantined": 3,
                "flagged": 12,
                "source": {"data_md5": md5("data/ames.csv")},
            }
        ),
    )
    put("build/evaluate/card.md", "# Model card\n\nPredicts prices.\n")
    put("build/serve/model/release.json", "{}")
    put(
        "build/serve/app.py",
        f"class App: pass\napp = App()\napp.openapi = lambda: {OPENAPI}\n",
    )
    put("build/monitor/verdict.json", json.dumps({"verdict": "stable", "reasons": []}))
    put(
        "build/monitor/report.html",
        "<head><title>drift</title><link href='https://fonts.example/a.css' rel='stylesheet'></head>"
        + "x " * 600_000,
    )
    (state / "serve/current/model").mkdir(parents=True)
    (state / "serve/current/model/release.json").write_text(
        json.dumps(
            {"model_sha256": sha, "version": 3, "data_md5": md5("data/ames.csv")}
        )
    )
    record(
        state / "promotions.jsonl",
        action="promoted",
        model="house-prices-ames",
        version=3,
        model_sha256=sha,
        why="better than version 2",
    )
    put(
        "reports/train.html",
        "<head><title>train</title><script src='https://cdn.example/require.js'></script></head><h1>executed</h1>",
    )
    return folder


MAE = {
    "2008-11": 12_900.0,
    "2008-12": 19_400.0,
    "2009-01": None,
}  # of the sales of a month; the prices of the newest are not known yet


def known_after(month):
    "What the verdict of a month can say of its window: the prices of its newest month are revealed a month later."
    return [
        {
            "month": each,
            "rows": 90,
            "labelled": 90 * (each < month),
            "mae": MAE[each] if each < month else None,
            "coverage": 0.9 if each < month else None,
            "version": 1,
        }
        for each in MAE
        if each <= month
    ]


@pytest.fixture(scope="module")
def months(state):
    "A replay of four months: all clear and nothing known yet; an alarm and a refusal; too few sales; nothing but a promotion."
    folder = state / "replay/history"

    def put(name, content):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))

    fine = {
        "complete": True,
        "verdict": "ok",
        "alarm": False,
        "retrain": False,
        "reasons": ["all is well"],
        "rows": 90,
        "labelled": 0,
        "tested": 75,
        "naive": 7,
        "drifted": [],
        "mae": None,
        "mae_low": None,
        "mae_high": None,
        "expected_mae": 13_000.0,
        "coverage": None,
        "level": 0.9,
        "version": 1,
    }
    put(
        "2008-11/verdict.json",
        fine | {"month": "2008-11", "months": known_after("2008-11")},
    )
    put(
        "2008-12/verdict.json",
        fine
        | {
            "month": "2008-12",
            "months": known_after("2008-12"),
            "verdict": "drift",
            "alarm": True,
            "retrain": True,
            "mae": 12_900.0,
            "mae_low": 11_000.0,
            "mae_high": 15_000.0,
            "coverage": 0.9,
            "drifted": ["price<per>foot"],
            "reasons": ["price<per>foot has drifted"],
        },
    )
    put(
        "2009-01/verdict.json",
        {
            "month": "2009-01",
            "verdict": "insufficient data",
            "alarm": False,
            "reasons": ["9 sales are too few"],
            "rows": 9,
            "complete": False,
            "months": known_after("2009-01"),
        },
    )
    put(
        "2009-02/verdict.json",
        fine | {"month": "2009-02", "months": [], "verdict": "degraded", "alarm": True},
    )
    for month in ("2008-11", "2008-12", "2009-01", "2009-02"):
        put(
            f"{month}/run.json",
            {
                "month": month,
                "asked": month in ("2008-12", "2009-02"),
                "why_not": "",
                "commit": "c0ffee",
                "seconds": {"total": 3},
                "mlflow": {"monitor": {"experiment_id": "7", "run_id": "f00d"}},
            },
        )
        style = "p {color: black} " * 1000
        put(
            f"{month}/report.html",
            f"<head><script src='https://cdn.example/plot.js'></script></head><style>{style}</style><p>report of {month}",
        )
        put(
            f"{month}/monitor.html",
            f'<head></head><style type="text/css">{style}</style><p>executed for {month}',
        )
    put(
        "2008-12/retraining.json",
        {
            "month": "2008-12",
            "as_of": "2008-11",
            "promoted": False,
            "failed": "",
            "reasons": ["MAE is 15,766, and at most 14,000 is asked"],
            "metrics": {"mae": 15_766.0},
            "champion_version": 1,
            "duel": None,
        },
    )
    put(
        "2008-12/retraining/card.md",
        "# Model card\n\n| a | b |\n|---|---|\n| <script>alert(1)</script> | 2 |\n",
    )
    put(
        "2009-02/retraining.json",
        {
            "month": "2009-02",
            "as_of": "2009-01",
            "promoted": True,
            "failed": "",
            "reasons": [],
            "metrics": {"mae": 12_500.0},
            "champion_version": 2,
            "duel": {
                "rows": 240,
                "mae": 12_500,
                "champion_mae": 13_900,
                "change": -0.1,
                "low": -0.15,
                "high": -0.05,
                "confidence": 0.9,
            },
        },
    )
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory, run, months):
    "The site, built once; any warning of Sphinx is an error here."
    return build_docs(out=tmp_path_factory.mktemp("built") / "site", run=run)


class Page(HTMLParser):
    "The links, resources and anchors of a page."

    def __init__(self, path):
        super().__init__()
        self.links, self.resources, self.anchors, self.relations, self.told = (
            [],
            [],
            set(),
            {},
            [],
        )
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given.get("id"), given.get("name") if tag == "a" else None}
        if tag == "img":
            self.told.append(given.get("alt"))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and given.get("rel") in ("next", "prev"):
            self.relations[given["rel"]] = given["href"]
        elif tag == "link":
            self.resources.append(given.get("href", ""))
        elif tag in ("script", "img", "iframe", "source", "video", "object", "embed"):
            self.resources += [
                given[name] for name in ("src", "data", "srcset") if name in given
            ]

    handle_startendtag = handle_starttag


@pytest.fixture(scope="module")
def pages(site):
    return {
        path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts
    }


def outside(url):
    return urlsplit(url).scheme in ("http", "https") or url.startswith("//")


@pytest.mark.slow
def test_reading_order_is_the_graph(site, pages):
    order, path = [], site / "index.html"
    while path not in order:
        order.append(path)
        path = (path.parent / pages[path].relations.get("next", path.name)).resolve()
    names = [path.relative_to(site).as_posix().removesuffix(".html") for path in order]
    stages = list(lifecycle(ROOT))
    support = [name for names in support_groups(ROOT).values() for name in names]
    assert [name for name in names if name in stages] == stages
    assert [name for name in names if name in support] == support
    assert {path.stem for path in (ROOT / "nbs").glob("*.ipynb")} <= set(names)
    assert names[0] == "index" and {
        "api",
        "data",
        "evidence",
        "why",
        "maturity",
        "glossary",
        "contribute",
        "interface",
        "months",
        "model-card",
    } <= set(names)
    assert [name for name in names if name.startswith("exercises/")] == [
        f"exercises/{name}"
        for name in stages
        if (ROOT / f"nbs/exercises/{name}.ipynb").exists()
    ]


def test_no_dead_link(site, pages):
    dead = []
    for path, page in pages.items():
        for link in [*page.links, *page.resources]:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//") or link in ("#", ""):
                continue
            target = (
                (path.parent / unquote(parts.path)).resolve() if parts.path else path
            )
            if target.is_dir():
                target /= "index.html"
            known = pages.get(target)
            if not target.is_file() or (
                parts.fragment
                and known
                and unquote(parts.fragment) not in known.anchors
            ):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert not dead


def test_each_plot_is_told_in_words(site, pages):
    told = {path.name: page.told for path, page in pages.items() if path.parent == site}
    assert (
        sum(words.startswith("Plot. ") for page in told.values() for words in page) > 25
    )
    assert not [
        (name, words)
        for name, page in told.items()
        for words in page
        if words is None or re.search(r"\.(png|svg|webp)$|_images", words)
    ]


def test_nothing_is_loaded_from_another_host(site, pages):
    asked = [
        f"{path.relative_to(site)}: {url}"
        for path, page in pages.items()
        for url in page.resources
        if outside(url)
    ]
    styles = [
        f"{path.name}: {line.strip()[:80]}"
        for path in site.rglob("*.css")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "url(http" in line
        or "url(//" in line
        or ("@import" in line and "http" in line)
    ]
    assert not asked + styles


def test_evidence_of_a_run(site):
    text = (site / "evidence.html").read_text(encoding="utf-8")
    for part in (
        "13,210",
        "house-prices-ames",
        "2,390",
        "executed on 2010-08",
        "c0ffee",
        "model-card.html",
        "better than version 2",
    ):
        assert part in text
    assert (
        'class="no"' not in text
        and 'class="unknown"' not in text
        and "No run yet" not in text
    )
    train = (site / "train.html").read_text(encoding="utf-8")
    assert "executed on 2010-08" in train and "1.2 MB" in (
        site / "monitor.html"
    ).read_text(encoding="utf-8")
    assert "cdn.example" not in (site / "latest/train.html").read_text(encoding="utf-8")


def test_the_card_of_the_latest_run_is_a_page(site):
    text = (site / "model-card.html").read_text(encoding="utf-8")
    assert "Predicts prices." in text and "No run yet" not in text


def test_evidence_notices_a_hand_over_that_does_not_agree(run):
    house = gather(ROOT, run)
    assert all(same for *_, same in house["handovers"])
    lock = house["facts"]["lock"]
    reader = next(
        name
        for name, stage in lock.items()
        if any(dep["path"].startswith("build/") for dep in stage["deps"])
    )
    next(dep for dep in lock[reader]["deps"] if dep["path"].startswith("build/"))[
        "md5"
    ] = "stale"
    assert False in [
        held for _, held in claims(house["facts"], house["stages"], {})["together"]
    ]


@pytest.mark.slow
def test_evidence_before_the_first_run(tmp_path):
    pages = all_pages(gather(ROOT, tmp_path / "nowhere"))
    for name in ("evidence.md", "model-card.md"):
        assert "No run yet" in pages[name] and "make run" in pages[name]
    assert "mlflow" in pages["evidence.md"]


def test_months_are_a_page(site, months):
    text = (site / "months.html").read_text(encoding="utf-8")
    for part in (
        "12,900",
        "19,400",
        "at most 14,000 is asked",
        "-10.0%",
        "insufficient data",
        "incomplete month",
        "#/experiments/7/runs/f00d",
    ):
        assert part in text
    assert "price&lt;per&gt;foot" in text and "price<per>foot" not in text
    assert (
        site / "months/replay/2008-12/report.html"
    ).exists() and "replay-history" not in text.split("<main", 1)[1].split("</main>")[0]
    card = (site / "months/replay/2008-12/retraining/card.html").read_text(
        encoding="utf-8"
    )
    assert "<table>" in card and "<script>" not in card


def test_months_know_the_truth_later(months):
    "A month's error is found in the verdicts after it, and a month that nobody has looked at is a gap."
    found = {month["month"]: month for month in read_months(months)}
    assert list(found) == ["2008-11", "2008-12", "2009-01", "2009-02"]
    assert found["2008-11"]["verdict"]["mae"] is None and [
        found[month]["sales"].get("mae") for month in found
    ] == [12_900, 19_400, None, None]


@pytest.mark.parametrize(
    "damage",
    ["one month", "no price yet", "a gap", "only a verdict", "an empty folder"],
)
def test_months_in_any_state_are_a_page(months, tmp_path, damage):
    shutil.copytree(months, folder := tmp_path / "history")
    if damage == "one month":
        for month in ("2008-12", "2009-01", "2009-02"):
            shutil.rmtree(folder / month)
    if damage == "no price yet":
        for path in folder.glob("*/verdict.json"):
            path.write_text(
                json.dumps(
                    json.loads(path.read_text())
                    | {
                        "months": [],
                        "mae": None,
                        "expected_mae": None,
                        "coverage": None,
                        "level": None,
                    }
                )
            )
    if damage == "a gap":
        shutil.rmtree(folder / "2009-01")
    if damage == "only a verdict":
        [path.unlink() for path in folder.glob("*/r*.json")]
    if damage == "an empty folder":
        shutil.rmtree(folder / "2009-02")
        (folder / "2009-02").mkdir()
    page = write_history(folder, tmp_path / "page")
    text = page.read_text(encoding="utf-8")
    assert (
        text.count("<tbody") == (1 if damage == "one month" else 4)
        and "None" not in text
        and "nan" not in text.lower().replace("finance", "")
    )
    assert ("… not looked at yet<" in text) == (damage in ("a gap", "an empty folder"))


def test_months_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(WorkbookError, match="replay-history"):
        write_history(tmp_path / "nowhere", tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_months_share_what_is_the_same(months, tmp_path):
    "Eight pages with the same style carry it once, and none of them asks another host."
    page = write_history(months, tmp_path / "page")
    before = page.read_bytes()
    assert len(list(page.parent.glob("shared/*"))) == 1 and not any(
        "https://" in path.read_text() for path in page.parent.rglob("*.html")
    )
    assert write_history(months, tmp_path / "page").read_bytes() == before
    links = [link for link in Page(page).links if not urlsplit(link).scheme]
    assert (
        all(
            (page.parent / link.partition("#")[0]).is_file()
            if link[0] != "#"
            else link[1:] in Page(page).anchors
            for link in links
        )
        and len(links) > 12
    )


@pytest.mark.slow
def test_the_site_says_how_to_get_months(tmp_path):
    page = all_pages(gather(ROOT, tmp_path / "nowhere") | {"histories": {}})[
        "months.md"
    ]
    assert "housemlops replay-history --from 2008-01 --to 2010-07" in page


def test_units_reach_the_api_pages(site):
    text = (site / "api/settings.html").read_text(encoding="utf-8")
    assert "64 hexadecimal digits" in text and "docments" in text


def test_the_interface_of_the_server_is_a_page(site):
    text = re.sub("<[^>]+>", "", (site / "interface.html").read_text(encoding="utf-8"))
    for part in (
        "Prices in USD.",
        "POST /predict",
        "Price one house",
        "from 100",
        "above | below ground",
    ):
        assert part in text
    assert (
        json.loads(next((site / "_downloads").rglob("openapi.json")).read_text())
        == OPENAPI
    )


def test_the_interface_is_that_of_the_generated_server(sample, tmp_path):
    server = sample.build / "serve"
    described = interface(server, tmp_path)
    assert {"/predict", "/predict/batch", "/explain"} <= {*described["paths"]}
    assert "House" in described["components"]["schemas"]
    assert interface(server, tmp_path) == described
    assert len([*tmp_path.iterdir()]) == 1


def test_every_test_that_a_page_names_exists():
    named = {
        (path.name, *found)
        for path in (ROOT / "nbs/site/pages").glob("*.md")
        for found in re.findall(
            r'proof\("(\w+)", "(\w+)"\)|tests/(\w+)\.py::(\w+)',
            path.read_text(encoding="utf-8"),
        )
    }
    pairs = {
        (page, file or other, test or another)
        for page, file, test, other, another in named
    }
    assert len(pairs) > 20
    missing = [
        f"{page}: tests/{file}.py::{test}"
        for page, file, test in sorted(pairs)
        if not (path := ROOT / f"tests/{file}.py").exists()
        or not re.search(
            rf"^def {test}\(", path.read_text(encoding="utf-8"), re.MULTILINE
        )
    ]
    assert not missing


def test_speed_is_read_from_the_page_on_serving(site):
    "The figure is written once; the home page and the page of costs read it."
    source = (ROOT / "nbs/site/pages/why-serving.md").read_text(encoding="utf-8")
    served = re.search(
        r"^\| the generated server, with its log.*\| ([\d,]+) \([\d.]+\) \|$",
        source,
        re.MULTILINE,
    )
    sentences = {
        "why-serving": f"{served[1]} (",
        "index": f"{served[1]} prices a second",
        "cost-and-scale": f"the server gives {served[1]} answers a second",
    }
    for name, sentence in sentences.items():
        page = (site / f"{name}.html").read_text(encoding="utf-8")
        assert sentence in re.sub("<[^>]+>", "", page), name


def test_the_packages_keep_to_their_layers():
    "What `make check` runs; the page shows the same layers."
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    layers = read_layers(ROOT)
    assert layers[0] == ["cli"]
    named = sorted(name for layer in layers for name in layer)
    there = [
        path.stem
        for path in (ROOT / "housemlops").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    ignored = {"__init__", "_modidx", "migrations", "templates"}
    assert named == sorted({*there} - ignored), "add it to a layer in pyproject.toml"


def test_the_page_of_the_code_shows_every_package():
    layers = read_layers(ROOT)
    imports = find_imports(layers)
    picture = package_svg(layers, imports)
    assert picture == package_svg(layers, imports)
    for name in imports:
        assert f'<a href="#{name}"' in picture
    level = {name: i for i, layer in enumerate(layers) for name in layer}
    arrows = direct_arrows(layers, imports)
    assert arrows
    assert all(level[high] < level[low] for high, low in arrows)
    rows = describe_packages(layers, imports)
    assert all(summary for _, summary, _ in rows)


def test_committed_picture_is_current():
    committed = (ROOT / "nbs/site/lifecycle.svg").read_text(encoding="utf-8")
    assert committed == lifecycle_svg(ROOT), (
        "dvc.yaml has changed: call housemlops.site.lifecycle_picture.save_picture()"
    )


@pytest.mark.slow
def test_nothing_changed_means_nothing_to_do(site, run):
    before = (site / "index.html").stat().st_mtime_ns
    assert build_docs(out=site, run=run) == site
    assert (site / "index.html").stat().st_mtime_ns == before


def test_pages_are_light(site):
    weights = {
        path.relative_to(site).as_posix(): path.stat().st_size
        for path in site.glob("*.html")
    }
    heaviest = max(weights, key=weights.get)
    print(f"heaviest page: {heaviest}, {weights[heaviest] / 1e3:.0f} kB")
    assert weights[heaviest] < 1_000_000


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address(site):
    "The site on a free port of loopback."
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Silent, directory=site)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def visit(browser, address, names, **context):
    "Open pages; return what went wrong, and the last page."
    page, wrong = browser.new_context(**context).new_page(), []
    page.on(
        "console",
        lambda message: (
            wrong.append(f"{page.url} says {message.text}")
            if message.type == "error"
            else None
        ),
    )
    page.on("pageerror", lambda error: wrong.append(f"{page.url} raises {error}"))
    page.on(
        "request",
        lambda request: (
            wrong.append(f"{page.url} asks {request.url}")
            if not request.url.startswith((address, "data:", "blob:"))
            else None
        ),
    )
    page.on(
        "response",
        lambda response: (
            wrong.append(f"{response.url} is {response.status}")
            if response.status >= 400
            else None
        ),
    )
    for name in names:
        page.goto(f"{address}/{name}")
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        if wide > 0:
            wrong.append(f"{name} is {wide} px wider than the window")
    return wrong, page


def own_pages(site):
    "The pages that are written here, without the reports that a run has made."
    return sorted(
        path.relative_to(site).as_posix()
        for path in site.rglob("*.html")
        if not {"_static", "_modules", "latest"} & {*path.relative_to(site).parts}
        and path.relative_to(site).parts[0] != "months"
    )


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("width, scheme", [(1400, "light"), (400, "dark")])
def test_every_page_opens_quietly(site, address, browser, width, scheme):
    names = [
        path.relative_to(site).as_posix()
        for path in sorted(site.rglob("*.html"))
        if "_static" not in path.parts
    ]
    wrong, page = visit(
        browser,
        address,
        names,
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
    )
    page.goto(f"{address}/index.html")
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert not wrong


THIN = """() => {
  const seen = {};
  const path = (each) => each && each.tagName !== "BODY" ? `${each.tagName}.${each.className}${each.getAttribute("style") ?? ""} ${path(each.parentElement)}` : "";
  [...document.querySelectorAll("main *, header *, footer *")].filter((each) => !each.childElementCount && /^(SPAN|CODE|TD|P|A|EM|STRONG)$/.test(each.tagName) && !each.closest("svg, math, button, form, summary, th, table[id^=T_]"))
    .map((each) => each.closest("a") ?? each).filter((each) => (seen[path(each)] = (seen[path(each)] ?? 0) + 1) > 3).forEach((each) => each.remove());
}"""


@pytest.mark.slow
@pytest.mark.browser
def test_every_page_is_accessible(site, address, browser):
    "axe finds nothing in light, and no contrast that is too low in dark. Of elements alike in tag, class and place three are looked at."
    from axe_playwright_python.sync_playwright import Axe

    page, found = (
        browser.new_context(
            viewport={"width": 1400, "height": 900}, color_scheme="light"
        ).new_page(),
        [],
    )
    for name in own_pages(site):
        page.goto(f"{address}/{name}")
        page.add_style_tag(content="* { transition: none !important }")
        page.evaluate(THIN)
        for theme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
            page.evaluate(
                "theme => { document.documentElement.dataset.theme = theme }", theme
            )
            problems = (
                Axe()
                .run(page, options={"resultTypes": ["violations"], **rules})
                .response["violations"]
            )
            found += [
                f"{name} ({theme}): {problem['id']}: {node['html'][:120]}"
                for problem in problems
                for node in problem["nodes"]
            ]
    assert not found, "\n".join(found)


@pytest.mark.browser
def test_the_self_assessment_with_keys_alone(address, browser):
    wrong, page = visit(
        browser, address, ["maturity.html"], viewport={"width": 400, "height": 900}
    )
    assert page.locator("#maturity-result").is_hidden()
    page.locator("fieldset input").first.focus()
    for _ in range(11):
        (
            page.keyboard.press("Space"),
            page.keyboard.press("ArrowDown"),
            page.keyboard.press("Tab"),
        )
    text = page.locator("#maturity-result").inner_text()
    assert (
        "(11 of 12 questions answered)" in text
        and "Next: " in text
        and "11 of 33 points" in text
    )
    page.reload()
    assert page.locator("#maturity-result").inner_text() == text
    page.get_by_role("button", name="start over").press("Enter")
    page.wait_for_function("document.getElementById('maturity-result').hidden")
    assert (
        page.evaluate("localStorage.getItem('housemlops-maturity')") is None
        and not wrong
    )


@pytest.mark.browser
def test_the_self_assessment_without_a_script(address, browser):
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(f"{address}/maturity.html")
    assert (
        page.locator("fieldset").count() == 12
        and page.locator("fieldset").last.is_visible()
    )


@pytest.mark.browser
def test_code_is_copied(address, browser):
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(f"{address}/contribute.html")
    block = page.locator(".highlight", has_text="housemlops adopt").first
    block.hover()
    block.get_by_role("button", name="copy").click()
    assert (
        page.evaluate("navigator.clipboard.readText()").strip()
        == "housemlops adopt houses.csv --name mine --target price --date sold_on"
    )


@pytest.mark.browser
@pytest.mark.parametrize("width, scheme", [(1400, "light"), (400, "dark")])
def test_the_page_of_the_months_stands_alone(months, tmp_path, browser, width, scheme):
    "From the disk, without a server: quiet, no wider than a phone, a picture with a name, and a table that a month of the picture leads to."
    page = write_history(months, tmp_path / "page").as_uri()
    wrong, view = visit(
        browser,
        page.removesuffix("/index.html"),
        ["index.html"],
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
    )
    assert not wrong
    assert (
        view.get_by_role("group", name="The months from 2008-11 to 2009-02").count()
        == 1
    )
    paper, ink = view.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert contrast(paper, ink) > 7
    muted = view.evaluate(
        "getComputedStyle(document.querySelector('.history small')).color"
    )
    signs = view.evaluate(
        "[...document.querySelectorAll('.sign, .history a')].map(each => getComputedStyle(each).color)"
    )
    assert (
        min(
            contrast(paper, colour)
            for colour in [
                muted,
                *(colour for colour in signs if colour.startswith("rgb(")),
            ]
        )
        > 4.5
    )
    view.locator("svg a").nth(1).dispatch_event("click")
    assert view.url.endswith("#m2008-12") and view.locator(
        "tbody:target"
    ).inner_text().startswith("2008-12")


def contrast(one, other):
    "The contrast of two colours, as WCAG defines it."

    def light(colour):
        parts = [
            int(part) / 255
            for part in colour[colour.index("(") + 1 : -1].split(",")[:3]
        ]
        return sum(
            weight
            * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
            for weight, part in zip((0.2126, 0.7152, 0.0722), parts)
        )

    bright, dark = sorted((light(one), light(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.browser
def test_search_finds_a_function(address, browser):
    wrong, page = visit(browser, address, ["search.html?q=folder_sha256"])
    page.wait_for_selector("#search-results li a", timeout=20_000)
    assert "settings" in page.inner_text("#search-results")
    assert not wrong
