"""Build the documentation site with Sphinx."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from housemlops.operations.timeline import read_months
from housemlops.settings import (
    WorkbookError,
    file_sha256,
    folder_sha256,
    repo_root,
    settings,
    whole_folder,
)
from housemlops.site.content import all_pages, gather, stamps, write_pages
from housemlops.site.timeline_page import write_month_pages


def sphinx(folder: Path, out: Path, root: Path):
    """Let Sphinx make the site; its first warning becomes the error.

    Args:
        folder: Holds `source` and `extra`.
        out: Receives the site.
        root: Repository.
    """
    import housemlops

    code = os.pathsep.join([str(root), str(Path(housemlops.__file__).parents[1])])
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-N",
        "-W",
        "--keep-going",
        "-j",
        "auto",
        "-b",
        "html",
        "-c",
        root / "nbs/site",
        "-d",
        folder / "doctrees",
        "-D",
        f"html_extra_path={folder / 'extra'}",
        folder / "source",
        out,
    ]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": code}, capture_output=True, text=True
    )
    if done.returncode:
        said = done.stderr.replace(f"{folder / 'source'}/", "").strip()
        raise WorkbookError(f"The site was not built, because Sphinx warns:\n{said}")


def fingerprint(folder: Path, root: Path) -> str:
    """What the site is made from, as one hash.

    Args:
        folder: Staged pages.
        root: Repository.

    Returns:
        SHA-256.
    """
    for path in [*root.glob("housemlops/*.py"), *root.glob("nbs/site/**/*")]:
        if path.is_file() and "__pycache__" not in path.parts:
            copy = folder / "sources" / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(file_sha256(path))
    return folder_sha256(folder)


def build_docs(
    out: Path | str | None = None,
    run: Path | str | None = None,
    root: Path | str | None = None,
) -> Path:
    """Build the documentation site, unless it is up to date.

    Args:
        out: The site; `site` in the state folder when not given.
        run: Workspace of a finished run; the latest when not given.
        root: Repository; found when not given.

    Returns:
        The site; open its index.html.
    """
    root = Path(root or repo_root()).resolve()
    state = settings(root).paths.state
    site, run = Path(out or state / "site").resolve(), Path(run or state / "latest")
    state.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="docs-", dir=state) as scratch:
        house = gather(root, run)
        write_pages(all_pages(house), house["reports"], Path(scratch), root)
        (Path(scratch) / "months.txt").write_text(stamps(house["histories"]))
        mark = fingerprint(Path(scratch), root)
        if (site / "built-from.txt").is_file() and (
            site / "built-from.txt"
        ).read_text() == mark:
            return site
        style = (root / "nbs/site/static/history.css").read_text(encoding="utf-8")
        for name, path in house["histories"].items():
            write_month_pages(
                path,
                read_months(path),
                Path(scratch) / f"extra/months/{name}",
                style,
                icon="../../_static/logo.svg",
            )
        with whole_folder(site) as draft:
            sphinx(Path(scratch), draft, root)
            (draft / "built-from.txt").write_text(mark)
    return site
