"""Check that everything an object refers to exists: objects, keys, ports, labels."""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from housemlops.cluster.manifests import (
    PODS,
    Cluster,
    Manifest,
    ancestors,
    as_list,
    containers_of,
    documents,
    hint,
    is_layer,
    labels_of,
    selects,
)

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


CHART_KEYS = {
    "metadataSecretName": "connection",
    "fernetKeySecretName": "fernet-key",
    "apiSecretKeySecretName": "api-secret-key",
    "jwtSecretName": "jwt-secret",
}  # of Airflow's


STRINGS = {
    "secretName": "Secret",
    "claimName": "PersistentVolumeClaim",
    "serviceAccountName": "ServiceAccount",
    "serviceName": "Service",
}


class Reference(NamedTuple):
    "What an object needs to find"

    kind: str
    namespace: str
    name: str
    key: str = ""


def references(node: object, namespace: str) -> Iterator[Reference]:
    """All that a part of an object refers to by name.

    Args:
        node: Part of an object.
    """
    if isinstance(node, list):
        yield from chain.from_iterable(references(part, namespace) for part in node)
    if isinstance(node, str) and re.search(
        r"(?m)^\s*-? ?(secretRef|configMapRef|valueFrom|secretKeyRef):", node
    ):
        yield from references(documents(node), namespace)
    if not isinstance(node, dict):
        return
    for word, value in node.items():
        if word in TYPED:
            named = [
                one
                for one in as_list(value)
                if isinstance(one, dict) and {"kind", "name"} <= one.keys()
            ]
            yield from (
                Reference(
                    one["kind"],
                    one.get("namespace", namespace),
                    one["name"],
                    one.get("valuesKey", ""),
                )
                for one in named
            )
        elif (
            word in NAMED
            and isinstance(value, dict)
            and "name" in value
            and not value.get("optional")
        ):
            keys = [item["key"] for item in value.get("items", ())] or [
                value.get("key", "")
            ]
            yield from (
                Reference(
                    NAMED[word], value.get("namespace", namespace), value["name"], key
                )
                for key in keys
            )
        elif word == "imagePullSecrets":
            yield from (Reference("Secret", namespace, one["name"]) for one in value)
        elif (
            isinstance(value, str)
            and value
            and (word in STRINGS or word.endswith("SecretName"))
            and not node.get("optional")
        ):
            yield Reference(
                STRINGS.get(word, "Secret"),
                namespace,
                value,
                node.get("secretKey") or CHART_KEYS.get(word, ""),
            )
        yield from references(value, namespace)


GIVEN = {
    Reference("Secret", "flux-system", "sops-age"),
    Reference("Secret", "flux-system", "flux-system"),
}


BUILT_IN = {
    ("ServiceAccount", "default"),
    *(("ClusterRole", name) for name in ("view", "edit", "admin", "cluster-admin")),
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


def keys_of(manifest: Manifest) -> set[str]:
    "The keys of a Secret or ConfigMap"
    return {
        key
        for part in ("data", "stringData", "binaryData")
        for key in manifest.body.get(part) or ()
    }


def reference_fault(cluster: Cluster, manifest: Manifest, wanted: Reference) -> str:
    """Why an object would not find what it refers to.

    Returns:
        Empty when it resolves.
    """
    kind, namespace, name, key = wanted
    if wanted._replace(key="") in GIVEN or (kind, name) in BUILT_IN or name == "*":
        return ""
    alike = [
        one
        for one in cluster.manifests
        if one.kind == kind
        and (one.namespace == namespace or kind in WITHOUT_NAMESPACE)
    ]
    found = next((one for one in alike if one.name == name), None)
    where = "" if kind in WITHOUT_NAMESPACE else f" in the namespace {namespace}"
    if found is None:
        return f"{manifest} refers to {kind} {name}, and there is none{where}{hint(name, [one.name for one in alike])}"
    if key and key not in keys_of(found):
        return f"{manifest} takes the key {key} of {kind} {name}, which has no such key{hint(key, keys_of(found))}"
    late = (
        found.layer
        and manifest.layer
        and found.layer not in ancestors(cluster, manifest.layer)
    )
    return (
        f"{manifest} refers to {kind} {name} of the layer {found.layer}, for which its own layer {manifest.layer} does not wait"
        if late
        else ""
    )


def needs_of(manifest: Manifest) -> Iterator[Reference]:
    "What an object refers to; the values of a chart are read where the chart is installed"
    inside = manifest.spec.get("targetNamespace", manifest.namespace)
    own = {
        key: value
        for key, value in manifest.spec.items()
        if key not in ("values", "dependsOn")
    }
    yield from references(
        own | {key: manifest.body.get(key) for key in ("subjects", "roleRef")},
        manifest.namespace,
    )
    yield from references(manifest.spec.get("values", {}), inside)
    if not is_layer(manifest):
        yield from (
            Reference(
                manifest.kind, need.get("namespace", manifest.namespace), need["name"]
            )
            for need in manifest.spec.get("dependsOn", ())
        )


def reference_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    "References that lead nowhere, namespaces that nobody makes, and objects that two layers fight over"
    namespaces, seen = (
        {one.name for one in cluster.of("Namespace")} | {"flux-system"},
        {},
    )
    for manifest in cluster.manifests:
        if (
            manifest.kind not in WITHOUT_NAMESPACE
            and manifest.namespace not in namespaces
        ):
            yield f"{manifest} is in the namespace {manifest.namespace or 'default'}, which no manifest makes{hint(manifest.namespace, namespaces)}"
        key = (manifest.kind, manifest.namespace, manifest.name)
        if key in seen:
            yield f"{manifest} is applied twice, by the layers {seen[key]} and {manifest.layer}: they would fight over it"
        seen[key] = manifest.layer
        yield from filter(
            None,
            (
                reference_fault(cluster, manifest, wanted)
                for wanted in dict.fromkeys(needs_of(manifest))
            ),
        )


def port_of(manifest: Manifest, wanted: object) -> bool:
    "Whether a pod listens on a port, by number or name"
    return any(
        wanted in (port.get("name"), port.get("containerPort"))
        for container in containers_of(manifest)
        for port in container.get("ports", ())
    )


def selector_of(manifest: Manifest) -> dict | None:
    """Which pods an object is about.

    Returns:
        MatchLabels; None when it selects nothing by design.
    """
    if manifest.kind == "Service":
        return (
            None
            if manifest.spec.get("type") == "ExternalName"
            else manifest.spec.get("selector")
        )
    selector = (
        manifest.spec.get(
            "podSelector" if manifest.kind == "NetworkPolicy" else "selector"
        )
        or {}
    )
    return selector.get("matchLabels")


def charted(cluster: Cluster) -> set[str]:
    """Where a chart installs pods.

    Returns:
        Namespaces.
    """
    return {
        one.spec.get("targetNamespace", one.namespace)
        for one in cluster.of("HelmRelease")
    }


def selector_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    "Selectors without a pod, and ports that no container opens"
    workloads = cluster.of(*PODS)
    for manifest in workloads:
        wanted = (manifest.spec.get("selector") or {}).get("matchLabels") or {}
        if not selects(wanted, labels_of(manifest)):
            yield f"{manifest} selects {wanted}, and its own pods are labelled {labels_of(manifest)}"
    for manifest in cluster.of("Service", "PodDisruptionBudget", "NetworkPolicy"):
        selector = selector_of(manifest)
        if not selector or manifest.namespace in charted(cluster):
            continue
        pods = [
            one
            for one in workloads
            if one.namespace == manifest.namespace and selects(selector, labels_of(one))
        ]
        if not pods:
            yield f"{manifest} selects {selector}, and no pod in the namespace {manifest.namespace} has these labels"
        for port in (
            manifest.spec.get("ports", ()) if manifest.kind == "Service" else ()
        ):
            wanted = port.get("targetPort", port["port"])
            if pods and not any(port_of(one, wanted) for one in pods):
                yield f"{manifest} sends to port {wanted}, which no container of {pods[0].name} opens"
