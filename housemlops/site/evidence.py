"""Collect what the site claims about the latest run, with the facts that support it."""

import re
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from housemlops.promote import read_promotions
from housemlops.settings import (
    folder_sha256,
)
from housemlops.core.files import read_optional_json
from housemlops.site.templates import show_number
from housemlops.core.files import read_yaml


OPEN_SOURCE = re.compile(
    r"Apache|MIT|BSD|Python Software|PSF|MPL|Mozilla|ISC|GPL|EPL|Zope|Unlicense|CC0|Public Domain|Artistic"
    r"|Permission is hereby granted",
    re.IGNORECASE,
)


def licence_statements(
    package: metadata.Distribution,  # installed
) -> list[str]:  # the most precise first
    "Where a package speaks of its licence."
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


def licence(
    statements: Iterable[str],  # of one package
) -> str:  # empty when none is known as open source
    "The first open-source licence that is stated."
    named = next((text for text in statements if OPEN_SOURCE.search(text)), "")
    return (
        named
        if len(named) < 60
        else OPEN_SOURCE.search(named)[0].replace(
            "Permission is hereby granted", "MIT text"
        )
    )


def tools(
    root: Path,  # repository
) -> list[dict[str, str]]:  # name, version, licence, summary
    "The packages that the dependency groups of pyproject.toml ask for and that are installed."
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


def unlicensed() -> tuple[
    int, list[str]
]:  # packages installed; those without an open-source licence
    "Count the packages of the environment, and name those that state no open-source licence."
    packages = {
        package.metadata["Name"]: package for package in metadata.distributions()
    }
    return len(packages), sorted(
        name
        for name, package in packages.items()
        if not licence(licence_statements(package))
    )


def read_run(
    run: Path,  # workspace of a finished run; need not exist
) -> dict:  # what it left behind
    "The facts of a run."
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
        name: read_optional_json(build / f"{file}.json") for name, file in names.items()
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
        "lineage": read_optional_json(run / "lineage.json"),
        "params": params,
        "lock": read_yaml(run / "dvc.lock").get("stages", {}),
        "data_md5": tracked,
        "model_sha256": folder_sha256(model) if model.is_dir() else "",
    }


def handovers(
    lock: dict[str, dict],  # stages of dvc.lock
) -> list[tuple[str, str, str, bool]]:  # writer, reader, path, same hash
    "Every file that one stage wrote and another read, with whether the hashes agree."
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


def released(
    state: Path,  # state folder
) -> dict:  # model_sha256, version, data_md5 and more; empty when nothing is served
    "What the live release of the server says of itself."
    return read_optional_json(state / "serve/current/model/release.json")


def decided(
    log: Path,  # promotion log; need not exist
    model: str | None,  # registered name
) -> list[dict]:  # newest first
    "What the promotion log says of a model."
    return [
        entry for entry in reversed(read_promotions(log)) if entry["model"] == model
    ]


def same(*hashes: str | None) -> bool | None:  # nothing when one is missing
    "Whether all hashes are the same."
    return len(set(hashes)) == 1 if all(hashes) else None


def deploy_claims(
    facts: dict,  # of a run
    stages: Iterable[str],  # of dvc.yaml
    release: dict,  # what the server holds
) -> list[tuple[str, bool | None]]:  # sentence and judgement
    "The model moves, and it is always the same model."
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


def together_claims(
    facts: dict,  # of a run
    release: dict,  # what the server holds
) -> list[tuple[str, bool | None]]:  # sentence and judgement
    "What one component hands over is what the next one gets."
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
    facts: dict,  # of a run
    stages: Iterable[str],  # of dvc.yaml
    release: dict,  # what the server holds
) -> dict[
    str, list[tuple[str, bool | None]]
]:  # topic -> sentence and judgement; empty before the first run
    "What is claimed of the pipeline, judged by the facts of a run."
    if not facts["lock"]:
        return {}
    return {
        "deploy": deploy_claims(facts, stages, release),
        "together": together_claims(facts, release),
    }


def cards(
    facts: dict,  # of a run
) -> list[tuple[str, str, str]]:  # label, value, note
    "The figures of the latest run, for the home page."
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
