"""Read and render the manifests of the clusters, as Flux does."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ruamel.yaml import YAML, YAMLError

from housemlops.settings import WorkbookError, did_you_mean

FLUX = "kustomize.toolkit.fluxcd.io"
ORIGIN = "config.kubernetes.io/origin"
# A generated ConfigMap's name ends with a hash of its content.
HASHED = re.compile(r"-[2456789bcdfghkmt]{10}$")
VARIABLE = re.compile(r"(\$?)\$\{([A-Za-z_]\w*)?(?::?[-=]([^}]*))?([^}]*)\}")
PODS = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "Pod")


class Manifest(NamedTuple):
    """An object as the cluster would get it."""

    file: str  # path in the repository
    body: dict
    layer: str  # Flux Kustomization that applies it

    def __str__(self) -> str:
        return f"{self.file}: {self.kind} {self.name}"

    @property
    def kind(self) -> str:
        return self.body.get("kind", "")

    @property
    def metadata(self) -> dict:
        return self.body.get("metadata") or {}

    @property
    def name(self) -> str:
        return self.metadata.get("name", "")

    @property
    def namespace(self) -> str:
        return self.metadata.get("namespace", "")

    @property
    def spec(self) -> dict:
        return self.body.get("spec") or {}

    @property
    def pod(self) -> dict:
        """The pod that a workload starts: its metadata and spec."""
        if self.kind == "Pod":
            return self.body
        if self.kind == "CronJob":
            return self.spec["jobTemplate"]["spec"]["template"]
        return self.spec.get("template", {})

    @property
    def pod_labels(self) -> dict[str, str]:
        return self.pod.get("metadata", {}).get("labels", {})

    @property
    def containers(self) -> list[dict]:
        """The containers of a workload, init containers first."""
        spec = self.pod.get("spec", {})
        return [*spec.get("initContainers", ()), *spec.get("containers", ())]


class Cluster(NamedTuple):
    """All that one cluster is given."""

    name: str
    manifests: list[Manifest]  # those of deploy/clusters/<name> have the layer ""
    faults: list[str]  # what could not be read

    @property
    def layers(self) -> dict[str, Manifest]:
        """The Flux Kustomizations by their names."""
        return {layer.name: layer for layer in self.of("Kustomization")}

    def of(self, *kinds: str) -> list[Manifest]:
        """Return the objects of some kinds."""
        return [one for one in self.manifests if one.kind in kinds]

    def find(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """Return an object by its name."""
        for one in self.of(kind):
            if (one.namespace, one.name) == (namespace, name):
                return one
        return None


def suggest(name: str, names) -> str:
    """Return ". Did you mean 'x'?" when a known name is spelled nearly alike."""
    suggestion = did_you_mean(name, names)
    return f".{suggestion}" if suggestion else ""


@functools.cache
def yaml_to_json(text: str) -> str:
    """Return the objects in a YAML text as JSON; the clusters share most texts."""
    objects = [one for one in YAML(typ="safe").load_all(text) if one]
    return json.dumps(objects, default=str)


def documents(text: str) -> list[dict]:
    """Return the objects in a YAML text."""
    return json.loads(yaml_to_json(text))


def as_list(value: object) -> list:
    """Return a list as it is, and anything else in a list."""
    return value if isinstance(value, list) else [value]


def mappings_in(node: object) -> Iterator[dict]:
    """Yield every mapping in an object, at any depth."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for part in node:
            yield from mappings_in(part)


def strings_in(node: object) -> Iterator[tuple[str, str]]:
    """Yield every string in an object, with the key that it or its list stands at."""
    for mapping in mappings_in(node):
        for key, value in mapping.items():
            for text in as_list(value):
                if isinstance(text, str):
                    yield key, text


def tool_path() -> str:
    """Return the PATH to look for programs in: this environment first."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def run_tool(name: str, *arguments, **options) -> subprocess.CompletedProcess:
    """Run a program that the environment brings, its output as text.

    Raises:
        WorkbookError: The program is not installed.
    """
    path = shutil.which(name, path=tool_path())
    if path is None:
        raise WorkbookError(
            f"The program {name} is not installed. "
            "`make doctor` sets the environment up."
        )
    command = [path, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def kustomization_of(folder: Path) -> Path | None:
    """Return the kustomization.yaml of a folder, when there is one."""
    for name in ("kustomization.yaml", "kustomization.yml", "Kustomization"):
        if (folder / name).exists():
            return folder / name
    return None


def render(root: Path, path: str) -> list[str]:
    """Render a folder with kustomize, each object with its file in an annotation.

    As for Flux, a folder without kustomization.yaml means all its files.

    Raises:
        WorkbookError: Kustomize cannot build the folder.
    """
    root, folder = root.resolve(), (root / path).resolve()
    options = []
    sources = [folder]
    if kustomization_of(folder) is None:
        options = ["--load-restrictor=LoadRestrictionsNone"]
        sources = sorted(folder.rglob("[!.]*.yaml"))
    with TemporaryDirectory() as made:
        scratch = Path(made).resolve()
        kustomization = {
            "resources": [os.path.relpath(source, scratch) for source in sources],
            "buildMetadata": ["originAnnotations"],
        }
        (scratch / "kustomization.yaml").write_text(json.dumps(kustomization))
        done = run_tool("kubectl", "kustomize", *options, scratch)
    if done.returncode:
        reason = " ".join(done.stderr.replace(f"{root}/", "").split())[-300:]
        raise WorkbookError(f"{path}: kustomize cannot build it: {reason}")
    rendered = done.stdout.replace(f"{os.path.relpath(root, scratch)}/", "")
    return [text for text in rendered.split("\n---\n") if text.strip()]


def to_manifest(text: str, layer: str) -> Manifest:
    """Return a rendered object, its origin taken out of the annotations."""
    body = documents(text)[0]
    annotations = body["metadata"]["annotations"]
    origin = documents(annotations.pop(ORIGIN))[0]
    if not annotations:
        del body["metadata"]["annotations"]
    return Manifest(origin.get("path") or origin["configuredIn"], body, layer)


def substitute(text: str, values: dict[str, str]) -> tuple[str, list[str]]:
    """Fill in variables as Flux does after rendering (postBuild).

    Returns:
        The text, and the expressions that have no value.
    """
    unresolved = []

    def replace(match):
        escaped, name, default, rest = match.groups()
        if escaped:
            return match[0][1:]
        if name in values and not rest:
            return str(values[name])
        if name and default is not None and not rest:
            return default
        unresolved.append(match[0])
        return match[0]

    return VARIABLE.sub(replace, text), unresolved


def variables_of(layer: Manifest, known: list[Manifest]) -> dict[str, str]:
    """Return a layer's variables: its own over those of the ConfigMaps it names."""
    build = layer.spec.get("postBuild") or {}
    sources = [(one["kind"], one["name"]) for one in build.get("substituteFrom", ())]
    values = {}
    for one in known:
        if (one.kind, one.name) in sources and one.namespace == layer.namespace:
            values |= one.body.get("data") or {}
    return values | build.get("substitute", {})


def fill_in(text: str, layer: Manifest, known: list[Manifest]) -> tuple[str, list[str]]:
    """Fill the variables of a layer into a rendered object.

    Returns:
        The text, and the expressions that Flux would leave or empty.
    """
    if f"{FLUX}/substitute: disabled" in text:
        return text, []
    if "postBuild" in layer.spec:
        return substitute(text, variables_of(layer, known))
    offered = set()
    for one in known:
        if not one.layer and one.kind == "ConfigMap":
            offered |= one.body.get("data", {}).keys()
    return text, [match[0] for match in VARIABLE.finditer(text) if match[2] in offered]


def layer_path(layer: Manifest) -> str:
    """Return the folder that a Flux Kustomization applies, from the root."""
    return os.path.normpath(layer.spec.get("path", "."))


def read_layer(root: Path, layer: Manifest, cluster: Cluster) -> None:
    """Add what a layer applies, and its faults, to a cluster."""
    path = layer_path(layer)
    if not (root / path).is_dir():
        cluster.faults.append(
            f"{layer} has the path {path}, and there is no such folder"
        )
        return
    added = []
    try:
        for text in render(root, path):
            text, unresolved = fill_in(text, layer, cluster.manifests)
            manifest = to_manifest(text, layer.name)
            added.append(manifest)
            for expression in dict.fromkeys(unresolved):
                cluster.faults.append(
                    f"{manifest} holds {expression}, which {layer.file} gives no "
                    "value: Flux would put nothing in its place"
                )
    except (WorkbookError, YAMLError) as error:
        first_line = str(error).splitlines()[0]
        cluster.faults.append(f"{layer} cannot be rendered: {first_line}")
    cluster.manifests.extend(added)


def read_cluster(root: Path, name: str) -> Cluster:
    """Render all that a cluster is given, layer by layer."""
    cluster = Cluster(name, [], [])
    own = f"deploy/clusters/{name}"
    try:
        cluster.manifests.extend(to_manifest(text, "") for text in render(root, own))
    except WorkbookError as error:
        cluster.faults.append(str(error))
    # The list grows while it is read: a layer may apply other layers.
    for manifest in cluster.manifests:
        path = manifest.spec.get("path")
        # The schema rejects a path that is missing or no text.
        if manifest.kind != "Kustomization" or not isinstance(path, str):
            continue
        if os.path.normpath(path) != own:
            read_layer(root, manifest, cluster)
    return cluster


def cluster_names(root: Path) -> list[str]:
    """Return the names of the clusters in deploy/."""
    folders = (root / "deploy/clusters").iterdir()
    return sorted(folder.name for folder in folders if folder.is_dir())


def layers_before(cluster: Cluster, name: str) -> set[str]:
    """Return a layer and all that it waits for, directly or not."""
    found, waiting = set(), [name]
    while waiting:
        layer = cluster.layers.get(waiting.pop())
        if layer and layer.name not in found:
            found.add(layer.name)
            waiting += [need["name"] for need in layer.spec.get("dependsOn", ())]
    return found


def selects(selector: dict, labels: dict) -> bool:
    """Return whether a label selector, expressions included, picks some labels."""
    if not (selector.get("matchLabels") or {}).items() <= labels.items():
        return False
    for rule in selector.get("matchExpressions") or ():
        value, values = labels.get(rule["key"]), rule.get("values", ())
        holds = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not holds[rule["operator"]]:
            return False
    return True
