"""Verbs about the workbook itself: its servers, site, notebooks and checks."""

import os
import secrets
from pathlib import Path

import typer

from housemlops.commands.application import JSON, app, ok_mark, report
from housemlops.settings import WorkbookError, repo_root, settings


@app.command()
def up():
    """Start everything on loopback under one supervisor; Ctrl-C stops all of it."""
    from housemlops.up import up as run_services

    run_services()


@app.command()
def lab():
    """Open JupyterLab at the index of the notebooks."""
    from housemlops.operations.services import jupyter_service

    root = repo_root()
    token = os.environ.get("JUPYTER_TOKEN") or secrets.token_hex(16)
    service = jupyter_service(settings(), root, token)
    command = [part for part in service.command if part != "--no-browser"]
    command.append("--LabApp.default_url=/lab/tree/index.ipynb")
    os.execve(command[0], command, os.environ | service.env | {"PYTHONPATH": str(root)})


@app.command()
def docs():
    """Build the documentation site from the notebooks."""
    from housemlops.site.build import build_docs

    typer.echo(f"The site is in {build_docs()}")


@app.command()
def sync(
    check: bool = typer.Option(
        False, "--check", help="Change nothing; fail when something would change."
    ),
):
    """Clean the notebooks and export the package from them."""
    from housemlops.operations.notebook_sync import sync_notebooks

    changed = sync_notebooks(repo_root(), write=not check)
    if check and changed:
        raise WorkbookError(
            f"Out of step: {', '.join(changed)}; run 'housemlops sync'."
        )
    lines = [f"updated {file}" for file in changed]
    typer.echo("\n".join(lines) or "Notebooks and package agree.")


def deploy_result(root: Path) -> dict:
    """Return what is wrong with deploy/, and how much there is in it.

    Returns:
        ok, faults, clusters, and objects, None when there are faults.
    """
    from rich.console import Console

    from housemlops.cluster.checks import check_deploy as find_faults
    from housemlops.cluster.manifests import cluster_names, read_cluster

    message = "Each path is rendered, validated and scanned (about half a minute)"
    with Console(stderr=True).status(message):
        faults = find_faults(root)
    names, objects = cluster_names(root), None
    if not faults:
        objects = sum(len(read_cluster(root, name).manifests) for name in names)
    return {"ok": not faults, "faults": faults, "clusters": names, "objects": objects}


def print_deploy(result: dict) -> None:
    """Print a line for each fault, or that all is well."""
    for sentence in result["faults"]:
        typer.echo(f"{ok_mark(False)} {sentence}")
    if result["ok"]:
        clusters = len(result["clusters"])
        typer.echo(f"All well: {result['objects']} objects in {clusters} clusters.")


@app.command()
def check_deploy(as_json: bool = JSON):
    """Check deploy/ for what a cluster would reject; exit 1 when something is wrong."""
    result = report(lambda: deploy_result(repo_root()), print_deploy, as_json)
    if not result["ok"]:
        raise typer.Exit(1)


def print_check(result: dict) -> None:
    """Print the line of a check of `doctor`."""
    typer.echo(f"{ok_mark(result['ok'])} {result['sentence']}")


@app.command()
def doctor(as_json: bool = JSON):
    """Say what is missing or wrong."""
    from housemlops.operations.doctor import examine

    def show(result):
        """Print nothing: each check is printed when it is made."""

    result = report(lambda: examine(print_check), show, as_json)
    if not result["ok"]:
        raise typer.Exit(1)
