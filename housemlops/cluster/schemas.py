"""Validate objects against the schemas of their kinds, and against rules.yaml."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema

from housemlops.cluster.manifests import PODS, Cluster, Manifest
from housemlops.core.files import read_yaml

LONG_RUNNING = ("Deployment", "StatefulSet", "DaemonSet")


def path_text(path) -> str:
    """Return a path in an object, such as spec.containers.0.image."""
    return ".".join(map(str, path or ())) or "the object"


def error_depth(error: jsonschema.ValidationError) -> tuple[int, bool]:
    """Return how deep in an object an error is; a wrong type is the least of them."""
    return len(error.absolute_path), error.validator != "type"


@functools.cache
def validate(schema: str, text: str) -> str:
    """Return what a schema rejects in an object, or "".

    Results are cached, because the clusters share most of their objects.

    Args:
        schema: JSON Schema of a Flux kind; empty for Kubernetes' own.
        text: The object as JSON.
    """
    import kubernetes_validate

    body = json.loads(text)
    if schema:
        validator = jsonschema.Draft202012Validator(json.loads(schema))
        error = next(validator.iter_errors(body), None)
        while error and error.context:
            # Of several alternatives, the one that fits best fails deepest.
            error = max(error.context, key=error_depth)
        return f"{path_text(error.absolute_path)}: {error.message}" if error else ""
    try:
        kubernetes_validate.validate(
            body, kubernetes_validate.latest_version(), strict=True
        )
    except kubernetes_validate.ValidationError as error:
        return f"{path_text(error.path)}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError:
        return (
            f"{body.get('apiVersion')} {body.get('kind')} is a kind that neither "
            "this Kubernetes nor this Flux knows"
        )
    return ""


def schema_fault(folder: Path, body: dict) -> str:
    """Return what the schema of an object's kind rejects in it, or "".

    Args:
        folder: Schemas of Flux.
        body: The object.
    """
    group, _, version = body.get("apiVersion", "").rpartition("/")
    path = folder / f"{body.get('kind', '').lower()}-{group}-{version}.json"
    schema = path.read_text() if path.exists() else ""
    return validate(schema, json.dumps(body, default=str))


def schema_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    """Yield the objects that their API would reject."""
    for manifest in cluster.manifests:
        body = {key: value for key, value in manifest.body.items() if key != "sops"}
        fault = schema_fault(root / "tests/flux-schemas", body)
        if fault:
            yield f"{manifest}: {fault[:300]}"


def rule_targets(manifest: Manifest) -> Iterator[tuple[str, str, dict]]:
    """Yield what rules can be about: a name for messages, a kind, and the part."""
    yield str(manifest), manifest.kind, manifest.body
    for container in manifest.containers if manifest.kind in PODS else ():
        name = f"{manifest}: the container {container['name']}"
        yield name, "containers", container
        init = container in manifest.pod["spec"].get("initContainers", ())
        if manifest.kind in LONG_RUNNING and not init:
            yield name, "long-running containers", container


def rule_fault(rule: dict, target: dict) -> str:
    """Return what is said of an object or a container that breaks a rule, or ""."""
    part = target.get(rule["at"]) or {} if "at" in rule else target
    validator = jsonschema.Draft202012Validator(rule["schema"])
    error = next(validator.iter_errors(part), None)
    if error is None:
        return ""
    missing = []
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
    return rule["fault"].format(missing=", ".join(missing))


def rule_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    """Yield the objects that break a rule of rules.yaml."""
    rules = read_yaml(Path(__file__).with_name("rules.yaml"))
    for manifest in cluster.manifests:
        for name, kind, target in rule_targets(manifest):
            for rule in rules:
                fault = rule_fault(rule, target) if kind in rule["of"] else ""
                if fault:
                    yield f"{name} {fault}"
