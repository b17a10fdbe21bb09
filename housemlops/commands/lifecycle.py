"""Verbs that run stages: the lifecycle, one stage, past months, and shifted sales."""

import json
import os
import sys
from importlib import import_module
from pathlib import Path

import typer

from housemlops.commands.application import JSON, app, report
from housemlops.commands.completion import completing, shift_names, stage_names
from housemlops.settings import repo_root

AS_OF = typer.Option(
    "", help="Month to replay, YYYY-MM; otherwise as_of of params.yaml."
)
STAGE = typer.Argument(
    help="A stage of dvc.yaml.", autocompletion=completing(stage_names)
)


@app.command()
def run(
    as_of: str = AS_OF,
    force: str = typer.Option(
        "",
        help="A stage to run although nothing changed.",
        autocompletion=completing(stage_names),
    ),
    as_json: bool = JSON,
):
    """Run the whole lifecycle once, including uncommitted edits."""
    from housemlops.pipeline.lifecycle import run_lifecycle

    def show(result):
        """Print nothing: a run shows its results as they come."""

    report(lambda: run_lifecycle(as_of=as_of, force=force), show, as_json)


def run_on_sample(name: str, scratch: Path) -> None:
    """Run a stage as a function, with the defaults of its notebook.

    Args:
        name: Stage.
        scratch: Folder with build/ and state/ of the earlier stages.
    """
    from housemlops.pipeline.parameters import parameter_defaults, read_notebook
    from housemlops.pipeline.sample import use_scratch_stores

    values = parameter_defaults(read_notebook(repo_root(), name), name)
    values["build"] = use_scratch_stores(scratch)
    module = import_module(f"housemlops.{name}")
    getattr(module, f"run_{name}")(**values)


@app.command()
def stage(name: str = STAGE, sample: Path = typer.Option(None, hidden=True)):
    """Execute one stage's notebook here; DVC calls this."""
    if sample:
        return run_on_sample(name, sample)
    from housemlops.pipeline.stage import run_stage

    run_stage(name)


@app.command()
def stage_apart(
    name: str = STAGE,
    conf: str = typer.Option(
        "{}",
        help="JSON: workspace (name of the run), as_of, commit, branch, uncommitted, "
        "force.",
    ),
):
    """Run one stage in an empty folder, with code from git and data from DVC's remote.

    Airflow's workers and pods call this.
    """
    from housemlops.operations.loops import hooks_of
    from housemlops.pipeline.remote import stage_apart as run_apart

    facts = json.loads(conf)
    hooks = hooks_of(facts.get("loop", "all"))
    typer.echo(f"{name}: {run_apart(name, facts, hooks=hooks)}")


@app.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "help_option_names": [],
    }
)
def airflow(context: typer.Context):
    """Any Airflow command.

    For example: housemlops airflow dags test house_prices 2010-01-01
    """
    from housemlops.pipeline.scheduler import prepare_airflow

    root = repo_root()
    environ = prepare_airflow(root)
    os.chdir(root)
    command = [sys.executable, "-m", "airflow", *context.args]
    os.execve(sys.executable, command, environ)


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
    """Replay past months through Airflow; run again, it continues."""
    from housemlops.operations.backfill import replay_history as replay_months

    replay_months(first, last, parallel=parallel)


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
    """Shift the newest months on purpose, and see which check detects it."""
    from rich.console import Console

    from housemlops.simulate import simulate as shift_sales
    from housemlops.simulate import simulate_help

    if not shift:
        return typer.echo("\n".join(simulate_help()))
    message = "prepare, serve and monitor see the shifted sales"
    with Console(stderr=True).status(message):
        result = shift_sales(shift, size, tell=tell)
    typer.echo("\n".join(result["lines"]))
