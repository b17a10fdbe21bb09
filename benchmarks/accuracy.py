"""How accurate is the blend, on the same sales and folds as other models?

    .venv/bin/python benchmarks/accuracy.py                # half an hour to an hour on two cores
    .venv/bin/python benchmarks/accuracy.py split windsor  # two of the protocols
    .venv/bin/python benchmarks/accuracy.py --quick        # one split in time against a ridge: a few minutes

split    trained before 2009-01, tested on the 989 later sales
rolling  each quarter from 2009 Q1 to 2010 Q3, by a model trained on every earlier sale
folds    KFold(10, shuffle=True, random_state=0) over all 2,930 sales
windsor  ten folds over the 546 sales of Windsor

It prints a table for each protocol: RMSLE, MAE, R² and the seconds of one fit, for our blend and for each peer, and how far ours is ahead.
Every model is fitted to the logarithm of the price. RMSLE is the root mean square of its errors, MAE is in money. A difference is
ours less the peer's, so that below zero is ahead; beside it the middle 95 % of 2,000 paired bootstrap resamples of the sales, and
"real" where that interval leaves zero out. On Ames the type and condition of the sale are features here, as in
everybody's figures; production knows neither before the sale, and the row "ours, known before the sale" is the model it uses.

It needs the tables of Ames and Windsor, which it fetches with DVC when they are missing. LightGBM, XGBoost and CatBoost are compared when they are
installed (`make .venv/.benchmarks`); a peer that is not installed is named and left out.
"""

import argparse
import time
import warnings

from lib.checkout import fetch_table, make_parser, run_benchmark

DATASETS = {"split": "ames", "rolling": "ames", "folds": "ames", "windsor": "windsor"}


def parse_protocol(text: str) -> str:
    """Return the name of a protocol; anything else is wrong usage."""
    if text not in DATASETS:
        raise argparse.ArgumentTypeError(
            f"there is no protocol {text!r}; choose from {', '.join(DATASETS)}"
        )
    return text


def parse_arguments() -> argparse.Namespace:
    """Return what was asked for on the command line."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "protocols",
        nargs="*",
        type=parse_protocol,
        metavar="protocol",
        help=f"some of {', '.join(DATASETS)}; all when none is named",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only a ridge as the peer, and only `split` when no protocol is named",
    )
    return parser.parse_args()


def main(arguments: argparse.Namespace) -> None:
    """Run the protocols that were asked for, and print a table for each."""
    began = time.perf_counter()
    named = arguments.protocols or (["split"] if arguments.quick else [*DATASETS])
    for dataset in sorted({DATASETS[protocol] for protocol in named}):
        fetch_table(dataset)

    from lib.accuracy_protocols import PEERS, missing_modules, run_protocol

    warnings.filterwarnings("ignore")
    peers = {"ridge": PEERS["ridge"]} if arguments.quick else PEERS
    for module in missing_modules(peers):
        print(
            f"{module} is not installed, so its rows stay empty: `make .venv/.benchmarks` installs it.",
            flush=True,
        )
    for protocol in named:
        run_protocol(protocol, peers)
    print(f"\n{(time.perf_counter() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    run_benchmark(main, parse_arguments())
