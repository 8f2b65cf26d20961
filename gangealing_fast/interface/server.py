# SPDX-License-Identifier: Apache-2.0
"""What the page asks the studio for by itself: pictures, edits, points. Everything is of the browser that asks."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote

import torch
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response

from gangealing_fast.applications.blending import Blend
from gangealing_fast.applications.propagating import edit_of
from gangealing_fast.interface import films, pictures
from gangealing_fast.interface.config import StudioConfig
from gangealing_fast.interface.pictures import Picture
from gangealing_fast.interface.runs import SHOWN, Runs
from gangealing_fast.interface.sessions import Desk, Desks, Workbenches
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import picture_bytes, write_bytes

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "studio"
EDIT = 1024
"""Longer side of what is dropped on a template, at most."""
LARGEST_EDIT = 2048
POINTS = 16
"""Points that are carried at a time."""
_EDIT_BYTES = 16 << 20
_KINDS = {".js": "text/javascript", ".css": "text/css"}
_QUALITY = 90


@dataclass
class Studio:
    """Everything that is served."""

    config: StudioConfig
    desks: Desks
    benches: Workbenches
    runs: Runs
    limits: dict[str, int]

    def of(self, request: Request) -> Desk:
        """The desk of the browser that asks."""
        return self.desks.of(request.scope["state"]["key"])


def limits_of(config: StudioConfig) -> dict[str, int]:
    """Bytes of a body, by the beginning of the path that takes it."""
    file = config.megabytes * 1_000_000
    return {"/studio/pictures": file, "/studio/video": file, "/studio/stamp": file, "/studio/edit": _EDIT_BYTES}


Endpoint = Callable[[Studio, Desk, Request, bytes], Any]


def add_routes(app: FastAPI, studio: Studio) -> None:
    """Enter what the page asks for."""
    uploads = asyncio.Semaphore(2)  # so that bodies of many browsers do not add up in memory

    def add(path: str, endpoint: Endpoint, method: str) -> None:
        async def answer(request: Request) -> Response:
            if method == "GET":
                return await run_in_threadpool(_answer, studio, endpoint, request, b"")
            async with uploads:
                try:
                    body = await request.body()
                except ClientDisconnect:
                    return Response(status_code=400)
                return await run_in_threadpool(_answer, studio, endpoint, request, body)

        app.add_route(f"/studio/{path}", answer, methods=[method])

    for path, endpoint in _GET.items():
        add(path, endpoint, "GET")
    for path, endpoint in _POST.items():
        add(path, endpoint, "POST")
    for file in sorted(ASSETS.iterdir()):
        if file.suffix in _KINDS:
            app.add_route(f"/studio/{file.name}", _asset(file, _KINDS[file.suffix]), methods=["GET"])


def _asset(path: Path, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return FileResponse(path, media_type=kind)

    return answer


def _answer(studio: Studio, endpoint: Endpoint, request: Request, body: bytes) -> Response:
    """What an endpoint returns; a user's mistake as one sentence.

    The page shows that sentence. It comes with the status of a success, as browsers note any other one as a fault of the page.
    """
    status = 200 if request.method == "POST" else 404
    try:
        found = endpoint(studio, studio.of(request), request, body)
    except UserError as error:
        return JSONResponse({"error": str(error)}, status_code=status)
    except MemoryError:
        return JSONResponse({"error": "there is not enough memory for this; use smaller pictures"}, status_code=status)
    return found if isinstance(found, Response) else JSONResponse(found)


def _number(request: Request, name: str, low: float, high: float, default: float) -> float:
    text = request.query_params.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise UserError(f"{name} must be a number from {low:g} to {high:g}")
    return value


def _name(request: Request) -> str:
    return unquote(request.headers.get("x-name", ""))[:1000] or "picture"


def _png(values: torch.Tensor) -> Response:
    return Response(picture_bytes(values), media_type="image/png")


def _jpeg(values: torch.Tensor) -> Response:
    return Response(picture_bytes(values, file_format="jpeg", quality=_QUALITY), media_type="image/jpeg")


# ---- what there is


def state(studio: Studio, desk: Desk, request: Request, body: bytes) -> dict[str, Any]:
    """Everything that the page shows at first, and after a change."""
    clip = desk.clip
    return {
        "drawn": desk.drawn,
        "clusters": desk.bench.clusters,
        "edited": sorted(desk.edits),
        "opacity": desk.opacity,
        "blend": desk.blend,
        "examples": desk.bench is studio.desks.bench and studio.config.data is None,
        "room": studio.config.pictures - len(desk.pictures),
        "most": studio.config.pictures,
        "megabytes": studio.config.megabytes,
        "pictures": [_about(picture) for picture in desk.pictures],
        "video": None
        if clip is None
        else {"name": clip.name, "frames": clip.frames, "seconds": clip.seconds, "strip": [_about(one) for one in clip.strip]},
    }


def _about(picture: Picture) -> dict[str, Any]:
    return {"key": picture.key, "name": picture.name, "width": picture.size[0], "height": picture.size[1], "own": picture.own}


def collection(studio: Studio, desk: Desk, request: Request, body: bytes) -> list[dict[str, Any]]:
    """How each picture stands, in the order of the pictures."""
    rows = []
    for picture in list(desk.pictures):
        standing = desk.standing(picture)
        rows.append(
            _about(picture)
            | {
                "score": standing.score,
                "likeness": standing.likeness,
                "confidence": standing.confidence,
                "outlier": standing.outlier,
                "cluster": desk.bench.cluster(picture),
            }
        )
    return rows


def preview(studio: Studio, desk: Desk, request: Request, body: bytes) -> Response:
    return Response(desk.picture(request.path_params["key"]).preview_bytes(), media_type="image/png")


def aligned(studio: Studio, desk: Desk, request: Request, body: bytes) -> Response:
    return _jpeg(desk.bench.aligned(desk.picture(request.path_params["key"])))


def edited(studio: Studio, desk: Desk, request: Request, body: bytes) -> Response:
    picture = desk.picture(request.path_params["key"])
    return _jpeg(desk.bench.edited(picture, dict(desk.edits), desk.opacity, desk.blend))


def template(studio: Studio, desk: Desk, request: Request, body: bytes) -> Response:
    number = request.path_params["number"]
    if number not in desk.templates():
        raise UserError("there is no such template")
    return _png(desk.templates()[number])


def drawing(studio: Studio, desk: Desk, request: Request, body: bytes) -> Response:
    """The edit as it was drawn, to go on with it after the page was loaded again."""
    number = request.path_params["number"]
    if number not in desk.edits:
        raise UserError("nothing is drawn on this template")
    return FileResponse(desk.edit_file(number), media_type="image/png")


def made(studio: Studio, desk: Desk, request: Request, body: bytes) -> Response:
    """A file that was made for this browser."""
    name = request.path_params["name"]
    path = desk.made.get(name)
    if path is None or not path.exists():
        return JSONResponse({"error": "there is no such file on this page any more"}, status_code=404)
    return FileResponse(path, filename=name, content_disposition_type="inline" if name.endswith(".mp4") else "attachment")


def of_run(studio: Studio, desk: Desk, request: Request, body: bytes) -> Response:
    """A picture or the report of a run."""
    name, file = request.path_params["name"], request.path_params["file"]
    job = studio.runs.job(name, desk.key)
    path = studio.runs.folder(job.name) / file
    if not SHOWN.fullmatch(file) or not path.is_file():
        return JSONResponse({"error": "there is no such file"}, status_code=404)
    return FileResponse(path, headers={"cache-control": "private, max-age=3600"} if file.endswith(".png") else None)


# ---- what is changed


def add_picture(studio: Studio, desk: Desk, request: Request, body: bytes) -> dict[str, Any]:
    """One uploaded picture. `X-Count` says how many are to come in all, so that too many are refused before the first is kept."""
    count = request.headers.get("x-count", "1")
    wanted = int(count) if count.isdigit() and len(count) < 10 else 1
    with desk.lock:
        room = studio.config.pictures - len(desk.pictures)
        if max(wanted, 1) > room:
            raise UserError(f"{wanted} pictures are too many: there is room for {max(room, 0)} more of {studio.config.pictures}")
    found = pictures.uploaded(body, _name(request), desk.folder, studio.config.megapixels)
    with desk.lock:
        if len(desk.pictures) >= studio.config.pictures or desk.gone:
            found.remove()
            raise UserError(f"there is room for {studio.config.pictures} pictures; remove some first")
        own = sum(picture.own for picture in desk.pictures)
        desk.pictures.insert(own, found)
        desk.changed()
    return _about(found)


def remove(studio: Studio, desk: Desk, request: Request, body: bytes) -> dict[str, Any]:
    """Take pictures away: `own`, `examples` or one by its key; `all` starts over, with the first aligner."""
    what = request.query_params.get("what", "")
    with desk.lock:
        if what == "all":
            gone = list(desk.pictures)
            desk.pictures = list(studio.desks.start)
            desk.bench = studio.desks.bench
            _drop_video(desk)
        elif what in ("own", "examples"):
            gone = [picture for picture in desk.pictures if picture.own == (what == "own")]
            desk.pictures = [picture for picture in desk.pictures if picture.own != (what == "own")]
        else:
            gone = [desk.picture(what)]
            desk.pictures = [picture for picture in desk.pictures if picture is not gone[0]]
        own = [picture for picture in gone if picture.own]
        desk.bench.forget(own)
        for picture in own:
            picture.remove()
        desk.changed(aligner=what == "all")
    return state(studio, desk, request, b"")


def _drop_video(desk: Desk) -> None:
    if desk.clip is not None:
        desk.bench.forget(desk.clip.strip)
        shutil.rmtree(desk.clip.path.parent, ignore_errors=True)
        desk.clip = None


def add_video(studio: Studio, desk: Desk, request: Request, body: bytes) -> dict[str, Any]:
    """An uploaded video in place of the one before."""
    found = films.uploaded(body, _name(request), desk.folder, studio.config.frames)
    with desk.lock:
        _drop_video(desk)
        desk.clip = found
    return state(studio, desk, request, b"")


def add_stamp(studio: Studio, desk: Desk, request: Request, body: bytes) -> Response:
    """A picture that was dropped on the template, as a PNG that the page draws."""
    return Response(pictures.stamp(body, _name(request), studio.config.megapixels, EDIT), media_type="image/png")


def draw(studio: Studio, desk: Desk, request: Request, body: bytes) -> dict[str, Any]:
    """What is drawn on a template now, a PNG with transparency; no body if it is empty."""
    number = int(_number(request, "cluster", 0, desk.bench.clusters - 1, 0))
    if body:
        width, height = pictures.check_size(body, "the edit", 1000)
        if max(width, height) > LARGEST_EDIT:
            raise UserError(f"the edit is {width}x{height}, but at most {LARGEST_EDIT} pixels a side are drawn")
        edit = edit_of(body, "the edit")
        with desk.lock:
            write_bytes(desk.edit_file(number), body)
            desk.edits[number] = edit
            desk.drawn += 1
    else:
        with desk.lock:
            desk.edits.pop(number, None)
            desk.drawn += 1
    return {"drawn": desk.drawn, "edited": sorted(desk.edits)}


def show(studio: Studio, desk: Desk, request: Request, body: bytes) -> dict[str, Any]:
    """How edits are laid over pictures."""
    opacity = _number(request, "opacity", 0, 1, desk.opacity)
    how: Blend = next((known for known in get_args(Blend) if known == request.query_params.get("blend")), desk.blend)
    with desk.lock:
        desk.opacity, desk.blend = opacity, how
        desk.drawn += 1
    return {"drawn": desk.drawn}


def carry(studio: Studio, desk: Desk, request: Request, body: bytes) -> dict[str, Any]:
    """Points of one picture, in [0, 1], carried to others: {"picture": key or "template", "points": [[x, y]], "others": [keys]}."""
    try:
        asked = json.loads(body)
        source, others = str(asked["picture"]), [str(key) for key in asked["others"]][:2000]
        points = torch.tensor(asked["points"], dtype=torch.float32).reshape(-1, 2)
    except (ValueError, KeyError, TypeError, RuntimeError, RecursionError):
        raise UserError("points are pairs of numbers from 0 to 1") from None
    if len(points) > POINTS or not ((points >= 0) & (points <= 1)).all():
        raise UserError(f"at most {POINTS} points are carried at a time, each from 0 to 1")
    bench = desk.bench
    if source == "template":
        cluster, places, sure = None, points, torch.ones(len(points))
    else:
        picture = desk.picture(source)
        cluster = bench.cluster(picture)
        places, sure = bench.to_template(picture, points)
    found: dict[str, Any] = {}
    sureness: dict[str, float] = {}
    known = {picture.key: picture for picture in desk.pictures}
    for other in [known[key] for key in others if key in known]:
        same = cluster is None or bench.cluster(other) == cluster
        there, back = bench.from_template(other, places)
        confidence = (sure * back) if same else torch.zeros_like(sure)
        found[other.key] = _rows(there, confidence)
        of_set = bench.known(other)
        if of_set is not None:
            sureness[other.key] = of_set[0]
    return {"template": _rows(places, sure), "others": found, "pictures": sureness}


def _rows(points: torch.Tensor, confidence: torch.Tensor) -> list[list[float] | None]:
    """[x, y, confidence] of each point, None where there is none."""
    rows = torch.cat([points, confidence[:, None]], 1)
    return [[round(value, 5) for value in row] if all(map(math.isfinite, row)) else None for row in rows.tolist()]


_GET: dict[str, Endpoint] = {
    "state": state,
    "collection": collection,
    "preview/{key}": preview,
    "aligned/{key}": aligned,
    "edited/{key}": edited,
    "template/{number:int}": template,
    "drawing/{number:int}": drawing,
    "made/{name}": made,
    "run/{name}/{file}": of_run,
}
_POST: dict[str, Endpoint] = {
    "pictures": add_picture,
    "remove": remove,
    "video": add_video,
    "stamp": add_stamp,
    "edit": draw,
    "show": show,
    "points": carry,
}
