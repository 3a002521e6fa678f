"""What only a GPU can show: streams, graphs, memory, precision at the sizes that people use."""

from __future__ import annotations

import functools
import gc
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import tolerance
import torch
from cuda_backend import forced, precision, rounded
from tolerance import Case, make_case, make_kernel, native
from torch import Tensor

import fastmmd as fm
from fastmmd import ops, reference
from fastmmd.ops import _cuda, _roads

pytestmark = pytest.mark.gpu

SETTINGS = ("highest", "high", "medium")


def tensor_cores(device: torch.device) -> bool:
    return int(_roads.target(_cuda.device_of(device.index)).rstrip("af")) >= 80


def samples(
    device: torch.device, n: int, m: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(n, d, generator=generator, device=device)
    y = torch.randn(m, d, generator=generator, device=device) * 1.2 + 0.3
    return x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()


def with_gradients(x: Tensor, y: Tensor, *args: Any, **options: Any) -> tuple[Tensor, ...]:
    value = fm.mmd2(x, y, *args, **options)
    return value.detach(), *torch.autograd.grad(value, (x, y))


# --- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "m", "d"), [(700, 600, 64), (600, 900, 300)])
def test_tolerance(
    device: torch.device,
    n: int,
    m: int,
    d: int,
    dtype: torch.dtype,
    setting: str,
    offset: float,
) -> None:
    operand = _cuda.plain_operand(dtype)
    if tensor_cores(device):
        operand = _roads.operand_of(dtype, setting, (0,), False)

    def run(case: Case) -> tolerance.Results:
        moved = replace(case, x=case.x.to(device), y=case.y.to(device))
        return {name: t.cpu() for name, t in native(moved).items()}

    cases = [
        make_case(seed, n, m, d, "bank", dtype=dtype, offset=offset) for seed in tolerance.SEEDS
    ]
    with precision(setting):
        tolerance.check(cases, run, most=2, **rounded(operand))


def test_float64(device: torch.device) -> None:
    """The rule takes an oracle of more digits, which is for small samples."""
    x, y = (t.detach().double().requires_grad_() for t in samples(device, 700, 600, 64))
    found = with_gradients(x, y, kernel(64))
    value = reference.mmd2(x, y, kernel(64))
    expected = value.detach(), *torch.autograd.grad(value, (x, y))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * float(b.abs().max()))


@pytest.mark.parametrize("d", [32, 256])
@pytest.mark.parametrize("setting", SETTINGS)
def test_roads_agree(device: torch.device, d: int, setting: str) -> None:
    """Large samples by every road, beside float64 of the device."""
    x, y = samples(device, 1500, 1300, d)
    exact = with_gradients(*(t.detach().double().requires_grad_() for t in (x, y)), kernel(d))
    roads: list[dict[str, Any]] = [{"mode": "panels", "panel_rows": 512}]
    if tensor_cores(device):
        mma = {"products": _roads.MMA}
        roads += [{"mode": "fused", **mma}, {"mode": "panels", **mma}]
    eps = {"highest": 2.0**-23, "high": 2.0**-11, "medium": 2.0**-8}[setting]
    for road in roads:
        with precision(setting), forced(**road):
            found = with_gradients(x, y, kernel(d))
        assert abs(float(found[0] - exact[0])) <= 8 * eps * 10
        for a, b in zip(found[1:], exact[1:], strict=True):
            assert float((a - b).abs().max()) <= 32 * eps * float(b.abs().max())


def kernel(d: int) -> fm.Kernel:
    return fm.Gaussian(d**0.5)


# --- the device is not waited for ----------------------------------------------------------------


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@functools.cache
def mixture(device: torch.device) -> fm.Kernel:
    """Made once, as its parameters come from the CPU."""
    return make_kernel("mixture", 16).to(device)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "small": lambda x, y: fm.mmd2(x[:100], y[:90]),
    "panels": lambda x, y: fm.mmd2(x, y, fm.Gaussian(3.1415)),
    "kernels": lambda x, y: fm.mmd2(x, y, fm.Gaussian("median") + 0.3 * fm.Laplacian(2.5)),
    "mixture": lambda x, y: fm.mmd2(x, y, mixture(x.device)),
    "unbiased": lambda x, y: fm.mmd2(x, y, fm.Energy(), "unbiased"),
    "linear": lambda x, y: fm.mmd2(x, y, estimator="linear"),
    "block": lambda x, y: fm.mmd2(x, y, estimator="block"),
    "weights": lambda x, y: fm.mmd2(x, y, x_weights=x[:, 0].abs(), y_weights=y[:, 0].abs()),
    "batch": lambda x, y: fm.mmd2(
        x[:600].unflatten(0, (3, -1)), y[:600].unflatten(0, (3, -1))
    ).sum(),
    "many terms": lambda x, y: fm.mmd2(x, y, fm.Gaussian("mean", [1 + k / 9 for k in range(150)])),
    "joint": lambda x, y: fm.joint_mmd2((x, x[:, :3]), (y[:700], y[:700, :3])),
    "local": lambda x, y: fm.local_mmd2(x, y, x.softmax(1).detach(), y.softmax(1).detach(), 16),
    "conditional": lambda x, y: fm.class_conditional_mmd2(
        x, y, x.softmax(1).detach(), y.softmax(1).detach(), 16
    ),
    "kernel sum": lambda x, y: fm.kernel_sum(x, y, y[:, :3]).square().mean(),
    "witness": lambda x, y: fm.witness(x, y, x[:50]).square().mean(),
    "coral": lambda x, y: fm.coral(x, y),
    "second": lambda x, y: (
        torch.cat(torch.autograd.grad(fm.mmd2(x, y), (x, y), create_graph=True)).square().sum()
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_waits(device: torch.device, name: str, dtype: torch.dtype) -> None:
    if name in ("kernel sum", "second", "coral") and dtype != torch.float32:
        pytest.skip("no road of its own")
    x, y = samples(device, 800, 700, 16, dtype)
    mixture(device)
    with no_waiting():
        value = LOSSES[name](x, y)
        found = torch.autograd.grad(value, (x, y))
        with torch.no_grad():
            LOSSES[name](x, y) if name != "second" else None
    assert value.isfinite()
    for g in found:
        assert g.isfinite().all()


def test_running_bandwidth_does_not_wait(device: torch.device) -> None:
    loss = fm.MMDLoss(fm.Gaussian(fm.RunningBandwidth("mean"))).to(device)
    x, y = samples(device, 800, 700, 16)
    with no_waiting():
        loss(x, y).backward()
        loss(x, y).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    "name", ["small", "panels", "mixture", "linear", "weights", "batch", "joint", "kernel sum"]
)
def test_graph_replays_with_new_data(device: torch.device, name: str) -> None:
    loss = LOSSES[name]
    x, y = samples(device, 800, 700, 16)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # cuBLAS and the like make their workspaces
        torch.autograd.grad(loss(x, y), (x, y))
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = loss(x, y)
        found = torch.autograd.grad(value, (x, y))
    for seed in (1, 2):
        new_x, new_y = samples(device, 800, 700, 16, seed=seed)
        with torch.no_grad():
            x.copy_(new_x), y.copy_(new_y)
        graph.replay()
        replayed = [t.clone() for t in (value, *found)]
        again = loss(new_x, new_y)
        eager = [again, *torch.autograd.grad(again, (new_x, new_y))]
        for a, b in zip(replayed, eager, strict=True):
            # what cuBLAS chooses may differ under capture
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_constants_of_a_captured_kernel(device: torch.device) -> None:
    """Numbers that a graph makes are not there before it is replayed, and must not be kept."""
    x, y = samples(device, 90, 80, 5)
    fm.mmd2(x, y)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fm.mmd2(x, y, fm.Gaussian(1.2345678))
    found = fm.mmd2(x, y, fm.Gaussian(1.2345678))
    exact = reference.mmd2(x.double(), y.double(), fm.Gaussian(1.2345678))
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-6)


def test_streams(device: torch.device) -> None:
    x, y = samples(device, 800, 700, 16)
    expected = with_gradients(x, y)
    for _ in range(3):
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            a, b = (t.detach() * 2 for t in (x, y))  # not there yet on another stream
            found = with_gradients((a / 2).requires_grad_(), (b / 2).requires_grad_())
        torch.cuda.current_stream(device).wait_stream(stream)
        for t, e in zip(found, expected, strict=True):
            assert torch.equal(t, e)


@pytest.mark.parametrize("n", [60, 900])
def test_compiled_with_graphs(device: torch.device, n: int) -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("torch.compile needs triton")
    weight = torch.nn.Parameter(torch.randn(16, 16, device=device))
    loss = fm.MMDLoss()

    def step(x: Tensor, y: Tensor) -> Tensor:
        return loss(x @ weight, y @ weight)

    compiled = torch.compile(step, mode="reduce-overhead")
    for seed in range(5):
        x, y = (t.detach() for t in samples(device, n, n + 7, 16, seed=seed))
        torch.compiler.cudagraph_mark_step_begin()
        value = compiled(x, y)
        (found,) = torch.autograd.grad(value, weight)
        eager = step(x, y)
        (expected,) = torch.autograd.grad(eager, weight)
        torch.testing.assert_close(value, eager, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_opcheck(device: torch.device) -> None:
    case = make_case(0, 6, 5, 4, "gaussian", "unbiased", weighted=True)
    terms = case.terms()
    tensors = (case.x, case.y, case.x_weights, case.y_weights, terms.scales, terms.coefficients)
    inputs = [t.detach().to(device).requires_grad_() for t in tensors if t is not None]
    of_terms = (terms.families, terms.shapes, terms.units, terms.factors)
    constants: list[Any] = [*map(list, of_terms), []]
    constants += [case.number(), case.size(), 0]
    torch.library.opcheck(torch.ops.fastmmd.mmd2.default, (*inputs, *constants, [True] * 6))
    one = [inputs[0], case.y.to(device), None, None, *(t.detach() for t in inputs[4:])]
    needs = [True, *[False] * 5]
    torch.library.opcheck(torch.ops.fastmmd.mmd2.default, (*one, *constants, needs))
    v = torch.randn(5, 3, device=device, requires_grad=True)
    sums = (*inputs[:2], v, *inputs[4:], *constants[:5])
    torch.library.opcheck(torch.ops.fastmmd.kernel_sum.default, sums)


def test_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    for n in (60, 900):
        x, y = samples(torch.device("cuda", 1), n, n, 16)
        with torch.cuda.device(0):
            found = with_gradients(x, y)
            assert torch.cuda.current_device() == 0
        with torch.cuda.device(1):
            expected = with_gradients(x, y)
        for a, b in zip(found, expected, strict=True):
            assert a.device == x.device
            assert torch.equal(a, b)


# --- memory --------------------------------------------------------------------------------------


def peak_of(x: Tensor, y: Tensor, **options: Any) -> int:
    """The most bytes that one step takes beside its inputs, returned gradients included."""
    gc.collect()
    torch.cuda.empty_cache()
    with_gradients(x[:2000], y[:2000], **options)  # what is made once
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats(x.device)
    before = torch.cuda.memory_allocated(x.device)
    with_gradients(x, y, **options)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(x.device) - before


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 4), (torch.bfloat16, 5)])
@pytest.mark.parametrize("mode", ["chosen", "panels"])
def test_memory(device: torch.device, mode: str, dtype: torch.dtype, most: float) -> None:
    n = m = 32768
    x, y = samples(device, n, m, 256, dtype)
    inputs = 2 * x.numel() * x.element_size()
    with precision("high"):
        if mode == "chosen":
            peak = peak_of(x, y)
        else:
            with forced(mode="panels"):
                peak = peak_of(x, y)
    assert peak <= most * inputs, f"{peak / inputs:.2f} times the inputs"


def test_more_pairs_than_32_bits(device: torch.device) -> None:
    n = 131072 if tensor_cores(device) else 50000
    x, y = samples(device, n, n, 128, torch.bfloat16)
    value, v_x, v_y = with_gradients(x, y, fm.Gaussian(12.0))
    assert value.isfinite()
    # Rows at the end, whose pairs have the largest numbers, against the device's float64.
    last = torch.arange(n - 3, n, device=device)
    terms = fm.Gaussian(12.0).terms(device)
    mean = torch.full((n, 1), 1 / n, dtype=torch.float64, device=device)
    for v, own, other in ((v_x, x, y), (v_y, y, x)):
        assert v.isfinite().all()
        u = own[last].detach().double().requires_grad_()
        sums = [reference.kernel_sum(u, z.detach().double(), mean, terms) for z in (own, other)]
        (expected,) = torch.autograd.grad(2 / n * (sums[0] - sums[1]).sum(), u)
        error = float((v[last].double() - expected).abs().max())
        assert error <= 8 * 2.0**-8 * float(expected.abs().max())


def test_out_of_memory_leaves_nothing_behind(device: torch.device) -> None:
    x, y = samples(device, 20000, 20000, 64)
    small = with_gradients(x[:1000], y[:1000])
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    total = torch.cuda.get_device_properties(device).total_memory
    reserved = torch.cuda.memory_reserved(device)
    torch.cuda.set_per_process_memory_fraction((reserved + (4 << 20)) / total, device)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            with_gradients(x, y)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    gc.collect()
    assert torch.cuda.memory_allocated(device) == before
    for a, b in zip(with_gradients(x[:1000], y[:1000]), small, strict=True):
        assert torch.equal(a, b)


# --- the same bits -------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("n", "d"), [(200, 100), (3000, 100), (3000, 600)])
def test_same_bits(device: torch.device, n: int, d: int, setting: str) -> None:
    x, y = samples(device, n, n + 77, d)
    with precision(setting):
        runs = [with_gradients(x, y) for _ in range(4)]
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert torch.equal(a, b)


# --- bad input -----------------------------------------------------------------------------------


def test_two_devices(device: torch.device) -> None:
    x, y = samples(device, 9, 8, 3)
    with pytest.raises(ValueError, match=r"x and y must be on one device"):
        fm.mmd2(x, y.cpu())
    with pytest.raises(ValueError, match=r"x_weights must be on the device of its points"):
        fm.mmd2(x, y, x_weights=torch.ones(9))
    bandwidth = torch.nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"bandwidth must be on the device of the points"):
        fm.mmd2(x, y, fm.Gaussian(bandwidth))
    with pytest.raises(ValueError, match=r"v must be on the device of x"):
        fm.kernel_sum(x, y, torch.ones(8))
    assert fm.mmd2(x, y, fm.Gaussian(bandwidth).to(device)).isfinite()


def test_bad_values_give_nan(device: torch.device) -> None:
    x, y = samples(device, 9, 8, 3)
    zeros = torch.zeros(9, device=device)
    assert fm.mmd2(x, y, x_weights=zeros).isnan()
    assert fm.mmd2(x, y, fm.Gaussian(torch.tensor(float("nan"), device=device))).isnan()


def test_old_gpu(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    old = _cuda.device_of(device.index)._replace(capability=(7, 0))
    monkeypatch.setattr(_cuda, "device_of", lambda index: old)
    x, y = samples(device, 9, 8, 3)
    with pytest.raises(RuntimeError, match=r"compute capability 7\.5 or later, got one of 7\.0"):
        fm.mmd2(x, y)


# --- mixed precision -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(device: torch.device, dtype: torch.dtype) -> None:
    x, y = (t.detach() for t in samples(device, 600, 500, 32))
    layer = torch.nn.Linear(32, 64, device=device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    values = []
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=dtype):
            a, b = layer(x), layer(y)
            assert a.dtype == dtype
            loss = fm.mmd2(a, b)
            assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        values.append(float(loss))
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad.any()
    assert values[-1] < values[0]


def test_autocast_changes_nothing_of_float32(device: torch.device) -> None:
    x, y = samples(device, 1100, 900, 300)
    expected = with_gradients(x, y)
    with torch.autocast("cuda", dtype=torch.float16):
        found = with_gradients(x, y)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_half_products_are_added_in_float32(device: torch.device) -> None:
    """With one call of torch, where it has one."""
    has = tuple(int(v) for v in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 11)
    for dtype in (torch.float16, torch.bfloat16):
        assert _cuda._adds_wider_products(dtype, device) or not has
        v = torch.randn(70, 40, device=device)
        w, z = (torch.randn(*shape, device=device).to(dtype) for shape in ((70, 128), (128, 40)))
        exact = v.double() + w.double() @ z.double()
        for widened in (False, True):
            found = v.clone()
            if widened:
                found.addmm_(w.float(), z.float())
            else:
                _cuda.add_product(found, w, z)
            assert float((found - exact).abs().max()) <= 1e-4


def test_statistics_know_their_device(device: torch.device) -> None:
    x, y = (t.detach() for t in samples(device, 60, 50, 4))
    found = fm.two_sample_test(x, y, num_permutations=50)
    assert found.null.device == device
    aggregated = fm.stats.mmd_aggregated_test(x, y, num_permutations=50, num_corrections=20)
    assert aggregated.pvalues.device == device
    assert fm.power_criterion(x, y).device == device
    terms = fm.Gaussian("median").terms(device)
    assert ops.resolve(x, y, terms).device == device
