"""What ``optimas watch`` serves unchanged: its page, the report of the run, and the files that the report names."""

from __future__ import annotations

import asyncio
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from optimas_jax.report.page.sections.use import FILES
from optimas_jax.report.watch.state import REPORT

HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
_TEMPLATES = Path(__file__).parent / "templates"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A report runs its own script, but has no origin, so that nothing in it can send requests to this server.
_REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_FILE_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'"


def routes(folder: Path, token: str) -> list[Route]:
    """Routes of everything that is served unchanged.

    Args:
      folder: of the run.
      token: sent back by the page with each of its requests.
    """
    page = _template("watch.html").replace("{{token}}", token)
    keeper = _template("keeper.js")

    async def index(request: Request) -> Response:
        return HTMLResponse(page, headers=HEADERS | {"content-security-policy": _POLICY})

    async def report(request: Request) -> Response:
        content = await asyncio.to_thread(_read, folder, REPORT)
        if content is None:
            return error(404, "the run has no report yet")
        text = content.decode("utf-8", "replace")
        head, tag, rest = text.partition("<head>")  # before the policy of the page, which allows only its own script
        body = f"{head}{tag}<script>{keeper}</script>{rest}" if tag else text
        return HTMLResponse(body, headers=HEADERS | {"content-security-policy": _REPORT_POLICY})

    async def file(request: Request) -> Response:
        name = request.url.path.removeprefix("/")
        content = await asyncio.to_thread(_read, folder, name)
        if content is None:
            return error(404, f"the run has no {name}")
        kind = "image/svg+xml" if name.endswith(".svg") else "text/plain"
        return Response(content, media_type=kind, headers=HEADERS | {"content-security-policy": _FILE_POLICY})

    return [
        Route("/", index),
        Route("/report", report),
        *(_own(name, kind) for name, kind in (("watch.js", "text/javascript"), ("watch.css", "text/css"))),
        *(Route(f"/{name}", file) for name in (*FILES, "evaluations/{label}.jsonl")),
    ]


def error(status: int, message: str) -> Response:
    """A refusal, with its reason."""
    return JSONResponse({"error": message}, status, headers=HEADERS)


def _own(name: str, kind: str) -> Route:
    """A file of the page."""
    return Route(f"/{name}", lambda request: Response(_template(name), media_type=kind, headers=HEADERS))


def _template(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _read(folder: Path, name: str) -> bytes | None:
    """The content of a file in a folder; None where there is no file, or its path leads out of the folder."""
    try:
        path = (folder / name).resolve()
        return path.read_bytes() if path.is_relative_to(folder.resolve()) else None
    except (OSError, ValueError):
        return None
