"""Do the intervals hold across time? Train on the sales before a month, test on those of the months after it, again and again.

    .venv/bin/python benchmarks/intervals.py              # seven origins, five to ten minutes on two cores
    .venv/bin/python benchmarks/intervals.py 2009-01:19   # one: trained before 2009-01, tested on the nineteen months from then on
    .venv/bin/python benchmarks/intervals.py --quick      # the first of the seven: a few minutes

It prints a table for each origin, with coverage and width, in percent. Each line is a method on the same model: errors of the training sales out of
fold, with one width for all in logs or in dollars; quantile regression, calibrated on held-out sales (CQR); and ours, as the stage `train`
makes it. Coverage should be 90 %, overall and in each third of the price that was paid; width is the mean of high less low, as a share of the
predicted and of the paid price.

It needs the table of Ames, which it fetches with DVC when it is missing.
"""

import argparse
import re
import warnings

from lib.checkout import fetch_table, make_parser, run_benchmark

ORIGINS = [
    ("2009-01", 19),
    ("2009-08", 12),
    ("2008-01", 12),
    ("2008-07", 12),
    ("2009-01", 12),
    ("2009-07", 12),
    ("2010-01", 12),
]


def parse_origin(text: str) -> tuple[str, int]:
    """Return the first month of the test and its number of months."""
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2]):[1-9]\d{0,2}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a month and a number of months, such as 2009-01:19"
        )
    month, count = text.split(":")
    return month, int(count)


def parse_arguments() -> argparse.Namespace:
    """Return what was asked for on the command line."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "origins",
        nargs="*",
        type=parse_origin,
        metavar="YYYY-MM:MONTHS",
        help="first month of the test, and how many months it has",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one origin when none is named"
    )
    return parser.parse_args()


def main(arguments: argparse.Namespace) -> None:
    """Print the table of each origin, and the mean over them."""
    table = fetch_table("ames")

    from lib.interval_methods import compare_methods

    warnings.filterwarnings("ignore")
    standard = ORIGINS[:1] if arguments.quick else ORIGINS
    compare_methods(table, arguments.origins or standard)


if __name__ == "__main__":
    run_benchmark(main, parse_arguments())
