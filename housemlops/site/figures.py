"""Turn matplotlib figures into SVG that suits light and dark pages."""

import re
from html import escape
from io import StringIO

# Name of a colour -> its value on a light and on a dark page.
COLOURS = {
    "primary": ("#0f6b5c", "#5ccdb6"),
    "accent": ("#a8451b", "#f09a6c"),
    "text": ("#1d2326", "#eef3f2"),
    "muted": ("#566268", "#a9b6b8"),
    "grid": ("#d9dfdd", "#35413d"),
    "pale": ("#b9c4c1", "#55645f"),
    "paper": ("#fefefe", "#14181e"),
}
LIGHT = {name: light for name, (light, _) in COLOURS.items()}


def new_figure(width: float, height: float):
    """Return an empty figure of a size in inches, without a background."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor="none")


def colour_variables(dark: bool) -> str:
    """Return the declarations of all colours as CSS variables."""
    return " ".join(f"--{name}: {pair[dark]};" for name, pair in COLOURS.items())


def style_sheet() -> str:
    """Return CSS that follows the theme of the page or of the operating system."""
    light, dark = colour_variables(False), colour_variables(True)
    return (
        f".figure {{ {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ .figure {{ {dark} }} }}\n"
        f'html[data-theme="light"] .figure {{ {light} }}\n'
        f'html[data-theme="dark"] .figure {{ {dark} }}\n'
        ".figure a:hover path { opacity: 0.75; }\n"
        ".figure * { stroke-linejoin: round; }\n"
        ".figure { font-variant-numeric: tabular-nums; }\n"
    )


def label_link(svg: str, address: str, label: str) -> str:
    """Give a link of a picture a name, which browsers also show as a tooltip."""
    before = f'<a xlink:href="{escape(address)}" target="_blank">'
    name = escape(label)
    after = f'<a href="{escape(address)}" tabindex="-1" aria-label="{name}">'
    return svg.replace(before, f"{after}<title>{name}</title>")


def figure_svg(
    figure, title: str, description: str, links: dict[str, str] | None = None
) -> str:
    """Return a figure as an SVG element.

    The result is the same for the same figure: it holds no date, no random identifier
    and no metadata.

    Args:
        figure: Drawn in colours of `LIGHT`, which become CSS variables.
        title: Name of the picture for screen readers.
        description: What the picture shows, for screen readers.
        links: Address of a link in the figure -> its label.
    """
    from matplotlib import rc_context

    text = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    settings = {
        "font.sans-serif": ["DejaVu Sans"],
        "svg.fonttype": "none",
        "svg.hashsalt": "housemlops",
    }
    with rc_context(settings):
        figure.savefig(text, format="svg", metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg ") :]
    # A style inside would apply to the whole page.
    svg = re.sub(r"<defs>\s*<style.*?</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"\s*\n\s*(?=[LMQCz\"])", " ", svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    for name, value in LIGHT.items():
        svg = svg.replace(value, f"var(--{name})")
    for address, label in (links or {}).items():
        svg = label_link(svg, address, label)
    size = re.search(r'viewBox="[^"]*"', svg)[0]
    body = svg[svg.index(">") + 1 :].strip()
    head = (
        f'<svg class="figure" xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink" {size} role="group" '
        f'aria-label="{escape(title)}">'
    )
    return (
        f"{head}\n<desc>{escape(description)}</desc>\n"
        f"<style>\n{style_sheet()}</style>\n{body}\n"
    )
