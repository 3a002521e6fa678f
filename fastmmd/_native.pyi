"""The CPU core: addresses and sizes in, status out. It knows neither torch nor numpy.

An address is the value of ``Tensor.data_ptr()``; 0 stands for "none". The caller owns every buffer
and keeps it alive until the call returns. Calls release the GIL, and ``KeyboardInterrupt`` comes
out of a long one.
"""

from collections.abc import Sequence

def mmd2(
    x: int,  # [n, d], any strides
    y: int,  # [m, d], any strides
    n: int,
    m: int,
    d: int,
    x_strides: Sequence[int],  # [2], in elements
    y_strides: Sequence[int],
    dtype: int,  # 0 float32, 1 float64, 2 float16, 3 bfloat16; result dtype: 1 for 1, else 0
    x_weights: int,  # float64 [n], contiguous, not yet divided by their sum; 0 = uniform
    y_weights: int,  # float64 [m]
    families: Sequence[int],  # [T]: 0 Gaussian, 1 Laplacian, 2 Energy
    scales: int,  # float64 [T]
    coefficients: int,  # float64 [T]
    shapes: Sequence[float],  # [T]: a further real parameter of a family
    units: Sequence[int],  # [T]: 0 fixed, 1 mean, 2 median of the pooled squared distances
    unbiased: bool,
    value: int,  # out, result dtype [1]
    v_x: int,  # out, result dtype [n, d], contiguous; 0 = not wanted
    v_y: int,  # out, result dtype [m, d]; 0 = not wanted
    v_x_weights: int,  # out, float64 [n]; 0 = not wanted
    v_y_weights: int,  # out, float64 [m]; 0 = not wanted
    v_scales: int,  # out, float64 [T], the unit held fixed; both or neither with v_coefficients
    v_coefficients: int,  # out, float64 [T]
    resolved: int,  # out, float64 [T]: scales / unit, as used
    workspace: int,  # mmd2_workspace(...) bytes, of any alignment
    threads: int,
) -> None: ...
def mmd2_workspace(n: int, m: int, d: int, dtype: int, threads: int) -> int: ...
def instruction_set() -> str:
    """The one in use: "avx512", "avx2" or "baseline". ``FASTMMD_ISA`` names another at load."""

def instruction_sets() -> list[str]:
    """Those that this machine can run."""

def use_instruction_set(name: str) -> None:
    """Switch, for tests and benchmarks. ValueError for one unknown or that this machine lacks."""

def build_info() -> dict[str, str]:
    """Compiler, OpenMP (yes or no) and version of this build."""
