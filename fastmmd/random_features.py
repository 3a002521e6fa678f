"""The MMD by random features: O((n + m) D d) in time, and no matrix of features in memory."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from fastmmd import ops
from fastmmd.checks import BIASED, check_points
from fastmmd.frequencies import RATES, SCHEMES, block_of
from fastmmd.functional import check_sample_weights, fixed_terms
from fastmmd.kernels import Kernel, as_kernel
from fastmmd.terms import Terms

_FORMS = ("phase", "pair")
_PILOT = 512  # features of the first look of num_features="auto"
_MOST = 1 << 20  # that it takes
_SAFETY = 1.1


@overload
def random_feature_mmd2(
    x: Tensor,
    y: Tensor,
    num_features: int | str = ...,
    kernel: Kernel | None = ...,
    seed: int | None = ...,
    frequencies: str | Tensor = ...,
    form: str = ...,
    x_weights: Tensor | None = ...,
    y_weights: Tensor | None = ...,
    *,
    phases: Tensor | None = ...,
    target_error: float | None = ...,
    return_error: Literal[False] = ...,
) -> Tensor: ...


@overload
def random_feature_mmd2(
    x: Tensor,
    y: Tensor,
    num_features: int | str = ...,
    kernel: Kernel | None = ...,
    seed: int | None = ...,
    frequencies: str | Tensor = ...,
    form: str = ...,
    x_weights: Tensor | None = ...,
    y_weights: Tensor | None = ...,
    *,
    phases: Tensor | None = ...,
    target_error: float | None = ...,
    return_error: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def random_feature_mmd2(
    x: Tensor,
    y: Tensor,
    num_features: int | str = 4096,
    kernel: Kernel | None = None,
    seed: int | None = 0,
    frequencies: str | Tensor = "iid",
    form: str = "phase",
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    phases: Tensor | None = None,
    target_error: float | None = None,
    return_error: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Squared MMD estimated from D random features, in O((n + m) D d).

    The kernels that fall off with the distance are means of cosines,
    ``k(x, y) = E 2 cos(<w, x> + b) cos(<w, y> + b)`` with random frequencies w and phases b. With F
    of them drawn, the biased :func:`mmd2` is estimated without bias by ``2 / D`` times the squared
    distance of the mean features of x and y (Rahimi and Recht, "Random features for large-scale
    kernel machines", NeurIPS 2007; Zhao and Meng, "FastMMD", Neural Computation 2015):

    - ``form="phase"``: ``cos(<w_j, x> + b_j)``, D = F;
    - ``form="pair"``: ``cos(<w_j, x>)`` and ``sin(<w_j, x>)``, D = 2 F. It does not change when
      both samples are shifted; nor does the other on average.

    A bank of bandwidths shares its frequencies: it costs one projection ``x W``. A sum of kernels
    of different families has frequencies, and D features, for each family. The n x D features are
    never written: memory is O((n + m + D) d), with ``frequencies="structured"``
    O((n + m) d + D); the backward pass makes them again. The result does not depend on the number
    of threads, to the last bit.

    The standard error is taken from the spread over frequencies and falls as D^(-1/2). Frequencies
    that are orthogonal or structured depend on each other within blocks of d (of the next power of
    two); the spread is over the means of blocks where there are eight or more of them, and else as
    if they were independent, which is rather too large an error. It says nothing about how much
    the MMD itself varies with the samples.

    Differentiable in x, y, the weights, the tensor bandwidths and weights of the kernel, and in
    frequencies and phases that are given; twice in eager mode, by a slower road. Heuristic
    bandwidths count as constants. Half inputs count in float32. NaN or infinity in the data gives
    NaN.

    Args:
        x: the first sample, [n, d], float16, bfloat16, float32 or float64, with any strides.
        y: the second sample, [m, d], of the dtype and on the device of x.
        num_features: D, even for pairs; not looked at where frequencies are given. ``"auto"`` takes
            as many as bring the standard error to ``target_error``, found from the spread of a few
            hundred features; eager mode only.
        kernel: a :class:`fastmmd.Kernel` of :class:`Gaussian`, :class:`Laplacian`, :class:`Matern`,
            :class:`InverseMultiquadric` and :class:`RationalQuadratic`, and sums and multiples of
            these; ``Gaussian("mean")`` by default.
        seed: of frequencies and phases, the same on every machine, and those of a
            :class:`MeanEmbedding` with that seed; None takes a new one from the global generator of
            torch.
        frequencies: ``"iid"``; ``"orthogonal"``, in blocks of d, with less variance; or
            ``"structured"``, products of Hadamard matrices and random signs, O(D log d) for each
            point, see :func:`fastmmd.frequencies.draw`; or a tensor [d, F], which is divided by
            the bandwidths as the random ones are, for kernels of one family.
        form: ``"phase"`` or ``"pair"``.
        x_weights: weights of the points of x, [n], non-negative with a positive sum.
        y_weights: those of y, [m].
        phases: b, [F], for ``form="phase"``, instead of random ones; for kernels of one family.
        target_error: the standard error that ``num_features="auto"`` is to reach, in the units of
            the result.
        return_error: whether to return the standard error as well.

    Returns:
        A scalar, float64 for float64 inputs and float32 otherwise; with ``return_error`` also its
        standard error, NaN for a single frequency, without a gradient.

    Raises:
        TypeError: an argument that is no tensor or no kernel, or of a dtype that is not accepted.
        ValueError: a wrong rank, different widths or devices, an empty sample, weights of a wrong
            shape or without a positive sum; fewer than one feature, an odd number of them for
            pairs; frequencies or phases of a wrong shape; an unknown scheme or form; a kernel
            without frequencies; a target error that takes more than 2^20 features.
        NotImplementedError: forward-mode differentiation; tensors on a CUDA device, in a build
            without CUDA kernels.
        RuntimeError: structured frequencies for points so wide that the shared memory of the GPU
            does not hold a row.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(300, 4, generator=generator)
        >>> y = torch.randn(200, 4, generator=generator) + 1
        >>> value, error = fm.random_feature_mmd2(x, y, 8192, return_error=True)
        >>> bool(abs(value - fm.mmd2(x, y)) < 4 * error)
        True
    """
    check_points(x, y)
    if x.ndim != 2:
        raise ValueError(f"x must be of rank 2, [points, width], got shape {list(x.shape)}")
    check_sample_weights(x, y, x_weights, y_weights, BIASED)
    check_features(num_features, form, frequencies, seed, target_error)
    kernel = as_kernel(kernel)
    _check_given(x, frequencies, phases, form, num_features)
    terms = kernel.terms_for(x, y)
    groups = _groups(terms, frequencies, phases)
    terms = fixed_terms(x, y, terms)
    if seed is None:
        seed = int(torch.randint(1 << 62, ()))
    samples = _Samples(x, y, _masses(x_weights), _masses(y_weights))
    plan = _Plan(groups, terms, seed, frequencies, phases, form)
    if isinstance(num_features, str):
        assert target_error is not None
        num_features = _enough(samples, plan, target_error)
    count = num_features if form == "phase" else num_features // 2
    value, error = _estimate(samples, plan, count)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if return_error:
        return value.to(dtype), error.to(dtype)
    return value.to(dtype)


class RandomFeatureMMDLoss(nn.Module):
    """Squared MMD by random features, see :func:`fastmmd.random_feature_mmd2`.

    Args:
        num_features: D.
        kernel: ``Gaussian("mean")`` by default; a submodule, so that its tensors train, save and
            move with the loss.
        seed: of the features, the same at every call; None draws new ones each time.
        frequencies: ``"iid"``, ``"orthogonal"``, ``"structured"`` or a tensor [d, F]: a
            ``nn.Parameter`` becomes a parameter of the loss, another tensor a buffer.
        form: ``"phase"`` or ``"pair"``.
        phases: [F], in the same way, for ``form="phase"``.

    Raises:
        TypeError: a kernel that is none, or a number that is no integer.
        ValueError: a number out of range, an unknown scheme or form.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> loss = fm.RandomFeatureMMDLoss(512, fm.Laplacian("median"))
        >>> source, target = torch.zeros(4, 3), torch.ones(5, 3, requires_grad=True)
        >>> loss(source, target).backward()
        >>> target.grad.shape
        torch.Size([5, 3])
    """

    frequencies: str | Tensor
    phases: Tensor | None

    def __init__(
        self,
        num_features: int = 4096,
        kernel: Kernel | None = None,
        seed: int | None = 0,
        frequencies: str | Tensor = "iid",
        form: str = "phase",
        phases: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_features(num_features, form, frequencies, seed, None)
        self.num_features, self.seed, self.form = num_features, seed, form
        self.kernel = as_kernel(kernel)
        for name, value in (("frequencies", frequencies), ("phases", phases)):
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        x_weights: Tensor | None = None,
        y_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of x [n, d] and y [m, d], optionally weighted by [n] and [m]: a scalar."""
        return random_feature_mmd2(
            x,
            y,
            self.num_features,
            self.kernel,
            self.seed,
            self.frequencies,
            self.form,
            x_weights,
            y_weights,
            phases=self.phases,
        )

    def extra_repr(self) -> str:
        """What ``repr`` shows beside the kernel."""
        return f"num_features={self.num_features}, form={self.form!r}"


class _Group(NamedTuple):
    """The terms of one family, which share frequencies."""

    family: int
    shape: float
    positions: tuple[int, ...]


class _Samples(NamedTuple):
    x: Tensor
    y: Tensor
    x_masses: Tensor | None
    y_masses: Tensor | None


class _Plan(NamedTuple):
    groups: list[_Group]
    terms: Terms
    seed: int
    frequencies: str | Tensor
    phases: Tensor | None
    form: str


def _estimate(samples: _Samples, plan: _Plan, count: int) -> tuple[Tensor, Tensor]:
    """The MMD^2 by so many frequencies for each group, and its standard error, in float64."""
    x, y = samples.x, samples.y
    each: Tensor | None = None  # of the frequencies, those of all groups side by side
    block = 1
    for group in plan.groups:
        signs, phases = None, plan.phases
        if isinstance(plan.frequencies, Tensor):
            w = plan.frequencies
            count = w.shape[1]
            if phases is None and plan.form == "phase":
                # They have a stream of their own: these are those of any frequencies.
                phases = ops.frequencies(x, group.family, group.shape, 0, 1, count, plan.seed)[2]
        else:
            scheme, d = SCHEMES[plan.frequencies], x.shape[1]
            w, signs, drawn = ops.frequencies(
                x, group.family, group.shape, scheme, d, count, plan.seed
            )
            phases = drawn if phases is None else phases
            block = block_of(scheme, d)
        if plan.form == "pair":
            phases = None
        else:
            assert phases is not None
            phases = phases.double()
        rates = _root(RATES[group.family] * ops.pick(plan.terms.scales, group.positions))
        coefficients = ops.pick(plan.terms.coefficients, group.positions)
        means = [
            ops.feature_mean(z, masses, w, signs, phases, rates)
            for z, masses in ((x, samples.x_masses), (y, samples.y_masses))
        ]
        of_group = coefficients @ (means[0] - means[1]).square()
        of_group = 2 * of_group if phases is not None else of_group[:count] + of_group[count:]
        each = of_group if each is None else each + of_group
    assert each is not None
    return each.mean(), _variance(each.detach(), block).sqrt()


def _variance(each: Tensor, block: int) -> Tensor:
    """Of the mean of numbers that depend on each other within blocks."""
    blocks = each.shape[0] // block
    if block > 1 and blocks >= 8:
        each = each[: blocks * block].reshape(blocks, block).mean(1)
    if each.shape[0] == 1:
        return torch.full((), math.nan, dtype=each.dtype, device=each.device)
    return each.var() / each.shape[0]


def _enough(samples: _Samples, plan: _Plan, target: float) -> int:
    """How many features bring the standard error to the target."""
    if torch.compiler.is_compiling():
        raise NotImplementedError("num_features='auto' looks at values: it is for eager mode only")
    unit = 2 if plan.form == "pair" else 1
    features = _PILOT
    with torch.no_grad():
        while True:
            error = float(_estimate(samples, plan, features // unit)[1])
            if not error > target:  # NaN, too
                return features
            needed = max(features + 64, math.ceil(features * (error / target) ** 2 * _SAFETY))
            features = -(-needed // 64) * 64
            if features > _MOST:
                raise ValueError(
                    f"target_error must be one that at most {_MOST} features reach, got"
                    f" {target!r}, for which about {features} would be needed"
                )


def _groups(terms: Terms, frequencies: str | Tensor, phases: Tensor | None) -> list[_Group]:
    """The terms by families, at most as many in each as the native core takes."""
    if any(terms.factors):
        raise ValueError("kernel must not be a product of kernels")
    found: dict[tuple[int, float], list[int]] = {}
    for t, family in enumerate(terms.families):
        if family not in RATES:
            raise ValueError(
                "kernel must be made of Gaussian, Laplacian, Matern, InverseMultiquadric and"
                " RationalQuadratic kernels: others are no means of cosines"
            )
        found.setdefault((family, terms.shapes[2 * t]), []).append(t)
    size = ops.MAX_RATES
    groups = [
        _Group(family, shape, tuple(of[i : i + size]))
        for (family, shape), of in found.items()
        for i in range(0, len(of), size)
    ]
    if len(found) > 1 and (isinstance(frequencies, Tensor) or phases is not None):
        given = "frequencies" if isinstance(frequencies, Tensor) else "phases"
        raise ValueError(f"{given} can be given for kernels of one family only, got {len(found)}")
    return groups


def check_features(
    num_features: Any, form: Any, frequencies: Any, seed: Any, target_error: Any
) -> None:
    """Raise unless there is such a number of such features."""
    if form not in _FORMS:
        raise ValueError(f"form must be 'phase' or 'pair', got {form!r}")
    if isinstance(frequencies, str):
        if frequencies not in SCHEMES:
            raise ValueError(
                "frequencies must be 'iid', 'orthogonal', 'structured' or a tensor, got"
                f" {frequencies!r}"
            )
    elif not isinstance(frequencies, Tensor):
        raise TypeError(
            f"frequencies must be a name or a torch.Tensor, got {type(frequencies).__name__}"
        )
    if seed is not None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed must be an integer or None, got {seed!r}")
        if not 0 <= seed < 1 << 63:
            raise ValueError(f"seed must be at least 0 and below 2^63, got {seed}")
    if num_features == "auto":
        if isinstance(frequencies, Tensor):
            raise ValueError("num_features='auto' draws frequencies, but a tensor was given")
        if isinstance(target_error, bool) or not isinstance(target_error, (int, float)):
            raise TypeError(
                f"target_error must be a number for num_features='auto', got {target_error!r}"
            )
        if not 0 < target_error < math.inf:
            raise ValueError(f"target_error must be positive and finite, got {target_error!r}")
        return
    if target_error is not None:
        raise ValueError(f"target_error is for num_features='auto' only, got {target_error!r}")
    if isinstance(num_features, bool) or not isinstance(num_features, int):
        raise TypeError(f"num_features must be an integer or 'auto', got {num_features!r}")
    if num_features < 1:
        raise ValueError(f"num_features must be at least 1, got {num_features}")
    if form == "pair" and num_features % 2:
        raise ValueError(f"num_features must be even for form='pair', got {num_features}")


def _check_given(
    x: Tensor, frequencies: str | Tensor, phases: Any, form: str, num_features: int | str
) -> None:
    count: int | None = None
    if isinstance(frequencies, Tensor):
        shape = list(frequencies.shape)
        if not frequencies.is_floating_point():
            raise TypeError(f"frequencies must be of a floating dtype, got {frequencies.dtype}")
        if len(shape) != 2 or shape[0] != x.shape[1] or shape[1] < 1:
            raise ValueError(
                f"frequencies must be of shape [{x.shape[1]}, F], a column for each, got {shape}"
            )
        if frequencies.device != x.device:
            raise ValueError(f"frequencies must be on {x.device}, as x, got {frequencies.device}")
        count = shape[1]
    elif isinstance(num_features, int):
        count = num_features
    if phases is None:
        return
    if not isinstance(phases, Tensor):
        raise TypeError(f"phases must be a torch.Tensor or None, got {type(phases).__name__}")
    if form == "pair":
        raise ValueError("phases must be None for form='pair', which has none")
    if count is None:
        raise ValueError("phases must be None for num_features='auto'")
    if not phases.is_floating_point():
        raise TypeError(f"phases must be of a floating dtype, got {phases.dtype}")
    if list(phases.shape) != [count]:
        raise ValueError(
            f"phases must be of shape [{count}], one for each frequency, got {list(phases.shape)}"
        )
    if phases.device != x.device:
        raise ValueError(f"phases must be on {x.device}, as x, got {phases.device}")


def _masses(weights: Tensor | None) -> Tensor | None:
    if weights is None:
        return None
    weights = weights.double()
    return weights / weights.sum()


def _root(t: Tensor) -> Tensor:
    """The square root, with a derivative of 0 at 0, where its own is infinite."""
    zero = t == 0
    return t.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)
