"""The CPU core: addresses and sizes in, status out. It knows neither torch nor numpy.

An address is the value of ``Tensor.data_ptr()``; 0 stands for "none". The caller owns every buffer
and keeps it alive until the call returns. Calls release the GIL, and ``KeyboardInterrupt`` comes
out of a long one.

"Result type" is float64 for float64 points and float32 otherwise. A kernel is T terms, grouped into
the factors of a product; factor l looks at ``widths[l]`` columns, and its terms have one geometry.
"""

from collections.abc import Sequence

def mmd2(
    x: int,  # [batch, n, d], any strides
    y: int,  # [batch, m, d]
    n: int,
    m: int,
    x_strides: Sequence[int],  # of rows and columns, or of the batch before them; in elements
    y_strides: Sequence[int],
    batch: int,
    dtype: int,  # 0 float32, 1 float64, 2 float16, 3 bfloat16
    x_weights: int,  # float64 [batch, n], contiguous, not yet divided by their sum; 0 = uniform
    y_weights: int,  # float64 [batch, m]
    widths: Sequence[int],  # [factors], with sum d
    factors: Sequence[int],  # [T]: the factor of each term, from 0 and never falling
    families: Sequence[int],  # [T]: numbers of fastmmd.kernels
    scales: int,  # float64 [T]
    coefficients: int,  # float64 [T]
    shapes: Sequence[float],  # [2 T]: two further real parameters of each term
    units: Sequence[int],  # [T]: numbers of fastmmd.kernels
    estimator: int,  # number of fastmmd.checks
    size: int,  # points of a block, or number of superdiagonals
    constant_factors: int,  # how many, from the last, have gradients of 0 to their columns
    value: int,  # out, result type [batch]
    v_x: int,  # out, result type [batch, n, d], contiguous; 0 = not wanted
    v_y: int,  # out, result type [batch, m, d]; 0 = not wanted
    v_x_weights: int,  # out, float64 [batch, n]; 0 = not wanted
    v_y_weights: int,  # out, float64 [batch, m]; 0 = not wanted
    v_scales: int,  # out, float64 [batch, T], units held fixed; with v_coefficients or not at all
    v_coefficients: int,  # out, float64 [batch, T]
    resolved: int,  # out, float64 [batch, T]: scales / unit, as used
    workspace: int,  # mmd2_workspace(...) bytes, of any alignment
    threads: int,
) -> None: ...
def mmd2_workspace(
    n: int,
    m: int,
    widths: Sequence[int],
    batch: int,
    dtype: int,
    estimator: int,
    size: int,
    threads: int,
    units: Sequence[int],
) -> int: ...
def kernel_sum(
    x: int,  # [n, d], any strides
    y: int,  # [m, d]
    n: int,
    m: int,
    x_strides: Sequence[int],  # [2], in elements
    y_strides: Sequence[int],
    dtype: int,
    v: int,  # result type [m, p], contiguous
    p: int,
    widths: Sequence[int],
    factors: Sequence[int],
    families: Sequence[int],
    scales: int,
    coefficients: int,
    shapes: Sequence[float],
    units: Sequence[int],
    out: int,  # out, result type [n, p]: K(x, y) v
    resolved: int,  # out, float64 [T]
    workspace: int,
    threads: int,
) -> None: ...
def kernel_sum_workspace(
    n: int, m: int, widths: Sequence[int], p: int, dtype: int, threads: int
) -> int: ...
def sign_forms(
    x: int,  # [n, d], any strides
    y: int,  # [m, d]
    n: int,
    m: int,
    x_strides: Sequence[int],  # [2], in elements
    y_strides: Sequence[int],
    dtype: int,
    widths: Sequence[int],
    factors: Sequence[int],
    families: Sequence[int],
    scales: int,
    coefficients: int,
    shapes: Sequence[float],
    units: Sequence[int],
    scheme: int,  # 0 permutations, 1 wild bootstrap
    seed: int,  # 64 bits, unsigned
    count: int,
    forms: int,  # out, float64 [count + 1]: v' K0 v
    linear: int,  # out, float64 [count + 1]: v' K0 1
    diagonal: int,  # out, float64 [count + 1]: v' kappa
    totals: int,  # out, float64 [2]: 1' K0 1 and 1' kappa
    resolved: int,  # out, float64 [T]
    workspace: int,
    threads: int,
) -> None: ...
def sign_forms_workspace(
    n: int, m: int, widths: Sequence[int], count: int, dtype: int, threads: int
) -> int: ...
def lines(
    s: int,  # [lines, n], contiguous, float64 if wide, else float32
    t: int,  # [lines, m]
    lines: int,
    n: int,
    m: int,
    wide: bool,
    s_weights: int,  # float64 [n], with sum one; 0: uniform
    t_weights: int,
    q_x: float,
    q_y: float,
    value: int,  # out, float64 [lines]
    within: int,  # out, float64 [lines, 2]
    v_s: int,  # out, [lines, n], of the type of s; 0: not wanted
    v_t: int,
    v_s_weights: int,  # out, float64 [lines, n]
    v_t_weights: int,
    workspace: int,
    threads: int,
) -> None: ...
def lines_workspace(lines: int, n: int, m: int, wide: bool, threads: int) -> int: ...
def projected_mmd2(
    x: int,  # float32 or float64 [n, d], any strides
    y: int,  # [m, d], of the dtype of x, as are all others but what says otherwise
    n: int,
    m: int,
    d: int,
    x_strides: Sequence[int],
    y_strides: Sequence[int],
    dtype: int,
    weight: int,  # [p, d], any strides
    p: int,
    weight_strides: Sequence[int],
    bias: int,  # [p], 0: none
    activation: int,  # 0: none, 1: relu, 2: tanh, 3: gelu
    x_weights: int,  # as in mmd2
    y_weights: int,
    factors: Sequence[int],
    families: Sequence[int],
    scales: int,
    coefficients: int,
    shapes: Sequence[float],
    units: Sequence[int],
    estimator: int,
    size: int,
    value: int,  # out, one number
    v_x: int,  # out, [n, d]; 0: not wanted
    v_y: int,  # out, [m, d]
    v_weight: int,  # out, [p, d]
    v_bias: int,  # out, [p]
    v_x_weights: int,  # out, as in mmd2
    v_y_weights: int,
    v_scales: int,
    v_coefficients: int,
    resolved: int,
    workspace: int,
    threads: int,
) -> None: ...
def projected_mmd2_workspace(
    n: int,
    m: int,
    d: int,
    p: int,
    dtype: int,
    activation: int,
    estimator: int,
    size: int,
    threads: int,
    units: Sequence[int],
) -> int: ...
def feature_sums(
    x: int,  # [n, d], any strides
    n: int,
    d: int,
    x_strides: Sequence[int],
    dtype: int,
    weights: int,  # float64 [n], taken as they are; 0: 1 / n
    frequencies: int,  # result type [count, d], any strides; 0 with signs
    count: int,
    frequency_strides: Sequence[int],
    signs: int,  # int8 [ceil(count / width), 3, width], 0: frequencies are given
    width: int,  # a power of two; 0: frequencies are given
    radii: int,  # float64 [count], with signs
    rates: int,  # float64 [num_rates]
    num_rates: int,
    moments: bool,
    center: int,  # out, float64 [d]
    shifts: int,  # out, float64 [count]: <center, frequency>
    sums: int,  # out, float64 [2, or 4 with moments, num_rates, count]
    workspace: int,
    threads: int,
) -> None: ...
def feature_sums_workspace(
    n: int,
    d: int,
    dtype: int,
    count: int,
    width: int,
    num_rates: int,
    moments: bool,
    threads: int,
) -> int: ...
def feature_gradients(
    x: int,
    n: int,
    d: int,
    x_strides: Sequence[int],
    dtype: int,
    weights: int,
    frequencies: int,
    count: int,
    frequency_strides: Sequence[int],
    signs: int,
    width: int,
    radii: int,
    rates: int,
    num_rates: int,
    center: int,  # as feature_sums left it
    p: int,  # float64 [num_rates, count]
    q: int,
    v_x: int,  # out, result type [n, d]; 0: not wanted
    v_frequencies: int,  # out, result type [count, d], of the points less their center
    v_weights: int,  # out, float64 [n]; with v_x
    workspace: int,
    threads: int,
) -> None: ...
def feature_gradients_workspace(
    n: int,
    d: int,
    dtype: int,
    count: int,
    width: int,
    num_rates: int,
    for_x: bool,
    for_frequencies: bool,
    threads: int,
) -> int: ...
def instruction_set() -> str:
    """The one in use: "avx512", "avx2" or "baseline". ``FASTMMD_ISA`` names another at load."""

def instruction_sets() -> list[str]:
    """Those that this machine can run."""

def use_instruction_set(name: str) -> None:
    """Switch, for tests and benchmarks. ValueError for one unknown or that this machine lacks."""

def build_info() -> dict[str, str]:
    """Compiler, OpenMP (yes or no) and version of this build."""
