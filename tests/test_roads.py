"""Which kernels a pass takes on a GPU: functions of sizes, settings and devices not at hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastmmd.checks import BIASED, BLOCK, CROSS, INCOMPLETE, LINEAR, RESOLVE
from fastmmd.ops import _roads
from fastmmd.ops._roads import (
    BFLOAT16,
    CLUSTERS,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    MMA,
    SIMT,
    TF32,
    TF32X3,
    WGMMA,
    Device,
    Road,
    feature_panels,
    feature_road,
    panel_side,
    panels,
    road,
    target,
    weights,
)
from fastmmd.terms import COSINE, ENERGY, GAUSSIAN, LAPLACIAN, MATERN_5_2, POLYNOMIAL

ALL = "75 80 90a 100 120 120-ptx"
TURING = Device((7, 5), ALL, 64 << 10, 4 << 20)
AMPERE = Device((8, 0), ALL, 163 << 10, 40 << 20)
ADA = Device((8, 9), ALL, 99 << 10, 72 << 20)
HOPPER = Device((9, 0), ALL, 227 << 10, 50 << 20)
DEVICES = (TURING, AMPERE, ADA, HOPPER)

OF_POINTS = (True, True, False, False, False, False)
NOTHING = (False,) * 6


def choose(
    n: int = 4096,
    m: int = 4096,
    widths: tuple[int, ...] = (512,),
    dtype: torch.dtype = torch.float32,
    setting: str = "highest",
    device: Device = HOPPER,
    families: tuple[int, ...] = (GAUSSIAN,),
    estimator: int = BIASED,
    weighted: bool = False,
    needs: tuple[bool, ...] = OF_POINTS,
    modes: tuple[str, ...] = _roads.ALL_MODES,
) -> Road:
    return road(n, m, widths, dtype, setting, device, families, estimator, weighted, needs, modes)


# --- what PyTorch is told ------------------------------------------------------------------------


@pytest.fixture
def settings() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision("high")  # agrees with all settings of backends, once set
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_precision_follows_the_general_setting(setting: str) -> None:
    torch.set_float32_matmul_precision(setting)
    assert _roads.precision() == setting


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(
    ("general", "backend", "found"),
    [
        ("highest", "tf32", "high"),  # here the general one raises
        ("highest", "ieee", "highest"),
        ("high", "ieee", "highest"),
        ("medium", "ieee", "highest"),
        ("medium", "tf32", "medium"),
    ],
)
def test_precision_follows_the_backend(general: str, backend: str, found: str) -> None:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("torch has no precision for each backend before 2.9")
    torch.set_float32_matmul_precision(general)
    torch.backends.cuda.matmul.fp32_precision = backend
    assert _roads.precision() == found


def test_precision_of_an_older_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Matmul:
        pass

    monkeypatch.setattr(torch.backends.cuda, "matmul", Matmul())
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert _roads.precision() == "medium"

    def refuse() -> str:
        raise RuntimeError("mixed settings")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    assert _roads.precision() == "highest"


# --- the device and the code for it --------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "architectures", "found"),
    [
        ((7, 5), ALL, "75"),
        ((8, 0), ALL, "80"),
        ((8, 6), ALL, "80"),
        ((8, 6), "80 86", "86"),
        ((8, 9), "86 89-ptx", "86"),
        ((8, 9), "75 80-ptx", "80"),
        ((9, 0), ALL, "90a"),
        ((9, 0), "80 80-ptx", "80"),
        ((9, 0), "90", "90"),
        ((10, 0), ALL, "100"),
        ((10, 3), ALL, "100"),
        ((12, 1), ALL, "120"),
        ((13, 0), ALL, "120"),
        ((12, 0), "90a 90-ptx", "90"),
    ],
)
def test_target(capability: tuple[int, int], architectures: str, found: str) -> None:
    assert target(HOPPER._replace(capability=capability, architectures=architectures)) == found


def test_old_devices_are_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"compute capability 7\.5 or later, got one of 7\.0"):
        choose(device=TURING._replace(capability=(7, 0)))


@pytest.mark.parametrize("architectures", ["80", "90a", "100 100-ptx"])
def test_devices_without_code_are_an_error(architectures: str) -> None:
    message = rf"holds code for {architectures}, .* 7\.5: build it with FASTMMD_CUDA_ARCHS=75"
    with pytest.raises(RuntimeError, match=message):
        choose(device=TURING._replace(architectures=architectures))


# Code of one architecture of its own kind, as 90a is, runs nowhere else.
def test_code_of_another_kind_is_no_code() -> None:
    with pytest.raises(RuntimeError, match="holds code for 90a"):
        choose(device=HOPPER._replace(capability=(9, 1), architectures="90a"))


# --- products and operands -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "setting", "operand"),
    [
        (torch.float32, "highest", TF32X3),
        (torch.float32, "high", TF32),
        (torch.float32, "medium", BFLOAT16),
        (torch.bfloat16, "highest", BFLOAT16),
        (torch.float16, "highest", FLOAT16),
        (torch.float16, "medium", FLOAT16),
    ],
)
def test_operands(dtype: torch.dtype, setting: str, operand: int) -> None:
    found = choose(dtype=dtype, setting=setting, device=AMPERE)
    assert (found.products, found.operand) == (MMA, operand)
    found = choose(dtype=dtype, setting=setting)
    assert found.operand == operand
    assert found.products == (MMA if operand == TF32X3 else CLUSTERS)


@pytest.mark.parametrize(
    "options",
    [
        {"families": (GAUSSIAN, LAPLACIAN)},
        {"families": (ENERGY,)},
        {"families": (COSINE,)},
        {"weighted": True},
        {"n": 4, "m": 40000},
    ],
)
@pytest.mark.parametrize(("setting", "operand"), [("highest", TF32X3), ("high", TF32)])
def test_float16_has_no_range_for_everything(
    options: dict[str, object], setting: str, operand: int
) -> None:
    found = choose(dtype=torch.float16, setting=setting, **options)  # type: ignore[arg-type]
    assert found.operand == operand
    bounded = choose(dtype=torch.float16, families=(GAUSSIAN, MATERN_5_2), setting=setting)
    assert bounded.operand == FLOAT16


@pytest.mark.parametrize("device", DEVICES)
def test_float64_is_for_threads(device: Device) -> None:
    assert choose(dtype=torch.float64, device=device)[:3] == ("panels", SIMT, FLOAT64)
    assert choose(n=8, m=8, dtype=torch.float64, device=device)[:3] == ("panels", SIMT, FLOAT64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_turing_has_none_of_the_tensor_cores(dtype: torch.dtype) -> None:
    assert choose(dtype=dtype, device=TURING)[:3] == ("panels", SIMT, FLOAT32)
    # nor has code that was compiled for it
    old = AMPERE._replace(architectures="75 75-ptx")
    assert choose(dtype=dtype, device=old)[:3] == ("panels", SIMT, FLOAT32)


def test_wgmma_is_hoppers() -> None:
    high = {"setting": "high"}
    assert choose(**high).products == CLUSTERS  # type: ignore[arg-type]
    for single in ({"families": (LAPLACIAN,)}, {"needs": (True,) * 6}, {"needs": NOTHING}):
        assert choose(**high, **single).products == WGMMA  # type: ignore[arg-type]
    for device in (AMPERE, ADA, HOPPER._replace(capability=(10, 0))):
        assert choose(device=device, **high).products == MMA  # type: ignore[arg-type]
    without = HOPPER._replace(architectures="80 80-ptx")
    assert choose(device=without, **high).products == MMA  # type: ignore[arg-type]


def test_products_of_many_kernels_need_room() -> None:
    for dtype, most in ((torch.float32, 3), (torch.float64, 3)):
        families = (GAUSSIAN,) * most
        choose(device=TURING, dtype=dtype, widths=(3,) * most, families=families)
        with pytest.raises(RuntimeError, match=f"product of {most + 1} kernels takes .* 64 KiB"):
            choose(device=TURING, dtype=dtype, widths=(3,) * (most + 1), families=families)
        for device in (AMPERE, ADA, HOPPER):
            if device is not ADA or dtype == torch.float64:
                choose(device=device, dtype=dtype, widths=(3,) * 8, families=(GAUSSIAN,) * 8)


def test_tiles_that_are_staged_twice_need_room() -> None:
    terms = (True, True, False, False, True, False)
    for device in (AMPERE, HOPPER):
        assert choose(device=device, families=(LAPLACIAN,)).products != SIMT
        assert choose(device=device, needs=terms).products != SIMT
    assert choose(device=ADA).products == MMA
    for change in ({"families": (GAUSSIAN, LAPLACIAN)}, {"needs": terms}):
        found = choose(device=ADA, **change)  # type: ignore[arg-type]
        assert (found.products, found.operand) == (SIMT, FLOAT32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_kernels_are_for_threads(dtype: torch.dtype) -> None:
    found = choose(widths=(100, 31), dtype=dtype)
    assert found[:3] == ("panels", SIMT, FLOAT32)
    assert choose(n=4, m=4, widths=(100, 31), dtype=dtype).mode == "panels"


# --- modes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [LINEAR, BLOCK, INCOMPLETE])
@pytest.mark.parametrize("n", [10, 5000])
def test_few_pairs(estimator: int, n: int) -> None:
    assert choose(n=n, estimator=estimator, setting="high") == ("pairs", SIMT, FLOAT32, 0)
    found = choose(n=n, estimator=estimator, dtype=torch.float64, widths=(3, 4))
    assert found == ("pairs", SIMT, FLOAT64, 0)


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
@pytest.mark.parametrize("device", DEVICES)
def test_small(setting: str, device: Device) -> None:
    small = choose(n=512, m=512, setting=setting, device=device)
    assert small == ("small", SIMT, FLOAT32, 0)
    assert choose(n=512, m=513, setting=setting, device=device).mode != "small"
    refused = choose(n=512, m=512, setting=setting, device=device, modes=("panels",))
    assert refused.mode == "panels"


def test_bandwidths_are_made_of_the_points_as_they_are() -> None:
    for n in (10, 5000):
        found = choose(n=n, m=n, estimator=RESOLVE, needs=NOTHING, setting="medium")
        assert found[:3] == ("values", SIMT, FLOAT32)


def test_fused() -> None:
    narrow = {"widths": (256,), "setting": "high", "device": AMPERE}
    assert choose(**narrow) == ("fused", MMA, TF32, 0)  # type: ignore[arg-type]
    one = (False, True, False, False, False, False)
    assert choose(needs=one, **narrow).mode == "fused"  # type: ignore[arg-type]
    assert choose(estimator=CROSS, **narrow).mode == "fused"  # type: ignore[arg-type]
    assert choose(widths=(256,), setting="high", device=TURING).mode == "panels"
    assert choose(widths=(257,), setting="high", device=AMPERE).mode == "panels"
    assert choose(families=(COSINE,), **narrow).mode == "panels"  # type: ignore[arg-type]
    for i in range(2, 6):  # gradients to weights or terms
        needs = tuple(k in (0, i) for k in range(6))
        assert choose(needs=needs, **narrow).mode == "panels"  # type: ignore[arg-type]
    refused = choose(modes=("panels", "values"), **narrow)  # type: ignore[arg-type]
    assert refused[:3] == ("panels", MMA, TF32)


def test_fused_rounds_no_weights_of_inner_products() -> None:
    polynomial = {"families": (POLYNOMIAL,), "widths": (64,)}
    for device in (AMPERE, HOPPER):
        assert choose(device=device, **polynomial).mode == "fused"  # type: ignore[arg-type]
        found = choose(device=device, setting="high", **polynomial)  # type: ignore[arg-type]
        assert (found.mode, found.operand) == ("panels", TF32)


def test_fused_beside_wgmma() -> None:
    assert choose(widths=(64,), setting="high") == ("fused", MMA, TF32, 0)
    assert choose(widths=(65,), setting="high")[:3] == ("panels", CLUSTERS, TF32)
    assert choose(widths=(256,), setting="highest") == ("fused", MMA, TF32X3, 0)


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_few_points_have_the_accuracy_of_float32(setting: str, dtype: torch.dtype) -> None:
    """Where "small" has refused them."""
    few = {"n": 1000, "m": 24, "widths": (256,), "setting": setting, "dtype": dtype}
    refused = {"modes": ("fused", "panels", "values")}
    for device in (AMPERE, HOPPER):
        found = choose(device=device, **few, **refused)  # type: ignore[arg-type]
        assert found == ("fused", MMA, TF32X3, 0)
        found = choose(device=device, needs=NOTHING, **few, **refused)  # type: ignore[arg-type]
        assert found[:3] == ("values", MMA, TF32X3)
        for other in ({"widths": (2048,)}, {"needs": (True,) * 6}, {"families": (COSINE,)}):
            found = choose(device=device, **few | refused | other)  # type: ignore[arg-type]
            assert found[:3] == ("panels", MMA, TF32X3)
    found = choose(**few | refused | {"n": 1001, "families": (COSINE,)})  # type: ignore[arg-type]
    assert (found.operand == TF32X3) == (setting == "highest" and dtype != torch.bfloat16)


@pytest.mark.parametrize("widths", [(64,), (512,)])
def test_values(widths: tuple[int, ...]) -> None:
    assert choose(widths=widths, needs=NOTHING, setting="high")[:3] == ("values", WGMMA, TF32)
    of_weights = (False, False, True, True, True, True)
    assert choose(widths=widths, needs=of_weights).mode == "values"


# --- panels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight_bytes", "l2", "side"),
    [
        (4, 50 << 20, 2816),  # 30 MiB
        (2, 50 << 20, 4096),
        (8, 50 << 20, 2048),
        (16, 50 << 20, 1408),
        (4, 4 << 20, 768),
        (4, 0, 128),
    ],
)
def test_panels_fit_the_cache(weight_bytes: int, l2: int, side: int) -> None:
    found = panel_side(weight_bytes, l2)
    assert found == side
    assert found % 128 == 0
    assert found**2 * weight_bytes <= min(32 << 20, max(l2 * 2 / 3, 128**2 * 4))


@pytest.mark.parametrize(
    ("operand", "setting", "device", "families", "found"),
    [
        (TF32, "high", HOPPER, (GAUSSIAN, LAPLACIAN), (TF32, False, False)),
        (BFLOAT16, "highest", HOPPER, (GAUSSIAN,), (BFLOAT16, False, False)),
        (TF32X3, "highest", HOPPER, (GAUSSIAN,), (FLOAT32, False, False)),
        (TF32X3, "high", HOPPER, (GAUSSIAN,), (FLOAT32, True, True)),
        (FLOAT32, "medium", ADA, (GAUSSIAN, COSINE), (FLOAT32, True, True)),
        (FLOAT32, "medium", TURING, (GAUSSIAN, COSINE), (FLOAT32, False, False)),
        (TF32, "high", AMPERE, (COSINE,), (FLOAT32, True, False)),
        (TF32, "highest", AMPERE, (COSINE,), (FLOAT32, False, False)),
        (BFLOAT16, "highest", AMPERE, (POLYNOMIAL,), (FLOAT32, True, False)),
        (FLOAT64, "high", HOPPER, (COSINE,), (FLOAT64, False, False)),
    ],
)
def test_weights(
    operand: int,
    setting: str,
    device: Device,
    families: tuple[int, ...],
    found: tuple[int, bool, bool],
) -> None:
    """What PyTorch or the dtype of the points would round is split."""
    assert weights(operand, setting, device, families) == found


def test_panels_leave_room_for_terms() -> None:
    for setting, bytes_ in (("highest", 4), ("high", 8)):
        found = choose(n=500, m=500, families=(COSINE,), setting=setting, modes=("panels",))
        assert found.panel_rows == panel_side(bytes_, HOPPER.l2_bytes)
    found = choose(widths=(3, 4, 5), families=(GAUSSIAN,) * 3, setting="high")
    assert found.panel_rows == panel_side(16, HOPPER.l2_bytes)


@pytest.mark.parametrize("side", [128, 384, 4096])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (128, 129), (700, 300), (1, 2000)])
def test_panels_are_all_pairs_once(n: int, m: int, side: int) -> None:
    start = -(-n // 128) * 128
    end = start + -(-m // 128) * 128
    met = torch.zeros(end // 128, end // 128, dtype=torch.int64)
    for row, rows, column, columns in panels(n, m, BIASED, side):
        assert 0 < rows <= side
        assert 0 < columns <= side
        assert not any(v % 128 for v in (row, rows, column, columns))
        for first, count in ((row, rows), (column, columns)):
            assert first + count <= start or first >= start
        if row == column:
            assert rows == columns
        else:
            assert row + rows <= column
        blocks = (
            slice(row // 128, (row + rows) // 128),
            slice(column // 128, (column + columns) // 128),
        )
        met[blocks] += 1
        if row != column:
            met.T[blocks] += 1
    assert bool((met == 1).all())


def test_panels_of_a_sum_across_are_across() -> None:
    of_cross = panels(700, 300, CROSS, 256)
    assert of_cross == [p for p in panels(700, 300, BIASED, 256) if p[0] < 768 <= p[2]]
    assert len(of_cross) == 6


# --- random features -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "setting", "device", "products", "operand"),
    [
        (torch.float32, "highest", HOPPER, MMA, TF32X3),
        (torch.float32, "high", HOPPER, WGMMA, TF32),
        (torch.float32, "medium", HOPPER, WGMMA, BFLOAT16),
        (torch.float32, "high", AMPERE, MMA, TF32),
        (torch.bfloat16, "highest", ADA, MMA, BFLOAT16),
        # which holds the frequencies of heavy tails, too
        (torch.float16, "highest", HOPPER, WGMMA, TF32),
        (torch.float64, "medium", HOPPER, SIMT, FLOAT64),
        (torch.float32, "high", TURING, SIMT, FLOAT32),
        (torch.float16, "high", TURING, SIMT, FLOAT32),
    ],
)
def test_features(
    dtype: torch.dtype, setting: str, device: Device, products: int, operand: int
) -> None:
    side = panel_side(_roads._BYTES[operand], device.l2_bytes)
    found = feature_road(dtype, setting, device)
    assert found == Road("panels", products, operand, side)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_transforms_are_for_threads(dtype: torch.dtype, device: Device) -> None:
    operand = FLOAT64 if dtype == torch.float64 else FLOAT32
    assert feature_road(dtype, "high", device, 1024) == Road("transforms", SIMT, operand, 0)


def test_transforms_need_room_for_a_row() -> None:
    feature_road(torch.float32, "high", TURING, 8192)
    with pytest.raises(RuntimeError, match=r"take 70 KiB of shared memory.*64 KiB"):
        feature_road(torch.float32, "high", TURING, 16384)
    feature_road(torch.float32, "high", HOPPER, 32768)
    with pytest.raises(RuntimeError, match="structured frequencies"):
        feature_road(torch.float64, "high", HOPPER, 32768)


@pytest.mark.parametrize(("n", "count", "side"), [(1, 1, 128), (300, 5000, 512), (5000, 100, 512)])
def test_panels_of_features_are_all_projections_once(n: int, count: int, side: int) -> None:
    start = -(-n // 128)
    met = torch.zeros(-(-count // 128), start, dtype=torch.int64)
    for row, rows, column, columns in feature_panels(n, count, side):
        assert not any(v % 128 for v in (row, rows, column, columns))
        assert 0 < rows * columns <= max(side * side, 128 * 128)
        met[row // 128 - start :, column // 128 :][: rows // 128, : columns // 128] += 1
    assert bool((met == 1).all())
