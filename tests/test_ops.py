"""The operators: their registration, the two roads to them, and what torch does with them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from tolerance import DTYPES, Case, differentiate, make_case
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import fastmmd as fm
from fastmmd import ops

# Torch warns of its own modules as it loads them.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.*:DeprecationWarning")


def arguments(case: Case, needs: bool | list[bool] = True) -> tuple[object, ...]:
    """A case as the operator takes it."""
    t = case.kernel.terms()
    constants = list(t.families), list(t.shapes), list(t.units), case.estimator == "unbiased"
    inputs = (case.x, case.y, case.x_weights, case.y_weights, t.scales, t.coefficients)
    if isinstance(needs, bool):
        needs = [needs and i is not None for i in inputs]
    return (*inputs, *constants, needs)


def registered(*case) -> Tensor:
    """mmd2 by the registered operator."""
    return torch.ops.fastmmd.mmd2(*arguments(Case(*case)))[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kernel", ["gaussian", "median", "sum"])
def test_both_roads_give_the_same_bits(kernel: str, weighted: bool, dtype: torch.dtype) -> None:
    case = make_case(0, 40, 33, 17, kernel, "unbiased", dtype, weighted)
    short, long = differentiate(case, fm.mmd2), differentiate(case, registered)
    assert short.keys() == long.keys()
    for name, result in short.items():
        assert result.dtype == long[name].dtype
        assert torch.equal(result, long[name]), name


def test_which_road() -> None:
    x, y = torch.randn(5, 3, requires_grad=True), nn.Parameter(torch.randn(4, 3))
    assert "ShortRoad" in fm.mmd2(x, y).grad_fn.name()

    class Subclass(torch.Tensor):
        pass

    result = fm.mmd2(x.as_subclass(Subclass), y)
    assert isinstance(result, Subclass)
    assert torch.equal(result.as_subclass(Tensor), fm.mmd2(x, y))
    with torch.device("meta"):  # a mode of torch functions, as set_default_device sets
        value = fm.mmd2(x, y)
        assert value.device.type == "cpu"
        assert "ShortRoad" not in value.grad_fn.name()
        (gradient,) = torch.autograd.grad(value, x)
    assert torch.equal(gradient, torch.autograd.grad(fm.mmd2(x, y), x)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", ["gaussian", "mean", "laplacian"])
def test_opcheck(kernel: str, dtype: torch.dtype) -> None:
    case = make_case(0, 6, 5, 4, kernel, "unbiased", dtype, weighted=True)
    *inputs, families, shapes, units, unbiased, needs = arguments(case)
    inputs = [t.detach().requires_grad_() for t in inputs]
    constants = families, shapes, units, unbiased
    torch.library.opcheck(torch.ops.fastmmd.mmd2.default, (*inputs, *constants, needs))
    # without weights, and with a gradient to x alone
    inputs = [inputs[0], case.y, None, None, *(t.detach() for t in inputs[4:])]
    needs = [True, False, False, False, False, False]
    torch.library.opcheck(torch.ops.fastmmd.mmd2.default, (*inputs, *constants, needs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_opcheck_backward(dtype: torch.dtype) -> None:
    case = make_case(0, 6, 5, 4, "bank", dtype=dtype, weighted=True)
    *inputs, families, _, _, unbiased, _ = arguments(case)
    resolved = torch.rand(5, dtype=torch.float64)
    for g_x in (torch.randn(6, 4), None):
        tangents = (g_x, None, torch.randn(6).double(), None, None, torch.randn(5).double())
        for weights in ((case.x_weights, case.y_weights), (None, None)):
            inputs[2:4] = weights
            torch.library.opcheck(
                torch.ops.fastmmd.mmd2_backward.default,
                (*inputs, families, unbiased, resolved, *tangents),
                # its gradient is the third derivative, which raises
                test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
            )


def test_outputs_are_made_as_asked_for() -> None:
    case = make_case(0, 6, 5, 4, "bank", weighted=True)
    full = torch.ops.fastmmd.mmd2(*arguments(case))
    shapes = [(6, 4), (5, 4), (6,), (5,), (5,), (5,)]
    for i, shape in enumerate(shapes):
        outputs = torch.ops.fastmmd.mmd2(*arguments(case, [j == i for j in range(6)]))
        assert torch.equal(outputs[0], full[0])
        for j, v in enumerate(outputs[1:7]):
            assert v.shape == (shape if i == j else (0,))
            assert i != j or torch.equal(v, full[1 + j])
    resolved = full[7]
    assert torch.equal(resolved, case.kernel.terms().scales)


def test_a_flag_that_was_left_out_is_no_zero_gradient() -> None:
    case = make_case(0, 6, 5, 4)
    case.x.requires_grad_()
    value = torch.ops.fastmmd.mmd2(*arguments(case, False))[0]
    with pytest.raises(RuntimeError, match="x needs a gradient"):
        value.backward()


def test_resolved_factors() -> None:
    case = make_case(0, 30, 21, 4, fm.Gaussian("mean") + fm.Laplacian("median") + fm.Energy())
    resolved = torch.ops.fastmmd.mmd2(*arguments(case))[7]
    z = torch.cat([case.x, case.y]).double()
    expected = fm.reference.resolve(case.kernel.terms(), z)
    torch.testing.assert_close(resolved, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode) -> None:
    case = make_case(0, 20, 15, 4, "gaussian")
    case.x.requires_grad_()
    expected = fm.mmd2(case.x, case.y, case.kernel).detach()
    with mode():
        assert not fm.mmd2(case.x, case.y, case.kernel).requires_grad
        assert torch.equal(fm.mmd2(case.x, case.y, case.kernel), expected)
        assert torch.equal(registered(case.x, case.y, case.kernel, "biased"), expected)
        inside = torch.randn(4, 3)
    with mode():
        assert fm.mmd2(inside, inside).item() == pytest.approx(0, abs=1e-6)


# --- torch.compile and export --------------------------------------------------------------------


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    yield lambda f, **options: torch.compile(f, fullgraph=True, **options)
    torch._dynamo.reset()


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("kernel", ["gaussian", "mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compile(compiled, dtype: torch.dtype, kernel: str, dynamic: bool | None) -> None:
    case = make_case(0, 20, 15, 6, kernel, "unbiased", dtype, weighted=True)
    # a parameter inside a product is no parameter of the compiled function
    inner = lambda *a: 3 * fm.mmd2(a[0] * 2, *a[1:])  # noqa: E731
    expected = differentiate(case, inner)
    for name, result in differentiate(case, compiled(inner, dynamic=dynamic)).items():
        assert torch.equal(result, expected[name]), name


def test_compile_loss(compiled) -> None:
    s = nn.Parameter(torch.tensor([1.0, 2.0]))
    loss = fm.MMDLoss(fm.Gaussian(s) + 0.5 * fm.Laplacian("mean"), "unbiased")
    x, y = torch.randn(9, 4, requires_grad=True), torch.randn(8, 4)
    expected = torch.autograd.grad(loss(x, y), [x, s])
    faster = compiled(loss)
    for _ in range(2):
        result = torch.autograd.grad(faster(x, y), [x, s])
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))
    with torch.no_grad():
        assert torch.equal(faster(x, y), loss(x, y))


def test_compile_sees_errors(compiled) -> None:
    with pytest.raises(Exception, match="x and y must be of one width"):
        compiled(fm.mmd2)(torch.randn(5, 3), torch.randn(5, 4))


def test_compile_does_not_look_at_values(compiled) -> None:
    x = torch.randn(5, 3)
    w = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0])
    assert compiled(fm.mmd2)(x, x + 1, x_weights=w).isfinite().logical_not()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on its way
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_export(strict: bool) -> None:
    loss = fm.MMDLoss(fm.Gaussian(nn.Parameter(torch.tensor(1.5))) + fm.Laplacian("mean"))
    x, y = torch.randn(9, 4, requires_grad=True), torch.randn(8, 4)
    n, m = torch.export.Dim("n", min=2, max=512), torch.export.Dim("m", min=2, max=512)
    program = torch.export.export(loss, (x, y), dynamic_shapes=({0: n}, {0: m}), strict=strict)
    assert "fastmmd.mmd2" in program.graph_module.code
    x, y = torch.randn(30, 4, requires_grad=True), torch.randn(20, 4)
    result, expected = program.module()(x, y), loss(x, y)
    assert torch.equal(result, expected)
    (g,) = torch.autograd.grad(result, x)
    assert torch.equal(g, torch.autograd.grad(expected, x)[0])
    # y did not require a gradient as the program was made
    with pytest.raises(RuntimeError, match="y must require one then"):
        program.module()(x, y.requires_grad_()).backward()


def test_make_fx() -> None:
    x, y = torch.randn(5, 3), torch.randn(4, 3)
    graph = make_fx(lambda x, y: fm.mmd2(x, y))(x, y)
    assert torch.equal(graph(x + 1, y), fm.mmd2(x + 1, y))  # nothing is baked in


def test_meta() -> None:
    x, y = torch.empty(1 << 20, 512, device="meta"), torch.empty(1 << 21, 512, device="meta")
    x.requires_grad_()
    value = fm.mmd2(x, y, fm.Gaussian(1.0))
    assert value.shape == ()
    assert value.dtype == torch.float32
    (g,) = torch.autograd.grad(value, x)
    assert g.shape == x.shape


# --- torch.func and forward mode -----------------------------------------------------------------


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 7, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)


def gradient(x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(fm.mmd2(x, y), x)[0]


def test_func_grad(batch) -> None:
    x, y = batch[0][0], batch[1]
    result, value = torch.func.grad_and_value(fm.mmd2, argnums=(0, 1))(x, y)
    assert torch.equal(value, fm.mmd2(x, y))
    assert torch.equal(result[0], gradient(x, y))
    w = torch.rand(7, dtype=torch.float64)
    by_weights = torch.func.grad(lambda w: fm.mmd2(x, y, x_weights=w))(w)
    v = w.requires_grad_()
    assert torch.equal(by_weights, torch.autograd.grad(fm.mmd2(x, y, x_weights=v), v)[0])


def test_vmap(batch) -> None:
    x, y = batch
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = torch.func.vmap(fm.mmd2, (0, None))(x, y)
        gradients = torch.func.vmap(torch.func.grad(fm.mmd2), (0, None))(x, y)
        total = torch.func.grad(lambda x: torch.func.vmap(fm.mmd2, (0, None))(x, y).sum())(x)
    assert torch.equal(values, torch.stack([fm.mmd2(a, y) for a in x]))
    expected = torch.stack([gradient(a, y) for a in x])
    assert torch.equal(gradients, expected)
    assert torch.equal(total, expected)


def test_hessians(batch) -> None:
    x, y = batch[0][0], batch[1]
    function = lambda x: fm.mmd2(x, y, fm.Gaussian(2.0))  # noqa: E731
    hessian = torch.func.jacrev(torch.func.jacrev(function))(x)
    assert torch.equal(hessian, torch.autograd.functional.hessian(function, x))
    plain = lambda x: fm.reference.mmd2(x, y, fm.Gaussian(2.0))  # noqa: E731
    expected = torch.autograd.functional.hessian(plain, x)
    torch.testing.assert_close(hessian, expected, rtol=0, atol=1e-13 * expected.abs().max())
    third = torch.func.grad(lambda x: torch.func.jacrev(torch.func.jacrev(function))(x).sum())
    with pytest.raises(NotImplementedError, match="third derivatives"):
        third(x)


def test_forward_mode_raises_by_name(batch) -> None:
    import torch.autograd.forward_ad as forward_ad

    x, y = batch[0][0], batch[1]
    message = "forward-mode differentiation of fastmmd.mmd2 is not implemented: use reverse mode"
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=message):
        fm.mmd2(forward_ad.make_dual(x, x), y)
    for transform in (torch.func.jacfwd, torch.func.hessian):
        with pytest.raises(NotImplementedError, match=message):
            transform(fm.mmd2)(x, y)
    with pytest.raises(NotImplementedError, match=message):
        torch.func.jvp(fm.mmd2, (x, y), (x, y))


# --- what is missing -----------------------------------------------------------------------------


def test_cuda_says_what_to_do() -> None:
    x = torch.empty(4, 3, device="meta")
    with pytest.raises(NotImplementedError, match=r"no CUDA kernels.*CPU.*reference"):
        ops._mmd2_cuda(x)
    assert torch._C._dispatch_has_kernel_for_dispatch_key("fastmmd::mmd2", "CUDA")


def test_missing_native_module_says_what_to_do(repository: Path) -> None:
    code = f"""
        import importlib.abc, sys

        class Missing(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name == "fastmmd._native":
                    raise ImportError("undefined symbol: no such thing")

        sys.path.insert(0, {str(repository)!r})
        sys.meta_path.insert(0, Missing())
        import fastmmd
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "ImportError: the native module of fastmmd cannot be imported" in run.stderr
    assert "undefined symbol: no such thing" in run.stderr
    assert "pip install" in run.stderr
