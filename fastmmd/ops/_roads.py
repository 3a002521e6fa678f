"""Which kernels a pass takes on a GPU: pure functions of sizes, settings and the device.

A road is a mode and what makes the inner products of its tiles. The modes:

- ``"small"``: up to 1024 points, two launches for everything, with float32 accuracy always: there
  the launches cost more than the arithmetic. As few points have that accuracy on all roads;
- ``"fused"``: rows of up to 256 features, 64 where there is wgmma, the gradient made from tiles
  that are still in registers;
- ``"panels"``: gradient weights of a rectangle of pairs, sized to the L2 cache, and matrix products
  of them with the points;
- ``"values"``: no gradient to the points;
- ``"pairs"``: estimators that count few of the pairs.

The products: multiply-adds of each thread (``SIMT``), which take everything; tensor cores by
``mma.sync`` (``MMA``, compute capability 8.0 and later), by ``wgmma`` (``WGMMA``, 9.0), and by
``wgmma`` of thread blocks that load rows for each other (``CLUSTERS``, for panels alone), which
take kernels of one factor of float32 and half points. Their operands follow the precision that
PyTorch is told to multiply float32 matrices with; half points are multiplied as they are, where
their range allows it.

The gradient weights of a panel are rounded to the operand where the kernel is one of distances, as
their sums, which the points are multiplied with, are then of the same numbers. Those of inner
products and of products of kernels are not: most of a gradient may cancel. What PyTorch would round
in their stead is split into two terms, and so are weights and points of tiles with the accuracy of
float32.

Random features have modes of their own: ``"panels"`` of slopes, for frequencies that are given, and
``"transforms"``, for structured ones, which single threads make.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch

from fastmmd.checks import BLOCK, CROSS, INCOMPLETE, LINEAR, RESOLVE
from fastmmd.terms import (
    COSINE_SIMILARITY,
    GAUSSIAN,
    GEOMETRY,
    INVERSE_MULTIQUADRIC,
    MATERN_3_2,
    MATERN_5_2,
    RADIAL,
    RATIONAL_QUADRATIC,
)

# By the numbers that the native side knows them by.
FLOAT32, FLOAT64, FLOAT16, BFLOAT16, TF32, TF32X3 = range(6)
SIMT, MMA, WGMMA, CLUSTERS = range(4)

SMALL, FUSED, PANELS, VALUES, PAIRS = "small", "fused", "panels", "values", "pairs"
TRANSFORMS = "transforms"
ALL_MODES = (SMALL, FUSED, PANELS, VALUES, PAIRS)

HIGHEST, HIGH, MEDIUM = "highest", "high", "medium"

BLOCK_ROWS = 128  # of a panel: a multiple of it
DEPTH_UNIT = 32  # packed rows are padded to multiples of it
SMALL_ROWS = 1024
FUSED_WIDTH = 256
# It is made by mma.sync, at less than two thirds of the rate of wgmma, and makes every inner
# product twice: beside panels by wgmma only narrow rows are worth it.
FUSED_WIDTH_WGMMA = 64
OLDEST = (7, 5)
_TENSOR_CORES = (8, 0)  # that TF32 and bf16 are multiplied by

_BYTES = {FLOAT32: 4, FLOAT64: 8, FLOAT16: 2, BFLOAT16: 2, TF32: 4, TF32X3: 4}
_MOST_PANEL_BYTES = 32 << 20
# Families whose slope is bounded, so that gradient weights stay in the range of float16.
_BOUNDED = {GAUSSIAN, INVERSE_MULTIQUADRIC, RATIONAL_QUADRATIC, MATERN_3_2, MATERN_5_2}
# Gradient weights within the smaller sample are as much larger than those across the samples.
_MOST_UNEQUAL = 1024
_STAGED_BYTES = 160 << 10  # of shared memory, that tiles of tensor cores take when staged twice
# Of products of kernels: for everything else, and for each factor.
_PRODUCT_BYTES = {FLOAT32: 26 << 10, FLOAT64: 42 << 10}
_FACTOR_BYTES = {FLOAT32: 12 << 10, FLOAT64: 6 << 10}
_MASKED = (LINEAR, BLOCK, INCOMPLETE)
_TRANSFORM_BYTES = 4 << 10  # of shared memory, beside one row


class Device(NamedTuple):
    """What is to be known of a GPU, and of the code that there is for it."""

    capability: tuple[int, int]
    architectures: str  # of the module, as "80 90a 120-ptx"
    shared_bytes: int  # of a thread block
    l2_bytes: int


class Road(NamedTuple):
    """How a pass is made."""

    mode: str
    products: int
    operand: int
    panel_rows: int  # and columns, at most; a multiple of BLOCK_ROWS


class Weights(NamedTuple):
    """How the gradient weights of panels are stored and multiplied with points."""

    stored: int  # as an operand is
    split: bool  # they, and
    split_points: bool  # the points, are multiplied as two terms each

    def pair_bytes(self, factors: int) -> int:
        """Of the weights of a kernel of so many factors, with the terms of one of them."""
        return _BYTES[self.stored] * factors + (4 if self.split else 0)


def round_up(a: int, unit: int) -> int:
    """The least multiple that is not less."""
    return -(-a // unit) * unit


def precision() -> str:
    """How float32 matrices are multiplied on CUDA, as PyTorch is set: one of three.

    ``"highest"`` is float32, ``"high"`` TF32, ``"medium"`` bfloat16. The setting of the backend
    counts where it exists (torch 2.9); it knows no more than TF32, so ``"medium"`` is what
    ``torch.set_float32_matmul_precision`` has said, if the two agree. Never raises, as
    ``torch.get_float32_matmul_precision`` does once the backend has been set by itself.
    """
    try:
        general = torch.get_float32_matmul_precision()
    except RuntimeError:
        general = None
    try:
        backend = torch.backends.cuda.matmul.fp32_precision
    except (AttributeError, RuntimeError):
        return general or HIGHEST
    if backend == "bf16" or (backend == "tf32" and general == MEDIUM):
        return MEDIUM
    return HIGH if backend == "tf32" else HIGHEST


def target(device: Device) -> str:
    """The architecture whose code of the module the device runs, as "80" or "90a".

    Raises:
        RuntimeError: the device is too old, or the module holds no code for it.
    """
    major, minor = device.capability
    if device.capability < OLDEST:
        raise RuntimeError(
            f"fastmmd needs a GPU of compute capability {OLDEST[0]}.{OLDEST[1]} or later, got one"
            f" of {major}.{minor}: move x and y to the CPU, or use fastmmd.reference"
        )
    compiled, portable = [], []
    for name in device.architectures.split():
        number = int(name.split("-")[0].rstrip("af"))
        of = (number // 10, number % 10)
        if name.endswith("-ptx"):
            if of <= device.capability:
                portable.append((of, name.removesuffix("-ptx")))
        elif of == device.capability or (
            of[0] == major and of < device.capability and name.isdigit()
        ):
            compiled.append((of, name))
    found = max(compiled, default=None) or max(portable, default=None)
    if found is None:
        raise RuntimeError(
            f"fastmmd's CUDA module holds code for {device.architectures}, and the GPU is of"
            f" compute capability {major}.{minor}: build it with FASTMMD_CUDA_ARCHS={major}{minor}"
        )
    return found[1]


def operand_of(
    dtype: torch.dtype, setting: str, families: Sequence[int], weighted: bool, ratio: float = 1.0
) -> int:
    """What tensor cores multiply points of this dtype as.

    ``ratio`` is that of the sizes of the samples, the larger over the smaller.
    """
    if dtype == torch.bfloat16:
        return BFLOAT16
    if dtype == torch.float16:
        bounded = all(family in _BOUNDED for family in families)
        if bounded and not weighted and ratio <= _MOST_UNEQUAL:
            return FLOAT16
        # TF32 has the digits of float16, and range.
        return TF32X3 if setting == HIGHEST else TF32
    return {HIGHEST: TF32X3, HIGH: TF32, MEDIUM: BFLOAT16}[setting]


def weights(operand: int, setting: str, device: Device, families: Sequence[int]) -> Weights:
    """Of the panels of a kernel whose points are multiplied as this operand."""
    if operand == FLOAT64:
        return Weights(FLOAT64, False, False)
    exact = operand in (FLOAT32, TF32X3)
    if not exact and all(GEOMETRY[family] == RADIAL for family in families):
        return Weights(operand, False, False)
    rounds = setting != HIGHEST and device.capability >= _TENSOR_CORES
    half = operand in (FLOAT16, BFLOAT16)
    return Weights(FLOAT32, half or rounds, exact and rounds)


def panel_side(weight_bytes: int, l2_bytes: int) -> int:
    """Rows and columns of a panel, of which two thirds of the L2 cache hold all weights."""
    room = min(_MOST_PANEL_BYTES, l2_bytes * 2 // 3) // weight_bytes
    return max(int(room**0.5) // BLOCK_ROWS * BLOCK_ROWS, BLOCK_ROWS)


def road(
    n: int,
    m: int,
    widths: Sequence[int],
    dtype: torch.dtype,
    setting: str,
    device: Device,
    families: Sequence[int],
    estimator: int,
    weighted: bool,
    needs: Sequence[bool],
    modes: Collection[str] = ALL_MODES,
) -> Road:
    """The road of a pass.

    Args:
        n: rows of x.
        m: rows of y.
        widths: features of the factors of the kernel.
        dtype: of the points.
        setting: what :func:`precision` says.
        device: the GPU.
        families: of the kernel's terms.
        estimator: its number in :mod:`fastmmd.checks`.
        weighted: whether there are sample weights.
        needs: whether gradients to x, y, weights of x, of y, scales and coefficients are wanted.
        modes: which may be taken; ``"small"`` and ``"fused"`` have conditions that only the native
            side knows.

    Raises:
        RuntimeError: as :func:`target`; or the kernel is a product of more factors than fit the
            shared memory of the GPU.
    """
    code = target(device)
    plain = FLOAT64 if dtype == torch.float64 else FLOAT32
    one_factor = len(widths) == 1
    room = _PRODUCT_BYTES[plain] + len(widths) * _FACTOR_BYTES[plain]
    if not one_factor and estimator not in (*_MASKED, RESOLVE) and room > device.shared_bytes:
        raise RuntimeError(
            f"a product of {len(widths)} kernels takes {room >> 10} KiB of shared memory, and the"
            f" GPU has {device.shared_bytes >> 10} KiB: move x and y to the CPU, or use"
            " fastmmd.reference"
        )
    if estimator in _MASKED:
        return Road(PAIRS, SIMT, plain, 0)
    if (
        SMALL in modes
        and one_factor
        and n + m <= SMALL_ROWS
        and dtype != torch.float64
        and estimator != RESOLVE
    ):
        return Road(SMALL, SIMT, FLOAT32, 0)

    products, operand = SIMT, plain
    tensor_cores = int(code.rstrip("af")) >= 10 * _TENSOR_CORES[0]
    of_points = bool(needs[0] or needs[1])
    fuses = (
        FUSED in modes
        and of_points
        and not any(needs[2:])
        and GEOMETRY[families[0]] != COSINE_SIMILARITY
    )
    if one_factor and tensor_cores and dtype != torch.float64 and estimator != RESOLVE:
        # Of few points a gradient may be all that rounded weights leave.
        few = n + m <= SMALL_ROWS
        ratio = max(n, m) / min(n, m)
        products = MMA
        operand = TF32X3 if few else operand_of(dtype, setting, families, weighted, ratio)
    # "fused" rounds weights to narrow operands, whatever the kernel.
    narrow = operand != TF32X3
    if (
        fuses
        and products == MMA
        and widths[0] <= (FUSED_WIDTH_WGMMA if code == "90a" and narrow else FUSED_WIDTH)
        and not (narrow and GEOMETRY[families[0]] != RADIAL)
    ):
        return Road(FUSED, MMA, operand, 0)
    # Other kernels than Gaussians, and gradients of weights and of terms, keep a tile of statistics
    # in shared memory beside the one on its way out.
    staged = any(family != GAUSSIAN for family in families) or any(needs[2:])
    if products == MMA and staged and device.shared_bytes < _STAGED_BYTES:
        products, operand = SIMT, plain
    if products == MMA and code == "90a" and operand != TF32X3:
        products = CLUSTERS if of_points and not staged else WGMMA
    of_pair = weights(operand, setting, device, families).pair_bytes(len(widths))
    side = panel_side(of_pair, device.l2_bytes)
    return Road(PANELS if of_points else VALUES, products, operand, side)


def panels(n: int, m: int, estimator: int, side: int) -> list[tuple[int, int, int, int]]:
    """The rectangles ``(row, rows, column, columns)`` that make up the pairs of packed rows.

    Each lies within one sample, or across the two, and stands for its mirror; those on the diagonal
    are squares. The parts of a sample are of about one size.
    """
    of_x, of_y = _parts(0, n, side), _parts(round_up(n, BLOCK_ROWS), m, side)
    within = () if estimator == CROSS else ((of_x, of_x), (of_y, of_y))
    return [
        (*rows, *columns)
        for of, others in (*within, (of_x, of_y))
        for i, rows in enumerate(of)
        for columns in (others[i:] if of is others else others)
    ]


def feature_road(dtype: torch.dtype, setting: str, device: Device, width: int = 0) -> Road:
    """The road of random features.

    Args:
        dtype: of the points.
        setting: what :func:`precision` says.
        device: the GPU.
        width: of the Hadamard matrices of structured frequencies; 0 for others.

    Raises:
        RuntimeError: as :func:`target`; or a row of that width does not fit the shared memory of
            the GPU.
    """
    code = target(device)
    plain = FLOAT64 if dtype == torch.float64 else FLOAT32
    if width:
        room = (width + width // 32) * _BYTES[plain] + _TRANSFORM_BYTES
        if room > device.shared_bytes:
            raise RuntimeError(
                f"structured frequencies for points of this width take {room >> 10} KiB of shared"
                f" memory, and the GPU has {device.shared_bytes >> 10} KiB: take"
                " frequencies='orthogonal' or 'iid', or move x and y to the CPU"
            )
        return Road(TRANSFORMS, SIMT, plain, 0)
    products, operand = SIMT, plain
    if int(code.rstrip("af")) >= 80 and dtype != torch.float64:
        # Frequencies may leave the range of float16; TF32 has its digits.
        operand = TF32 if dtype == torch.float16 else operand_of(dtype, setting, (), False)
        products = WGMMA if code == "90a" and operand != TF32X3 else MMA
    return Road(PANELS, products, operand, panel_side(_BYTES[operand], device.l2_bytes))


def _parts(first: int, count: int, side: int) -> list[tuple[int, int]]:
    """Packed rows from ``first`` on, cut into about equal parts of whole blocks."""
    rows = round_up(count, BLOCK_ROWS)
    # Pairs of blocks, where it can be, as clusters take two at a time.
    unit = 2 * BLOCK_ROWS if side % (2 * BLOCK_ROWS) == 0 else BLOCK_ROWS
    blocks = -(-rows // unit)
    pieces = -(-blocks // (side // unit))
    edges = [first + min(blocks * i // pieces * unit, rows) for i in range(pieces + 1)]
    return [(a, b - a) for a, b in itertools.pairwise(edges)]


def feature_panels(n: int, count: int, side: int) -> list[tuple[int, int, int, int]]:
    """The rectangles ``(row, rows, column, columns)`` of packed frequencies and points.

    One sample of few rows leaves room for more of the other.
    """
    points, frequencies = (round_up(k, BLOCK_ROWS) for k in (n, count))

    def beside(others: int) -> int:
        return max(side * side // min(others, side) // BLOCK_ROWS * BLOCK_ROWS, side)

    return [
        (*rows, *columns)
        for rows in _parts(points, count, beside(points))
        for columns in _parts(0, n, beside(frequencies))
    ]
