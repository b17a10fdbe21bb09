"""Check that everything an object refers to exists: objects, keys, ports, labels."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from housemlops.cluster.manifests import (
    PODS,
    Cluster,
    Manifest,
    as_list,
    documents,
    layers_before,
    mappings_in,
    selects,
    suggest,
)

# Keys whose value names an object of a known kind as {name: …}.
NAMED = {
    "secretRef": "Secret",
    "secretKeyRef": "Secret",
    "certSecretRef": "Secret",
    "secret": "Secret",
    "configMapRef": "ConfigMap",
    "configMapKeyRef": "ConfigMap",
    "configMap": "ConfigMap",
    "providerRef": "Provider",
    "imageRepositoryRef": "ImageRepository",
    "service": "Service",
}
# Keys whose value names its kind, too, as {kind: …, name: …}, or lists such values.
TYPED = {
    "sourceRef",
    "chartRef",
    "scaleTargetRef",
    "roleRef",
    "valuesFrom",
    "substituteFrom",
    "subjects",
    "eventSources",
    "resources",
}
# Keys whose value is the name itself.
STRINGS = {
    "secretName": "Secret",
    "claimName": "PersistentVolumeClaim",
    "serviceAccountName": "ServiceAccount",
    "serviceName": "Service",
}
# What Airflow's chart reads from the Secrets that its values name.
CHART_KEYS = {
    "metadataSecretName": "connection",
    "fernetKeySecretName": "fernet-key",
    "apiSecretKeySecretName": "api-secret-key",
    "jwtSecretName": "jwt-secret",
}
# What the bootstrap creates in the namespace flux-system before Flux starts.
BOOTSTRAPPED = {("Secret", "sops-age"), ("Secret", "flux-system")}
# What every cluster has.
BUILT_IN = {
    ("ServiceAccount", "default"),
    ("ClusterRole", "view"),
    ("ClusterRole", "edit"),
    ("ClusterRole", "admin"),
    ("ClusterRole", "cluster-admin"),
}
WITHOUT_NAMESPACE = {
    "Namespace",
    "ClusterRole",
    "ClusterRoleBinding",
    "PersistentVolume",
    "StorageClass",
    "PriorityClass",
    "IngressClass",
    "CustomResourceDefinition",
}
EMBEDDED = re.compile(r"(?m)^\s*-? ?(secretRef|configMapRef|valueFrom|secretKeyRef):")


class Reference(NamedTuple):
    """What an object needs to find."""

    kind: str
    namespace: str
    name: str
    key: str = ""


def typed_references(value: object, namespace: str) -> Iterator[Reference]:
    """Yield the references of a value that names the kind of what it refers to."""
    for one in as_list(value):
        if isinstance(one, dict) and {"kind", "name"} <= one.keys():
            home, key = one.get("namespace", namespace), one.get("valuesKey", "")
            yield Reference(one["kind"], home, one["name"], key)


def named_references(kind: str, value: dict, namespace: str) -> Iterator[Reference]:
    """Yield the references of a value {name: …, key: …}; none if optional."""
    if "name" in value and not value.get("optional"):
        home = value.get("namespace", namespace)
        for item in value.get("items") or [value]:
            yield Reference(kind, home, value["name"], item.get("key", ""))


def references_at(
    key: str, value: object, mapping: dict, namespace: str
) -> Iterator[Reference]:
    """Yield what one entry of a mapping refers to."""
    if key in TYPED:
        yield from typed_references(value, namespace)
    elif key in NAMED and isinstance(value, dict):
        yield from named_references(NAMED[key], value, namespace)
    elif key == "imagePullSecrets":
        for one in value:
            yield Reference("Secret", namespace, one["name"])
    elif isinstance(value, str) and EMBEDDED.search(value):
        yield from references(documents(value), namespace)
    elif not isinstance(value, str) or mapping.get("optional"):
        return
    elif value and (key in STRINGS or key.endswith("SecretName")):
        inside = mapping.get("secretKey") or CHART_KEYS.get(key, "")
        yield Reference(STRINGS.get(key, "Secret"), namespace, value, inside)


def references(node: object, namespace: str) -> Iterator[Reference]:
    """Yield all that a part of an object refers to by name."""
    for mapping in mappings_in(node):
        for key, value in mapping.items():
            yield from references_at(key, value, mapping, namespace)


def needs_of(manifest: Manifest) -> Iterator[Reference]:
    """Yield what an object refers to.

    The values of a chart are read in the namespace where the chart is installed.
    """
    spec, home = dict(manifest.spec), manifest.namespace
    values, needed = spec.pop("values", {}), spec.pop("dependsOn", ())
    binding = {key: manifest.body.get(key) for key in ("subjects", "roleRef")}
    yield from references([spec, binding], home)
    yield from references(values, manifest.spec.get("targetNamespace", home))
    # The layers that a Flux Kustomization depends on are checked with the layers.
    for need in needed if manifest.kind != "Kustomization" else ():
        yield Reference(manifest.kind, need.get("namespace", home), need["name"])


def keys_of(manifest: Manifest) -> set[str]:
    """Return the keys of a Secret or ConfigMap."""
    keys = set()
    for part in ("data", "stringData", "binaryData"):
        keys |= (manifest.body.get(part) or {}).keys()
    return keys


def reference_fault(cluster: Cluster, manifest: Manifest, wanted: Reference) -> str:
    """Return why an object would not find what it refers to, or ""."""
    kind, namespace, name, key = wanted
    if (kind, name) in BUILT_IN or name == "*":
        return ""
    if namespace == "flux-system" and (kind, name) in BOOTSTRAPPED:
        return ""
    known, where = cluster.of(kind), ""
    if kind not in WITHOUT_NAMESPACE:
        known = [one for one in known if one.namespace == namespace]
        where = f" in the namespace {namespace}"
    found = {one.name: one for one in known}
    if name not in found:
        return (
            f"refers to {kind} {name}, and there is none{where}{suggest(name, found)}"
        )
    target = found[name]
    keys = keys_of(target)
    if key and key not in keys:
        return (
            f"takes the key {key} of {kind} {name}, which has no such key"
            f"{suggest(key, keys)}"
        )
    own = manifest.layer
    if own and target.layer and target.layer not in layers_before(cluster, own):
        return (
            f"refers to {kind} {name} of the layer {target.layer}, for which its own "
            f"layer {own} does not wait"
        )
    return ""


def reference_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    """Yield references that lead nowhere."""
    for manifest in cluster.manifests:
        for wanted in dict.fromkeys(needs_of(manifest)):
            fault = reference_fault(cluster, manifest, wanted)
            if fault:
                yield f"{manifest} {fault}"


def placement_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    """Yield objects in unknown namespaces, and those that two layers apply."""
    namespaces = {one.name for one in cluster.of("Namespace")} | {"flux-system"}
    applied_by = {}
    for manifest in cluster.manifests:
        home = manifest.namespace
        if manifest.kind not in WITHOUT_NAMESPACE and home not in namespaces:
            yield (
                f"{manifest} is in the namespace {home or 'default'}, which no "
                f"manifest makes{suggest(home, namespaces)}"
            )
        key = (manifest.kind, home, manifest.name)
        if key in applied_by:
            yield (
                f"{manifest} is applied twice, by the layers {applied_by[key]} and "
                f"{manifest.layer}: they would fight over it"
            )
        applied_by[key] = manifest.layer


def ports_of(containers: list[dict]) -> list[set]:
    """Return the ports that containers open, each as its number and its name."""
    ports = []
    for container in containers:
        for port in container.get("ports", ()):
            ports.append({port["containerPort"], port.get("name")})
    return ports


def chart_namespaces(cluster: Cluster) -> set[str]:
    """Return the namespaces where charts install pods, which are in no manifest."""
    releases = cluster.of("HelmRelease")
    return {one.spec.get("targetNamespace", one.namespace) for one in releases}


def selector_of(manifest: Manifest) -> dict:
    """Return the labels of the pods that an object selects; empty: none, or all."""
    if manifest.kind == "Service":
        return manifest.spec.get("selector") or {}
    key = "podSelector" if manifest.kind == "NetworkPolicy" else "selector"
    return (manifest.spec.get(key) or {}).get("matchLabels") or {}


def selected_pods(cluster: Cluster, manifest: Manifest) -> list[Manifest]:
    """Return the workloads whose pods an object selects."""
    selector = {"matchLabels": selector_of(manifest)}
    workloads = [
        one for one in cluster.of(*PODS) if one.namespace == manifest.namespace
    ]
    return [one for one in workloads if selects(selector, one.pod_labels)]


def selector_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    """Yield selectors without a pod, and ports that no container opens."""
    for manifest in cluster.of(*PODS):
        if not selects(manifest.spec.get("selector") or {}, manifest.pod_labels):
            yield (
                f"{manifest} selects {manifest.spec['selector']}, and its own pods are "
                f"labelled {manifest.pod_labels}"
            )
    for manifest in cluster.of("Service", "PodDisruptionBudget", "NetworkPolicy"):
        selector, home = selector_of(manifest), manifest.namespace
        if not selector or home in chart_namespaces(cluster):
            continue
        pods = selected_pods(cluster, manifest)
        if not pods:
            yield (
                f"{manifest} selects {selector}, and no pod in the namespace {home} "
                "has these labels"
            )
            continue
        opened = set()
        for pod in pods:
            opened.update(*ports_of(pod.containers))
        service = manifest.kind == "Service"
        for port in manifest.spec.get("ports", ()) if service else ():
            wanted = port.get("targetPort", port["port"])
            if wanted not in opened:
                yield (
                    f"{manifest} sends to port {wanted}, which no container of "
                    f"{pods[0].name} opens"
                )
