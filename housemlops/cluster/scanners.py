"""Run the scanners over manifests and Dockerfiles: policy, lint, vulnerable settings."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from housemlops.cluster.manifests import Cluster, run_tool
from housemlops.cluster.release_file import image_fault
from housemlops.settings import WorkbookError

ALLOWED = {  # rule -> which findings, and why they may stand
    "KSV-0020": (
        "",
        "an image has the user that its makers chose; with no privilege to gain, a UID above 10000 protects from nothing more",
    ),
    "KSV-0021": ("", "the same of its group"),
    "KSV-0125": (
        "",
        "the rule knows four clouds' registries; an image here is held to its digest, or is our own",
    ),
    "KSV-0109": (
        "ConfigMap postgres-init-",
        "the rule sees the word PASSWORD in a script, which reads the passwords from files",
    ),
    "KSV-01010": (
        "ConfigMap release-",
        "the rule takes DATA_MD5 for a password; it is the hash of the data",
    ),
}


def allowed(rule: str, sentence: str) -> bool:
    "Whether a finding may stand"
    return rule in ALLOWED and ALLOWED[rule][0] in sentence


def policy_findings(root: Path, read: list[Cluster]) -> Iterator[tuple[str, str]]:
    """What Trivy says about every rendered object and every Dockerfile.

    Returns:
        Rule, sentence.
    """
    with TemporaryDirectory() as made:
        names, scratch = {}, Path(made)
        pairs = [
            (cluster, manifest) for cluster in read for manifest in cluster.manifests
        ]
        for i, (cluster, manifest) in enumerate(pairs):
            names[f"{i:04}.yaml"] = f"{manifest} (cluster {cluster.name})"
            (scratch / f"{i:04}.yaml").write_text(json.dumps(manifest.body))
        for name, text in dockerfiles(root).items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_text(text)
        done = run_tool(
            "trivy",
            "config",
            "--skip-check-update",
            "--skip-version-check",
            "--quiet",
            "--cache-dir",
            scratch / ".cache",
            "--format",
            "json",
            scratch,
        )
    if done.returncode:
        raise WorkbookError(
            f"trivy did not run: {done.stderr.strip().splitlines()[-1]}"
        )
    for result in json.loads(done.stdout).get("Results", ()):
        where = names.get(result["Target"], result["Target"])
        yield from (
            (one["ID"], f"{where}: {one['Message'].rstrip('.')} ({one['ID']})")
            for one in result.get("Misconfigurations", ())
        )


def dockerfiles(root: Path) -> dict[str, str]:
    """What our images are built by.

    Returns:
        File -> text.
    """
    return {
        path.relative_to(root).as_posix(): path.read_text()
        for path in sorted(root.glob("deploy/images/*/Dockerfile"))
    }


def lint_findings(root: Path) -> Iterator[tuple[str, str]]:
    """What hadolint says, and bases that are not pinned.

    Returns:
        Rule, sentence.
    """
    for name, text in dockerfiles(root).items():
        done = run_tool("hadolint", "--no-color", "--format", "json", "-", input=text)
        yield from (
            (
                one["code"],
                f"{name}, line {one['line']}: {one['message'].rstrip('.')} ({one['code']})",
            )
            for one in json.loads(done.stdout or "[]")
        )
        context = re.search(r"(?m)^# +docker build .* (\S+)$", text)
        copied = (
            [
                source
                for line in re.findall(r"(?m)^COPY (?!--)(.*) \S+$", text)
                for source in line.split()
            ]
            if context and (root / context[1] / ".git").exists()
            else []
        )
        yield from (
            ("", f"{name} copies {source}, which is not there")
            for source in copied
            if not (root / context[1] / source).exists()
        )
        stages = set(re.findall(r"(?mi)^FROM \S+ AS (\S+)", text))
        yield from (
            ("", f"{name}: the base {base} {fault}")
            for base in re.findall(r"(?mi)^FROM (?:--\S+ )*(\S+)", text)
            if base not in stages and (fault := image_fault(base))
        )


def script_findings(root: Path) -> Iterator[tuple[str, str]]:
    """What ShellCheck says about the scripts.

    Returns:
        Rule, sentence.
    """
    scripts = [
        path.relative_to(root).as_posix()
        for path in sorted((root / "deploy").rglob("*.sh"))
    ]
    done = run_tool(
        "shellcheck", "--format", "json", "--external-sources", *scripts, cwd=root
    )
    yield from (
        (
            f"SC{one['code']}",
            f"{one['file']}, line {one['line']}: {one['message'].rstrip('.')} (SC{one['code']})",
        )
        for one in json.loads(done.stdout or "[]")
    )


def scan_faults(root: Path, read: list[Cluster]) -> Iterator[str]:
    "What the scanners find and nobody has allowed, and allowances that nobody needs"
    found = [*policy_findings(root, read), *lint_findings(root), *script_findings(root)]
    yield from dict.fromkeys(
        sentence for rule, sentence in found if not allowed(rule, sentence)
    )
    yield from (
        f"housemlops.cluster.scanners.ALLOWED has {rule}, which nothing needs any more"
        for rule in sorted(ALLOWED.keys() - {rule for rule, _ in found})
    )
