# SPDX-License-Identifier: Apache-2.0
"""What the studio's page asks for, without a browser: uploads, edits, points, what one browser sees of another."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import zipfile
from collections.abc import Iterator

import numpy
import pytest
import torch
from aligners import clustered
from PIL import Image

pytest.importorskip("gradio", reason="the studio is the extra [ui]")

from fastapi import FastAPI
from starlette.testclient import TestClient
from studios import HERE, HOSTILE, PAGE, PORT, claims, drawing, picture, studio, zipped
from videos import pictures as frames
from videos import write_video

from gangealing_fast import Aligner
from gangealing_fast.applications.propagating import edit_of, edit_picture, look_at
from gangealing_fast.checkpoints.writing import export_aligner
from gangealing_fast.data.pictures import PictureStream, to_float
from gangealing_fast.interface import exports, films, serving
from gangealing_fast.interface.config import StudioConfig
from gangealing_fast.interface.guard import LOCAL, Guard
from gangealing_fast.interface.pictures import PREVIEW, plain_name, resized
from gangealing_fast.interface.server import Studio, add_routes
from gangealing_fast.interface.serving import need_gradio
from gangealing_fast.interface.sessions import Desk
from gangealing_fast.runtime.errors import UserError


def browser(made: Studio) -> TestClient:
    """A browser of its own, which keeps its cookie."""
    app = FastAPI(openapi_url=None)
    add_routes(app, made)
    return TestClient(Guard(app, port=PORT, hosts=LOCAL, token="", limits=made.limits), base_url=HERE)


@pytest.fixture
def made(tmp_path) -> Iterator[Studio]:
    with studio(tmp_path) as one:
        yield one


def send(client: TestClient, path: str, content: bytes = b"", **headers: str):
    return client.post(f"/studio/{path}", content=content, headers=PAGE | headers).json()


def upload(client: TestClient, content: bytes, name: str = "mine.png", **headers: str):
    return send(client, "pictures", content, **({"X-Name": name} | headers))


def desk_of(made: Studio, client: TestClient) -> Desk:
    client.get("/studio/state")
    return made.desks.of(client.cookies[f"studio-{PORT}"])


def files(desk: Desk) -> set[str]:
    return {path.name for path in desk.folder.rglob("*") if path.is_file()}


def test_a_picture_is_added_shown_and_removed(made):
    client = browser(made)
    about = upload(client, picture(), "my picture.png")
    assert about["name"] == "my picture.png" and (about["width"], about["height"], about["own"]) == (64, 48, True)
    state = client.get("/studio/state").json()
    assert [one["key"] for one in state["pictures"]][0] == about["key"] and len(state["pictures"]) == 6
    shown = Image.open(io.BytesIO(client.get(f"/studio/preview/{about['key']}").content))
    assert max(shown.size) == PREVIEW
    desk = desk_of(made, client)
    assert len(files(desk)) == 2
    assert len(send(client, f"remove?what={about['key']}")["pictures"]) == 5
    assert files(desk) == set()


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("where", ["pictures", "stamp", "video"])
def test_hostile_files_are_refused_in_a_sentence_and_nothing_is_kept(made, where):
    client = browser(made)
    for name, content in HOSTILE.values():
        answer = send(client, where, content, **{"X-Name": name})
        assert set(answer) == {"error"} and answer["error"].count("\n") == 0 and f"{name} is refused" in answer["error"]
    desk = desk_of(made, client)
    assert files(desk) == set() and len(desk.pictures) == 5 and desk.clip is None


def test_names_that_lead_elsewhere_are_names_alone(made, tmp_path):
    client = browser(made)
    before = {path for path in tmp_path.rglob("*") if ".sessions" not in path.parts}
    names = [
        "../../../../evil.png",
        "..\\..\\evil.png",
        "/etc/passwd",
        "%2e%2e%2fevil.png",
        "a\0b.png",
        "<img src=x>.png",
        "x" * 5000,
    ]
    shown = [upload(client, picture(), name.encode("ascii", "replace").decode().replace("\0", "%00"))["name"] for name in names]
    assert not any(set(name) & set('/\\<>"\0') for name in shown) and max(map(len, shown)) < 100
    assert {path for path in tmp_path.rglob("*") if ".sessions" not in path.parts} == before
    desk = desk_of(made, client)
    with zipfile.ZipFile(exports.export(desk, desk.pictures, exports.PARTS, side=64)) as archive:
        assert not [name for name in archive.namelist() if name.startswith("/") or ".." in name or "\\" in name]


def test_ten_thousand_files_are_refused_before_the_first(made):
    client = browser(made)
    answer = upload(client, picture(), **{"X-Count": "10000"})
    assert "10000 pictures are too many: there is room for 195 more of 200" in answer["error"]
    assert files(desk_of(made, client)) == set()


def test_no_more_than_there_is_room_for_whatever_is_announced(tmp_path):
    with studio(tmp_path, pictures=7) as made:
        client = browser(made)
        answers = [upload(client, picture(), **{"X-Count": "1"}) for _ in range(4)]
        assert ["error" in answer for answer in answers] == [False, False, True, True]
        assert len(files(desk_of(made, client))) == 4


def test_a_body_that_is_too_large_is_not_taken(tmp_path):
    with studio(tmp_path, megabytes=1) as made:
        client = browser(made)
        large = bytes(1_000_001)
        assert client.post("/studio/pictures", content=large, headers=PAGE).status_code == 413
        # Without its length in the header, it is counted as it arrives.
        answer = client.post("/studio/pictures", content=iter([large[:700_000], large[:700_000]]), headers=PAGE)
        assert answer.status_code == 413 and "larger than the 1,000,000 bytes" in answer.json()["error"]
        assert files(desk_of(made, client)) == set()


def test_an_edit_is_what_propagate_makes(made, tmp_path):
    client = browser(made)
    assert send(client, "edit?cluster=0", drawing())["edited"] == [0]
    aligner = Aligner.load(tmp_path / "aligner.safetensors")
    (_, batch) = next(iter(PictureStream(tmp_path / "pictures", size=None)))
    expected, covered = edit_picture(aligner, batch, edit_of(drawing(), "it"), look_at(aligner, batch))
    desk = desk_of(made, client)
    assert torch.equal(desk.bench.edited_whole(desk.pictures[0], desk.edits, 1.0, "alpha"), expected) and covered > 0
    # What the page shows is the same at another size.
    shown = desk.bench.edited(desk.pictures[0], desk.edits, 1.0, "alpha")
    pure = torch.tensor([0, 255, 0])[:, None, None]
    covered_there = (expected == pure).all(0)
    assert shown.shape == (3, PREVIEW, PREVIEW) and covered_there.sum() > 50
    assert ((resized(shown, 48).float() - pure).abs().amax(0)[covered_there] < 80).float().mean() > 0.8
    green = client.get(f"/studio/edited/{desk.pictures[0].key}")
    assert green.headers["content-type"] == "image/jpeg"
    assert send(client, "show?opacity=0&blend=laplacian")["drawn"] == 2
    assert torch.equal(desk.bench.edited(desk.pictures[0], desk.edits, desk.opacity, desk.blend), desk.pictures[0].preview())
    assert send(client, "edit?cluster=0")["edited"] == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (picture(64, 64), "no transparency"),
        (drawing()[:50], "no picture that can be read"),
        (b"x", "known format"),
        (claims(2500, 2500), "at most 2048 pixels"),
        (claims(40_000, 40_000), "million pixels"),
    ],
    ids=["opaque", "cut", "no picture", "large", "huge"],
)
def test_an_edit_is_judged(made, content, words):
    client = browser(made)
    assert words in send(client, "edit?cluster=0", content)["error"]
    assert desk_of(made, client).edits == {} and "error" in send(client, "edit?cluster=1", drawing())


def test_points_are_carried_as_transfer_does(made, tmp_path):
    client = browser(made)
    first, second = [one["key"] for one in client.get("/studio/state").json()["pictures"][:2]]
    asked = {"picture": first, "points": [[0.4, 0.5], [0.6, 0.45]], "others": [second]}
    found = send(client, "points", json.dumps(asked).encode())
    aligner = Aligner.load(tmp_path / "aligner.safetensors")
    (_, one), (_, other) = [batch for _, batch in zip(range(2), PictureStream(tmp_path / "pictures", size=None), strict=False)]
    pixels = torch.tensor([[[0.4, 0.5], [0.6, 0.45]]]) * 48 - 0.5
    place = aligner.locate(to_float(one), pixels)
    expected = (aligner.from_template(to_float(other), place.points) + 0.5) / 48
    rows = torch.tensor(found["others"][second])
    assert torch.allclose(rows[:, :2], expected[0], atol=1e-4)
    assert torch.allclose(torch.tensor(found["template"])[:, 2], place.confidence[0], atol=1e-4)
    assert ((rows[:, 2] >= 0) & (rows[:, 2] <= 1)).all()
    # There and back again.
    back = send(client, "points", json.dumps({"picture": second, "points": rows[:, :2].tolist(), "others": [first]}).encode())
    assert torch.allclose(torch.tensor(back["others"][first])[:, :2], torch.tensor(asked["points"]), atol=1e-2)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"picture": "template"}', b"[" * 90_000, b'{"picture":"template","points":[[2,0]],"others":[]}',
             b'{"picture":"template","points":[[NaN,0]],"others":[]}', b'{"picture":"no","points":[[0,0]],"others":[]}',
             json.dumps({"picture": "template", "points": [[0, 0]] * 17, "others": []}).encode()],
)  # fmt: skip
def test_points_that_are_none_are_refused(made, body):
    assert set(send(browser(made), "points", body)) == {"error"}


def test_the_collection_says_how_pictures_stand(made):
    client = browser(made)
    upload(client, picture())
    rows = client.get("/studio/collection").json()
    assert len(rows) == 6 and all(-1 <= row["likeness"] <= 1 and row["score"] <= 0 for row in rows)
    desk = desk_of(made, client)
    # Others do not change the template that is drawn on.
    assert torch.equal(desk.templates()[0], made.desks.bench.templates(made.desks.start)[0])


def test_a_zip_holds_what_was_chosen(made):
    client = browser(made)
    upload(client, picture(), "mine.png")
    send(client, "edit?cluster=0", drawing())
    desk = desk_of(made, client)
    path = exports.export(desk, desk.pictures, exports.PARTS, side=64)
    with zipfile.ZipFile(client.get("/studio/made/studio.zip", follow_redirects=False) and path) as archive:
        names = set(archive.namelist())
        assert {"edited/000000-mine.png", "aligned/000000-mine.png", "template.png", "edit.png", "scores.jsonl"} <= names
        assert len(names) == 15 and archive.testzip() is None
        assert archive.read("edit.png") == drawing()
        assert Image.open(io.BytesIO(archive.read("edited/000000-mine.png"))).size == (64, 48)
        lines = [json.loads(line) for line in archive.read("scores.jsonl").splitlines()]
        assert lines[0]["picture"] == "mine.png" and lines[0]["cluster"] == 0
    exports.export(desk, desk.pictures, ("list of scores",), side=64)
    assert not path.exists() and len(list(desk.folder.glob("*.zip"))) == 1
    for parts, side in (((), 64), (exports.PARTS, 1), (("passwords",), 64)):
        with pytest.raises(UserError):
            exports.export(desk, desk.pictures, parts, side=side)


def test_two_browsers_do_not_see_each_other(made):
    one, other = browser(made), browser(made)
    about = upload(one, picture())
    send(one, "edit?cluster=0", drawing())
    desk = desk_of(made, one)
    exports.export(desk, desk.pictures, exports.PARTS, side=64)
    assert one.get("/studio/made/studio.zip").status_code == 200
    for path in (f"preview/{about['key']}", f"aligned/{about['key']}", f"edited/{about['key']}", "drawing/0", "made/studio.zip"):
        assert one.get(f"/studio/{path}").status_code == 200, path
        assert other.get(f"/studio/{path}").status_code == 404, path
    assert "error" in send(other, f"remove?what={about['key']}")
    state = other.get("/studio/state").json()
    assert about["key"] not in [row["key"] for row in state["pictures"]] and state["edited"] == []
    asked = {"picture": "template", "points": [[0.5, 0.5]], "others": [about["key"]]}
    assert send(other, "points", json.dumps(asked).encode())["others"] == {}
    assert "error" in send(other, "points", json.dumps(asked | {"picture": about["key"]}).encode())


def test_browsers_are_few_and_leave_nothing(tmp_path):
    with studio(tmp_path, sessions=2, idle_minutes=1) as made:
        one, other, third = browser(made), browser(made), browser(made)
        upload(one, picture())
        folder = desk_of(made, one).folder
        other.get("/studio/state")
        assert "serves 2 browsers at a time" in third.get("/studio/state").json()["error"]
        desk_of(made, one).used -= 61  # more than --idle-minutes
        assert "error" not in third.get("/studio/state").json()
        assert not folder.exists() and len(made.desks) == 2
        desk_of(made, other).used -= 61
        made.desks.tidy()
        assert len(made.desks) == 1
    with studio(tmp_path / "longer", sessions=1) as made:
        one, other = browser(made), browser(made)
        desk_of(made, one).used -= 301  # its page is closed
        assert "error" not in other.get("/studio/state").json() and len(made.desks) == 1
    assert not (tmp_path / "studio" / ".sessions").exists()


def test_each_template_has_its_own_edit(tmp_path):
    model = clustered()
    export_aligner(tmp_path / "two.safetensors", model.transformer, None, model.warping, classifier=model.classifier)
    with studio(tmp_path, checkpoint=tmp_path / "two.safetensors") as made:
        client = browser(made)
        for k in range(6):
            upload(client, picture(48, 48, (40 * k, 255 - 40 * k, 77)), f"{k}.png")
        rows = client.get("/studio/collection").json()
        first = next(row for row in rows if row["cluster"] == rows[0]["cluster"])
        other = next((row for row in rows if row["cluster"] != rows[0]["cluster"]), None)
        assert other is not None and client.get("/studio/state").json()["clusters"] == 2
        before = client.get(f"/studio/edited/{other['key']}").content
        send(client, f"edit?cluster={first['cluster']}", drawing())
        assert client.get(f"/studio/edited/{other['key']}").content == before
        asked = {"picture": first["key"], "points": [[0.5, 0.5]], "others": [other["key"]]}
        row = send(client, "points", json.dumps(asked).encode())["others"][other["key"]][0]
        assert row is None or row[2] == 0


def test_without_gradio_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install gangealing_fast\[ui\]"):
        need_gradio()


def test_the_token_is_not_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "serve", lambda *arguments: None)
    serving.run(StudioConfig(out=tmp_path / "studio", port=0, token="a-token-of-a-test"))
    assert "a-token" not in (tmp_path / "studio" / "config.json").read_text()


def test_a_video_is_judged_and_shown_by_some_of_its_frames(made, tmp_path):
    client = browser(made)
    content = write_video(tmp_path / "walk.mp4", frames(60)).read_bytes()
    state = send(client, "video", content, **{"X-Name": "walk.mp4"})
    assert state["video"]["frames"] == 60 and films.STRIP <= len(state["video"]["strip"]) < 2 * films.STRIP
    key = state["video"]["strip"][3]["key"]
    before = client.get(f"/studio/edited/{key}").content
    send(client, "edit?cluster=0", drawing())
    assert client.get(f"/studio/edited/{key}").content != before
    desk = desk_of(made, client)
    kept = files(desk)
    assert "refused" in send(client, "video", zipped(), **{"X-Name": "walk.mp4"})["error"]
    assert files(desk) == kept and desk.clip is not None
    send(client, "remove?what=all")
    assert files(desk) == {"edit-0.png"} and desk.clip is None


def test_a_video_needs_something_to_show(made):
    client = browser(made)
    for words in ("there is no video yet",):
        with pytest.raises(UserError, match=words):
            films.Rendering(desk_of(made, client), "none", 1)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a.png", "a.png"),
        ("../a.png", "a.png"),
        ("..", "picture"),
        ("", "picture"),
        ("C:\\x\\a.png", "a.png"),
        ("a\u202eb.png", "ab.png"),
    ],
)
def test_names_are_plain(given, shown):
    assert plain_name(given) == shown


def test_transparent_stamps_keep_their_colours(made):
    with contextlib.closing(io.BytesIO(send_raw(browser(made), "stamp", picture(300, 200, (10, 20, 30, 40))))) as file:
        pixels = numpy.asarray(Image.open(file))
    assert pixels.shape == (200, 300, 4) and pixels[150, 200].tolist() == [10, 20, 30, 40]


def send_raw(client: TestClient, path: str, content: bytes) -> bytes:
    return client.post(f"/studio/{path}", content=content, headers=PAGE).content
