"""Ask the generated server for the prices of sales, and read them from its log."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from sqlalchemy import text

from housemlops.contract import Contract, as_request, sale_months
from housemlops.engine import Release
from housemlops.prediction_log import LogUnavailable, PredictionLog
from housemlops.serving.running import ask, live_environment, running
from housemlops.settings import WorkbookError, settings

ANSWER_COLUMNS = (  # of predictions.csv
    "month",
    "sale",
    "price",
    "low",
    "high",
    "version",
    "model_sha256",
)
LOGGED_ANSWERS = text(
    "SELECT CAST(inputs AS TEXT), price, low, high FROM predictions "
    "WHERE model_sha256 = :sha256 ORDER BY predictions.time, id"
)


def sale_key(request: Mapping) -> str:
    """Return a fingerprint of a sale's inputs, 12 hexadecimal digits.

    Missing values and the order of the inputs do not change it.

    Args:
        request: Column to value, as the server is asked.
    """
    values = {
        name: value if isinstance(value, str) else float(value)
        for name, value in request.items()
        if value is not None
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def sale_requests(sales: pd.DataFrame, contract: Contract) -> list[dict]:
    """Return the request for each sale."""
    records = sales[contract.inputs].to_dict("records")
    return [as_request(record, contract) for record in records]


def read_logged_answers(log: PredictionLog, sha256: str) -> pd.DataFrame:
    """Return the first answer of a model to each sale in the prediction log.

    Args:
        log: It is migrated first.
        sha256: Of the model.

    Returns:
        Columns sale, price, low, high.

    Raises:
        LogUnavailable: The log cannot be reached.
    """
    log.migrate()
    with log.engine.connect() as connection:
        rows = [
            (sale_key(json.loads(inputs)), price, low, high)
            for inputs, price, low, high in connection.execute(
                LOGGED_ANSWERS, {"sha256": sha256}
            )
        ]
    answers = pd.DataFrame(rows, columns=["sale", "price", "low", "high"])
    return answers.drop_duplicates("sale")


def ask_server(server: Path, requests: list[dict], url: str) -> None:
    """Send requests one by one to a generated server, which logs its answers.

    Args:
        server: Folder of the generated server.
        requests: Bodies of `POST /predict`.
        url: Of the prediction log.

    Raises:
        WorkbookError: The server refused a request; with its reason.
    """
    environ = {"HOUSE_DATABASE_URL": url, "PYTHONPATH": ""}
    with running(server, environ=environ) as address:
        for request in requests:
            status, answer = ask(f"{address}/predict", request, timeout=60)
            if status != 200:
                raise WorkbookError(
                    f"The prediction server refused a sale ({status}): "
                    f"{answer['detail'][0]}"
                )


def champion_answers(
    server: Path, requests: dict[str, dict], sha256: str, url: str
) -> pd.DataFrame:
    """Return the champion's answers from its log, asking first for those not in it.

    Args:
        server: Folder of the generated server.
        requests: Key of a sale to its request.
        sha256: Of the champion's model.
        url: Of the prediction log.

    Returns:
        Columns sale, price, low, high.

    Raises:
        WorkbookError: The log cannot be reached, or lost an answer.
    """
    try:
        log = PredictionLog(url)
    except LogUnavailable as error:
        raise needs_log(error) from None
    try:
        logged = set(read_logged_answers(log, sha256)["sale"])
        new = [requests[key] for key in requests if key not in logged]
        if new:
            ask_server(server, new, url)
        answers = read_logged_answers(log, sha256)
    except LogUnavailable as error:
        raise needs_log(error) from None
    finally:
        log.close()
    lost = set(requests) - set(answers["sale"])
    if lost:
        raise WorkbookError(
            f"{len(lost)} answers of the prediction server are not in the log "
            f"{url.rpartition('/')[2]}: is another program emptying it?"
        )
    return answers[answers["sale"].isin(list(requests))]


def needs_log(error: LogUnavailable) -> WorkbookError:
    """Return the error of a monitoring run without a prediction log."""
    return WorkbookError(f"Monitoring needs the prediction log, but {error}")


def read_earlier_answers(path: Path) -> pd.DataFrame:
    """Return the answers that were given in earlier months.

    Args:
        path: A predictions.csv.

    Returns:
        Columns as in `ANSWER_COLUMNS`.
    """
    kinds = {"month": str, "sale": str, "model_sha256": str}
    table = pd.read_csv(path, dtype=kinds, keep_default_na=False)
    return table[list(ANSWER_COLUMNS)].drop_duplicates(["month", "sale"])


def answer_sales(
    server: Path,
    sales: pd.DataFrame,
    contract: Contract,
    release: dict,
    earlier: pd.DataFrame,
    url: str,
) -> pd.DataFrame:
    """Return an answer for each sale: that of an earlier month, else the champion's.

    Args:
        server: Folder of the generated server.
        sales: Typed, as in the contract.
        contract: Of the data set.
        release: Content of the champion's release.json.
        earlier: From `read_earlier_answers`.
        url: Of the prediction log.

    Returns:
        Columns as in `ANSWER_COLUMNS`, indexed as `sales`.
    """
    months = sale_months(sales, contract)
    requests = sale_requests(sales, contract)
    keys = [sale_key(request) for request in requests]
    sale_ids = list(zip([""] * len(sales) if months is None else months, keys))
    answers = {(row.month, row.sale): tuple(row) for row in earlier.itertuples(False)}
    new = {
        key: request
        for (month, key), request in zip(sale_ids, requests)
        if (month, key) not in answers
    }
    if new:
        sha256 = release["model_sha256"]
        given = champion_answers(server, new, sha256, url).set_index("sale")
        for month, key in sale_ids:
            if (month, key) not in answers:
                answer = (month, key, *given.loc[key], release["version"], sha256[:12])
                answers[month, key] = answer
    rows = [answers[sale_id] for sale_id in sale_ids]
    return pd.DataFrame(rows, sales.index, columns=list(ANSWER_COLUMNS))


def predict_reference(
    server: Path, reference: pd.DataFrame, contract: Contract
) -> list[float]:
    """Return the champion's prices of its reference data, without logging them.

    Args:
        server: Folder of the generated server.
        reference: Sales that the champion learned from, typed.
        contract: Of the data set.
    """
    release = Release(server / "model")
    houses = [
        [request.get(name) for name in release.inputs]
        for request in sale_requests(reference, contract)
    ]
    return [estimate.price for estimate in release.predict(houses)]


def log_url() -> str:
    """Return the URL of the live server's prediction log, making its folder."""
    chosen = settings()
    (chosen.paths.state / "serve").mkdir(parents=True, exist_ok=True)
    return live_environment(chosen)["HOUSE_DATABASE_URL"]
