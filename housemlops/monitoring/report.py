"""Write the monitoring report for people."""

import base64
import gzip
import html
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from housemlops.contract import Contract, evidently_definition
from housemlops.core.files import write_json
from housemlops.drift import finite

RANDOM_ID = re.compile(
    r"(?!0{8}-)[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|metric_[0-9a-f]{32}"
)
PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>{verdict}</title>
<style>
body {{ font-family: sans-serif; margin: 1em }}
td, th {{ padding: 0.2em 0.6em; text-align: left }}
iframe {{ width: 100%; height: 90vh; border: 0 }}
</style>
<h1>{verdict}</h1>
<p>{reasons}.</p>
<p>{rule}</p>
{content}
</html>
"""
UNPACK = """<iframe title="Distributions"></iframe>
<script type="text/plain" id="packed">{packed}</script>
<script>
(async () => {{
  const text = document.getElementById("packed").textContent
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0))
  const unpacked = new Blob([bytes]).stream()
    .pipeThrough(new DecompressionStream("gzip"))
  const page = await new Response(unpacked).text()
  document.querySelector("iframe").srcdoc = page
}})()
</script>
"""


def load_evidently() -> None:
    """Import Evidently, which takes seconds."""
    import evidently.presets  # noqa: F401


def prepare_for_evidently(
    sales: pd.DataFrame, prices: np.ndarray, contract: Contract
) -> pd.DataFrame:
    """Return sales and their predictions without missing categories or infinities.

    Args:
        sales: Typed, as in the contract.
        prices: Predictions, one a sale.
        contract: Of the data set.
    """
    table = sales[[*contract.inputs, contract.target]].assign(prediction=prices)
    for name in [*contract.named("feature"), contract.target]:
        column = contract.columns[name]
        if column.categories:
            table[name] = table[name].fillna(column.absent or "missing")
        if column.is_number:
            table[name] = finite(table[name])
    return table


def number_random_ids(text: str) -> str:
    """Number the random identifiers of a report, so that equal data give equal text."""
    numbers: dict[str, str] = {}

    def numbered(match: re.Match) -> str:
        prefix = "metric_" if match[0].startswith("metric_") else ""
        return numbers.setdefault(match[0], f"{prefix}{len(numbers):032x}")

    return RANDOM_ID.sub(numbered, text)


def checks_to_show(checks: list[dict], current: pd.DataFrame, columns: int) -> list:
    """Choose the drift checks that the report shows.

    Args:
        checks: Of a verdict.
        current: From `prepare_for_evidently`.
        columns: Largest number of inputs.

    Returns:
        The inputs that differ most, then the prediction and the target.
    """
    drift = [
        check
        for check in checks
        if check["name"].endswith("drift") and current[check["column"]].notna().any()
    ]
    inputs = [check for check in drift if check["name"] == "input drift"]
    inputs.sort(key=lambda check: (check["passed"], check["p"], -check["effect"]))
    return inputs[:columns] + [c for c in drift if c["name"] != "input drift"]


def report_page(verdict: dict, content: str = "") -> str:
    """Return an HTML page that begins with the verdict, its reasons and its rule.

    Args:
        verdict: As in verdict.json.
        content: HTML that follows.
    """
    rule = ""
    if "rule" in verdict:
        rule = f"The verdict is {verdict['verdict']} when {verdict['rule']}."
    return PAGE.format(
        verdict=html.escape(verdict["verdict"]),
        reasons=html.escape("; ".join(verdict["reasons"])),
        rule=html.escape(rule),
        content=content,
    )


def compress_page(page: str) -> str:
    """Return HTML that shows a page from a compressed copy, a third of its size."""
    packed = gzip.compress(page.encode(), 9, mtime=0)
    return UNPACK.format(packed=base64.b64encode(packed).decode())


def write_report(
    folder: Path,
    reference: pd.DataFrame,
    current: pd.DataFrame,
    verdict: dict,
    columns: int,
    contract: Contract,
) -> None:
    """Write report.html and report.json: distributions and errors, drawn by Evidently.

    Args:
        folder: Receives the files.
        reference: From `prepare_for_evidently`.
        current: From `prepare_for_evidently`.
        verdict: As in verdict.json.
        columns: Largest number of inputs shown.
        contract: Of the data set.
    """
    from evidently import Dataset, Report
    from evidently.metrics import RowCount
    from evidently.presets import RegressionQuality, ValueStats

    shown = checks_to_show(verdict["checks"], current, columns)
    metrics = [RowCount()]
    metrics += [ValueStats(column=check["column"]) for check in shown]
    if verdict["labelled"] > 1:
        metrics.append(RegressionQuality(pred_actual_plot=True, error_distr=True))
    definition = evidently_definition(contract)
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        datasets = [
            Dataset.from_pandas(table, data_definition=definition)
            for table in (current, reference)
        ]
        snapshot = Report(metrics).run(*datasets)
        pictures = number_random_ids(snapshot.get_html_str(as_iframe=False))
    table = pd.DataFrame(shown, columns=["name", "column", "test", "passed", "reason"])
    content = table.to_html(index=False, border=0) + compress_page(pictures)
    page = report_page(verdict, content)
    (folder / "report.html").write_text(page, encoding="utf-8")
    text = number_random_ids(snapshot.json())
    (folder / "report.json").write_text(text, encoding="utf-8")


def write_short_report(folder: Path, verdict: dict) -> None:
    """Write report.html and an empty report.json where there is nothing to draw."""
    (folder / "report.html").write_text(report_page(verdict), encoding="utf-8")
    write_json(folder / "report.json", {})
