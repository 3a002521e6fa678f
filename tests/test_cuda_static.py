"""What can be said of the CUDA kernels without a GPU: from the compiler's report and its code."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import sass
from sass import Build, Kernel

from fastmmd.ops import _roads
from fastmmd.ops._core import MAX_FACTORS

# In one worker, so that each target is compiled once.
pytestmark = [pytest.mark.build, pytest.mark.xdist_group("cuda")]

# All kernels but these keep to registers. These run once a pass, in a few blocks over the terms of
# the kernel, which they index: a few hundred bytes of local memory that stay in the cache.
EXEMPT = {"resolve_kernel", "finish_kernel"}
# And these have at most so many bytes of local memory for what their registers do not hold.
SPILLS = {
    # float64 and two-sample tests
    ("75", "count_kernel<Simt<float64, 64, 4>>"): 16,
    ("80", "count_kernel<Simt<float64, 64, 4>>"): 8,
    ("90a", "count_kernel<Simt<float64, 64, 4>>"): 8,
    ("75", "feature_slopes_kernel<Simt<float64, 64, 4>>"): 8,
    ("80", "feature_slopes_kernel<Simt<float64, 64, 4>>"): 8,
    ("120", "sign_forms_kernel<ValueTiles<float, true>>"): 8,
    ("100", "tile_kernel<Simt<float64, 64, 4>, true, true>"): 8,
    # gradients of Gaussians, two blocks of which share the registers
    ("100", "tile_kernel<Mma<bfloat16>, true, true>"): 136,
    ("100", "tile_kernel<Mma<float16>, true, true>"): 136,
    ("100", "tile_kernel<Mma<tf32>, true, true>"): 128,
}
MAX_BYTES = 30 << 20
# Those whose tiles are of points and frequencies.
PROJECTIONS = {"feature_sums_kernel", "feature_slopes_kernel"}
# The table has the most shared memory that these take; they take less, or another road is taken,
# where a block may not have it.
ASKS_THE_DEVICE = {
    "small_tiles_kernel",
    "fused_kernel",
    "product_tile_kernel",
    "structured_sums_kernel",
    "structured_gradients_kernel",
}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Build:
    if sass.nvcc() is None:
        pytest.skip("no CUDA compiler (nvcc) on PATH")
    return sass.build(tmp_path_factory.mktemp("cuda"))


@pytest.fixture(scope="session")
def disassembled(made: Build, tmp_path_factory: pytest.TempPathFactory) -> Build:
    if sass.tool("cuobjdump") is None or sass.tool("nvdisasm") is None:
        pytest.skip("no cuobjdump and nvdisasm: they are in the extra 'test' on Linux")
    sass.disassemble(made, tmp_path_factory.mktemp("cubins"))
    return made


def hot(made: Build, target: str | None = None) -> list[Kernel]:
    found = [k for k in made.kernels if k.function not in EXEMPT and target in (None, k.target)]
    assert found
    return found


def bytes_allowed(kernel: Kernel) -> int:
    return SPILLS.get((kernel.target, kernel.name), 0)


def told(kernels: Iterable[Kernel]) -> list[str]:
    return [f"sm_{k.target} {k.name}: {k.registers} registers, {k.stack} B stack" for k in kernels]


# --- the compiler's report -----------------------------------------------------------------------


def test_every_kernel_is_there_for_every_target(made: Build) -> None:
    """But for those of tensor cores, which are there for the targets that have them."""
    targets = sass.targets_of(made)
    assert {"75", "80", "90a"} <= set(targets)
    found: dict[tuple[str, str], set[str]] = {}
    for kernel in made.kernels:
        found.setdefault((kernel.source, kernel.symbol), set()).add(kernel.target)
    assert found
    for (source, symbol), of in found.items():
        able = set(targets)
        if "wgmma" in source:
            able = {"90a"}
        elif re.search("mma|fused", source):
            able -= {"75"}
        assert of == able, symbol


def test_compiler_warns_of_nothing(made: Build) -> None:
    """Not of setmaxnreg ignored, of wgmma serialised, or of registers spilled either."""
    said = [line for line in made.log.splitlines() if re.search(r"\b(warning|Potential)\b", line)]
    assert not said


def test_hot_kernels_keep_to_registers(made: Build) -> None:
    kernels = hot(made)
    assert not told(k for k in kernels if k.stack > bytes_allowed(k))
    assert not told(k for k in kernels if k.spilled and not bytes_allowed(k))


def test_what_spills_does(made: Build) -> None:
    """An entry that is no longer needed would hide what spills anew."""
    targets = set(sass.targets_of(made))
    spilled = {(k.target, k.name) for k in made.kernels if k.stack}
    assert {entry for entry in SPILLS if entry[0] in targets} <= spilled


def test_module_is_small(made: Build) -> None:
    assert made.module.stat().st_size < MAX_BYTES


def test_module_imports_without_a_driver(made: Build) -> None:
    loaded = sass.load(made.module)
    architectures = loaded.architectures().split()
    assert architectures[:-1] == sass.targets_of(made)
    assert architectures[-1] == architectures[-2].rstrip("a") + "-ptx"


@pytest.mark.parametrize(
    ("visible", "archs", "told"),
    [
        ("7.0, 8.6, 9.0", "native", "for 86 90a"),  # as much as there are kernels for
        ("7.0", "native", "shows no GPU of compute capability 7.5 or later"),
        ("7.0", "", "for 75 80 90a"),
        ("8.6", "80;90", "for 80 90a"),
    ],
)
def test_architectures(tmp_path: Path, visible: str, archs: str, told: str) -> None:
    if sass.nvcc() is None:
        pytest.skip("no CUDA compiler (nvcc) on PATH")
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n" + "".join(f"echo {v}\n" for v in visible.split(", ")))
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    try:
        said = sass.configure(tmp_path / "build", archs, PATH=path)
    except RuntimeError as error:
        said = str(error)
    assert told in " ".join(said.split())


# --- the code ------------------------------------------------------------------------------------


def test_blocks_fit(disassembled: Build) -> None:
    """A block of as many threads as a kernel is bound to can be launched, where its code runs."""
    dynamic = sass.dynamic_shared(disassembled)

    def is_taken(kernel: Kernel) -> bool:
        """Whether the road that leads there looks at the device first."""
        if kernel.function in ASKS_THE_DEVICE:
            return False
        staged = re.match(r"tile_kernel<Mma<\w+>, false", kernel.name)
        return not staged or sass.LIMITS[kernel.target].shared > _roads._STAGED_BYTES

    kernels = disassembled.kernels
    kernels = [*kernels, *(replace(k, target="86") for k in kernels if k.target == "80")]
    assert not [
        f"sm_{k.target} {k.name}"
        for k in kernels  # of any number of threads, if it is bound to none
        if is_taken(k) and sass.resident_blocks(k, k.threads or 1024, dynamic.get(k.name, 0)) == 0
    ]


def test_roads_know_what_tiles_take(disassembled: Build) -> None:
    """The bytes of shared memory by which they are refused a device."""
    dynamic = sass.dynamic_shared(disassembled)
    for kernel in disassembled.kernels:
        taken = kernel.shared + dynamic.get(kernel.name, 0)
        if kernel.function == "product_tile_kernel":  # at its largest
            of = _roads.FLOAT64 if "double" in kernel.name else _roads.FLOAT32
            assert taken <= _roads._PRODUCT_BYTES[of] + MAX_FACTORS * _roads._FACTOR_BYTES[of]
        elif kernel.name.startswith("tile_kernel<Mma"):
            assert taken <= _roads._STAGED_BYTES


def test_hot_kernels_touch_no_local_memory(disassembled: Build) -> None:
    kernels = [k for k in hot(disassembled) if not bytes_allowed(k)]
    assert not told(k for k in kernels if k.uses("LDL") or k.uses("STL"))


@pytest.mark.parametrize(
    ("target", "products", "opcodes"),
    [
        ("75", "Simt", ["FFMA", "DFMA"]),
        ("80", "Simt", ["FFMA", "DFMA"]),
        ("80", "Mma", ["HMMA", "LDSM", "LDGSTS"]),
        ("90a", "Simt", ["FFMA", "DFMA"]),
        ("90a", "Mma", ["HMMA", "LDSM", "LDGSTS"]),
        ("90a", "Wgmma", ["HGMMA", "UTMALDG"]),
        ("100", "Mma", ["HMMA", "LDSM", "LDGSTS"]),
        ("120", "Mma", ["HMMA", "LDSM", "LDGSTS"]),
    ],
)
def test_products_use_their_instructions(
    disassembled: Build, target: str, products: str, opcodes: list[str]
) -> None:
    if target not in sass.targets_of(disassembled):
        pytest.skip(f"this nvcc knows no sm_{target}")
    kernels = [k for k in hot(disassembled, target) if re.search(rf"\b{products}", k.name)]
    assert kernels
    for opcode in opcodes:
        assert any(k.uses(opcode) for k in kernels), opcode
    if "DFMA" not in opcodes:
        for kernel in kernels:
            if kernel.function in PROJECTIONS:
                assert all(kernel.uses(opcode) for opcode in opcodes), kernel.name


# --- the documentation ---------------------------------------------------------------------------


def test_table_of_the_documentation(disassembled: Build) -> None:
    written = sass.in_page(sass.PAGE.read_text())
    by = re.search(r"with nvcc ([\d.]+)\)", written)
    if by and by[1] != disassembled.nvcc:
        pytest.skip(f"the table was written with nvcc {by[1]}, this is {disassembled.nvcc}")
    assert written == sass.section(disassembled), "run: python -m tests.sass --write"


# --- the readers, which need no compiler ---------------------------------------------------------

PTXAS = """
[3/12] Building CUDA object CMakeFiles/_cuda.dir/csrc/cuda/tiles.cu.o
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1aIfEvPT_' for 'sm_90a'
ptxas info    : Function properties for _Z1aIfEvPT_
    256 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 31 registers, used 1 barriers, 256 bytes cumulative stack size, 64 bytes smem
ptxas info    : Compiling entry function '_Z1bv' for 'sm_75'
ptxas info    : Function properties for helper
    512 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for _Z1bv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""
SASS = """
\tFunction : _Z1aIfEvPT_
        /*0000*/                   MOV R1, c[0x0][0x28] ;         /* 0x00000a0000017a02 */
        /*0010*/              @!P0 LDL.64 R2, [R1+0x8] ;          /* 0x0000080001027983 */
        /*0020*/             @!UP1 UTMALDG.2D [UR8], [UR4] ;      /* 0x00000008040073b4 */
\tFunction : _Z1bv
        /*0000*/                   EXIT ;                         /* 0x000000000000794d */
"""


def test_reading_ptxas() -> None:
    a, b = sass.read_ptxas(PTXAS)
    assert a.source == b.source == "tiles"
    assert (a.target, a.registers, a.shared, a.stack, a.spilled) == ("90a", 31, 64, 256, 24)
    assert (b.target, b.registers, b.shared, b.stack, b.spilled) == ("75", 8, 0, 0, 0)


def test_reading_a_disassembly() -> None:
    found = sass.read_sass(SASS)
    assert found == {"_Z1aIfEvPT_": {"MOV", "LDL.64", "UTMALDG.2D"}, "_Z1bv": {"EXIT"}}
    assert Kernel("75", "", opcodes=found["_Z1aIfEvPT_"]).uses("LDL")


@pytest.mark.parametrize(
    ("demangled", "name"),
    [
        ("void ns::cuda::f<ns::cuda::P<float, 2>, true>(int const*)", "f<P<float, 2>, true>"),
        ("void ns::f<(ns::Family)1, (bool)0, (int)-3>(ns::Args<1>)", "f<laplacian, 0, -3>"),
        ("(anonymous namespace)::g(float, float)", "g"),
    ],
)
def test_names(demangled: str, name: str) -> None:
    assert sass.plain_name(demangled) == name


def test_template_arguments() -> None:
    assert sass.template_arguments("f<a<(E)1, 2>, true>(g<int>)") == ["a<(E)1, 2>", "true"]


def test_resident_blocks() -> None:
    def blocks(target: str, registers: int, threads: int, shared: int) -> int:
        return sass.resident_blocks(Kernel(target, "", registers=registers), threads, shared)

    assert blocks("80", 32, 128, 0) == 16  # by threads
    assert blocks("80", 128, 256, 0) == 2  # by registers
    assert blocks("90a", 168, 384, 1 << 17) == 1
    assert blocks("90a", 64, 128, 228 << 10) == 0  # the block's own KiB does not fit
