"""Write the pages of the site, for Sphinx to build."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from housemlops.learning.reading import notebook_groups, notebook_table
from housemlops.operations.timeline import read_months
from housemlops.pipeline.graph import graph, loops
from housemlops.settings import settings
from housemlops.site.evidence import (
    cards,
    claims,
    decided,
    handovers,
    read_run,
    released,
    tools,
    unlicensed,
)
from housemlops.site.interface import field_rows, interface, routes
from housemlops.site.lifecycle_picture import lifecycle, lifecycle_svg
from housemlops.site.package_picture import (
    describe_packages,
    package_svg,
    find_imports,
    read_layers,
)
from housemlops.site.pages import (
    exported_names,
    inline_picture,
    link_files,
    link_names,
    page_cell,
    read_notebook,
    title_and_summary,
)
from housemlops.site.templates import fill, offline, show_number
from housemlops.site.timeline_page import history_body


def run_pages(run: Path) -> dict[str, Path]:
    """The HTML pages that a run left behind: executed notebooks and reports of its stages.

    Args:
        run: Workspace of a finished run.

    Returns:
        Name on the site -> file of the run.
    """
    executed = {
        f"latest/{path.name}": path for path in sorted(run.glob("reports/*.html"))
    }
    return executed | {
        f"latest/{path.parent.name}-{path.name}": path
        for path in sorted(run.glob("build/*/*.html"))
    }


def size_note(path: Path) -> str:
    """The size of a file that a reader should know before opening it.

    Args:
        path: A file.

    Returns:
        Empty below a megabyte.
    """
    size = path.stat().st_size / 1e6
    return f" ({size:.1f} MB)" if size > 1 else ""


def links_line(name: str, root: Path, pages: dict[str, Path], as_of: str) -> str:
    """Where else a page's subject can be found.

    Args:
        name: Of a notebook.
        root: Repository.
        pages: Of the latest run.
        as_of: Month of the latest run.

    Returns:
        Markdown.
    """
    up = "../" * name.count("/")
    links = [f"[notebook](path:{up}files/nbs/{name}.ipynb)"]
    if up:
        links.append(f"[the stage]({up}{Path(name).name}.ipynb)")
    if (root / f"nbs/exercises/{name}.ipynb").exists():
        links.append(f"[exercises](exercises/{name}.ipynb)")
    if (root / f"housemlops/{name}.py").exists():
        links.append(f"[API](api/{name}.md)")
    for page, path in pages.items():
        label = (
            f"executed on {as_of}"
            if page == f"latest/{name}.html"
            else path.stem
            if page.startswith(f"latest/{name}-")
            else ""
        )
        if label:
            links.append(f'<a href="{page}">{label}{size_note(path)}</a>')
    return ":::{container} page-links\n" + " · ".join(links) + "\n:::"


def histories(state: Path) -> dict[str, Path]:
    """The histories that have a month.

    Args:
        state: State folder.

    Returns:
        Name on the site -> history folder.
    """
    return {
        name: path
        for name, path in {
            "replay": state / "replay/history",
            "schedule": state / "history",
        }.items()
        if read_months(path)
    }


def stamps(folders: dict[str, Path]) -> str:
    """Names, sizes and times of the files of the histories.

    Args:
        folders: Of `histories`.

    Returns:
        A line for each file.
    """
    files = [
        (name, path.relative_to(folder).as_posix(), path.stat())
        for name, folder in folders.items()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return "".join(
        f"{name}/{path} {found.st_size} {found.st_mtime_ns}\n"
        for name, path, found in files
    )


def support_groups(root: Path) -> dict[str, list[str]]:
    """Return the notebooks that are no stage: heading of the index -> names."""
    stages = lifecycle(root)
    return {
        heading: [name for name in names if name not in stages]
        for heading, names in notebook_groups(root).items()
    }


def gather(root: Path, run: Path) -> dict:
    """What the pages are made from.

    Args:
        root: Repository.
        run: Workspace of the latest run; need not exist.

    Returns:
        Everything that the pages show.
    """
    stages, groups, facts, state = (
        lifecycle(root),
        support_groups(root),
        read_run(run),
        settings(root).paths.state,
    )
    practice = [
        f"exercises/{name}"
        for name in stages
        if (root / f"nbs/exercises/{name}.ipynb").exists()
    ]
    paths = [
        *sorted((root / "nbs").glob("*.ipynb")),
        *(root / f"nbs/{name}.ipynb" for name in practice),
    ]
    notebooks = {
        path.relative_to(root / "nbs").with_suffix("").as_posix(): read_notebook(path)
        for path in paths
    }
    support = [name for names in groups.values() for name in names]
    facts["decisions"] = decided(
        state / "promotions.jsonl", facts["receipt"].get("model_name")
    )
    return {
        "root": root,
        "notebooks": notebooks,
        "about": {name: title_and_summary(book) for name, book in notebooks.items()},
        "stages": stages,
        "needs": graph(stages),
        "loops": loops(stages),
        "groups": groups,
        "support": support,
        "practice": practice,
        "svg": lifecycle_svg(root),
        "names": exported_names(root),
        "interface": interface(run / "build/serve", state / "openapi"),
        "modules": [
            name
            for name in [*stages, *support]
            if (root / f"housemlops/{name}.py").exists()
        ],
        "facts": facts,
        "histories": histories(state),
        "as_of": facts["params"].get("as_of", ""),
        "reports": run_pages(run),
        "cards": cards(facts),
        "claims": claims(facts, stages, released(state)),
        "handovers": handovers(facts["lock"]),
        "packages": unlicensed(),
    }


def table_after(text: str, words: str) -> str:
    """The first table after some words.

    Args:
        text: Markdown.
        words: Which stand before the table.

    Returns:
        Markdown, empty when there is none below these words and above the next
            heading.
    """
    below = re.split(r"\n##? ", text.partition(words)[2])[0]
    return "\n".join(
        next(
            iter(re.findall(r"(?:^\|.*\|$\n?)+", below, re.MULTILINE)), ""
        ).splitlines()
    )


def helpers(house: dict) -> dict[str, Callable]:
    """What a page can ask for: a link to a notebook or a file, a test that proves a claim, the rows of another page's table.

    Args:
        house: What `gather` found.

    Returns:
        Name in a template -> function.
    """
    root, about = house["root"], house["about"]

    def notebook(name):
        return f"[{name}]({name}.ipynb)" if name in about else f"`{name}`"

    def file(path, shown):
        return f"[{shown}](path:files/{path})" if (root / path).is_file() else shown

    def proof(name, test):
        path = f"tests/{name}.py"
        return file(path, f"`{path}::{test}`")

    def cells(page, words):
        source = root / f"nbs/site/pages/{page}.md"
        table = table_after(source.read_text(encoding="utf-8"), words)
        return [
            [cell.strip(" *") for cell in line.strip("|").split("|")]
            for line in table.splitlines()[2:]
        ]

    return {"notebook": notebook, "file": file, "proof": proof, "cells": cells}


def notebook_page(name: str, house: dict) -> str:
    """The page of a notebook.

    Args:
        name: Of a notebook.
        house: What `gather` found.

    Returns:
        JSON of the page.
    """
    root, notebook = house["root"], house["notebooks"][name]

    def prose(text):
        return inline_picture(
            link_names(
                link_files(text, (root / f"nbs/{name}").parent, root), house["names"]
            ),
            house["svg"],
        )

    cells, title = [], name
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            title = (re.findall(r"(?m)^#+ (.+)$", cell["source"]) or [title])[-1]
        if page := page_cell(cell, prose, title):
            cells.append(page)
    below = (
        fill(root, "home.md.jinja", **house, **helpers(house))
        if name == "index"
        else links_line(name, root, house["reports"], house["as_of"])
    )
    heading = re.match(r"\s*# .*\n*(?:> .*\n?)*", cells[0]["source"])
    cut = heading.end() if heading else 0
    cells[0]["source"] = (
        f"{cells[0]['source'][:cut]}\n{below}\n\n{cells[0]['source'][cut:]}"
    )
    return json.dumps(
        {
            **notebook,
            "metadata": {
                "language_info": {"name": "python", "pygments_lexer": "ipython3"}
            },
            "cells": cells,
        }
    )


def page_table(pages: dict[str, tuple[str, str]], titled: bool = False) -> str:
    """A list of pages, and the part of the menu and of the reading order that they make.

    Args:
        pages: File name -> title and summary.
        titled: Call the pages by their titles, not by their names.

    Returns:
        Markdown.
    """
    short = {name: Path(name).stem for name in pages}
    rows = [
        f"| [{title}]({name}) | {summary} |"
        if titled
        else f"| [{short[name]}]({name}) | {title} | {summary} |"
        for name, (title, summary) in pages.items()
    ]
    menu = [name if titled else f"{short[name]} <{name}>" for name in pages]
    head = (
        ["| page | what it is about |", "|---|---|"]
        if titled
        else ["| page | title | what it is about |", "|---|---|---|"]
    )
    return "\n".join(
        [*head, *rows, "", "```{toctree}", ":hidden:", "", *menu, "```", ""]
    )


def api_page(name: str, title: str) -> str:
    """The reference page of a module.

    Args:
        name: Of a module.
        title: Of its notebook.

    Returns:
        Markdown.
    """
    words = f"Exported from the notebook [{title}](../{name}.ipynb), where each function is developed and tested."
    return f"# housemlops.{name}\n\n{words}\n\n```{{eval-rst}}\n.. automodule:: housemlops.{name}\n```\n"


def inlined(path: Path) -> str:
    """A committed picture, to be put into a page.

    Args:
        path: A picture; need not exist.

    Returns:
        SVG, empty when there is none.
    """
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def all_pages(house: dict) -> dict[str, str]:
    """Every page of the site as text.

    Args:
        house: What `gather` found.

    Returns:
        File name -> content.
    """
    root, about = house["root"], house["about"]
    data = root / "data/README.md"
    words = (
        link_files(data.read_text(encoding="utf-8"), data.parent, root)
        if data.exists()
        else "# Data\n\nNothing is written here yet."
    )
    sources = sorted((root / "nbs/site/pages").glob("*.md"))
    summaries = {
        path.stem: title_and_summary(
            {"cells": [{"source": path.read_text(encoding="utf-8")}]}
        )
        for path in sources
    }
    layers = read_layers(root)
    imports = find_imports(layers)
    values = {
        **house,
        **helpers(house),
        "summaries": summaries,
        "routes": routes(house["interface"]),
        "field_rows": field_rows,
        "port": settings(root).server.port,
        "layers": layers,
        "packages_svg": package_svg(layers, imports),
        "package_rows": describe_packages(layers, imports),
        "weights": notebook_table(root),
        "page_table": page_table,
        "show_number": show_number,
        "size_note": size_note,
        "tools": tools(root),
        "months": {
            name: history_body(
                path, read_months(path), root, f"months/{name}/", f"{name}-", level=3
            )
            for name, path in house["histories"].items()
        },
        "example": inlined(root / "nbs/site/history.svg"),
    }
    templates = {
        path.name: fill(root, f"pages/{path.name}", **values)
        for path in sources
        if path.stem != "practice" or house["practice"]
    }
    api = {
        f"api/{name}.md": api_page(name, about[name][0]) for name in house["modules"]
    }
    return {
        **{f"{name}.ipynb": notebook_page(name, house) for name in about},
        **api,
        **templates,
        "data.md": words,
        "files/openapi.json": json.dumps(house["interface"]),
    }


def write_pages(
    pages: dict[str, str], reports: dict[str, Path], folder: Path, root: Path
):
    """Write the sources of the site, the files they link to and the reports of the run.

    Args:
        pages: File name -> content.
        reports: Name on the site -> file of the run.
        folder: Receives `source` and `extra`.
        root: Repository.
    """
    copied = sorted(
        {
            name
            for text in pages.values()
            for name in re.findall(r"\(path:(?:\.\./)*files/([^)#\s]+)\)", text)
            if (root / name).is_file()
        }
    )
    files = {f"source/{name}": text.encode() for name, text in pages.items()}
    files |= {f"source/files/{name}": (root / name).read_bytes() for name in copied}
    files |= {
        f"source/site/static/{path.name}": path.read_bytes()
        for path in (root / "nbs/site/static").glob("*.webp")
    }
    files |= {
        f"extra/{name}": offline(
            path.read_text(encoding="utf-8", errors="replace")
        ).encode()
        for name, path in reports.items()
    }
    (folder / "extra").mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
