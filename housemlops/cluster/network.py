"""Check addresses, and that network policies allow every connection that is needed."""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from housemlops.cluster.manifests import (
    PODS,
    Cluster,
    Manifest,
    containers_of,
    hint,
    labels_of,
    selects,
)
from housemlops.cluster.references import charted, needs_of

ADDRESS = re.compile(
    r"\b([a-z0-9][a-z0-9-]*)\.([a-z0-9][a-z0-9-]*)\.svc\b(?:\.cluster\.local)?(?::(\d+))?"
)


def texts_of(node: object) -> Iterator[str]:
    "Every string in an object"
    if isinstance(node, dict):
        yield from chain.from_iterable(map(texts_of, node.values()))
    elif isinstance(node, list):
        yield from chain.from_iterable(map(texts_of, node))
    elif isinstance(node, str):
        yield node


def unheard(cluster: Cluster, node: object) -> Iterator[str]:
    "Addresses in a text or an object at which nobody listens, each with what is wrong"
    services = {
        (one.name, one.namespace): {
            str(port["port"]) for port in one.spec.get("ports", ())
        }
        for one in cluster.of("Service")
    }
    for name, namespace, port in dict.fromkeys(
        chain.from_iterable(ADDRESS.findall(text) for text in texts_of(node))
    ):
        if namespace in charted(cluster) | {"flux-system", "kube-system"}:
            continue
        if (name, namespace) not in services:
            yield f"speaks to {name}.{namespace}.svc, and there is no such Service{hint(name, [one for one, _ in services])}"
        elif port and port not in services[name, namespace]:
            yield f"speaks to port {port} of the Service {name}, which has {', '.join(sorted(services[name, namespace]))}"


def address_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    "Objects that speak to nobody"
    yield from (
        f"{manifest} {fault}"
        for manifest in cluster.manifests
        for fault in unheard(cluster, manifest.body)
    )


class End(NamedTuple):
    "One end of a connection"

    namespace: str  # empty: outside the cluster
    labels: dict


OUTSIDE = End("", {})


NAME_SERVER = End("kube-system", {"k8s-app": "kube-dns"})


def picked(selector: dict, labels: dict) -> bool:
    "Whether a label selector, expressions included, picks something"

    def holds(one):
        there, values = one["key"] in labels, one.get("values", ())
        return {
            "In": there and labels.get(one["key"]) in values,
            "NotIn": labels.get(one["key"]) not in values,
            "Exists": there,
            "DoesNotExist": not there,
        }[one["operator"]]

    return selects(selector.get("matchLabels") or {}, labels) and all(
        map(holds, selector.get("matchExpressions") or ())
    )


def peers_with(cluster: Cluster, peer: dict, home: str, end: End) -> bool:
    """Whether a peer of a policy means an end.

    Args:
        home: Namespace of the policy.
    """
    if "ipBlock" in peer or not end.namespace:
        return "ipBlock" in peer and not end.namespace
    own = next(
        (
            one.body["metadata"].get("labels", {})
            for one in cluster.of("Namespace")
            if one.name == end.namespace
        ),
        {},
    )
    if "namespaceSelector" not in peer:
        there = end.namespace == home
    else:
        there = picked(
            peer["namespaceSelector"],
            own | {"kubernetes.io/metadata.name": end.namespace},
        )
    return there and picked(peer.get("podSelector", {}), end.labels)


def let_through(cluster: Cluster, way: str, end: End, other: End, ports: set) -> bool:
    """Whether the policies about one end allow the other.

    Args:
        way: Egress or Ingress.

    Returns:
        Ports: the number, and the name it goes by.
    """
    about = [
        one
        for one in cluster.of("NetworkPolicy")
        if one.namespace == end.namespace
        and way in one.spec.get("policyTypes", ["Ingress"])
        and picked(one.spec["podSelector"], end.labels)
    ]
    rules = [
        (one.namespace, rule)
        for one in about
        for rule in one.spec.get(way.lower()) or ()
    ]

    def allows(home, rule):
        peers, doors = rule.get("to" if way == "Egress" else "from"), rule.get("ports")
        return (
            not peers or any(peers_with(cluster, peer, home, other) for peer in peers)
        ) and (
            not doors or any(door.get("port", ...) in ports | {...} for door in doors)
        )

    return not about or any(allows(home, rule) for home, rule in rules)


URL = re.compile(r"\b(https?)://([a-z0-9.-]+)(?::(\d+))?")


def words_of(cluster: Cluster, manifest: Manifest, secrets: dict) -> set[str]:
    "All that a workload is told: its own strings, and those of what it refers to"
    needs = {(one.kind, one.namespace, one.name) for one in needs_of(manifest)}
    taken = [
        one.body.get("data", {})
        for one in cluster.of("ConfigMap")
        if (one.kind, one.namespace, one.name) in needs
    ]
    return {
        *texts_of(manifest.spec),
        *texts_of(taken),
        *texts_of(
            [
                values
                for (namespace, name), values in secrets.items()
                if ("Secret", namespace, name) in needs
            ]
        ),
    }


def both_names(pod: Manifest, port: object) -> set:
    """A port as its pod numbers and names it.

    Returns:
        Number and name.
    """
    known = [
        (door.get("name"), door["containerPort"])
        for container in containers_of(pod)
        for door in container.get("ports", ())
    ]
    return next((set(names) for names in known if port in names), {port})


def calls_of(
    cluster: Cluster, caller: Manifest, secrets: dict
) -> Iterator[tuple[str, End, set]]:
    """Whom a workload calls, itself left out.

    Returns:
        Address, other end, ports.
    """
    told = words_of(cluster, caller, secrets)
    services = {(one.name, one.namespace): one for one in cluster.of("Service")}
    for name, namespace, port in sorted(
        {found for text in told for found in ADDRESS.findall(text)}
    ):
        if (service := services.get((name, namespace))) is None:
            continue
        pods = [
            one
            for one in cluster.of(*PODS)
            if one is not caller
            and one.namespace == namespace
            and selects(service.spec["selector"], labels_of(one))
        ]
        doors = [
            door.get("targetPort", door["port"])
            for door in service.spec["ports"]
            if port in ("", str(door["port"]))
        ]
        yield from (
            (
                f"{name}.{namespace}.svc",
                End(namespace, labels_of(pod)),
                both_names(pod, door),
            )
            for pod in pods
            for door in doors
        )
    for scheme, host, port in sorted(
        {found for text in told for found in URL.findall(text)}
    ):
        if not re.search(r"\.svc\b|^localhost$|^127\.|^[^.]+$", host):
            yield host, OUTSIDE, {int(port or (443 if scheme == "https" else 80))}


def flow_faults(
    root: Path, cluster: Cluster, secrets: dict | None = None
) -> Iterator[str]:
    "Calls that the network policies would swallow"
    for manifest in cluster.of(*PODS, "HelmRelease"):
        caller = End(
            manifest.spec.get("targetNamespace", manifest.namespace),
            {} if manifest.kind == "HelmRelease" else labels_of(manifest),
        )
        calls = [*calls_of(cluster, manifest, secrets or {})]
        for address, other, ports in [
            *calls,
            *([("the name server", NAME_SERVER, {53})] if calls else []),
        ]:
            told = f"{manifest} calls {address} at port {next(port for port in ports if isinstance(port, int))}, and no network policy of"
            if not let_through(cluster, "Egress", caller, other, ports):
                yield f"{told} {caller.namespace} lets it out"
            elif other.namespace not in ("", "kube-system") and not let_through(
                cluster, "Ingress", other, caller, ports
            ):
                yield f"{told} {other.namespace} lets it in"
