"""Collect what the site claims about the latest run, with the facts that support it."""

import re
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from housemlops.core.files import read_json, read_yaml
from housemlops.promote import read_promotions
from housemlops.settings import (
    folder_sha256,
)
from housemlops.site.templates import show_number

OPEN_SOURCE = re.compile(
    r"Apache|MIT|BSD|Python Software|PSF|MPL|Mozilla|ISC|GPL|EPL|Zope|Unlicense|CC0|Public Domain|Artistic"
    r"|Permission is hereby granted",
    re.IGNORECASE,
)


def licence_statements(package: metadata.Distribution) -> list[str]:
    """Where a package speaks of its licence.

    Args:
        package: Installed.

    Returns:
        The most precise first.
    """
    said = package.metadata
    classifiers = [
        line.split(" :: ")[-1]
        for line in said.get_all("Classifier", [])
        if line.startswith("License ::")
    ]
    files = [
        file.locate()
        for file in package.files or ()
        if re.match("LICEN|COPYING", file.name, re.IGNORECASE)
    ]
    texts = [
        " ".join(file.read_text(errors="replace").split())[:100]
        for file in files
        if file.is_file()
    ]
    return [
        said.get("License-Expression") or "",
        *classifiers,
        (said.get("License") or "").strip().split("\n")[0],
        *texts,
    ]


def licence(statements: Iterable[str]) -> str:
    """The first open-source licence that is stated.

    Args:
        statements: Of one package.

    Returns:
        Empty when none is known as open source.
    """
    named = next((text for text in statements if OPEN_SOURCE.search(text)), "")
    return (
        named
        if len(named) < 60
        else OPEN_SOURCE.search(named)[0].replace(
            "Permission is hereby granted", "MIT text"
        )
    )


def tools(root: Path) -> list[dict[str, str]]:
    """The packages that the dependency groups of pyproject.toml ask for and that are installed.

    Args:
        root: Repository.

    Returns:
        Name, version, licence, summary.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    lines = [line for group in project["dependency-groups"].values() for line in group]
    names = {
        canonicalize_name(Requirement(line).name)
        for line in lines
        if isinstance(line, str)
    }
    installed = {
        canonicalize_name(package.name) for package in metadata.distributions()
    }
    found = [metadata.distribution(name) for name in sorted(names & installed)]
    return [
        {
            "name": package.metadata["Name"],
            "version": package.version,
            "licence": licence(licence_statements(package)),
            "summary": (package.metadata.get("Summary") or "").rstrip("."),
        }
        for package in found
    ]


def unlicensed() -> tuple[int, list[str]]:
    """Count the packages of the environment, and name those that state no open-source licence.

    Returns:
        Packages installed; those without an open-source licence.
    """
    packages = {
        package.metadata["Name"]: package for package in metadata.distributions()
    }
    return len(packages), sorted(
        name
        for name, package in packages.items()
        if not licence(licence_statements(package))
    )


def read_run(run: Path) -> dict:
    """The facts of a run.

    Args:
        run: Workspace of a finished run; need not exist.

    Returns:
        What it left behind.
    """
    build, model, params = (
        run / "build",
        run / "build/train/model",
        read_yaml(run / "params.yaml"),
    )
    names = {
        "metrics": "evaluate/metrics",
        "receipt": "promote/receipt",
        "summary": "prepare/summary",
        "verdict": "monitor/verdict",
    }
    facts = {
        name: read_json(build / f"{file}.json", {}) for name, file in names.items()
    }
    tracked = (
        read_yaml(run / f"data/{params.get('dataset')}.csv.dvc")
        .get("outs", [{}])[0]
        .get("md5", "")
    )
    card = build / "evaluate/card.md"
    return {
        **facts,
        "card": card.read_text(encoding="utf-8") if card.is_file() else "",
        "lineage": read_json(run / "lineage.json", {}),
        "params": params,
        "lock": read_yaml(run / "dvc.lock").get("stages", {}),
        "data_md5": tracked,
        "model_sha256": folder_sha256(model) if model.is_dir() else "",
    }


def handovers(lock: dict[str, dict]) -> list[tuple[str, str, str, bool]]:
    """Every file that one stage wrote and another read, with whether the hashes agree.

    Args:
        lock: Stages of dvc.lock.

    Returns:
        Writer, reader, path, same hash.
    """
    wrote = {
        out["path"]: (name, out.get("md5"))
        for name, stage in lock.items()
        for out in stage.get("outs", ())
    }
    return [
        (
            wrote[dep["path"]][0],
            name,
            dep["path"],
            dep.get("md5") == wrote[dep["path"]][1],
        )
        for name, stage in lock.items()
        for dep in stage.get("deps", ())
        if dep["path"] in wrote
    ]


def released(state: Path) -> dict:
    """What the live release of the server says of itself.

    Args:
        state: State folder.

    Returns:
        model_sha256, version, data_md5 and more; empty when nothing is served.
    """
    return read_json(state / "serve/current/model/release.json", {})


def decided(log: Path, model: str | None) -> list[dict]:
    """What the promotion log says of a model.

    Args:
        log: Promotion log; need not exist.
        model: Registered name.

    Returns:
        Newest first.
    """
    return [
        entry for entry in reversed(read_promotions(log)) if entry["model"] == model
    ]


def same(*hashes: str | None) -> bool | None:
    """Whether all hashes are the same.

    Returns:
        Nothing when one is missing.
    """
    return len(set(hashes)) == 1 if all(hashes) else None


def deploy_claims(
    facts: dict, stages: Iterable[str], release: dict
) -> list[tuple[str, bool | None]]:
    """The model moves, and it is always the same model.

    Args:
        facts: Of a run.
        stages: Of dvc.yaml.
        release: What the server holds.

    Returns:
        Sentence and judgement.
    """
    receipt, sha, served = (
        facts["receipt"],
        facts["model_sha256"],
        release.get("model_sha256") or "",
    )
    crowned = next(
        (
            entry["model_sha256"]
            for entry in facts.get("decisions", ())
            if entry["action"] != "refused"
        ),
        None,
    )
    measured, judged = facts["metrics"].get("model_sha256"), receipt.get("model_sha256")
    return [
        (
            f"`dvc.lock` records what every one of the {len(list(stages))} stages read and wrote",
            set(stages) <= set(facts["lock"]),
        ),
        (
            f"the model that was trained, `{sha[:12]}`, is the one that was measured and the one that was judged",
            same(sha, measured, judged),
        ),
        (
            f"the server holds the champion, `{served[:12] or 'none'}`",
            same(crowned, served),
        ),
    ]


def together_claims(facts: dict, release: dict) -> list[tuple[str, bool | None]]:
    """What one component hands over is what the next one gets.

    Args:
        facts: Of a run.
        release: What the server holds.

    Returns:
        Sentence and judgement.
    """
    agree, ledger, verdict = (
        [hand[3] for hand in handovers(facts["lock"])],
        facts["data_md5"],
        facts["verdict"].get("verdict"),
    )
    read = facts["summary"].get("source", {}).get("data_md5")
    return [
        (
            f"{sum(agree)} of {len(agree)} hand-overs between stages carry the hash that was written",
            all(agree),
        ),
        (
            f"the ledger that the stages read is the one that DVC tracks, `{ledger[:12]}`",
            same(ledger, read),
        ),
        (
            "the model that is served learned from this ledger",
            same(ledger, release.get("data_md5")),
        ),
        (
            f"monitoring asked the server and came to a verdict: {verdict}",
            bool(verdict) or None,
        ),
    ]


def claims(
    facts: dict, stages: Iterable[str], release: dict
) -> dict[str, list[tuple[str, bool | None]]]:
    """What is claimed of the pipeline, judged by the facts of a run.

    Args:
        facts: Of a run.
        stages: Of dvc.yaml.
        release: What the server holds.

    Returns:
        Topic -> sentence and judgement; empty before the first run.
    """
    if not facts["lock"]:
        return {}
    return {
        "deploy": deploy_claims(facts, stages, release),
        "together": together_claims(facts, release),
    }


def cards(facts: dict) -> list[tuple[str, str, str]]:
    """The figures of the latest run, for the home page.

    Args:
        facts: Of a run.

    Returns:
        Label, value, note.
    """
    metrics, receipt, verdict = (
        facts[name] for name in ("metrics", "receipt", "verdict")
    )
    limits, model = metrics.get("thresholds", {}), metrics.get("model", {})
    found = [
        (
            name.upper() if name != "r2" else "R²",
            show_number(model[name]),
            f"threshold {show_number(limits[name])}",
        )
        for name in ("mae", "mse", "r2")
        if name in model and name in limits
    ]
    note, version = (
        "promoted by this run" if receipt.get("promoted") else "from an earlier run",
        receipt.get("champion_version"),
    )
    champion = [("champion", f"version {version}", note)] if version else []
    drift = (
        [("monitoring", str(verdict["verdict"]), "verdict")]
        if verdict.get("verdict")
        else []
    )
    return found + champion + drift
