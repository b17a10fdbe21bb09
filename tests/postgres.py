"A PostgreSQL server for a test: on loopback, with a password, in a folder of its own, and gone afterwards."

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

PASSWORD = "s3cret-of-the-log"
DEBIAN = sorted(
    map(str, Path("/usr/lib/postgresql").glob("*/bin"))
)  # not on the PATH there
os.environ["PATH"] = os.pathsep.join(
    [
        os.environ["PATH"],
        *(folder for folder in DEBIAN if folder not in os.environ["PATH"]),
    ]
)


def other_user() -> dict:
    "PostgreSQL refuses to run as root: who runs it then"
    if os.getuid():
        return {}
    import pwd

    user = next(u for u in pwd.getpwall() if u.pw_name in ("postgres", "nobody"))
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


class Server:
    "A server that can be stopped and started again; its log is `postgres.log` in the folder"

    def __init__(
        self, folder: Path, *options: str
    ):  # e.g. "-c", "fsync=off": quicker, and as safe as long as the machine itself has power
        self.options = options
        self.log, self.data, self.process = (
            folder / "postgres.log",
            Path(tempfile.mkdtemp(prefix="postgres-")),
            None,
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://house:{PASSWORD}@127.0.0.1:{self.port}/postgres"
        password = folder / "password"
        password.write_text(PASSWORD)
        if who := other_user():
            os.chown(self.data, who["user"], who["group"])
        with password.open() as secret:
            self._run(
                "initdb",
                "--no-sync",
                "--username=house",
                "--auth=scram-sha-256",
                "--pwfile=/dev/stdin",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                stdin=secret,
            ).wait()

    def _run(
        self, program: str, *options: str, stdin=subprocess.DEVNULL
    ) -> subprocess.Popen:
        with self.log.open("a") as log:
            return subprocess.Popen(
                [shutil.which(program), "-D", self.data, *options],
                cwd=self.data,
                stdin=stdin,
                stdout=log,
                stderr=log,
                **other_user(),
            )

    def start(self) -> None:
        self.process = self._run(
            "postgres", "-h", "127.0.0.1", "-p", str(self.port), "-k", "", *self.options
        )
        for _ in range(300):
            try:
                return psycopg.connect(self.url, connect_timeout=2).close()
            except psycopg.OperationalError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.05)
        raise RuntimeError(f"PostgreSQL did not start:\n{self.log.read_text()}")

    def stop(
        self, how: signal.Signals = signal.SIGINT
    ) -> None:  # SIGINT: sessions are ended; SIGQUIT: as in a power cut
        if self.process is None:
            return
        self.process.send_signal(how)
        self.process.wait(30)
        self.process = None

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.data)


@contextmanager
def postgres(
    folder: Path,  # for the server's log, e.g. tmp_path
) -> Iterator[str]:  # its URL, with a user and a password
    "A running server with an empty database"
    server = Server(folder)
    try:
        server.start()
        yield server.url
    finally:
        server.remove()
