"""The documentation site: complete, in order, without dead links, and silent on the network."""
import hashlib
import json
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

from housemlops.docs import all_pages, build_docs, claims, gather, lifecycle, lifecycle_svg, support_rooms
from housemlops.orchestrate import listed
from housemlops.promote import record
from housemlops.settings import folder_sha256, repo_root

ROOT = repo_root()


def md5(text): return hashlib.md5(text.encode()).hexdigest()


def lock_of(stages):
    "A dvc.lock in which every hand-over agrees."
    def entry(path): return {"path": path, "hash": "md5", "md5": md5(path), "size": 2_500, "nfiles": 2}
    return {name: {"cmd": stage["cmd"], "deps": [entry(path.replace("${dataset}", "ames")) for path in listed(stage["deps"])],
                   "outs": [entry(path) for path in listed(stage["outs"])]} for name, stage in stages.items()}


@pytest.fixture(scope="module", autouse=True)
def state(tmp_path_factory):
    "A state folder of its own, so that what this checkout has run and serves does not matter."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOUSEMLOPS_PATHS_STATE", str(folder := tmp_path_factory.mktemp("state")))
        yield folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, state):
    "A folder that looks like a finished run, whose champion is served."
    folder = tmp_path_factory.mktemp("run")
    def put(name, text):
        path = folder/name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    put("build/train/model/model.onnx", "weights")
    sha = folder_sha256(folder/"build/train/model")
    put("params.yaml", "dataset: ames\nas_of: 2010-08\n")
    put("data/ames.csv.dvc", f"outs:\n- md5: {md5('data/ames.csv')}\n  path: ames.csv\n")
    put("dvc.lock", json.dumps({"schema": "2.0", "stages": lock_of(lifecycle(ROOT))}))
    put("lineage.json", json.dumps({"git_commit": "c0ffee", "git_branch": "main", "uncommitted": []}))
    put("build/evaluate/metrics.json", json.dumps({
        "model_sha256": sha, "model": {"mae": 13210.4, "mse": 4.1e8, "r2": 0.93}, "baseline": {"mae": 51234, "mse": 5.1e9, "r2": 0},
        "thresholds": {"mae": 14000, "mse": 4.5e8, "r2": 0.91},
        "gates": [{"name": "mae", "value": 13210.4, "threshold": 14000, "passed": True, "reason": ""}]}))
    put("build/promote/receipt.json", json.dumps({"promoted": True, "reasons": ["every gate passed"], "model_name": "house-prices-ames",
                                                  "version": 3, "alias": "champion", "model_sha256": sha, "champion_version": 3, "champion_sha256": sha}))
    put("build/prepare/summary.json", json.dumps({"rows": 2930, "train": 2390, "test": 410, "quarantined": 3, "flagged": 12,
                                                    "source": {"data_md5": md5("data/ames.csv")}}))
    put("build/evaluate/card.md", "# Model card\n\nPredicts prices.\n")
    put("build/monitor/verdict.json", json.dumps({"verdict": "stable", "reasons": []}))
    put("build/monitor/report.html", "<head><title>drift</title><link href='https://fonts.example/a.css' rel='stylesheet'></head>" + "x "*600_000)
    (state/"serve/current/model").mkdir(parents=True)
    (state/"serve/current/model/release.json").write_text(json.dumps({"model_sha256": sha, "version": 3, "data_md5": md5("data/ames.csv")}))
    record(state/"promotions.jsonl", action="promoted", model="house-prices-ames", version=3, model_sha256=sha, why="better than version 2")
    put("reports/train.html", "<head><title>train</title><script src='https://cdn.example/require.js'></script></head><h1>executed</h1>")
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory, run):
    "The site, built once; any warning of Sphinx is an error here."
    return build_docs(out=tmp_path_factory.mktemp("built")/"site", run=run)


class Page(HTMLParser):
    "The links, resources and anchors of a page."
    def __init__(self, path):
        super().__init__()
        self.links, self.resources, self.anchors, self.relations = [], [], set(), {}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given.get("id"), given.get("name") if tag == "a" else None}
        if tag == "a" and "href" in given: self.links.append(given["href"])
        if tag == "link" and given.get("rel") in ("next", "prev"): self.relations[given["rel"]] = given["href"]
        elif tag == "link": self.resources.append(given.get("href", ""))
        elif tag in ("script", "img", "iframe", "source", "video", "object", "embed"):
            self.resources += [given[name] for name in ("src", "data", "srcset") if name in given]

    handle_startendtag = handle_starttag


@pytest.fixture(scope="module")
def pages(site): return {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def outside(url): return urlsplit(url).scheme in ("http", "https") or url.startswith("//")


@pytest.mark.slow
def test_reading_order_is_the_graph(site, pages):
    order, path = [], site/"index.html"
    while path not in order:
        order.append(path)
        path = (path.parent/pages[path].relations.get("next", path.name)).resolve()
    names = [path.relative_to(site).as_posix().removesuffix(".html") for path in order]
    stages, rooms = list(lifecycle(ROOT)), support_rooms(ROOT)
    assert [name for name in names if name in stages] == stages
    assert [name for name in names if name in rooms] == rooms
    assert {path.stem for path in (ROOT/"nbs").glob("*.ipynb")} <= set(names)
    assert names[0] == "index" and {"api", "data", "evidence"} <= set(names)


def test_no_dead_link(site, pages):
    dead = []
    for path, page in pages.items():
        for link in [*page.links, *page.resources]:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//") or link in ("#", ""): continue
            target = (path.parent/unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir(): target /= "index.html"
            known = pages.get(target)
            if not target.is_file() or (parts.fragment and known and unquote(parts.fragment) not in known.anchors):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert not dead


def test_nothing_is_loaded_from_another_host(site, pages):
    asked = [f"{path.relative_to(site)}: {url}" for path, page in pages.items() for url in page.resources if outside(url)]
    styles = [f"{path.name}: {line.strip()[:80]}" for path in site.rglob("*.css") for line in path.read_text(encoding="utf-8").splitlines()
              if "url(http" in line or "url(//" in line or "@import" in line and "http" in line]
    assert not asked + styles


def test_evidence_of_a_run(site):
    text = (site/"evidence.html").read_text(encoding="utf-8")
    for part in ("13,210", "house-prices-ames", "2,390", "executed on 2010-08", "c0ffee", "model-card.html", "better than version 2"): assert part in text
    assert 'class="no"' not in text and 'class="unknown"' not in text and "No run yet" not in text
    train = (site/"train.html").read_text(encoding="utf-8")
    assert "executed on 2010-08" in train and "1.2 MB" in (site/"monitor.html").read_text(encoding="utf-8")
    assert "cdn.example" not in (site/"latest/train.html").read_text(encoding="utf-8")


def test_the_card_of_the_latest_run_is_a_page(site):
    text = (site/"model-card.html").read_text(encoding="utf-8")
    assert "Predicts prices." in text and "No run yet" not in text


def test_evidence_notices_a_hand_over_that_does_not_agree(run):
    house = gather(ROOT, run)
    assert all(same for *_, same in house["handovers"])
    lock = house["facts"]["lock"]
    reader = next(name for name, stage in lock.items() if any(dep["path"].startswith("build/") for dep in stage["deps"]))
    next(dep for dep in lock[reader]["deps"] if dep["path"].startswith("build/"))["md5"] = "stale"
    assert False in [held for _, held in claims(house["facts"], house["stages"], {})["together"]]


def test_evidence_before_the_first_run(tmp_path):
    pages = all_pages(gather(ROOT, tmp_path/"nowhere"))
    for name in ("evidence.md", "model-card.md"): assert "No run yet" in pages[name] and "make run" in pages[name]
    assert "mlflow" in pages["evidence.md"]


def test_units_reach_the_api_pages(site):
    text = (site/"api/settings.html").read_text(encoding="utf-8")
    assert "64 hexadecimal digits" in text and "docments" in text


def test_committed_picture_is_current():
    committed = (ROOT/"nbs/site/lifecycle.svg").read_text(encoding="utf-8")
    assert committed == lifecycle_svg(ROOT), "dvc.yaml has changed: call housemlops.docs.save_picture()"


def test_nothing_changed_means_nothing_to_do(site, run):
    before = (site/"index.html").stat().st_mtime_ns
    assert build_docs(out=site, run=run) == site
    assert (site/"index.html").stat().st_mtime_ns == before


def test_pages_are_light(site):
    weights = {path.relative_to(site).as_posix(): path.stat().st_size for path in site.glob("*.html")}
    heaviest = max(weights, key=weights.get)
    print(f"heaviest page: {heaviest}, {weights[heaviest]/1e3:.0f} kB")
    assert weights[heaviest] < 1_000_000


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope="module")
def address(site):
    "The site on a free port of loopback."
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def visit(browser, address, names, **context):
    "Open pages; return what went wrong, and the last page."
    page, wrong = browser.new_context(**context).new_page(), []
    page.on("console", lambda message: wrong.append(f"{page.url} says {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"{page.url} raises {error}"))
    page.on("request", lambda request: wrong.append(f"{page.url} asks {request.url}")
            if not request.url.startswith((address, "data:", "blob:")) else None)
    page.on("response", lambda response: wrong.append(f"{response.url} is {response.status}") if response.status >= 400 else None)
    for name in names:
        page.goto(f"{address}/{name}")
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        if wide > 0: wrong.append(f"{name} is {wide} px wider than the window")
    return wrong, page


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("width, scheme", [(1400, "light"), (400, "dark")])
def test_every_page_opens_quietly(site, address, browser, width, scheme):
    names = [path.relative_to(site).as_posix() for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    wrong, page = visit(browser, address, names, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(f"{address}/index.html")
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert not wrong


@pytest.mark.browser
def test_search_finds_a_function(address, browser):
    wrong, page = visit(browser, address, ["search.html?q=folder_sha256"])
    page.wait_for_selector("#search-results li a", timeout=20_000)
    assert "settings" in page.inner_text("#search-results")
    assert not wrong
