"""Check the chain from a training back to its data, link by link."""

import hashlib
import subprocess
from pathlib import Path

from housemlops.model.gates import figure
from housemlops.model.registry import is_finished
from housemlops.settings import WorkbookError


def link(name: str, found: object, holds: bool = True) -> dict:
    """Return one link of a chain: link, found, holds."""
    return {"link": name, "found": str(found), "holds": bool(holds)}


def run_links(mlflow, run) -> list[dict]:
    """Return the links of a training: its MLflow run, its executed notebook, what was measured."""
    page = "notebook/train.html"
    logged = mlflow.MlflowClient().list_artifacts(run.info.run_id, "notebook")
    kept = page in {item.path for item in logged}
    measured = [
        f"{name.upper()} {figure(run.data.metrics[f'test_{name}'])}"
        for name in ("mae", "rmsle", "coverage")
        if f"test_{name}" in run.data.metrics
    ]
    lifecycle = run.data.tags.get("lifecycle") or "no lifecycle"
    finished = is_finished(run)
    status = "" if finished else f", which is {run.info.status}"
    return [
        link(
            "MLflow run",
            f"{run.info.run_name} {run.info.run_id}, of {lifecycle}{status}",
            finished,
        ),
        link(
            "executed notebook", page if kept else f"none: the run has no {page}", kept
        ),
        link("measured", ", ".join(measured) or "nothing", measured),
    ]


def ledger_bytes(root: Path, tags: dict) -> bytes | None:
    """Return the data of a run, wherever it still is, or None.

    Args:
        root: Checkout or workspace: the ledger, the DVC cache, the bundled remote and the commit are tried.
        tags: Of the run; they name the hash.
    """
    name, md5 = f"data/{tags['dataset']}.csv", tags["data_md5"]
    stored = f"files/md5/{md5[:2]}/{md5[2:]}"
    places = [
        root / name,
        root / ".dvc/cache" / stored,
        root / "data/remote" / stored,
    ]
    shown = subprocess.run(
        ["git", "-C", root, "show", f"{tags['git_commit']}:{name}"], capture_output=True
    )
    found = [*(path.read_bytes() for path in places if path.exists()), shown.stdout]
    return next((data for data in found if hashlib.md5(data).hexdigest() == md5), None)


def data_link(root: Path, tags: dict) -> dict:
    """Return the link to the data of a run."""
    what = f"{tags['dataset']} as of {tags['as_of']}, MD5 {tags['data_md5']}"
    return link("data", what, ledger_bytes(root, tags) is not None)


def check_training(mlflow, run, root: Path) -> None:
    """Refuse a model whose training cannot be traced.

    A training that ran as a function, as in lessons, has neither notebook nor commit
    and is not asked for them.

    Args:
        mlflow: From `tracking`.
        run: Of the training.
        root: Checkout or workspace.

    Raises:
        WorkbookError: With the first link that does not hold.
    """
    if "stage" not in run.data.tags:
        return
    for part in [*run_links(mlflow, run), data_link(root, run.data.tags)]:
        if not part["holds"]:
            raise WorkbookError(
                f'The model cannot be promoted, because its lineage is broken at "{part["link"]}" ({part["found"]}): '
                "run the stage `train` again (`housemlops run --force train`)"
            )
