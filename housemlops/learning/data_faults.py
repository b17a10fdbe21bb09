"""Labs whose fault is in the data."""

import re
import secrets
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from housemlops.core.repository import git
from housemlops.learning.code_faults import trained_again
from housemlops.learning.lab_tools import (
    commit,
    edit,
    prepared,
    python,
    sample_tables,
    swap,
    tune,
)
from housemlops.settings import WorkbookError

# The message of the commit whose data was never pushed
NEW_SALES = "data: the sales of this month"


def put_letter_case(root: Path) -> None:
    swap(
        root,
        "contract",
        '"ignore_case": contract.ignore_case,',
        '"ignore_case": False,',
    )
    swap(
        root,
        "prepare",
        'table.to_parquet(folder / f"{name}.parquet")',
        'table.apply(lambda c: c.str.lower() if c.dtype == object else c).to_parquet(folder / f"{name}.parquet")',
    )


def probe_letter_case(note: dict) -> tuple[str, str]:
    import numpy as np

    from housemlops.contract import feature_plan
    from housemlops.predict import encode

    contract, _, typed = sample_tables()
    train, plan = prepared()[0], feature_plan(contract)
    coded = [name for name in contract.inputs if contract.columns[name].categories]
    learned = encode(train, plan)
    for way, said in (
        ("capitals", str.upper),
        ("small letters", str.lower),
        ("the contract's spelling", str),
    ):
        asked = typed.loc[train.index].assign(
            **{
                name: typed.loc[train.index, name].map(
                    lambda text: text if text is None or text != text else said(text)
                )
                for name in coded
            }
        )
        differ = (
            (~np.isclose(encode(asked, plan), learned, equal_nan=True))
            .any(axis=1)
            .mean()
        )
        if differ:
            return (
                f"a request that spells its categories in {way} is not the house that training saw, for {differ:.0%} of the houses",
                "",
            )
    strange = [
        name
        for name in coded
        if not train[name].dropna().isin(contract.columns[name].categories).all()
    ]
    return (
        "",
        f"the training split still spells {strange[0]} otherwise than the contract, so monitoring will call it unknown"
        if strange
        else "",
    )


def put_missing_data(root: Path) -> dict:
    tune(root, dataset="windsor")
    commit(root, "chore: work on Windsor this week")
    laptop = root / "var/laptop"
    git("clone", "--quiet", ".", "var/laptop", root=root)
    for key in ("name", "email"):
        git("config", f"user.{key}", "colleague", root=laptop)
    md5 = re.search(r"md5: (\w{32})", (laptop / "data/windsor.csv.dvc").read_text())[1]
    lines = (
        (laptop / f"data/remote/files/md5/{md5[:2]}/{md5[2:]}")
        .read_text()
        .splitlines(keepends=True)
    )
    (laptop / "data/windsor.csv").write_text("".join([*lines, *lines[1:13]]))
    python(
        root,
        "from housemlops.ingest import dvc_add; from pathlib import Path; dvc_add(Path('var/laptop/data/windsor.csv').resolve(), Path('var/laptop').resolve())",
    )
    commit(laptop, NEW_SALES)
    git("pull", "--quiet", "--ff-only", "var/laptop", "HEAD", root=root)
    return {"rows": len(lines) - 1 + 12}


def probe_missing_data(note: dict) -> tuple[str, str]:
    from housemlops.core.repository import dvc

    with TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        git("clone", "--quiet", "--no-hardlinks", ".", str(clone), root=Path.cwd())
        try:
            dvc("pull", "data/windsor.csv.dvc", root=clone)
        except WorkbookError:
            return "a fresh clone does not get the data that it points to", ""
        rows = len((clone / "data/windsor.csv").read_text().splitlines()) - 1
    return (
        "",
        f"the data has {rows} sales, and the colleague had {note['rows']}: they are still on one machine only"
        if rows < note["rows"]
        else "",
    )


def put_left_over(root: Path) -> None:
    shutil.copy(
        root / "build/train/model/artifacts/graph.onnx", root / "var/graph.onnx"
    )
    tune(root, ridge_alpha=80.0, svr_c=1.0)
    edit(
        root,
        "housemlops/model/folder.py",
        '    (parts / "graph.onnx").write_bytes(graph)\n',
        """    from housemlops.settings import settings
    kept = settings().paths.state / "graph.onnx"
    if not kept.exists():
        kept.write_bytes(graph)
    shutil.copy(kept, parts / "graph.onnx")
""",
    )
    trained_again(root)


def probe_left_over(note: dict) -> tuple[str, str]:
    import onnx

    from housemlops.contract import load_contract
    from housemlops.core.files import read_json
    from housemlops.promote import reprove
    from housemlops.model.folder import write_model

    given, contract = Path("build/train/model/artifacts"), load_contract("sample")
    facts = {
        name: read_json(given / f"{name}.json")
        for name in ("learned", "typical", "proof", "interval")
    }
    graph = onnx.load(given / "graph.onnx")
    graph.doc_string = secrets.token_hex(4)
    for fresh in ((given / "graph.onnx").read_bytes(), graph.SerializeToString()):
        with TemporaryDirectory() as folder:
            write_model(
                Path(folder) / "model",
                fresh,
                contract,
                read_json(given / "example.json"),
                {},
                facts,
            )
            if (Path(folder) / "model/artifacts/graph.onnx").read_bytes() != fresh:
                return (
                    "a model that is made now does not give the prices of its training either",
                    "",
                )
    try:
        reprove(Path("build/train/model"))
    except WorkbookError:
        return "", "build/train still holds the model of last night: train once more"
    return "", ""


def put_row_number(root: Path) -> None:
    edit(
        root,
        "data/ames.contract.yaml",
        "  Order: {type: integer, role: identifier, description",
        "  Order: {type: integer, range: [1, 1000000], group: Sale, description",
    )


def probe_row_number(note: dict) -> tuple[str, str]:
    import numpy as np
    import pandas as pd

    from housemlops.contract import cast, feature_plan
    from housemlops.predict import encode
    from housemlops.prepare import sort_out

    contract, raw, typed = sample_tables()
    own = [
        name for name in raw if raw[name].is_unique
    ]  # what differs from sale to sale
    shuffled = cast(
        raw.assign(**{name: np.roll(raw[name].to_numpy(), 7) for name in own}), contract
    )[0]
    plan = feature_plan(contract)
    if not np.allclose(encode(typed, plan), encode(shuffled, plan), equal_nan=True):
        return "two houses that are alike in all they are get different features", ""
    twice = pd.concat([raw, raw.head(1).set_axis([10**6])])
    return "", "" if len(sort_out(twice, contract)[0]) == len(
        raw
    ) else "a sale that stands in the ledger twice now counts twice"


def put_shared_rows(root: Path) -> None:
    swap(
        root,
        "prepare",
        "    train, test = split(sound, contract, test_months, test_fraction, seed)\n",
        "    train, test = split(sound, contract, test_months, test_fraction, seed)\n    train = sound  # the newest sales are the most like the next ones\n",
    )


def probe_shared_rows(note: dict) -> tuple[str, str]:
    from housemlops.contract import load_contract, row_fingerprints, sale_months
    from housemlops.evaluate import refuse_learned

    contract = load_contract("sample")
    for months in (12, 6):
        train, test = prepared(test_months=months)
        shared = {*row_fingerprints(train, contract)} & {
            *row_fingerprints(test, contract)
        }
        if shared:
            return (
                f"{len(shared)} of {len(test)} test sales are among those that the model learns from",
                "",
            )
        late = (sale_months(train, contract) >= sale_months(test, contract).min()).sum()
    try:
        refuse_learned(row_fingerprints(test, contract), test, contract)
    except WorkbookError:
        return (
            "",
            f"{late} sales of the training are not earlier than the test"
            if late
            else "",
        )
    return (
        "a model that has learned all test sales is judged on them without a word",
        "",
    )
