"""The front page of `housemlops up`: the state of every service, and links."""

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from housemlops.core.files import read_json, read_yaml
from housemlops.operations.supervisor import Supervisor
from housemlops.processes import marked_processes
from housemlops.site.lifecycle_picture import lifecycle, lifecycle_svg
from housemlops.site.templates import show_number

BUILDING = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>The site is being built</title>
<p>The site is being built. This page looks again every five seconds.</p></html>"""


def summary(supervisor: Supervisor) -> tuple[str, str]:
    """Return the state of all services together, and a few words about it."""
    failing = [
        child.service.name
        for child in supervisor.children
        if child.state in ("unhealthy", "crashed")
    ]
    if failing:
        return "unhealthy", f"{', '.join(failing)}: look below"
    checked = [child for child in supervisor.children if child.service.health]
    healthy = sum(child.state == "healthy" for child in checked)
    # The prediction server may wait for a first champion.
    waiting = [child.state == "waiting" for child in checked if child.service.follow]
    if healthy + sum(waiting) < len(checked):
        return "starting", f"starting: {healthy} of {len(checked)} healthy"
    return "healthy", "healthy, no champion yet" if any(waiting) else "all healthy"


def metric_rows(metrics: dict) -> list[dict]:
    """Return MAE and MSE of a model against their thresholds, as the page shows them.

    Args:
        metrics: Metrics of the stage evaluate; may be empty.
    """
    rows = []
    for name, limit in metrics.get("thresholds", {}).items():
        value = metrics["model"].get(name)
        if name in ("mae", "mse") and value is not None:
            within = value <= limit
            note = f"{'within' if within else 'above'} {show_number(limit)}"
            row = {"label": name.upper(), "value": show_number(value), "note": note}
            rows.append(row | {"state": "healthy" if within else "unhealthy"})
    return rows


def champion_row(receipt: dict) -> dict:
    """Return what became of a model, as the page shows it.

    Args:
        receipt: Receipt of the stage promote.
    """
    version, promoted = receipt.get("champion_version"), receipt.get("promoted")
    reasons = "; ".join(receipt.get("reasons", ()))
    return {
        "label": "champion",
        "value": f"version {version}" if version else "none yet",
        "state": "healthy" if promoted else "unhealthy",
        "note": "promoted by this run" if promoted else f"not promoted: {reasons}",
    }


def figures(run: Path) -> list[dict]:
    """Return the metrics of a finished run, and what became of its model."""
    rows = metric_rows(read_json(run / "build/evaluate/metrics.json", {}))
    receipt = read_json(run / "build/promote/receipt.json", {})
    return [*rows, champion_row(receipt)] if receipt else rows


def run_pages(workspace: Path, stages: list[str]) -> dict:
    """Return a run's executed notebooks, and then the reports that stages wrote.

    Args:
        workspace: Of a run.
        stages: In order.

    Returns:
        Name, data, and pages as (label, URL).
    """
    pages = {stage: f"reports/{stage}.html" for stage in stages}
    for path in sorted(workspace.glob("build/*/*.html")):
        label = f"{path.parent.name}: {path.stem}"
        pages[label] = path.relative_to(workspace).as_posix()
    params = read_yaml(workspace / "params.yaml")
    data = f"{params['dataset']}, as of {params['as_of']}" if "as_of" in params else ""
    address = f"/runs/{workspace.name}"
    return {
        "name": workspace.name,
        "data": data,
        "pages": [
            (label, f"{address}/{path}")
            for label, path in pages.items()
            if (workspace / path).exists()
        ],
    }


def front_html(supervisor: Supervisor, keyed: bool = False) -> str:
    """Render the front page.

    Args:
        supervisor: What the page is about.
        keyed: Whether the visitor may have secrets.
    """
    from jinja2 import Environment, FileSystemLoader

    root, state = supervisor.root, supervisor.chosen.paths.state
    stages, latest = list(lifecycle(root)), (state / "latest").resolve()
    reports = list((state / "workspaces").glob("*/reports"))
    reports.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    runs = [run_pages(folder.parent, stages) for folder in reports]
    months = [
        *state.glob("history/????-??/run.json"),
        *state.glob("replay/history/????-??/run.json"),
    ]
    templates = Environment(
        loader=FileSystemLoader(root / "nbs/site"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    run = {}
    if latest.exists():
        run = run_pages(latest, stages) | {"figures": figures(latest)}
    return templates.get_template("front.html.jinja").render(
        supervisor=supervisor,
        keyed=keyed,
        summary=summary(supervisor),
        picture=lifecycle_svg(root).replace('<a href="', '<a href="/site/'),
        run=run,
        runs=[run for run in runs if run["pages"]],
        months=len(months),
    )


def status(supervisor: Supervisor) -> dict:
    """Return what the supervisor knows, for scripts."""
    services = {}
    for child in supervisor.children:
        services[child.service.name] = {
            "state": child.state,
            "problem": child.problem,
            "page": child.service.page.split("?")[0],  # without its token
            "pid": child.process and child.process.pid,
        }
    started = [process.pid for process in marked_processes(supervisor.mark)]
    return {
        "ready": supervisor.ready,
        "state": summary(supervisor)[0],
        "memory": supervisor.memory,
        "processes": sorted([os.getpid(), *started]),
        "services": services,
    }


def find_report(workspaces: Path, path: str) -> Path | None:
    """Return the HTML file of a run that a URL names, wherever links lead.

    Args:
        workspaces: Folder of all runs; nothing outside of it is returned.
        path: From a URL.
    """
    try:
        file = (workspaces / path).resolve(strict=True)
        inside = file.is_relative_to(workspaces.resolve())
        return file if inside and file.suffix == ".html" and file.is_file() else None
    except (OSError, ValueError, RuntimeError):  # too long, no text, circular links
        return None


def site_app(folder: Path):
    """Return an ASGI app for the files of the site, or a note that it is being built.

    Args:
        folder: Of the site; need not exist yet.
    """
    from starlette.responses import HTMLResponse
    from starlette.staticfiles import StaticFiles

    files = StaticFiles(directory=folder, html=True, check_dir=False)
    building = HTMLResponse(BUILDING, 503, {"Refresh": "5", "Retry-After": "5"})

    async def app(scope, receive, send):
        built = (folder / "index.html").exists()
        await (files if built else building)(scope, receive, send)

    return app


def front_app(supervisor: Supervisor):
    """Return a Starlette app: the front page, the site and the executed notebooks."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import FileResponse, HTMLResponse, JSONResponse
    from starlette.routing import Mount, Route

    state = supervisor.chosen.paths.state
    private = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}

    def front(request):
        key = request.query_params.get("key", "")
        keyed = secrets.compare_digest(key.encode(), supervisor.key.encode())
        return HTMLResponse(front_html(supervisor, keyed), headers=private)

    def report(request):
        file = find_report(state / "workspaces", request.path_params["path"])
        if file is None:
            raise HTTPException(404)
        return FileResponse(file)

    routes = [
        Route("/", front),
        Route("/status", lambda request: JSONResponse(status(supervisor))),
        Route("/runs/{path:path}", report),
        Mount("/site", site_app(state / "site")),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    return Starlette(routes=routes, middleware=[hosts])


@contextmanager
def serve_front_page(supervisor: Supervisor) -> Iterator[None]:
    """Serve the front page from a thread for as long as the block runs."""
    import uvicorn

    config = uvicorn.Config(
        front_app(supervisor),
        host="127.0.0.1",
        port=supervisor.chosen.front.port,
        log_level="error",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=3)
