"""From tensors to addresses: what the operators share."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from fastmmd.terms import FIXED, GEOMETRY, Terms, numbers, on_device

try:
    # After torch, whose libgomp it is to share.
    from fastmmd import _native
except ImportError as error:
    package = Path(__file__).parents[1]
    missing = "cannot import name" in str(error)  # and not: found, but of no use
    if missing and (package.parent / "CMakeLists.txt").exists():
        raise ImportError(
            f"{package} holds the sources of fastmmd, without the native module that is compiled"
            " when it is installed: after 'pip install .', start Python in another folder; or run"
            " 'make install' or 'pip install -e .', and stay"
        ) from error
    raise ImportError(
        f"the native module of fastmmd cannot be imported ({error}). It is compiled when fastmmd is"
        " installed: install it for this Python, with 'pip install .' in a checkout"
    ) from error

native = _native
CPU = torch.device("cpu")  # named in every allocation, as a default device may be set
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
MAX_TERMS = 128  # that the native core takes
MAX_FACTORS = 8

# What the schema of each operator spells a kernel out as, beside its scales and coefficients, and
# the widths of the factors' features: none for a kernel that is no product.
KERNEL_SCHEMA = "int[] families, float[] shapes, int[] units, int[] factors, SymInt[] widths"


def address(tensor: Tensor | None) -> int:
    """Of the first number, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def doubles(tensor: Tensor) -> Tensor:
    """The tensor as the native core takes numbers per point or per term."""
    return tensor.detach().to(torch.float64).contiguous()


def result_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 points, float32 otherwise."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def buffer(size: int, tail: int = 0) -> tuple[Tensor, int]:
    """Scratch space of so many bytes, and where ``tail`` float64 lie behind it."""
    size = size + 63 & -64
    return torch.empty(size + 8 * tail, dtype=torch.uint8, device=CPU), size


Part = tuple[int, ...]  # positions of terms


@functools.lru_cache(maxsize=1024)
def parts(
    families: tuple[int, ...], factors: tuple[int, ...], most: int = MAX_TERMS
) -> list[Part] | None:
    """How a kernel is cut into a sum of kernels that the native core takes, or None if it need not.

    The terms of a factor must be of one geometry, and there may be ``most`` of them in all. A
    product of sums is the sum of the products, one for each choice of summands.
    """
    count = factors[-1] + 1
    if count > MAX_FACTORS:
        raise ValueError(
            f"a product of at most {MAX_FACTORS} kernels is supported, got one of {count}"
        )
    groups: dict[int, dict[int, list[int]]] = {factor: {} for factor in range(count)}
    for t, (family, factor) in enumerate(zip(families, factors, strict=True)):
        groups[factor].setdefault(GEOMETRY[family], []).append(t)
    if len(families) <= most and all(len(of) == 1 for of in groups.values()):
        return None
    size = most // count
    choices = [
        [group[i : i + size] for group in of.values() for i in range(0, len(group), size)]
        for of in groups.values()
    ]
    return [tuple(itertools.chain(*choice)) for choice in itertools.product(*choices)]


def at_points(terms: Terms, x: Tensor) -> Terms:
    """The terms on the device of x, where constants have been given on the CPU.

    Raises:
        ValueError: tensors of the kernel are on another device, or a parameter is.
    """
    scales, coefficients = terms.scales, terms.coefficients
    device = x.device
    if scales.device == device and coefficients.device == device:
        return terms
    for t in (scales, coefficients):
        if t.device != device and (t.requires_grad or not t.is_cpu):
            raise ValueError(
                f"the kernel's tensors must be on the device of x, {device}, got {t.device}: move"
                " the kernel there with its method to()"
            )
    return terms._replace(
        scales=on_device(scales, device), coefficients=on_device(coefficients, device)
    )


def cut(terms: Terms, plain: bool, most: int = MAX_TERMS) -> list[Terms] | None:
    """The summands of the kernel that the native core takes one by one, None if it is one."""
    # A compiler traces through, with a warning if there is a cache.
    find = parts if plain else parts.__wrapped__
    found = find(terms.families, terms.factors, most)
    return None if found is None else [_pick(terms, part) for part in found]


def _pick(terms: Terms, part: Part) -> Terms:
    return Terms(
        tuple(terms.families[t] for t in part),
        pick(terms.scales, part),
        pick(terms.coefficients, part),
        tuple(s for t in part for s in terms.shapes[2 * t : 2 * t + 2]),
        tuple(terms.units[t] for t in part),
        tuple(terms.factors[t] for t in part),
    )


def pick(t: Tensor, positions: Sequence[int]) -> Tensor:
    """These entries of the last dimension."""
    device = t.device
    return t[..., numbers([float(i) for i in positions], device).long()]


def per_unit_of(resolved: Tensor, scales: Tensor, units: Sequence[int]) -> Tensor:
    """``1 / unit`` of each term. Units are held fixed; of one that is 0 nothing comes."""
    per_unit = (resolved / scales).masked_fill(resolved == 0, 0.0)
    fixed = numbers([float(unit == FIXED) for unit in units], scales.device)
    return per_unit.masked_fill(fixed != 0, 1.0)


def transforms_active() -> bool:
    """Whether a transform of torch.func is at work."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def refuse_forward_mode(name: str) -> None:
    """Raise under forward-mode differentiation."""
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        raise NotImplementedError(
            f"forward-mode differentiation of fastmmd.{name} is not implemented: use reverse mode"
            " (backward, torch.func.grad or torch.func.vjp), which costs one pass for a scalar,"
            f" or fastmmd.reference.{name}"
        )


def third_order(ctx: Any, *grads: Tensor | None) -> None:
    """The formula of an operator that makes second derivatives."""
    raise NotImplementedError(
        "third derivatives of fastmmd.mmd2 and fastmmd.kernel_sum are not implemented: use"
        " fastmmd.reference"
    )


def differentiable(
    name: str,
    formula: Callable[..., Any],
    setup_context: Callable[..., None] = lambda ctx, inputs, output: None,
) -> type[torch.autograd.Function]:
    """Registers the formula of the gradient of ``fastmmd::name``.

    Returns:
        The operator for torch.func, which does not take the formula of an operator.
    """
    torch.library.register_autograd(f"fastmmd::{name}", formula, setup_context=setup_context)
    op = getattr(torch.ops.fastmmd, name)
    members = {
        "forward": lambda *args: op(*args),
        "setup_context": setup_context,
        "backward": formula,
    }
    statics = {member: staticmethod(function) for member, function in members.items()}
    return type(name, (torch.autograd.Function,), {"generate_vmap_rule": True, **statics})


Rule = Callable[..., tuple[tuple[Tensor, ...], tuple[int | None, ...]]]


def loop(op: Any) -> Rule:
    """The rule by which vmap takes an operator: one element of the batch at a time."""

    def rule(
        info: Any, in_dims: tuple[Any, ...], *args: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        outputs = [
            op(
                *(
                    a.select(d, i) if isinstance(d, int) else a
                    for a, d in zip(args, in_dims, strict=True)
                )
            )
            for i in range(info.batch_size)
        ]
        return tuple(torch.stack(o) for o in zip(*outputs, strict=True)), (0,) * len(outputs[0])

    return rule


def register_vmap(name: str, rule: Rule) -> None:
    """Since torch 2.5; torch 2.4 loops too, with a warning."""
    if hasattr(torch.library, "register_vmap"):
        torch.library.register_vmap(f"fastmmd::{name}", rule)
