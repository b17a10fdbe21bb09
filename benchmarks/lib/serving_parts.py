"""Where the time of a price goes: the generated server's own parts, one after the other, without HTTP"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median


class Kept:
    "A log that keeps the rows it is given"

    def __init__(self):
        self.groups = []

    def write(self, rows: list[dict]) -> None:
        self.groups.append(rows)


def answer(service, request_type: type, houses: list) -> list[dict]:
    "Predictions for houses that each come in a request of their own"
    requests = [request_type("predict", [house]) for house in houses]
    service.predict_batch(requests)
    return [request.predictions[0] for request in requests]


def breakdown(
    server: Path,  # folder of the generated server; nothing else is imported
    url: str,  # of an empty database
    bodies: list[bytes],  # requests
    sizes: Sequence[int],  # of groups
) -> dict[str, list[float]]:  # part -> microseconds a house, for each size
    "What each part of the server takes"
    sys.path.insert(0, str(server))
    import numpy as np
    from fastapi.responses import JSONResponse
    from pydantic import TypeAdapter
    from serving.engine import LiveModel
    from serving.prediction_log import PredictionLog
    from serving.requests import request_model
    from serving.service import PredictionRequest, PredictionService

    live_model, log, found = LiveModel(server / "model"), PredictionLog(url), {}
    House = request_model(live_model.release.contract)
    adapter, service = TypeAdapter(House), PredictionService(House, live_model, log)
    service.open_log()
    release, service.log = live_model.release, Kept()

    def clock(label: str, task: Callable, given: list) -> list:  # results
        results, took = [], []
        for one in given:
            start = time.perf_counter()
            results.append(task(one))
            took.append(time.perf_counter() - start)
        found.setdefault(label, []).append(1e6 * median(took) / size)
        return results

    for size in sizes:
        houses = clock(
            "parse and check",
            lambda group: [adapter.validate_json(body) for body in group],
            [bodies[i : i + size] for i in range(0, len(bodies) - size, size)],
        )
        values = clock(
            "values",
            lambda group: [
                service.feature_values(house, release.inputs) for house in group
            ],
            houses,
        )
        rows = clock(
            "encode",
            lambda group: np.array(
                [release.encode_row(house) for house in group], dtype=np.float32
            ),
            values,
        )
        clock("model", release.log_prices, rows)
        clock("price", release.predict, values)
        answers = clock(
            "answer",
            lambda group: answer(service, PredictionRequest, group),
            houses,
        )
        clock("log", log.write, service.log.groups[-len(houses) :])
        clock("write JSON", lambda group: [JSONResponse(one) for one in group], answers)
    price, answer, _ = (
        np.array(found.pop(label)) for label in ("price", "answer", "values")
    )
    found["interval, warnings"] = (price - found["encode"] - found["model"]).tolist()
    found["values, id, row of the log"] = (answer - price).tolist()
    service.log = log
    service.close()
    return found
