"""Check pods: limits, security, images, environment and start-up."""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from housemlops.cluster.manifests import (
    HASHED,
    LAYER,
    PODS,
    Cluster,
    Manifest,
    containers_of,
    hint,
    pod_of,
)
from housemlops.cluster.network import flow_faults, texts_of, unheard
from housemlops.cluster.references import keys_of, needs_of
from housemlops.cluster.release_file import IMAGE, image_fault
from housemlops.cluster.secrets import opened
from housemlops.settings import Settings, WorkbookError

NEEDED = (("requests", "cpu"), ("requests", "memory"), ("limits", "memory"))


LONG_RUNNING = ("Deployment", "StatefulSet", "DaemonSet")


def container_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    "Containers without limits or probes, or with a mount of nothing"
    for manifest in cluster.of(*PODS):
        pod = pod_of(manifest)["spec"]
        volumes = {volume["name"] for volume in pod.get("volumes", ())} | {
            claim["metadata"]["name"]
            for claim in manifest.spec.get("volumeClaimTemplates", ())
        }
        for container in containers_of(manifest):
            named, has = (
                f"{manifest}: the container {container['name']}",
                container.get("resources", {}),
            )
            lacking = [
                f"resources.{kind}.{what}"
                for kind, what in NEEDED
                if what not in has.get(kind, {})
            ]
            if manifest.kind in LONG_RUNNING and container in pod["containers"]:
                lacking += {"livenessProbe", "readinessProbe"} - container.keys()
            if lacking:
                yield f"{named} has no {', '.join(sorted(lacking))}"
            doors = {
                name
                for door in container.get("ports", ())
                for name in (door.get("name"), door["containerPort"])
            }
            asked = [
                probe["httpGet"]["port"]
                for key, probe in container.items()
                if key.endswith("Probe") and "httpGet" in probe
            ]
            yield from (
                f"{named} is asked for its health at port {port}, which it does not open"
                for port in asked
                if port not in doors
            )
            mounts = [mount["name"] for mount in container.get("volumeMounts", ())]
            yield from (
                f"{named} mounts {mount}, and the pod has no such volume{hint(mount, volumes)}"
                for mount in mounts
                if mount not in volumes
            )


def change_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    "What a change in git would not change in the cluster, or what it would take back again and again"
    scaled = {
        (
            one.spec["scaleTargetRef"]["kind"],
            one.namespace,
            one.spec["scaleTargetRef"]["name"],
        )
        for one in cluster.of("HorizontalPodAutoscaler")
    }
    for one in cluster.of(*PODS):
        if (one.kind, one.namespace, one.name) in scaled and "replicas" in one.spec:
            yield f"{one} sets replicas, and an autoscaler too: each reconciliation would take its work back"
        fixed = {
            need.name
            for need in needs_of(one)
            if need.kind == "ConfigMap" and not HASHED.search(need.name)
        }
        yield from (
            f"{one} reads the ConfigMap {name}, which has no hash in its name: its pods would not notice a change"
            for name in sorted(fixed)
        )
        if (
            one.kind == "Job"
            and one.body["metadata"].get("annotations", {}).get(f"{LAYER}/force")
            != "enabled"
        ):
            yield f"{one} cannot be changed in place: it needs the annotation {LAYER}/force: enabled"
        if one.kind == "Job" and "ttlSecondsAfterFinished" in one.spec:
            yield f"{one} removes itself, and Flux would make it again for ever"


def closes(policy: Manifest) -> bool:
    "Whether a network policy denies all traffic"
    spec = policy.spec
    return (
        spec.get("podSelector") == {}
        and {"Ingress", "Egress"} <= set(spec.get("policyTypes", ()))
        and not (spec.get("ingress") or spec.get("egress"))
    )


def namespace_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    "Namespaces that are open"
    for manifest in cluster.of("Namespace"):
        labels = manifest.body["metadata"].get("labels", {})
        if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"{manifest} does not enforce the restricted pod security standard"
        if not any(
            closes(one)
            for one in cluster.of("NetworkPolicy")
            if one.namespace == manifest.name
        ):
            yield f"{manifest} has no network policy that denies all traffic by default"


def images_in(manifest: Manifest) -> Iterator[str]:
    "The images that an object names, those in the values of a chart too"
    if manifest.kind in PODS:
        yield from (container.get("image", "") for container in containers_of(manifest))

    def inside(node):
        if isinstance(node, list):
            yield from chain.from_iterable(map(inside, node))
        if isinstance(node, dict):
            if isinstance(node.get("repository"), str):
                yield f"{node['repository']}:{node.get('tag', '')}".rstrip(":") + (
                    f"@{node['digest']}" if node.get("digest") else ""
                )
            if isinstance(node.get("image"), str):
                yield node["image"]
            if "defaultAirflowRepository" in node:
                yield f"{node['defaultAirflowRepository']}:{node.get('defaultAirflowTag', '')}"
            yield from chain.from_iterable(map(inside, node.values()))

    if manifest.kind == "HelmRelease":
        yield from inside(manifest.spec.get("values", {}))


def image_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    "Images that are not pinned, or that nobody builds"
    ours = {
        value
        for one in cluster.of("ConfigMap")
        if not one.layer
        for name, value in one.body["data"].items()
        if name == "IMAGE_REGISTRY"
    }
    built = {path.parent.name for path in root.glob("deploy/images/*/Dockerfile")}
    for manifest in cluster.manifests:
        for image in dict.fromkeys(images_in(manifest)):
            home, _, name = (
                IMAGE.fullmatch(image)["name"].rpartition("/")
                if IMAGE.fullmatch(image)
                else ("", "", "")
            )
            if fault := image_fault(image):
                yield f"{manifest}: the image {image!r} {fault}"
            elif (
                home in ours and (name := name.removeprefix("housemlops-")) not in built
            ):
                yield f"{manifest}: the image {image!r} is our own, and deploy/images/{name} has no Dockerfile{hint(name, built)}"


def environment(
    cluster: Cluster, namespace: str, container: dict, secrets: dict
) -> dict[str, str]:
    """What a container finds in its environment.

    Returns:
        Name -> value; empty where only the cluster knows it.
    """
    kept = {
        ("ConfigMap", one.namespace, one.name): one.body.get("data", {})
        for one in cluster.of("ConfigMap")
    } | {("Secret", *key): values for key, values in secrets.items()}
    found = {}
    for source in container.get("envFrom", ()):
        for word, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            found |= kept.get((kind, namespace, source.get(word, {}).get("name")), {})
    return found | {
        one["name"]: one.get("value", "") for one in container.get("env", ())
    }


def setting_fault(name: str) -> str:
    """Why a HOUSEMLOPS_ variable sets nothing.

    Returns:
        Empty when there is such a setting.
    """
    section, _, key = name.removeprefix("HOUSEMLOPS_").lower().partition("_")
    if (known := Settings.model_fields.get(section)) is None:
        return f"{name} names no section of settings.ini{hint(section, Settings.model_fields)}"
    return (
        ""
        if key in known.annotation.model_fields
        else f"{name} names no setting{hint(key, known.annotation.model_fields)}"
    )


def environment_faults(root: Path, cluster: Cluster, secrets: dict) -> Iterator[str]:
    "Variables that their program would refuse or ignore, and commands that use one that is not there"
    from housemlops.web import OptionError, read_options

    pods = [
        (manifest, manifest.namespace, container)
        for manifest in cluster.of(*PODS)
        for container in containers_of(manifest)
    ]
    charts = [
        (
            manifest,
            manifest.spec.get("targetNamespace", manifest.namespace),
            {"name": "chart", **manifest.spec.get("values", {})},
        )
        for manifest in cluster.of("HelmRelease")
    ]
    for manifest, namespace, container in [*pods, *charts]:
        environ, named = (
            environment(cluster, namespace, container, secrets),
            f"{manifest}: the container {container['name']}",
        )
        try:
            read_options(
                {
                    name: value
                    for name, value in environ.items()
                    if name.startswith("HOUSE_")
                },
                root,
            )
        except OptionError as error:
            yield f"{named} would not start: {error}"
        yield from (
            f"{named}: {fault}"
            for name in environ
            if name.startswith("HOUSEMLOPS_") and (fault := setting_fault(name))
        )
        used = {
            name
            for text in texts_of(
                [container.get(part, []) for part in ("command", "args")]
            )
            for name in re.findall(r"(?<!\$)\$\((\w+)\)", text)
        }
        yield from (
            f"{named} uses $({name}) in its command, and has no such variable{hint(name, environ)}"
            for name in sorted(used - environ.keys())
        )


def opening_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    "Secrets that the bootstrap would make otherwise than they are in git, or that do not open"
    try:
        made = opened(root, cluster.name)
    except WorkbookError as error:
        yield str(error)
        return
    kept = {(one.namespace, one.name): one for one in cluster.of("Secret")}
    yield from (
        f"{one}: deploy/bootstrap/secrets.sh {cluster.name} makes no such Secret"
        for key, one in kept.items()
        if key not in made
    )
    yield from (
        f"deploy/bootstrap/secrets.sh {cluster.name} makes the Secret {name} in {namespace}, which the cluster does not have"
        for namespace, name in made.keys() - kept.keys()
    )
    for key in made.keys() & kept.keys():
        there, here = (
            ", ".join(sorted(keys_of(kept[key]))),
            ", ".join(sorted(made[key])),
        )
        if there != here:
            yield f"{kept[key]} has the keys {there}, and deploy/bootstrap/secrets.sh makes {here}"
        yield from (
            f"{kept[key]}: deploy/bootstrap/secrets.sh leaves its {name} empty"
            for name, value in made[key].items()
            if not value
        )
        yield from (
            f"{kept[key]}, as deploy/bootstrap/secrets.sh makes it, {fault}"
            for fault in unheard(cluster, made[key])
        )
    yield from flow_faults(root, cluster, made)
    yield from environment_faults(root, cluster, made)
