"""Verbs about versions of the model: trace, replay, promote and roll back."""

import typer

from housemlops.commands.application import JSON, app, ok_mark, report
from housemlops.commands.completion import completing, environment_names
from housemlops.settings import WorkbookError

WHAT = typer.Argument(
    "",
    help="A version (2), one in development (dev/2) or the id of a prediction; "
    "otherwise the champion.",
)
ENVIRONMENT = typer.Option(
    "",
    "--env",
    help="A cluster (local, production) instead of this machine: by a commit that is "
    "pushed.",
    autocompletion=completing(environment_names),
)


def trace_result(links: list[dict]) -> dict:
    """Return the links of `lineage.trace` as --json prints them."""
    rows = [
        {"name": link["link"], "says": link["found"], "ok": link["holds"]}
        for link in links
    ]
    return {"ok": all(row["ok"] for row in rows), "links": rows}


def print_trace(result: dict) -> None:
    """Print a line for each link."""
    for link in result["links"]:
        typer.echo(f"{ok_mark(link['ok'])} {link['name']:<18}{link['says']}")


@app.command()
def trace(what: str = WHAT, as_json: bool = JSON):
    """Show where a prediction or a version comes from; exit 1 when a link is broken."""
    from housemlops.lineage import trace as trace_links

    result = report(lambda: trace_result(trace_links(what)), print_trace, as_json)
    if not result["ok"]:
        raise typer.Exit(1)


def replay_result(rows: list[dict]) -> dict:
    """Return the rows of `lineage.replay` as --json prints them."""
    differences = [row["figure"] for row in rows if not row["equal"]]
    return {"equal": not differences, "figures": rows, "differences": differences}


def print_replay(result: dict) -> None:
    """Print then and now of each figure."""
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "then", "now", "")
    for row in result["figures"]:
        outcome = "[green]equal[/]" if row["equal"] else "[red]differs[/]"
        then, now = str(row["then"])[:24], str(row["now"])[:24]
        table.add_row(row["figure"], then, now, outcome)
    Console(highlight=False).print(table)
    if result["equal"]:
        typer.echo(f"All {len(result['figures'])} figures are equal.")


@app.command()
def replay(what: str = WHAT, as_json: bool = JSON):
    """Build a past version again and compare every metric; exit 1 when one differs."""
    from housemlops.lineage import replay as replay_version

    result = report(lambda: replay_result(replay_version(what)), print_replay, as_json)
    if not result["equal"]:
        raise WorkbookError(
            "The replay differs; another version of Python or of a package is the "
            "usual reason ('housemlops doctor')."
        )


@app.command()
def rollback(
    why: str = typer.Option(
        "asked for by hand", help="Written into the promotion log."
    ),
    env: str = ENVIRONMENT,
):
    """Restore the previous champion and serve it.

    With --env: revert a cluster's last promotion.
    """
    if env:
        from housemlops.cluster.release import rollback_in

        return typer.echo(rollback_in(env, why).sentence)
    from housemlops.lineage import rollback as restore_champion

    before, now = restore_champion(why)
    typer.echo(
        f"Version {now} is champion again, in place of version {before}; the server "
        "answers with it."
    )


@app.command()
def promote(
    what: str = typer.Argument(
        "",
        help="A version (2) or one in development (dev/2); for a cluster it may be "
        "left out.",
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
    """Make a version champion by hand, and serve it.

    With --env: promote to a cluster the champion, or what the cluster before it runs.
    """
    if env:
        from housemlops.cluster.release import promote_to

        return typer.echo(promote_to(env, what, why, source).sentence)
    if source or not what:
        raise WorkbookError(
            "Name a version to make champion (housemlops promote 2 --why ...), or a "
            "cluster to promote to (--env local)"
        )
    from housemlops.lineage import promote_by_hand

    number = promote_by_hand(what, why, despite_gates)
    typer.echo(f"Version {number} is champion; the server answers with it.")
