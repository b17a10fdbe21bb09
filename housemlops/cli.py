"""The command line: one verb for each thing the workbook does."""

import ast
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import tomllib
import traceback
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import typer

from housemlops.settings import Settings, WorkbookError, params, repo_root, settings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A notebook-first MLOps workbook: the whole life of a house-price model.",
)


def package_version() -> str:
    "The version that is installed; otherwise the one in pyproject.toml."
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("housemlops")
    except PackageNotFoundError:
        import tomllib

        text = (repo_root() / "pyproject.toml").read_text(encoding="utf-8")
        return tomllib.loads(text)["project"]["version"]


def print_version(wanted: bool):
    "Print name and version, and exit."
    if wanted:
        typer.echo(f"housemlops {package_version()}")
        raise typer.Exit()


@app.callback()
def common_options(
    version: bool = typer.Option(
        False,
        "--version",
        is_eager=True,
        callback=print_version,
        help="Show the version and exit.",
    ),
):
    "Options before any verb."


def completing(
    names: Callable[[], Iterable[str]],
) -> Callable[[], list[str]]:  # what typer calls
    "Offer names at the Tab key; none where they cannot be read, as outside a checkout."

    def offer() -> list[str]:
        with contextlib.suppress(Exception):
            return list(names())
        return []

    return offer


def stage_names() -> list[str]:
    "The stages of dvc.yaml."
    from housemlops.pipeline.graph import pipeline

    return list(pipeline(repo_root()))


def dataset_names() -> list[str]:
    "The data sets that have a contract."
    files = sorted((repo_root() / "data").glob("*.contract.yaml"))
    return [file.name.removesuffix(".contract.yaml") for file in files]


def lab_names() -> list[str]:
    "The labs, the easier ones first."
    from housemlops.learning.labs import lab_rows

    return [row[0] for row in lab_rows()]


def shift_names() -> list[str]:
    "The shifts, read from the text of their module, whose import takes seconds."
    text = Path(find_spec("housemlops.simulate").origin).read_text(encoding="utf-8")
    for line in ast.parse(text).body:
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "SHIFTS":
            return [key.value for key in line.value.keys]
    return []


def environment_names() -> list[str]:
    "The clusters of deploy/."
    from housemlops.cluster.manifests import cluster_names

    return cluster_names(repo_root())


JSON = typer.Option(
    False,
    "--json",
    help="Print one JSON object, and progress to standard error.",
)


def ok_mark(ok: bool) -> str:
    "A green tick or a red cross."
    return typer.style("✓", "green") if ok else typer.style("✗", "red")


def error_sentence(error: BaseException) -> str:
    "What is said about an error."
    if isinstance(error, WorkbookError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted."
    return f"unexpected {type(error).__name__}: {error}"


def report(
    gather: Callable[[], dict],  # the work; its result is ready for JSON
    show: Callable[[dict], object],  # prints the result for a person
    as_json: bool,
) -> dict:  # the result
    "Print what a verb gathers, or with --json one object: the result, or `error` and its sentence."
    if not as_json:
        result = gather()
        show(result)
        return result
    try:
        with contextlib.redirect_stdout(sys.stderr):
            result = gather()
    except (Exception, KeyboardInterrupt) as error:
        told = {"error": error_sentence(error)} | getattr(error, "result", {})
        typer.echo(json.dumps(told, indent=2))
        raise
    typer.echo(json.dumps(result, indent=2))
    return result


def run_on_sample(
    name: str,  # of a stage
    scratch: Path,  # holds build/ and state/ of the earlier stages
):
    "Run a stage as a function, with the defaults of its notebook."
    from housemlops.pipeline.parameters import parameter_defaults, read_notebook
    from housemlops.pipeline.sample import use_scratch_stores

    values = parameter_defaults(read_notebook(repo_root(), name), name)
    values["build"] = use_scratch_stores(scratch)
    getattr(import_module(f"housemlops.{name}"), f"run_{name}")(**values)


@app.command()
def run(
    as_of: str = typer.Option(
        "", help="Month to replay, YYYY-MM; otherwise as_of of params.yaml."
    ),
    force: str = typer.Option(
        "",
        help="A stage to run although nothing changed.",
        autocompletion=completing(stage_names),
    ),
    as_json: bool = JSON,
):
    "Run the whole lifecycle once, including uncommitted edits."
    from housemlops.orchestrate import run_lifecycle

    shown_while_it_runs = lambda result: None
    report(
        lambda: run_lifecycle(as_of=as_of, force=force), shown_while_it_runs, as_json
    )


@app.command()
def stage(
    name: str = typer.Argument(
        help="A stage of dvc.yaml.", autocompletion=completing(stage_names)
    ),
    sample: Path = typer.Option(None, hidden=True),
):
    "Execute one stage's notebook here; DVC calls this."
    from housemlops.pipeline.stage import run_stage

    if sample:
        run_on_sample(name, sample)
    else:
        run_stage(name)


@app.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "help_option_names": [],
    }
)
def airflow(context: typer.Context):
    "Any Airflow command, for example: housemlops airflow dags test house_prices 2010-01-01"
    from housemlops.orchestrate import prepare_airflow

    root = repo_root()
    environment = prepare_airflow(root)
    os.chdir(root)
    os.execve(
        sys.executable, [sys.executable, "-m", "airflow", *context.args], environment
    )


WHAT = typer.Argument(
    "",
    help="A version (2), one in development (dev/2) or the id of a prediction; otherwise the champion.",
)


def trace_result(links: list[dict]) -> dict:  # ok, links
    "The chain of a prediction or a version, from the links of `lineage.trace`."
    told = [
        {"name": link["link"], "says": link["found"], "ok": link["holds"]}
        for link in links
    ]
    return {"ok": all(link["ok"] for link in told), "links": told}


def print_trace(result: dict):
    "Print a line for each link."
    for link in result["links"]:
        typer.echo(f"{ok_mark(link['ok'])} {link['name']:<18}{link['says']}")


@app.command()
def trace(what: str = WHAT, as_json: bool = JSON):
    "Show where a prediction or a version comes from; exit 1 when a link is broken."
    from housemlops.lineage import trace as follow

    result = report(lambda: trace_result(follow(what)), print_trace, as_json)
    if not result["ok"]:
        raise typer.Exit(1)


def replay_result(rows: list[dict]) -> dict:  # equal, figures, differences
    "What a replay showed, from the rows of `lineage.replay`."
    differences = [row["figure"] for row in rows if not row["equal"]]
    return {"equal": not differences, "figures": rows, "differences": differences}


def print_replay(result: dict):
    "Print then and now of each figure."
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "then", "now", "")
    for row in result["figures"]:
        table.add_row(
            row["figure"],
            str(row["then"])[:24],
            str(row["now"])[:24],
            "[green]equal[/]" if row["equal"] else "[red]differs[/]",
        )
    Console(highlight=False).print(table)
    if result["equal"]:
        typer.echo(f"All {len(result['figures'])} figures are equal.")


@app.command()
def replay(what: str = WHAT, as_json: bool = JSON):
    "Build a past version again and compare every metric; exit 1 when one differs."
    from housemlops.lineage import replay as again

    result = report(lambda: replay_result(again(what)), print_replay, as_json)
    if not result["equal"]:
        raise WorkbookError(
            "The replay differs; another version of Python or of a package is the usual reason ('housemlops doctor')."
        )


ENVIRONMENT = typer.Option(
    "",
    "--env",
    help="A cluster (local, production) instead of this machine: by a commit that is pushed.",
    autocompletion=completing(environment_names),
)


@app.command()
def rollback(
    why: str = typer.Option(
        "asked for by hand", help="Written into the promotion log."
    ),
    env: str = ENVIRONMENT,
):
    "Make the champion before this one champion again, and serve it; or take back a cluster's last promotion."
    if env:
        from housemlops.cluster.release import rollback_in

        return typer.echo(rollback_in(env, why).sentence)
    from housemlops.lineage import rollback as back

    before, now = back(why)
    typer.echo(
        f"Version {now} is champion again, in place of version {before}; the server answers with it."
    )


@app.command()
def promote(
    what: str = typer.Argument(
        "",
        help="A version (2) or one in development (dev/2); for a cluster it may be left out.",
    ),
    why: str = typer.Option(help="Written into the promotion log, or the commit."),
    env: str = ENVIRONMENT,
    source: str = typer.Option(
        "",
        "--from",
        help="With --env: take what this cluster runs.",
        autocompletion=completing(environment_names),
    ),
    despite_gates: bool = typer.Option(
        False, "--despite-gates", help="Even if a gate of its evaluation failed."
    ),
):
    "Make a version champion by hand, and serve it; or promote to a cluster: the champion, or what the cluster before it runs."
    if env:
        from housemlops.cluster.release import promote_to

        return typer.echo(promote_to(env, what, why, source).sentence)
    if source or not what:
        raise WorkbookError(
            "Name a version to make champion (housemlops promote 2 --why ...), or a cluster to promote to (--env local)"
        )
    from housemlops.lineage import promote_by_hand

    typer.echo(
        f"Version {promote_by_hand(what, why, despite_gates)} is champion; the server answers with it."
    )


@app.command()
def score(
    source: Path = typer.Argument(
        help="Houses to be priced: .csv, .csv.gz or .parquet, of any size."
    ),
    to: str = typer.Option(
        "",
        help="Where the scored table goes; its name gives the format. Otherwise houses.scored.csv beside houses.csv.",
    ),
    version: int = typer.Option(
        0, show_default=False, help="A version in production; otherwise the champion."
    ),
    overwrite: bool = typer.Option(
        False, "--overwrite", help="Write over a file of that name."
    ),
):
    "Price every house of a CSV or Parquet file with the champion."
    from housemlops.score import progress_bar
    from housemlops.score import score as price_all

    with progress_bar() as progress:
        told = price_all(
            source,
            to or None,
            version=version or None,
            overwrite=overwrite,
            progress=progress,
        )
    if lacking := told["lacking"]:
        typer.echo(
            f"{len(lacking)} columns are not in the file and count as missing: {', '.join(lacking[:5])}{' …' * (len(lacking) > 5)}"
        )
    for reason, rows in told["warnings"].items():
        typer.echo(f"{rows:>9,} × {reason}")
    typer.echo(
        f"{told['priced']:,} of {told['rows']:,} houses priced by {told['model']} version {told['version']} in {told['seconds']:.1f} s ({told['rows_per_second']:,} a second), "
        f"{told['refused']:,} refused, {told['warned']:,} with a warning: {told['out']}, columns {', '.join(told['columns'][:3])} …"
    )


@app.command()
def adopt(
    table: str = typer.Argument(help="CSV or Parquet, by path or address."),
    name: str = typer.Option(help="Name of the new data set."),
    target: str = typer.Option(help="Column with the price."),
    date: str = typer.Option(
        "", help="Column with the date of the sale, if there is one."
    ),
):
    "Bring in a table of your own, with a drafted contract to review."
    from housemlops.ingest import adopt as take

    made = take(table, name, target, date or None)
    typer.echo("\n".join(f"wrote {path.relative_to(repo_root())}" for path in made))
    typer.echo(
        f"Next: review data/{name}.contract.yaml (every 'review me', and when each column is known), "
        f"set dataset: {name} in params.yaml, and type make run."
    )


@app.command()
def replay_history(
    first: str = typer.Option(
        "2008-01", "--from", help="Month to begin with, YYYY-MM."
    ),
    last: str = typer.Option("2010-07", "--to", help="Month to end with, YYYY-MM."),
    parallel: int = typer.Option(
        8, min=1, help="Months side by side, as far as they do not wait for each other."
    ),
):
    "Let the months pass again, through Airflow; run again, it continues."
    from housemlops.operations.backfill import replay_history as replay_months

    replay_months(first, last, parallel=parallel)


@app.command()
def land(
    file: str = typer.Argument(
        help="CSV or Parquet with new or corrected sales, by path or address."
    ),
    dataset: str = typer.Option(
        "",
        help="Name of the data set; otherwise that of params.yaml.",
        autocompletion=completing(dataset_names),
    ),
):
    "Take new or corrected sales into the ledger, as a new data version."
    from housemlops.ingest import land as take

    taken = take(file, dataset or None)
    typer.echo(taken["sentence"])
    pointer = f"data/{taken['dataset']}.csv.dvc"
    if taken["changed"] and (repo_root() / pointer).exists():
        typer.echo(f"Next: git commit {pointer}, so that scheduled runs see it.")


@app.command()
def simulate(
    shift: str = typer.Option(
        "",
        help="Which shift; without it, all are listed.",
        autocompletion=completing(shift_names),
    ),
    size: float = typer.Option(
        None, show_default=False, help="How strong it is; otherwise its default."
    ),
    tell: bool = typer.Option(
        False, "--tell", help="Send the alert, too, to the channels of settings.ini."
    ),
):
    "Shift the newest months on purpose, and see what catches it."
    from rich.console import Console

    from housemlops.simulate import simulate as shifted
    from housemlops.simulate import simulate_help

    if not shift:
        return typer.echo("\n".join(simulate_help()))
    with Console(stderr=True).status(
        "prepare, serve and monitor see the shifted sales"
    ):
        found = shifted(shift, size, tell=tell)
    typer.echo("\n".join(found["lines"]))


LAB = typer.Argument(
    help="Name of a lab; housemlops break lists them.",
    autocompletion=completing(lab_names),
)


@app.command("break")
def break_(
    name: str = typer.Argument(
        "",
        help="A lab; without it, all are listed.",
        autocompletion=completing(lab_names),
    ),
    again: bool = typer.Option(
        False, "--again", help="Start over; what was done in its workspace is lost."
    ),
):
    "Put a fault into a scratch workspace, to be found."
    from rich.console import Console

    from housemlops.learning.labs import break_lab, lab_rows, told

    rows = [
        f"{lab:<13}{minutes:>3} min  {title}: {learn}"
        for lab, title, minutes, learn in lab_rows()
    ]
    if not name:
        return typer.echo(
            "\n".join([*rows, "", "Begin with: housemlops break loss-twice"])
        )
    with Console(stderr=True).status(
        "A workspace with a lifecycle of its own is made (the first one takes a minute)"
    ):
        workspace = break_lab(name, again)
    typer.echo("\n".join(told(name, Path(os.path.relpath(workspace)))))


@app.command()
def check(name: str = LAB):
    "Say whether the fault of a lab is mended; exit 1 when it is not."
    from housemlops.learning.exercises import note, progress_path
    from housemlops.learning.labs import check_lab, labs_home

    state, why = check_lab(name)
    note(
        labs_home().parent / progress_path().name,
        "labs",
        name,
        "correct" if state == "mended" else "not yet",
    )
    typer.echo(
        f"{typer.style(state, {'mended': 'green', 'not mended': 'red'}.get(state, 'yellow'))}{' ' if state.endswith('but') else ': '}{why}"
    )
    if state == "not mended":
        raise typer.Exit(1)


@app.command()
def mend(name: str = LAB):
    "Show how the fault of a lab is mended, and do it."
    from housemlops.learning.labs import mend_lab

    typer.echo("\n".join(mend_lab(name)))


def deploy_result(
    root: Path,  # repository
) -> dict:  # ok, faults, clusters, objects (None when there are faults)
    "What is wrong with deploy/, and how much there is in it."
    from rich.console import Console

    from housemlops.cluster.checks import check_deploy as find_faults
    from housemlops.cluster.manifests import cluster_names, read_cluster

    with Console(stderr=True).status(
        "Each path is rendered, validated and scanned (about half a minute)"
    ):
        faults = find_faults(root)
    names, objects = cluster_names(root), None
    if not faults:
        objects = sum(len(read_cluster(root, name).manifests) for name in names)
    return {"ok": not faults, "faults": faults, "clusters": names, "objects": objects}


def print_deploy(result: dict):
    "Print a line for each fault, or that all is well."
    for sentence in result["faults"]:
        typer.echo(f"{ok_mark(False)} {sentence}")
    if result["ok"]:
        typer.echo(
            f"All well: {result['objects']} objects in {len(result['clusters'])} clusters."
        )


@app.command()
def check_deploy(as_json: bool = JSON):
    "Hold deploy/ to what a cluster would find out too late; exit 1 when something is wrong."
    result = report(lambda: deploy_result(repo_root()), print_deploy, as_json)
    if not result["ok"]:
        raise typer.Exit(1)


@app.command()
def up():
    "Start everything on loopback under one supervisor; Ctrl-C stops all of it."
    from housemlops.up import up as start

    start()


@app.command()
def scale_out(
    workers: int = typer.Option(
        2, min=1, help="Celery workers, each with folders of its own."
    ),
    stay: bool = typer.Option(
        False, "--stay", help="Keep everything running after the run, until Ctrl-C."
    ),
    as_of: str = typer.Option(
        "", help="Month to replay, YYYY-MM; otherwise as_of of params.yaml."
    ),
):
    "Run the lifecycle once on workers that share no disk: Celery, PostgreSQL, Redis, DVC over SSH."
    from housemlops.scale_out import scale_out as run_on_workers

    run_on_workers(workers, stay, as_of)


@app.command()
def stage_apart(
    name: str = typer.Argument(
        help="A stage of dvc.yaml.", autocompletion=completing(stage_names)
    ),
    conf: str = typer.Option(
        "{}",
        help="JSON: workspace (name of the run), as_of, commit, branch, uncommitted, force.",
    ),
):
    "Run one stage in an empty folder, with code from git and data from the DVC remote; Airflow's workers and pods call this."
    from housemlops.pipeline.remote import stage_apart as run_apart

    typer.echo(f"{name}: {run_apart(name, json.loads(conf))}")


@app.command()
def lab():
    "Open JupyterLab at the index of the notebooks."
    from housemlops.operations.services import jupyter_service

    chosen, root = settings(), repo_root()
    service = jupyter_service(
        chosen, root, os.environ.get("JUPYTER_TOKEN") or secrets.token_hex(16)
    )
    command = [part for part in service.command if part != "--no-browser"]
    os.execve(
        command[0],
        [*command, "--LabApp.default_url=/lab/tree/index.ipynb"],
        os.environ | service.env | {"PYTHONPATH": str(root)},
    )


@app.command()
def docs():
    "Build the documentation site from the notebooks."
    from housemlops.site.build import build_docs

    typer.echo(f"The site is in {build_docs()}")


def synced(
    root: Path,  # repository
    copy: Path,  # receives nbs/ and housemlops/ as they should be
):
    "Clean and export a copy of the notebooks, and make the blanks of the exercises from their solutions."
    from housemlops.learning.exercises import write_blanks
    from housemlops.orchestrate import export_modules, run_tool

    for name in ("nbs", "housemlops", "pyproject.toml"):
        source = root / name
        shutil.copytree(
            source,
            copy / name,
            ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"),
        ) if source.is_dir() else shutil.copy(source, copy)
    write_blanks(copy)
    run_tool("ruff", "format", "--quiet", "nbs", root=copy)
    run_tool("nbdev-clean", root=copy)
    export_modules(copy)


def differences(
    root: Path,  # repository
    copy: Path,  # as it should be
) -> list[str]:  # relative paths
    "Files of a synced copy that the repository has otherwise, or not at all."
    files = (
        path.relative_to(copy)
        for folder in ("nbs", "housemlops")
        for path in sorted((copy / folder).rglob("*"))
        if path.is_file()
    )
    return [
        str(file)
        for file in files
        if "__pycache__" not in file.parts
        and not (
            (root / file).exists()
            and (root / file).read_bytes() == (copy / file).read_bytes()
        )
    ]


@app.command()
def sync(
    check: bool = typer.Option(
        False, "--check", help="Change nothing; fail when something would change."
    ),
):
    "Clean the notebooks and export the package from them."
    root = repo_root()
    with TemporaryDirectory() as folder:
        synced(root, Path(folder))
        changed = differences(root, Path(folder))
        if not check:
            for file in changed:
                shutil.copy(Path(folder) / file, root / file)
    if check and changed:
        raise WorkbookError(
            f"Out of step: {', '.join(changed)}; run 'housemlops sync'."
        )
    typer.echo(
        "\n".join(f"updated {file}" for file in changed)
        or "Notebooks and package agree."
    )


def check_python() -> str | None:
    "Python 3.11, 3.12 or 3.13, in a virtual environment."
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return f"Python {sys.version.split()[0]} runs this; use 3.11, 3.12 or 3.13."
    if sys.prefix == sys.base_prefix:
        return (
            "This Python is not a virtual environment; run 'make run', which makes one."
        )


def locked_versions(lock: Path) -> dict[str, str]:  # package -> version
    "The versions that a lock pins on every platform."
    lines = [
        line.split(" ")[0] for line in lock.read_text().splitlines() if ";" not in line
    ]
    return dict(line.split("==") for line in lines if "==" in line)


def check_packages() -> str | None:
    "Installed versions are those of requirements.lock."
    from importlib.metadata import distributions

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lock = repo_root() / "requirements.lock"
    if not lock.exists():
        return "There is no requirements.lock; restore it with 'git checkout requirements.lock'."
    locked = locked_versions(lock)
    installed = {
        canonicalize_name(package.name): package.version for package in distributions()
    }
    project = tomllib.loads((repo_root() / "pyproject.toml").read_text())
    for line in project["dependency-groups"]["run"]:
        name = canonicalize_name(Requirement(line).name)
        if name in locked and name not in installed:
            return f"{name} is not installed; run 'make run', which installs it."
    for name, found in sorted(installed.items()):
        if name in locked and found != locked[name]:
            return f"{name} is {found}, requirements.lock says {locked[name]}; run 'make run', which installs it."
    return None


def check_git() -> str | None:
    "A checkout with a commit."
    from housemlops.orchestrate import head_commit

    head_commit(repo_root())


def check_data() -> str | None:
    "The ledger is here, or the DVC remote can give it."
    from housemlops.core.repository import data_md5

    root, dataset = repo_root(), params()["dataset"]
    if data_md5(root, dataset):
        return None
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "dvc",
            "status",
            "--cloud",
            "--quiet",
            f"data/{dataset}.csv.dvc",
        ],
        cwd=root,
        capture_output=True,
    )
    if done.returncode not in (0, 1):
        return f"data/{dataset}.csv is missing and the DVC remote does not answer; see 'dvc remote list'."


def check_sync() -> str | None:
    "Notebooks and package agree."
    sync(check=True)


def check_store() -> str | None:
    "The tracking store opens."
    from housemlops.settings import tracking

    try:
        tracking().search_experiments(max_results=1)
    except WorkbookError:
        raise
    except Exception as error:
        return f"The tracking store {settings().mlflow.tracking_uri} does not open: {str(error).splitlines()[0]}"


def check_ports() -> str | None:
    "Ports are free, or ours."
    from housemlops.orchestrate import answers

    chosen = settings()
    taken = [
        f"{name} {port}"
        for name in Settings.model_fields
        if (port := getattr(getattr(chosen, name), "port", 0)) and answers(port)
    ]
    if taken:
        return f"These ports are in use: {', '.join(taken)}; that is fine while 'housemlops up' runs, otherwise choose others in settings.ini."


def check_disk() -> str | None:
    "Two gigabytes free."
    free = shutil.disk_usage(repo_root()).free / 1e9
    if free < 2:
        return f"Only {free:.1f} GB of disk is free; runs want 2 GB. 'rm -r var/workspaces' frees the most."


CHECKS = (
    check_python,
    check_packages,
    check_git,
    check_data,
    check_sync,
    check_store,
    check_ports,
    check_disk,
)


def make_check(check: Callable[[], str | None]) -> dict:  # name, ok, sentence
    "Make a check; the sentence says what is so, or what is wrong."
    try:
        wrong = check() or ""
    except WorkbookError as error:
        wrong = str(error)
    name = check.__name__.removeprefix("check_")
    return {"name": name, "ok": not wrong, "sentence": wrong or check.__doc__}


def print_check(made: dict):
    "Print the line of a check."
    typer.echo(f"{ok_mark(made['ok'])} {made['sentence']}")


def doctor_result(
    show: Callable[[dict], object],  # called with each check as soon as it is made
) -> dict:  # ok, checks
    "Make every check."
    checks = []
    for check in CHECKS:
        checks.append(make_check(check))
        show(checks[-1])
    return {"ok": all(made["ok"] for made in checks), "checks": checks}


@app.command()
def doctor(as_json: bool = JSON):
    "Say what is missing or wrong."
    result = report(lambda: doctor_result(print_check), lambda result: None, as_json)
    if not result["ok"]:
        raise typer.Exit(1)


def write_traceback() -> Path:  # the file
    "Keep the traceback of an unexpected error."
    path = repo_root() / f"var/log/error-{time.strftime('%Y%m%dT%H%M%S')}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(traceback.format_exc())
    return path


def main(
    arguments: list[str] | None = None,  # of the command line
):
    "Run a verb; exit 1 with one sentence when it fails."
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments[:1]
    try:
        app(arguments[debug:], prog_name="housemlops")
    except (WorkbookError, KeyboardInterrupt) as error:
        sentence = error_sentence(error)
    except Exception as error:
        if debug:
            raise
        sentence = f"{error_sentence(error)} (traceback: {write_traceback()}; 'housemlops --debug …' shows it here)"
    sys.stdout.flush()
    print(f"Stopped: {sentence}", file=sys.stderr, flush=True)
    raise SystemExit(1)
