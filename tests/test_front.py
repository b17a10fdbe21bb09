"""The front page of `up`: what it hands out, to whom, and before there is anything."""

import psutil
import pytest
from starlette.testclient import TestClient

from housemlops.front import front_app
from housemlops.operations.services import services
from housemlops.operations.supervisor import Child, Supervisor, open_log
from housemlops.settings import repo_root, settings

OWN = "http://127.0.0.1"
TOKEN = "token-of-jupyterlab"


@pytest.fixture
def supervisor(tmp_path) -> Supervisor:
    "A supervisor whose state folder is empty, and whose servers do not run"
    root = repo_root()
    chosen = settings(root)
    chosen.paths.state = tmp_path / "var"
    (tmp_path / "var/workspaces/run-1/reports").mkdir(parents=True)
    (tmp_path / "var/workspaces/run-1/reports/train.html").write_text("a report")
    (tmp_path / "secret.html").write_text("a secret")
    (tmp_path / "secret.txt").write_text("a secret")
    children = [
        Child(service, tmp_path / f"{service.name}.log")
        for service in services(chosen, root, TOKEN)
    ]
    for child in children:
        child.problem = ""
        child.process = psutil.Process() if child.service.name == "jupyter" else None
    return Supervisor(chosen, root, "mark", children)


@pytest.fixture
def front(supervisor) -> TestClient:
    return TestClient(front_app(supervisor), OWN)


def test_reports_are_those_of_the_runs(front, tmp_path):
    runs = tmp_path / "var/workspaces/run-1"
    (runs / "link.html").symlink_to(tmp_path / "secret.html")
    (runs / "text.html").symlink_to(tmp_path / "secret.txt")
    (runs / "round.html").symlink_to("round.html")
    (runs / "folder").symlink_to(tmp_path)
    (runs / "own.html").symlink_to("reports/train.html")
    (runs / "params.yaml").write_text("a: 1")
    for path in ("run-1/reports/train.html", "run-1/own.html"):
        assert front.get(f"/runs/{path}").text == "a report"
    for path in (
        f"/runs/{tmp_path}/secret.html",
        f"/runs/%2F{tmp_path}/secret.html",
        f"/runs/run-1/..%2F..%2F..%2F..{tmp_path}/secret.html",
        "/runs/run-1/link.html",
        "/runs/run-1/text.html",
        "/runs/run-1/round.html",
        "/runs/run-1/folder/secret.html",
        "/runs/run-1/params.yaml",
        "/runs/run-1/reports",
        "/runs/" + "x" * 300 + ".html",
        "/runs/" + "x/" * 3000 + ".html",
        "/runs/%00.html",
        "/runs/",
    ):
        answer = front.get(path)
        assert answer.status_code == 404 and "secret" not in answer.text, path


def test_before_the_site_is_built_its_place_says_so(front, tmp_path):
    for path in ("/site/", "/site/index.html", "/site/stages/train.html"):
        answer = front.get(path)
        assert answer.status_code == 503 and "is being built" in answer.text
        assert answer.headers["refresh"] == "5"
    (tmp_path / "var/site").mkdir()
    (tmp_path / "var/site/index.html").write_text("the site")
    assert front.get("/site/").text == "the site"
    assert front.get("/site/" + "x" * 300).status_code == 404


def test_secrets_are_on_the_page_for_those_with_its_key_alone(front, supervisor):
    assert front.get("/status").json()["services"]["jupyter"]["page"].endswith(".ipynb")
    for path in ("/", "/status", "/?key=", "/?key=wrong", "/?key=%C3%A4"):
        answer = front.get(path)
        assert answer.status_code == 200 and TOKEN not in answer.text, path
    assert supervisor.key in supervisor.address
    answer = front.get(supervisor.address)
    assert TOKEN in answer.text
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"


def test_nothing_is_changed_over_it(front):
    for path in ("/", "/status", "/site/", "/runs/run-1/reports/train.html"):
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert front.request(method, path).status_code in (405, 503), path


def test_logs_are_their_owners_alone(tmp_path):
    with open_log(tmp_path / "log/server.log") as log:
        log.write(b"a line\n")
    assert (tmp_path / "log/server.log").stat().st_mode & 0o777 == 0o600
