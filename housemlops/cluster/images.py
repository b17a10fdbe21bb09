"""Check that every image is pinned, and that our own are built here."""

import re
from collections.abc import Iterator
from pathlib import Path

from housemlops.cluster.manifests import (
    PODS,
    Cluster,
    Manifest,
    mappings_in,
    suggest,
)

IMAGE = re.compile(
    r"(?P<name>[^@$]+?)(?::(?P<tag>[\w][\w.-]*))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


def image_fault(image: str) -> str:
    """Return why an image's name does not mean exactly one image, or ""."""
    match = IMAGE.fullmatch(image)
    if not match:
        return "is not the name of an image"
    if match["digest"]:
        return ""
    if not match["tag"]:
        return "has neither tag nor digest, which means latest"
    if not re.match(r"v?\d+\.\d+\.\d", match["tag"]):
        return f"has the tag {match['tag']}, which is another image every week"
    return ""


def chart_images(values: dict) -> Iterator[str]:
    """Yield the images that the values of a chart name."""
    for mapping in mappings_in(values):
        if isinstance(mapping.get("repository"), str):
            digest = f"@{mapping['digest']}" if mapping.get("digest") else ""
            name = f"{mapping['repository']}:{mapping.get('tag', '')}"
            yield name.rstrip(":") + digest
        if isinstance(mapping.get("image"), str):
            yield mapping["image"]
        if "defaultAirflowRepository" in mapping:
            tag = mapping.get("defaultAirflowTag", "")
            yield f"{mapping['defaultAirflowRepository']}:{tag}"


def images_of(manifest: Manifest) -> list[str]:
    """Return the images that an object names, each once."""
    images = []
    if manifest.kind in PODS:
        images = [container.get("image", "") for container in manifest.containers]
    if manifest.kind == "HelmRelease":
        images = chart_images(manifest.spec.get("values", {}))
    return list(dict.fromkeys(images))


def image_faults(root: Path, cluster: Cluster) -> Iterator[str]:
    """Yield images that are not pinned, or that nobody builds."""
    config = [one.body["data"] for one in cluster.of("ConfigMap") if not one.layer]
    registries = [data["IMAGE_REGISTRY"] for data in config if "IMAGE_REGISTRY" in data]
    built = [path.parent.name for path in root.glob("deploy/images/*/Dockerfile")]
    for manifest in cluster.manifests:
        for image in images_of(manifest):
            fault = image_fault(image)
            if fault:
                yield f"{manifest}: the image {image!r} {fault}"
                continue
            registry, _, name = IMAGE.fullmatch(image)["name"].rpartition("/")
            name = name.removeprefix("housemlops-")
            if registry in registries and name not in built:
                yield (
                    f"{manifest}: the image {image!r} is our own, and "
                    f"deploy/images/{name} has no Dockerfile{suggest(name, built)}"
                )
