"""Compare two clusters, or two states of one, object by object."""

import difflib
import json
import re

from housemlops.cluster.manifests import HASHED, Cluster


def rendered_objects(cluster: Cluster) -> dict[str, list[str]]:
    """Return the lines of each object, without ciphertexts.

    Returns:
        Kind, namespace and name (without the hash of its content) -> lines of YAML.
    """
    import yaml

    objects = {}
    for one in cluster.manifests:
        body = {key: value for key, value in one.body.items() if key != "sops"}
        text = re.sub(r"ENC\[[^]]*\]", "(encrypted)", json.dumps(body))
        name = HASHED.sub("", one.name)
        key = " ".join(filter(None, (one.kind, one.namespace, name)))
        objects[key] = yaml.safe_dump(json.loads(text), width=1000).splitlines()
    return objects


def difference(one: Cluster, other: Cluster) -> str:
    """Return what differs between two clusters, as a unified diff without context."""
    before, after = rendered_objects(one), rendered_objects(other)
    lines = []
    for name in sorted(before | after):
        if name not in before or name not in after:
            owner = one if name in before else other
            lines.append(f"=== {name} only in {owner.name}")
        elif before[name] != after[name]:
            lines.append(f"=== {name}")
            changes = difflib.unified_diff(before[name], after[name], n=0, lineterm="")
            # Without the two lines of file names and the line numbers.
            lines += [line for line in list(changes)[2:] if line[:2] != "@@"]
    return "\n".join(lines)
