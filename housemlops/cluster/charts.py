"""Check Helm releases, and find files that nothing uses."""

import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from housemlops.cluster.manifests import (
    Cluster,
    Manifest,
    documents,
    kustomization_of,
    path_of,
)

EXACT = re.compile(r"v?\d+\.\d+\.\d+([-+][\w.]+)?")


def chart_version(cluster: Cluster, release: Manifest) -> str:
    "The version of a chart, whichever way it is named"
    if "chart" in release.spec:
        return str(release.spec["chart"]["spec"].get("version", "*"))
    named = release.spec["chartRef"]
    source = next(
        (one for one in cluster.of(named["kind"]) if one.name == named["name"]), None
    )
    return str((source.spec.get("ref") or {}).get("tag", "*")) if source else "*"


def helm_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    "Charts that are not pinned, may drift, or wait for themselves"
    for release in cluster.of("HelmRelease"):
        spec, values = release.spec, release.spec.get("values", {})
        if not EXACT.fullmatch(version := chart_version(cluster, release)):
            yield f"{release} takes version {version!r} of its chart, which is not one exact version"
        if (spec.get("driftDetection") or {}).get("mode") != "enabled":
            yield f"{release} does not correct drift (driftDetection.mode)"
        for phase in ("install", "upgrade"):
            if not ((spec.get(phase) or {}).get("remediation") or {}).get("retries"):
                yield f"{release} gives up after the first failed {phase} ({phase}.remediation.retries)"
        if release.name == "airflow":
            yield from (
                f"{release} runs {job} as a hook, for which the pods wait that Flux waits for: set {job}.useHelmHooks to false"
                for job in ("createUserJob", "migrateDatabaseJob")
                if (values.get(job) or {}).get("enabled", True)
                and (values.get(job) or {}).get("useHelmHooks", True)
            )


def read_by(folder: Path) -> Iterator[Path]:
    "The files that a kustomization reads, and itself, recursively"
    if (file := kustomization_of(folder)) is None:
        yield from folder.rglob("*.yaml")
        return
    yield file
    body = documents(file.read_text())[0]
    generated = [
        path.rpartition("=")[2]
        for kind in ("configMapGenerator", "secretGenerator")
        for made in body.get(kind, ())
        for path in [*made.get("files", ()), *made.get("envs", ())]
    ]
    listed = [
        path
        for kind in (
            "resources",
            "components",
            "configurations",
            "crds",
            "transformers",
            "generators",
        )
        for path in body.get(kind, ())
    ]
    pathed = [
        part["path"]
        for kind in ("patches", "replacements")
        for part in body.get(kind, ())
        if "path" in part
    ]
    for path in [*listed, *pathed, *generated]:
        target = Path(os.path.normpath(folder / path))
        if target.is_dir():
            yield from read_by(target)
        else:
            yield target


def unused_faults(root: Path, read: list[Cluster]) -> Iterator[str]:
    "Manifests that no cluster reads"
    reached = set(
        chain.from_iterable(
            read_by(root / f"deploy/clusters/{cluster.name}") for cluster in read
        )
    )
    reached |= set(
        chain.from_iterable(
            read_by(root / path_of(layer))
            for cluster in read
            for layer in cluster.layers.values()
        )
    )
    for part in ("clusters", "infrastructure", "apps"):
        for path in sorted((root / "deploy" / part).rglob("*")):
            if (
                path.suffix in (".yaml", ".yml", ".env")
                and path not in reached
                and not path.name.startswith(".")
            ):
                yield f"{path.relative_to(root).as_posix()} is read by no cluster"
