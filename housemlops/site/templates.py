"""Fill the HTML templates of the site."""

import re
from pathlib import Path


def fill(root: Path, template: str, /, **values) -> str:
    """Fill in a template of the site.

    Args:
        root: Repository.
        template: File in nbs/site.
        **values: What the template names.

    Returns:
        Filled in.
    """
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(root / "nbs/site")
    return (
        Environment(loader=loader, trim_blocks=True, lstrip_blocks=True)
        .get_template(template)
        .render(values)
    )


def show_number(value: float | int | list | None) -> str:
    """A metric as people write it.

    Args:
        value: A metric, or the two ends of a limit.

    Returns:
        For people.
    """
    if isinstance(value, list):
        return " to ".join(map(show_number, value))
    if not isinstance(value, (int, float)):
        return "–"
    if abs(value) >= 1e7:
        return f"{value / 1e6:,.0f} M"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


def percent(share: float | None) -> str:
    """A share as people write it.

    Args:
        share: 0 to 1.

    Returns:
        For people.
    """
    return "–" if share is None else f"{100 * share:.0f} %"


def offline(page: str, icon: str = "../_static/logo.svg") -> str:
    """Take out what a page would load from another host, and give it an icon.

    Args:
        page: HTML.
        icon: From the page; empty for none.

    Returns:
        HTML.
    """
    silent = re.sub(
        r"""(?is)<script[^>]*\ssrc=["']https?://[^>]*>\s*</script>|<link[^>]*\shref=["']https?://[^>]*>""",
        "",
        page,
    )
    return re.sub(
        "(?i)<head>",
        f'<head><link rel="icon" href="{icon or "data:,"}">',
        silent,
        count=1,
    )
