# SPDX-License-Identifier: Apache-2.0
"""Joint alignment by features on drawn pictures whose poses are known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scenes import COUNT, SIDE, colours, pair_error, posed, scene
from torch import Tensor, nn

from gangealing_fast.congealing import FeatureNetwork, Templates, build_templates, congeal, load_features, register
from gangealing_fast.congealing.clusters import components, split
from gangealing_fast.congealing.features import Bases, Tap, places, read_places
from gangealing_fast.congealing.joint import FLOW_GRID, gauge
from gangealing_fast.congealing.matching import Matches
from gangealing_fast.congealing.mirrors import choose_mirrored
from gangealing_fast.congealing.outliers import doubtful
from gangealing_fast.congealing.pictures import Squares
from gangealing_fast.congealing.placed import frame_from_pixels
from gangealing_fast.congealing.residual import residual_flow
from gangealing_fast.congealing.searching import look_from, search
from gangealing_fast.congealing.transforms import (
    carry,
    fit_similarity,
    move,
    refit_affine,
    refit_homography,
    refit_similarity,
    sample_similarities,
    similarity_matrix,
)
from gangealing_fast.congealing.views import Views
from gangealing_fast.runtime.errors import UserError


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    return colours()


@pytest.fixture(scope="module")
def example() -> tuple[Tensor, Tensor]:
    return posed(scene())


@pytest.fixture(scope="module")
def aligned(example, network):
    return congeal(example[0], features=network, flips=False, side=64)


def test_pictures_in_known_poses_are_brought_together(example, aligned):
    images, true = example
    unmoved = torch.eye(3, dtype=torch.float64).repeat(len(images), 1, 1)
    before, after = pair_error(unmoved, true), pair_error(aligned.matrix, true)
    assert before > 6 and after < 0.2 * before
    assert not aligned.outlier.any() and not aligned.mirrored.any()
    assert aligned.flow.shape == (COUNT, FLOW_GRID, FLOW_GRID, 2) and aligned.template.shape == (1, 3, 64, 64)
    assert ((aligned.confidence >= 0) & (aligned.confidence <= 1)).all()


def test_matches_lie_where_the_poses_say(example, aligned):
    images, true = example
    points, there, weight = aligned.matches[..., :2], aligned.matches[..., 2:4], aligned.matches[..., 4]
    assert ((points >= -1) & (points <= SIDE)).all()
    off = (carry(aligned.matrix, points.double()) - there).norm(dim=-1)[weight > 0]
    assert off.median() < 3, "pixels of a template of 64"


def test_the_same_seed_gives_the_same_numbers_and_the_default_is_a_sequence(example, aligned, network):
    again = congeal(list(example[0]), features=network, flips=False, side=64)
    assert torch.equal(again.matrix, aligned.matrix) and torch.equal(again.flow, aligned.flow)


def test_a_killed_run_goes_on_to_the_same_numbers(example, aligned, network):
    kept: dict[str, dict[str, Tensor]] = {}

    class Store:
        def load(self, stage):
            return kept.get(stage)

        def save(self, stage, tensors):
            kept[stage] = tensors
            if stage == "graph":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        congeal(example[0], features=network, flips=False, side=64, keep=Store())
    assert set(kept) == {"graph"}
    stages: list[str] = []
    found = congeal(
        example[0], features=network, flips=False, side=64, keep=Store(), progress=lambda stage, done, total: stages.append(stage)
    )
    assert torch.equal(found.matrix, aligned.matrix) and "graph" not in stages and "template-0" in kept


def test_a_new_picture_is_registered_where_a_member_lies(example, aligned, network):
    new, true_new = posed(scene(), 2, seed=7)
    templates = Templates.from_state(aligned.templates.state())
    found = register(new, templates, features=network)
    together = torch.cat([aligned.matrix, found.matrix])
    assert pair_error(together, torch.cat([example[1], true_new])) < 2.5
    near = register(new, templates, features=network, start=found.matrix)
    assert pair_error(torch.cat([found.matrix, near.matrix]), torch.cat([true_new, true_new])) < 2.5


def test_new_pictures_do_not_depend_on_those_beside_them(example, aligned, network):
    """Registered by two threads side by side, in any order, or one by one: the same numbers."""
    new, _ = posed(scene(), 3, seed=8)
    assert network.side_by_side
    alone = [register(new[k : k + 1], aligned.templates, features=network) for k in range(3)]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = register(new, aligned.templates, features=network)
        turned = register(new.flip(0), aligned.templates, features=network)
    finally:
        torch.set_num_threads(threads)
    for k, one in enumerate(alone):
        for name in ("matrix", "flow", "confidence"):
            expected = getattr(one, name)[0]
            assert torch.equal(getattr(found, name)[k], getattr(turned, name)[2 - k])
            torch.testing.assert_close(getattr(found, name)[k], expected, rtol=1e-3, atol=1e-3)


def test_a_lost_picture_is_looked_for_from_other_poses(example, aligned, network):
    """From where it was left, turned and shrunk, it is not found; it is from a pose that is nearer."""
    views = Views(Squares(example[0][:1], None, network.fine[0]), network)
    coarse = aligned.templates.clusters[0].coarse
    rows, mirrored = torch.arange(1), torch.zeros(1, dtype=torch.bool)
    lost = similarity_matrix(torch.tensor([[-0.5, 0.3, 0.4, -0.4]]))
    left = look_from(views, rows, mirrored, coarse, lost, None, "affine")[1]
    found, share = search(views, rows, mirrored, coarse, lost, torch.Generator().manual_seed(0), "affine")
    known = frame_from_pixels(64).float() @ aligned.matrix[:1].float() @ torch.linalg.inv(views.squares.placing).float()
    middle = places(4)[None] / 2
    assert share > 2 * left and (carry(found, middle) - carry(known, middle)).norm(dim=-1).max() < 0.1


def test_others_join_the_template_of_the_core(network, monkeypatch):
    monkeypatch.setattr("gangealing_fast.congealing.engine.CORE", 4)
    images, true = posed(scene(), 7)
    found = congeal(images, features=network, flips=False, side=64)
    assert pair_error(found.matrix, true) < 2.5


def test_a_template_is_built_from_what_is_roughly_known(example, network):
    images, true = example
    rough = torch.linalg.inv(true)
    rough[:, :2, 2] += 1.0
    templates = build_templates(images, rough, features=network, side=SIDE)
    found = register(images, templates, features=network, start=rough)
    assert pair_error(found.matrix, true) < 2.0


def test_transparent_pictures_are_masked_and_sizes_may_differ(network):
    images, true = posed(scene(), 4)
    alpha = torch.ones(4, 1, SIDE, SIDE)
    mixed = [torch.cat([picture, layer]) for picture, layer in zip(images, alpha, strict=True)]
    mixed[1] = F.pad(mixed[1], (0, 16, 0, 0), value=-1)
    found = congeal(mixed, features=network, flips=False, side=64)
    assert pair_error(found.matrix, true) < 2.5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda images: images[:2], "3 pictures or more"),
        (lambda images: [*images[:2], torch.full((3, 40, 40), float("nan"))], "picture 2 has values that are not finite"),
        (lambda images: [*images[:2], torch.zeros(3, 20, 200)], "panorama"),
        (lambda images: [*images[:2], torch.zeros(2, 40, 40)], "pictures are"),
        (lambda images: torch.zeros(4, 3, 40, 40), "nothing in common"),
        (lambda images: torch.randn(5, 3, 96, 96, generator=torch.Generator().manual_seed(0)).clamp(-1, 1), "nothing in common"),
    ],
)
def test_what_cannot_be_aligned_is_said(change, sentence, example, network):
    with pytest.raises(UserError, match=sentence):
        congeal(change(example[0]), features=network, flips=False, side=64)


def test_wrong_arguments_are_said(example, aligned, network):
    with pytest.raises(UserError, match="clusters"):
        congeal(example[0], clusters=4, features=network)
    with pytest.raises(UserError, match="masks"):
        congeal(example[0], masks=example[0][:2, :1], features=network)
    with pytest.raises(UserError, match="mask of picture 0"):
        congeal(example[0], masks=torch.ones(COUNT, 1, 8, 8), features=network)
    other = FeatureNetwork("other", network.features)
    with pytest.raises(UserError, match="made with the features colours"):
        register(example[0], aligned.templates, features=other)


def test_one_picture_repeated_is_aligned(network):
    found = congeal(scene().expand(4, -1, -1, -1), features=network, flips=False, side=64)
    unmoved = torch.eye(3, dtype=torch.float64).repeat(4, 1, 1)
    assert pair_error(found.matrix, unmoved) < 0.3


def test_a_damaged_template_is_refused(aligned):
    state = aligned.templates.state()
    del state["0.offset"]
    with pytest.raises(ValueError, match="damaged"):
        Templates.from_state(state)
    state = aligned.templates.state()
    state["0.fine.mean"] = state["0.fine.mean"][:-1]
    with pytest.raises(ValueError, match="damaged"):
        Templates.from_state(state)


# ---- parts


@pytest.mark.parametrize("side", [80, 40, 20])
def test_squares_put_pictures_where_their_matrix_says(side):
    """Of a larger square and just as they are, and reduced."""
    picture = torch.full((3, 20, 40), -1.0)
    picture[:, 10:, 30:] = 1.0
    squares = Squares([picture], None, side)
    ((number, values),) = squares.stored([0])
    assert number.tolist() == [0]
    kept = min(side, 40)
    image, mask = values[0, 0], values[0, 3]
    quarter = kept // 4
    assert image.shape == (kept, kept) and mask[:quarter].eq(0).all() and mask[-quarter:].eq(0).all()
    assert mask[quarter:-quarter].eq(255).all()
    corner = torch.tensor([[[29.5, 9.5]]], dtype=torch.float64)
    place = (carry(squares.placing, corner)[0, 0] + 1) * kept / 2 - 0.5
    assert torch.allclose(place, torch.tensor([0.75 * kept - 0.5, 0.5 * kept - 0.5], dtype=torch.float64))
    inside, outside = ((round(down * kept), round(across * kept)) for down, across in ((0.63, 0.88), (0.4, 0.6)))
    assert image[inside] > 253 and image[outside] < 2


def test_squares_of_several_sizes_are_read_in_groups():
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.rand(3, *size, generator=generator) * 2 - 1 for size in ((30, 30), (20, 40), (30, 24))]
    groups = Squares(pictures, None, 64).stored([2, 1, 0])
    found = [(numbers.tolist(), tuple(values.shape)) for numbers, values in groups]
    assert found == [([0, 2], (2, 4, 30, 30)), ([1], (1, 4, 40, 40))]
    assert (groups[0][1][1, :3].float() / 127.5 - 1 - pictures[0]).abs().max() < 0.005


def test_a_view_of_a_mirrored_picture_is_that_of_its_mirror_image(network):
    pictures = [scene(), scene(1)[:, :60, :80]]
    rows, mirrored = torch.arange(2), torch.tensor([False, True])
    matrix = similarity_matrix(torch.tensor([[0.9, 0.1, 0.1, 0.0], [1.1, -0.2, 0.0, 0.2]]))
    found, masks = Views(Squares(pictures, None, 96), network).pictures(rows, matrix, mirrored, 64)
    straight = Views(Squares([pictures[0], pictures[1].flip(2)], None, 96), network).pictures(
        rows, matrix, torch.zeros(2, dtype=torch.bool), 64
    )
    torch.testing.assert_close(found, straight[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(masks, straight[1], atol=1e-4, rtol=1e-4)


def test_read_places_knows_where_a_cell_looks():
    ramp = torch.arange(16.0).expand(1, 1, 16, 16) * 4 + 1.5
    read = read_places(Tap(ramp, 4.0, 1.5, 64), 64, 8)
    assert torch.allclose(read[0, :8, 0], torch.arange(8.0) * 8 + 3.5)


def test_transforms_are_found_among_wrong_matches():
    source = torch.Generator().manual_seed(0)
    p = torch.rand(1, 60, 2, generator=source) * 2 - 1
    true = torch.tensor([[0.8, 0.3, 0.1, -0.1]])
    q = move(true, p)
    q[:, :20] = torch.rand(1, 20, 2, generator=source) * 2 - 1
    weight = torch.ones(1, 60)
    drawn, score = sample_similarities(p, q, weight, 0.06, source)
    assert torch.allclose(drawn, true, atol=0.02) and 38 < score < 50
    assert torch.allclose(refit_similarity(p, q, weight, 0.06, start=drawn), true, atol=0.02)
    assert torch.allclose(fit_similarity(p[:, 20:], q[:, 20:], weight[:, 20:]), true, atol=1e-5)
    bent = similarity_matrix(true)
    bent[:, 0, 1] += 0.1
    q = carry(bent, p)
    assert torch.allclose(refit_affine(p, q, weight, similarity_matrix(true), 0.1, pull=0.0), bent, atol=1e-3)
    bent[:, 2, 0] = 0.1
    q = carry(bent, p)
    found = refit_homography(p, q, weight, similarity_matrix(true), 0.1, pull=0.0, rounds=20)
    assert torch.allclose(found, bent, atol=5e-3)


def test_the_frame_is_the_median_and_does_not_shrink_by_one_runaway():
    matrix = torch.eye(3).repeat(7, 1, 1)
    matrix[3, :2] *= 50
    assert torch.allclose(gauge(matrix, torch.ones(7))[0], torch.eye(3))


def test_flow_is_what_matches_leave_over():
    grid = 16
    points = places(grid)[None]
    gap = torch.stack([0.05 * torch.sin(2 * points[..., 1]), 0.03 * points[..., 0]], -1)
    matches = Matches(torch.arange(grid * grid)[None], points, points + gap, torch.ones(1, grid * grid))
    flow = residual_flow(matches, torch.eye(3)[None], grid, 0.1)
    assert (flow.flatten(1, 2) - gap).norm(dim=-1).mean() < 0.3 * gap.norm(dim=-1).mean()
    assert residual_flow(matches._replace(weight=torch.zeros(1, grid * grid)), torch.eye(3)[None], grid, 0.1).eq(0).all()


def test_mirrored_pictures_are_found_and_symmetrical_sets_are_left():
    count = 12
    pairs = torch.combinations(torch.arange(count))
    true = torch.arange(count) < 4
    same = true[pairs[:, 0]] == true[pairs[:, 1]]
    plain, other = torch.where(same, 10.0, 2.0), torch.where(same, 2.0, 10.0)
    source = torch.Generator().manual_seed(0)
    assert torch.equal(choose_mirrored(pairs, plain, other, count, source), true)
    noise = torch.randn(len(pairs), generator=source)
    assert not choose_mirrored(pairs, 10 + noise, 10 - noise, count, source).any()
    assert not choose_mirrored(pairs, torch.full((len(pairs),), 9.0), torch.full((len(pairs),), 2.0), count, source).any()
    weak = choose_mirrored(pairs, torch.where(same, 10.0, 8.0), torch.where(same, 8.0, 10.0), count, source, certain=True)
    assert torch.equal(weak, true)


@pytest.mark.parametrize("many", [0, 1, 5])
def test_a_picture_of_little_evidence_is_mirrored_only_if_many_are(many: int):
    count = 14
    pairs = torch.combinations(torch.arange(count))
    true = torch.arange(count) > count - 1 - many
    same = true[pairs[:, 0]] == true[pairs[:, 1]]
    plain, other = torch.where(same, 10.0, 2.0), torch.where(same, 2.0, 10.0)
    doubtful = pairs[:, 0] == 0  # is like the mirror images of the others, but not much
    plain[doubtful], other[doubtful] = torch.where(same, 8.0, 12.0)[doubtful], torch.where(same, 12.0, 8.0)[doubtful]
    found = choose_mirrored(pairs, plain, other, count, torch.Generator().manual_seed(0))
    assert torch.equal(found[1:], true[1:])
    assert bool(found[0]) == (many == 5)


def test_clusters_are_parts_of_the_graph():
    pairs = torch.tensor([[0, 1], [1, 2], [2, 3], [4, 5], [5, 6], [3, 4], [6, 7]])
    strength = torch.tensor([3.0, 3, 3, 3, 3, 0, 0])
    assert components(pairs, strength > 0, 8).tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
    assert split(pairs, strength, 8, "auto").tolist() == [0, 0, 0, 0, 1, 1, 1, 0]
    assert split(pairs, strength + 0.01, 8, 2).tolist()[:7] == [0, 0, 0, 0, 1, 1, 1]


def test_the_doubtful_have_far_less_of_the_template():
    share = torch.tensor([0.3, 0.28, 0.33, 0.31, 0.05, 0.29])
    assert doubtful(share).tolist() == [False, False, False, False, True, False]
    assert not doubtful(torch.full((6,), 0.2)).any()


def test_bases_of_a_constant_tap_are_finite():
    tap = torch.ones(2, 9, 5)
    inside = torch.ones(2, 9, dtype=torch.bool)
    bases = Bases.fit([tap], inside, torch.Generator().manual_seed(0))
    assert bases.apply([tap]).isfinite().all()


# ---- networks of the user's own


class Tokens(nn.Module):
    """One class token, then a token of mean colours for each 8x8 patch."""

    def forward(self, x: Tensor) -> Tensor:
        cells = torch.nn.functional.avg_pool2d(x, 8).flatten(2).transpose(1, 2)
        return torch.cat([cells[:, :1] * 0, cells], 1)


def test_a_torchscript_file_describes_places(tmp_path):
    path = tmp_path / "tokens.pt"
    torch.jit.script(Tokens()).save(str(path))
    network = load_features(path, stride=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    (tap,) = network.features(torch.full((2, 3, 64, 64), 0.25))
    assert tap.maps.shape == (2, 3, 8, 8) and torch.allclose(tap.maps, torch.tensor(0.25), atol=1e-6)
    assert (tap.stride, tap.first, network.name) == (8.0, 3.5, "tokens.pt")
    fixed = load_features(path, stride=8, side=128)
    assert fixed.features(torch.zeros(1, 3, 64, 64))[0].maps.shape[-1] == 16


def test_features_that_cannot_be_used_are_said(tmp_path):
    with pytest.raises(UserError, match="do not exist"):
        load_features(tmp_path / "none.pt", stride=8)
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_features(damaged, stride=8)
    path = tmp_path / "tokens.pt"
    torch.jit.script(Tokens()).save(str(path))
    with pytest.raises(UserError, match="check the stride"):
        load_features(path, stride=2).features(torch.zeros(1, 3, 64, 64))
    with pytest.raises(UserError, match="stride of at least 1"):
        load_features(path, stride=0)


def test_turns_beyond_the_limit_are_no_candidates():
    p = places(6)[None]
    q = move(torch.tensor([[math.cos(2.5), math.sin(2.5), 0.0, 0.0]]), p)
    found, score = sample_similarities(p, q, torch.ones(1, 36), 0.02, torch.Generator().manual_seed(0))
    assert score < 10 and found.isfinite().all()
