"""Check addresses, and that network policies allow every connection that is needed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from housemlops.cluster.manifests import (
    PODS,
    Cluster,
    Manifest,
    selects,
    strings_in,
    suggest,
)
from housemlops.cluster.references import (
    chart_namespaces,
    ports_of,
    needs_of,
    selected_pods,
)

ADDRESS = re.compile(
    r"\b([a-z0-9][a-z0-9-]*)\.([a-z0-9][a-z0-9-]*)\.svc\b"
    r"(?:\.cluster\.local)?(?::(\d+))?"
)
URL = re.compile(r"\b(https?)://([a-z0-9.-]+)(?::(\d+))?")
INSIDE = re.compile(r"\.svc\b|^localhost$|^127\.|^[^.]+$")


class Endpoint(NamedTuple):
    """One end of a connection."""

    namespace: str  # empty: outside the cluster
    labels: dict


OUTSIDE = Endpoint("", {})
NAME_SERVER = Endpoint("kube-system", {"k8s-app": "kube-dns"})


def matches_in(pattern: re.Pattern, node: object) -> list[tuple]:
    """Return what a pattern finds in the strings of an object, sorted, each once."""
    found = set()
    for _, text in strings_in(node):
        found.update(pattern.findall(text))
    return sorted(found)


def unresolved_addresses(cluster: Cluster, node: object) -> Iterator[str]:
    """Yield what is wrong with the addresses in an object that no Service has."""
    unknown = chart_namespaces(cluster) | {"flux-system", "kube-system"}
    for name, namespace, port in matches_in(ADDRESS, node):
        if namespace in unknown:
            continue
        service = cluster.find("Service", namespace, name)
        if service is None:
            names = [one.name for one in cluster.of("Service")]
            yield (
                f"speaks to {name}.{namespace}.svc, and there is no such Service"
                f"{suggest(name, names)}"
            )
            continue
        ports = sorted(str(one["port"]) for one in service.spec.get("ports", ()))
        if port and port not in ports:
            yield (
                f"speaks to port {port} of the Service {name}, which has "
                f"{', '.join(ports)}"
            )


def address_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    """Yield addresses in objects that no Service has."""
    for manifest in cluster.manifests:
        for fault in unresolved_addresses(cluster, manifest.body):
            yield f"{manifest} {fault}"


def peer_matches(cluster: Cluster, peer: dict, home: str, end: Endpoint) -> bool:
    """Return whether a peer of a network policy means an endpoint.

    Args:
        cluster: The cluster.
        peer: Entry of `from` or `to`.
        home: Namespace of the policy.
        end: The endpoint.
    """
    if "ipBlock" in peer or not end.namespace:
        return "ipBlock" in peer and not end.namespace
    if "namespaceSelector" in peer:
        namespace = cluster.find("Namespace", "", end.namespace)
        labels = namespace.metadata.get("labels", {}) if namespace else {}
        labels = labels | {"kubernetes.io/metadata.name": end.namespace}
        if not selects(peer["namespaceSelector"], labels):
            return False
    elif end.namespace != home:
        return False
    return selects(peer.get("podSelector", {}), end.labels)


def allows(
    cluster: Cluster, direction: str, end: Endpoint, other: Endpoint, ports: set
) -> bool:
    """Return whether the policies about one endpoint allow a connection.

    Args:
        cluster: The cluster.
        direction: Egress or Ingress.
        end: Endpoint that the policies are about.
        other: The other endpoint.
        ports: The number of the port, and the name it goes by.
    """
    isolated = False
    for policy in cluster.of("NetworkPolicy"):
        if policy.namespace != end.namespace:
            continue
        if direction not in policy.spec.get("policyTypes", ["Ingress"]):
            continue
        if not selects(policy.spec["podSelector"], end.labels):
            continue
        isolated = True
        for rule in policy.spec.get(direction.lower()) or ():
            peers = rule.get("to" if direction == "Egress" else "from") or ()
            known = [
                peer_matches(cluster, peer, end.namespace, other) for peer in peers
            ]
            # A rule without a port, or a port without a number, means all of them.
            doors = [door.get("port") for door in rule.get("ports") or [{}]]
            if (any(known) or not peers) and (None in doors or ports & set(doors)):
                return True
    return not isolated


def calls_of(
    cluster: Cluster, caller: Manifest, secrets: dict
) -> Iterator[tuple[str, Endpoint, set]]:
    """Yield whom a workload calls: address, endpoint, and the port's number and name.

    Args:
        cluster: The cluster.
        caller: A workload, or a chart.
        secrets: Opened Secrets, (namespace, name) -> values.
    """
    texts = [caller.spec]
    for need in dict.fromkeys(needs_of(caller)):
        config = cluster.find("ConfigMap", need.namespace, need.name)
        if need.kind == "ConfigMap" and config:
            texts.append(config.body.get("data", {}))
        if need.kind == "Secret":
            texts.append(secrets.get((need.namespace, need.name), {}))
    for name, namespace, port in matches_in(ADDRESS, texts):
        service = cluster.find("Service", namespace, name)
        if service is None:
            continue
        for pod in selected_pods(cluster, service):
            for door in service.spec["ports"]:
                if pod == caller or port not in ("", str(door["port"])):
                    continue
                target = door.get("targetPort", door["port"])
                ports = [known for known in ports_of(pod.containers) if target in known]
                end = Endpoint(namespace, pod.pod_labels)
                yield f"{name}.{namespace}.svc", end, (ports or [{target}])[0]
    for scheme, host, port in matches_in(URL, texts):
        if not INSIDE.search(host):
            yield host, OUTSIDE, {int(port or (443 if scheme == "https" else 80))}


def flow_faults(
    root: Path, cluster: Cluster, secrets: dict | None = None
) -> Iterator[str]:
    """Yield calls that the network policies would drop."""
    for manifest in cluster.of(*PODS, "HelmRelease"):
        home = manifest.spec.get("targetNamespace", manifest.namespace)
        caller = Endpoint(home, manifest.pod_labels)
        calls = list(calls_of(cluster, manifest, secrets or {}))
        if calls:
            calls.append(("the name server", NAME_SERVER, {53}))
        for address, other, ports in calls:
            number = next(port for port in ports if isinstance(port, int))
            call = f"{manifest} calls {address} at port {number}"
            if not allows(cluster, "Egress", caller, other, ports):
                yield f"{call}, and no network policy of {home} lets it out"
            elif other.namespace in ("", "kube-system"):
                continue
            elif not allows(cluster, "Ingress", other, caller, ports):
                yield f"{call}, and no network policy of {other.namespace} lets it in"
