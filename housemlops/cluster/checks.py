"""Check `deploy/` for everything that a cluster would reject too late."""

import difflib
import json
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from io import StringIO
from itertools import chain
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from housemlops.cluster.charts import helm_faults, unused_faults
from housemlops.cluster.manifests import (
    HASHED,
    Cluster,
    clusters,
    documents,
    hint,
    path_of,
    read_cluster,
    schema_fault,
)
from housemlops.cluster.network import address_faults, flow_faults
from housemlops.cluster.references import reference_faults, selector_faults
from housemlops.cluster.release_file import release_faults
from housemlops.cluster.scanners import scan_faults
from housemlops.cluster.secrets import leak_faults, leaked_files, secret_faults
from housemlops.cluster.workloads import (
    change_faults,
    container_faults,
    image_faults,
    namespace_faults,
    opening_faults,
)
from housemlops.settings import WorkbookError, repo_root

MUST = {
    "interval": "how often to reconcile",
    "retryInterval": "how soon to try again",
    "timeout": "how long to wait",
    "path": "what to apply",
    "sourceRef": "where it is from",
}


def layer_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    "Flux Kustomizations that would not reconcile, or not in order"
    layers = cluster.layers
    for layer in layers.values():
        spec = layer.spec
        yield from (
            f"{layer} has no {field}, which says {why}"
            for field, why in MUST.items()
            if not spec.get(field)
        )
        if not spec.get("prune"):
            yield f"{layer} does not prune: what is deleted in git would stay in the cluster"
        own = path_of(layer) == f"deploy/clusters/{cluster.name}"
        if not (own or spec.get("wait") or spec.get("healthChecks")):
            yield f"{layer} neither waits nor has health checks: what depends on it would start too early"
        if spec.get("wait") and spec.get("healthChecks"):
            yield f"{layer} waits for everything, so Flux ignores its health checks"
        if spec.get("suspend"):
            yield f"{layer} is suspended"
        for need in spec.get("dependsOn", ()):
            if need["name"] not in layers:
                yield f"{layer} depends on {need['name']}, and there is no such Flux Kustomization{hint(need['name'], layers)}"
        made = [one for one in cluster.manifests if one.layer == layer.name]
        if any("sops" in one.body for one in made) and not spec.get("decryption"):
            yield f"{layer} applies encrypted Secrets and has no decryption: the cluster would get the ciphertext"
        for check in spec.get("healthChecks", ()):
            if not any(
                (one.kind, one.name, one.namespace)
                == (
                    check["kind"],
                    check["name"],
                    check.get("namespace", layer.namespace),
                )
                for one in made
            ):
                yield f"{layer} checks the health of {check['kind']} {check['name']}, which it does not apply"
    try:
        TopologicalSorter(
            {
                name: [need["name"] for need in layer.spec.get("dependsOn", ())]
                for name, layer in layers.items()
            }
        ).prepare()
    except CycleError as error:
        yield f"{layers[error.args[1][0]].file}: these layers wait for each other: {' → '.join(error.args[1])}"


def schema_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    "Objects that their API would refuse"
    for manifest in cluster.manifests:
        body = {key: value for key, value in manifest.body.items() if key != "sops"}
        if fault := schema_fault(root / "tests/flux-schemas", body):
            yield f"{manifest}: {fault[:300]}"
        if manifest.kind == "HelmRelease" and ("chart" in manifest.spec) == (
            "chartRef" in manifest.spec
        ):
            yield f"{manifest} needs exactly one of chart and chartRef"


def outside_faults(root: Path) -> Iterator[str]:
    "Bases that are not in this repository"
    for path in sorted((root / "deploy").rglob("kustomization.yaml")):
        outside = [
            base
            for base in documents(path.read_text())[0].get("resources", ())
            if re.search(r"://|^github\.com|\?ref=", str(base))
        ]
        yield from (
            f"{path.relative_to(root).as_posix()} takes {base} from outside this repository, where it may change without a commit"
            for base in outside
        )


def rendered(cluster: Cluster) -> dict[str, str]:
    """All objects of a cluster as text, to compare.

    Returns:
        Kind, namespace and name -> YAML.
    """

    def text(manifest):
        body, stream, writer = (
            {key: value for key, value in manifest.body.items() if key != "sops"},
            StringIO(),
            YAML(),
        )
        writer.width = 1000
        writer.dump(
            json.loads(
                re.sub(r"ENC\[[^]]*\]", "(encrypted)", json.dumps(body, sort_keys=True))
            ),
            stream,
        )
        return stream.getvalue()

    return {
        " ".join(
            filter(None, (one.kind, one.namespace, HASHED.sub("", one.name)))
        ): text(one)
        for one in cluster.manifests
    }


def difference(one: Cluster, other: Cluster, around: int = 0) -> str:
    """What differs between two rendered clusters, or two states of one.

    Returns:
        Unified diff.
    """
    before, after = rendered(one), rendered(other)

    def lines(texts, name):
        return texts.get(name, "").splitlines()

    def told(name):
        if (name in before) != (name in after):
            return [f"=== {name} only in {(one if name in before else other).name}"]
        changed = [
            *difflib.unified_diff(
                lines(before, name), lines(after, name), n=around, lineterm=""
            )
        ][2:]
        return (
            [f"=== {name}", *(line for line in changed if not line.startswith("@@"))]
            if changed
            else []
        )

    return "\n".join(chain.from_iterable(map(told, sorted(before | after))))


CHECKS = (
    layer_faults,
    schema_faults,
    reference_faults,
    selector_faults,
    address_faults,
    flow_faults,
    container_faults,
    change_faults,
    namespace_faults,
    image_faults,
    secret_faults,
    leak_faults,
    helm_faults,
    release_faults,
)


def unreadable(root: Path) -> Iterator[str]:
    "Files that are no YAML"
    for path in sorted((root / "deploy").rglob("*.yaml")):
        try:
            documents(path.read_text())
        except YAMLError as error:
            yield f"{path.relative_to(root).as_posix()} is no YAML: {' '.join(str(error).split())[:200]}"


def check_deploy(root: Path | None = None) -> list[str]:
    """Hold deploy/ to what a cluster would find out too late.

    Args:
        root: Repository; found when not given.

    Returns:
        Sentences; empty when all is well.
    """
    root = Path(root or repo_root()).resolve()
    if not (root / "deploy/clusters").is_dir():
        raise WorkbookError(
            f"There is no deploy/clusters in {root.name}: run the command inside the repository"
        )
    if faults := [*unreadable(root)] or [*outside_faults(root)]:
        return faults
    read = [read_cluster(root, name) for name in clusters(root)]
    if faults := [fault for cluster in read for fault in cluster.faults]:
        return faults
    if faults := [fault for cluster in read for fault in schema_faults(root, cluster)]:
        return faults
    faults = [
        *chain.from_iterable(
            check(root, cluster) for cluster in read for check in CHECKS
        ),
        *unused_faults(root, read),
        *leaked_files(root),
    ]
    return [
        *dict.fromkeys(
            faults
            or [
                *chain.from_iterable(opening_faults(root, cluster) for cluster in read),
                *scan_faults(root, read),
            ]
        )
    ]
