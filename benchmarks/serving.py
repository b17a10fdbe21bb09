"""How fast does the generated server answer? Against what one would otherwise put there: in one run, on the same model and the same houses.

    make run                                            # first: there must be a live release
    .venv/bin/python benchmarks/serving.py              # all of it, seven to ten minutes on two cores
    .venv/bin/python benchmarks/serving.py --quick      # ours against an answer that costs nothing: a few minutes

It prints requests per second and the time to an answer for each server, its start and memory, where the time of a price goes, rows per second of
batch scoring, and whether the targets are met. It needs a live release and the outputs of the run that made it.

ours             the generated server, with its log: no price leaves before its row is on disk. SQLite, and PostgreSQL where its programs are found
constant         FastAPI with the same request model, one answer for everybody: what HTTP and validation cost
mlflow           `mlflow models serve` of the champion's folder, one worker (its default), no access log
mlflow-sklearn   the same for the scikit-learn pipeline behind the champion, saved in MLflow's scikit-learn flavour, as is usual
bridge           FastAPI that asks the server `mlflow` over HTTP, and writes a row to SQLite through SQLAlchemy
plain            FastAPI, a pandas frame of one row, the scikit-learn pipeline

One server at a time is under load, from one process with 1, 8 and 32 connections on the same machine, so the load takes part of a core from
each. Every request is another house of the test split, every answer must be a 200, and the first prices of each server are compared with the
champion's. The rounds go through the servers there and back, and their answers are counted together. All run uvicorn with uvloop and httptools
and without an access log; scikit-learn has one thread, which is faster when requests overlap. Memory is resident, of all processes of a server.
"""

import argparse
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, TemporaryFile

from lib.checkout import absolute_path, make_parser, progress, run_benchmark
from lib.serving_load import Connection, load
from lib.serving_parts import breakdown
from lib.serving_peers import as_frame, fit, mlflow_price, save_sklearn

CONNECTIONS = (1, 8, 32)
ROWS = 20_000  # of batch scoring
QUICK = {"only": ["ours", "constant"], "seconds": 1, "rounds": 1}
NAMES = ("ours", "postgres", "constant", "mlflow", "mlflow-sklearn", "bridge", "plain")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def apart(task: Callable, *arguments):
    "Run a function in a fresh process"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(task, *arguments).result()


# What is measured.


@dataclass
class Server:
    "How to start a server, and how to ask it"

    name: str
    command: list[str]  # {port} is filled in
    folder: Path  # to start it in
    environment: dict[str, str] = field(default_factory=dict)
    path: str = "/predict"
    body: Callable[[dict], dict] = dict  # of a house
    price: Callable[[dict], float] | None = lambda answer: answer[
        "price"
    ]  # None when it gives no price
    behind: str | None = None  # a server that it asks
    seconds: dict[int, float] = field(
        default_factory=dict
    )  # connections -> measured for so long
    answers: dict[int, list[float]] = field(
        default_factory=dict
    )  # connections -> seconds of each
    rates: dict[int, list[float]] = field(
        default_factory=dict
    )  # connections -> requests/s, of each round
    starts: list[float] = field(
        default_factory=list
    )  # seconds from its start to its first answer
    memory: float = 0.0  # MB


def uvicorn(app: str, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "uvicorn",
        app,
        *options,
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
        "--loop",
        "uvloop",
        "--http",
        "httptools",
        "--no-access-log",
        "--log-level",
        "warning",
    ]


def request(server: Server, port: int, house: dict) -> bytes:
    body = json.dumps(server.body(house)).encode()
    return (
        f"POST {server.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


def first_answer(
    port: int, asked: bytes, process: subprocess.Popen, patience: float = 90.0
) -> None:
    "Wait until a server has priced a house"
    end = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < end:
        try:
            Connection(port).ask(asked)
        except ConnectionRefusedError:
            time.sleep(0.005)
        else:
            return
    raise ConnectionError("it did not start")


def family(pid: int) -> list:  # psutil processes
    import psutil

    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


@contextmanager
def running(
    server: Server, asked: Callable[[int], bytes], environment: dict[str, str]
) -> Iterator[tuple[int, int, float]]:  # port, process id, seconds
    "A server that has answered once; it ends with the block, and its children with it"
    import psutil

    from housemlops.serving.running import free_port
    from housemlops.settings import end_with_parent

    port, start = free_port(), time.perf_counter()
    with TemporaryFile() as said:
        process = subprocess.Popen(
            [part.format(port=port) for part in server.command],
            cwd=server.folder,
            stdout=said,
            stderr=said,
            env=os.environ | server.environment | environment,
            preexec_fn=partial(end_with_parent, os.getpid()),
        )
        try:
            first_answer(port, asked(port), process)
            yield port, process.pid, time.perf_counter() - start
        except ConnectionError as error:
            said.seek(0)
            raise ConnectionError(
                f"{server.name}: {error} {said.read().decode()[-500:].strip()}"
            ) from None
        finally:
            everyone = family(process.pid) if process.poll() is None else []
            for one in everyone:
                one.terminate()
            for one in psutil.wait_procs(everyone, 10)[1]:
                one.kill()
            process.wait()


def measure(
    name: str,
    servers: dict[str, Server],
    houses: list[dict],
    prices: list[float],
    seconds: float,
    least: int,
) -> None:
    "One round: start a server, compare its prices, load it, weigh it"
    server, environment, pids = servers[name], {}, []
    with ExitStack() as stack:
        if server.behind:
            other = servers[server.behind]
            port, pid, _ = stack.enter_context(
                running(other, lambda port: request(other, port, houses[0]), {})
            )
            environment, pids = {"BENCH_BEHIND": f"http://127.0.0.1:{port}"}, [pid]
        port, pid, start = stack.enter_context(
            running(server, lambda port: request(server, port, houses[0]), environment)
        )
        server.starts.append(start)
        asked, connection = (
            [request(server, port, house) for house in houses],
            Connection(port),
        )
        for text, price in list(zip(asked, prices))[:20] if server.price else []:
            found = server.price(json.loads(connection.ask(text)))
            if not math.isclose(found, price, rel_tol=1e-4):
                raise ConnectionError(
                    f"the price was {found:,.2f}, but the champion's is {price:,.2f}"
                )
        connection.socket.close()
        for connections in CONNECTIONS:
            progress(f"{name}, {connections} connections")
            took, whole = apart(load, port, asked, connections, seconds, least)
            server.answers.setdefault(connections, []).extend(took)
            server.seconds[connections] = server.seconds.get(connections, 0) + whole
            server.rates.setdefault(connections, []).append(len(took) / whole)
        server.memory = (
            sum(one.memory_info().rss for pid in [*pids, pid] for one in family(pid))
            / 1e6
        )


# What it is measured on.


def champion_folder(release: dict, build: Path, scratch: Path) -> Path:
    "The model folder of the live release: the latest run's where it is the same, otherwise from the registry"
    from housemlops.model.registry import download
    from housemlops.settings import folder_sha256, tracking

    model = build / "train/model"
    if model.exists() and folder_sha256(model) == release["model_sha256"]:
        return model
    mlflow = tracking()
    return download(
        mlflow,
        mlflow.MlflowClient().get_model_version(
            release["model"], str(release["version"])
        ),
        scratch,
    )


@contextmanager
def postgres(
    folder: Path,
) -> Iterator[str | None]:  # URL; None where its programs are not found
    "A PostgreSQL of our own with its default settings, on a free loopback port"
    from housemlops.serving.running import free_port

    homes = [
        Path(found).parent for found in [shutil.which("pg_ctl")] if found
    ] or sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    user = (
        {"user": "postgres"} if os.geteuid() == 0 else {}
    )  # it refuses to run as root
    if not homes:
        return (yield None)
    folder.mkdir()
    if user:
        shutil.chown(folder, "postgres")
    port, quiet = (
        free_port(),
        {
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            "check": True,
            "cwd": folder,
            **user,
        },
    )
    subprocess.run(
        [
            homes[-1] / "initdb",
            "-D",
            folder / "data",
            "-A",
            "trust",
            "-U",
            "house",
            "-N",
        ],
        **quiet,
    )
    control = [homes[-1] / "pg_ctl", "-D", folder / "data", "-w"]
    subprocess.run(
        [
            *control,
            "-o",
            f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''",
            "start",
        ],
        **quiet,
    )
    try:
        yield f"postgresql+psycopg://house@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "fast", "stop"], **quiet)


def line_up(
    files: dict[str, Path], scratch: Path, sql: str | None
) -> dict[str, Server]:  # by name
    "All servers"
    mlflow = [
        str(Path(sys.executable).with_name("mlflow")),
        "models",
        "serve",
        "-p",
        "{port}",
        "-h",
        "127.0.0.1",
        "--env-manager",
        "local",
        "-m",
    ]
    quiet, known = (
        {"UVICORN_ACCESS_LOG": "false", "UVICORN_LOG_LEVEL": "warning"},
        {"BENCH_SERVER": str(files["server"])},
    )

    def ours(name, url):
        command = [sys.executable, "app.py", "--port", "{port}"]
        command += ["--log-level", "warning"]
        return Server(name, command, files["server"], {"HOUSE_DATABASE_URL": url})

    def scoring(name, model, price):
        return Server(
            name,
            [*mlflow, str(model)],
            scratch,
            ONE_THREAD | quiet,
            "/invocations",
            as_frame,
            price,
        )

    def peer(name, environment, **more):
        return Server(
            name,
            uvicorn(
                f"lib.serving_peers:{name}",
                "--factory",
                "--app-dir",
                str(Path(__file__).parent),
            ),
            scratch,
            ONE_THREAD | known | environment,
            **more,
        )

    return {
        server.name: server
        for server in (
            ours("ours", f"sqlite:///{scratch}/ours.db"),
            *([ours("postgres", sql)] if sql else []),
            peer("constant", {}, price=None),
            scoring("mlflow", files["model"], mlflow_price),
            scoring(
                "mlflow-sklearn",
                files["flavour"],
                lambda answer: math.exp(mlflow_price(answer)),
            ),
            peer(
                "bridge",
                {"BENCH_DATABASE": f"sqlite:///{scratch}/bridge.db"},
                behind="mlflow",
            ),
            peer(
                "plain",
                {
                    "BENCH_ESTIMATOR": str(files["estimator"]),
                    "BENCH_PLAN": str(files["plan"]),
                },
            ),
        )
    }


def fsync_time(folder: Path) -> float:  # median, ms
    "What it takes to see 4 kB on disk"

    def write(file):
        file.write(bytes(4096))
        os.fsync(file.fileno())

    with open(folder / "fsync", "wb", buffering=0) as file:
        return 1e3 * median(timed(lambda: write(file)) for _ in range(200))


def timed(task: Callable) -> float:  # seconds
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def batch_rates(
    estimator, sales, contract, model: Path, release: dict, scratch: Path
) -> dict[str, float]:  # rows/s
    "How fast a long table of sales is priced: from a file into a file by ours, in memory by the pipeline"
    import numpy as np
    import pandas as pd

    from housemlops.contract import feature_plan
    from housemlops.predict import encode
    from housemlops.score import open_model, score_table

    sales, plan = (
        pd.concat([sales] * (ROWS // len(sales) + 1), ignore_index=True)[
            contract.inputs
        ].head(ROWS),
        feature_plan(contract),
    )
    pricer = open_model(model, release["model"], release["version"])
    sales.to_parquet(scratch / "sales.parquet")
    sales.to_csv(scratch / "sales.csv", index=False)

    def score(kind):
        score_table(
            pricer,
            scratch / f"sales.{kind}",
            scratch / f"priced.{kind}",
            overwrite=True,
        )

    tasks = {
        "the pipeline's predict, frame in memory": lambda: np.exp(
            estimator.predict(encode(sales, plan))
        ),
        "housemlops score, Parquet to Parquet": lambda: score("parquet"),
        "housemlops score, CSV to CSV": lambda: score("csv"),
    }
    found = {}
    for label, task in tasks.items():
        progress(label)
        found[label] = ROWS / min(timed(task) for _ in range(2))
    return found


# What is printed.


def percentile(took: list[float], share: float) -> float:
    return 1e3 * sorted(took)[min(int(share * len(took)), len(took) - 1)]  # ms


def rate(server: Server, connections: int) -> float:
    return len(server.answers[connections]) / server.seconds[connections]


def digits(value: float) -> str:
    return (
        f"{value:,.0f}"
        if value >= 100
        else f"{value:.1f}"
        if value >= 10
        else f"{value:.2f}"
    )


def table(title: str, *columns: str):  # -> rich Table
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left")
    return made


def machine(scratch: Path) -> str:
    from importlib.metadata import version

    names = (
        "fastapi",
        "uvicorn",
        "uvloop",
        "httptools",
        "pydantic",
        "onnxruntime",
        "sqlalchemy",
        "mlflow",
        "scikit-learn",
        "pandas",
    )
    known = Path("/proc/cpuinfo")
    model = (
        re.search(r"model name\s*: (.*)", known.read_text()) if known.exists() else None
    )
    return (
        f"{os.cpu_count()} cores ({model[1] if model else platform.machine()}), {platform.system()}, Python {platform.python_version()}, "
        f"{', '.join(f'{name} {version(name)}' for name in names)}; 4 kB are on disk in {fsync_time(scratch):.2f} ms"
    )


def report(servers: dict[str, Server]) -> Iterator:  # of what is printed
    main = table(
        "Requests per second, and milliseconds to an answer, by connections",
        "",
        *(f"{c}: {what}" for c in CONNECTIONS for what in ("req/s", "p50", "p99")),
        "answers",
    )
    for name, server in servers.items():
        cells = [
            digits(value)
            for c in CONNECTIONS
            for value in (
                rate(server, c),
                *(percentile(server.answers[c], q) for q in (0.5, 0.99)),
            )
        ]
        main.add_row(
            name, *cells, " ".join(f"{len(server.answers[c]):,}" for c in CONNECTIONS)
        )
    yield main
    apart = [
        1 - min(found) / max(found)
        for server in servers.values()
        for found in server.rates.values()
    ]
    yield f"From round to round the rates differ by {sum(apart) / len(apart):.0%} on average, by {max(apart):.0%} at most.\n"
    start = table(
        "Seconds from the start of the process to its first price, and MB after the load",
        "",
        "first start",
        "again",
        "memory",
    )
    for name, server in servers.items():
        start.add_row(
            name,
            digits(server.starts[0]),
            digits(min(server.starts[1:], default=math.nan)),
            f"{server.memory:.0f}",
        )
    yield start


def report_parts(parts: dict[str, list[float]], server: Server):  # -> rich Table
    "Where the time goes; what is left of the time between two answers is HTTP, threads, and the load's own share of the machine"
    whole = [1e6 / rate(server, c) for c in CONNECTIONS]
    rows = parts | {
        "HTTP, threads, the load": [
            all_of_it - sum(values)
            for all_of_it, *values in zip(whole, *parts.values())
        ],
        "between two answers": whole,
    }
    made = table(
        "Where the time of a price goes, in microseconds a house",
        "",
        *(f"groups of {c}" for c in CONNECTIONS),
    )
    for label, values in rows.items():
        made.add_row(label, *(f"{value:,.0f}" for value in values))
    return made


def targets(
    servers: dict[str, Server], batch: dict[str, float]
) -> Iterator[tuple[str, float, float, bool]]:  # what, measured, target, more is better
    ours = servers["ours"]
    for name, target in {
        "mlflow": 200,
        "mlflow-sklearn": 200,
        "bridge": 200,
        "plain": 200,
        "constant": 0.5,
    }.items():
        for c in (1, 8) if name in servers else ():
            yield (
                f"ours / {name}, {c} connection{'s' * (c > 1)}",
                rate(ours, c) / rate(servers[name], c),
                target,
                True,
            )
    yield "p99 with 8 connections, ms", percentile(ours.answers[8], 0.99), 5, False
    yield "first start, s", ours.starts[0], 2, False
    yield "memory, MB", ours.memory, 200, False
    pipeline, *scored = batch.values()
    yield "batch / the pipeline's predict", min(scored) / pipeline, 1, True


def parse_arguments() -> argparse.Namespace:
    """Return what was asked for on the command line."""
    options = make_parser(__doc__)
    options.add_argument(
        "--dataset",
        help="the live release must be of it (default: that of params.yaml)",
    )
    options.add_argument(
        "--server",
        type=absolute_path,
        help="folder of the generated server (default: that of the live release)",
    )
    options.add_argument(
        "--build",
        type=absolute_path,
        help="outputs of the run that trained the champion (default: the latest run's)",
    )
    options.add_argument(
        "--estimator",
        type=absolute_path,
        help="the scikit-learn pipeline behind the champion, by joblib; fitted when not given",
    )
    options.add_argument(
        "--quick",
        action="store_true",
        help="the same as `--only ours constant --seconds 1 --rounds 1`",
    )
    options.add_argument(
        "--only", nargs="+", default=NAMES, choices=NAMES, help="some of the servers"
    )
    options.add_argument(
        "--seconds",
        type=float,
        default=4,
        help="under load, for each number of connections (default: 4)",
    )
    options.add_argument(
        "--least",
        type=int,
        default=200,
        help="answers; a slow server gets up to five times as long for them (default: 200)",
    )
    options.add_argument("--rounds", type=int, default=2, help="how often (default: 2)")
    if options.parse_args().quick:
        options.set_defaults(**QUICK)
    return options.parse_args()


def live_release(asked: argparse.Namespace) -> dict:
    """Return what is known of the release that is to be measured.

    Raises:
        WorkbookError: There is none, or it is of another data set.
    """
    from housemlops.settings import WorkbookError

    note = asked.server / "model/release.json"
    if not note.exists():
        raise WorkbookError(
            f"There is no live release in {asked.server}: type `make run` first."
        )
    if not (asked.build / "prepare/test.parquet").exists():
        raise WorkbookError(
            f"There are no outputs of a finished run in {asked.build}: "
            "type `make run` first."
        )
    release = json.loads(note.read_text(encoding="utf-8"))
    if release["dataset"] != asked.dataset:
        raise WorkbookError(
            f"The live release is of {release['dataset']}, not of {asked.dataset}: "
            "type `make run` first."
        )
    return release


def main(asked: argparse.Namespace) -> None:
    """Measure the servers that were asked for, and print the tables."""
    from housemlops.settings import params, settings

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # the servers end, too
    state = settings().paths.state
    asked.dataset = asked.dataset or params()["dataset"]
    asked.server = asked.server or state / "serve/current"
    asked.build = asked.build or state / "latest/build"
    release = live_release(asked)

    import joblib
    import pandas as pd
    from rich.console import Console

    from housemlops.contract import Contract, as_request
    from housemlops.core.files import read_json
    from housemlops.promote import table_prices

    console = Console(width=140)
    with TemporaryDirectory(dir=state, prefix="bench-") as folder, ExitStack() as stack:
        scratch = Path(folder)
        scratch.chmod(0o755)  # PostgreSQL runs as another user
        model = champion_folder(release, asked.build, scratch / "champion")
        contract = Contract(**read_json(model / "artifacts/contract.json"))
        train, test = (
            pd.read_parquet(asked.build / f"prepare/{split}.parquet")
            for split in ("train", "test")
        )
        houses, prices = (
            [
                as_request(row, contract)
                for row in test[contract.inputs].to_dict("records")
            ],
            table_prices(model, test).tolist(),
        )
        progress("fitting the scikit-learn pipeline")
        estimator = (
            joblib.load(asked.estimator)
            if asked.estimator
            else fit(
                asked.build, contract, (model / "artifacts/graph.onnx").read_bytes()
            )
        )
        files = {
            "server": shutil.copytree(asked.server, scratch / "server"),
            "model": model,
            "flavour": scratch / "flavour",
            "estimator": scratch / "estimator.joblib",
            "plan": model / "artifacts/plan.json",
        }
        joblib.dump(estimator, files["estimator"])
        save_sklearn(estimator, contract, files["flavour"])
        servers = line_up(
            files,
            scratch,
            stack.enter_context(postgres(scratch / "postgres"))
            if "postgres" in asked.only
            else None,
        )
        chosen = {
            name: servers[name]
            for name in NAMES
            if name in asked.only and name in servers
        }
        console.print(
            f"{release['model']} version {release['version']} on {machine(scratch)}\n",
            highlight=False,
        )
        for i in range(asked.rounds):
            for name in [*chosen][:: -1 if i % 2 else 1]:
                measure(name, servers, houses, prices, asked.seconds, asked.least)
        for part in report(chosen):
            console.print(part)
        if "postgres" in asked.only and "postgres" not in servers:
            console.print(
                "The programs of PostgreSQL are not found: its row is left out."
            )
        if "ours" not in chosen:
            return
        bodies = 3 * [json.dumps(house).encode() for house in houses]
        console.print(
            report_parts(
                apart(
                    breakdown,
                    files["server"],
                    f"sqlite:///{scratch}/parts.db",
                    bodies,
                    CONNECTIONS,
                ),
                servers["ours"],
            )
        )
        batch = batch_rates(
            estimator, pd.concat([train, test]), contract, model, release, scratch
        )
    progress("")
    rows, verdict = (
        table(f"Rows per second, {ROWS:,} sales", "", "rows/s"),
        table("What was asked", "", "measured", "target", ""),
    )
    for label, value in batch.items():
        rows.add_row(label, f"{value:,.0f}")
    for what, value, target, more in targets(chosen, batch):
        verdict.add_row(
            what,
            digits(value),
            f"{'at least' if more else 'under'} {target:g}",
            "yes" if (value >= target if more else value < target) else "short",
        )
    console.print(rows, verdict)


if __name__ == "__main__":
    run_benchmark(main, parse_arguments())
