# SPDX-License-Identifier: Apache-2.0
"""`train --teach-from SET`: a similarity transformer learns to do in one pass what `congeal` found of a set, without a generator.

A picture of the set is shown in a random pose A, `shown(q) = picture(A⁻¹ q)`. The transformer's warp W' of it has to carry the
template to where the set's warp W does: `A⁻¹ W' = W`. The error is the root of `poses.equivariance_error`, W taken from the set
without its flow: the flow of what is behind the object is no part of where the object lies.

A transformer that reads places (`models.place_similarity`) is also told what it should have read where each place of the template
lies, flow included. How far a place can be relied on is the width of a Laplace distribution in two dimensions, -log p = d / s +
2 log s + const (cf. Kendall and Gal 2017, arXiv 1703.04977, section 3.1): what looks alike everywhere gets little weight. Places
count as much as they do if a set is aligned, by their saliency. A flow that is read from places (`models.place_flow`) has no
weights and is taught by that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gangealing_fast.alignment.building import make_transformer
from gangealing_fast.alignment.config import TrainConfig
from gangealing_fast.alignment.options import warping_in_use
from gangealing_fast.alignment.poses import POSE_NUMBERS, PoseRange, equivariance_error, show
from gangealing_fast.alignment.results import align_command
from gangealing_fast.checkpoints.writing import export_aligner
from gangealing_fast.congealing.folder import SavedSet, fingerprint, load_set
from gangealing_fast.congealing.placing import reading_places
from gangealing_fast.congealing.template import SALIENCY_POWER
from gangealing_fast.congealing.templates import Templates
from gangealing_fast.data.decoding import to_square
from gangealing_fast.data.originals import Originals
from gangealing_fast.data.pictures import to_float
from gangealing_fast.geometry.warps import identity_grid, invert, mirror_grid, transform_points
from gangealing_fast.metrics import average_image
from gangealing_fast.models.place_similarity import Places, PlaceSimilarityTransformer
from gangealing_fast.models.spatial_transformer import SpatialTransformer
from gangealing_fast.report.pictures import save_grid
from gangealing_fast.report.run import write_run_report
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.setup import choose_device, prepare_process
from gangealing_fast.storage.claims import plain
from gangealing_fast.storage.runs import open_run
from gangealing_fast.training.fitting import fit

COMMAND = "train"
PLACES = 8
"""Places of the template a side, at which warps are compared."""
NEAR = 0.1
"""An error below that counts as right, in halves of a picture's side."""
TOLD = 16
"""Places of the template a side, of which a transformer that reads places is told where they lie."""
TELLING = 0.3
"""How much it counts, beside the error, that places were read rightly."""
WIDTH = 0.1
"""Of the distribution of what is read, at a reliance of 0, in halves of the template's side."""
SMALL = 1e-4
"""Added to squares of which roots are taken, whose slope is infinite at 0."""


class Taught(NamedTuple):
    """Pictures `[N, 3, S, S]` in [-1, 1], in squares, as they are aligned (mirrored or not), and where the set reads them:
    grids `[N, PLACES, PLACES, 2]` without its flow, flows `[N, TOLD, TOLD, 2]` with it. How much each place of the flows counts:
    saliency `[TOLD, TOLD]`, 1 on the mean."""

    pictures: Tensor
    grids: Tensor
    flows: Tensor
    saliency: Tensor


def read_taught(saved: SavedSet, side: int) -> Taught:
    """The members of a set at `side` pixels. Raises UserError if a picture is missing or another one than when the set was made."""
    originals, found = Originals(saved.source), saved.found
    pictures: list[Tensor] = []
    grids: list[Tensor] = []
    flows: list[Tensor] = []
    for k in (~found.outlier).nonzero().flatten().tolist():
        original = originals.read(saved.names[k])
        if fingerprint(original) != saved.fingerprints[k]:
            raise UserError(f"{saved.names[k]} in {saved.source} is another picture than when the set was made: congeal again")
        square = to_square(Image.fromarray(original.permute(1, 2, 0).contiguous().numpy()), side, "border")
        matrix, flow, mirrored = (part[k : k + 1] for part in (found.matrix, found.flow, found.mirrored))
        size = (original.shape[2], original.shape[1])
        for kept, flow_kept, number in ((grids, torch.zeros_like(flow), PLACES), (flows, flow, TOLD)):
            grid = _in_square(reading_places(matrix, flow_kept, saved.side, number), size).float()
            kept.append(mirror_grid(grid, mirrored)[0])
        picture = to_float(torch.from_numpy(square)).permute(2, 0, 1)
        pictures.append(picture.flip(2) if bool(mirrored) else picture)
    return Taught(torch.stack(pictures), torch.stack(grids), torch.stack(flows), _saliency(saved))


def _saliency(saved: SavedSet) -> Tensor:
    """`[TOLD, TOLD]`, of the set's template; a set that was not aligned by features has none, so that all places count alike."""
    if saved.method != "features":
        return torch.ones(TOLD, TOLD)
    try:
        level = Templates.from_state(saved.state).clusters[0].coarse
    except ValueError as error:
        raise UserError(f"the set's template cannot be read: {error}; congeal again") from None
    saliency = F.adaptive_avg_pool2d(level.saliency.reshape(1, 1, level.grid, level.grid), TOLD)[0, 0] ** SALIENCY_POWER
    return saliency / saliency.mean().clamp_min(1e-6)


def _in_square(places: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels of a picture of `size` (width, height) as places of the square around it, normalised."""
    largest = max(size)
    corner = places.new_tensor([(largest - size[0]) / 2, (largest - size[1]) / 2])
    return (2 * (places + corner) + 1) / largest - 1


class Lessons:
    """Pictures of the set in random poses, and how far a transformer's warps are from the set's."""

    def __init__(self, transformer: SpatialTransformer, taught: Taught, poses: PoseRange, *, batch: int, padding_mode: str) -> None:
        self.transformer, self.taught, self.poses = transformer, taught, poses
        self.batch, self.padding_mode = batch, padding_mode

    def lesson(self) -> tuple[Tensor, float]:
        """The loss of `batch` pictures, and the share of them that is nearly right."""
        rows, numbers = torch.randint(len(self.taught.pictures), (self.batch,)), torch.randn(self.batch, POSE_NUMBERS)
        errors, told = self._taught(rows, numbers)
        loss = errors.mean() if told is None else errors.mean() + TELLING * told.mean()
        return loss, (errors.detach() < NEAR).float().mean().item()

    def errors(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """`[n]`, of pictures `rows` `[n]` in the poses of normal `numbers` `[n, 4]`, in halves of a picture's side."""
        return self._taught(rows, numbers)[0]

    def _taught(self, rows: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor | None]:
        """Errors `[n]`, and of a transformer that reads places how unlikely `[n]` the right ones were to it."""
        device = self.taught.pictures.device
        pose = self.poses.draw(numbers.to(device))
        shown = self.transformer.network_input(show(self.taught.pictures[rows], pose, self.padding_mode))
        similarity = self.transformer.similarity
        assert similarity is not None  # as `_check` made sure
        features = similarity.features(shown)
        matrix = similarity.warp_head(features, None)
        warp = transform_points(matrix.float(), identity_grid(PLACES, PLACES, device=device)[None])
        errors = (equivariance_error(self.taught.grids[rows], warp, pose) + SMALL).sqrt()
        if not isinstance(similarity, PlaceSimilarityTransformer):
            return errors, None
        where = transform_points(invert(pose), self.taught.flows[rows])
        return errors, unlikelihood(similarity.warp_head.places(features), where, self.taught.saliency)


def unlikelihood(places: Places, where: Tensor, weight: Tensor) -> Tensor:
    """`[N]`: -log p of what was read, up to a constant, where the places of the template lie; `where` `[N, n, n, 2]`, normalised
    coordinates of the pictures. weight `[n, n]`: how much each counts. Places beyond the pictures do not count."""
    count = len(places.reliance[0])
    read = torch.cat([places.template, places.reliance[..., None]], 3).permute(0, 3, 1, 2)
    # grid_sample takes cells to lie at their middles; those of the places lie a little beyond.
    shift = places.at[0, 0] - (1 / count - 1)
    found = F.grid_sample(read, where - shift, mode="bilinear", padding_mode="border", align_corners=False)
    apart = (found[:, :2].permute(0, 2, 3, 1) - identity_grid(*where.shape[1:3], device=where.device)).square().sum(3)
    reliance, counts = found[:, 2], (where.abs() < 1).all(3) * weight
    values = (apart + SMALL).sqrt() * (reliance / 2).exp() / WIDTH - reliance
    return (values * counts).sum((1, 2)) / counts.sum((1, 2)).clamp_min(1)


def run(config: TrainConfig) -> Path:
    """Train, or go on; returns the folder with the aligner. Raises UserError for a user's mistakes."""
    assert config.teach_from is not None
    saved = load_set(config.teach_from)
    _check(config, saved)
    with open_run(config.out, COMMAND, config, pictures={"--teach-from": config.teach_from}) as resuming:
        device = choose_device(config.device)
        prepare_process(config)
        taught = Taught(*(tensor.to(device) for tensor in read_taught(saved, config.flow_size)))
        print(f"{len(taught.pictures)} pictures of the set {config.teach_from}")
        torch.manual_seed(config.seed)
        transformer = make_transformer(config, config.flow_size).to(device)
        learned = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(learned, config.learning_rate, fused=True)
        lessons = Lessons(transformer, taught, PoseRange.of(config), batch=config.batch, padding_mode=config.padding_mode)
        fit(config, COMMAND, optimizer, {"transformer": transformer}, lessons.lesson, "near", resuming=resuming)
        _finish(config, transformer.eval().requires_grad_(False), lessons)
    return config.out


def _check(config: TrainConfig, saved: SavedSet) -> None:
    if config.transforms != "similarity" and (config.transforms, config.flow_trunk) != ("similarity,flow", "places"):
        raise UserError(
            "--teach-from teaches a similarity, and with it the flow that is read from places: give --transforms similarity, or "
            "similarity,flow with --trunk places --flow-trunk places (align --refine adds a flow afterwards)"
        )
    if len(saved.found.template) > 1:
        raise UserError(
            f"{config.teach_from} has {len(saved.found.template)} templates, but one is taught: congeal with --clusters 1"
        )
    if config.start_from is not None or config.clusters > 1 or config.flips:
        raise UserError("--teach-from takes neither --start-from nor --clusters nor --flips; leave them out")


@torch.no_grad()
def _finish(config: TrainConfig, transformer: SpatialTransformer, lessons: Lessons) -> None:
    """Export, averages, figures and the report."""
    warping = warping_in_use(config)
    export_aligner(config.out / "aligner.safetensors", transformer, None, warping)
    pictures = lessons.taught.pictures[:200]
    after = torch.cat([transformer(part, warping=warping).image for part in pictures.split(32)])
    averages = [("Average before", average_image(pictures)), ("Average after", average_image(after))]
    save_grid(torch.cat([picture for _, picture in averages]).clamp(-1, 1).cpu(), config.out / "average.png", columns=2)
    generator = torch.Generator().manual_seed(1)
    count = min(200, len(lessons.taught.pictures))
    errors = lessons.errors(torch.arange(count), torch.randn(count, POSE_NUMBERS, generator=generator))
    near = (errors < NEAR).float().mean().item()
    print(f"  in random poses {near:.2f} of the set's pictures are nearly where the set has them")
    figures: dict[str, Any] = {"Pictures nearly where the set has them, in random poses": near}
    write_run_report(
        config.out,
        title=f"Taught by a set: {config.out.name}",
        summary=f"{config.steps} steps of {config.batch} pictures",
        averages=[(name, picture.cpu()) for name, picture in averages],
        metrics=figures,
        configuration=plain(config),
        commands=[("Align pictures of your own", align_command(config.out, refine=True))],
    )
