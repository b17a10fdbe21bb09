"""Answer the two pages, a form and Swagger, each with a content security policy."""

import base64
import hashlib
import html
import re
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

from housemlops.serving.dependencies import CurrentServer

router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)


def hash_source(text: str) -> str:
    """Return the hash of a script or style, as a content security policy names it."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def own_hash(page: str, tag: str) -> str:
    """Return the hash of the last inline script or style, which is the page's own."""
    texts = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return hash_source(texts[-1]) if texts else "'none'"


def page_policy(page: str) -> str:
    """Return the policy of the page at `/`, which asks only its own server."""
    return (
        f"default-src 'none'; style-src {own_hash(page, 'style')}; "
        f"script-src {own_hash(page, 'script')}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


def swagger_page(title: str, root: str) -> tuple[str, str]:
    """Return Swagger's page below the path `root`, and its policy."""
    root = quote(root)
    files = f"{root}/static-offline-docs"
    response = get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title=html.escape(title),
        swagger_js_url=f"{files}/swagger-ui-bundle.js",
        swagger_css_url=f"{files}/swagger-ui.css",
        swagger_favicon_url=f"{files}/favicon.png",
    )
    page = response.body.decode()
    policy = (
        "default-src 'none'; style-src 'self' 'unsafe-inline'; "
        f"script-src 'self' {own_hash(page, 'script')}; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return page, policy


def answer_page(page: str, policy: str) -> HTMLResponse:
    """Answer with a page and its policy."""
    return HTMLResponse(page, headers={"Content-Security-Policy": policy})


@router.get("/", summary="A form for people")
async def home_page(server: CurrentServer):
    page = (server.home / "page.html").read_text(encoding="utf-8")
    return answer_page(page, page_policy(page))


@router.get("/swagger", summary="This description, for people")
async def swagger(request: Request):
    title = f"{request.app.title} - Swagger UI"
    page, policy = swagger_page(title, request.scope.get("root_path", ""))
    return answer_page(page, policy)
