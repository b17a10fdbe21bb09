"""Read and check the file that names the released model of a cluster."""

import re
from collections.abc import Iterator
from pathlib import Path

from housemlops.cluster.manifests import HASHED, Cluster, suggest
from housemlops.cluster.references import needs_of

FIELDS = {  # field of a release -> pattern of its value
    "MODEL_NAME": r"[a-z0-9][a-z0-9.-]*",
    "MODEL_VERSION": r"\d+",
    "MODEL_TAG": r"v\d+",
    "MODEL_URI": r"(s3|https?|file)://\S+[^/]",
    "MODEL_SHA256": r"[0-9a-f]{64}",
    "RUN_ID": r"[0-9a-f]{32}",
    "DATA_MD5": r"[0-9a-f]{32}",
}


def release_file(env: str) -> str:
    """Return the file that names the model of an environment, from the root."""
    return f"deploy/apps/{env}/model/release.env"


def parse_release(text: str) -> dict[str, str]:
    """Return the fields of a release.env."""
    lines = [line for line in text.splitlines() if "=" in line and line[0] != "#"]
    return dict(line.split("=", 1) for line in lines)


def update_release(text: str, release: dict[str, str]) -> str:
    """Return a release.env with other values; comments and order stay."""
    for field, value in release.items():
        line = f"{field}={value}"
        if field in parse_release(text):
            text = re.sub(rf"(?m)^{field}=.*$", lambda match: line, text)
        else:
            text += line + "\n"
    return text


def field_faults(release: dict[str, str]) -> Iterator[str]:
    """Yield what is wrong with the fields of a release."""
    for field, pattern in FIELDS.items():
        value = release.get(field, "missing")
        if not re.fullmatch(pattern, value):
            yield f"{field} is {value!r}, and should look like {pattern}"
    for field in release.keys() - FIELDS.keys():
        yield f"{field} is no field of a release{suggest(field, FIELDS)}"
    tag, version = release.get("MODEL_TAG"), release.get("MODEL_VERSION")
    if tag != f"v{version}":
        yield f"MODEL_TAG is {tag}, and the version is {version}"


def release_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    """Yield why a release is not complete, or does not reach the server."""
    file = release_file(cluster.name)
    if not (root / file).exists():
        yield f"{file} is missing: it names the model of the cluster {cluster.name}"
        return
    release = parse_release((root / file).read_text())
    for fault in field_faults(release):
        yield f"{file}: {fault}"
    made = [one for one in cluster.of("ConfigMap") if one.body.get("data") == release]
    if not made:
        yield f"{file}: no ConfigMap of the cluster {cluster.name} holds this release"
    for config in made:
        if not HASHED.search(config.name):
            yield (
                f"{config} has no hash in its name, so a new model would not roll the "
                "server"
            )
        servers = []
        for server in cluster.of("Deployment"):
            if config.name in [need.name for need in needs_of(server)]:
                servers.append(server)
        if not servers:
            yield f"{config} is read by no Deployment"
        for server in servers:
            label = server.pod_labels.get("app.kubernetes.io/version")
            if label != release.get("MODEL_TAG"):
                yield (
                    f"{server} has the version label {label}, and the release is "
                    f"{release.get('MODEL_TAG')}"
                )
