"""Random features: against every feature written out, and against the kernels they stand for."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from feature_cases import FORMS, KINDS, check, make_case, samples
from tolerance import SEEDS, threads
from torch import Tensor, nn

import fastmmd as fm
from fastmmd import ops
from fastmmd.frequencies import SCHEMES, dense, draw
from fastmmd.terms import GAUSSIAN, LAPLACIAN

KERNELS = {
    "gaussian": lambda s: fm.Gaussian(s, (1,)),
    "bank": lambda s: fm.Gaussian(s),
    "laplacian": lambda s: fm.Laplacian(s),
    "matern32": lambda s: fm.Matern(1.5, s),
    "matern52": lambda s: fm.Matern(2.5, s),
    "multiquadric": lambda s: fm.InverseMultiquadric(s),
    "rational": lambda s: fm.RationalQuadratic(0.7, s),
    "sum": lambda s: fm.Gaussian("mean", (1,)) + 0.5 * fm.Laplacian(s),
}


# ---- the tolerance rule ----


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tolerance(name: str, form: str, dtype: torch.dtype) -> None:
    check([make_case(KINDS[name], form, dtype, seed) for seed in SEEDS])


# ---- derivatives ----


def operands(form: str, weighted: bool = True) -> tuple[Any, ...]:
    x, _ = samples(6, 1, 3, torch.float64)
    generator = torch.Generator().manual_seed(1)
    options: Any = {"generator": generator, "dtype": torch.float64}
    masses = torch.rand(6, **options) if weighted else None
    w = torch.randn(3, 5, **options)
    phases = torch.rand(5, **options) if form == "phase" else None
    rates = torch.tensor([0.5, 1.0, 1.3], dtype=torch.float64)
    return tuple(
        t if t is None else t.requires_grad_() for t in (x, masses, w, None, phases, rates)
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form: str, weighted: bool) -> None:
    inputs = operands(form, weighted)
    assert torch.autograd.gradcheck(ops.feature_mean, inputs)
    assert torch.autograd.gradgradcheck(ops.feature_mean, inputs)


def test_structured_gradients_of_second_order() -> None:
    x, y = samples(3, 4, 2, torch.float64)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def value(x: Tensor, scale: Tensor) -> Tensor:
        kernel = fm.Gaussian(scale, (1, 2))
        return fm.random_feature_mmd2(x, y, 40, kernel, frequencies="structured")

    inputs = (x.requires_grad_(), scale)
    assert torch.autograd.gradcheck(value, inputs)
    assert torch.autograd.gradgradcheck(value, inputs)


def test_third_derivatives_are_refused() -> None:
    x, y = samples(5, 4, 3, torch.float64)
    x.requires_grad_()
    value = fm.random_feature_mmd2(x, y, 16)
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives"):
        second.sum().backward()


@pytest.mark.filterwarnings("ignore:.*jit.script:DeprecationWarning")
def test_forward_mode_is_refused() -> None:
    x, y = samples(5, 4, 3)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        fm.random_feature_mmd2(forward_ad.make_dual(x, x), y, 16)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda z: fm.random_feature_mmd2(z, y, 16), (x,), (x,))


# ---- operators ----


@pytest.mark.parametrize(("form", "weighted"), [("phase", True), ("pair", False)])
def test_opcheck(form: str, weighted: bool) -> None:
    inputs = operands(form, weighted)
    torch.library.opcheck(torch.ops.fastmmd.feature_mean, (*inputs, True))
    _, sums, center, shifts = torch.ops.fastmmd.feature_mean(*inputs, True)
    grad = torch.randn(3, 5 if form == "phase" else 10, dtype=torch.float64, requires_grad=True)
    needs = [True, weighted, True, form == "phase", True]
    backward = (grad, *inputs, sums.detach(), center.detach(), shifts.detach(), needs)
    torch.library.opcheck(torch.ops.fastmmd.feature_mean_backward, backward)


def test_opcheck_of_structured_frequencies() -> None:
    x, _ = samples(6, 1, 3)
    drawn = draw(LAPLACIAN, 0.0, SCHEMES["structured"], 3, 40, 0)
    rates = torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
    inputs = (x.requires_grad_(), None, drawn.w, drawn.signs, drawn.phases, rates, True)
    torch.library.opcheck(torch.ops.fastmmd.feature_mean, inputs)
    for scheme in SCHEMES.values():
        torch.library.opcheck(
            torch.ops.fastmmd.frequencies, (torch.empty(0), GAUSSIAN, 0.0, scheme, 3, 40, 0)
        )


@pytest.mark.parametrize("frequencies", SCHEMES)
def test_compile(frequencies: str) -> None:
    x, y = samples(30, 20, 5)
    s = nn.Parameter(torch.tensor(2.0))
    kernel = fm.Gaussian("mean") + fm.Laplacian(s)

    def loss(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return fm.random_feature_mmd2(
            x, y, 64, kernel, frequencies=frequencies, form="pair", return_error=True
        )

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        x = x.detach().requires_grad_()
        value, error = function(x, y)
        results.append(
            (value, error, *torch.autograd.grad(value, (x, kernel.kernels[1].bandwidth)))
        )
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=0)


def test_torch_func() -> None:
    x, y = samples(12, 10, 4, torch.float64)
    kernel = fm.Gaussian(1.5)

    def value(x: Tensor) -> Tensor:
        return fm.random_feature_mmd2(x, y, 32, kernel)

    expected = torch.autograd.grad(value(x.requires_grad_()), x)[0]
    x = x.detach()
    torch.testing.assert_close(torch.func.grad(value)(x), expected, rtol=1e-12, atol=0)
    batch = torch.stack([x, x + 1])
    alone = torch.stack([value(z) for z in batch])
    torch.testing.assert_close(torch.func.vmap(value)(batch), alone, rtol=1e-12, atol=0)
    of_batch = torch.func.vmap(torch.func.grad(value))(batch)
    torch.testing.assert_close(of_batch[0], expected, rtol=1e-12, atol=0)
    jacobian = torch.func.jacrev(torch.func.grad(value))(x[:2])
    assert jacobian.shape == (2, 4, 2, 4)


# ---- determinism ----


@pytest.fixture
def instruction_set() -> Iterator[None]:
    before = ops.native.instruction_set()
    yield
    ops.native.use_instruction_set(before)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("frequencies", SCHEMES)
def test_the_same_for_any_number_of_threads(frequencies: str) -> None:
    x, y = samples(1100, 700, 20)
    w = torch.randn(20, 600, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kernel = fm.Gaussian(4.0, weights=torch.ones(5, requires_grad=True))

    def run() -> list[Tensor]:
        a, b = torch.ones(len(x), requires_grad=True), x.clone().requires_grad_()
        given: Any = w if frequencies == "iid" else frequencies
        value = fm.random_feature_mmd2(b, y, 600, kernel, frequencies=given, x_weights=a)
        roots = (b, a, kernel.weights, *([w] if given is w else []))
        return [value.detach(), *torch.autograd.grad(value, roots)]

    across = []
    for name in ops.native.instruction_sets():
        ops.native.use_instruction_set(name)
        results = []
        for count in (1, 2, 3, 4):
            with threads(count):
                results.append(run())
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
        across.append(results[0][0])
    for other in across[1:]:
        torch.testing.assert_close(other, across[0], rtol=1e-5, atol=0)


# ---- what the features stand for ----


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("frequencies", SCHEMES)
@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel(name: str, frequencies: str, form: str) -> None:
    x, y = samples(200, 150, 6)
    kernel = KERNELS[name](2.0)
    exact = fm.mmd2(x, y, kernel)
    value, error = fm.random_feature_mmd2(
        x, y, 8192, kernel, 3, frequencies, form, return_error=True
    )
    assert abs(value - exact) < 4.5 * error
    assert error < 0.1 * exact


@pytest.mark.parametrize("frequencies", SCHEMES)
def test_error_falls_with_the_root(frequencies: str) -> None:
    x, y = samples(40, 30, 5)
    kernel = fm.Gaussian("mean")
    exact = float(fm.mmd2(x, y, kernel))
    sizes, logs = [256 * 4**k for k in range(5)], []
    for size in sizes:
        with threads(1):
            found = [
                float(fm.random_feature_mmd2(x, y, size, kernel, seed, frequencies))
                for seed in range(16)
            ]
        mean = sum((v - exact) ** 2 for v in found) / len(found)
        logs.append(math.log(mean) / 2)
    steps = torch.tensor(sizes, dtype=torch.float64).log()
    centred = steps - steps.mean()
    slope = float(centred @ torch.tensor(logs, dtype=torch.float64) / centred.square().sum())
    assert -0.6 < slope < -0.4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("frequencies", SCHEMES)
@pytest.mark.parametrize("d", [1, 3, 40])
def test_standard_error(frequencies: str, form: str, d: int) -> None:
    x, y = samples(40, 30, d, torch.float64)
    kernel = fm.Gaussian(math.sqrt(d), (1,)) if d != 3 else fm.Laplacian(2.0)
    exact = float(fm.mmd2(x, y, kernel))
    with threads(1):  # the calls are too small to be shared
        made = torch.tensor(
            [
                fm.random_feature_mmd2(
                    x, y, 256, kernel, seed, frequencies, form, return_error=True
                )
                for seed in range(200)
            ]
        )
    values, reported = made[:, 0], made[:, 1].square().mean().sqrt()
    spread = values.std()
    assert abs(values.mean() - exact) < 4 * spread / math.sqrt(len(values))  # no bias
    if frequencies == "iid":
        assert 0.85 < reported / spread < 1.18
    else:  # never much too small
        assert reported / spread > 0.85


def test_automatic_number_of_features() -> None:
    x, y = samples(300, 200, 8)
    for target in (3e-3, 1e-3):
        value, error = fm.random_feature_mmd2(
            x, y, "auto", target_error=target, form="pair", return_error=True
        )
        assert 0.5 * target < error <= target
        assert abs(value - fm.mmd2(x, y)) < 5 * target
    few = fm.random_feature_mmd2(x, y, "auto", target_error=10.0)
    assert few == fm.random_feature_mmd2(x, y, 512)
    with pytest.raises(ValueError, match="target_error must be one that"):
        fm.random_feature_mmd2(x, y, "auto", target_error=1e-9)


@pytest.mark.parametrize("d", [1, 5, 32, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_structured_is_its_dense_matrix(d: int, dtype: torch.dtype) -> None:
    x, y = samples(70, 50, d, dtype)
    kernel = fm.Gaussian(math.sqrt(d))
    drawn = draw(GAUSSIAN, 0.0, SCHEMES["structured"], d, 150, 7)
    assert drawn.signs is not None
    w = dense(drawn.w, drawn.signs, d)
    results = []
    for frequencies, z in (("structured", x), (w, x.double())):
        z = z.clone().requires_grad_()
        value = fm.random_feature_mmd2(
            z, y.to(z.dtype), 150, kernel, 7, frequencies, phases=drawn.phases
        )
        results.append((value.detach().double(), torch.autograd.grad(value, z)[0].double()))
    eps = torch.finfo(dtype).eps
    (value, gradient), (exact, exact_gradient) = results
    assert abs(value - exact) < 50 * eps
    assert (gradient - exact_gradient).abs().max() < 200 * eps * exact_gradient.abs().max()


def test_orthogonal_frequencies() -> None:
    w = draw(GAUSSIAN, 0.0, SCHEMES["orthogonal"], 20, 50, 0).w.double()
    for part in w.split(20, 1):
        gram = part.T @ part
        off = gram - torch.diag(gram.diagonal())
        # They are rounded to float32: two roundings of half an eps.
        assert off.abs().max() < torch.finfo(torch.float32).eps * gram.diagonal().max()
    lengths = draw(GAUSSIAN, 0.0, SCHEMES["orthogonal"], 20, 20000, 0).w.square().sum(0)
    assert abs(lengths.mean() - 20) < 0.2
    assert abs(lengths.var() - 40) < 3


def test_seeds() -> None:
    x, y = samples(30, 20, 4)
    assert fm.random_feature_mmd2(x, y, 32) == fm.random_feature_mmd2(x, y, 32, seed=0)
    assert fm.random_feature_mmd2(x, y, 32) != fm.random_feature_mmd2(x, y, 32, seed=1)
    torch.manual_seed(0)
    first = fm.random_feature_mmd2(x, y, 32, seed=None)
    assert first != fm.random_feature_mmd2(x, y, 32, seed=None)
    torch.manual_seed(0)
    assert first == fm.random_feature_mmd2(x, y, 32, seed=None)
    # as in float64, but for rounding
    wide = fm.random_feature_mmd2(x.double(), y.double(), 32)
    torch.testing.assert_close(fm.random_feature_mmd2(x, y, 32).double(), wide, rtol=1e-4, atol=0)


# ---- inputs ----


def test_frequencies_drawn_without_gradients_serve_those_with() -> None:
    x, y = samples(5, 4, 3)
    with torch.inference_mode():
        fm.random_feature_mmd2(x, y, 34, seed=11)
    x.requires_grad_()
    fm.random_feature_mmd2(x, y, 34, fm.Gaussian(1.0), seed=11).backward()
    assert x.grad is not None


def test_shifts_do_not_matter_to_pairs() -> None:
    x, y = samples(50, 40, 6, torch.float64)
    kernel = fm.Gaussian(2.0)
    plain = fm.random_feature_mmd2(x, y, 64, kernel, form="pair")
    moved = fm.random_feature_mmd2(x + 1e4, y + 1e4, 64, kernel, form="pair")
    torch.testing.assert_close(moved, plain, rtol=1e-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_angles_stay_finite(dtype: torch.dtype) -> None:
    x, y = samples(40, 30, 3, dtype)
    for scale in (1e5, 1e12, 1e30):
        z = (scale * x).requires_grad_()
        for frequencies in SCHEMES:
            value = fm.random_feature_mmd2(z, scale * y, 64, fm.Gaussian(1.0), 0, frequencies)
            (gradient,) = torch.autograd.grad(value, z)
            assert 0 <= value < 25
            assert gradient.isfinite().all()
    value = fm.random_feature_mmd2(x, y, 64, fm.Gaussian(1e-60, (1,)))  # no float32 holds its rate
    assert 0 <= value < 2


def test_huge_angles_are_exact_in_float64() -> None:
    x, y = (1e7 * t for t in samples(40, 30, 1, torch.float64))
    x, y = x.round(), y.round()
    w = torch.full((1, 1), 2.0, dtype=torch.float64)
    kernel = fm.Gaussian(1.0, (1,))
    value = fm.random_feature_mmd2(x, y, kernel=kernel, frequencies=w, form="pair")
    angles = [2 * z[:, 0] for z in (x, y)]
    exact = sum((f(angles[0]).mean() - f(angles[1]).mean()) ** 2 for f in (torch.cos, torch.sin))
    torch.testing.assert_close(value, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("frequencies", SCHEMES)
def test_not_a_number(frequencies: str, bad: float) -> None:
    x, y = samples(40, 30, 3)
    x[7, 1] = bad
    x.requires_grad_()
    value = fm.random_feature_mmd2(x, y, 64, fm.Gaussian(1.0), 0, frequencies)
    value.backward()
    assert value.isnan()
    assert x.grad.isnan().any()


def test_equal_points() -> None:
    x, y = torch.full((5, 3), 2.5, requires_grad=True), torch.full((4, 3), 2.5)
    for kernel in (fm.Gaussian("mean"), fm.Laplacian("median"), fm.Gaussian(1.0)):
        value = fm.random_feature_mmd2(x, y, 64, kernel)
        value.backward()
        assert value == 0
        assert x.grad.abs().max() < 1e-6
    z, _ = samples(50, 1, 4)
    assert fm.random_feature_mmd2(z, z.clone()) < 1e-12


def test_strides_and_half_inputs() -> None:
    x, y = samples(30, 20, 5)
    w = torch.randn(40, 5)
    plain = fm.random_feature_mmd2(x, y, frequencies=w.T.contiguous())
    assert plain == fm.random_feature_mmd2(x.T.contiguous().T, y, frequencies=w.T)
    wide = torch.zeros(20, 10)
    wide[:, ::2] = y
    assert plain == fm.random_feature_mmd2(x, wide[:, ::2], frequencies=w.T)
    for dtype in (torch.float16, torch.bfloat16):
        a, b = x.to(dtype).requires_grad_(), y.to(dtype)
        value = fm.random_feature_mmd2(a, b, 64)
        assert value.dtype == torch.float32
        value.backward()
        assert a.grad.dtype == dtype
        torch.testing.assert_close(
            value.detach(), fm.random_feature_mmd2(a.detach().float(), b.float(), 64)
        )


def test_many_bandwidths() -> None:
    x, y = samples(20, 15, 3, torch.float64)
    bandwidths = torch.linspace(0.5, 3, 150, dtype=torch.float64)
    value = fm.random_feature_mmd2(x, y, 2**14, fm.Gaussian(bandwidths, (1,)), return_error=True)
    assert abs(value[0] - fm.mmd2(x, y, fm.Gaussian(bandwidths, (1,)))) < 5 * value[1]


def test_weights_are_shares() -> None:
    x, y = samples(30, 20, 3)
    a = torch.ones(30)
    a[10:] = 0
    part = fm.random_feature_mmd2(x[:10], y, 64, fm.Gaussian(1.0))
    weighted = fm.random_feature_mmd2(x, y, 64, fm.Gaussian(1.0), x_weights=7 * a)
    torch.testing.assert_close(weighted, part)


def test_loss_learns_its_features() -> None:
    x, y = samples(40, 30, 3)
    w, b = nn.Parameter(torch.randn(3, 20)), torch.zeros(20)
    loss = fm.RandomFeatureMMDLoss(
        kernel=fm.Gaussian(nn.Parameter(torch.tensor(1.0)), (1,)), frequencies=w, phases=b
    )
    assert set(dict(loss.named_parameters())) == {"frequencies", "kernel.bandwidth"}
    assert "phases" in loss.state_dict()
    loss(x, y).backward()
    assert w.grad.shape == w.shape
    assert w.grad.abs().max() > 0
    plain = fm.RandomFeatureMMDLoss(64, form="pair")
    assert plain(x, y) == fm.random_feature_mmd2(x, y, 64, form="pair")
    assert "num_features=64" in repr(plain)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no features": ({"num_features": 0}, ValueError, "num_features must be at least 1, got 0"),
    "odd": ({"num_features": 5, "form": "pair"}, ValueError, "num_features must be even .* got 5"),
    "no number": ({"num_features": 2.5}, TypeError, "num_features must be an integer"),
    "scheme": ({"frequencies": "sobol"}, ValueError, "frequencies must be 'iid', .* 'sobol'"),
    "no scheme": ({"frequencies": 3}, TypeError, "frequencies must be a name or a torch.Tensor"),
    "form": ({"form": "sine"}, ValueError, "form must be 'phase' or 'pair', got 'sine'"),
    "rows of W": ({"frequencies": torch.ones(4, 9)}, ValueError, r"frequencies .* \[3, F\]"),
    "rank of W": ({"frequencies": torch.ones(3)}, ValueError, r"frequencies .* \[3, F\]"),
    "empty W": ({"frequencies": torch.ones(3, 0)}, ValueError, r"frequencies .* \[3, F\]"),
    "integer W": ({"frequencies": torch.ones(3, 2, dtype=torch.int64)}, TypeError, "floating"),
    "phases": ({"phases": torch.ones(7)}, ValueError, r"phases must be of shape \[4096\]"),
    "phases of pairs": ({"phases": torch.ones(4096), "form": "pair"}, ValueError, "phases must"),
    "no phases": ({"phases": 1.0}, TypeError, "phases must be a torch.Tensor"),
    "seed": ({"seed": -1}, ValueError, "seed must be at least 0"),
    "no seed": ({"seed": 1.5}, TypeError, "seed must be an integer or None"),
    "kernel": ({"kernel": fm.Energy()}, ValueError, "kernel must be made of Gaussian"),
    "auto": ({"num_features": "auto"}, TypeError, "target_error must be a number"),
    "target": ({"num_features": "auto", "target_error": 0.0}, ValueError, "must be positive"),
    "no auto": ({"target_error": 0.1}, ValueError, "target_error is for"),
    "auto of W": (
        {"num_features": "auto", "target_error": 0.1, "frequencies": torch.ones(3, 2)},
        ValueError,
        "a tensor was given",
    ),
    "families": (
        {"frequencies": torch.ones(3, 2), "kernel": fm.Gaussian(1.0) + fm.Laplacian(1.0)},
        ValueError,
        "one family",
    ),
    "weights": ({"x_weights": -torch.ones(5)}, ValueError, "x_weights must be"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    arguments, error, message = BAD[name]
    with pytest.raises(error, match=message):
        fm.random_feature_mmd2(torch.ones(5, 3), torch.ones(4, 3), **arguments)


def test_bad_samples() -> None:
    with pytest.raises(ValueError, match="x must be of rank 2"):
        fm.random_feature_mmd2(torch.ones(2, 5, 3), torch.ones(2, 4, 3))
    with pytest.raises(ValueError, match="of one width"):
        fm.random_feature_mmd2(torch.ones(5, 3), torch.ones(4, 2))


# ---- memory ----

MEMORY = """if True:
    import resource
    import torch
    import fastmmd as fm

    def peak():
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def run(n, d, D):
        x, y = (torch.randn(n, d).requires_grad_() for _ in range(2))
        fm.random_feature_mmd2(x, y, D, fm.Gaussian("mean"), frequencies=SCHEME).backward()

    torch.set_num_threads(2)
    run(300, 8, 256)  # pools of threads, lazy modules
    before = peak()
    run(N, WIDTH, FEATURES)
    print(peak() - before)
"""


@pytest.mark.parametrize(
    ("scheme", "n", "d", "features", "numbers"),
    [
        # both samples with gradients, one packed copy, frequencies and what draws them
        ("'iid'", 6000, 32, 8192, 8 * 6000 * 32 + 6 * 8192 * 32),
        # no d x D matrix: 2048 x 32768 numbers are 256 MiB
        ("'structured'", 400, 2048, 32768, 10 * 400 * 2048 + 60 * 32768),
    ],
)
def test_memory(scheme: str, n: int, d: int, features: int, numbers: int) -> None:
    code = MEMORY.replace("SCHEME", scheme).replace("N, WIDTH, FEATURES", f"{n}, {d}, {features}")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    used = int(result.stdout)
    assert used < 4 * numbers + (24 << 20)
    assert used < 0.25 * 4 * n * features  # one matrix of features of one sample, one bandwidth


def test_workspace_is_linear() -> None:
    def size(n: int, d: int, count: int, width: int = 0, threads: int = 2) -> int:
        forward = ops.native.feature_sums_workspace(n, d, 0, count, width, 5, True, threads)
        backward = ops.native.feature_gradients_workspace(
            n, d, 0, count, width, 5, True, False, threads
        )
        return max(forward, backward)

    n, d, count = 1 << 16, 256, 1 << 16
    assert size(n, d, count) < 1.2 * 4 * (n + count) * d + (40 << 20)
    assert size(n, d, count, 256) < 1.2 * 4 * n * d + 100 * count + (40 << 20)
    assert size(1 << 24, 512, 1 << 12) > 1 << 32  # past 2^31 numbers
