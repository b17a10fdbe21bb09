"""The front page of `housemlops up`: the state of every service, and links."""

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from housemlops.core.files import read_optional_json, read_yaml
from housemlops.operations.process_family import family
from housemlops.operations.supervisor import Child, House
from housemlops.site.lifecycle_picture import lifecycle, lifecycle_svg
from housemlops.site.templates import show_number

WORDS = {
    "done": "ready",
    "well": "healthy",
    "starting": "starting",
    "waiting": "waiting",
    "crashed": "crashed",
    "ill": "not healthy",
}


def without_secrets(page: str) -> str:
    """An address without what follows its path.

    Args:
        page: URL.
    """
    return page.split("?")[0]


def card(house: House, child: Child, keyed: bool = False) -> dict:
    """One service as the page shows it, with the processes that belong to it.

    Args:
        keyed: Whether whoever asks may have secrets.

    Returns:
        What the page shows.
    """
    service = child.service
    parts = [other for other in house.children if other.service.of == service.name]
    said = (
        ""
        if child.state in ("well", "done", "starting")
        else child.trouble + (f" · log/{child.log.name}" if child.crashes else "")
    )
    word = "being built" if service.once and child.process else WORDS[child.state]
    memory = sum(house.memory.get(member.service.name, 0) for member in [child, *parts])
    return {
        "name": service.name,
        "title": service.title,
        "about": service.about,
        "page": service.page if keyed else without_secrets(service.page),
        "state": child.state,
        "word": word,
        "open": child.state in ("well", "done", "ill"),
        "said": said,
        "address": service.page.removeprefix("http://").split("/")[0],
        "memory": round(memory, -1) and f"{round(memory, -1):,.0f}",
        "crashes": child.crashes,
        "parts": [
            {"name": part.service.name, "state": part.state, "word": WORDS[part.state]}
            for part in parts
        ],
    }


def summary(house: House) -> tuple[str, str]:
    """The house in a few words.

    Returns:
        State for the colour, words.
    """
    shown = [child for child in house.children if child.service.health]
    well = [child for child in shown if child.state == "well"]
    bad = [child for child in house.children if child.state in ("ill", "crashed")]
    if bad:
        return "ill", f"{', '.join(child.service.name for child in bad)}: look below"
    waiting = [
        child for child in shown if child.service.follow and child.state == "waiting"
    ]
    if len(well) + len(waiting) < len(shown):
        return "starting", f"starting: {len(well)} of {len(shown)} healthy"
    return "well", "all healthy" if not waiting else "healthy, no champion yet"


def figures(run: Path) -> list[dict]:
    """The errors of the latest model against their thresholds, and what became of it.

    Args:
        run: Workspace of a finished run; need not exist.

    Returns:
        Label, value, note, state.
    """
    metrics, receipt = (
        read_optional_json(run / f"build/{name}.json")
        for name in ("evaluate/metrics", "promote/receipt")
    )
    model, limits = metrics.get("model", {}), metrics.get("thresholds", {})
    errors = [
        {
            "label": name.upper(),
            "value": show_number(model[name]),
            "state": "well" if model[name] <= limits[name] else "ill",
            "note": f"{'within' if model[name] <= limits[name] else 'above'} {show_number(limits[name])}",
        }
        for name in ("mae", "mse")
        if name in model and name in limits
    ]
    if not receipt:
        return errors
    version, promoted = receipt.get("champion_version"), receipt.get("promoted")
    return [
        *errors,
        {
            "label": "champion",
            "value": f"version {version}" if version else "none yet",
            "state": "well" if promoted else "ill",
            "note": "promoted by this run"
            if promoted
            else f"not promoted: {'; '.join(receipt.get('reasons', ()))}",
        },
    ]


def pages_of(workspace: Path, stages: list[str]) -> dict:
    """What a run left to read: executed notebooks, then the reports that stages wrote.

    Args:
        workspace: Of a run.
        stages: In order.

    Returns:
        Name, data, pages as (label, URL).
    """
    pages = {
        name: f"reports/{name}.html"
        for name in stages
        if (workspace / f"reports/{name}.html").exists()
    }
    reports = {
        f"{path.parent.name}: {path.stem}": f"build/{path.parent.name}/{path.name}"
        for path in sorted(workspace.glob("build/*/*.html"))
    }
    chosen = read_yaml(workspace / "params.yaml")
    return {
        "name": workspace.name,
        "data": f"{chosen['dataset']}, as of {chosen['as_of']}"
        if "as_of" in chosen
        else "",
        "pages": [
            (label, f"/runs/{workspace.name}/{path}")
            for label, path in {**pages, **reports}.items()
        ],
    }


def page_facts(house: House, keyed: bool = False) -> dict:
    """All that the page shows.

    Args:
        keyed: Whether whoever asks may have secrets.

    Returns:
        For the template.
    """
    state = house.chosen.paths.state
    stages, latest = list(lifecycle(house.root)), (state / "latest").resolve()
    folders = sorted(
        (state / "workspaces").glob("*/reports"),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    runs = [pages_of(folder.parent, stages) for folder in folders]
    airflow, (colour, words) = house.child("airflow"), summary(house)
    return {
        "cards": [
            card(house, child, keyed) for child in house.children if child.service.title
        ],
        "keyed": keyed,
        "summary": (colour, words),
        "picture": lifecycle_svg(house.root).replace('<a href="', '<a href="/site/'),
        "run": {**pages_of(latest, stages), "figures": figures(latest)}
        if latest.exists()
        else {},
        "ready": house.ready,
        "attention": colour == "ill",
        "airflow": airflow and airflow.service.page,
        "runs": [run for run in runs if run["pages"]],
        "months": sum(
            len([*(state / name).glob("????-??/run.json")])
            for name in ("history", "replay/history")
        ),
        "foot": f"{house.processes} processes, {round(sum(house.memory.values()), -1):,.0f} MB of memory",
    }


def front_html(house: House, keyed: bool = False) -> str:
    """The front page now.

    Args:
        keyed: Whether whoever asks may have secrets.

    Returns:
        A page.
    """
    from jinja2 import Environment, FileSystemLoader

    templates = Environment(
        loader=FileSystemLoader(house.root / "nbs/site"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("front.html.jinja").render(page_facts(house, keyed))


def status(house: House) -> dict:
    """What the supervisor knows, as values.

    Returns:
        For scripts.
    """
    return {
        "ready": house.ready,
        "state": summary(house)[0],
        "memory": house.memory,
        "processes": sorted(
            [os.getpid(), *(process.pid for process in family(house.mark))]
        ),
        "services": {
            child.service.name: {
                "state": child.state,
                "trouble": child.trouble,
                "page": without_secrets(child.service.page),
                "pid": child.process and child.process.pid,
            }
            for child in house.children
        },
    }


def find_report(workspaces: Path, path: str) -> Path | None:
    """The HTML file of a run that a URL names; nothing outside the workspaces, wherever links in them lead.

    Args:
        workspaces: Folder of all runs.
        path: From a URL.
    """
    try:
        found = (workspaces / path).resolve(strict=True)
        inside = found.is_relative_to(workspaces.resolve())
        return found if inside and found.suffix == ".html" and found.is_file() else None
    except (OSError, ValueError, RuntimeError):  # too long, no text, links in a circle
        return None


BUILDING = """<!doctype html><html lang="en"><meta charset="utf-8"><title>The site is being built</title>
<p>The site is being built. This page looks again every five seconds.</p></html>"""


def site_app(folder: Path):
    """The files of the site; before it is built, a page that says so and looks again.

    Args:
        folder: Of the site; need not exist yet.

    Returns:
        ASGI.
    """
    from starlette.responses import HTMLResponse
    from starlette.staticfiles import StaticFiles

    files = StaticFiles(directory=folder, html=True, check_dir=False)
    waiting = HTMLResponse(BUILDING, 503, {"Refresh": "5", "Retry-After": "5"})

    async def answer(scope, receive, send):
        built = (folder / "index.html").exists()
        await (files if built else waiting)(scope, receive, send)

    return answer


def front_app(house: House):
    """The front page, the site and the executed notebooks over HTTP.

    Returns:
        Starlette.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import FileResponse, HTMLResponse, JSONResponse
    from starlette.routing import Mount, Route

    state = house.chosen.paths.state
    private = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}

    def front(request):
        key = request.query_params.get("key", "")
        keyed = secrets.compare_digest(key.encode(), house.key.encode())
        return HTMLResponse(front_html(house, keyed), headers=private)

    def report(request):
        found = find_report(state / "workspaces", request.path_params["path"])
        if found is None:
            raise HTTPException(404)
        return FileResponse(found)

    routes = [
        Route("/", front),
        Route("/status", lambda request: JSONResponse(status(house))),
        Route("/runs/{path:path}", report),
        Mount("/site", site_app(state / "site")),
    ]
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
        ],
    )


@contextmanager
def front_door(
    house: House,
) -> Iterator[None]:
    "Serve the front page from a thread for as long as the block runs."
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(
            front_app(house),
            host="127.0.0.1",
            port=house.chosen.front.port,
            log_level="error",
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=3)
