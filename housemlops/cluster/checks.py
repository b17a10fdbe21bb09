"""Check `deploy/` for everything that a cluster would reject too late."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ruamel.yaml import YAMLError

from housemlops.cluster.environment import opened_secret_faults
from housemlops.cluster.images import image_faults
from housemlops.cluster.layers import layer_faults, outside_faults, unused_faults
from housemlops.cluster.manifests import (
    Cluster,
    cluster_names,
    documents,
    read_cluster,
)
from housemlops.cluster.network import address_faults, flow_faults
from housemlops.cluster.references import (
    placement_faults,
    reference_faults,
    selector_faults,
)
from housemlops.cluster.release_file import release_faults
from housemlops.cluster.scanners import scan_faults
from housemlops.cluster.schemas import rule_faults, schema_faults
from housemlops.cluster.secrets import leak_faults, leaked_files, secret_faults
from housemlops.cluster.workloads import (
    chart_faults,
    config_faults,
    container_faults,
    namespace_faults,
    scaling_faults,
)
from housemlops.settings import WorkbookError, repo_root

# Each yields the faults of one cluster.
CHECKS = (
    layer_faults,
    reference_faults,
    placement_faults,
    selector_faults,
    address_faults,
    flow_faults,
    container_faults,
    scaling_faults,
    config_faults,
    namespace_faults,
    image_faults,
    secret_faults,
    leak_faults,
    chart_faults,
    release_faults,
)


def yaml_faults(root: Path) -> Iterator[str]:
    """Yield files that are not valid YAML."""
    for path in sorted((root / "deploy").rglob("*.yaml")):
        try:
            documents(path.read_text())
        except YAMLError as error:
            reason = " ".join(str(error).split())[:200]
            yield f"{path.relative_to(root).as_posix()} is no YAML: {reason}"


def faults_by_phase(root: Path) -> Iterator[list[str]]:
    """Yield the faults of each phase; a phase relies on those before it."""
    yield list(yaml_faults(root))
    yield list(outside_faults(root))
    clusters = [read_cluster(root, name) for name in cluster_names(root)]
    yield list(chain.from_iterable(cluster.faults for cluster in clusters))
    yield run_checks(root, clusters, (schema_faults, rule_faults))
    yield [
        *run_checks(root, clusters, CHECKS),
        *unused_faults(root, clusters),
        *leaked_files(root),
    ]
    yield [
        *run_checks(root, clusters, (opened_secret_faults,)),
        *scan_faults(root, clusters),
    ]


def run_checks(root: Path, clusters: list[Cluster], checks: tuple) -> list[str]:
    """Return the faults that checks find in clusters."""
    faults = []
    for cluster in clusters:
        for check in checks:
            faults += check(root, cluster)
    return faults


def check_deploy(root: Path | None = None) -> list[str]:
    """Return the faults of the first phase that has any, each as a sentence.

    Args:
        root: Repository; found when not given.

    Raises:
        WorkbookError: There is no deploy/clusters.
    """
    root = Path(root or repo_root()).resolve()
    if not (root / "deploy/clusters").is_dir():
        raise WorkbookError(
            f"There is no deploy/clusters in {root.name}: run the command inside the "
            "repository"
        )
    for faults in faults_by_phase(root):
        if faults:
            return list(dict.fromkeys(faults))
    return []
