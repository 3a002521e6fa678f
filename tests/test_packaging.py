"""What is shipped: the source archive, the wheel, the object code in it, and what it imports."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import fastmmd

SOURCES = ["CMakeLists.txt", "LICENSE", "README.md", "cmake", "csrc", "fastmmd", "pyproject.toml"]
ISAS = ["baseline", "avx2", "avx512"] if os.uname().machine == "x86_64" else ["baseline"]


def builds(test: Callable[..., None]) -> Callable[..., None]:
    """In one worker, so that one build serves all of them."""
    return pytest.mark.build(pytest.mark.xdist_group("build")(test))


# Prints the libgomp copies mapped once both libraries have run something on their threads.
ONE_POOL = """
import os, sys
for name in sys.argv[1:]:
    __import__(name)
import torch, fastmmd
x = torch.randn(600, 64)
(x @ x.T).sum()
fastmmd.mmd2(x, x + 1)
print(fastmmd.__file__)
maps = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}
print(*sorted(os.path.realpath(path) for path in maps))
"""


def run(*command: object, stderr: int = subprocess.PIPE, **kwargs: object) -> str:
    """Standard output of a command; a failure shows both streams."""
    done = subprocess.run(
        [str(c) for c in command], stdout=subprocess.PIPE, stderr=stderr, text=True, **kwargs
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def mapped_libgomps(python: object, *first: str, cwd: Path) -> tuple[Path, list[Path]]:
    """Where fastmmd was imported from, and every libgomp in the process."""
    package, libraries = run(python, "-c", ONE_POOL, *first, cwd=cwd).splitlines()
    return Path(package).parent, [Path(p) for p in libraries.split()]


@pytest.fixture(scope="session")
def sdist(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    script = f"from scikit_build_core.build import build_sdist; build_sdist({str(out)!r})"
    run(sys.executable, "-c", script, cwd=repository)
    (archive,) = out.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="session")
def build(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A wheel built from the source archive in isolation: (wheel, build folder, log)."""
    out = tmp_path_factory.mktemp("wheel")
    log = run(
        sys.executable, "-m", "pip", "wheel", sdist, "--no-deps", "-v", "-w", out,
        f"--config-settings=build-dir={out / 'build'}",
        # Its targets are compiled by test_cuda_static.py, which takes minutes.
        "--config-settings=cmake.define.FASTMMD_CUDA=OFF", cwd=out, stderr=subprocess.STDOUT,
    )  # fmt: skip
    (wheel,) = out.glob("*.whl")
    return wheel, out / "build", log


@pytest.fixture(scope="session")
def repaired(build: tuple[Path, Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("repaired")
    tools = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]
    run(
        sys.executable, "-m", "auditwheel", "repair", "--exclude", "libgomp.so.1",
        "-w", out, build[0],
        env={**os.environ, "PATH": tools},
    )  # fmt: skip
    (wheel,) = out.glob("*.whl")
    return wheel


def wheel_metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


# --- the package as it is installed here ---------------------------------------------------------


def test_version_has_one_source(repository: Path) -> None:
    (declared,) = re.findall(
        r'^version = "(.+)"$', (repository / "pyproject.toml").read_text(), re.M
    )
    assert fastmmd.__version__ == version("fastmmd") == declared
    assert fastmmd.ops.native.build_info()["version"] == declared


@pytest.mark.parametrize("first", ["torch", "fastmmd"])
def test_one_thread_pool(first: str, tmp_path: Path) -> None:
    _, libraries = mapped_libgomps(sys.executable, first, cwd=tmp_path)
    assert len(libraries) == 1


def test_import_needs_torch_alone(tmp_path: Path) -> None:
    script = """
import sys
import torch
before = set(sys.modules)
import fastmmd
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
"""
    added = set(run(sys.executable, "-c", script, cwd=tmp_path).split())
    third_party = (
        added - set(sys.stdlib_module_names) - {"torch", "fastmmd", "numpy", "_fastmmd_editable"}
    )
    assert not third_party


# --- the sources ---------------------------------------------------------------------------------


def includes(repository: Path) -> list[tuple[Path, str]]:
    return [
        (path.relative_to(repository), header)
        for path in (repository / "csrc").rglob("*.*")
        for header in re.findall(r'^\s*#\s*include\s*[<"]([^">]+)', path.read_text(), re.M)
    ]


def test_core_knows_no_torch_and_only_bindings_know_python(repository: Path) -> None:
    found = includes(repository)
    assert len(found) > 10
    assert not [(p, h) for p, h in found if h.startswith(("torch/", "ATen/", "c10/"))]
    python = {p for p, h in found if h.startswith(("pybind11/", "Python.h"))}
    assert {p.name for p in python} == {"binding.cpp"}


def configure(repository: Path, tmp_path: Path, *options: str) -> str:
    """Output of a CMake run that must fail."""
    command = ["cmake", "-S", repository, "-B", tmp_path / "build", *options]
    environment = {**os.environ, "CUDACXX": str(tmp_path / "no-nvcc")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    return " ".join((done.stdout + done.stderr).split())


def test_cmake_alone_says_what_to_run(repository: Path, tmp_path: Path) -> None:
    assert "pip install ." in configure(repository, tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [("ON", "no CUDA compiler was found"), ("yes", "must be AUTO, ON or OFF")],
)
def test_cuda_switch_fails_by_name(
    repository: Path, tmp_path: Path, value: str, message: str
) -> None:
    pybind11 = run(sys.executable, "-m", "pybind11", "--cmakedir").strip()
    options = [f"-Dpybind11_DIR={pybind11}", f"-DPython_EXECUTABLE={sys.executable}"]
    output = configure(repository, tmp_path, "-DSKBUILD=2", f"-DFASTMMD_CUDA={value}", *options)
    assert message in output


def test_readme_examples_run(repository: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.S)
    assert blocks
    for block in blocks:
        run(sys.executable, "-c", block, cwd=tmp_path)


def test_make_lists_its_targets(repository: Path) -> None:
    targets = run("make", "help", cwd=repository)
    assert {"install", "demo", "test", "bench", "docs"} <= set(targets.split())


# --- what is built from them ---------------------------------------------------------------------


@builds
def test_sdist_holds_what_a_build_needs_and_no_more(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {Path(n).relative_to(Path(n).parts[0]) for n in archive.getnames()}
    tops = {n.parts[0] for n in names if n.parts}
    assert tops >= set(SOURCES)
    assert not tops & {".git", ".venv", ".github", "build", "dist", "runs"}
    assert not {part for n in names for part in n.parts} & {"_build", "__pycache__"}
    assert not [n for n in names if n.suffix in {".so", ".o", ".npz", ".npy", ".pyc"}]


@builds
def test_isolated_wheel_needs_no_torch(build: tuple[Path, Path, str]) -> None:
    wheel, _, log = build
    installed = re.findall(r"Successfully installed (.+)", log)
    assert installed, "pip no longer says what it put into the build environment"
    assert not re.search(r"\btorch\b", " ".join(installed))
    metadata = wheel_metadata(wheel)
    base = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    assert sorted(base) == ["numpy", "torch>=2.4"]
    assert metadata["Requires-Python"] == ">=3.10"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {"fastmmd/py.typed", "fastmmd/_native.pyi"} <= set(names)
    assert not [n for n in names if n.startswith(("csrc", "tests", "docs"))]
    cuda = [n for n in names if n.startswith("fastmmd/_cuda.") and n.endswith(".so")]
    assert len(cuda) == ("fastmmd: CUDA module built" in log)
    assert bool(cuda) == ("fastmmd: CUDA module not built" not in log)


@builds
def test_each_instruction_set_keeps_to_itself(build: tuple[Path, Path, str]) -> None:
    """A weak symbol of an AVX object may replace that of the baseline: old processors die of it."""
    for isa in ISAS:
        (tile,) = (build[1] / "CMakeFiles" / f"fastmmd_tile_{isa}.dir").rglob("*.o")
        defined = [
            line.split(maxsplit=2)[1:]
            for line in run("nm", "--defined-only", "--demangle", tile).splitlines()
        ]
        shared = [name for kind, name in defined if kind in "TWVuDBR"]
        assert shared
        foreign = [n for n in shared if f"::{isa}::" not in n and not n.startswith("DW.ref.")]
        assert not foreign
    baseline = [*build[1].glob("CMakeFiles/fastmmd_core.dir/**/*.o"),
                *build[1].glob("CMakeFiles/fastmmd_tile_baseline.dir/**/*.o")]  # fmt: skip
    assert len(baseline) > 1
    for path in baseline:
        assert not re.search(r"%[yz]mm", run("objdump", "-d", path)), path


@builds
def test_core_has_no_symbol_of_python_or_torch(build: tuple[Path, Path, str]) -> None:
    (core,) = build[1].rglob("libfastmmd_core.a")
    undefined = re.findall(r" U (.+)", run("nm", "--undefined-only", "--demangle", core))
    assert undefined
    assert not [s for s in undefined if re.match(r"_?Py|at::|c10::|torch::", s)]


@builds
def test_repaired_wheel_shares_the_pool_of_torch(repaired: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(repaired) as archive:
        assert not [n for n in archive.namelist() if "gomp" in n]
    assert "manylinux" in repaired.name
    # torch comes from here; the package must come from the wheel.
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        repaired,
    )
    (site / "torch.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    package, libraries = mapped_libgomps(python, cwd=tmp_path)
    assert package == site / "fastmmd"
    assert len(libraries) == 1
    assert Path(torch.__file__).parent in libraries[0].parents
