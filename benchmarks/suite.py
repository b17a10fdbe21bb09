"""Where does the time of the tests go? It reads what `make test` left and runs nothing.

    .venv/bin/python benchmarks/suite.py                            # var/log/junit-*.xml
    .venv/bin/python benchmarks/suite.py one.xml another.xml        # other reports of pytest's --junitxml

It prints, within a second, the seconds of each test file with its slowest test, the twenty slowest tests, and for each report the sum over
its tests (that is, over the workers of pytest-xdist) against the wall time. The seconds of a test include its fixtures; a fixture that
several tests share is charged to the first of them.

It needs the reports: run `make test` first.
"""

import argparse
import sys
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree

from lib.checkout import ROOT, absolute_path, make_parser

SLOWEST = 20  # tests in the second table


class ReportError(Exception):
    """A sentence: what is wrong with a report, and what to do."""


@dataclass
class TimedTest:
    """One test of a report."""

    file: str
    name: str
    seconds: float


@dataclass
class Report:
    """One run of pytest: its tests, and when it ran."""

    name: str
    tests: list[TimedTest]
    started: datetime | None
    wall: float  # seconds

    @property
    def total(self) -> float:
        """Return the seconds of all tests, whichever worker ran them."""
        return sum(test.seconds for test in self.tests)


def test_file(case: ElementTree.Element) -> str:
    """Return the file of a test; xunit2 has it only as dotted names in `classname`."""
    if case.get("file"):
        return case.get("file")
    parts = (case.get("classname") or case.get("name", "")).split(".")
    if "ipynb" in parts:
        end = parts.index("ipynb")
        return "/".join(parts[:end]) + ".ipynb"
    folders_and_module = [part for part in parts if not part[:1].isupper()]
    return "/".join(folders_and_module) + ".py"


def parse_start(text: str | None) -> datetime | None:
    """Return when a run began; times without a zone are those of this machine."""
    return datetime.fromisoformat(text).astimezone() if text else None


def read_report(path: Path) -> Report:
    """Read one JUnit XML file.

    Raises:
        ReportError: The file cannot be read, or is not a report of pytest's.
    """
    try:
        root = ElementTree.parse(path).getroot()
        suite = root if root.tag == "testsuite" else root.find("testsuite")
        if suite is None:
            raise ReportError(f"{path} has no testsuite: is it pytest's --junitxml?")
        tests = [
            TimedTest(test_file(case), case.get("name", ""), float(case.get("time", 0)))
            for case in suite.iter("testcase")
        ]
        started = parse_start(suite.get("timestamp"))
        return Report(path.name, tests, started, float(suite.get("time", 0)))
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise ReportError(
            f"{path} cannot be read as a JUnit report ({error}): run `make test` again."
        ) from None


def wall_seconds(reports: list[Report]) -> float:
    """Return the time from the first start to the last end; runs may overlap."""
    if any(report.started is None for report in reports):
        return sum(report.wall for report in reports)
    first = min(report.started for report in reports)
    last = max(report.started + timedelta(seconds=report.wall) for report in reports)
    return (last - first).total_seconds()


def print_files(tests: list[TimedTest]) -> None:
    """Print the seconds of each test file, the slowest file first."""
    files = defaultdict(list)
    for test in tests:
        files[test.file].append(test)

    def seconds(file: str) -> float:
        return sum(test.seconds for test in files[file])

    width = max(len(file) for file in files)
    print(f"{'file':<{width}} {'tests':>6} {'seconds':>9}  slowest test")
    for file in sorted(files, key=seconds, reverse=True):
        slowest = max(files[file], key=lambda test: test.seconds)
        print(
            f"{file:<{width}} {len(files[file]):>6} {seconds(file):>9.1f}"
            f"  {slowest.name} ({slowest.seconds:.1f})"
        )


def print_slowest(tests: list[TimedTest]) -> None:
    """Print the slowest tests."""
    slowest = sorted(tests, key=lambda test: test.seconds, reverse=True)[:SLOWEST]
    print(f"\n{'seconds':>9}  the {len(slowest)} slowest tests")
    for test in slowest:
        print(f"{test.seconds:>9.1f}  {test.file}::{test.name}")


def print_walls(reports: list[Report]) -> None:
    """Print the sum over the tests against the wall time, for each report and all."""
    width = max(len("all"), *(len(report.name) for report in reports))
    print(f"\n{'report':<{width}} {'sum':>9} {'wall':>9}  at once")
    rows = [(report.name, report.total, report.wall) for report in reports]
    total = sum(report.total for report in reports)
    rows.append(("all", total, wall_seconds(reports)))
    for name, seconds, wall in rows:
        at_once = f"{seconds / wall:.2f}" if wall else "-"
        print(f"{name:<{width}} {seconds:>9.1f} {wall:>9.1f}  {at_once:>7}")


def parse_arguments() -> argparse.Namespace:
    """Return what was asked for on the command line."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "reports",
        nargs="*",
        type=absolute_path,
        metavar="FILE.xml",
        help="a report of pytest's --junitxml (default: var/log/junit-*.xml)",
    )
    return parser.parse_args()


def main(paths: list[Path]) -> None:
    """Print the tables of some reports.

    Raises:
        ReportError: There is no report, one cannot be read, or they have no test.
    """
    paths = paths or sorted((ROOT / "var/log").glob("junit-*.xml"))
    if not paths:
        raise ReportError("There is no var/log/junit-*.xml: run `make test` first.")
    reports = [read_report(path) for path in paths]
    tests = [test for report in reports for test in report.tests]
    if not tests:
        raise ReportError("The reports have no test: run `make test` again.")
    print_files(tests)
    print_slowest(tests)
    print_walls(reports)


if __name__ == "__main__":
    try:
        main(parse_arguments().reports)
    except ReportError as error:
        sys.exit(str(error))
