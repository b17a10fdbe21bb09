"""The application that verbs belong to, and how they report results and errors."""

import contextlib
import json
import sys
import tomllib
from collections.abc import Callable

import typer

from housemlops.settings import WorkbookError, repo_root

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A notebook-first MLOps workbook: the whole life of a house-price model.",
)
JSON = typer.Option(
    False,
    "--json",
    help="Print one JSON object, and progress to standard error.",
)


def package_version() -> str:
    """Return the installed version, or else the one in pyproject.toml."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("housemlops")
    except PackageNotFoundError:
        text = (repo_root() / "pyproject.toml").read_text(encoding="utf-8")
        return tomllib.loads(text)["project"]["version"]


def print_version(wanted: bool) -> None:
    """Print name and version, and exit."""
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
    """Options before any verb."""


def ok_mark(ok: bool) -> str:
    """Return a green tick or a red cross."""
    return typer.style("✓", "green") if ok else typer.style("✗", "red")


def error_sentence(error: BaseException) -> str:
    """Return what is said about an error."""
    if isinstance(error, WorkbookError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted."
    return f"unexpected {type(error).__name__}: {error}"


def report(
    work: Callable[[], dict], show: Callable[[dict], object], as_json: bool
) -> dict:
    """Print the result of a verb; with --json as one object, also when it fails.

    Args:
        work: Returns the result, ready for JSON.
        show: Prints the result for a person.
        as_json: Whether to print JSON, and all else to standard error.

    Returns:
        The result.
    """
    if not as_json:
        result = work()
        show(result)
        return result
    try:
        with contextlib.redirect_stdout(sys.stderr):
            result = work()
    except (Exception, KeyboardInterrupt) as error:
        known = getattr(error, "result", {})
        typer.echo(json.dumps({"error": error_sentence(error)} | known, indent=2))
        raise
    typer.echo(json.dumps(result, indent=2))
    return result
