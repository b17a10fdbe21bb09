"""Check the environment of pods, with the Secrets of the bootstrap opened."""

import re
from collections.abc import Iterator
from pathlib import Path

from housemlops.cluster.manifests import PODS, Cluster, Manifest, strings_in, suggest
from housemlops.cluster.network import flow_faults, unresolved_addresses
from housemlops.cluster.references import keys_of
from housemlops.cluster.secrets import open_secrets
from housemlops.settings import Settings, WorkbookError


def environment_of(
    cluster: Cluster, namespace: str, container: dict, secrets: dict
) -> dict[str, str]:
    """Return a container's variables; empty values are known in the cluster only."""
    values = {}
    for source in container.get("envFrom", ()):
        name = source.get("configMapRef", {}).get("name", "")
        config = cluster.find("ConfigMap", namespace, name)
        values |= config.body.get("data", {}) if config else {}
        secret = source.get("secretRef", {}).get("name", "")
        values |= secrets.get((namespace, secret), {})
    own = {one["name"]: one.get("value", "") for one in container.get("env", ())}
    return values | own


def setting_fault(name: str) -> str:
    """Return why a HOUSEMLOPS_ variable sets nothing, or ""."""
    section, _, key = name.removeprefix("HOUSEMLOPS_").lower().partition("_")
    sections = Settings.model_fields
    if section not in sections:
        return f"{name} names no section of settings.ini{suggest(section, sections)}"
    known = sections[section].annotation.model_fields
    return "" if key in known else f"{name} names no setting{suggest(key, known)}"


def variable_faults(root: Path, container: dict, values: dict) -> Iterator[str]:
    """Yield the variables of a container that its program would refuse or ignore."""
    from housemlops.serving.options import OptionError, read_options

    options = {name: values[name] for name in values if name.startswith("HOUSE_")}
    try:
        read_options(options, root)
    except OptionError as error:
        yield f"would not start: {error}"
    for name in values:
        fault = setting_fault(name) if name.startswith("HOUSEMLOPS_") else ""
        if fault:
            yield fault
    command = {part: container.get(part, []) for part in ("command", "args")}
    used = set()
    for _, text in strings_in(command):
        used.update(re.findall(r"(?<!\$)\$\((\w+)\)", text))
    for name in sorted(used - values.keys()):
        yield (
            f"uses $({name}) in its command, and has no such variable"
            f"{suggest(name, values)}"
        )


def environment_faults(root: Path, cluster: Cluster, secrets: dict) -> Iterator[str]:
    """Yield variables that programs would refuse or ignore, or that are missing."""
    for manifest in cluster.of(*PODS, "HelmRelease"):
        home, containers = manifest.namespace, manifest.containers
        if manifest.kind == "HelmRelease":
            home = manifest.spec.get("targetNamespace", home)
            containers = [{"name": "chart", **manifest.spec.get("values", {})}]
        for container in containers:
            values = environment_of(cluster, home, container, secrets)
            for fault in variable_faults(root, container, values):
                yield f"{manifest}: the container {container['name']} {fault}"


def secret_key_faults(secret: Manifest, values: dict[str, str]) -> Iterator[str]:
    """Yield how a Secret in git differs from the one that the bootstrap makes."""
    in_git, made = sorted(keys_of(secret)), sorted(values)
    if in_git != made:
        yield (
            f"{secret} has the keys {', '.join(in_git)}, and "
            f"deploy/bootstrap/secrets.sh makes {', '.join(made)}"
        )
    for name, value in values.items():
        if not value:
            yield f"{secret}: deploy/bootstrap/secrets.sh leaves its {name} empty"


def opened_secret_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    """Yield faults of the bootstrap's Secrets, and of the pods that read them."""
    try:
        secrets = open_secrets(root, cluster.name)
    except WorkbookError as error:
        yield str(error)
        return
    script = f"deploy/bootstrap/secrets.sh {cluster.name}"
    in_git = {(one.namespace, one.name): one for one in cluster.of("Secret")}
    for namespace, name in secrets.keys() - in_git.keys():
        yield (
            f"{script} makes the Secret {name} in {namespace}, which the cluster does "
            "not have"
        )
    for key, secret in in_git.items():
        if key not in secrets:
            yield f"{secret}: {script} makes no such Secret"
            continue
        yield from secret_key_faults(secret, secrets[key])
        for fault in unresolved_addresses(cluster, secrets[key]):
            yield f"{secret}, as deploy/bootstrap/secrets.sh makes it, {fault}"
    yield from flow_faults(root, cluster, secrets)
    yield from environment_faults(root, cluster, secrets)
