"""`vlm serve [SCAN...]`: talk with scans in a browser, or over HTTP from any program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    scans: Annotated[
        list[Path] | None, typer.Argument(metavar="[SCAN]...", help="scans, or folders of them; others are uploaded")
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen on; there are no passwords")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8080,
    any_path: Annotated[bool, typer.Option("--any-path", help="also open scans outside those named")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="fewer overlapping windows")] = False,
    model: Annotated[str, typer.Option(help="a model that ships, or a folder")] = "default",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Serve scans with a page to ask about them and a JSON API (listed in vlm/infer/server.py). Ctrl-C ends it."""
    import contextlib
    import ipaddress
    import socket
    import sys
    import tempfile

    from seg_backbone.errors import ConfigError

    try:
        import uvicorn

        from vlm.infer.server import make_app
    except ImportError as error:
        raise ConfigError("vlm serve", "FastAPI", str(error), "pip install 'flare-vlm[serve]'") from None
    from vlm.infer.engine import Engine
    from vlm.infer.shelf import Shelf, scans_of

    served = {scan: scans_of(scan) for scan in scans or []}  # a wrong path is told before the models load
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family)
    except OSError as error:
        found = error.strerror or str(error)
        raise ConfigError(f"{host}:{port}", "a free port", found, "choose another --host or --port") from None
    loopback = ipaddress.ip_address(address[0]).is_loopback
    with listener, tempfile.TemporaryDirectory(prefix="vlm-serve-") as folder:
        shelf = Shelf(Engine.load(model, device), served, Path(folder), any_path, fast)
        app = make_app(shelf, loopback)
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5)
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{listener.getsockname()[1]} (scans: {len(shelf.entries)}; Ctrl-C ends)", flush=True)
        if not loopback:
            print("note: whoever reaches this address can see the scans", file=sys.stderr)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
