"""Turn notebooks into pages of the site."""

import ast
import inspect
import io
import json
import os
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterable
from pathlib import Path

DIRECTIVE = re.compile(r"^#\s*\|\s*(\w+).*\n?", re.MULTILINE)


def plot_words(source: str, heading: str) -> str:
    """What a plot is about: its heading, and the titles that are drawn into it.

    Args:
        source: Code that draws.
        heading: Above it.

    Returns:
        Alternative text.
    """

    def said(node):
        return "".join(
            part.value if isinstance(part, ast.Constant) else "…"
            for part in getattr(node, "values", [node])
        )

    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    titles = [
        word.value for call in calls for word in call.keywords if word.arg == "title"
    ]
    titles += [
        call.args[0]
        for call in calls
        if getattr(call.func, "attr", "").endswith("title") and call.args
    ]
    found = [text for text in map(said, titles) if re.search(r"\w{3}", text)]
    return "Plot. " + ": ".join(filter(None, [heading, "; ".join(found)]))


def page_cell(
    cell: dict, prose: Callable[[str], str], heading: str = ""
) -> dict | None:
    """A cell as the site shows it: without directives, tagged when it is exported.

    Args:
        cell: Of a notebook.
        prose: What to do with text.
        heading: The last one above it.

    Returns:
        The cell of the page, or nothing.
    """
    if cell["cell_type"] != "code":
        return {**cell, "source": prose(cell["source"])}
    directives = set(DIRECTIVE.findall(cell["source"]))
    source = DIRECTIVE.sub("", cell["source"]).strip("\n")
    if "hide" in directives or not source:
        return None
    exported = ["exported"] if directives & {"export", "exports", "exporti"} else []
    drawn = any(
        kind.startswith("image/")
        for output in cell.get("outputs", ())
        for kind in output.get("data", ())
    )
    told = {"mystnb": {"image": {"alt": plot_words(source, heading)}}} if drawn else {}
    return {
        **cell,
        "source": source,
        "metadata": {"tags": [*cell["metadata"].get("tags", []), *exported], **told},
    }


def exported_names(root: Path) -> dict[str, str]:
    """Every name that the package exports and that cannot be an ordinary word.

    Args:
        root: Repository.

    Returns:
        Name -> dotted name.
    """
    found = {}
    for path in sorted((root / "housemlops").glob("[!_]*.py")):
        listed = re.search(
            r"__all__ = (\[.*?\])", path.read_text(encoding="utf-8"), re.DOTALL
        )
        names = ast.literal_eval(listed[1]) if listed else ()
        found |= {
            name: f"housemlops.{path.stem}.{name}"
            for name in names
            if "_" in name or name != name.lower()
        }
    return found


def link_names(text: str, names: dict[str, str]) -> str:
    """Turn an exported name in backticks into a link to its API entry; headings stay plain.

    Args:
        text: Markdown.
        names: Name -> dotted name.

    Returns:
        Markdown.
    """

    def link(match):
        return (
            f"{{py:obj}}`{match[1]} <{names[match[1]]}>`"
            if match[1] in names
            else match[0]
        )

    return re.sub(
        r"(?m)^#.*$|(?<![\[`}])`(\w+)`(?!`)", lambda m: link(m) if m[1] else m[0], text
    )


def site_anchor(anchor: str) -> str:
    """The anchor of a heading: lower case, letters, digits and hyphens.

    Args:
        anchor: As JupyterLab writes it, with #, or empty.

    Returns:
        As the site writes it.
    """
    return "#" + re.sub(r"[^\w-]", "", anchor).lower() if anchor else ""


def site_target(name: str) -> str:
    """A page for a notebook and for the data page, a copy for any other file.

    Args:
        name: Of a file, from the root of the repository.

    Returns:
        What the site offers in its place.
    """
    if name == "data/README.md":
        return "data.md"
    return (
        name.removeprefix("nbs/")
        if re.fullmatch(r"nbs/(exercises/)?\w+\.ipynb", name)
        else f"path:files/{name}"
    )


def link_files(text: str, folder: Path, root: Path) -> str:
    """Point the links of a text at pages of the site, or at copies of files.

    Args:
        text: Markdown.
        folder: Where the text was written.
        root: Repository.

    Returns:
        Markdown.
    """
    up = (
        "../" * len(folder.relative_to(root / "nbs").parts)
        if folder.is_relative_to(root / "nbs")
        else ""
    )

    def link(match):
        label, target, anchor = match[1], match[2], site_anchor(match[3] or "")
        path = Path(os.path.normpath(folder / target))
        if "://" in target or not path.is_relative_to(root) or not path.exists():
            return match[0]
        if not target:
            return f"[{label}]({anchor})"
        page = site_target(path.relative_to(root).as_posix())
        return (
            label
            if path.is_dir()
            else f"[{label}]({page.replace('path:', f'path:{up}') if 'path:' in page else up + page}{anchor})"
        )

    return re.sub(r"(?<!!)\[([^\]]*)\]\((?!\))([^)#\s]*)(#[^)\s]*)?\)", link, text)


def inline_picture(text: str, svg: str) -> str:
    """Replace a reference to the committed picture by the picture.

    Args:
        text: Markdown.
        svg: The lifecycle.

    Returns:
        Markdown with a block of HTML.
    """
    figure = f'\n\n```{{raw}} html\n<div class="lifecycle-figure" tabindex="0">{svg}</div>\n```\n\n'
    return re.sub(r"!\[[^\]]*\]\(site/lifecycle\.svg\)", lambda match: figure, text)


def title_and_summary(notebook: dict) -> tuple[str, str]:
    """The title of a notebook and the sentence below it.

    Args:
        notebook: Parsed JSON.

    Returns:
        Without the marks of markdown.
    """
    text = "".join(notebook["cells"][0]["source"])
    title, summary = (
        re.search(mark, text, re.MULTILINE)
        for mark in (r"^# (.*)$", r"^> (.*(?:\n> .*)*)$")
    )
    return title[1] if title else "", summary[1].replace("\n> ", " ") if summary else ""


def read_notebook(path: Path) -> dict:
    """A notebook as its JSON says.

    Args:
        path: An .ipynb file.

    Returns:
        With every source as one string.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def comments_by_line(source: str) -> dict[int, str]:
    """The comments of a source text.

    Args:
        source: Python.

    Returns:
        Line, from 1 -> comment.
    """
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def written_arguments(
    node: ast.FunctionDef | ast.ClassDef,
) -> list[tuple[str, ast.expr | None, ast.expr | None, int]]:
    """Arguments of a function, or annotated fields of a class.

    Args:
        node: Definition.

    Returns:
        Name, type, default, line.
    """
    if isinstance(node, ast.ClassDef):
        return [
            (field.target.id, field.annotation, field.value, field.end_lineno)
            for field in node.body
            if isinstance(field, ast.AnnAssign)
        ]
    plain, only = [*node.args.posonlyargs, *node.args.args], node.args.kwonlyargs
    stars = [arg for arg in (node.args.vararg, node.args.kwarg) if arg]
    defaults = [
        *[None] * (len(plain) - len(node.args.defaults)),
        *node.args.defaults,
        *node.args.kw_defaults,
        *[None] * len(stars),
    ]
    found = [
        (arg.arg, arg.annotation, default, arg.end_lineno)
        for arg, default in zip([*plain, *only, *stars], defaults)
    ]
    returned = (
        [("returns", node.returns, None, node.returns.end_lineno)]
        if node.returns
        else []
    )
    return [
        argument for argument in found if argument[0] not in ("self", "cls")
    ] + returned


def docments_rows(obj: object) -> list[tuple[str, str, str, str]]:
    """What the comments beside its parameters say of a function or class.

    Args:
        obj: Function or class.

    Returns:
        Name, type, default, meaning.
    """
    try:
        source = textwrap.dedent(inspect.getsource(obj))
    except (OSError, TypeError):
        return []
    node, notes = ast.parse(source).body[0], comments_by_line(source)
    if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return []
    arguments = written_arguments(node)
    lines = [line for *_, line in arguments]

    def text(part):
        return ast.unparse(part) if part is not None else ""

    return [
        (
            name,
            text(kind),
            text(default),
            notes.get(line, "") if lines.count(line) == 1 else "",
        )
        for name, kind, default, line in arguments
    ]


def plain_rst(lines: Iterable[str]) -> list[str]:
    """Escape plain text for reStructuredText; names in backticks stay marked.

    Args:
        lines: Of a docstring.

    Returns:
        Of reStructuredText.
    """

    def line(text):
        return re.sub(
            r"`([^`]+)`|([*|_\\`])",
            lambda m: f"`{m[1]}`" if m[1] else f"\\{m[2]}",
            text,
        )

    return [line(text) for text in lines]


def docments_table(obj: object) -> list[str]:
    """The parameters of a function as a table of names, types, defaults and meanings.

    Args:
        obj: Function or class.

    Returns:
        Lines of reStructuredText, none when there is nothing to say.
    """
    rows = docments_rows(obj)
    if not rows:
        return []

    def code(text):
        return f":code:`{text}`".replace("\\", "\\\\") if text else ""

    cells = [
        (f"**{plain_rst([name])[0]}**", code(kind), code(default), plain_rst([note])[0])
        for name, kind, default, note in rows
    ]
    table = [("parameter", "type", "default", "meaning"), *cells]
    lines = [
        f"   {'* -' if i == 0 else '  -'} {value}".rstrip()
        for row in table
        for i, value in enumerate(row)
    ]
    return [
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "   :class: docments",
        "",
        *lines,
        "",
    ]


def mathml(formula: str, block: bool) -> str:
    """Translate a formula for browsers.

    Args:
        formula: LaTeX.
        block: On a line of its own.

    Returns:
        An element of MathML.
    """
    from docutils.utils.math.latex2mathml import tex2mathml

    text = tex2mathml(formula, as_block=block).replace("&ApplyFunction;", "\u2061")
    accented = r"<munderover>\s*(<mi>\w</mi>)\s*(<m[in]>\w</m[in]>)\s*(<mo stretchy=\"false\">[ˆ˜‾¯→]</mo>)\s*</munderover>"
    return re.sub(accented, r"<msub><mover accent='true'>\1\3</mover>\2</msub>", text)
