"""Read and check the file that names the released model of a cluster."""

import re
from collections.abc import Iterator
from pathlib import Path

from housemlops.cluster.manifests import HASHED, Cluster, hint, labels_of
from housemlops.cluster.references import needs_of

IMAGE = re.compile(
    r"(?P<name>[^@]+?)(?::(?P<tag>[\w][\w.-]*))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


def image_fault(image: str) -> str:
    """Why the name of an image is not exactly one image.

    Returns:
        Empty when it is pinned.
    """
    found = IMAGE.fullmatch(image)
    if not found or "$" in image:
        return "is not the name of an image"
    if not found["digest"] and not found["tag"]:
        return "has neither tag nor digest, which means latest"
    if not found["digest"] and not re.match(r"v?\d+\.\d+\.\d", found["tag"]):
        return f"has the tag {found['tag']}, which is another image every week"
    return ""


FIELDS = {
    "MODEL_NAME": r"[a-z0-9][a-z0-9.-]*",
    "MODEL_VERSION": r"\d+",
    "MODEL_TAG": r"v\d+",
    "MODEL_URI": r"(s3|https?|file)://\S+[^/]",
    "MODEL_SHA256": r"[0-9a-f]{64}",
    "RUN_ID": r"[0-9a-f]{32}",
    "DATA_MD5": r"[0-9a-f]{32}",
}


def parsed(text: str) -> dict[str, str]:
    "What a release.env says"
    return dict(
        line.split("=", 1)
        for line in text.splitlines()
        if "=" in line and not line.startswith("#")
    )


def read_release(root: Path, name: str) -> dict[str, str]:
    "The release of a cluster"
    return parsed((root / f"deploy/apps/{name}/model/release.env").read_text())


def release_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    "A release that is not complete, or does not reach the server"
    file = f"deploy/apps/{cluster.name}/model/release.env"
    if not (root / file).exists():
        yield f"{file} is missing: it names the model of the cluster {cluster.name}"
        return
    release = read_release(root, cluster.name)
    yield from (
        f"{file}: {field} is {release.get(field, 'missing')!r}, and should look like {shape}"
        for field, shape in FIELDS.items()
        if not re.fullmatch(shape, release.get(field, ""))
    )
    yield from (
        f"{file}: {field} is no field of a release{hint(field, FIELDS)}"
        for field in release.keys() - FIELDS.keys()
    )
    if release.get("MODEL_TAG") != f"v{release.get('MODEL_VERSION')}":
        yield f"{file}: MODEL_TAG is {release.get('MODEL_TAG')}, and the version is {release.get('MODEL_VERSION')}"
    made = [one for one in cluster.of("ConfigMap") if one.body.get("data") == release]
    if not made:
        yield f"{file}: no ConfigMap of the cluster {cluster.name} holds this release"
    for one in made:
        if not HASHED.search(one.name):
            yield f"{one} has no hash in its name, so a new model would not roll the server"
        users = [
            (user, labels_of(user).get("app.kubernetes.io/version"))
            for user in cluster.of("Deployment")
            if any(need.name == one.name for need in needs_of(user))
        ]
        if not users:
            yield f"{one} is read by no Deployment"
        yield from (
            f"{user} has the version label {label}, and the release is {release.get('MODEL_TAG')}"
            for user, label in users
            if label != release.get("MODEL_TAG")
        )
