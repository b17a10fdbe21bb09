"""Give each reader of a stage notebook a folder in which the earlier stages have run on the sample."""

import atexit
import hashlib
import json
import os
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from housemlops.pipeline.graph import ancestors, graph, listed, pipeline
from housemlops.pipeline.parameters import parameter_defaults, read_notebook
from housemlops.processes import run_captured
from housemlops.settings import WorkbookError, repo_root, settings, whole_folder


def source_files(root: Path, stages: list[str]) -> list[Path]:
    """Return the files of the package that stages use, as their deps in dvc.yaml say."""
    written = pipeline(root)
    deps = sorted({dep for stage in stages for dep in listed(written[stage]["deps"])})
    files = []
    for dep in deps:
        if not dep.startswith("housemlops/"):
            continue
        path = root / dep
        files += sorted(path.rglob("*.*")) if path.is_dir() else [path]
    return [file for file in files if "__pycache__" not in file.parts]


def sample_key(root: Path, stages: list[str]) -> str:
    """Return a fingerprint of all that the sample after some stages is made from."""
    files = [*sorted((root / "data").glob("sample.*")), *source_files(root, stages)]
    values = [parameter_defaults(read_notebook(root, stage), stage) for stage in stages]
    parts = [file.read_bytes() for file in files if file.is_file()]
    parts.append(json.dumps([stages, values]).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def relocate(database: Path, old: str, new: str):
    """Rewrite the absolute folders in a copied SQLite tracking store.

    Args:
        database: The copy.
        old: Folder that it names.
        new: Folder that it is to name.
    """
    with closing(sqlite3.connect(database)) as store, store:
        tables = store.execute("select name from sqlite_master where type = 'table'")
        for (table,) in tables.fetchall():
            columns = store.execute(f'pragma table_info("{table}")').fetchall()
            for _, column, kind, *_ in columns:
                if "CHAR" in kind or "TEXT" in kind:
                    store.execute(
                        f'update "{table}" set "{column}" = replace("{column}", ?, ?) where instr("{column}", ?)',
                        (old, new, old),
                    )


def use_scratch_stores(scratch: Path) -> Path:
    """Point this process's state folder and tracking store into a scratch folder.

    Args:
        scratch: Holds build/ and state/.

    Returns:
        Its build folder.
    """
    state = scratch / "state"
    os.environ.update(
        HOUSEMLOPS_PATHS_STATE=str(state),
        HOUSEMLOPS_MLFLOW_TRACKING_URI=f"sqlite:///{state}/mlflow/mlflow.db",
        HOUSEMLOPS_MLFLOW_ARTIFACTS=str(state / "mlflow/artifacts"),
    )
    return scratch / "build"


def build_sample(root: Path, stage: str, scratch: Path):
    """Run a stage on the sample in a process of its own, by the command line.

    So whoever asks for a sample meets the stages only as files, and imports none.

    Args:
        root: Repository.
        stage: Its name.
        scratch: Holds build/ and state/.
    """
    program = Path(sys.executable).with_name("housemlops")
    command = [program, "stage", stage, "--sample", scratch]
    done = run_captured(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise WorkbookError(f"The sample could not be built: {last}")


def kept_sample(root: Path, stages: list[str], home: Path) -> Path:
    """Return the sample after some stages, made from the one before it when it is not there.

    Args:
        root: Repository.
        stages: That build it, in order.
        home: Folder of all samples.

    Returns:
        A folder that is never written to again.
    """
    from filelock import FileLock

    kept = home / f"{len(stages)}-{sample_key(root, stages)}"
    if kept.exists():
        return kept
    before = kept_sample(root, stages[:-1], home) if stages else None
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".lock"):
        if kept.exists():
            return kept
        with whole_folder(kept) as draft:
            (draft / "build").mkdir()
            if before is None:
                return kept  # before the first stage there is nothing
            copy_sample(before, draft)
            build_sample(root, stages[-1], draft)
            if (database := draft / "state/mlflow/mlflow.db").exists():
                relocate(database, str(draft), str(kept))
    return kept


def copy_sample(kept: Path, mine: Path):
    """Copy a sample, so that its tracking store names the folder it is in now."""
    shutil.copytree(kept, mine, symlinks=True, dirs_exist_ok=True)
    if (database := mine / "state/mlflow/mlflow.db").exists():
        relocate(database, str(kept), str(mine))


def open_build(build: str, stage: str) -> Path:
    """Return the folder that a stage notebook works in.

    Args:
        build: A folder, or "sample": a copy of the sample, removed when this process ends.
        stage: The notebook that asks.

    Returns:
        The folder with the outputs of the earlier stages.
    """
    if build != "sample":
        return Path(build)
    root, home = repo_root(), settings().paths.state / "sample"
    kept = kept_sample(root, ancestors(graph(pipeline(root)), stage), home)
    mine = Path(tempfile.mkdtemp(prefix=f"{stage}-", dir=home))
    copy_sample(kept, mine)
    atexit.register(shutil.rmtree, mine, ignore_errors=True)
    return use_scratch_stores(mine)
