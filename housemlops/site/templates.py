"""Fill the HTML templates of the site."""

import re
from pathlib import Path


def fill(
    root: Path,  # repository
    template: str,  # file in nbs/site
    /,
    **values,  # what the template names
) -> str:  # filled in
    "Fill in a template of the site."
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(root / "nbs/site")
    return (
        Environment(loader=loader, trim_blocks=True, lstrip_blocks=True)
        .get_template(template)
        .render(values)
    )


def show_number(
    value: float | int | list | None,  # a metric, or the two ends of a limit
) -> str:  # for people
    "A metric as people write it."
    if isinstance(value, list):
        return " to ".join(map(show_number, value))
    if not isinstance(value, (int, float)):
        return "–"
    if abs(value) >= 1e7:
        return f"{value / 1e6:,.0f} M"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


def percent(
    share: float | None,  # 0 to 1
) -> str:  # for people
    "A share as people write it."
    return "–" if share is None else f"{100 * share:.0f} %"


def offline(
    page: str,  # HTML
    icon: str = "../_static/logo.svg",  # from the page; empty for none
) -> str:  # HTML
    "Take out what a page would load from another host, and give it an icon."
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
