# SPDX-License-Identifier: Apache-2.0
"""The page: its tabs and controls by gradio; what is drawn and dragged by `assets/studio/*.js`.

No control carries a file: pictures go through `server.py`, so that gradio keeps none of them.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterator
from typing import Any

import gradio

from gangealing_fast.interface import exports, options
from gangealing_fast.interface.films import SMOOTHINGS, Rendering
from gangealing_fast.interface.options import OPTIONS, Choice
from gangealing_fast.interface.runs import Job
from gangealing_fast.interface.server import Studio
from gangealing_fast.interface.sessions import KEY, Desk
from gangealing_fast.report import line_plot
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_json_lines

HEAD = '<link rel="stylesheet" href="./studio/studio.css"><script type="module" src="./studio/studio.js"></script>'
CURVES, PAGES = 6, 256
_FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
_MONO = ("ui-monospace", "Consolas", "monospace")
_NOT_CURVES = {"step", "kimg", "seconds", "eta", "time"}


def theme() -> gradio.themes.Base:
    """Gradio's default with the fonts of the system: its own would come from elsewhere."""
    return gradio.themes.Default(font=list(_FONTS), font_mono=list(_MONO), primary_hue="teal", neutral_hue="slate")


def sentence(text: str, *, wrong: bool = False) -> str:
    """A sentence as the page shows it."""
    return f'<p class="studio-said{" studio-wrong" if wrong else ""}" role="status">{html.escape(text)}</p>' if text else ""


class Handlers:
    """What gradio's controls ask for. cookie: the name of the one that a browser is known by."""

    def __init__(self, studio: Studio, cookie: str) -> None:
        self._studio, self._cookie = studio, cookie
        self._shown: dict[str, str] = {}

    def desk(self, request: gradio.Request) -> Desk:
        """The desk of the browser that asks."""
        return self._studio.desks.of(self._key(request))

    def _key(self, request: gradio.Request) -> str:
        key = (request.cookies or {}).get(self._cookie, "")
        if not KEY.fullmatch(key):
            raise UserError("this page has lost its cookie; load it again")
        return key

    # ---- video, export

    def film(self, smooth: str, request: gradio.Request) -> Iterator[str]:
        """Make the whole video, saying how far it is."""
        try:
            desk = self.desk(request)
            rendering = Rendering(desk, smooth, self._studio.config.threads)
            while not rendering.done():
                yield sentence(f"making the video: {rendering.share()[:120] or 'starting'}")
                time.sleep(0.4)
            desk.keep("edited.mp4", rendering.result())
        except UserError as error:
            yield sentence(str(error), wrong=True)
            return
        place = f"./studio/made/edited.mp4?v={time.monotonic_ns()}"
        yield (
            f'<video class="studio-film" src="{place}" controls loop muted autoplay playsinline></video>'
            f'<p class="studio-said"><a href="{place}" download="edited.mp4">Download edited.mp4</a></p>'
        )

    def export(self, parts: list[str], side: float, request: gradio.Request) -> Iterator[str]:
        """Make a zip of all pictures, saying how far it is."""
        try:
            desk = self.desk(request)
            yield sentence("writing the zip")
            path = exports.export(desk, list(desk.pictures), parts, side=int(side))
        except UserError as error:
            yield sentence(str(error), wrong=True)
            return
        place = f"./studio/made/{exports.NAME}?v={time.monotonic_ns()}"
        size = path.stat().st_size / 1e6
        yield f'<p class="studio-said"><a href="{place}" download="{exports.NAME}">Download {exports.NAME}</a> ({size:.1f} MB)</p>'

    # ---- runs

    def lists(self, request: gradio.Request, chosen: str = "") -> tuple[Any, Any]:
        """The runs that may be watched, and those that can be learned from."""
        key = self._key(request)
        names = [job.name for job in self._studio.runs.seen_by(key)]
        teachers = [options.PACKAGE_DIGITS, options.PACKAGE_CATS, *self._studio.runs.teachers(key)]
        shown = chosen if chosen in names else (names[0] if names else None)
        return gradio.update(choices=names, value=shown), gradio.update(choices=teachers)

    def start(self, command: str, name: str, teacher: str, *values: Any) -> tuple[Any, Any, str]:
        """Start a run with the values of the command's controls; gradio hands over the request last."""
        *given, request = values
        fields = [(of, option) for of, known in OPTIONS.items() for option in known]
        chosen = {option: value for (of, option), value in zip(fields, given, strict=True) if of == command}
        try:
            desk, runs = self.desk(request), self._studio.runs
            name = name.strip() or self._free_name(command)
            job = runs.start(command, name, chosen, key=desk.key, pictures=list(desk.pictures), teacher=teacher)
            return (*self.lists(request, job.name), sentence(f"{job.name} was started"))
        except UserError as error:
            return gradio.update(), gradio.update(), sentence(str(error), wrong=True)

    def _free_name(self, command: str) -> str:
        number = 1
        while self._studio.runs.exists(f"{command}-{number}"):
            number += 1
        return f"{command}-{number}"

    def stop(self, name: str | None, request: gradio.Request) -> str:
        """Interrupt the run that is watched."""
        try:
            job = self._studio.runs.stop(name or "", self._key(request))
            return sentence(f"{job.name} was stopped; it can be resumed")
        except UserError as error:
            return sentence(str(error), wrong=True)

    def resume(self, name: str | None, request: gradio.Request) -> str:
        """Go on with the run that is watched."""
        try:
            return sentence(f"{self._studio.runs.resume(name or '', self._key(request)).name} goes on")
        except UserError as error:
            return sentence(str(error), wrong=True)

    def use(self, name: str | None, request: gradio.Request) -> str:
        """Take the aligner of the run that is watched for this browser's pictures."""
        try:
            desk = self.desk(request)
            job = self._studio.runs.job(name or "", desk.key)
            bench = self._studio.benches.of(self._studio.runs.folder(job.name))
            with desk.lock:
                strip = desk.clip.strip if desk.clip is not None else []
                desk.bench.forget([picture for picture in [*desk.pictures, *strip] if picture.own])
                desk.bench = bench
                desk.changed(aligner=True)
            return sentence(f"the other tabs use the aligner of {job.name} now")
        except UserError as error:
            return sentence(str(error), wrong=True)

    def follow(self, name: str | None, request: gradio.Request) -> Any:
        """As `watch`; nothing if that is what this page shows already, so that its pictures do not flicker."""
        view, page = self.watch(name, request), str(request.session_hash)
        before = self._shown.pop(page, None)
        self._shown[page] = view
        while len(self._shown) > PAGES:
            del self._shown[next(iter(self._shown))]
        return gradio.skip() if view == before else view

    def watch(self, name: str | None, request: gradio.Request) -> str:
        """What there is to see of a run at this moment."""
        try:
            if not name:
                return sentence("no run yet")
            return run_view(self._studio, self._studio.runs.job(name, self._key(request)))
        except UserError as error:
            return sentence(str(error), wrong=True)


def run_view(studio: Studio, job: Job) -> str:
    """State, last words, curves and pictures of a run."""
    runs = studio.runs
    folder, state = runs.folder(job.name), runs.state(job)
    files = runs.shown_files(job)
    parts = [f'<div class="studio-run" data-state="{state}"><h3>{html.escape(job.name)}: {state}</h3>']
    said = runs.said(job, 1 if state == "running" else 6)
    parts.append(f"<code>{html.escape(said.replace(f'{folder.parent.parent}/', '')[-1000:])}</code>")
    for name in files:
        path = folder / name
        if name.endswith(".png") and path.exists():
            place = f"./studio/run/{job.name}/{name}?v={path.stat().st_mtime_ns}"
            parts.append(f'<figure><img src="{place}" alt="{name}"><figcaption>{name}</figcaption></figure>')
    parts += [f'<figure class="studio-curve">{curve}</figure>' for curve in curves_of(read_json_lines(folder / "log.jsonl"))]
    if "report.html" in files:
        place = f"./studio/run/{job.name}/report.html"
        parts.append(f'<p><a href="{place}" target="_blank" rel="noopener">report.html</a></p>')
    shown = job.line.replace(str(folder), f"runs/{job.name}")
    parts.append(f"<details><summary>the command</summary><code>{html.escape(shown)}</code></details></div>")
    return "".join(parts)


def curves_of(lines: list[dict[str, Any]]) -> list[str]:
    """The first curves of a log that change as drawings."""
    across = "step" if any("step" in line for line in lines) else "kimg"
    rows = [line for line in lines if isinstance(line.get(across), (int, float))]
    names = [name for row in rows[-1:] for name, value in row.items() if _is_number(value) and name not in _NOT_CURVES]
    curves = []
    for name in names:
        points = [(row[across], row[name]) for row in rows if _is_number(row.get(name))]
        if len({y for _, y in points}) > 1:
            curves.append(line_plot(name, [x for x, _ in points], [y for _, y in points], x_label=across))
    return curves[:CURVES]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# ---- the tabs


def page_of(studio: Studio, cookie: str) -> gradio.Blocks:
    """All of the page."""
    handlers = Handlers(studio, cookie)
    with gradio.Blocks(title="gangealing_fast studio", analytics_enabled=False, fill_width=True) as page:
        gradio.HTML('<div class="studio-top" data-studio="top"></div>', elem_id="studio-top")
        with gradio.Tabs(elem_id="studio-tabs"):
            with gradio.Tab("Edit", render_children=True):
                _edit_tab(handlers)
            with gradio.Tab("Points", render_children=True):
                gradio.HTML('<div data-studio="points"></div>')
            with gradio.Tab("Collection", render_children=True):
                _collection_tab(handlers)
            if studio.runs.most:
                with gradio.Tab("Runs", render_children=True):
                    _runs_tab(page, handlers)
    page.queue(default_concurrency_limit=4, max_size=64, api_open=False)
    return page


def _edit_tab(handlers: Handlers) -> None:
    with gradio.Row():
        with gradio.Column(scale=2, min_width=320):
            gradio.HTML('<div data-studio="edit"></div>')
            opacity = gradio.Slider(0, 1, 1, step=0.05, label="Opacity of the edit", elem_id="studio-opacity")
            kinds = [("by opacity", "alpha"), ("softened seam", "laplacian-light"), ("light of its surroundings", "laplacian")]
            blend = gradio.Radio(kinds, value="alpha", label="Blending", elem_id="studio-blend")
        with gradio.Column(scale=3, min_width=320):
            gradio.HTML('<div data-studio="edited"></div>')
            gradio.HTML('<div data-studio="video"></div>')
            with gradio.Row():
                smooth = gradio.Dropdown(list(SMOOTHINGS), value="kalman", label="Against trembling", scale=1, min_width=140)
                make = gradio.Button("Make the whole video", variant="primary", scale=1, min_width=160, elem_id="studio-film")
            film = gradio.HTML(elem_id="studio-film-out")
    opacity.change(None, [opacity], api_visibility="private", js="(value) => { studio.show({opacity: value}); }")
    blend.change(None, [blend], api_visibility="private", js="(value) => { studio.show({blend: value}); }")
    make.click(handlers.film, [smooth], [film], show_progress="hidden", api_visibility="private", concurrency_limit=1)


def _collection_tab(handlers: Handlers) -> None:
    with gradio.Row():
        orders = [
            ("how alike its template", "likeness"),
            ("flow score", "score"),
            ("confidence of congeal", "confidence"),
            ("as added", "added"),
        ]
        order = gradio.Radio(orders, value="likeness", label="Order", elem_id="studio-order")
        shown = gradio.Radio(
            [("as they are", "preview"), ("aligned", "aligned"), ("edited", "edited")], value="aligned", label="Pictures"
        )
    gradio.HTML('<div data-studio="collection"></div>')
    with gradio.Row():
        parts = gradio.CheckboxGroup(list(exports.PARTS), value=list(exports.PARTS), label="The zip holds", scale=3)
        side = gradio.Slider(
            64, 2048, 512, step=64, label="Side of aligned pictures; least side of edited ones", scale=2, elem_id="studio-side"
        )
        button = gradio.Button("Export", variant="primary", scale=1, min_width=120, elem_id="studio-export")
    out = gradio.HTML(elem_id="studio-export-out")
    order.change(None, [order], api_visibility="private", js="(value) => { studio.browse({order: value}); }")
    shown.change(None, [shown], api_visibility="private", js="(value) => { studio.browse({shown: value}); }")
    button.click(handlers.export, [parts, side], [out], show_progress="hidden", api_visibility="private", concurrency_limit=1)


def _control(name: str, option: options.Number | Choice) -> Any:
    label = name.replace("_", " ")
    if isinstance(option, Choice):
        return gradio.Dropdown(list(option.values), value=option.default, label=label, info=option.about, min_width=140)
    return gradio.Number(
        option.default, label=label, info=option.about, min_width=140, precision=0 if isinstance(option.default, int) else None
    )


def _runs_tab(page: gradio.Blocks, handlers: Handlers) -> None:
    controls: list[Any] = []
    groups = []
    with gradio.Row():
        with gradio.Column(scale=2, min_width=320):
            kinds = [
                ("congeal: align the pictures of this page jointly", "congeal"),
                ("train: learn an aligner", "train"),
                ("pretrain: learn a generator from the pictures", "pretrain"),
            ]
            command = gradio.Radio(kinds, value="congeal", label="What to run", elem_id="studio-command")
            name = gradio.Textbox(label="Name", info="empty for one that is free", max_length=40, elem_id="studio-name")
            for kind, known in OPTIONS.items():
                with gradio.Group(visible=kind == "congeal") as group:
                    if kind == "train":
                        teachers = [options.PACKAGE_DIGITS, options.PACKAGE_CATS]
                        teacher = gradio.Dropdown(teachers, value=teachers[0], label="learn from", info="a generator, or a set")
                    controls += [_control(option, about) for option, about in known.items()]
                groups.append(group)
            start = gradio.Button("Start", variant="primary", elem_id="studio-start")
            said = gradio.HTML(elem_id="studio-runs-said")
        with gradio.Column(scale=3, min_width=320):
            watched = gradio.Dropdown([], label="Run", elem_id="studio-watched")
            with gradio.Row():
                stop = gradio.Button("Stop", variant="stop", elem_id="studio-stop", min_width=90)
                resume = gradio.Button("Resume", elem_id="studio-resume", min_width=90)
                use = gradio.Button("Use its aligner here", elem_id="studio-use", min_width=150)
            view = gradio.HTML(elem_id="studio-view")
    kinds_of = list(OPTIONS)
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    command.change(lambda value: [gradio.update(visible=kind == value) for kind in kinds_of], [command], groups, **quiet)

    def begin(command: str, name: str, teacher: str, request: gradio.Request, *values: Any) -> tuple[Any, Any, str]:
        return handlers.start(command, name, teacher, *values, request)

    start.click(begin, [command, name, teacher, *controls], [watched, teacher, said], **quiet)
    stop.click(handlers.stop, [watched], [said], **quiet)
    resume.click(handlers.resume, [watched], [said], **quiet)
    use.click(handlers.use, [watched], [said], **quiet).then(None, api_visibility="private", js="() => { studio.reload(); }")
    watched.change(handlers.watch, [watched], [view], **quiet)
    page.load(handlers.lists, None, [watched, teacher], **quiet)
    gradio.Timer(1.5).tick(handlers.follow, [watched], [view], **quiet)
