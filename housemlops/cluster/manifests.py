"""Read and render the manifests of the clusters, and judge each object by its schema."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ruamel.yaml import YAML, YAMLError

from housemlops.settings import WorkbookError, did_you_mean


class Manifest(NamedTuple):
    "An object as the cluster would get it"

    file: str  # from the root of the repository
    body: dict
    layer: str  # Flux Kustomization that applies it

    def __str__(self) -> str:
        return f"{self.file}: {self.kind} {self.name}"

    @property
    def kind(self) -> str:
        return self.body.get("kind", "")

    @property
    def name(self) -> str:
        return self.body.get("metadata", {}).get("name", "")

    @property
    def namespace(self) -> str:
        return self.body.get("metadata", {}).get("namespace", "")

    @property
    def spec(self) -> dict:
        return self.body.get("spec") or {}


@functools.cache
def as_json(text: str) -> str:
    "A YAML text as JSON, read once only: the two clusters share most of theirs"
    return json.dumps(
        [found for found in YAML(typ="safe").load_all(text) if found], default=str
    )


def hint(name: str, names) -> str:
    """A second sentence, when something known is spelled nearly alike.

    Returns:
        ". Did you mean 'x'?", or nothing.
    """
    return f".{found}" if (found := did_you_mean(name, names)) else ""


def documents(text: str) -> list[dict]:
    "The objects in a YAML text"
    return json.loads(as_json(text))


def search_path() -> str:
    "Where programs are looked for: this environment first"
    return os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    )


def run_tool(name: str, *arguments, **options) -> subprocess.CompletedProcess:
    """Run a pinned tool, its output as text.

    Args:
        name: Of a program that the environment brings.
    """
    path = shutil.which(name, path=search_path())
    if path is None:
        raise WorkbookError(
            f"The program {name} is not installed: `make doctor` sets the environment up"
        )
    return subprocess.run(
        [path, *map(str, arguments)], capture_output=True, text=True, **options
    )


def kustomization_of(folder: Path) -> Path | None:
    """The kustomization.yaml of a folder.

    Returns:
        The file, when there is one.
    """
    return next(
        (
            folder / name
            for name in ("kustomization.yaml", "kustomization.yml", "Kustomization")
            if (folder / name).exists()
        ),
        None,
    )


ORIGIN = re.compile(
    r"^    config\.kubernetes\.io/origin: \|\n((?: {6}.*\n?)+)", re.MULTILINE
)


def render(root: Path, path: str) -> list[tuple[str, str]]:
    """What kustomize makes of a folder; as for Flux, a folder without kustomization.yaml means all its files.

    Returns:
        File it comes from, YAML text, of each object.
    """
    root, folder = root.resolve(), (root / path).resolve()
    whole = kustomization_of(folder) is not None
    with TemporaryDirectory() as made:
        scratch = Path(made).resolve()
        sources = (
            [folder]
            if whole
            else sorted(
                file for file in folder.rglob("*.yaml") if not file.name.startswith(".")
            )
        )
        (scratch / "kustomization.yaml").write_text(
            json.dumps(
                {
                    "resources": [
                        os.path.relpath(source, scratch) for source in sources
                    ],
                    "buildMetadata": ["originAnnotations"],
                }
            )
        )
        done = run_tool(
            "kubectl",
            "kustomize",
            *([] if whole else ["--load-restrictor=LoadRestrictionsNone"]),
            scratch,
        )
    if done.returncode:
        raise WorkbookError(
            f"{path}: kustomize cannot build it: {kustomize_says(done.stderr, root)}"
        )

    def file_of(text):  # from the root of the repository
        told = re.search(r"(?:path|configuredIn): (\S+)", ORIGIN.search(text)[1])[1]
        return (scratch / told).resolve().relative_to(root).as_posix()

    return [
        (
            file_of(text),
            re.sub(
                r"^  annotations:\n(?! {4})",
                "",
                ORIGIN.sub("", text),
                flags=re.MULTILINE,
            ),
        )
        for text in re.split(r"^---\n", done.stdout, flags=re.MULTILINE)
        if text.strip()
    ]


def kustomize_says(error: str, root: Path) -> str:
    "The end of a chain of causes, back to the first path that it names"
    causes = " ".join(error.replace(f"{root}/", "").split()).split(": ")
    while len(causes) > 1 and not re.search(r"deploy/|\.yaml|\w\.v\d", causes[-1]):
        causes[-2:] = [": ".join(causes[-2:])]
    return causes[-1][:300]


@functools.cache
def judged(schema: str, text: str) -> str:
    """The first thing in an object that its schema refuses; each is judged once, and the clusters share most.

    Args:
        schema: JSON Schema of a Flux kind; empty for Kubernetes' own.
        text: The object as JSON.

    Returns:
        Empty when there is nothing to say.
    """
    import jsonschema
    import kubernetes_validate

    body = json.loads(text)
    if schema:
        error = next(
            jsonschema.Draft202012Validator(json.loads(schema)).iter_errors(body), None
        )
        while error and error.context:
            error = max(
                error.context,
                key=lambda part: (len(part.absolute_path), part.validator != "type"),
            )
        return f"{place(error.absolute_path)}: {error.message}" if error else ""
    try:
        kubernetes_validate.validate(
            body, kubernetes_validate.latest_version(), strict=True
        )
    except kubernetes_validate.ValidationError as error:
        return f"{place(error.path)}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError:
        return f"{body.get('apiVersion')} {body.get('kind')} is a kind that neither this Kubernetes nor this Flux knows"
    return ""


def schema_fault(folder: Path, body: dict) -> str:
    """What the schema of an object's kind refuses in it.

    Args:
        folder: Of the Flux schemas.

    Returns:
        Empty when there is none.
    """
    group, _, version = body.get("apiVersion", "").rpartition("/")
    path = folder / f"{body.get('kind', '').lower()}-{group}-{version}.json"
    return judged(
        path.read_text() if path.exists() else "", json.dumps(body, default=str)
    )


def place(path) -> str:
    """Where in an object.

    Returns:
        Such as spec.containers.0.image.
    """
    return ".".join(map(str, path or ())) or "the object"


VARIABLE = re.compile(r"(\$?)\$\{([A-Za-z_]\w*)?(?::?[-=]([^}]*))?([^}]*)\}")


def substituted(text: str, values: dict[str, str]) -> tuple[str, list[str]]:
    """Do what Flux does after rendering (postBuild).

    Args:
        text: YAML.
        values: Variables of the cluster.

    Returns:
        Text, expressions left over.
    """
    left = []

    def value(found):
        escaped, name, default, rest = found.groups()
        if escaped:
            return found[0][1:]
        if name in values and not rest:
            return str(values[name])
        if name and default is not None and not rest:
            return default
        left.append(found[0])
        return found[0]

    return VARIABLE.sub(value, text), left


LAYER = "kustomize.toolkit.fluxcd.io"


HASHED = re.compile(
    r"-[2456789bcdfghkmt]{10}$"
)  # as kustomize writes the hash of a content


PODS = (
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "Job",
    "CronJob",
    "Pod",
)  # kinds that start pods


class Cluster(NamedTuple):
    "All that one cluster is given"

    name: str
    manifests: list[
        Manifest
    ]  # those of deploy/clusters/<name> itself have the layer ""
    faults: list[str]  # what could not be read

    @property
    def layers(self) -> dict[str, Manifest]:  # name -> Flux Kustomization
        return {found.name: found for found in self.manifests if is_layer(found)}

    def of(self, *kinds: str) -> list[Manifest]:
        return [found for found in self.manifests if found.kind in kinds]


def is_layer(manifest: Manifest) -> bool:
    "Whether an object is a Kustomization of Flux, not of kustomize"
    return manifest.kind == "Kustomization" and manifest.body.get(
        "apiVersion", ""
    ).startswith(LAYER)


def variables(layer: Manifest, manifests: list[Manifest]) -> dict[str, str]:
    "What a layer may substitute: its own values over those of the ConfigMaps it names"
    build = layer.spec.get("postBuild") or {}
    named = {
        (source["kind"], source["name"]) for source in build.get("substituteFrom", ())
    }
    found = [
        one.body.get("data") or {}
        for one in manifests
        if (one.kind, one.name) in named and one.namespace == layer.namespace
    ]
    return {name: value for data in found for name, value in data.items()} | build.get(
        "substitute", {}
    )


def filled_in(
    file: str, text: str, layer: Manifest, known: list[Manifest]
) -> tuple[Manifest, list[str]]:
    """A rendered object after substitution.

    Returns:
        Object, faults.
    """
    untouched = f"{LAYER}/substitute: disabled" in text
    offered = {
        name
        for one in known
        if not one.layer and one.kind == "ConfigMap"
        for name in one.body.get("data", {})
    }
    done, left = (
        substituted(text, variables(layer, known))
        if "postBuild" in layer.spec and not untouched
        else (text, [])
    )
    if "postBuild" not in layer.spec:
        left = [found[0] for found in VARIABLE.finditer(text) if found[2] in offered]
    found = Manifest(file, documents(done)[0], layer.name)
    return found, [
        f"{found} holds {expression}, which {layer.file} gives no value: Flux would put nothing in its place"
        for expression in dict.fromkeys(left)
    ]


def path_of(layer: Manifest) -> str:
    """What a Flux Kustomization applies.

    Returns:
        From the root of the repository.
    """
    return os.path.normpath(layer.spec.get("path", "."))


def read_cluster(root: Path, name: str) -> Cluster:
    "Render all that a cluster is given, layer by layer"
    found, faults = [], []
    try:
        found += [
            Manifest(file, documents(text)[0], "")
            for file, text in render(root, f"deploy/clusters/{name}")
        ]
    except WorkbookError as error:
        faults.append(str(error))
    waiting = [manifest for manifest in found if is_layer(manifest)]
    for layer in waiting:
        path = path_of(layer)
        if path == f"deploy/clusters/{name}" or schema_fault(
            root / "tests/flux-schemas", layer.body
        ):
            continue
        if not (root / path).is_dir():
            faults.append(f"{layer} has the path {path}, and there is no such folder")
        else:
            try:
                made = [
                    filled_in(file, text, layer, found)
                    for file, text in render(root, path)
                ]
            except (WorkbookError, YAMLError) as error:
                faults.append(
                    f"{layer} cannot be rendered: {str(error).splitlines()[0]}"
                )
                continue
            found += [manifest for manifest, _ in made]
            faults += chain.from_iterable(left for _, left in made)
            waiting += [manifest for manifest, _ in made if is_layer(manifest)]
    return Cluster(name, found, faults)


def clusters(root: Path) -> list[str]:
    "The clusters there are"
    return sorted(
        folder.name
        for folder in (root / "deploy/clusters").iterdir()
        if folder.is_dir()
    )


def ancestors(cluster: Cluster, name: str) -> set[str]:
    """What a layer waits for, directly or not, and itself.

    Returns:
        Names of layers; a circle is cut.
    """
    found, waiting = set(), [name]
    while waiting:
        if (one := waiting.pop()) in found or one not in cluster.layers:
            continue
        found.add(one)
        waiting += [
            need["name"] for need in cluster.layers[one].spec.get("dependsOn", ())
        ]
    return found


def as_list(value: object) -> list:
    "A list as it is, anything else in a list"
    return value if isinstance(value, list) else [value]


def pod_of(manifest: Manifest) -> dict:
    """The pod that a workload starts.

    Returns:
        Metadata, spec.
    """
    if manifest.kind == "Pod":
        return manifest.body
    return (
        manifest.spec["jobTemplate"]["spec"]
        if manifest.kind == "CronJob"
        else manifest.spec
    ).get("template", {})


def labels_of(manifest: Manifest) -> dict[str, str]:
    "The labels of a workload's pods"
    return pod_of(manifest).get("metadata", {}).get("labels", {})


def selects(selector: dict, labels: dict) -> bool:
    """Whether a selector picks a pod.

    Args:
        selector: MatchLabels.
    """
    return selector.items() <= labels.items()


def containers_of(manifest: Manifest) -> list[dict]:
    """All containers of a workload.

    Returns:
        Init containers first.
    """
    spec = pod_of(manifest).get("spec", {})
    return [*spec.get("initContainers", ()), *spec.get("containers", ())]
