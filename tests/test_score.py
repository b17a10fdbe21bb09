"Batch scoring: the evaluated model's prices from both formats, bounded memory, and a killed run that leaves nothing behind."

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from checkout import Sample
from housemlops.contract import load_contract
from housemlops.model.prices import predict_prices

pytestmark = pytest.mark.slow
SCORE = """
import json, sys
from pathlib import Path
from psutil import Process
from housemlops.score import open_model, score_table
sizes = []
told = score_table(open_model(Path(sys.argv[1]), "house-prices-sample", 1), Path(sys.argv[2]), Path(sys.argv[3]), rows_at_once=5000,
                   progress=lambda done, total: sizes.append(Process().memory_info().rss / 1e6))
print(json.dumps([told, max(sizes)]))
"""


@pytest.fixture(scope="module")
def sales(sample) -> pd.DataFrame:
    "The test split of a checkout, typed"
    return pd.read_parquet(sample.build / "prepare/test.parquet").reset_index(drop=True)


def program(sample: Sample, code: str, *arguments) -> subprocess.Popen:
    "A Python program in the checkout"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=sample.path,
        env=sample.environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finished(process: subprocess.Popen) -> object:
    "The JSON that a program printed"
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(out.splitlines()[-1])


def repeated(sales: pd.DataFrame, rows: int, path) -> None:
    "A Parquet file of so many sales in one row group"
    parquet.write_table(
        pa.Table.from_pandas(
            sales.iloc[np.arange(rows) % len(sales)], preserve_index=False
        ),
        path,
        row_group_size=rows,
    )


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_every_price_is_that_of_the_champion(sample, champion, sales, tmp_path, suffix):
    source = tmp_path / f"sales.{suffix}"
    sales.to_csv(source, index=False) if suffix == "csv" else sales.to_parquet(
        source, index=False
    )
    code = "import json, sys; from housemlops.score import score; print(json.dumps(score(sys.argv[1])))"
    told = finished(program(sample, code, source))
    release = json.loads((sample.release / "model/release.json").read_text())
    read = pd.read_csv if suffix == "csv" else pd.read_parquet
    scored, evaluated = (
        read(told["out"]),
        predict_prices(champion, sales, load_contract("sample")),
    )
    assert (
        told["rows"] == told["priced"] == len(sales) == len(evaluated)
        and told["warnings"] == {}
        and told["version"] == release["version"]
    )
    for name, output in {
        "predicted_price": "price",
        "predicted_low": "low",
        "predicted_high": "high",
    }.items():
        np.testing.assert_allclose(scored[name], evaluated[output], rtol=1e-4)


def test_memory_does_not_grow_with_the_file(sample, champion, sales, tmp_path):
    peaks = {}
    for rows in (20_000, 200_000):
        repeated(sales, rows, tmp_path / f"{rows}.parquet")
        told, peaks[rows] = finished(
            program(
                sample,
                SCORE,
                champion,
                tmp_path / f"{rows}.parquet",
                tmp_path / f"{rows}.scored.parquet",
            )
        )
        assert (
            told["rows"]
            == told["priced"]
            == rows
            == parquet.ParquetFile(told["out"]).metadata.num_rows
        )
    assert peaks[200_000] < 1.2 * peaks[20_000] and peaks[200_000] < 600, peaks  # MB


def test_a_killed_run_leaves_nothing_under_the_final_name(
    sample, champion, sales, tmp_path
):
    source, target = tmp_path / "many.parquet", tmp_path / "many.scored.parquet"
    repeated(sales, 200_000, source)
    process, end = (
        program(sample, SCORE, champion, source, target),
        time.monotonic() + 60,
    )
    while (
        not any(path.stat().st_size > 100_000 for path in tmp_path.glob(".many*"))
        and time.monotonic() < end
    ):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert (
        process.returncode == -signal.SIGKILL
        and [*tmp_path.glob(".many*")]
        and not target.exists()
    )
