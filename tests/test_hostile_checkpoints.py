# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile files with networks, of every kind that is read: one sentence, little memory, nothing changed."""

from __future__ import annotations

import math
import pickle
import random
import resource
import struct
import zipfile

import pytest
import torch
from damage import KINDS, deflated, networks_in, records, rewrite, valid_files, weights_in
from runs import assert_identical

from gangealing_fast.checkpoints.pickles import Persistent
from gangealing_fast.checkpoints.reading import read
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint, exports, pickles, settings, torch_files

TORCH = tuple(kind for kind in KINDS if kind in ("original", "old torch", "train", "pretrain") or kind.startswith("written"))
ZIPPED = tuple(kind for kind in TORCH if kind != "old torch")
SAFETENSORS = ("generator", "aligner", "dcgan", "classifier", "perceptual")
WITH_SETTINGS = (*SAFETENSORS, "train", "pretrain")


@pytest.fixture
def files(tmp_path, monkeypatch):
    return valid_files(tmp_path, monkeypatch)


def refused(path, reader, words):
    with pytest.raises(UserError, match=words) as caught:
        reader(path)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence and len(sentence) < 600


def test_every_kind_is_read(files):
    assert set(files) == set(KINDS)
    for path, reader in files.values():
        assert all(torch.isfinite(w).all() for w in weights_in(reader(path)).values()) and networks_in(reader(path))


# ---- numbers, names and shapes


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "stylegan2-ada"])
def test_values_that_are_not_finite_are_named(files, kind, value):
    path, reader = files[kind]
    names = []

    def break_one(tensors):
        names.append(sorted(name for name, tensor in tensors.items() if "weight" in name and tensor.numel() > 1)[0])
        tensors[names[0]].view(-1)[-1] = value

    rewrite(path, break_one)
    refused(path, reader, f"not finite.*{names[0]}|{names[0].partition('.')[2]} holds values that are not finite")


@pytest.mark.parametrize("what", ["missing", "too many", "shape", "no numbers", "dtype"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "stylegan2-ada"])
def test_tensors_that_do_not_fit_are_refused(files, kind, what):
    path, reader = files[kind]

    def change(tensors):
        name = sorted(name for name in tensors if "bias" in name)[0]
        if what == "missing":
            del tensors[name]
        elif what == "too many":
            tensors["extra.weight"] = torch.ones(1)
        elif what == "shape":
            tensors[name] = torch.ones(3, *tensors[name].shape)
        elif what == "no numbers":
            tensors[name] = torch.ones(0, 1 << 40)
        else:
            tensors[name] = tensors[name].long()

    rewrite(path, change)
    with pytest.raises(UserError) as caught:
        reader(path)
    assert ("is missing" in str(caught.value)) == (what == "missing"), "what is too many is not said to be missing"
    assert what != "too many" or "extra.weight has no place" in str(caught.value)


# ---- settings


@pytest.mark.parametrize("value", [0, -3, 10**9, 1e400, "x", None, [], 2.5, True, {}], ids=repr)
@pytest.mark.parametrize("kind", WITH_SETTINGS)
def test_settings_that_make_no_sense_are_named(files, kind, value):
    path, reader = files[kind]
    whole = path.read_bytes()
    found = []
    rewrite(
        path, lambda _: None, lambda about: found.extend((k, name) for k, record in enumerate(records(about)) for name in record)
    )
    assert found
    for number, name in found:
        if settings.RULES[name].holds(value):
            continue
        path.write_bytes(whole)
        rewrite(path, lambda _: None, lambda about, k=number, name=name: records(about)[k].update({name: value}))
        refused(path, reader, name if value != 1e400 or path.suffix == ".pt" else f"{name}|not a safetensors file")


@pytest.mark.parametrize("record", [None, [], 3, "x", {"unheard": 1}])
@pytest.mark.parametrize("kind", WITH_SETTINGS)
def test_records_of_settings_that_are_none_are_refused(files, kind, record):
    path, reader = files[kind]
    name = {"generator": "generator", "aligner": "transformer", "dcgan": "generator", "classifier": "critic"}.get(kind, "network")
    name = {"train": "transformer_config", "pretrain": "config"}.get(kind, name)
    rewrite(path, lambda _: None, lambda about: about.update({name: record}))
    refused(path, reader, "settings|does not know")


@pytest.mark.parametrize("iters", [0, -3, 10**9, math.inf, "2", None, True, 1.5])
@pytest.mark.parametrize("kind", ["aligner", "original"])
def test_iterations_that_make_no_sense_are_named(files, kind, iters):
    path, reader = files[kind]
    if kind == "original" and iters is None:
        return  # the original's options do not say it, so it is assumed
    if kind == "aligner" and iters == math.inf:
        with pytest.raises(ValueError, match="iters must be a whole number"):
            Warping("border", iters)
        return
    rewrite(path, lambda _: None, lambda about: about.update(iters=iters))
    refused(path, reader, "iters must be a whole number")


@pytest.mark.parametrize("padding", ["nonsense", 3, None, ["zeros"]])
@pytest.mark.parametrize("kind", ["aligner", "original"])
def test_paddings_that_make_no_sense_are_named(files, kind, padding):
    path, reader = files[kind]
    if kind == "original" and padding is None:
        return
    rewrite(path, lambda _: None, lambda about: about.update(padding_mode=padding))
    refused(path, reader, "padding_mode must be one of zeros, border, reflection")


@pytest.mark.parametrize("inject", [-1, 10**9, "x", 1.5])
@pytest.mark.parametrize("kind", ["aligner", "original"])
def test_injected_layers_that_make_no_sense_are_named(files, kind, inject):
    path, reader = files[kind]
    rewrite(path, lambda _: None, lambda about: about.update(inject=inject))
    refused(path, reader, "says inject")


# ---- more memory than the file holds


def peak() -> float:
    """The most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


LARGE = {
    "generator": {"latent_dim": 1 << 15, "max_channels": 1 << 16},
    "dcgan": {"max_channels": 1 << 16, "channel_base": 1 << 26},
    "classifier": {"max_channels": 1 << 16, "channel_base": 1 << 26},
    "perceptual": {"widths": [1 << 16] * 5},
    "aligner": {"heads": 1 << 15, "max_channels": 1 << 16},
    "train": {"heads": 1 << 15, "max_channels": 1 << 16, "channel_multiplier": 64.0},
    "pretrain": {"latent_dim": 1 << 15, "max_channels": 1 << 16, "channel_base": 1 << 26},
}


@pytest.mark.parametrize("kind", WITH_SETTINGS)
def test_settings_of_a_giant_build_none(files, kind):
    path, reader = files[kind]
    rewrite(path, lambda _: None, lambda about: records(about)[0].update(LARGE[kind]))
    before = peak()
    refused(path, reader, "larger network|its tensors")
    assert peak() < before + 300e6


@pytest.mark.parametrize("kind", [kind for kind in TORCH])
@pytest.mark.parametrize("form", ["expanded", "overlapping"])
def test_tensors_that_show_one_number_many_times_are_refused(files, kind, form):
    path, reader = files[kind]

    def change(tensors):
        name = sorted(name for name, tensor in tensors.items() if "conv" in name and name.endswith("weight"))[0]
        one = torch.ones(1).expand(64, 64, 64) if form == "expanded" else torch.ones(200).as_strided((90, 90), (1, 1))
        tensors[name] = one

    rewrite(path, change)
    refused(path, reader, "same numbers many times")


@pytest.mark.parametrize("kind", ZIPPED)
def test_compressed_members_are_refused(files, kind, tmp_path):
    path, reader = files[kind]
    refused(deflated(path, tmp_path / "deflated.pt"), reader, "compressed")


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    torch.save({"g_ema": {"input.input": torch.zeros(1 << 20)}}, tmp_path / "large.pt")
    before = peak()
    bomb = deflated(tmp_path / "large.pt", tmp_path / "bomb.pt")
    assert bomb.stat().st_size < 10_000
    refused(bomb, read, "larger than the file|compressed")
    assert peak() < before + 100e6


def test_a_storage_is_not_made_larger_than_the_file(tmp_path, monkeypatch):
    """torch's own loader enlarges a storage that a tensor reaches beyond."""
    original = torch._utils._rebuild_tensor_v2
    torch.save({"g_ema": {"a": torch.ones(4)}}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):  # the size (4,) and the stride (1,) become (2**31 - 1,) and (1,)
                content = content.replace(b"K\x04\x85", b"J" + struct.pack("<i", 2**31 - 1) + b"\x85", 1)
            new.writestr(name, content)
    before = peak()
    refused(tmp_path / "b.pt", read, "beyond what the file holds")
    assert peak() < before + 100e6 and torch._utils._rebuild_tensor_v2 is original


# ---- pickles


class Call:
    """Pickles as a call of `maker`, then gets `state`."""

    def __init__(self, maker, arguments, state=None):
        self.maker, self.arguments, self.state = maker, arguments, state

    def __reduce__(self):
        return self.maker, self.arguments, self.state


def attack(name: bytes, attribute: str) -> bytes:
    """A pickle that gives an attribute to what a name stands for, as torch's and Python's BUILD would."""
    state = pickle.dumps((None, {attribute: 1}), protocol=2)[2:-1]
    return b"\x80\x02c" + name + b"\n" + state + b"b0N."


NAMES = [
    name.rpartition(".")
    for name in (*torch_files.MAKERS, "dnnlib.util.EasyDict", "torch_utils.persistence._reconstruct_persistent_obj")
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[2])
@pytest.mark.parametrize("attribute", ["tensors", "__init__", "__code__", "__dict__", "update"])
def test_a_pickle_changes_no_object_of_ours(tmp_path, files, name, attribute):
    ours = {kind: dict(vars(kind)) for kind in (Persistent, pickles.Record, pickles.Machine, pickles.Name, torch_files.Stored)}
    content = attack(f"{name[0]}\n{name[2]}".encode(), attribute)
    for path in (tmp_path / "a.pkl", tmp_path / "a.pt"):
        path.write_bytes(content)
        with pytest.raises(UserError):
            read(path)
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", content)
    with pytest.raises(UserError):
        read(tmp_path / "a.pt")
    assert ours == {kind: dict(vars(kind)) for kind in ours}


def test_after_any_refused_file_every_valid_one_loads(tmp_path, files):
    before = {kind: weights_in(reader(path)) for kind, (path, reader) in files.items()}
    chance = random.Random(0)
    for kind, (path, reader) in files.items():
        content = bytearray(path.read_bytes())
        for _ in range(10):
            at = chance.randrange(len(content))
            broken = tmp_path / f"broken{path.suffix}"
            broken.write_bytes(content[:at] + bytes(chance.randrange(256) for _ in range(8)) + content[at + 8 :])
            try:
                reader(broken)
            except UserError as error:
                assert str(broken) in str(error), kind
    for kind, (path, reader) in files.items():
        assert_identical(before[kind], weights_in(reader(path)), kind)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02]q\x00h\x00a.",  # a list that holds itself
        b"\x80\x02" + b"]q\x00" + b"".join(b"]q%c(h%ch%ce" % (k, k - 1, k - 1) for k in range(1, 60)) + b".",  # 2**60 lists
        b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",  # a bytearray of a terabyte
        b"\x80\x02}))\x85\x85Ns.",  # a tuple as a key
        b"\x80\x04\x8f.",  # a set
        b"\x80\x02ccollections\nOrderedDict\n)R}U\x05itemsK\x01sb.",
    ],
)  # fmt: skip
def test_pickles_that_are_no_plain_tree_are_refused(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(UserError, match="truncated, corrupt or no checkpoint|would have to run code"):
        read(tmp_path / "a.pkl")


def test_content_is_not_copied_again_and_again(tmp_path):
    """A text of a megabyte, made into bytes a thousand times."""
    text = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20)
    call = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + text + b"q\x000(" + call * 1000 + b"l.")
    before = peak()
    refused(tmp_path / "a.pkl", read, "truncated, corrupt")
    assert peak() < before + 200e6


# ---- checksums


@pytest.mark.parametrize("kind", (*ZIPPED, *SAFETENSORS))
def test_damage_in_any_region_is_noticed_or_harmless(files, kind):
    path, reader = files[kind]
    whole, expected = path.read_bytes(), weights_in(reader(path))
    chance, refusals = random.Random(1), 0
    for region in range(60):
        at = region * len(whole) // 60 + chance.randrange(max(1, len(whole) // 60))
        content = bytearray(whole)
        content[at] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        try:
            found = reader(path)
        except UserError as error:
            refusals += 1
            assert str(path) in str(error)
        else:  # padding and unused fields of a zip file
            assert kind in ZIPPED
            assert_identical(expected, weights_in(found))
    assert refusals == 60 or kind in ZIPPED and refusals > 25


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_every_part_of_the_header_counts(files, kind):
    path, reader = files[kind]
    whole = path.read_bytes()
    for at in range(0, 8 + int.from_bytes(whole[:8], "little"), 17):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UserError):
            reader(path)


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_exports_without_a_checksum_are_read(files, kind):
    """As earlier versions and the package safetensors write them."""
    from safetensors.torch import load, save

    path, reader = files[kind]
    expected = weights_in(reader(path))
    whole = path.read_bytes()
    about = exports.strict_json(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]
    path.write_bytes(save(load(whole), metadata={name: about[name] for name in ("format", "producer", "config")}))
    assert_identical(expected, weights_in(reader(path)))


def test_exports_of_values_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(UserError, match="was not written, as w holds values that are not finite"):
        exports.export_safetensors(tmp_path / "a.safetensors", {"w": torch.tensor([math.nan])}, {})
    assert not list(tmp_path.iterdir())


def test_what_is_written_the_package_safetensors_reads(files):
    from safetensors.torch import load_file

    for kind in SAFETENSORS:
        path, _ = files[kind]
        assert_identical(dict(sorted(load_file(path).items())), dict(sorted(exports.load_safetensors(path, dtype=None)[0].items())))


def test_equal_content_gives_equal_bytes(tmp_path, monkeypatch):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        valid_files(folder, monkeypatch)
    for path in sorted(folders[0].iterdir()):
        if path.is_file() and path.suffix != ".pkl" and path.name != "old.pt":  # which this package never writes
            assert path.read_bytes() == (folders[1] / path.name).read_bytes(), path.name


def test_a_checkpoint_with_nan_is_not_read(files):
    path, _ = files["train"]
    state = checkpoint.load(path)
    for broken in ({"x": [{"y": torch.tensor([math.nan])}]}, {"x": [{"y": math.nan}]}):
        checkpoint.save(path, state | broken, kind="train")
        refused(path, checkpoint.load, r"not finite \(x.0.y\)")
        refused(path, read, r"not finite \(x.0.y\)")
