"""Verbs of the labs: break, check and mend."""

import os
from pathlib import Path

import typer

from housemlops.commands.application import app
from housemlops.commands.completion import completing, lab_names

LAB = typer.Argument(
    help="Name of a lab; housemlops break lists them.",
    autocompletion=completing(lab_names),
)
COLOURS = {"mended": "green", "not mended": "red"}  # of a lab's state; else yellow


def print_labs() -> None:
    """Print a line for each lab."""
    from housemlops.learning.labs import lab_rows

    for lab, title, minutes, learn in lab_rows():
        typer.echo(f"{lab:<13}{minutes:>3} min  {title}: {learn}")
    typer.echo("\nBegin with: housemlops break loss-twice")


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
    """Put a fault into a scratch workspace, to be found."""
    from rich.console import Console

    from housemlops.learning.labs import break_lab, told

    if not name:
        return print_labs()
    message = (
        "A workspace with a lifecycle of its own is made (the first one takes a minute)"
    )
    with Console(stderr=True).status(message):
        workspace = break_lab(name, again)
    typer.echo("\n".join(told(name, Path(os.path.relpath(workspace)))))


@app.command()
def check(name: str = LAB):
    """Say whether the fault of a lab is mended; exit 1 when it is not."""
    from housemlops.learning.exercises import note, progress_path
    from housemlops.learning.labs import check_lab, labs_home

    state, reason = check_lab(name)
    outcome = "correct" if state == "mended" else "not yet"
    note(labs_home().parent / progress_path().name, "labs", name, outcome)
    coloured = typer.style(state, COLOURS.get(state, "yellow"))
    typer.echo(f"{coloured}{' ' if state.endswith('but') else ': '}{reason}")
    if state == "not mended":
        raise typer.Exit(1)


@app.command()
def mend(name: str = LAB):
    """Show how the fault of a lab is mended, and do it."""
    from housemlops.learning.labs import mend_lab

    typer.echo("\n".join(mend_lab(name)))
