"""Check the order of the layers, and that every file in deploy/ belongs to one."""

import os
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from housemlops.cluster.manifests import (
    Cluster,
    Manifest,
    documents,
    layer_path,
    strings_in,
    suggest,
)


def health_check_faults(cluster: Cluster, layer: Manifest) -> Iterator[str]:
    """Yield health checks of objects that a layer does not apply."""
    for check in layer.spec.get("healthChecks", ()):
        kind, name = check["kind"], check["name"]
        target = cluster.find(kind, check.get("namespace", layer.namespace), name)
        if target is None or target.layer != layer.name:
            yield f"{layer} checks the health of {kind} {name}, which it does not apply"


def layer_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    """Yield Flux Kustomizations that would not reconcile, or not in order."""
    layers, order = cluster.layers, {}
    for name, layer in layers.items():
        order[name] = [need["name"] for need in layer.spec.get("dependsOn", ())]
        for need in order[name]:
            if need not in layers:
                yield (
                    f"{layer} depends on {need}, and there is no such Flux "
                    f"Kustomization{suggest(need, layers)}"
                )
        encrypted = [one for one in cluster.of("Secret") if "sops" in one.body]
        own = [one for one in encrypted if one.layer == name]
        if own and not layer.spec.get("decryption"):
            yield (
                f"{layer} applies encrypted Secrets and has no decryption: the cluster "
                "would get the ciphertext"
            )
        yield from health_check_faults(cluster, layer)
    try:
        TopologicalSorter(order).prepare()
    except CycleError as error:
        circle = error.args[1]
        yield (
            f"{layers[circle[0]].file}: these layers wait for each other: "
            f"{' → '.join(circle)}"
        )


def kustomizations(root: Path) -> dict[Path, dict]:
    """Return the content of each kustomization.yaml by its path."""
    paths = sorted((root / "deploy").rglob("kustomization.yaml"))
    return {path: documents(path.read_text())[0] for path in paths}


def outside_faults(root: Path) -> Iterator[str]:
    """Yield bases that are not in this repository."""
    for path, body in kustomizations(root).items():
        for base in body.get("resources", ()):
            if re.search(r"://|^github\.com|\?ref=", str(base)):
                yield (
                    f"{path.relative_to(root).as_posix()} takes {base} from outside "
                    "this repository, where it may change without a commit"
                )


def unused_faults(root: Path, clusters: list[Cluster]) -> Iterator[str]:
    """Yield manifests that no kustomization and no layer names."""
    named = {root / f"deploy/clusters/{cluster.name}" for cluster in clusters}
    for cluster in clusters:
        named.update(root / layer_path(layer) for layer in cluster.layers.values())
    for path, body in kustomizations(root).items():
        for _, text in strings_in(body):
            # Such as service.yaml, ../base, or FILE=release.env of a generator.
            named.add(Path(os.path.normpath(path.parent / text.rpartition("=")[2])))
    for path in sorted((root / "deploy").rglob("[!.]*")):
        file = path.relative_to(root)
        if path.suffix not in (".yaml", ".yml", ".env"):
            continue
        if file.parts[1] not in ("clusters", "infrastructure", "apps"):
            continue
        # A folder without kustomization.yaml means all its files.
        whole = path.name == "kustomization.yaml"
        whole = whole or not (path.parent / "kustomization.yaml").exists()
        if path not in named and not (whole and path.parent in named):
            yield f"{file.as_posix()} is read by no cluster"
