"""The command line: one verb for each thing the workbook does."""

from housemlops.cli.main import app, main

__all__ = ["app", "main"]
