"""Say what a run of the lifecycle achieved."""

import contextlib
from pathlib import Path

from rich.console import Console

from housemlops.core.files import read_json
from housemlops.core.http import request_json
from housemlops.settings import settings, tracking

PREDICTION = ("id", "price", "low", "high", "level", "currency", "model", "version")
COLOURS = {"passed": "[green]passed[/]", "FAILED": "[red]FAILED[/]"}


def live_server(release: Path, port: int) -> str | None:
    """Return the address of the live server, if it has this release.

    Args:
        release: Generated server.
        port: Of the live server.
    """
    url = f"http://127.0.0.1:{port}"
    try:
        served = request_json(f"{url}/model", timeout=2)[1]
    except (OSError, ValueError):
        return None
    return url if served == read_json(release / "model/release.json") else None


def ask_prediction(release: Path, root: Path) -> tuple[str, dict]:
    """Ask the generated server for the price of its example; it logs the prediction.

    The live server is asked if it has this release; otherwise the release is started on a
    free port.

    Args:
        release: Generated server.
        root: Checkout.

    Returns:
        The address that was asked, and its answer.
    """
    from housemlops.serving.running import live_environment, running

    chosen = settings(root)
    example = read_json(release / "model/example.json")
    with contextlib.ExitStack() as stack:
        url = live_server(release, chosen.server.port)
        if url is None:
            server = running(release, environ=live_environment(chosen))
            url = stack.enter_context(server)
        return f"{url}/predict", request_json(f"{url}/predict", example)[1]


def champion_version(root: Path, name: str) -> int | None:
    """Return the version of the champion in the registry, or None.

    Args:
        root: Checkout.
        name: Registered model.
    """
    from housemlops.model.registry import champion

    version = champion(tracking(settings(root)).MlflowClient(), name)
    return int(version.version) if version else None


def gate_rows(gates: list[dict]) -> list[tuple[str, str, str, str]]:
    """Return name, value, limit and verdict of each gate, in colour."""
    from housemlops.model.gates import verdicts

    return [
        (name, value, limit, COLOURS[verdict])
        for name, value, limit, verdict in verdicts(gates).itertuples()
    ]


def served_prediction(root: Path) -> dict | None:
    """Ask the champion's server for the price of its example.

    Returns:
        The answer and its address; None when no model has passed its gates.
    """
    release = settings(root).paths.state / "serve/current"
    if not release.exists():
        return None
    address, answer = ask_prediction(release, root)
    return {name: answer[name] for name in PREDICTION} | {"address": address}


def summarise_run(root: Path, workspace: Path) -> dict:
    """Gather metrics, decision, champion, a prediction and where to look, ready for JSON.

    Args:
        root: Checkout.
        workspace: In which all stages have finished.
    """
    state = settings(root).paths.state
    evaluation = read_json(workspace / "build/evaluate/metrics.json")
    receipt = read_json(workspace / "build/promote/receipt.json")
    model, name, gates = evaluation["model"], receipt["model_name"], receipt["gates"]
    comparison = [gate["reason"] for gate in gates if gate["name"] == "champion"]
    site = state / "site/index.html"
    return {
        "metrics": gates,
        "intervals": {
            "level": evaluation["intervals"]["level"],
            "coverage": model["coverage"],
            "width": model["width"],
        },
        "promoted": receipt["promoted"],
        "reasons": receipt["reasons"] or comparison,
        "champion": {"name": name, "version": champion_version(root, name)},
        "prediction": served_prediction(root),
        "reports": str(state / "latest/reports"),
        "site": str(site) if site.exists() else None,
    }


def print_gates(summary: dict, console: Console) -> None:
    """Print the metrics against their thresholds, and what was decided."""
    from rich.table import Table

    table = Table("gate", "value", "limit", "verdict", title="Test sales")
    for row in gate_rows(summary["metrics"]):
        table.add_row(*row)
    console.print(table)
    intervals, champion = summary["intervals"], summary["champion"]
    console.print(
        f"Intervals: {intervals['level']:.0%} asked; {intervals['coverage']:.1%} of the "
        f"test prices lie within, at a mean width of {intervals['width']:.1%} of the price"
    )
    decision = "Promoted" if summary["promoted"] else "[yellow]Not promoted[/]"
    reasons = "; ".join(summary["reasons"])
    console.print(f"{decision}: {reasons}" if reasons else decision)
    version = champion["version"] or "none yet"
    console.print(f"Champion: {champion['name']} version {version}")


def print_summary(root: Path, summary: dict, console: Console) -> None:
    """Print what a run achieved.

    Args:
        root: Checkout.
        summary: From `summarise_run`.
        console: Receives it.
    """
    print_gates(summary, console)
    prediction = summary["prediction"]
    if prediction:
        low, high = f"{prediction['low']:,.0f}", f"{prediction['high']:,.0f}"
        console.print(
            f"Prediction: POST {prediction['address']} gave {prediction['price']:,.0f} "
            f"{prediction['currency']} ({low} to {high} at {prediction['level']:.0%}), "
            f"by {prediction['model']} version {prediction['version']}"
        )
        console.print(f"Where it comes from: housemlops trace {prediction['id']}")
    else:
        console.print("Prediction: none yet, because no model has passed its gates.")
    reports = Path(summary["reports"])
    if reports.is_relative_to(root):
        reports = reports.relative_to(root)
    console.print(f"Executed notebooks: {reports}")
    console.print("Everything live, on one page: housemlops up")
