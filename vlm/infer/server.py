"""The shelf over HTTP: a JSON API and one page to talk with a scan. A mistake is {"error": one line}, never a crash.

    GET    /api                              model, question types
    GET    /api/scans                        those served, and uploads
    POST   /api/scans {"path"}               open one (a path that is served); also POST /api/uploads, a form's `file`
    GET    /api/scans/ID                     grid, modality, instances
    DELETE /api/scans/ID                     close and forget
    POST   /api/scans/ID/ask                 {"question", "type", "options", "unit"} -> an answer of the contract
    GET    /api/scans/ID/mask                the mask as NIfTI
    GET    /api/scans/ID/slice?plane&index&overlay      one slice as PNG
    POST   /api/sessions {"scan": ID}        a conversation; GET lists its turns, DELETE ends it
    POST   /api/sessions/ID/ask {"question"} a question or follow-up -> {"question", "asked", "answer"}

There are no users and no passwords: it listens on this machine alone unless told otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI, HTTPException, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException as StarletteError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seg_backbone.errors import InputError
from vlm.infer.shelf import OutsideError, Shelf, UnknownError
from vlm.schema import TYPES

PAGE = Path(__file__).with_name("viewer") / "index.html"
LARGEST_BODY = 1 << 20  # bytes of a request
LARGEST_UPLOAD = 4 << 30
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
Json = Annotated[dict[str, Any], Body()]
STATUS = {UnknownError: 404, OutsideError: 403}
HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline'; img-src 'self' data:",
    "Cache-Control": "no-store",
}


def make_app(shelf: Shelf, loopback: bool = True) -> FastAPI:
    """The application. loopback: answer only to requests that name this machine, whatever page sent them."""
    app = FastAPI(title="flare-vlm", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, loopback=loopback)

    @app.exception_handler(InputError)
    def mistake(_: Request, error: InputError) -> JSONResponse:
        return _error(STATUS.get(type(error), 400), str(error))

    @app.exception_handler(RequestValidationError)
    def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _error(400, f"request: expected a valid {'.'.join(map(str, first['loc']))}, found {first['msg']}")

    @app.exception_handler(StarletteError)
    def refused(_: Request, error: StarletteError) -> JSONResponse:
        return _error(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    def failed(_: Request, error: Exception) -> JSONResponse:
        return _error(500, f"{type(error).__name__}: {error}")

    @app.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=HEADERS)

    @app.get("/api")
    def about() -> dict[str, Any]:
        return {"model": shelf.engine.version, "types": list(TYPES), "scans": len(shelf.entries)}

    @app.get("/api/scans")
    def scans() -> list[dict[str, Any]]:
        return [entry.to_json() | {"open": entry.id in shelf.opened} for entry in list(shelf.entries.values())]

    @app.post("/api/scans")
    def open_scan(body: Json) -> dict[str, Any]:
        return shelf.describe(shelf.add(_text(body, "path")).id)

    @app.post("/api/uploads")
    def upload(file: UploadFile) -> dict[str, Any]:
        return shelf.describe(shelf.upload(file.filename or "", file.file).id)

    @app.get("/api/scans/{id}")
    def describe(id: str) -> dict[str, Any]:
        return shelf.describe(id)

    @app.delete("/api/scans/{id}")
    def remove(id: str) -> dict[str, Any]:
        shelf.remove(id)
        return {"removed": id}

    @app.post("/api/scans/{id}/ask")
    def ask(id: str, body: Json) -> dict[str, Any]:
        return shelf.ask(id, body).to_json()

    @app.get("/api/scans/{id}/mask")
    def mask(id: str) -> FileResponse:
        path = shelf.mask(id)
        return FileResponse(path, media_type="application/gzip", filename=path.name)

    @app.get("/api/scans/{id}/slice")
    def slice(id: str, plane: str = "axial", index: int | None = None, overlay: bool = True) -> Response:
        return Response(shelf.slice(id, plane, index, overlay), media_type="image/png", headers=HEADERS)

    @app.post("/api/sessions")
    def talk(body: Json) -> dict[str, Any]:
        id = _text(body, "scan")
        return {"session": shelf.talk(id), "scan": id}

    @app.get("/api/sessions/{key}")
    def turns(key: str) -> list[dict[str, Any]]:
        return [turn.to_json() for turn in shelf.turns(key)]

    @app.post("/api/sessions/{key}/ask")
    def say(key: str, body: Json) -> dict[str, Any]:
        return shelf.say(key, body).to_json()

    @app.delete("/api/sessions/{key}")
    def forget(key: str) -> dict[str, Any]:
        shelf.forget(key)
        return {"removed": key}

    return app


class Guard:
    """Refuses what is too large, and on a loopback server what another site's page sends.

    A page of another site can reach a server on this machine through the user's browser, also under a name of its own
    that it points here (DNS rebinding); its requests name that host or carry that origin.
    """

    def __init__(self, app: ASGIApp, loopback: bool) -> None:
        self.app, self.loopback = app, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (ASGI)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key: value.decode("latin-1") for key, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        named = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if self.loopback and (named not in LOOPBACK or origin not in (None, f"http://{host}")):
            await _error(403, "request: expected one from this machine, found another host or origin")(
                scope, receive, send
            )
            return
        limit = LARGEST_UPLOAD if scope["path"] == "/api/uploads" else LARGEST_BODY
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise HTTPException(413, f"request: expected at most {limit >> 20} MiB, found more")
            return message

        await self.app(scope, counted, send)


def _error(status: int, line: str) -> JSONResponse:
    line = " ".join(line.split()).encode("utf-8", "replace").decode()  # half a surrogate pair cannot be sent
    return JSONResponse({"error": line}, status)


def _text(body: dict[str, Any], key: str) -> str:
    """A value that must be a string, fit for a file name."""
    value = body.get(key)
    if not isinstance(value, str) or "\0" in value or value != value.encode("utf-8", "replace").decode():
        raise HTTPException(400, f"request: expected {key} as a string, found {value!r}")
    return value
