# SPDX-License-Identifier: Apache-2.0
"""A translator in use: its file, styles, swapped domains, the command `translate apply`, programs; on tiny networks."""

from __future__ import annotations

import pytest
import torch
from runs import call
from translators import fill_folders, make_translator, pictures

from gangealing_fast import translate
from gangealing_fast.applications import translating
from gangealing_fast.models import EfficientNetPerceptual
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_json, read_json_lines
from gangealing_fast.translation.config import TranslateApplyConfig, TranslateExportConfig
from gangealing_fast.translation.translator import EXPORT_NAME, Translator


@pytest.fixture
def translator() -> Translator:
    return make_translator()


@pytest.fixture
def folders(tmp_path):
    return fill_folders(tmp_path)


def test_a_translator_survives_its_file_and_a_damaged_one_is_named(translator, tmp_path):
    translator.save(tmp_path / EXPORT_NAME)
    loaded, images = Translator.load(tmp_path), pictures()
    assert torch.equal(loaded.translate(images, n=2), translator.translate(images, n=2))
    assert list(loaded.domain_names()) == ["edges", "cats"] and loaded.size == 16
    whole = (tmp_path / EXPORT_NAME).read_bytes()
    (tmp_path / EXPORT_NAME).write_bytes(whole.replace(b'"style"', b'"stile"', 1).replace(b'\\"width\\": 4', b'\\"width\\": 9'))
    with pytest.raises(UserError):
        Translator.load(tmp_path)


def test_styles_are_said_in_three_ways(translator):
    images, like = pictures(), pictures(3, seed=4)
    made = translator.translate(images, n=3, seed=5)
    assert made.shape == (2, 3, 3, 16, 16)
    # The same style; convolutions of other numbers of pictures round otherwise on some processors.
    torch.testing.assert_close(translator.translate(images, n=1, seed=6)[:, 0], made[:, 1], rtol=0, atol=1e-5)
    codes = translator.style(like)
    assert torch.equal(translator.translate(images, like=like), translator.translate(images, styles=codes))
    ends = translator.path(codes[0], codes[2], 4)
    assert torch.allclose(ends[[0, 3]], codes[[0, 2]], atol=1e-6) and torch.allclose(
        ends[1] * 3, codes[0] * 2 + codes[2], atol=1e-5
    )
    back = translator.translate(images, styles=codes[:1], source="second", target="second")
    assert torch.allclose(back[:, 0], translator.decode(translator.content(images, "second"), codes[:1].repeat(2, 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"styles": torch.zeros(1, 4)}, r"styles must be \[K, 3\] for this translator, got \[1, 4\]"),
        ({"styles": torch.zeros(0, 3)}, r"got \[0, 3\]"),
        ({"styles": torch.zeros(1, 3), "n": 2}, "give one of them"),
        ({"n": 0}, "n must be at least 1"),
        ({"source": "third"}, 'a domain is "first" or "second"'),
        ({"like": torch.zeros(1, 3, 15, 16)}, "must be multiples of 4"),
    ],
)
def test_what_makes_no_style_is_one_sentence(translator, arguments, words):
    with pytest.raises(ValueError, match=words):
        translator.translate(pictures(), **arguments)


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 16, 16), torch.zeros(1, 1, 16, 16), torch.zeros(1, 3, 16, 18), torch.zeros(1, 3, 4, 4)]
)
def test_pictures_that_do_not_fit_are_one_sentence(translator, images):
    with pytest.raises(ValueError, match="pictures must be"):
        translator.translate(images)


def test_domains_that_are_swapped_are_noticed(translator, capsys):
    network = EfficientNetPerceptual(min_size=64)
    dark, bright = pictures(6) * 0.1 - 0.8, pictures(6) * 0.1 + 0.8
    assert not translator.other_domain(dark, "second", network)  # nothing is known yet
    translator.learn_features(dark, bright, network)
    assert translator.other_domain(dark, "second", network) and not translator.other_domain(dark, "first", network)
    translating.warn_if_swapped(translator, bright, "first")
    assert "look like the second domain (cats), but are translated as the first one (edges)" in capsys.readouterr().out


def test_apply_writes_pictures_codes_and_a_sheet(translator, folders, monkeypatch, capsys):
    translator.save(folders / EXPORT_NAME)
    common = ["apply", "--translator", folders, "--data", folders / "first", "--limit", 3]
    assert call(monkeypatch, translate, *common, "--out", folders / "random", "--styles", 2, "--seed", 7) == 0
    out = folders / "random"
    assert len(list(out.glob("*-style*.png"))) == 6 and (out / "sheet.png").is_file()
    said = read_json(out / "styles.json")["styles"]
    assert [one["style"] for one in said] == ["seed 7", "seed 8"]
    assert torch.allclose(torch.tensor(said[1]["code"]), translator.random_styles(1, 8)[0])
    example = next((folders / "second").iterdir())
    like = ["--like", example, next((folders / "first").iterdir()), "--path", 3, "--direction", "within-second"]
    assert call(monkeypatch, translate, *common, "--out", folders / "path", *like) == 0
    assert len(read_json(folders / "path" / "styles.json")["styles"]) == 3
    assert len(read_json_lines(folders / "path" / "translations.jsonl")) == 3
    capsys.readouterr()
    for options, words in (
        (["--styles", 0], "--styles 0 asks for nothing"),
        (["--size", 18], "--size 18 must be a multiple of 4"),
        (["--styles", 1, "--path", 5], "at least two styles"),
        (["--like", folders / EXPORT_NAME], "is no picture that can be read"),
    ):
        assert call(monkeypatch, translate, *common, "--out", folders / "bad", *options) == 2
        error = capsys.readouterr().err
        assert words in error.splitlines()[-1] and "Traceback" not in error
    for first in ([], ["aply"]):
        assert call(monkeypatch, translate, *first) == 2
        assert "the first word must be train or apply or export" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["pt2", pytest.param("onnx", marks=pytest.mark.slow)])
def test_an_exported_program_translates_the_same(translator, tmp_path, ending):
    if ending == "onnx":
        runtime = pytest.importorskip("onnxruntime")
    translator.save(tmp_path / EXPORT_NAME)
    file = tmp_path / f"program.{ending}"
    config = TranslateExportConfig(translator=tmp_path, out=file)
    translating.use(config)
    images, styles = pictures(3), torch.randn(3, 3)
    expected = translator.decode(translator.content(images), styles)
    if ending == "pt2":
        made = torch.export.load(file).module()(images, styles)
    else:
        session = runtime.InferenceSession(str(file))
        made = torch.from_numpy(session.run(None, {"images": images.numpy(), "styles": styles.numpy()})[0])
    assert torch.allclose(made, expected, atol=1e-4)
    with pytest.raises(UserError, match="exists"):
        translating.use(config)


def test_apply_config_is_imported_without_torch_being_needed():
    assert TranslateApplyConfig(translator="a", data="b", out="c").direction == "first-to-second"
