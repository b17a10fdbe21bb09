"""What every benchmark does first: use its own checkout and its own environment."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CalledProcessError

ROOT = Path(__file__).resolve().parents[2]


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser whose `--help` prints the description as it was written."""
    return argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def absolute_path(text: str) -> Path:
    """Return a path as the user's shell means it, before `enter_checkout`."""
    return Path(text).absolute()


def enter_checkout() -> None:
    """Use the code of this checkout and the programs of the running environment.

    Kernels and servers that a benchmark starts inherit both, so that no
    environment has to be activated and no PYTHONPATH set.
    """
    programs = Path(sys.executable).parent
    os.environ["PATH"] = os.pathsep.join(
        [str(programs), os.environ.get("PATH", os.defpath)]
    )
    os.environ["PYTHONPATH"] = str(ROOT)
    sys.path.insert(1, str(ROOT))
    os.chdir(ROOT)


def run_benchmark(
    benchmark: Callable[[argparse.Namespace], None], arguments: argparse.Namespace
) -> None:
    """Run a benchmark in its checkout; what a user can mend ends it in one sentence."""
    enter_checkout()
    from housemlops.settings import WorkbookError

    try:
        benchmark(arguments)
    except CalledProcessError as error:
        command = " ".join(str(part) for part in error.cmd)
        sys.exit(f"`{command}` ended with exit code {error.returncode}.")
    except (WorkbookError, ConnectionError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def fetch_table(dataset: str) -> Path:
    """Return the path of a data set's table, pulled by DVC when it is missing.

    Raises:
        WorkbookError: The table could not be pulled.
    """
    name = f"data/{dataset}.csv"
    if (ROOT / name).exists():
        return ROOT / name
    from housemlops.core.repository import dvc
    from housemlops.settings import WorkbookError

    print(f"{name} is missing: fetching it with DVC.", file=sys.stderr, flush=True)
    try:
        dvc("pull", f"{name}.dvc", root=ROOT)
    except WorkbookError as error:
        raise WorkbookError(
            f"{name} could not be fetched: {error} "
            f"Type `{sys.executable} -m dvc pull {name}.dvc` in {ROOT} to see why."
        ) from None
    return ROOT / name


def progress(text: str) -> None:
    """Show what is going on, on one line of a terminal; an empty text removes it."""
    if sys.stderr.isatty():
        print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)
