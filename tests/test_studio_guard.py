# SPDX-License-Identifier: Apache-2.0
"""Who is let into the studio, and what runs its page may start."""

from __future__ import annotations

import re
import time

import pytest

pytest.importorskip("gradio", reason="the studio is the extra [ui]")

from starlette.testclient import TestClient
from studios import HERE, PAGE, PORT, picture, studio

from gangealing_fast.alignment.config import PRESETS as TRAIN_PRESETS
from gangealing_fast.alignment.config import TrainConfig
from gangealing_fast.congealing.config import CongealConfig
from gangealing_fast.interface.config import StudioConfig
from gangealing_fast.interface.guard import LOCAL, Guard
from gangealing_fast.interface.options import OPTIONS, PACKAGE_DIGITS, teacher_words, words_of
from gangealing_fast.interface.pictures import examples
from gangealing_fast.interface.runs import Job, Runs
from gangealing_fast.interface.server import ASSETS
from gangealing_fast.interface.serving import application, listening, token_of
from gangealing_fast.interface.sessions import new_key
from gangealing_fast.pretraining.config import PRESETS as PRETRAIN_PRESETS
from gangealing_fast.pretraining.config import PretrainConfig
from gangealing_fast.runtime.commands import parse
from gangealing_fast.runtime.errors import UserError

TOKEN = "a-token-of-a-test"


async def echo(scope, receive, send):
    """Answers with the key of the browser."""
    while (await receive()).get("more_body"):
        pass
    body = scope["state"]["key"].encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})


def client(*, hosts=LOCAL, token="", base=HERE) -> TestClient:
    guard = Guard(echo, port=PORT, hosts=hosts, token=token, limits={"/studio/pictures": 10})
    return TestClient(guard, base_url=base, follow_redirects=False)


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "LOCALHOST:1", "[::1]:7860"])
def test_this_machine_answers_to_its_names(host):
    assert client().get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:7860", "", "[", "10.0.0.1"])
def test_and_to_no_other(host):
    answer = client().get("/", headers={"Host": host})
    assert answer.status_code == 421 and "its own machine alone" in answer.json()["error"]


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/gradio_api/proxy=http://x/",
     "/gradio_api/vibe-code", "/gradio_api/run/film", "/gradio_api/call/film", "/monitoring", "/docs",
     "/openapi.json", "/gradio_api/openapi.json", "/login",
     "/assets/../../x", "/studio/..\\x", "/gradio_api/stream/a/b/c", "/gradio_api/deep_link"],
)  # fmt: skip
def test_what_the_page_does_not_use_is_not_there(path):
    one = client()
    assert one.get(path).status_code == 404 and one.post(path, headers=PAGE).status_code == 404


def test_other_pages_change_nothing():
    one = client()
    assert one.post("/studio/edit", headers=PAGE).status_code == 200
    for headers in ({"X-Studio": "1", "Origin": "http://evil.example"}, {"X-Studio": "1", "Origin": "null"}, {"Origin": HERE}, {}):
        assert one.post("/studio/edit", headers=headers).status_code == 403
    for origin in ("http://evil.example", "http://127.0.0.1:1"):
        assert one.post("/gradio_api/queue/join", headers={"Origin": origin}).status_code == 403
    assert one.put("/studio/edit", headers=PAGE).status_code == 405


def test_bodies_are_counted():
    one = client()
    assert one.post("/studio/pictures", content=bytes(10), headers=PAGE).status_code == 200
    assert one.post("/studio/pictures", content=bytes(11), headers=PAGE).status_code == 413
    assert one.post("/studio/pictures", content=iter([bytes(6), bytes(6)]), headers=PAGE).status_code == 413
    assert one.post("/studio/points", content=bytes((1 << 20) + 1), headers=PAGE).status_code == 413


def test_a_browser_keeps_its_cookie_and_nobody_makes_one_up():
    one, other = client(), client()
    key = one.get("/").text
    assert one.get("/").text == key != other.get("/").text
    (made,) = [
        value for name, value in one.get("/", headers={"Cookie": f"studio-{PORT}=short"}).headers.items() if name == "set-cookie"
    ]
    assert "HttpOnly" in made and "SameSite=Strict" in made and "short" not in made


def test_elsewhere_a_token_is_asked_for():
    one = client(hosts=None, token=TOKEN, base="http://10.0.0.1:7860")
    for path in (
        "/",
        "/?token=",
        "/?token=wrong-but-as-long",
        "/studio/state",
        f"/studio/state?token={TOKEN}",
        f"/?token={TOKEN}x",
    ):
        answer = one.get(path)
        assert answer.status_code == 403 and "asks for its token" in answer.json()["error"] and TOKEN not in answer.text
    assert one.post(f"/?token={TOKEN}", headers={"Origin": "http://10.0.0.1:7860"}).status_code == 403
    answer = one.get(f"/?token={TOKEN}")
    assert answer.status_code == 303 and "token" not in answer.headers["location"]
    assert one.get("/").status_code == 200 and one.get("/studio/state").status_code == 200
    assert one.get("/", headers={b"cookie": b"studio-token-7860=\xff\xfe"}).status_code == 403


@pytest.mark.parametrize(
    ("options", "kind"),
    [({}, "none"), ({"host": "localhost"}, "none"), ({"host": "0.0.0.0"}, "made up"), ({"host": "10.0.0.1"}, "made up"),
     ({"token": TOKEN}, "given"), ({"token": "short"}, "refused"), ({"token": "with spaces in the middle"}, "refused")],
)  # fmt: skip
def test_tokens(options, kind):
    config = StudioConfig(**options)
    if kind == "refused":
        with pytest.raises(UserError, match="--token needs at least 16"):
            token_of(config)
        return
    token = token_of(config)
    assert {"none": token == "", "made up": len(token) > 30 and token != token_of(config), "given": token == TOKEN}[kind]


def test_a_port_that_is_taken_is_a_sentence():
    with listening(StudioConfig(port=0)) as door, pytest.raises(UserError, match="give another --port"):
        with listening(StudioConfig(port=door.getsockname()[1])):
            pass
    with pytest.raises(UserError, match="cannot listen at nowhere.invalid"), listening(StudioConfig(host="nowhere.invalid")):
        pass


def test_the_whole_page_comes_from_here(tmp_path):
    with studio(tmp_path) as made, TestClient(application(made, PORT, ""), base_url=HERE) as one:
        answer = one.get("/")
        assert answer.status_code == 200 and "gangealing_fast studio" in answer.text
        loaded = re.findall(r'(?:src|href|content)="(?:https?:)?//([^"]*)"', answer.text)
        assert not [place for place in loaded if not place.startswith("127.0.0.1")]
        assert (
            "default-src 'none'" in answer.headers["content-security-policy"]
            and "http" not in answer.headers["content-security-policy"]
        )
        assert "fonts.g" not in one.get("/theme.css").text
        for path in ASSETS.iterdir():
            answer = one.get(f"/studio/{path.name}")
            assert answer.status_code == 200 and "://" not in answer.text, path
        assert one.get("/gradio_api/file=/etc/passwd").status_code == 404


# ---- runs


@pytest.mark.parametrize(
    ("command", "values", "words"),
    [
        ("evaluate", {}, "starts congeal, train, pretrain alone"),
        ("train", {"out": "/etc"}, "has no option out on this page"),
        ("train", {"steps": 0}, "steps must be a whole number from 1"),
        ("train", {"steps": 1.5}, "steps must be a whole number"),
        ("train", {"steps": float("nan")}, "steps must be a number"),
        ("train", {"steps": "1; rm"}, "steps must be a number"),
        ("train", {"batch": True}, "batch must be a number"),
        ("congeal", {"method": "--features"}, "method must be one of"),
        ("congeal", {"clusters": ["1"]}, "clusters must be one of"),
        ("pretrain", {"kimg": 1e9}, "kimg must be a number from"),
    ],
)
def test_wrong_options_are_refused(command, values, words):
    with pytest.raises(UserError, match=re.escape(words)):
        words_of(command, values)


@pytest.mark.parametrize("command", OPTIONS)
def test_what_the_page_offers_is_what_the_command_knows(command):
    kinds = {"congeal": (CongealConfig, {}), "train": (TrainConfig, TRAIN_PRESETS), "pretrain": (PretrainConfig, PRETRAIN_PRESETS)}
    words = ["--preset", "digits"] if command == "train" else []
    words += words_of(command, {}) + ["--out", "x"] + ([] if command == "train" else ["--data", "y"])
    assert str(parse(*kinds[command], "", words).out) == "x"


@pytest.fixture
def runs(tmp_path):
    made = Runs(tmp_path / "studio", 1, 1)
    (tmp_path / "studio").mkdir()
    yield made
    made.stop_all()


def test_what_is_learned_from_says_how_large_pictures_are(tmp_path):
    made = tmp_path / "runs" / "small"
    made.mkdir(parents=True)
    (made / "generator.safetensors").write_bytes(b"")
    (made / "config.json").write_text('{"command": "pretrain", "options": {"size": 32}}')
    words = teacher_words("small", {"small": made})
    assert words[words.index("--flow-size") + 1] == "32" and str(made / "generator.safetensors") in words
    (made / "config.json").unlink()
    assert teacher_words("small", {"small": made})[-1] == "64"
    (made / "generator.safetensors").rename(made / "set.safetensors")
    assert teacher_words("small", {"small": made}) == ["--preset", "set", "--teach-from", str(made)]


def test_names_of_runs_are_names_alone(runs):
    for name in ("../x", "a/b", "", "A", "-x", "x" * 41, "a.b", "a\n"):
        with pytest.raises(UserError, match="a run is named by"):
            runs.start("train", name, {}, key=new_key(), teacher=PACKAGE_DIGITS)
        with pytest.raises(UserError, match="there is no run"):
            runs.job(name, new_key())
    with pytest.raises(UserError, match="no generator or set"):
        teacher_words("/etc/passwd", {})
    with pytest.raises(UserError, match="needs 3 pictures"):
        runs.start("congeal", "x", {}, key=new_key())


def test_a_run_is_started_stopped_and_resumed_by_the_same_command(runs, tmp_path):
    key = new_key()
    (tmp_path / "page").mkdir()
    shown = examples(tmp_path / "page", 6)
    job = runs.start("train", "short", {"steps": 100_000, "snapshot": 1, "batch": 4}, key=key, teacher=PACKAGE_DIGITS)
    assert runs.state(job) == "running" and job.owner == ""
    with pytest.raises(UserError, match="goes on already"):
        runs.resume("short", key)
    with pytest.raises(UserError, match="has 1 of 1 runs going"):
        runs.start("congeal", "other", {"method": "entropy"}, key=key, pictures=shown)
    wait_for(lambda: (runs.folder("short") / "config.json").exists())
    runs.stop("short", key)
    assert runs.state(job) == "stopped"
    with pytest.raises(UserError, match="does not go on"):
        runs.stop("short", key)
    with pytest.raises(UserError, match="with other options already"):
        runs.start("train", "short", {"steps": 3}, key=key, teacher=PACKAGE_DIGITS)
    before = runs.job("short", key)
    assert runs.resume("short", key).words == before.words and runs.state(before) == "running"
    runs.stop("short", key)


def wait_for(holds, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_runs_of_a_browsers_own_pictures_are_its_own(tmp_path):
    from gangealing_fast.interface.pictures import uploaded

    runs, mine, other = Runs(tmp_path / "studio", 1, 1), new_key(), new_key()
    for folder in ("studio", "page"):
        (tmp_path / folder).mkdir()
    shown = [uploaded(picture(colour=(40 * k, 9, 9)), f"{k}.png", tmp_path / "page", 50) for k in range(3)]
    started = runs.start("congeal", "secret", {"method": "entropy"}, key=mine, pictures=shown)
    assert mine not in (tmp_path / "studio" / "jobs" / "secret.json").read_text()
    assert [job.name for job in runs.seen_by(mine)] == ["secret"] and runs.seen_by(other) == []
    for act in (runs.job, runs.stop, runs.resume):
        with pytest.raises(UserError, match="there is no run|goes on already"):
            act("secret", other)
    assert runs.state(started) == "running"
    runs.stop("secret", mine)


def test_a_run_that_fails_says_why(tmp_path):
    runs, key = Runs(tmp_path, 1, 1), new_key()
    job = Job("wrong", "congeal", ("--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "runs" / "wrong")), "")
    runs._spawn(job)
    wait_for(lambda: not runs.is_going(job))
    assert runs.state(job) == "failed" and runs.said(job).startswith("error: there is no file or folder")
    assert runs.job("wrong", key).status == 2
