"""The files for contributors and for the forge can be read, and what they say of this project is true."""

import configparser
import json
import os
import re
import tomllib

import pytest
from packaging.specifiers import SpecifierSet
from ruamel.yaml import YAML

from checkout import ROOT
from housemlops.cli import app

PAGES = [
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    ".github/pull_request_template.md",
    ".github/ISSUE_TEMPLATE/bug.yml",
]
CODE = re.compile(r"`([^`\n]+)`|^    (\S.*?)(?:  +#.*)?$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
FILE = re.compile(r"(?!/)\S*(?:/|\.(?:ini|ipynb|lock|md|py|toml|yaml)$)\S*")


def read(name: str) -> str:
    """Return the text of a file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def read_yaml(name: str) -> dict:
    """Return the content of a YAML file of the repository."""
    return YAML(typ="safe").load(read(name))


def commands(name: str) -> list[list[str]]:
    """Return the words of each code span and code line of a page."""
    return [(span or line).split() for span, line in CODE.findall(read(name))]


def project() -> dict:
    """Return the table `project` of pyproject.toml."""
    return tomllib.loads(read("pyproject.toml"))["project"]


@pytest.mark.parametrize("name", PAGES)
def test_targets_and_verbs_that_a_page_names_exist(name):
    targets = re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE)
    verbs = [
        command.name or command.callback.__name__.replace("_", "-")
        for command in app.registered_commands
    ]
    known = {"make": targets, "housemlops": verbs}
    unknown = [
        " ".join(words)
        for words in commands(name)
        if len(words) > 1 and words[0] in known and words[1] not in known[words[0]]
    ]
    assert unknown == []


@pytest.mark.parametrize("name", PAGES)
def test_files_that_a_page_names_exist(name):
    named = [word for words in commands(name) for word in words if FILE.fullmatch(word)]
    linked = LINK.findall(read(name)) if name.endswith(".md") else []
    missing = {path for path in named + linked if not (ROOT / path).exists()}
    # the environment, and the start of a generated server
    assert missing - {".venv/bin/activate", "app.py"} == set()


def test_contributing_names_what_contributors_type():
    typed = {" ".join(words[:2]) for words in commands("CONTRIBUTING.md")}
    assert typed >= {"make hooks", "make check", "make test", "make sync"}
    assert len(read("CONTRIBUTING.md").splitlines()) <= 80


def test_versions_and_dates_agree():
    citation = read_yaml("CITATION.cff")
    releases = re.findall(
        r"^## \[(.+?)\](?: - (\S+))?$", read("CHANGELOG.md"), re.MULTILINE
    )
    assert releases[0] == ("Unreleased", "")
    version, date = releases[1]
    assert version == citation["version"] == project()["version"]
    assert date == str(citation["date-released"])
    assert citation["license"] == project()["license"]


def test_devcontainer_makes_the_environment_and_forwards_every_port():
    container = json.loads(read(".devcontainer/devcontainer.json"))
    settings = configparser.ConfigParser(interpolation=None)
    settings.read_string(read("settings.ini"))
    ports = {int(part["port"]) for part in settings.values() if "port" in part}
    assert {*container["forwardPorts"]} == ports
    assert {int(port) for port in container["portsAttributes"]} == ports
    stamp = re.search(r"^run: (\S+)", read("Makefile"), re.MULTILINE)[1]
    assert container["postCreateCommand"] == f"make {stamp}"
    assert container["postAttachCommand"] == "make run"


def test_workflow_runs_everything_once_and_the_quick_checks_elsewhere():
    workflow = read_yaml(".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    matrix = job["strategy"]["matrix"]["include"]
    allowed = SpecifierSet(project()["requires-python"])
    minors = [f"3.{minor}" for minor in range(30) if f"3.{minor}" in allowed]
    assert [entry["python"] for entry in matrix] == minors
    wanted = [".ci/run"] + ["make check"] * (len(minors) - 1)
    assert [entry["command"] for entry in matrix] == wanted
    assert os.access(ROOT / ".ci/run", os.X_OK)
    steps = job["steps"]
    assert steps[-1] == {"run": "${{ matrix.command }}"}
    actions = [step["uses"] for step in steps[:-1]]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in actions)


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms_ask_for_something(name):
    form = read_yaml(f".github/ISSUE_TEMPLATE/{name}.yml")
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert form["name"] and form["description"]
    assert len({field["id"] for field in fields}) == len(fields) > 2
    assert all(field["attributes"]["label"] for field in fields)
