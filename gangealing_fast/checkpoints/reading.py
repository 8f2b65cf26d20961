# SPDX-License-Identifier: Apache-2.0
"""Any supported checkpoint as networks of this package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gangealing_fast.checkpoints import recover, stylegan2_ada
from gangealing_fast.checkpoints.pickles import Persistent, damaged, read_pickle, read_torch
from gangealing_fast.geometry.warping import DEFAULT, PUBLISHED, Setting, Warping, settle
from gangealing_fast.models import ClusterClassifier, DcganGenerator, Generator, LatentTarget, SpatialTransformer
from gangealing_fast.models.spatial_transformer import CONSTANT_BUFFERS
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint
from gangealing_fast.storage.exports import load_safetensors
from gangealing_fast.storage.networks import build_network, fitting
from gangealing_fast.storage.settings import check_settings
from gangealing_fast.storage.torch_files import OLD_START

NO_STYLES = "its DCGAN generator has no styles to align by; train one with pretrain --architecture stylegan2"
Network = TypeVar("Network", bound=nn.Module)
_EXPORTS = ("generator.safetensors", "aligner.safetensors")


@dataclass
class Parts:
    """What a checkpoint holds; None for what it does not.

    warping: how the aligner is meant to be used. assumed: what of that the file does not say. inject: how many of the generator's
    latents its template sets, if the file says so. options: the training options that the file records, as far as they are plain
    values.
    """

    origin: str
    generator: Generator | None = None
    mean_latent: Tensor | None = None
    transformer: SpatialTransformer | None = None
    target: LatentTarget | None = None
    classifier: ClusterClassifier | None = None
    warping: Warping = DEFAULT
    inject: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    assumed: tuple[Setting, ...] = ()

    def settle(
        self,
        source: object,
        *,
        padding_mode: str | None = None,
        iters: int | None = None,
        say: Callable[[str], None] = print,
    ) -> Parts:
        """These parts of the file `source`, with the `warping` that the user chooses; see `geometry.warping.settle`.

        Raises UserError for a choice that is none.
        """
        try:
            self.warping = settle(
                self.warping, self.assumed if self.transformer else (), source, padding_mode=padding_mode, iters=iters, say=say
            )
        except ValueError as error:
            raise UserError(f"{source} cannot be used so: {error}") from None
        self.assumed = ()
        return self

    def names(self) -> list[str]:
        """The parts there are, in words."""
        there = {
            "generator": self.generator,
            "transformer": self.transformer,
            "target latent": self.target,
            "cluster classifier": self.classifier,
        }
        return [name for name, value in there.items() if value is not None]


def read(path: str | Path) -> Parts:
    """The networks in a file or results folder, whatever project wrote it; on the CPU, in evaluation mode, float32.

    Understood: this package's safetensors, checkpoints and results folders; the original's `.pt`; rosinality's StyleGAN2 `.pt`;
    StyleGAN2-ADA's `.pkl`. No code in the file is run. Raises UserError where the file is missing, damaged or holds anything else.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    try:
        return _read(path)
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not a checkpoint that this package understands: {_reason(error)}") from None


def load_generator(path: str | Path) -> Generator:
    """The frozen generator in any file that `read` understands, float32. Raises UserError where there is none."""
    generator = read(path).generator
    if generator is None:
        raise UserError(f"{path} holds no generator; give the generator.safetensors that pretrain wrote, or a StyleGAN2 checkpoint")
    return generator


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error.args[0] if error.args else 'a tensor'} is missing"
    return " ".join(str(error).split())[:160]


def _folder(path: Path) -> Parts:
    found = [path / name for name in _EXPORTS if (path / name).is_file()]
    if not found:
        raise UserError(f"{path} holds neither {_EXPORTS[0]} nor {_EXPORTS[1]}; give a results folder of pretrain or train")
    first, *others = (read(file) for file in found)
    for more in others:
        first.transformer, first.target, first.classifier = more.transformer, more.target, more.classifier
        first.warping, first.assumed, first.inject = more.warping, more.assumed, more.inject
    return first


def _read(path: Path) -> Parts:
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        start = b""
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if start[:2] != b"PK" and not start.startswith(OLD_START):
        return _pickle(path, read_pickle(path))
    content = read_torch(path)
    if not isinstance(content, dict):
        raise ValueError("it holds no dictionary")
    if content.get("format") == checkpoint.FORMAT:
        return _own(checkpoint.load(path), content["kind"])
    if "t_ema" in content or "t" in content:
        return _original(content)
    if "g_ema" in content:
        average = content.get("latent_avg")
        return Parts("rosinality StyleGAN2", _generator(content["g_ema"]), average if isinstance(average, Tensor) else None)
    raise ValueError(f"it holds {', '.join(map(str, list(content)[:6])) or 'nothing'}, but neither g_ema nor t_ema")


def _safetensors(path: Path) -> Parts:
    tensors, about = load_safetensors(path)
    if about.get("kind") == "generator":
        settings = recover.check(check_settings(about.get("generator")), recover.generator_options(tensors))
        return Parts("gangealing_fast generator", _build(Generator, settings, tensors), options=about.get("statistics", {}))
    if about.get("kind") == "dcgan":
        raise ValueError(NO_STYLES)
    if about.get("kind") != "aligner":
        return Parts("safetensors", _generator(tensors))
    prefixed: dict[str, dict[str, Tensor]] = {"transformer": {}, "target": {}, "classifier": {}}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        if part not in prefixed or not name:
            raise ValueError(f"{key} has no place in an aligner")
        prefixed[part][name] = value
    settings = recover.stated_transformer(check_settings(about.get("transformer")), prefixed["transformer"])
    transformer = _build(SpatialTransformer, settings, prefixed["transformer"])
    classifier = None
    if prefixed["classifier"]:
        classifier = _classifier(prefixed["classifier"], transformer.heads, check_settings(about.get("classifier")))
    return Parts(
        "gangealing_fast aligner",
        transformer=transformer,
        target=_target(prefixed["target"], transformer.heads) if prefixed["target"] else None,
        classifier=classifier,
        warping=Warping.of(about.get("padding_mode"), about.get("iters")),
        inject=check_settings(about, names=["inject"]).get("inject"),
    )


def _own(state: dict[str, Any], kind: str) -> Parts:
    if kind == "pretrain":
        settings = check_settings(state["config"], where="its record of the network")
        if "mapping_layers" not in settings:
            raise ValueError(NO_STYLES)
        return Parts("gangealing_fast pretrain checkpoint", _build(Generator, settings, state["average"]))
    if kind == "train":
        settings = recover.complete(check_settings(state["transformer_config"], where="its record of the network"))
        transformer = _build(SpatialTransformer, settings, state["average"])
        target = _target(state["target"], transformer.heads)
        parts = Parts("gangealing_fast train checkpoint", transformer=transformer, target=target)
        if "use" not in state:  # as earlier versions
            parts.assumed = ("padding_mode", "iters")
            return parts
        use = state["use"]
        parts.warping = Warping.of(use["padding_mode"], use["iters"])
        parts.inject = check_settings(use, names=["inject"], where="its record of use")["inject"]
        return parts
    raise ValueError(f"it is a checkpoint of kind {kind}, which holds no generator and no aligner")


def _original(content: dict[str, Any]) -> Parts:
    options = content.get("args")
    options = {k: v for k, v in options.items() if _plain(v)} if isinstance(options, dict) else {}
    state: dict[str, Tensor] = content["t_ema"] if "t_ema" in content else content["t"]
    if not any(key.startswith("stns.") for key in state):  # a single transformer is not wrapped there
        state = {f"stns.0.{key}": value for key, value in state.items()}
    transformer = _build(SpatialTransformer, recover.transformer_options(state, options.get("flow_size")), state)
    generator = _generator(content["g_ema"]) if "g_ema" in content else None
    target = _target(content["ll"], transformer.heads) if "ll" in content else None
    mean = None if target is None else target.lat_mean[0]
    classifier = None
    if isinstance(content.get("classifier"), dict):
        classifier = _classifier(content["classifier"], transformer.heads)
    settings: tuple[Setting, ...] = ("padding_mode", "iters") if transformer.similarity is not None else ("padding_mode",)
    assumed = tuple(name for name in settings if options.get(name) is None)
    return Parts(
        "GANgealing (original)",
        generator,
        mean,
        transformer,
        target,
        classifier,
        Warping.of(
            *(getattr(PUBLISHED, name) if options.get(name) is None else options[name] for name in ("padding_mode", "iters"))
        ),
        check_settings(options, names=["inject"], where="its record of options").get("inject"),
        options,
        assumed,
    )


def _plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _pickle(path: Path, content: object) -> Parts:
    if isinstance(content, dict):
        content = content.get("G_ema")
    if not isinstance(content, Persistent):
        raise damaged(path)
    tensors = content.tensors()
    if not stylegan2_ada.is_generator(set(tensors)):
        raise ValueError(f"its {content.class_name} is no StyleGAN2 generator")
    state, mean = stylegan2_ada.rename(tensors)
    return Parts("StyleGAN2-ADA (PyTorch)", _generator(state), mean)


def _generator(state: dict[str, Tensor]) -> Generator:
    return _build(Generator, recover.generator_options(state), state)


def _classifier(state: dict[str, Tensor], heads: int, stated: dict[str, Any] | None = None) -> ClusterClassifier:
    found = recover.classifier_options(state, heads)
    return _build(ClusterClassifier, found if stated is None else recover.check(stated, found), state)


def _target(state: dict[str, Tensor], heads: int) -> LatentTarget:
    directions = state["directions"]
    if not isinstance(directions, Tensor) or directions.ndim != 2:
        raise ValueError("directions are no table")
    components, width = directions.shape
    shapes = {"coefficients": (heads, components), "directions": (components, width), "lat_mean": (1, width)}
    state = fitting(state, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    target = LatentTarget(state["directions"], state["lat_mean"], heads)
    target.load_state_dict(state)
    return target.requires_grad_(False)


def _build(kind: type[Network], settings: dict[str, Any], state: dict[str, Tensor]) -> Network:
    """Filters and masks of other projects' files are constants here. Raises ValueError as `build_network`."""
    return build_network(kind, settings, state, constants=CONSTANT_BUFFERS)


def load_plain_generator(path: Path) -> DcganGenerator:
    """The DCGAN generator that `pretrain --architecture dcgan` exported. Raises UserError for anything else."""
    tensors, about = load_safetensors(path)
    advice = "give the generator.safetensors of pretrain --architecture dcgan"
    if about.get("kind") != "dcgan":
        raise UserError(f"{path} holds no DCGAN generator; {advice}")
    try:
        return build_network(DcganGenerator, about.get("generator"), tensors)
    except ValueError as error:
        raise UserError(f"{path} holds no DCGAN generator that fits ({str(error)[:120]}); {advice}") from None
