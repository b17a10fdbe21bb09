"""The entry point: run a verb, and report what goes wrong in one sentence."""

import sys
import time
import traceback
from pathlib import Path

# The verbs register themselves with the application.
from housemlops.commands import data, labs, lifecycle, models, workbook
from housemlops.commands.application import app, error_sentence
from housemlops.settings import WorkbookError, repo_root

VERBS = (lifecycle, data, models, labs, workbook)


def write_traceback() -> Path:
    """Write the traceback of an unexpected error to a file, and return its path."""
    path = repo_root() / f"var/log/error-{time.strftime('%Y%m%dT%H%M%S')}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(traceback.format_exc())
    return path


def main(arguments: list[str] | None = None) -> None:
    """Run a verb; exit 1 with one sentence when it fails.

    Args:
        arguments: Of the command line; those of this process when not given.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments[:1]
    try:
        app(arguments[debug:], prog_name="housemlops")
    except (WorkbookError, KeyboardInterrupt) as error:
        sentence = error_sentence(error)
    except Exception as error:
        if debug:
            raise
        sentence = (
            f"{error_sentence(error)} (traceback: {write_traceback()}; 'housemlops "
            "--debug …' shows it here)"
        )
    sys.stdout.flush()
    print(f"Stopped: {sentence}", file=sys.stderr, flush=True)
    raise SystemExit(1)
