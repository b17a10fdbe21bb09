"""Count requests and predictions for Prometheus."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1, 5)  # limits of buckets


class Metrics:
    """The metrics of one server."""

    def __init__(self):
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self.requests = Counter("house_requests", "Answers", ["route", "status"], **own)
        self.seconds = Histogram(
            "house_request_seconds", "Time to answer", ["route"], buckets=SECONDS, **own
        )
        self.predictions = Counter(
            "house_predictions", "Prices given", ["version"], **own
        )
        self.stale = Gauge(
            "house_model_stale", "Whether a newer model could not be loaded", **own
        )

    def count_request(self, scope: Mapping, status: int, seconds: float) -> None:
        """Count an answer under its route's pattern, never under the address typed."""
        route = getattr(scope.get("route"), "path", "other")
        self.requests.labels(route, status).inc()
        self.seconds.labels(route).observe(seconds)

    def count_predictions(self, predictions: list[dict]) -> None:
        """Count predictions that were made by one version."""
        self.predictions.labels(predictions[0]["version"]).inc(len(predictions))
