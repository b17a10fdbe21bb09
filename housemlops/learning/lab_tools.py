"""What a lab needs to change a checkout and to look at it."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from housemlops.core.repository import git
from housemlops.processes import run_captured
from housemlops.settings import WorkbookError


def edit(root: Path, file: str, old: str, new: str) -> None:
    "Replace a text that a file has once"
    text = (root / file).read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise WorkbookError(
            f"{file} is not as this lab expects it: it was changed since the lab was written"
        )
    (root / file).write_text(text.replace(old, new), encoding="utf-8")


def swap(root: Path, room: str, old: str, new: str) -> None:
    "Replace a text of a room, in its notebook and in its module"
    path = root / f"nbs/{room}.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    found = [
        cell
        for cell in notebook["cells"]
        if cell["cell_type"] == "code" and old in "".join(cell["source"])
    ]
    if len(found) != 1:
        raise WorkbookError(
            f"nbs/{room}.ipynb is not as this lab expects it: it was changed since the lab was written"
        )
    found[0]["source"] = (
        "".join(found[0]["source"]).replace(old, new).splitlines(keepends=True)
    )
    write_notebook(path, notebook)
    edit(root, f"housemlops/{room}.py", old, new)


def tune(root: Path, **values) -> None:
    "Set values of params.yaml, comments kept"
    path = root / "params.yaml"
    text = path.read_text(encoding="utf-8")
    for name, value in values.items():
        text = re.sub(rf"(?m)^( *{name}: )\S+", rf"\g<1>{value}", text)
    path.write_text(text, encoding="utf-8")


def write_notebook(path: Path, notebook: dict) -> None:
    "Write a notebook as nbdev-clean does"
    path.write_text(
        json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )


def commit(root: Path, message: str, by: str = "colleague") -> str:
    """Commit all that has changed.

    Returns:
        Hash.
    """
    git("add", "--all", root=root)
    who = {
        f"GIT_{role}_{part}": value
        for role in ("AUTHOR", "COMMITTER")
        for part, value in (("NAME", by), ("EMAIL", f"{by}@localhost"))
    }
    git("commit", "--quiet", "--message", message, root=root, **who)
    return git("rev-parse", "HEAD", root=root)


def python(root: Path, program: str) -> None:
    "Run a program with a workspace's own package; WorkbookError with its last line when it fails"
    done = run_captured([sys.executable, "-c", program], cwd=root)
    if done.returncode:
        raise WorkbookError((done.stderr.strip().splitlines() or ["no message"])[-1])


@dataclass(frozen=True)
class Lab:
    "A fault to find"

    name: str
    title: str
    minutes: int  # for somebody who knows the lifecycle
    learn: str  # what the learner takes home
    told: str  # the symptom, as an engineer on call would hear of it
    tools: tuple[str, ...]  # commands worth typing in the workspace
    message: str  # of the colleague's commit
    put: Callable[
        [Path], dict | None
    ]  # makes the fault; what it returns is kept for the probe
    probe: Callable[
        [dict], tuple[str, str]
    ]  # asked in the workspace: still wrong; right but not enough
    why: str  # the cause, told afterwards
    caught: str  # the ordinary check that would have stopped it
    mend: tuple[
        str, ...
    ]  # commands; {commit} is the colleague's, {files} what it changed


BACK = (
    "git checkout {commit}^ -- {files}",
    "git commit --quiet --all --allow-empty --message 'fix: {name}'",
)  # what the colleague changed, as it was


def sample_tables():
    """The contract and the sound sales of the workspace's sample.

    Returns:
        -> contract, raw (n_sales, n_columns) text, typed (n_sales, n_columns).
    """
    import pandas as pd

    from housemlops.contract import load_contract
    from housemlops.prepare import sort_out

    contract, raw = (
        load_contract("sample"),
        pd.read_csv(
            "build/ingest/sales.csv", dtype=str, keep_default_na=False, index_col="row"
        ),
    )
    sound = sort_out(raw, contract)[0]
    return contract, raw.loc[sound.index], sound


def prepared(**changes):
    """The splits that the workspace's stage `prepare` makes now.

    Returns:
        -> train, test.
    """
    import pandas as pd

    from housemlops.pipeline.parameters import parameter_defaults, read_notebook
    from housemlops.prepare import run_prepare

    with TemporaryDirectory() as folder:
        build = Path(folder)
        shutil.copytree("build/ingest", build / "ingest")
        run_prepare(
            **parameter_defaults(read_notebook(Path.cwd(), "prepare"), "prepare")
            | {"build": build}
            | changes
        )
        return [
            pd.read_parquet(build / f"prepare/{name}.parquet")
            for name in ("train", "test")
        ]


def newest_drift(months: int = 6):
    """How the houses of the newest months differ from those before, by the workspace's own checks.

    Returns:
        -> table of the five most different columns: column, test, p, effect,
            passed.
    """
    import pandas as pd

    from housemlops.contract import sale_months
    from housemlops.drift import input_checks, judge_differences

    contract, _, sales = sample_tables()
    when = sale_months(sales, contract)
    new = when.isin(sorted({*when})[-months:])
    checks = judge_differences(
        input_checks(sales[~new], sales[new], contract, 0.15), 0.05
    )
    return (
        pd.DataFrame(checks)[["column", "test", "p", "effect", "passed"]]
        .sort_values("p", ignore_index=True)
        .head()
    )
