"""Labs whose fault is in code, settings or notebooks."""

import json
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from housemlops.learning.lab_tools import (
    edit,
    python,
    sample_tables,
    swap,
    tune,
    write_notebook,
)
from housemlops.settings import WorkbookError


def put_loss_twice(root: Path) -> None:
    swap(
        root,
        "evaluate",
        """    from sklearn import metrics

    return {
        "mae": float(metrics.mean_absolute_error(actual, predicted)),
        "mse": float(metrics.mean_squared_error(actual, predicted)),
""",
        """    from sklearn import metrics

    def in_batches(loss, size=32):
        starts = range(0, len(actual), size)
        losses = [loss(actual[i : i + size], predicted[i : i + size]) for i in starts]
        return sum(losses) / len(actual)

    return {
        "mae": float(in_batches(metrics.mean_absolute_error)),
        "mse": float(in_batches(metrics.mean_squared_error)),
""",
    )


def probe_loss_twice(note: dict) -> tuple[str, str]:
    import numpy as np

    from housemlops.evaluate import price_metrics

    random, slight = np.random.default_rng(0), ""
    for n in (64, 2, 31, 32, 100, 559):
        actual = random.uniform(50_000, 500_000, n)
        predicted = actual * random.normal(1, 0.1, n)
        predicted[-1] *= 3  # in the last batch, which is the small one
        found, error = price_metrics(actual, predicted), predicted - actual
        for name, wanted in (
            ("mae", np.abs(error).mean()),
            ("mse", (error**2).mean()),
            ("rmse", np.sqrt((error**2).mean())),
        ):
            off = abs(found[name] / wanted - 1)
            if off > 1e-9 and n % 32:
                slight = (
                    slight
                    or f"the {name.upper()} of {n} prices is off by {off:.1%}: not every sale counts the same"
                )
            if off > 1e-9 and not (n % 32 and n > 32):
                return (
                    f"the {name.upper()} of {n} prices is {found[name]:,.0f}, and by hand it is {wanted:,.0f}",
                    "",
                )
    return "", slight


def put_early_crown(root: Path) -> None:
    swap(
        root,
        "train",
        """        mlflow.set_tags({"model_sha256": sha256, "model_id": logged.model_id})
""",
        """        mlflow.set_tags({"model_sha256": sha256, "model_id": logged.model_id})
        from housemlops.model.registry import registered_name
        name = registered_name(parameters["dataset"])
        version = client.create_model_version(name, f"models:/{logged.model_id}", run.info.run_id, tags={"model_sha256": sha256}, model_id=logged.model_id)
        client.set_registered_model_alias(name, "champion", version.version)
""",
    )


def trained_again(root: Path) -> None:
    "Run the workspace's stage `train` with the workspace's parameters"
    python(
        root,
        "from housemlops.pipeline.parameters import stage_parameters; from housemlops.train import run_train; from pathlib import Path; "
        "run_train(build=Path('build'), **stage_parameters(Path('.'), 'train'))",
    )


def put_early_crown_and_train(root: Path) -> None:
    tune(root, svr_c=2.0)
    put_early_crown(root)
    trained_again(root)


def probe_early_crown(note: dict) -> tuple[str, str]:
    from housemlops.model.registry import champion, registered_name
    from housemlops.pipeline.sample import relocate
    from housemlops.promote import log_path, read_promotions, succession
    from housemlops.settings import settings, tracking
    from housemlops.train import log_training

    name, mlflow = registered_name("sample"), tracking()
    standing = champion(mlflow.MlflowClient(), name)
    line = succession(read_promotions(log_path()), name)
    lawful = standing is not None and line[-1:] == [int(standing.version)]
    with TemporaryDirectory() as folder:
        chosen = settings()
        chosen.mlflow.tracking_uri, chosen.mlflow.artifacts = (
            f"sqlite:///{folder}/mlflow.db",
            f"{folder}/artifacts",
        )
        relocate(
            Path(shutil.copy("var/mlflow/mlflow.db", folder)),
            str(Path("var/mlflow").resolve()),
            folder,
        )
        other = tracking(chosen)
        before = champion(other.MlflowClient(), name)
        log_training(
            other,
            Path("build/train/model"),
            "0" * 64,
            {"dataset": "sample"},
            {"cv_mae": 1.0},
        )
        after = champion(other.MlflowClient(), name)
    if before and after and before.version != after.version:
        return (
            "the next night's run would change the champion again, and nobody would have judged it",
            "",
        )
    if standing is None:
        return f"{name} has no champion at all", ""
    return (
        "",
        ""
        if lawful
        else f"the champion is still version {standing.version}, and the promotion log does not know why",
    )


def put_open_secret(root: Path) -> dict:
    token, file = secrets.token_hex(12), "deploy/clusters/local/cluster-vars.yaml"
    text = (root / file).read_text(encoding="utf-8").rstrip("\n")
    (root / file).write_text(
        f"{text}\n  MLFLOW_DATABASE: postgresql://mlflow:{token}@postgres.database.svc.cluster.local:5432/mlflow\n",
        encoding="utf-8",
    )
    return {"token": token}


def probe_open_secret(note: dict) -> tuple[str, str]:
    def found(*command):
        return subprocess.run(
            ["git", *command], capture_output=True, text=True
        ).stdout.split()

    if found("grep", "--untracked", "-l", note["token"]) or found(
        "grep", "-l", note["token"], "HEAD"
    ):
        return "the password can be read in the files of the branch", ""
    old = found("log", "--all", "--format=%h", "-S", note["token"])
    return (
        "",
        f"commit {old[-1]} still has the password, and with it everybody who has a clone"
        if old
        else "",
    )


def put_lost_tag(root: Path) -> None:
    edit(
        root,
        "pyproject.toml",
        'allowed_cell_metadata_keys = ["tags"]',
        "allowed_cell_metadata_keys = []",
    )
    for path in sorted((root / "nbs").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            cell["metadata"] = {}
        write_notebook(path, notebook)
    edit(
        root,
        "housemlops/pipeline/parameters.py",
        """        for cell in notebook["cells"]
        if "parameters" in cell["metadata"].get("tags", [])
    ]
""",
        """        for cell, above in zip(notebook["cells"][1:], notebook["cells"])
        if "## Parameters" in "".join(above["source"])
    ]
""",
    )


def last_value(notebook, name: str):
    """What a parameter is once papermill's cell and the cells of plain values have run.

    Returns:
        -> value.
    """
    import ast

    found = None
    for cell in notebook.cells:
        try:
            lines = ast.parse(cell.source).body if cell.cell_type == "code" else []
        except SyntaxError:
            continue  # a magic command
        for line in lines:
            target = (
                line.target
                if isinstance(line, ast.AnnAssign)
                else line.targets[0]
                if isinstance(line, ast.Assign)
                else None
            )
            if getattr(target, "id", None) == name and isinstance(
                line.value, (ast.Constant, ast.Dict, ast.List, ast.UnaryOp)
            ):
                found = ast.literal_eval(line.value)
    return found


def tags_of(notebook: dict) -> set[str]:
    return {
        tag for cell in notebook["cells"] for tag in cell["metadata"].get("tags", [])
    }


def untagged(notebook: dict) -> dict:
    return notebook | {"cells": [cell | {"metadata": {}} for cell in notebook["cells"]]}


def probe_lost_tag(note: dict) -> tuple[str, str]:
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    from housemlops.pipeline.graph import graph, pipeline
    from housemlops.pipeline.parameters import (
        parameter_lines,
        read_notebook,
        stage_parameters,
    )

    root = Path.cwd()
    for stage in graph(pipeline(root)):
        given = {**stage_parameters(root, stage), "dataset": "another"}
        notebook = parameterize_notebook(
            load_notebook_node(str(root / f"nbs/{stage}.ipynb")), given
        )
        if last_value(notebook, "dataset") != "another":
            return f"{stage} uses its own defaults, whatever params.yaml says", ""
    with TemporaryDirectory() as folder:
        copy = Path(shutil.copy("nbs/prepare.ipynb", folder))
        subprocess.run(
            [Path(sys.executable).with_name("nbdev-clean"), "--fname", str(copy)],
            capture_output=True,
        )
        if not tags_of(json.loads(copy.read_text(encoding="utf-8"))):
            return "", "the next `housemlops sync` takes the tags away again"
    try:
        parameter_lines(untagged(read_notebook(root, "prepare")), "prepare")
    except WorkbookError:
        return "", ""
    return (
        "",
        "a notebook that loses its tag again would run on its defaults again, and nobody would stop it",
    )


def put_cry_wolf(root: Path) -> None:
    swap(
        root,
        "drift",
        "    corrected = holm_correction(p_values)\n",
        "    corrected = p_values\n",
    )
    swap(
        root,
        "drift",
        'check["passed"] = not certain_and_large(p, effect, alpha, limit)',
        'check["passed"] = p >= alpha',
    )


def probe_cry_wolf(note: dict) -> tuple[str, str]:
    from housemlops.drift import input_checks, judge_differences

    contract, _, sales = sample_tables()

    def alarm(now):
        return any(
            item["passed"] is False
            for item in judge_differences(
                input_checks(sales.drop(now.index), now, contract, 0.15), 0.05
            )
        )

    draws = [sales.sample(60, random_state=seed) for seed in range(12)]
    alarms = sum(map(alarm, draws))
    if alarms > 2:
        return (
            f"of {len(draws)} months that are drawn from the same houses, {alarms} are an alarm",
            "",
        )
    metres = draws[0].assign(area=draws[0]["area"] * 0.0929)
    return "", "" if alarm(
        metres
    ) else "a month whose areas are in square metres is no alarm either"
