# SPDX-License-Identifier: Apache-2.0
"""Congealing by entropy: it undoes known warps, its funnel aligns new pictures, and what it cannot do it says in a sentence."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate, pad

from gangealing_fast import metrics
from gangealing_fast.congealing import Congealed, Funnel, congeal_entropy, congeal_stack
from gangealing_fast.congealing.fields import BINS, Field, Pixels
from gangealing_fast.congealing.moves import FACTORS, MOVES, STEP, Model, Stage, _best, common_transform, distance, move, warp
from gangealing_fast.geometry.warps import compose, identity_matrix, invert, similarity_matrix, transform_points
from gangealing_fast.runtime.errors import UserError

CORNERS = torch.tensor([[-0.5, -0.6], [0.5, -0.6], [0.5, 0.6], [-0.5, 0.6]])
SIDE = 24


def letter() -> Tensor:
    """An F, [1, 1, 24, 24] in [0, 1], which no rotation or shift maps to itself."""
    coarse = torch.zeros(1, 1, 12, 12)
    coarse[0, 0, 2:10, 4:6] = 1
    coarse[0, 0, 2:4, 4:9] = 1
    coarse[0, 0, 5:7, 4:8] = 1
    return interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)


def known_warps(count: int, seed: int = 0) -> Tensor:
    draw = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return similarity_matrix(*(draw * torch.tensor([math.radians(30), 0.2, 0.15, 0.15])).unbind(1))


def warped_letters(known: Tensor) -> Tensor:
    """Letters [N, 1, 24, 24] in [0, 1] under warps A [N, 2, 3]."""
    grid = affine_grid(invert(known), [len(known), 1, SIDE, SIDE], align_corners=False)
    return grid_sample(letter().expand(len(known), -1, -1, -1), grid, align_corners=False)


def warped_textures(known: Tensor, channels: int) -> Tensor:
    """One picture of smooth grey or coloured patches, [N, C, 24, 24] in [0.1, 0.9], under warps; its edge goes on."""
    coarse = torch.rand(1, channels, 7, 7, generator=torch.Generator().manual_seed(3)) * 0.8 + 0.1
    patches = interpolate(coarse, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    grid = affine_grid(invert(known), [len(known), 1, SIDE, SIDE], align_corners=False)
    return grid_sample(patches.expand(len(known), -1, -1, -1), grid, padding_mode="border", align_corners=False)


def normalised(matrix: Tensor, template_side: int) -> Tensor:
    """Warps from template to picture [N, 2, 3], of matrices from pixels of a 24-pixel picture to those of the template."""

    def to_pixels(side: int) -> Tensor:
        return torch.tensor([[side / 2, 0, side / 2 - 0.5], [0, side / 2, side / 2 - 0.5], [0, 0, 1]], dtype=torch.float64)

    return (torch.linalg.inv(to_pixels(SIDE)) @ torch.linalg.inv(matrix) @ to_pixels(template_side))[:, :2].float()


def entropy_ratio(before: Tensor, matrices: Tensor, pixels: Pixels) -> float:
    after = warp(before, matrices[:, None], pixels)[:, :, 0]
    return float(Field.of(after, BINS[pixels]).entropy() / Field.of(before, BINS[pixels]).entropy())


@pytest.fixture(scope="module")
def letters() -> tuple[Tensor, Tensor, Congealed, Funnel]:
    """Thirty letters, their warps, and how they were congealed."""
    known = known_warps(30)
    images = warped_letters(known)
    return images, known, *congeal_entropy(images * 2 - 1, side=SIDE, sweeps=4)


def test_known_warps_are_undone(letters: tuple[Tensor, Tensor, Congealed, Funnel]) -> None:
    images, known, found, funnel = letters
    assert funnel.look.pixels == "binary" and funnel.template_side == SIDE
    matrices = normalised(found.matrix, SIDE)
    scores = metrics.set_spread_ratio(known, matrices, CORNERS, SIDE)
    assert scores["before"] > 2 and scores["ratio"] < 0.25
    assert metrics.pair_error_ratio(known[:15], matrices[:15], known[15:], matrices[15:], CORNERS, SIDE)["ratio"] < 0.25
    assert entropy_ratio(images, matrices, "binary") < 0.7
    aligned = warp(images, matrices[:, None], "binary")[:, :, 0]
    assert float(metrics.ink_kept(images * 2 - 1, aligned * 2 - 1)) == pytest.approx(1, abs=0.1)
    shown = (warp(torch.ones_like(images), matrices[:, None], "binary") > 0.999).all(0)[0, 0]
    average = (aligned[~found.outlier] * 2 - 1).mean(0)
    assert shown.float().mean() > 0.3
    torch.testing.assert_close(found.template[0][:, shown], average[:, shown].expand(3, -1), atol=1e-4, rtol=0)


def test_the_record_is_whole_and_confidence_says_who_is_an_outlier(letters: tuple[Tensor, Tensor, Congealed, Funnel]) -> None:
    found = letters[2]
    assert found.matrix.shape == (30, 3, 3) and found.matrix.dtype == torch.float64
    assert not found.flow.any() and found.flow.shape[::3] == (30, 2) and not found.mirrored.any() and not found.cluster.any()
    assert torch.equal(found.outlier, found.confidence < 0.5)
    assert float(found.confidence.median()) > 0.9


def test_the_funnel_aligns_new_pictures_as_members(letters: tuple[Tensor, Tensor, Congealed, Funnel]) -> None:
    funnel = letters[3]
    known = known_warps(20, seed=5)
    images = warped_letters(known) * 2 - 1
    found = funnel.align(images)
    matrices = normalised(found.matrix, SIDE)
    assert metrics.set_spread_ratio(known, matrices, CORNERS, SIDE)["ratio"] < 0.25
    members = normalised(letters[2].matrix, SIDE)
    assert metrics.pair_error_ratio(known, matrices, letters[1][:20], members[:20], CORNERS, SIDE)["ratio"] < 0.25
    one = funnel.align([images[7]])
    torch.testing.assert_close(one.matrix[0], found.matrix[7], atol=1e-3, rtol=0)
    assert funnel.align(images[:0]).matrix.shape == (0, 3, 3)


def test_a_stranger_has_less_confidence_than_any_letter(letters: tuple[Tensor, Tensor, Congealed, Funnel]) -> None:
    blot = torch.full((1, 1, SIDE, SIDE), -1.0)
    blot[:, :, 3:20, 3:20] = 1
    stranger = letters[3].align(blot).confidence
    assert float(stranger) < 0.01 < float(letters[3].align(letters[0][:5] * 2 - 1).confidence.min())


def test_the_state_is_the_funnel(letters: tuple[Tensor, Tensor, Congealed, Funnel]) -> None:
    images, _, _, funnel = letters
    state = funnel.state()
    again = Funnel.from_state(state)
    assert torch.equal(again.align(images[:3] * 2 - 1).matrix, funnel.align(images[:3] * 2 - 1).matrix)
    for name in state:
        with pytest.raises(ValueError, match="funnel"):
            Funnel.from_state({key: value for key, value in state.items() if key != name})
        with pytest.raises(ValueError, match="funnel"):
            Funnel.from_state(state | {name: state[name][:-1]})


@pytest.mark.parametrize(("pixels", "channels"), [("grey", 1), ("colour", 3)])
def test_grey_and_colour(pixels: Pixels, channels: int) -> None:
    known = known_warps(16, seed=2)
    images = warped_textures(known, channels)
    found, funnel = congeal_entropy(images * 2 - 1, side=SIDE, sweeps=4)
    assert funnel.look.pixels == pixels
    matrices = normalised(found.matrix, SIDE)
    assert metrics.set_spread_ratio(known, matrices, CORNERS, SIDE)["ratio"] < 0.3
    assert entropy_ratio(images, matrices, pixels) < 0.8
    fresh = known_warps(8, seed=9)
    aligned = normalised(funnel.align(warped_textures(fresh, channels) * 2 - 1).matrix, SIDE)
    assert metrics.set_spread_ratio(fresh, aligned, CORNERS, SIDE)["ratio"] < 0.35


def test_affine_undoes_what_a_similarity_cannot() -> None:
    known = known_warps(30, seed=4)
    shear = torch.eye(2, 3).repeat(30, 1, 1)
    shear[:, 0, 1] = torch.linspace(-0.5, 0.5, 30)[torch.randperm(30, generator=torch.Generator().manual_seed(1))]
    known = compose(known, shear)
    images = warped_letters(known)
    ratios: dict[str, float] = {}
    for model in get_args(Model):
        matrices, _ = congeal_stack(images, 4, model=model)
        ratios[model] = metrics.set_spread_ratio(known, matrices, CORNERS, SIDE)["ratio"]
    assert ratios["affine"] < 0.3 and ratios["affine"] < 0.7 * ratios["similarity"]


@pytest.mark.parametrize("model", get_args(Model))
def test_same_input_same_matrices_and_nothing_is_common_to_them(model: Model) -> None:
    images = warped_letters(known_warps(12))
    (first, _), (second, _) = (congeal_stack(images, 2, model=model, blurs=(0.06, 0.0)) for _ in range(2))
    assert torch.equal(first, second)
    linear = first[:, :, :2].mean(0)
    torch.testing.assert_close(linear, linear[0, 0] * torch.eye(2), atol=1e-5, rtol=0)
    assert float(torch.linalg.det(first[:, :, :2]).log().mean()) == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(first[:, :, 2].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    if model == "similarity":
        torch.testing.assert_close(first[:, 0, 0], first[:, 1, 1], atol=1e-5, rtol=0)
        torch.testing.assert_close(first[:, 0, 1], -first[:, 1, 0], atol=1e-5, rtol=0)


def test_taking_out_what_is_common_changes_the_template_only() -> None:
    before = known_warps(9, seed=1) + 0.1
    after = compose(before, common_transform(before).expand(9, -1, -1))
    change = compose(invert(before), after)
    torch.testing.assert_close(change, change[:1].expand_as(change))


def test_the_best_size_of_a_move_is_taken_by_the_picture_that_needs_it() -> None:
    images = letter().repeat(30, 1, 1, 1)
    images[4] = torch.roll(images[4], 2, -1)
    step = 4 / SIDE  # two pixels
    stage = Stage("similarity", "binary", step / STEP, 0.0)
    matrices, warped = _best(images, identity_matrix(30), images, Field.of(images, 2), stage, "x-shift", True)
    expected = identity_matrix(30)
    expected[4, 0, 2] = step
    torch.testing.assert_close(matrices, expected)
    torch.testing.assert_close(warped, letter().expand(30, -1, -1, -1))


@pytest.mark.parametrize("name", MOVES["affine"] + MOVES["similarity"][1:2])
def test_moves_are_what_they_are_called(name: str) -> None:
    moved = move(identity_matrix(1), name, 0.5)[0]
    corner = transform_points(moved, torch.tensor([[[1.0, 0.5]]]))[:, 0]
    size = torch.tensor(FACTORS) * (math.radians(10) if name == "rotation" else 0.08)
    x, y = torch.ones(4), torch.full((4,), 0.5)
    expected = {
        "rotation": (size.cos() - 0.5 * size.sin(), size.sin() + 0.5 * size.cos()),
        "log scale": (size.exp(), size.exp() / 2),
        "log x-scale": (size.exp(), y),
        "log y-scale": (x, size.exp() / 2),
        "x-shear": (1 + size / 2, y),
        "y-shear": (x, 0.5 + size),
        "x-shift": (1 + size, y),
        "y-shift": (x, 0.5 + size),
    }[name]
    torch.testing.assert_close(corner, torch.stack(expected, 1))
    assert bool((distance(moved) > 0).all()) and float(distance(identity_matrix(1))) == 0


@pytest.mark.parametrize("bins", [2, 8])
def test_shares_by_brute_force(bins: int) -> None:
    draw = torch.rand(6, 2, 3, 4, generator=torch.Generator().manual_seed(bins))
    field = Field.of(draw, bins)

    def counts(values: Tensor) -> Tensor:
        return (1 - (values[..., None] * (bins - 1) - torch.arange(bins)).abs()).clamp(min=0)

    torch.testing.assert_close(field.totals, counts(draw).sum(0).movedim(-1, 1))
    chances = field.totals.movedim(1, -1) / 6
    entropy = -torch.special.xlog1py(chances, chances - 1) / math.log(2)
    assert float(field.entropy()) == pytest.approx(float(entropy.sum((0, 3)).mean()), rel=1e-5)
    tried = torch.rand(6, 2, 5, 3, 4, generator=torch.Generator().manual_seed(1))
    for own in (None, draw):
        seen = field.totals.movedim(1, -1)[None] - (0 if own is None else counts(own))
        chance = (seen + 1 / bins) / seen.sum(-1, keepdim=True).add(1)
        expected = -(counts(tried) * chance.log2()[:, :, None]).sum((1, 3, 4, 5))
        torch.testing.assert_close(field.share(tried, own), expected, rtol=1e-4, atol=1e-3)


def test_pictures_of_several_sizes_and_with_masks() -> None:
    images = (warped_letters(known_warps(6)) * 2 - 1).repeat(1, 3, 1, 1)
    wide = [pad(image, (8, 8, 4, 4), value=-1.0) for image in images]
    found, funnel = congeal_entropy([torch.cat([image, torch.ones(1, 32, 40)]) for image in wide], side=40, sweeps=2)
    square, _ = congeal_entropy([pad(image, (0, 0, 4, 4), value=-1.0) for image in wide], side=40, sweeps=2)
    assert funnel.template_side == 40
    down = torch.eye(3, dtype=torch.float64)
    down[1, 2] = 4
    torch.testing.assert_close(found.matrix, square.matrix @ down)
    hidden = torch.full((1, 32, 40), -1.0)
    with pytest.raises(UserError, match="empty"):
        congeal_entropy([torch.cat([image, hidden]) for image in wide])


def test_dark_letters_on_light_paper_are_read_the_other_way_round() -> None:
    images = warped_letters(known_warps(10)) * 2 - 1
    light, funnel = congeal_entropy(-images, side=SIDE, sweeps=2)
    assert funnel.look.inverted
    torch.testing.assert_close(light.matrix, congeal_entropy(images, side=SIDE, sweeps=2)[0].matrix, atol=1e-3, rtol=0)


def test_progress_is_told_sweep_by_sweep() -> None:
    told: list[tuple[str, int, int]] = []
    congeal_entropy(warped_letters(known_warps(3)) * 2 - 1, side=8, sweeps=1, progress=lambda *told_now: told.append(told_now))
    assert told == [("congealing", number, 5) for number in range(1, 6)]


LETTERS = warped_letters(known_warps(4)) * 2 - 1


@pytest.mark.parametrize(
    ("images", "options", "words"),
    [
        (LETTERS[:2], {}, "3 or more"),
        (LETTERS[:0], {}, "3 or more"),
        (LETTERS[:1].repeat(5, 1, 1, 1), {}, "the same"),
        (torch.cat([LETTERS, torch.zeros(1, 1, SIDE, SIDE)]), {}, r"empty, one value everywhere \(4\)"),
        (LETTERS * 127, {}, r"picture 0 has values outside \[-1, 1\]"),
        (LETTERS * math.nan, {}, "outside"),
        (LETTERS.repeat(1, 5, 1, 1), {}, "1 or 3 channels"),
        ([LETTERS[0], LETTERS[1].repeat(3, 1, 1)], {}, "picture 1 has 3 channels, the first picture 1"),
        (LETTERS, {"pixels": "colour"}, "use pixels='grey'"),
        (LETTERS, {"pixels": "sepia"}, "sepia"),
        (LETTERS, {"model": "homography"}, "homography"),
        (LETTERS, {"side": 128}, "from 8 to 64"),
        (LETTERS, {"sweeps": 0}, "at least 1"),
    ],
)
def test_mistakes_are_sentences(images: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        congeal_entropy(images, **options)


def test_the_funnel_names_other_channels(letters: tuple[Tensor, Tensor, Congealed, Funnel]) -> None:
    with pytest.raises(UserError, match="3 channels, but the funnel was made with pictures of 1"):
        letters[3].align(LETTERS.repeat(1, 3, 1, 1))


@pytest.mark.parametrize(
    ("stack", "word"),
    [
        (torch.zeros(0, 1, 8, 8), "non-empty"),
        (torch.zeros(8, 8), "non-empty"),
        (torch.full((2, 1, 8, 8), -1.0), r"\[0, 1\]"),
        (torch.full((2, 1, 8, 8), math.nan), "finite"),
    ],
)
def test_a_wrong_stack_is_named(stack: Tensor, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        congeal_stack(stack)
