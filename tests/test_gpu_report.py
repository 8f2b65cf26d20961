# SPDX-License-Identifier: Apache-2.0
"""GPU kernels compile ahead of time without spills, and docs/gpu-report.md has every one of them."""

from __future__ import annotations

import importlib
import re

import pytest
import torch

pytest.importorskip("triton")

from tools.gpu_report import cuda_kernels, triton_kernels, triton_workloads
from tools.gpu_report.__main__ import REPORT
from tools.gpu_report.architectures import ARCHITECTURES, occupancy
from tools.gpu_report.binary import Accesses, Resources, parse
from tools.gpu_report.cuda_workloads import CUDA_KERNELS

LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5twicePf' for 'sm_90'
ptxas info    : Function properties for _Z5twicePf
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem, 376 bytes cmem[0]
ptxas info    : Compiling entry function 'other' for 'sm_90'
ptxas info    : Function properties for other
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
"""


def report_rows() -> list[list[str]]:
    """Cells of the tables of registers: kernel, shape, launch, spilled bytes, then one for each architecture."""
    rows = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in REPORT.read_text().splitlines()]
    return [row for row in rows if row[0].startswith("`") and " x " in row[2]]


def test_the_report_has_every_kernel_on_every_architecture():
    rows = report_rows()
    stated = {row[0].strip("`") for row in rows}
    written = {name for source in cuda_kernels.sources() for name in cuda_kernels.kernel_names(source)}
    assert triton_kernels.kernel_names() | written <= stated, "run `make gpu-report`"
    assert all(len(row) == 4 + len(ARCHITECTURES) for row in rows)


def test_the_report_has_no_spills():
    assert {row[3] for row in report_rows()} == {"0"}


def test_every_cuda_kernel_states_its_launch():
    assert not cuda_kernels.missing(CUDA_KERNELS)
    assert all(row.minimum <= row.moved for row in CUDA_KERNELS)


def test_every_triton_kernel_has_a_workload():
    recorded = triton_kernels.record(triton_workloads.training())
    assert {launch.kernel.__name__ for one in recorded for launch in one.launches} == triton_kernels.kernel_names()
    for one in recorded:
        assert one.minimum <= one.moved <= 2 * one.minimum, f"{one.workload.operator} {one.workload.shape}"


def test_what_ptxas_says_is_understood():
    assert parse(LOG) == {"_Z5twicePf": Resources(40, 12, 1024), "other": Resources(12, 0, 0)}


def test_kernels_in_comments_do_not_count(tmp_path):
    source = tmp_path / "a.cu"
    source.write_text(
        "// __global__ void no(int)\ntemplate <class T>\n__global__ void __launch_bounds__(256) yes(T* x) {}\n"
        "__global__ static void too(int n) {}\n"
    )
    assert cuda_kernels.kernel_names(source) == ["yes", "too"]


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks", "limiter"),
    # By NVIDIA's occupancy calculator (cuda_occupancy.h).
    [
        (80, 256, 32, 0, 8, "warps"),
        (90, 128, 128, 0, 4, "registers"),
        (86, 128, 40, 48 * 1024, 2, "shared memory"),
        (89, 32, 16, 0, 24, "blocks"),
    ],
)
def test_occupancy(architecture, threads, registers, shared, blocks, limiter):
    found = occupancy(ARCHITECTURES[architecture], threads, registers, shared)
    assert (found.blocks, found.limiter) == (blocks, limiter)
    assert found.share == pytest.approx(blocks * threads / 32 / ARCHITECTURES[architecture].warps)


PTX = """
ld.global.b64 %rd1, [ %rd2 + 0 ];
@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd3 + 0 ];
@%p1 ld.global.L1::evict_last.v2.b32 { %r1, %r2 }, [ %rd3 + 0 ];
st.global.b16 [ %rd4 + 0 ], { %rs1 };
ld.shared.v4.b32 {%r1, %r2, %r3, %r4}, [%r5];
cp.async.cg.shared.global [ %r7 + 0 ], [ %rd8 + 0 ], 0x10, %r9;
cp.async.ca.shared.global [ %r7 + 0 ], [ %rd8 + 0 ], 0x4, %r9;
cp.async.commit_group;
"""


def test_widths_of_reads_and_writes():
    assert triton_kernels.accesses(PTX) == Accesses(wide=2, middle=2, narrow=2)


@pytest.mark.parametrize("gradient", [torch.float32, torch.bfloat16], ids=str)
def test_adam_reads_and_writes_16_bytes_at_once(gradient):
    """All five arrays, of what lies in whole pieces: what is left of 8 bytes is the table's row. The rest goes one by one."""
    (whole,) = triton_kernels.record(triton_workloads.adam_ema(40_000_000, gradient))
    needs = triton_kernels.compiled(whole.launches[0], 90).accesses
    # 2048 elements of 256 threads: two reads of four float32 from each of four arrays (and of the gradients), two writes to four.
    assert needs == Accesses(wide=8 + (2 if gradient == torch.float32 else 1) + 8, middle=14, narrow=0)
    (odd,) = triton_kernels.record(triton_workloads.adam_ema(40_000_001, gradient))
    assert [launch.arguments["TOGETHER"] for launch in odd.launches] == [8, 1]
    assert [launch.blocks for launch in odd.launches] == [40_000_001 // 2048, 1]


# Kernels that move many elements in whole channels-last or contiguous rows; what they read once for a block may be narrow.
WIDE = ("bias_act", "bias_act_backward", "adain", "adain_backward", "lpips_distance", "lpips_distance_backward")


@pytest.mark.slow
@pytest.mark.parametrize("operator", WIDE)
def test_kernels_bound_by_memory_read_16_bytes_at_once(operator):
    # Three channels a pixel do not divide into 16 bytes.
    workloads = [w for w in triton_workloads.training() if w.operator == operator and ", 3, " not in w.shape]
    assert workloads
    for one in triton_kernels.record(workloads):
        needs = [triton_kernels.compiled(launch, 90).accesses for launch in one.launches]
        # Between two launches over all elements, a small one may combine a few sums for each channel.
        assert needs[0].wide and needs[-1].wide, f"{one.workload.shape}: {needs}"


@pytest.mark.slow
@pytest.mark.parametrize("choice", [0, -1], ids=["input scaled", "weight scaled before"])
def test_a_hopper_multiplies_its_largest_tiles(choice):
    """Whole tiles in the largest product of its tensor cores, and nothing spilled; sums of products take smaller tiles."""
    hopper = importlib.import_module("gangealing_fast.kernels._convolution").Card(132, 227 * 1024, 9)
    x = torch.empty(5, 256, 128, 128, dtype=torch.bfloat16, device="meta").contiguous(memory_format=torch.channels_last)
    recorded = triton_kernels.record(triton_workloads.convolution(x, 256, card=hopper, choice=choice))
    tiles = [(one.launches[0].arguments["BLOCK_M"], one.launches[0].arguments["BLOCK_N"]) for one in recorded]
    assert tiles == [(128, 256), (128, 128)]
    for one in recorded:
        needs = triton_kernels.compiled(one.launches[0], 90)
        assert needs.spilled == 0 and needs.shared <= hopper.shared and needs.accesses.wide


@pytest.mark.slow
@pytest.mark.parametrize("source", cuda_kernels.sources(), ids=lambda source: source.name)
def test_no_cuda_kernel_divides_in_64_bits(source):
    """A GPU takes a hundred instructions for it: `launch_items` and `launch_planes` keep indices in 32."""
    try:
        found = cuda_kernels.wide_divisions(source)
    except RuntimeError as error:
        if re.match("No nvcc", str(error)):
            pytest.skip(str(error))
        raise
    assert found and not any(found.values()), found


def compile_all(recorded, architecture: int) -> None:
    launches = {triton_kernels.identity(launch): launch for one in recorded for launch in one.launches}
    for launch in launches.values():
        needs = triton_kernels.compiled(launch, architecture)
        assert needs.spilled == 0, launch
        assert needs.shared <= ARCHITECTURES[architecture].shared_per_block, launch


@pytest.mark.slow
def test_triton_kernels_compile_without_spills():
    compile_all(triton_kernels.record(triton_workloads.training()), 90)


@pytest.mark.slow
def test_triton_kernels_compile_for_sizes_of_one():
    compile_all(triton_kernels.record(triton_workloads.tiny()), 80)


@pytest.mark.slow
@pytest.mark.parametrize("source", cuda_kernels.sources(), ids=lambda source: source.name)
def test_cuda_kernels_compile_without_spills(source):
    try:
        found = cuda_kernels.compiled(source, [90])[90]
    except RuntimeError as error:
        if re.match("No nvcc", str(error)):
            pytest.skip(str(error))
        raise
    assert found and not [name for name, needs in found.items() if needs.spilled]
