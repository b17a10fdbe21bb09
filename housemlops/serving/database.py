"""Connect to the database of the prediction log, and bring its tables up to date."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from housemlops import migrations


class LogUnavailable(Exception):
    """The prediction log cannot be read or written now.

    The message is one sentence for the operator, without secrets. `reason` is for
    everybody, without names of files, hosts or users.
    """

    def __init__(self, message: str, reason: str = "it cannot be reached"):
        super().__init__(message)
        self.reason = reason


PUBLIC_REASONS = {  # part of an error's text -> reason
    "is full": "its disk is full",
    "No space left": "its disk is full",
    "is locked": "another program has locked it",
    "malformed": "its file is damaged",
    "not a database": "its file is damaged",
    "no longer holds": "predictions that it held are gone",
    "shorter than": "its file was cut short",
    "another file": "its file was replaced",
}


def public_reason(message: str) -> str:
    """Return why the log is unavailable, without names of files, hosts or users."""
    for part, reason in PUBLIC_REASONS.items():
        if part in message:
            return reason
    return "it cannot be reached"


DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
URL_FORMS = (
    "give sqlite:///predictions.db or postgresql://user:password@host:5432/database, "
    "with %-codes for special characters of a password"
)


def database_url(url: str) -> URL:
    """Return the URL of a database, with the driver that is used here.

    Raises:
        LogUnavailable: It is none, or of an unknown kind.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise LogUnavailable(f"the database URL cannot be read: {URL_FORMS}") from None
    name = parsed.drivername
    if name not in DRIVERS:
        raise LogUnavailable(
            f"a database of the kind {name!r} is not supported: {URL_FORMS}"
        )
    if not re.fullmatch(r"[\w.:%-]*", parsed.host or ""):
        raise LogUnavailable(
            f"the host in the database URL cannot be read: {URL_FORMS}"
        )
    if DRIVERS[name] == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise LogUnavailable(
            "a database in memory keeps nothing: give a file, as in "
            "sqlite:///predictions.db"
        )
    return parsed.set(drivername=DRIVERS[name])


TIMEOUT = 5  # seconds to wait for a lock or a statement
CONNECT_ARGUMENTS = {
    "sqlite": {"timeout": TIMEOUT},
    "postgresql": {
        "connect_timeout": 3,
        "tcp_user_timeout": 1000 * TIMEOUT,
        "keepalives_idle": TIMEOUT,
    },
}
SESSION_STATEMENTS = {
    "sqlite": [
        "PRAGMA synchronous = FULL",
        "PRAGMA secure_delete = ON",
        "PRAGMA wal_autocheckpoint = 16000",
    ],
    "postgresql": [
        f"SET statement_timeout = '{TIMEOUT}s'",
        f"SET idle_in_transaction_session_timeout = '{12 * TIMEOUT}s'",
        "SET timezone = 'UTC'",
        "SET datestyle = 'ISO'",
        "SELECT set_config('synchronous_commit', 'on', false) "
        "WHERE current_setting('synchronous_commit') = 'off'",
    ],
}


def use_write_ahead_log(connection) -> None:
    """Switch a SQLite file to its write-ahead log; retry while others open it."""
    until = time.monotonic() + TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
            return
        except connection.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def create_private_file(path: str | Path) -> None:
    """Create a file that only its owner may read; SQLite's files beside it inherit it.

    An existing file is not opened: closing it would end this process's locks on it.
    """
    with suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def limited_connection() -> type:
    """Return a subclass of psycopg's Connection that does not wait for ever.

    A server that is stopped or cut off sends no error.
    """
    from psycopg import Connection as PostgresConnection
    from psycopg import OperationalError
    from psycopg.pq import TransactionStatus

    class LimitedConnection(PostgresConnection):
        """A connection that is closed when an answer takes too long."""

        timeout = TIMEOUT + 1  # seconds: the server's own limit ends earlier

        def wait(self, gen, interval=0.1, timeout=None):
            """Consume a generator of psycopg within the timeout."""
            try:
                return super().wait(gen, interval, timeout or self.timeout)
            except OperationalError:
                if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                    self.close()
                raise

    return LimitedConnection


def new_engine(url: URL, **options) -> Engine:
    """Make the engine of a database, which prepares each connection.

    Args:
        url: From `database_url`.
        options: Of `create_engine`.
    """
    kind = url.get_backend_name()
    arguments = {
        key: value
        for key, value in CONNECT_ARGUMENTS[kind].items()
        if key not in url.query
    }
    engine = create_engine(url, connect_args=arguments, pool_pre_ping=True, **options)

    @event.listens_for(engine, "do_connect")
    def connect(dialect, record, arguments, keywords):
        if kind == "postgresql":
            return limited_connection().connect(*arguments, **keywords)
        create_private_file(url.database)
        return None  # SQLAlchemy connects

    @event.listens_for(engine, "connect")
    def prepare(connection, record):
        if kind == "sqlite":
            use_write_ahead_log(connection)
        cursor = connection.cursor()
        for statement in SESSION_STATEMENTS[kind]:
            cursor.execute(statement)
        cursor.close()
        connection.commit()

    return engine


MIGRATION_TIMEOUT = 600  # seconds for a change of the schema, or to wait for another
LOCK_STATEMENTS = {
    "sqlite": ["BEGIN IMMEDIATE"],
    "postgresql": [
        f"SET LOCAL statement_timeout = '{MIGRATION_TIMEOUT}s'",
        "SELECT pg_advisory_xact_lock(4820931)",
    ],
}


def migrations_folder() -> Path:
    """Return the folder of the migrations."""
    return Path(migrations.__path__[0])


def known_revisions() -> list[str]:
    """Return the revisions that this program knows, in order, such as "0001"."""
    files = (migrations_folder() / "versions").glob("[0-9]*.py")
    return sorted(path.name.split("_")[0] for path in files)


@contextmanager
def locked_transaction(engine: Engine) -> Iterator[Connection]:
    """Open a transaction to change the schema; one process at a time."""
    with engine.begin() as connection:
        driver = connection.connection.driver_connection
        timeout = getattr(driver, "timeout", None)
        if timeout:
            driver.timeout = MIGRATION_TIMEOUT
        for statement in LOCK_STATEMENTS[engine.dialect.name]:
            connection.exec_driver_sql(statement)
        yield connection
        if timeout:
            driver.timeout = timeout


def current_revision(engine: Engine) -> str | None:
    """Return the revision of a database, or None if it has no table yet."""
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        query = text("SELECT version_num FROM alembic_version")
        return connection.execute(query).scalar()


def upgrade(engine: Engine) -> None:
    """Bring a database to the last revision."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    folder = str(migrations_folder()).replace("%", "%%")
    config.set_main_option("script_location", folder)
    with locked_transaction(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
