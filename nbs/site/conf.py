"""Sphinx configuration of the documentation site; `housemlops.site.build.build_docs` stages the pages and calls Sphinx."""

import re
from pathlib import Path

import fastapi  # noqa: F401  before autodoc imports it with TYPE_CHECKING set, which pydantic does not survive
from docutils.nodes import SkipNode
from sphinx.util.logging import getLogger

from housemlops.site.pages import docments_table, mathml, plain_rst

logger = getLogger(__name__)

project = "housemlops"
html_title = "housemlops"
author = "the housemlops contributors"
copyright = "the housemlops contributors, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
root_doc = "index"
default_role = "py:obj"
exclude_patterns = ["files"]

nb_execution_mode = "off"  # the pages show what the notebooks stored
nb_ipywidgets_js = {}  # no request to another host
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the table of docments shows them
autodoc_default_options = {
    "members": True,
    "undoc-members": True,
    "exclude-members": "model_config, set_fit_request, set_predict_request, set_score_request, set_transform_request",
}
add_module_names = False
python_display_short_literal_types = True

html_theme = "pydata_sphinx_theme"
html_static_path = ["static"]
html_css_files = ["site.css", "history.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_logo = html_favicon = "static/logo.svg"
html_show_sourcelink = False
html_copy_source = True  # the search shows excerpts of it
html_context = {"default_mode": "auto"}
html_sidebars = {
    "index": [],
    "data": [],
    "months": [],
    "evidence": [],
    "contribute": [],
}
html_theme_options = {
    "logo": {"text": "housemlops", "alt_text": "housemlops, home"},
    "show_prev_next": True,
    "show_nav_level": 2,
    "collapse_navigation": True,
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": {"**": ["page-toc"], "index": [], "months": []},
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def math(block):
    "A visitor that writes a formula as MathML, which browsers draw without a script."

    def visit(self, node):
        try:
            self.body.append(mathml(node.astext(), block))
        except Exception as error:
            logger.warning(
                "the formula %s cannot be drawn: %s",
                node.astext(),
                error,
                location=node,
            )
        raise SkipNode

    return visit, None


def document(app, what, name, obj, options, lines):
    "Escape a docstring, which is not written in reStructuredText, and add the table of its docments."
    lines[:] = [*plain_rst(lines), "", *docments_table(obj)]


def speaking(app, name, template, context, doctree):
    "For screen readers: an empty header cell, as stands above an index, heads nothing and becomes a plain one; a frame gets a title."
    body = re.sub(
        r"<th\b([^>]*)>(?:\s|&nbsp;|</?p>)*</th>",
        r"<td\1></td>",
        context.get("body", ""),
    )
    if body:
        context["body"] = re.sub(
            r"<iframe (?![^>]*\btitle=)", '<iframe title="output of the cell" ', body
        )


def named_toggles(app, error):
    "Give the arrows of the menu a name for screen readers."
    bare, named = (
        '<summary><span class="toctree-toggle"',
        '<summary aria-label="pages below"><span class="toctree-toggle"',
    )
    for path in Path(app.outdir).rglob("*.html"):
        if bare in (text := path.read_text(encoding="utf-8")):
            path.write_text(text.replace(bare, named), encoding="utf-8")


def setup(app):
    "Connect them to Sphinx."
    app.add_html_math_renderer("mathml", math(block=False), math(block=True))
    app.config.html_math_renderer = "mathml"
    app.connect("autodoc-process-docstring", document)
    app.connect("html-page-context", speaking)
    app.connect("build-finished", named_toggles)
