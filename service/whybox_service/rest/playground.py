"""The pages for people: the playground at ``/`` and Swagger UI at ``/docs``, with all their files.

Everything comes from this service: the pages work offline, and their Content-Security-Policy lets them load
from and talk to nowhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response

from whybox_proto.errors import ContractError, shorten
from whybox_service.calls import Call
from whybox_service.metrics import Observation
from whybox_service.rest.exchange import Answer

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_HEADERS = {
    # A copy may be kept, and is asked about each time: the ETag says whether it still holds.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class File:
    """A file as it is served; `tag` is its ETag."""

    body: bytes
    media_type: str
    tag: str


def pages() -> Iterator[tuple[str, str, Answer]]:
    """Yield the path, the operation's name and the answer of every page and folder of files."""
    yield "/", "playground", _page("index.html")
    yield "/playground/{file}", "playground", _folder(_own_files)
    yield "/docs", "docs", _page("docs.html")
    yield "/docs/{file}", "docs", _folder(_docs_files)


def _page(name: str) -> Answer:
    async def answer(request: Request, _call: Call, _observation: Observation) -> Response:
        return _respond(request, _own_files()[name])

    return answer


def _folder(files: Callable[[], dict[str, File]]) -> Answer:
    async def answer(request: Request, _call: Call, _observation: Observation) -> Response:
        name = request.path_params["file"]
        file = files().get(name)
        if file is None or name.endswith(".html"):
            path = shorten(request.url.path)
            raise ContractError("not_found", f"there is nothing at {path}", got=path)
        return _respond(request, file)

    return answer


def _respond(request: Request, file: File) -> Response:
    headers = {**_HEADERS, "ETag": file.tag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")]
    if file.tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers=headers, media_type=file.media_type)


@cache
def _own_files() -> dict[str, File]:
    """Read the playground's files, by name."""
    folder = resources.files("whybox_service") / "playground"
    return {file.name: _read(file) for file in folder.iterdir() if _media_type(file)}


@cache
def _docs_files() -> dict[str, File]:
    """Read what Swagger UI consists of, by name; `fastapi_offline` has it as package data."""
    folder = resources.files("fastapi_offline") / "static"
    swagger = {name: _read(folder / name) for name in ("swagger-ui.css", "swagger-ui-bundle.js")}
    return {**swagger, "docs.js": _own_files()["docs.js"]}


def _media_type(file: Traversable) -> str:
    _, dot, suffix = file.name.rpartition(".")
    return MEDIA_TYPES.get(dot + suffix, "")


def _read(file: Traversable) -> File:
    body = file.read_bytes()
    return File(body, _media_type(file), f'"{hashlib.sha256(body).hexdigest()[:32]}"')
