"""The CUDA module for a CPU: csrc/cuda compiled as C++, with the stand-ins of this directory.

`python -m tests.emulation.build DIR [thread|address]` builds `_cuda` into DIR, with that sanitizer.
Objects are kept in DIR/objects and made again when their source, a header or a stand-in changes.
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
# Kernels look at floats four at a time, as float4, where nvcc does not mind.
FLAGS += ["-fno-strict-aliasing"]
# nvcc includes this by itself.
FLAGS += ["-include", "initializer_list"]
# What nvcc reads and g++ does not know: `#pragma unroll`; parameters aligned beyond 16 bytes.
FLAGS += ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-psabi"]
# The stand-ins come first; <cuda_runtime.h> is one of them.
INCLUDES = [f"-iquote{HERE}", f"-iquote{CSRC}", f"-I{HERE}"]
# Of csrc/cuda, what the stand-ins replace.
REPLACED = {"tensor_map.cu"}


def sources() -> list[Path]:
    """What the module is made of, besides the emulator."""
    kernels = [path for path in sorted(CSRC.glob("cuda/*.cu")) if path.name not in REPLACED]
    return [*kernels, CSRC / "cuda" / "binding.cpp"]


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
    kind = digest.hexdigest()[:8]
    for path in headers():
        digest.update(path.name.encode() + path.read_bytes())

    def compile_one(source: Path) -> Path:
        own = digest.copy()
        own.update(source.read_bytes())
        made = objects / f"{source.stem}-{kind}-{own.hexdigest()[:16]}.o"
        if not made.exists():
            part = made.with_suffix(f".{os.getpid()}.part")
            run([CXX, *flags, *INCLUDES, "-x", "c++", "-c", str(source)], part)
            for old in objects.glob(f"{source.stem}-{kind}-*.o"):
                old.unlink(missing_ok=True)
            part.replace(made)
        return made

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(compile_one, files))


def compiler_flags(sanitize: str) -> tuple[list[str], list[str]]:
    """Of the emulator and of what it runs, with a sanitizer: "thread", "address" or none.

    With "thread" every CUDA thread is a thread to ThreadSanitizer, which does not look at the
    emulator.
    """
    if not sanitize:
        return FLAGS, FLAGS
    flags = [*FLAGS, "-O1", "-g"]
    if sanitize == "thread":
        flags += ["-DFASTMMD_EMULATION_RACES"]
        return flags, [*flags, "-fsanitize=thread"]
    flags += [f"-fsanitize={sanitize}"]
    return flags, flags


def sanitizer_environment(sanitize: str) -> dict[str, str]:
    """For a Python that imports a module built with a sanitizer; a finding ends it with a code."""
    library = {"thread": "libtsan.so", "address": "libasan.so"}[sanitize]
    found = subprocess.run([CXX, f"-print-file-name={library}"], capture_output=True, text=True)
    return {
        "LD_PRELOAD": found.stdout.strip(),
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1",
        "ASAN_OPTIONS": "detect_leaks=0",
    }


def build_program(source: Path, output_dir: Path, *, sanitize: str = "") -> Path:
    """An executable of one source and the emulator."""
    own, flags = compiler_flags(sanitize)
    objects = compile_all([source], output_dir / "objects", flags)
    objects += compile_all(emulator(), output_dir / "objects", own)
    program = output_dir / source.stem
    run([CXX, *flags, *map(str, objects)], program)
    return program


def run(command: list[str], output: Path) -> None:
    """Runs a compiler or linker."""
    done = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    sys.stderr.write(done.stderr)


def build(output_dir: str | os.PathLike[str], *, sanitize: str = "") -> Path:
    """The module in `output_dir`, to be imported as `_cuda` from there.

    One built with a sanitizer needs `sanitizer_environment`.
    """
    import pybind11

    output = Path(output_dir)
    own, flags = compiler_flags(sanitize)
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    includes += ['-DFASTMMD_CUDA_ARCHS="emulation"']
    objects = compile_all(sources(), output / "objects", [*flags, *includes])
    objects += compile_all(emulator(), output / "objects", own)
    module = output / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    part = module.with_name(f"{module.name}.{os.getpid()}.part")
    run([CXX, *flags, "-shared", *map(str, objects)], part)
    part.replace(module)
    return module


if __name__ == "__main__":
    print(build(sys.argv[1], sanitize=sys.argv[2] if len(sys.argv) > 2 else ""))
