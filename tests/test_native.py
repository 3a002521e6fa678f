"""The native module as such: what it tells about itself, and its instruction sets."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch
from tolerance import make_case

import fastmmd as fm
from fastmmd.checks import BIASED
from fastmmd.ops import native
from fastmmd.terms import FIXED


def test_build_info() -> None:
    info = native.build_info()
    assert info["version"] == fm.__version__
    assert info["openmp"] in ("yes", "no")
    assert info["compiler"]


def test_instruction_sets() -> None:
    sets = native.instruction_sets()
    assert "baseline" in sets
    assert native.instruction_set() in sets
    if platform.machine() != "x86_64":
        assert sets == ["baseline"]


def test_unknown_instruction_set() -> None:
    before = native.instruction_set()
    for name in ("sse9", "", "AVX2"):
        with pytest.raises(ValueError, match=f"'{name}'"):
            native.use_instruction_set(name)
        assert native.instruction_set() == before


@pytest.mark.parametrize("name", native.instruction_sets())
def test_instruction_set_of_the_environment(name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import torch, fastmmd._native as n; print(n.instruction_set())"],
        env={**os.environ, "FASTMMD_ISA": name},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == name


def test_instruction_sets_differ_in_the_last_bits_alone() -> None:
    case = make_case(0, 300, 200, 50, "sum")
    before = native.instruction_set()
    results = []
    try:
        for name in native.instruction_sets():
            native.use_instruction_set(name)
            assert native.instruction_set() == name
            results.append(fm.mmd2(case.x, case.y, case.kernel))
    finally:
        native.use_instruction_set(before)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=0)


def test_workspace_is_linear() -> None:
    def size(n: int, d: int, threads: int = 2) -> int:
        return native.mmd2_workspace(n, n, (d,), 1, 0, BIASED, 0, threads, (FIXED,))

    # the points once more, in whatever layout, and a number or two for each
    assert size(1 << 16, 64) <= 2 * (2 << 16) * (64 + 16) * 4
    # past 2^31 pairs and 2^31 numbers
    assert size(1 << 24, 512) > 1 << 32
    # what a thread adds is a buffer that fits into its cache, however large the samples are
    for n in (1 << 12, 1 << 16, 1 << 22):
        assert size(n, 64, 9) - size(n, 64, 8) <= 1 << 20


def test_lists_of_different_lengths() -> None:
    x, ones = torch.randn(4, 3), torch.ones(2, dtype=torch.float64)
    two = {"families": [0] * 2, "shapes": [0.0] * 4, "units": [0] * 2, "factors": [0] * 2}
    assert torch.ops.fastmmd.kernel_sum(x, x, x, ones, ones, *two.values(), [3])[0].isfinite().all()
    for name in two:
        for wrong in (two[name][:-1], two[name] * 2, []):
            lists = (two | {name: wrong}).values()
            with pytest.raises(ValueError, match="factors, families, shapes and units need one"):
                torch.ops.fastmmd.kernel_sum(x, x, x, ones, ones, *lists, [3])
