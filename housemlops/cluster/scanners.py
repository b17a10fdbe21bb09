"""Run Trivy, hadolint and ShellCheck over manifests, Dockerfiles and scripts."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from housemlops.cluster.images import image_fault
from housemlops.cluster.manifests import Cluster, run_tool
from housemlops.settings import WorkbookError

ALLOWED = {  # rule -> text in the findings that are accepted, and the reason
    "KSV-0020": (
        "",
        "an image has the user that its makers chose; with no privilege to gain, a UID "
        "above 10000 protects from nothing more",
    ),
    "KSV-0021": ("", "the same of its group"),
    "KSV-0125": (
        "",
        "the rule knows four clouds' registries; an image here is held to its digest, "
        "or is our own",
    ),
    "KSV-0109": (
        "ConfigMap postgres-init-",
        "the rule sees the word PASSWORD in a script, which reads the passwords from "
        "files",
    ),
    "KSV-01010": (
        "ConfigMap release-",
        "the rule takes DATA_MD5 for a password; it is the hash of the data",
    ),
}


def is_allowed(rule: str, sentence: str) -> bool:
    """Return whether a finding is accepted."""
    return rule in ALLOWED and ALLOWED[rule][0] in sentence


def dockerfiles(root: Path) -> dict[str, str]:
    """Return the text of each Dockerfile by its path."""
    paths = sorted(root.glob("deploy/images/*/Dockerfile"))
    return {path.relative_to(root).as_posix(): path.read_text() for path in paths}


def finding(rule: str, place: str, message: str) -> tuple[str, str]:
    """Return a rule, and a sentence about what broke it."""
    return rule, f"{place}: {message.rstrip('.')} ({rule})"


def trivy_findings(root: Path, clusters: list[Cluster]) -> Iterator[tuple[str, str]]:
    """Yield what Trivy says about every rendered object and every Dockerfile."""
    names, texts = {}, dockerfiles(root)
    for cluster in clusters:
        for manifest in cluster.manifests:
            file = f"{len(names):04}.yaml"
            names[file] = f"{manifest} (cluster {cluster.name})"
            texts[file] = json.dumps(manifest.body)
    with TemporaryDirectory() as scratch:
        for file, text in texts.items():
            path = Path(scratch) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        options = "--skip-check-update --skip-version-check --quiet --format json"
        cache = f"--cache-dir={scratch}/.cache"
        done = run_tool("trivy", "config", *options.split(), cache, scratch)
    if done.returncode:
        last_line = done.stderr.strip().splitlines()[-1]
        raise WorkbookError(f"trivy did not run: {last_line}")
    for result in json.loads(done.stdout).get("Results", ()):
        place = names.get(result["Target"], result["Target"])
        for one in result.get("Misconfigurations", ()):
            yield finding(one["ID"], place, one["Message"])


def hadolint_findings(root: Path) -> Iterator[tuple[str, str]]:
    """Yield what hadolint says about the Dockerfiles."""
    for name, text in dockerfiles(root).items():
        done = run_tool("hadolint", "--no-color", "--format", "json", "-", input=text)
        for one in json.loads(done.stdout or "[]"):
            yield finding(one["code"], f"{name}, line {one['line']}", one["message"])


def base_findings(root: Path) -> Iterator[tuple[str, str]]:
    """Yield bases of images that are not pinned."""
    for name, text in dockerfiles(root).items():
        stages = re.findall(r"(?mi)^FROM \S+ AS (\S+)", text)
        for base in re.findall(r"(?mi)^FROM (?:--\S+ )*(\S+)", text):
            fault = image_fault(base) if base not in stages else ""
            if fault:
                yield "", f"{name}: the base {base} {fault}"


def shellcheck_findings(root: Path) -> Iterator[tuple[str, str]]:
    """Yield what ShellCheck says about the scripts."""
    paths = sorted((root / "deploy").rglob("*.sh"))
    options = ["--format", "json", "--external-sources"]
    scripts = [path.relative_to(root) for path in paths]
    done = run_tool("shellcheck", *options, *scripts, cwd=root)
    for one in json.loads(done.stdout or "[]"):
        place = f"{one['file']}, line {one['line']}"
        yield finding(f"SC{one['code']}", place, one["message"])


def scan_faults(root: Path, clusters: list[Cluster]) -> Iterator[str]:
    """Yield findings that are not accepted, and acceptances that nothing needs."""
    findings = [
        *trivy_findings(root, clusters),
        *hadolint_findings(root),
        *base_findings(root),
        *shellcheck_findings(root),
    ]
    for rule, sentence in dict.fromkeys(findings):
        if not is_allowed(rule, sentence):
            yield sentence
    for rule in sorted(ALLOWED.keys() - {rule for rule, _ in findings}):
        yield f"housemlops.cluster.scanners.ALLOWED has {rule}, which nothing needs"
