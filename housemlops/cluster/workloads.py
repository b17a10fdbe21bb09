"""Check pods, namespaces and charts for faults that Kubernetes accepts."""

import re
from collections.abc import Iterator
from pathlib import Path

from housemlops.cluster.manifests import HASHED, PODS, Cluster, Manifest, suggest
from housemlops.cluster.references import needs_of, ports_of

EXACT_VERSION = re.compile(r"v?\d+\.\d+\.\d+([-+][\w.]+)?")


def container_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    """Yield health checks at ports that are not open, and mounts of no volume."""
    for manifest in cluster.of(*PODS):
        claims = manifest.spec.get("volumeClaimTemplates", ())
        volumes = [claim["metadata"]["name"] for claim in claims]
        volumes += [one["name"] for one in manifest.pod["spec"].get("volumes", ())]
        for container in manifest.containers:
            subject = f"{manifest}: the container {container['name']}"
            for mount in container.get("volumeMounts", ()):
                name = mount["name"]
                if name not in volumes:
                    yield (
                        f"{subject} mounts {name}, and the pod has no such volume"
                        f"{suggest(name, volumes)}"
                    )
            ports = set().union(*ports_of([container]))
            for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
                port = container.get(probe, {}).get("httpGet", {}).get("port")
                if port and port not in ports:
                    yield (
                        f"{subject} is asked for its health at port {port}, which it "
                        "does not open"
                    )


def scaling_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    """Yield workloads whose number of replicas both git and an autoscaler set."""
    for scaler in cluster.of("HorizontalPodAutoscaler"):
        target = scaler.spec["scaleTargetRef"]
        scaled = cluster.find(target["kind"], scaler.namespace, target["name"])
        if scaled and "replicas" in scaled.spec:
            yield (
                f"{scaled} sets replicas, and an autoscaler too: each reconciliation "
                "would take its work back"
            )


def config_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    """Yield pods that would not notice a change of their ConfigMap."""
    for manifest in cluster.of(*PODS):
        for name in sorted(
            {n.name for n in needs_of(manifest) if n.kind == "ConfigMap"}
        ):
            if not HASHED.search(name):
                yield (
                    f"{manifest} reads the ConfigMap {name}, which has no hash in its "
                    "name: its pods would not notice a change"
                )


def denies_all(policy: Manifest) -> bool:
    """Return whether a network policy denies all traffic."""
    spec = policy.spec
    types = set(spec.get("policyTypes", ()))
    rules = spec.get("ingress") or spec.get("egress")
    return spec["podSelector"] == {} and types >= {"Ingress", "Egress"} and not rules


def namespace_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    """Yield namespaces that allow traffic by default."""
    policies = cluster.of("NetworkPolicy")
    closed = {policy.namespace for policy in policies if denies_all(policy)}
    for namespace in cluster.of("Namespace"):
        if namespace.name not in closed:
            yield (
                f"{namespace} has no network policy that denies all traffic by default"
            )


def chart_version(cluster: Cluster, release: Manifest) -> str:
    """Return the version of a release's chart, or of the source that it names."""
    if "chart" in release.spec:
        return str(release.spec["chart"]["spec"].get("version", "*"))
    named = release.spec["chartRef"]
    home = named.get("namespace", release.namespace)
    source = cluster.find(named["kind"], home, named["name"])
    reference = source.spec.get("ref") if source else None
    return str((reference or {}).get("tag", "*"))


def chart_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    """Yield Helm releases whose chart has no exact version."""
    for release in cluster.of("HelmRelease"):
        version = chart_version(cluster, release)
        if not EXACT_VERSION.fullmatch(version):
            yield (
                f"{release} takes version {version!r} of its chart, which is not one "
                "exact version"
            )
