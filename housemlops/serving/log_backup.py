"""Back up the prediction log while servers write to it, and restore it."""

import argparse
import os
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

from housemlops.serving.database import (
    TIMEOUT,
    LogUnavailable,
    create_private_file,
    database_url,
    known_revisions,
)

LOCKED_BYTES = (0x40000002, 510)  # start and length of SQLite's lock while it is open


def log_file(url: str) -> Path:
    """Return the file of a log.

    Raises:
        LogUnavailable: The log is in PostgreSQL.
    """
    parsed = database_url(url)
    if parsed.get_backend_name() != "sqlite":
        raise LogUnavailable(
            "a log in PostgreSQL is saved with pg_dump, and restored with pg_restore"
        )
    return Path(parsed.database)


def count_predictions(path: Path) -> int:
    """Count the predictions of a file that nobody writes to.

    Raises:
        LogUnavailable: It is damaged, or no log that this program knows.
    """
    address = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True)) as file:
            fault = file.execute("PRAGMA integrity_check(1)").fetchone()[0]
            query = "SELECT version_num FROM alembic_version"
            revision = file.execute(query).fetchone()[0]
            count = file.execute("SELECT count(*) FROM predictions").fetchone()[0]
    except (sqlite3.Error, TypeError) as error:
        raise LogUnavailable(f"{path} is no sound prediction log: {error}") from None
    if fault != "ok":
        raise LogUnavailable(f"{path} is no sound prediction log: {fault}")
    if revision not in known_revisions():
        raise LogUnavailable(f"{path} was made by a newer version of this program")
    return count


def copy_log(source: Path, target: Path) -> int:
    """Copy a log to a new file while others write to it.

    Returns:
        The number of predictions.

    Raises:
        LogUnavailable: It cannot be copied. There is no target then.
    """
    draft = target.with_name(f"{target.name}.part")
    draft.unlink(missing_ok=True)
    create_private_file(draft)
    try:
        with closing(sqlite3.connect(source, timeout=TIMEOUT)) as connection:
            connection.execute("VACUUM INTO ?", (str(draft),))
        count = count_predictions(draft)
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.rename(target)
    except (sqlite3.Error, OSError) as error:
        message = f"{source} cannot be copied to {target}: {error}"
        raise LogUnavailable(message) from None
    finally:
        draft.unlink(missing_ok=True)
    return count


def backup(url: str, target: Path) -> int:
    """Copy the log to a new file; return the number of predictions."""
    source = log_file(url)
    if not source.exists():
        raise LogUnavailable(f"there is no prediction log {source}")
    if target.exists():
        raise LogUnavailable(f"{target} exists already: name a new file")
    return copy_log(source, target)


def refuse_in_use(path: Path) -> None:
    """Raise LogUnavailable if another process has a SQLite file open.

    Not for a file that this process has open: it would lose its locks.
    """
    import fcntl

    start, length = LOCKED_BYTES
    with path.open("rb+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except OSError:
            raise LogUnavailable(
                f"{path} is in use: stop the server, restore, and start it again"
            ) from None


def restore(url: str, source: Path) -> int:
    """Replace the log, which no server may have open, by a backup.

    The log that was there is renamed.

    Returns:
        The number of predictions.
    """
    live = log_file(url)
    count_predictions(source)
    if live.exists():
        refuse_in_use(live)
    fresh = live.with_name(f"{live.name}.restored")
    count = copy_log(source, fresh)
    aside = f"{live}.replaced-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.rename(f"{live}{suffix}", f"{aside}{suffix}")
    fresh.rename(live)
    return count


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        "python -m serving.log_backup",
        description="Back a prediction log up, or restore it.",
    )
    parser.add_argument("action", choices=["backup", "restore"])
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--database",
        default=os.environ.get("HOUSE_DATABASE_URL") or "sqlite:///predictions.db",
        help="URL of the log (HOUSE_DATABASE_URL, or sqlite:///predictions.db)",
    )
    parsed = parser.parse_args(arguments)
    action = backup if parsed.action == "backup" else restore
    try:
        count = action(parsed.database, parsed.file)
    except (LogUnavailable, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{parsed.action}: {count} predictions, {parsed.file.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
