# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.studio` does: load, listen, tidy up behind itself."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import secrets
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gangealing_fast.congealing.folder import load_set
from gangealing_fast.interface import pictures
from gangealing_fast.interface.config import StudioConfig
from gangealing_fast.interface.guard import LOCAL, Guard
from gangealing_fast.interface.runs import Runs
from gangealing_fast.interface.sessions import Desks, Workbenches
from gangealing_fast.interface.workbench import Workbench
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.setup import set_threads
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.claims import held, write_record

if TYPE_CHECKING:
    import uvicorn

    from gangealing_fast.interface.server import Studio

COMMAND = "studio"
PACKAGED = Path(__file__).resolve().parent.parent / "assets" / "digits" / "aligner.safetensors"
"""The aligner that comes with the package; the README beside it says how it was made."""
SESSIONS = ".sessions"
SHORTEST_TOKEN = 16
_TIDY = 30.0


def token_of(config: StudioConfig) -> str:
    """What a browser has to know; "" for nothing. Raises UserError for a token that is too short or holds odd characters."""
    if config.token:
        if len(config.token) < SHORTEST_TOKEN or not all(c.isascii() and (c.isalnum() or c in "-_.~") for c in config.token):
            raise UserError(f"--token needs at least {SHORTEST_TOKEN} of the letters a to z, digits, and - _ . ~")
        return config.token
    return "" if config.host in LOCAL else secrets.token_urlsafe(24)


def run(config: StudioConfig) -> None:
    """Serve until Ctrl-C. Raises UserError for a user's mistakes."""
    need_gradio()
    token = token_of(config)
    set_threads(config.threads)
    data = config.data
    if data is not None and not data.exists():
        raise UserError(f"there is no file or folder {data}; give a folder of pictures as --data")
    with held(config.out, COMMAND, config, {"--data": data}), listening(config) as door:
        write_record(config.out, COMMAND, dataclasses.replace(config, token=""))  # which others may read
        with studio_of(config) as studio:
            serve(studio, door, token)


def need_gradio() -> None:
    """Raise UserError unless gradio is installed. It neither reports what it does nor looks for newer versions of itself."""
    for name, value in (("GRADIO_ANALYTICS_ENABLED", "False"), ("GRADIO_MCP_SERVER", "False")):
        os.environ[name] = value
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise UserError("the studio is built with the package gradio: pip install gangealing_fast[ui]") from None


@contextlib.contextmanager
def listening(config: StudioConfig) -> Iterator[socket.socket]:
    """A socket that listens where the options say. Raises UserError if it cannot."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((config.host, config.port))
            door.listen(64)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(
                f"cannot listen at {config.host}, port {config.port}: {reason}; give another --port or --host"
            ) from None
        yield door


@contextlib.contextmanager
def studio_of(config: StudioConfig) -> Iterator[Studio]:
    """Everything that is served, with its folder; what browsers left is removed before and after."""
    from gradio import Blocks  # noqa: F401 - before threads

    from gangealing_fast.interface.server import Studio, limits_of

    folder = config.out / SESSIONS
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(0o700, parents=True)  # no other user of the machine looks at uploads
    runs = Runs(config.out.resolve(), config.runs, config.threads)
    try:
        benches = Workbenches()
        bench = benches.of(config.checkpoint or PACKAGED)
        start = _first_pictures(config, bench, folder)
        desks = Desks(folder, config.sessions, 60.0 * config.idle_minutes, bench, start)
        print(f"{len(start)} pictures; looking at them", flush=True)
        bench.templates(start)
        yield Studio(config, desks, benches, runs, limits_of(config))
    finally:
        runs.stop_all()
        shutil.rmtree(folder, ignore_errors=True)


def _first_pictures(config: StudioConfig, bench: Workbench, folder: Path) -> list[pictures.Picture]:
    place = folder / "first"
    place.mkdir()
    if config.data is not None:
        return pictures.of_data(config.data, config.pictures, place)
    if config.checkpoint is None:
        return pictures.examples(place, min(config.pictures, pictures.EXAMPLES))
    if not bench.aligner.names:
        raise UserError(f"--checkpoint {config.checkpoint} needs --data too: pictures whose average is the template to draw on")
    source = Path(load_set(config.checkpoint).source)
    if not source.exists():
        raise UserError(f"the pictures of {config.checkpoint} are no longer in {source}; say with --data where they are")
    return pictures.of_data(source, config.pictures, place)


def application(studio: Studio, port: int, token: str) -> Guard:
    """The whole of what answers to browsers."""
    import gradio
    from fastapi import FastAPI

    from gangealing_fast.interface.page import HEAD, page_of, theme
    from gangealing_fast.interface.server import add_routes

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_routes(app, studio)
    page = page_of(studio, f"studio-{port}")
    options: dict[str, Any] = {"theme": theme(), "head": HEAD, "footer_links": [], "run_history": False, "pwa": False}
    closed = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = gradio.mount_gradio_app(
        app, page, "/", app_kwargs=closed, show_error=True, max_file_size=1, ssr_mode=False, mcp_server=False, **options
    )
    local = studio.config.host in LOCAL
    return Guard(app, port=port, hosts=LOCAL if local else None, token=token, limits=studio.limits)


def server_of(guard: Guard) -> uvicorn.Server:
    """A server that says nothing of single requests."""
    import uvicorn

    settings = uvicorn.Config(
        guard,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=256,
        timeout_graceful_shutdown=2,
        ws="none",
    )
    server = uvicorn.Server(settings)
    # Requests that are cut off when the studio is ended are no news.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
    return server


def serve(studio: Studio, door: socket.socket, token: str) -> None:
    """Answer to browsers until the process is interrupted."""
    port = door.getsockname()[1]
    server = server_of(application(studio, port, token))
    stopped = threading.Event()
    threading.Thread(target=_tidy, args=(studio, stopped), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda number, frame: setattr(server, "should_exit", True))
    host = f"[{studio.config.host}]" if ":" in studio.config.host else studio.config.host
    shown = socket.gethostname() if host in ("0.0.0.0", "[::]") else host
    print(f"open http://{shown}:{port}/" + (f"?token={token}" if token else ""), flush=True)
    if token:
        print("whoever knows this address can use the studio; it is not encrypted, so use it in a network that you trust")
    elif studio.config.host in LOCAL:
        print("only this machine is served; its other users could open this page too (--token keeps them out)")
    print(
        f"Ctrl-C ends the studio and interrupts its runs, which can be resumed; they are in {printable(studio.config.out)}",
        flush=True,
    )
    try:
        server.run(sockets=[door])
    finally:
        stopped.set()


def _tidy(studio: Studio, stopped: threading.Event) -> None:
    while not stopped.wait(_TIDY):
        studio.desks.tidy()
