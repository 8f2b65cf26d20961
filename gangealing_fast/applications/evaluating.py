# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.evaluate` does: read, choose pairs, carry points in every way, judge, report.

What each way carried is a file of its own, written when that way is finished. A run that was stopped finds these files again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.applications.carried import (
    Carried,
    fingerprint,
    keep,
    kept,
    move_kept,
    read_results,
    remove_kept,
    write_pairs,
)
from gangealing_fast.applications.choosing import aligner_of
from gangealing_fast.applications.config import EvaluateConfig
from gangealing_fast.applications.evaluation_report import WORDS, percent, write_evaluation_report
from gangealing_fast.applications.judging import (
    Counting,
    Judged,
    SizeRule,
    by_group,
    by_point,
    differences,
    judge,
    judge_cycles,
    pick,
    sizes_of,
)
from gangealing_fast.applications.refining import refined_by, spacing
from gangealing_fast.applications.transfers import ByAligner, Identity, Method, NearestNeighbour
from gangealing_fast.congealing.features import FeatureNetwork, efficientnet_features, load_features, self_supervised_features
from gangealing_fast.data.keypoints import KeypointSet, Pairs, choose_pairs, draw_cycles, open_keypoints
from gangealing_fast.models.self_supervised import EXPORT_NAME
from gangealing_fast.runtime.commands import command_line
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.setup import set_threads
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.claims import results_folder
from gangealing_fast.storage.files import make_folder, write_json

COMMAND = "evaluate"
WRITES = r"figures\.json|report\.html|pairs\.npz"
FIGURES = "figures.json"
CARRIED = ".carried"
"""Where what is finished lies until all is, so that a run that is killed goes on."""


def run(config: EvaluateConfig) -> None:
    """Judge all ways to carry points. Raises UserError for a user's mistakes; what was carried before stays."""
    set_threads(config.threads)
    if not config.alpha:
        raise UserError("--alpha needs at least one number; give 0.1, or leave the option out")
    data = _data(config)
    shown_size(config, data)
    pairs = choose_pairs(
        data,
        config.protocol,
        pairs=config.pairs,
        subsets=config.subsets,
        subset_size=config.subset_size,
        classes=config.classes,
        seed=config.seed,
    )
    print(f"{len(data)} pictures with key points ({data.kind}), {len(pairs.pairs)} pairs (protocol {pairs.protocol})")
    for note in data.notes:
        print(note)
    others = [read_results(path, data, pairs) for path in config.results]
    methods = _methods(config, data)
    if len({one.name for one in methods} | {one.name for one in others}) < len(methods) + len(others):
        raise UserError("two files of --results have the same name, or that of a baseline; rename one")
    inputs = [("--results", path) for path in config.results]
    inputs += [(f"--{name}", path) for name in ("checkpoint", "keypoints") if (path := getattr(config, name)) is not None]
    with results_folder(config.out, COMMAND, config, WRITES, pictures={"--data": config.data}, inputs=inputs) as folder:
        mark = fingerprint(config, data, pairs)
        remove_kept(config.out / CARRIED, mark)
        write_pairs(folder / "pairs.npz", data, pairs)
        _evaluate(config, data, pairs, methods, others, folder, mark)


def _data(config: EvaluateConfig) -> KeypointSet:
    data = open_keypoints(
        config.data,
        keypoints=config.keypoints,
        split=config.split,
        category=config.category,
        mirror=config.mirror,
        limit=config.limit,
    )
    acsm = config.crop == "auto" and config.keypoints is not None and config.keypoints.suffix.lower() == ".mat"
    return data.cropped() if config.crop == "object" or acsm else data


def _methods(config: EvaluateConfig, data: KeypointSet) -> list[Method]:
    methods: list[Method] = []
    if config.checkpoint is not None:
        aligner = aligner_of(config.checkpoint, config)
        methods.append(ByAligner(data, _refined(aligner, config, data)))
        if not (aligner.names or config.refine):  # the published rule is one for networks, not for sets and what is refined
            published = aligner_of(config.checkpoint, config)
            published.points = "published"
            methods.append(ByAligner(data, published))
    if config.features != "none":
        methods.append(NearestNeighbour(data, network_of(config), whiten=config.whiten, seed=config.seed))
    return [*methods, Identity(data)]


def _refined(aligner: Aligner, config: EvaluateConfig, data: KeypointSet) -> Aligner:
    """With --refine, refined on the pictures that points are carried between; their key points are not looked at."""
    if not config.refine:
        return aligner
    indices = range(0, len(data), spacing(config, len(data)))
    return refined_by(aligner, config, (data.picture(index) for index in indices))


def network_of(config: EvaluateConfig) -> FeatureNetwork:
    """The network that --features names. Raises UserError if there is none."""
    if config.features == "efficientnet":
        return efficientnet_features()
    path = Path(config.features)
    if (path / EXPORT_NAME).is_file() or path.suffix == ".safetensors":
        return self_supervised_features(path)
    return load_features(
        config.features,
        stride=config.features_stride,
        mean=config.features_mean,
        std=config.features_std,
        side=config.features_side or None,
    )


def _evaluate(
    config: EvaluateConfig,
    data: KeypointSet,
    pairs: Pairs,
    methods: Sequence[Method],
    others: Sequence[Carried],
    folder: Path,
    mark: str,
) -> None:
    counting = Counting(tuple(dict.fromkeys(config.alpha)), config.bootstrap, config.confidence, config.seed)
    start = data.points[pairs.pairs[:, 0]]
    parts = make_folder(config.out / CARRIED)
    carried = [_carry(method, pairs.pairs, start, parts / f"transfers-{method.name}.npz", mark) for method in methods]
    carried += others
    judged = {one.name: judge(data, pairs, one.points, one.mirrored, counting) for one in carried}
    cycles = _cycles(config, data, methods, counting, parts, mark)
    of = shown_size(config, data)
    figures: dict[str, Any] = {
        "command": command_line(COMMAND, config),
        "data": {"kind": data.kind, "pictures": len(data), "points": data.points.shape[1], "crop": config.crop},
        "pairs": {"protocol": pairs.protocol, "count": len(pairs.pairs), "groups": len(pairs.names)},
        "shown": {"of": of, "alpha": shown_alpha(config)},
        "methods": {one.name: _method_figures(one, judged[one.name], data, pairs, of, shown_alpha(config)) for one in carried},
        "differences": {
            one.name: differences(judged[one.name], judged["nearest"], counting)
            for one in carried
            if "nearest" in judged and one.name != "nearest"
        },
        "cycles": cycles,
    }
    write_evaluation_report(folder, figures, data, pairs, carried, pictures=config.pictures)
    move_kept(config.out / CARRIED, folder)
    write_json(folder / FIGURES, figures)  # last: where it is, the run is finished
    _say(figures, config.out, config)


def _carry(method: Method, pairs: Tensor, points: Tensor, file: Path, mark: str) -> Carried:
    """What a method makes of points, from its file if that is there."""
    before = kept(file, mark, method)
    if before is not None:
        print(f"{method.label}: as carried before, {printable(file.name)}")
        return before
    with _progress(method.looks(pairs), method.name) as progress:
        found = method.transfer(pairs, points, progress.update)
    done = Carried(method.name, method.label, found, method.mirrored(pairs))
    keep(file, done, mark)
    return done


def _cycles(
    config: EvaluateConfig, data: KeypointSet, methods: Sequence[Method], counting: Counting, folder: Path, mark: str
) -> dict[str, dict[str, Any]]:
    """Figures of the points that came back, by method and by the number of pictures of a cycle."""
    found: dict[str, dict[str, Any]] = {method.name: {} for method in methods}
    for length in sorted(set(config.cycles)) if config.cycle_count else ():
        if length > len(data):
            print(f"cycles of {length} pictures are left out: there are {len(data)}")
            continue
        cycles = draw_cycles(len(data), length, config.cycle_count, config.seed)
        for method in methods:
            file = folder / f"cycles-{method.name}-{length}.npz"
            before = kept(file, mark, method)
            back = before.points if before is not None else _around(method, cycles, data.points[cycles[:, 0]])
            if before is None:
                keep(file, Carried(method.name, method.label, back, None), mark)
            found[method.name][str(length)] = judge_cycles(data, cycles, back, counting).lines
    return found


def _around(method: Method, cycles: Tensor, points: Tensor) -> Tensor:
    """Points `[C, P, 2]` of the first pictures of cycles `[C, K]`, carried through all their pictures and back."""
    steps = [cycles[:, [step, (step + 1) % cycles.shape[1]]] for step in range(cycles.shape[1])]
    with _progress(sum(map(method.looks, steps)), f"{method.name}, cycles of {cycles.shape[1]}") as progress:
        for pairs in steps:
            lost = points.isnan()
            points = method.transfer(pairs, points.nan_to_num(0.0), progress.update).masked_fill(lost, torch.nan)
    return points


def _progress(looks: int, what: str) -> tqdm:
    return tqdm(total=looks, unit="picture", desc=what, disable=not looks)


def _method_figures(one: Carried, judged: Judged, data: KeypointSet, pairs: Pairs, of: SizeRule, alpha: float) -> dict[str, Any]:
    shares = {way.mirroring: share for way, share in judged.shares.items() if way.of == of and way.per == "point"}
    return {
        "label": one.label,
        "pairs_without_points": int((~one.points.isfinite()).any(2).all(1).sum()),
        "mirrored_pairs": 0 if one.mirrored is None else int(one.mirrored.sum()),
        "figures": judged.lines,
        "points": by_point(data, pairs, one.points, one.mirrored, of, alpha),
        "groups": {str(mirroring).lower(): by_group(share, pairs) for mirroring, share in shares.items()},
    }


def shown_size(config: EvaluateConfig, data: KeypointSet) -> SizeRule:
    """The size that the report shows. Raises UserError for a size that the data set does not have."""
    if config.of == "auto":
        return "object" if data.kind == "SPair-71k" else "picture" if data.kind.startswith("CUB") else "keypoints"
    if config.of not in sizes_of(data):
        raise UserError(f"--of {config.of} needs the objects' boxes, which these key points come without; choose another --of")
    return config.of


def shown_alpha(config: EvaluateConfig) -> float:
    """The first threshold from 0.1, or the largest."""
    return min((alpha for alpha in config.alpha if alpha >= 0.1), default=max(config.alpha))


def _say(figures: dict[str, Any], folder: Path, config: EvaluateConfig) -> None:
    of, alpha = figures["shown"]["of"], figures["shown"]["alpha"]
    print(f"PCK-Transfer@{alpha:g} of {WORDS[of]}, in per cent, with the {100 * config.confidence:g} % interval:")
    for name, method in figures["methods"].items():
        values = [pick(method["figures"], of=of, alpha=alpha, per="point", mirroring=mirroring) for mirroring in (False, True)]
        plain, mirrored = (f"{percent(line['value'])} ({percent(line['low'])} to {percent(line['high'])})" for line in values)
        print(f"  {name:20} {plain}; with mirrored labels {mirrored}")
    print(f"figures.json, report.html, pairs.npz and transfers-*.npz are in {printable(folder)}")
    if config.checkpoint is None:
        print("next: --checkpoint judges an aligner, --results NAME.npz the points that another system carried along pairs.npz")
    else:
        print("next: open report.html; --results NAME.npz judges the points that another system carried along pairs.npz")
