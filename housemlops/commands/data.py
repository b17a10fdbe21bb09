"""Verbs that bring data in and price it: adopt, land and score."""

from pathlib import Path

import typer

from housemlops.commands.application import app
from housemlops.commands.completion import completing, dataset_names
from housemlops.settings import repo_root


@app.command()
def adopt(
    table: str = typer.Argument(help="CSV or Parquet, by path or address."),
    name: str = typer.Option(help="Name of the new data set."),
    target: str = typer.Option(help="Column with the price."),
    date: str = typer.Option(
        "", help="Column with the date of the sale, if there is one."
    ),
):
    """Bring in a table of your own, with a drafted contract to review."""
    from housemlops.ingest import adopt as adopt_table

    for path in adopt_table(table, name, target, date or None):
        typer.echo(f"wrote {path.relative_to(repo_root())}")
    typer.echo(
        f"Next: review data/{name}.contract.yaml (every 'review me', and when each "
        f"column is known), set dataset: {name} in params.yaml, and type make run."
    )


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
    """Take new or corrected sales into the ledger, as a new data version."""
    from housemlops.ingest import land as land_sales

    landed = land_sales(file, dataset or None)
    typer.echo(landed["sentence"])
    pointer = f"data/{landed['dataset']}.csv.dvc"
    if landed["changed"] and (repo_root() / pointer).exists():
        typer.echo(f"Next: git commit {pointer}, so that scheduled runs see it.")


def print_score(result: dict) -> None:
    """Print how many houses were priced, and what was noticed about them."""
    lacking = result["lacking"]
    if lacking:
        more = " …" if len(lacking) > 5 else ""
        typer.echo(
            f"{len(lacking)} columns are not in the file and count as missing: "
            f"{', '.join(lacking[:5])}{more}"
        )
    for reason, rows in result["warnings"].items():
        typer.echo(f"{rows:>9,} × {reason}")
    typer.echo(
        f"{result['priced']:,} of {result['rows']:,} houses priced by "
        f"{result['model']} version {result['version']} in {result['seconds']:.1f} s "
        f"({result['rows_per_second']:,} a second), {result['refused']:,} refused, "
        f"{result['warned']:,} with a warning: {result['out']}, columns "
        f"{', '.join(result['columns'][:3])} …"
    )


@app.command()
def score(
    source: Path = typer.Argument(
        help="Houses to be priced: .csv, .csv.gz or .parquet, of any size."
    ),
    to: str = typer.Option(
        "",
        help="Where the scored table goes; its name gives the format. Otherwise "
        "houses.scored.csv beside houses.csv.",
    ),
    version: int = typer.Option(
        0, show_default=False, help="A version in production; otherwise the champion."
    ),
    overwrite: bool = typer.Option(
        False, "--overwrite", help="Write over a file of that name."
    ),
):
    """Price every house of a CSV or Parquet file with the champion."""
    from housemlops.score import progress_bar
    from housemlops.score import score as score_file

    with progress_bar() as progress:
        result = score_file(
            source,
            to or None,
            version=version or None,
            overwrite=overwrite,
            progress=progress,
        )
    print_score(result)
