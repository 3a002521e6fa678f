"""The CUDA module for a CPU: csrc/cuda compiled as C++, with the stand-ins of this directory.

`python -m tests.emulation.build DIR` builds `_cuda` into DIR; objects are kept in DIR/objects and
made again when their source, a header or a stand-in changes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
CXX = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-pthread"]
# nvcc includes this by itself.
FLAGS += ["-include", "initializer_list"]
# What nvcc reads and g++ does not know: `#pragma unroll`; parameters aligned beyond 16 bytes.
FLAGS += ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-psabi"]
# The stand-ins come first; <cuda_runtime.h> is one of them.
INCLUDES = [f"-iquote{HERE}", f"-iquote{CSRC}", f"-I{HERE}"]
# Of csrc/cuda, what the stand-ins replace.
REPLACED = {"tensor_map.cu"}


def sources() -> list[Path]:
    """What the module is made of."""
    kernels = [path for path in sorted(CSRC.glob("cuda/*.cu")) if path.name not in REPLACED]
    return [*kernels, CSRC / "cuda" / "binding.cpp", *emulator()]


def emulator() -> list[Path]:
    """The stand-ins that are compiled."""
    return [HERE / f"{name}.cpp" for name in ("scheduler", "waits", "tensor_core")]


def headers() -> list[Path]:
    """What a source may include."""
    patterns = ("*.h", "cuda/*.h", "cuda/*.cuh")
    return sorted(path for root in (HERE, CSRC) for p in patterns for path in root.glob(p))


def compile_all(files: list[Path], objects: Path, flags: list[str], jobs: int = 2) -> list[Path]:
    """The object files of these sources; a compiler's complaint is the error's text."""
    objects.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(" ".join([CXX, *flags]).encode())
    for path in headers():
        digest.update(path.name.encode() + path.read_bytes())

    def compile_one(source: Path) -> Path:
        own = digest.copy()
        own.update(source.read_bytes())
        made = objects / f"{source.stem}-{own.hexdigest()[:16]}.o"
        if not made.exists():
            part = made.with_suffix(f".{os.getpid()}.part")
            run([CXX, *flags, *INCLUDES, "-x", "c++", "-c", str(source)], part)
            for old in objects.glob(f"{source.stem}-*.o"):
                old.unlink(missing_ok=True)
            part.replace(made)
        return made

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(compile_one, files))


def build_program(source: Path, output_dir: Path, *, races: bool = False) -> Path:
    """An executable of one source and the emulator.

    With `races`, ThreadSanitizer looks at what `source` does, CUDA threads being threads to it.
    """
    flags = FLAGS + (["-g", "-O1", "-DFASTMMD_EMULATION_RACES"] if races else [])
    sanitize = ["-fsanitize=thread"] if races else []
    objects = compile_all([source], output_dir / "objects", [*flags, *sanitize])
    objects += compile_all(emulator(), output_dir / "objects", flags)
    program = output_dir / source.stem
    run([CXX, *flags, *sanitize, *map(str, objects)], program)
    return program


def run(command: list[str], output: Path) -> None:
    """Runs a compiler or linker."""
    done = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    sys.stderr.write(done.stderr)


def build(output_dir: str | os.PathLike[str]) -> Path:
    """The module in `output_dir`, to be imported as `_cuda` from there."""
    import pybind11

    output = Path(output_dir)
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    objects = compile_all(
        sources(), output / "objects", [*FLAGS, '-DFASTMMD_CUDA_ARCHS="emulation"', *includes]
    )
    module = output / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    part = module.with_name(f"{module.name}.{os.getpid()}.part")
    run([CXX, *FLAGS, "-shared", *map(str, objects)], part)
    part.replace(module)
    return module


if __name__ == "__main__":
    print(build(sys.argv[1]))
