"""What the compiler made of the CUDA kernels: registers, memory, instructions. Needs no GPU.

``python -m tests.sass --write`` compiles ``csrc/cuda`` for all targets and writes the table of
kernels into ``docs/cuda.md``.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cuda.md"
BEGIN, END = "<!-- kernels: begin", "<!-- kernels: end -->"


@dataclass
class Kernel:
    """One kernel in the code for one target."""

    target: str  # "75", "90a", ...
    symbol: str
    source: str = ""  # the file that its code was made for: "tiles_simt"
    registers: int = 0
    shared: int = 0  # static, bytes
    stack: int = 0  # bytes of local memory
    spilled: int = 0  # bytes stored and loaded
    threads: int | None = None  # of a block at most, where the kernel is bound to it
    opcodes: set[str] = field(default_factory=set)  # with their modifiers
    name: str = ""  # as in the source: "tile_kernel<Simt<float>, true>"

    @property
    def function(self) -> str:
        """Its name without template arguments."""
        return self.name.partition("<")[0]

    def uses(self, opcode: str) -> bool:
        """Whether an instruction of it is ``opcode``, with any modifiers."""
        return any(found.split(".")[0] == opcode for found in self.opcodes)


class Build(NamedTuple):
    """The compiled module and what was said meanwhile."""

    module: Path
    log: str
    kernels: list[Kernel]
    nvcc: str


def nvcc() -> str | None:
    """The CUDA compiler that CMake would take."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


def nvcc_version() -> str:
    """Such as 13.0.88."""
    told = _run(nvcc(), "--version")
    return re.search(r"V(\d+\.\d+\.\d+)", told)[1]


def tool(name: str) -> str | None:
    """``cuobjdump`` or ``nvdisasm``: of the registry's packages, or else of a CUDA toolkit."""
    packages = find_spec("nvidia")
    folders = list(packages.submodule_search_locations or ()) if packages else []
    inside = [found for folder in folders for found in Path(folder).glob(f"*/bin/{name}")]
    return str(inside[0]) if inside else shutil.which(name)


def configure(folder: Path, archs: str, **environment: str) -> str:
    """What CMake says of a build of the module for such architectures."""
    settings = {
        "SKBUILD": "2",
        "SKBUILD_PROJECT_VERSION": "0",
        "FASTMMD_CUDA": "ON",
        "FASTMMD_CUDA_ARCHS": archs,
        "FASTMMD_CUDA_VERBOSE": "ON",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": _run(sys.executable, "-m", "pybind11", "--cmakedir").strip(),
    }
    options = [f"-D{name}={value}" for name, value in settings.items()]
    return _run("cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, *options, env=_jobs(environment))


def _jobs(more: dict[str, str]) -> dict[str, str]:
    return {"CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0))), **os.environ, **more}


def build(folder: Path, archs: str = "all") -> Build:
    """Compile the CUDA module alone, once for each target."""
    configure(folder, archs)
    log = _run("cmake", "--build", folder, "--target", "_cuda", env=_jobs({}))
    (module,) = folder.glob("_cuda.*.so")
    kernels = list(read_ptxas(log))
    demangle(kernels)
    return Build(module, log, kernels, nvcc_version())


def read_ptxas(log: str) -> Iterator[Kernel]:
    """The kernels in the output of ``ptxas -v``, below what ninja says of each file."""
    kernel, source = None, ""
    for line in log.splitlines():
        if built := re.search(r"Building CUDA object .*?(\w+)\.cu\.o", line):
            source = built[1]
        elif entry := re.search(r"Compiling entry function '(\w+)' for 'sm_(\w+)'", line):
            assert kernel is None, f"nothing was said of {kernel}"
            kernel = Kernel(entry[2], entry[1], source)
        elif properties := re.search(r"Function properties for (\w+)", line):
            within = kernel is not None and properties[1] == kernel.symbol
        elif frame := re.search(r"(\d+) bytes stack frame, (\d+) .*stores, (\d+)", line):
            if within:  # and not of a function that it calls
                kernel.stack, *spilled = map(int, frame.groups())
                kernel.spilled = sum(spilled)
        elif used := re.search(r"Used (\d+) registers", line):
            kernel.registers = int(used[1])
            kernel.shared = int(found[1]) if (found := re.search(r"(\d+) bytes smem", line)) else 0
            yield kernel
            kernel = None


def demangle(kernels: Iterable[Kernel]) -> None:
    """Names as in the source, without the namespaces, arguments and casts."""
    kernels = list(kernels)
    for kernel, name in zip(kernels, _demangled(k.symbol for k in kernels), strict=True):
        kernel.name = plain_name(name)


def _demangled(symbols: Iterable[str]) -> list[str]:
    done = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def plain_name(demangled: str) -> str:
    """``void ns::f<(ns::E)1, ns::P, true>(int*)`` as ``f<name_of_1, P, true>``."""
    name = re.sub(r"\(anonymous namespace\)::|\b\w+::|^void ", "", demangled).replace("> >", ">>")
    name = re.sub(
        r"\((\w+)\)(-?\d+)", lambda cast: enumerators(cast[1]).get(cast[2], cast[2]), name
    )
    depth = 0
    for position, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:position]
    return name


@cache
def enumerators(enum: str) -> dict[str, str]:
    """The names of an enumeration of the sources by their values."""
    for path in (ROOT / "csrc").rglob("*.h"):
        if body := re.search(rf"enum class {enum} : int {{(.*?)}};", path.read_text(), re.S):
            return {value: name for name, value in re.findall(r"(\w+) = (\d+)", body[1])}
    return {}


def disassemble(made: Build, folder: Path) -> None:
    """Fill in the threads and the opcodes of all kernels."""
    cuobjdump = tool("cuobjdump")
    tools = (cuobjdump, tool("nvdisasm"))
    folders = [str(Path(found).parent) for found in tools if found]
    environment = {**os.environ, "PATH": os.pathsep.join([*folders, os.environ["PATH"]])}
    _run(cuobjdump, "-xelf", "all", made.module, cwd=folder, env=environment)
    known = {(k.target, k.symbol): k for k in made.kernels}
    for cubin in folder.glob("*.cubin"):
        target = re.search(r"sm_(\w+)\.cubin$", cubin.name)[1]
        text = _run(cuobjdump, "-sass", cubin, env=environment)
        for symbol, opcodes in read_sass(text).items():
            known[target, symbol].opcodes = opcodes
        for symbol, threads in launch_bounds(cubin.read_bytes()).items():
            known[target, symbol].threads = threads


def read_sass(text: str) -> dict[str, set[str]]:
    """The opcodes in each function of a disassembly."""
    found: dict[str, set[str]] = defaultdict(set)
    current: set[str] = set()
    pattern = re.compile(r"Function : (\w+)|/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z][\w.]*)")
    for match in pattern.finditer(text):
        if match[1]:
            current = found[match[1]]
        else:
            current.add(match[2])
    return found


def launch_bounds(cubin: bytes) -> dict[str, int]:
    """The threads that each kernel is bound to, by its entry in ``.nv.info``."""
    from elftools.elf.elffile import ELFFile

    bounds = {}
    prefix = ".nv.info."
    for section in ELFFile(io.BytesIO(cubin)).iter_sections():
        if not section.name.startswith(prefix):
            continue
        data, at = section.data(), 0
        while at < len(data):
            layout, attribute, size = struct.unpack_from("<BBH", data, at)
            at += 4
            if layout == SIZED:
                if attribute in (MAX_THREADS, EXACT_THREADS):
                    x, y, z = struct.unpack_from("<3I", data, at)
                    bounds[section.name[len(prefix) :]] = x * y * z
                at += size
    return bounds


# Of a record in .nv.info: its value follows; what it says.
SIZED, MAX_THREADS, EXACT_THREADS = 0x04, 0x05, 0x10


# --- occupancy -----------------------------------------------------------------------------------


class Limits(NamedTuple):
    """What a multiprocessor has, by the CUDA programming guide's table of compute capabilities."""

    threads: int
    blocks: int
    shared: int  # bytes
    reserved: int  # bytes of shared memory that the system takes for each block


KIB = 1 << 10
LIMITS = {
    "75": Limits(1024, 16, 64 * KIB, 0),
    "80": Limits(2048, 32, 164 * KIB, KIB),
    "86": Limits(1536, 16, 100 * KIB, KIB),  # runs the code of 80
    "90a": Limits(2048, 32, 228 * KIB, KIB),
    "100": Limits(2048, 32, 228 * KIB, KIB),
    "120": Limits(1536, 24, 100 * KIB, KIB),
}
REGISTERS, WARP = 1 << 16, 32


def resident_blocks(kernel: Kernel, threads: int, dynamic: int) -> int:
    """Blocks of a kernel that a multiprocessor holds at a time."""
    limits = LIMITS[kernel.target]
    warps = -(-threads // WARP)
    # A warp gets its registers in units of 256, a block its shared memory in units of 128 bytes.
    registers = warps * (-(-kernel.registers * WARP // 256) * 256)
    shared = -(-(kernel.shared + dynamic + limits.reserved) // 128) * 128
    possible = [limits.blocks, limits.threads // (warps * WARP), REGISTERS // registers]
    if shared:
        possible.append(limits.shared // shared)
    return min(possible)


# --- the table in the documentation --------------------------------------------------------------


def load(module: Path) -> ModuleType:
    """The compiled module. It imports without a driver."""
    spec = spec_from_file_location("_cuda", module)
    loaded = module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


# What a launch asks for of dynamic shared memory at most, as an expression of the sources in the
# template arguments of a kernel; 0 of those that are not here.
DYNAMIC = {
    "tile_kernel": "TileShared<{0}>::bytes",
    "product_tile_kernel": "product_shared_bytes<{1}>(max_factors)",
    "fused_kernel": "{1}::shared_bytes(2)",
    "small_columns_kernel": "small_rows * slice_stride * sizeof(float)",
    "small_tiles_kernel": "SmallRoom<{1}>::bytes(small_rows, true)",
    "feature_sums_kernel": "ProjectionTiles<{0}>::shared_bytes",
    "feature_slopes_kernel": "ProjectionTiles<{0}>::shared_bytes",
    "structured_sums_kernel": "structured_bytes<{1}>(1024)",
    "structured_gradients_kernel": "structured_bytes<{1}>(1024)",
    "kernel_sum_kernel": "{1}::work_bytes({2}) + {1}::stage_bytes",
    "sign_forms_kernel": "{1}::work_bytes(8) + {1}::stage_bytes",
}
PROBE = """
#include <cstdio>
#include "cuda/fused.cuh"
#include "cuda/mma.cuh"
#include "cuda/product.cuh"
#include "cuda/simt.cuh"
#include "cuda/small_tiles.cuh"
#include "cuda/structured.cuh"
#include "cuda/values.cuh"
#include "cuda/wgmma.cuh"
using namespace fastmmd;
using namespace fastmmd::cuda;
int main() {{
  const size_t bytes[] = {{{}}};
  for (size_t of : bytes) std::printf("%zu\\n", of);
}}
"""


def dynamic_shared(made: Build) -> dict[str, int]:
    """Bytes of dynamic shared memory by kernel, as the sources have them."""
    names = {k.symbol: k.name for k in made.kernels if k.function in DYNAMIC}
    expressions = []
    for full in _demangled(names):
        arguments = template_arguments(full)
        pattern = DYNAMIC[plain_name(full).partition("<")[0]]
        expressions.append(pattern.format(", ".join(arguments), *arguments))
    if not expressions:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "probe.cu", Path(folder) / "probe"
        source.write_text(PROBE.format(", ".join(expressions)))
        _run(
            nvcc(), "-std=c++17", "--expt-relaxed-constexpr", "-arch=sm_80", "-I", ROOT / "csrc",
            source, "-o", program,
        )  # fmt: skip
        return dict(zip(names.values(), map(int, _run(program).split()), strict=True))


def template_arguments(demangled: str) -> list[str]:
    """``f<a<1>, b>(int)`` as ``["a<1>", "b"]``."""
    depth, found = 0, [""]
    for letter in demangled[demangled.index("<") :]:
        depth -= letter == ">"
        if letter == ">" and depth == 0:
            return [argument.strip() for argument in found]
        if letter == "," and depth == 1:
            found.append("")
        elif depth:
            found[-1] += letter
        depth += letter == "<"
    return []


def targets_of(made: Build) -> list[str]:
    """The targets there is code for, oldest first."""
    return [target for target in LIMITS if any(k.target == target for k in made.kernels)]


def table(made: Build, dynamic: dict[str, int]) -> str:
    """Registers and shared memory of every kernel on every target, as Markdown."""
    targets = targets_of(made)
    rows: dict[str, dict[str, Kernel]] = defaultdict(dict)
    for kernel in sorted(made.kernels, key=lambda k: k.name):
        rows[kernel.name][kernel.target] = kernel
    header = ["kernel", "threads", "shared", *(f"sm_{t}" for t in targets)]
    ruler = ["---", *["---:"] * (len(header) - 1)]
    lines = [header, ruler]
    for name, by_target in rows.items():
        threads = max((k.threads or 0) for k in by_target.values())
        static = max(k.shared for k in by_target.values())
        shared = static + dynamic.get(name, 0)
        cells = []
        for target in targets:
            kernel = by_target.get(target)
            if kernel is None:
                cells.append("")
                continue
            cell = str(kernel.registers)
            if threads:
                cell += f" ({resident_blocks(kernel, threads, dynamic.get(name, 0))})"
            if kernel.stack:
                cell += f", {kernel.stack} B local"
            cells.append(cell)
        lines.append([f"`{name}`", str(threads or ""), str(shared), *cells])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def section(made: Build) -> str:
    """The generated part of the page."""
    begin = f"{BEGIN} (written by `python -m tests.sass --write` with nvcc {made.nvcc}) -->"
    return f"{begin}\n\n{table(made, dynamic_shared(made))}\n\n{END}"


def in_page(text: str) -> str:
    """The generated part that a page has."""
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def _run(*command: object, **options: object) -> str:
    """What a command prints; a failure shows it."""
    done = subprocess.run(
        [str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        **options,
    )  # fmt: skip
    if done.returncode:
        reports = re.compile(r"^ptxas info .*\n|^ +\d+ bytes stack frame.*\n", re.M)
        told = reports.sub("", done.stdout)
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{told}")
    return done.stdout


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(prog="python -m tests.sass", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as folder:
        made = build(Path(folder) / "build")
        disassembled = Path(folder) / "cubins"
        disassembled.mkdir()
        disassemble(made, disassembled)
        text = section(made)
    if write:
        page = PAGE.read_text()
        PAGE.write_text(page.replace(in_page(page), text))
    else:
        print(text)


if __name__ == "__main__":
    main()
