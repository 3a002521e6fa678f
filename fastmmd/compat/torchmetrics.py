r"""Metrics as those of torchmetrics: they accumulate features, and sync over processes.

``from fastmmd.compat.torchmetrics import KernelInceptionDistance`` in place of ``from
torchmetrics.image.kid import KernelInceptionDistance``. The metrics take features and hold no
network; a module that extracts features may be given. Needs the extra ``metrics``.

All keep the features of all updates, as a kernel of two points needs both, and compute without a
kernel matrix. They work under ``torch.no_grad`` and are not differentiable: for a loss there is
:class:`fastmmd.MMDLoss`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastmmd import functional, ops
from fastmmd._extras import require_extra
from fastmmd.checks import BIASED, UNBIASED, check_estimator
from fastmmd.compat._common import (
    check_count,
    check_pair,
    check_points,
    check_positive,
    family_terms,
)
from fastmmd.kernels import Kernel, as_kernel
from fastmmd.terms import FIXED, GAUSSIAN, POLYNOMIAL, WIDTH

require_extra("fastmmd.compat.torchmetrics", "metrics", "torchmetrics")

from torchmetrics import Metric  # noqa: E402
from torchmetrics.utilities.data import dim_zero_cat  # noqa: E402

__all__ = ["CMMD", "KernelInceptionDistance", "MaximumMeanDiscrepancy"]

_GATHERED = 1 << 26  # bytes of subsets that are held at a time, where the features hold fewer


class _FeatureMetric(Metric):
    """Two samples that grow with each update."""

    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0

    real_features: list[Tensor]
    fake_features: list[Tensor]

    def __init__(
        self, feature: nn.Module | None, reset_real_features: bool, kwargs: dict[str, Any]
    ) -> None:
        super().__init__(**kwargs)
        if feature is not None and not isinstance(feature, nn.Module):
            raise TypeError(
                f"feature must be a torch.nn.Module that extracts features, or None if features"
                f" are given, got {feature!r}: no network comes with fastmmd"
            )
        if not isinstance(reset_real_features, bool):
            raise ValueError(f"reset_real_features must be a bool, got {reset_real_features!r}")
        self.feature = feature
        self.reset_real_features = reset_real_features
        self.add_state("real_features", [], dist_reduce_fx="cat")
        self.add_state("fake_features", [], dist_reduce_fx="cat")

    def _add(self, features: Any, real: bool, name: str) -> None:
        check_points(features, name)
        for held in (self.real_features, self.fake_features):
            if len(held):  # a sync makes a tensor of the list
                first = held[0] if isinstance(held, list) else held
                if first.shape[-1] != features.shape[1] or first.dtype != features.dtype:
                    raise ValueError(
                        f"{name} must be of one width and dtype with those before, of width"
                        f" {first.shape[-1]} and {first.dtype}, got {features.shape[1]} and"
                        f" {features.dtype}"
                    )
        (self.real_features if real else self.fake_features).append(features.detach())

    def _samples(self, least: int) -> tuple[Tensor, Tensor]:
        for name, held in (("real", self.real_features), ("fake", self.fake_features)):
            if not len(held):
                raise ValueError(f"there are no {name} features: call update before compute")
        real, fake = dim_zero_cat(self.real_features), dim_zero_cat(self.fake_features)
        check_pair(real, fake, ("real features", "fake features"), least=least)
        return real, fake

    def reset(self) -> None:
        """Forget all features, or those of the fake sample alone."""
        if self.reset_real_features:
            super().reset()
            return
        held = self._defaults.pop("real_features")
        super().reset()
        self._defaults["real_features"] = held

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot a value, or several, as the other metrics of torchmetrics do.

        Args:
            val: a result or a list of results; that of ``compute`` if None.
            ax: matplotlib axes to draw in.

        Returns:
            The figure and the axes.
        """
        return self._plot(self.compute() if val is None else val, ax)


class _RealOrFake(_FeatureMetric):
    """Features of one sample in each update."""

    def update(self, imgs: Tensor, real: bool) -> None:
        """Add features to one of the two samples.

        Args:
            imgs: features [n, d], or what ``feature`` makes them of.
            real: whether they belong to the real sample or to the other.

        Raises:
            TypeError: features that are no floating tensor, or a ``real`` that is no bool.
            ValueError: features that are empty, of other than rank 2 or of another width or dtype
                than those before.
        """
        if not isinstance(real, (bool, int)):
            raise TypeError(f"real must be True or False, got {real!r}")
        self._add(imgs if self.feature is None else self.feature(imgs), bool(real), "features")


class KernelInceptionDistance(_RealOrFake):
    r"""The Kernel Inception Distance of Binkowski et al., "Demystifying MMD GANs", of features.

    The unbiased MMD^2 with ``(gamma <x, y> + coef)^degree`` between ``subset_size`` real and as
    many fake features, drawn without replacement, ``subsets`` times over: mean and standard
    deviation. The subsets are drawn with ``torch.randperm`` in the order in which
    ``torchmetrics.image.kid.KernelInceptionDistance`` draws them, so that one seed gives one
    number; they are computed in one native call, or a few where they would outgrow the features.

    Args:
        feature: a module that extracts features; None if ``update`` is given features. The names
            and numbers of layers of Inception that torchmetrics takes are an error.
        subsets: number of subsets.
        subset_size: points in a subset, from either sample.
        degree: degree of the kernel.
        gamma: scale of the kernel; 1 / d if None.
        coef: constant of the kernel, not negative.
        reset_real_features: whether ``reset`` forgets the real features as well.
        normalize: accepted and unused, as by torchmetrics where features are given.
        **kwargs: those of ``torchmetrics.Metric``.

    Raises:
        ValueError: numbers out of range.
        TypeError: an argument of another type.

    Example:
        >>> import torch
        >>> from fastmmd.compat.torchmetrics import KernelInceptionDistance
        >>> kid = KernelInceptionDistance(subsets=3, subset_size=20)
        >>> generator = torch.Generator().manual_seed(0)
        >>> kid.update(torch.randn(50, 8, generator=generator), real=True)
        >>> kid.update(torch.randn(50, 8, generator=generator) + 1, real=False)
        >>> mean, std = kid.compute()
        >>> bool(mean > 2 * std)
        True
    """

    higher_is_better = False
    plot_upper_bound = 1.0

    def __init__(
        self,
        feature: nn.Module | None = None,
        subsets: int = 100,
        subset_size: int = 1000,
        degree: int = 3,
        gamma: float | None = None,
        coef: float = 1.0,
        reset_real_features: bool = True,
        normalize: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature, reset_real_features, kwargs)
        self.subsets = check_count("subsets", subsets)
        self.subset_size = check_count("subset_size", subset_size)
        if subset_size < 2:
            raise ValueError("subset_size must be at least 2, as the diagonal is left out, got 1")
        self.degree = check_count("degree", degree)
        self.gamma = None if gamma is None else check_positive("gamma", gamma)
        self.coef = 0.0 if coef == 0 else check_positive("coef", coef)
        if not isinstance(normalize, bool):
            raise ValueError(f"normalize must be a bool, got {normalize!r}")
        self.normalize = normalize
        scale, unit = (1.0, WIDTH) if self.gamma is None else (self.gamma, FIXED)
        shape = (float(self.degree), self.coef)
        self._terms = family_terms(POLYNOMIAL, [scale], unit, shape=shape)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over the subsets.

        Raises:
            ValueError: fewer features than ``subset_size``.
        """
        real, fake = self._samples(2)
        for name, features in (("real", real), ("fake", fake)):
            if len(features) < self.subset_size:
                raise ValueError(
                    f"subset_size must not exceed the number of features, got {self.subset_size}"
                    f" and {len(features)} {name} features"
                )
        drawn = [
            [torch.randperm(len(t))[: self.subset_size] for t in (real, fake)]
            for _ in range(self.subsets)
        ]
        bytes_ = 2 * self.subset_size * real.shape[1] * real.element_size()
        held = real.nbytes + fake.nbytes
        step = max(1, max(_GATHERED, held) // bytes_)
        values = []
        with torch.no_grad():
            for i in range(0, self.subsets, step):
                x, y = (
                    torch.stack(
                        [features[pair[side].to(features.device)] for pair in drawn[i : i + step]]
                    )
                    for side, features in enumerate((real, fake))
                )
                values.append(ops.mmd2(x, y, None, None, self._terms, UNBIASED))
        scores = torch.cat(values)
        return scores.mean(), scores.std(unbiased=False)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot a mean, or several; see the base class.

        Args:
            val: a mean or a list of means; that of ``compute`` if None.
            ax: matplotlib axes to draw in.

        Returns:
            The figure and the axes.
        """
        return self._plot(self.compute()[0] if val is None else val, ax)


class CMMD(_RealOrFake):
    r"""The CMMD of Jayasumana et al., "Rethinking FID", of features.

    ``scale`` times the biased MMD^2 with ``exp(-|x - y|^2 / (2 sigma^2))``, over all features of
    all updates. The paper takes the image embeddings of CLIP ViT-L/14 at 336 pixels, of norm 1.

    Args:
        feature: a module that extracts features; None if ``update`` is given features.
        sigma: bandwidth.
        scale: what the MMD^2 is multiplied with.
        reset_real_features: whether ``reset`` forgets the real features as well.
        **kwargs: those of ``torchmetrics.Metric``.

    Raises:
        ValueError: numbers out of range.
        TypeError: an argument of another type.

    Example:
        >>> import torch
        >>> from fastmmd.compat.torchmetrics import CMMD
        >>> cmmd = CMMD()
        >>> cmmd.update(torch.eye(4), real=True)
        >>> cmmd.update(-torch.eye(4), real=False)
        >>> cmmd.compute()
        tensor(9.9007)
    """

    higher_is_better = False

    def __init__(
        self,
        feature: nn.Module | None = None,
        sigma: float = 10.0,
        scale: float = 1000.0,
        reset_real_features: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature, reset_real_features, kwargs)
        self.sigma = check_positive("sigma", sigma)
        self.scale = check_positive("scale", scale)
        self._terms = family_terms(GAUSSIAN, [0.5 / self.sigma**2])

    def compute(self) -> Tensor:
        """The distance between all real and all fake features: a scalar."""
        real, fake = self._samples(1)
        with torch.no_grad():
            return self.scale * ops.mmd2(real, fake, None, None, self._terms, BIASED)


class MaximumMeanDiscrepancy(_FeatureMetric):
    r"""MMD^2 between all that was given as x and all that was given as y.

    Args:
        kernel: a :class:`fastmmd.Kernel`, ``Gaussian("mean")`` by default. A heuristic bandwidth
            is that of all points together.
        estimator: one of those of :func:`fastmmd.mmd2`.
        reset_real_features: whether ``reset`` forgets x as well.
        feature: a module that extracts features; None if ``update`` is given features.
        **kwargs: those of ``torchmetrics.Metric``.

    Raises:
        ValueError: an unknown estimator.
        TypeError: a kernel that is none.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> from fastmmd.compat.torchmetrics import MaximumMeanDiscrepancy
        >>> metric = MaximumMeanDiscrepancy(fm.Energy())
        >>> metric.update(torch.zeros(4, 2), torch.ones(2, 2))
        >>> metric.update(torch.ones(1, 2), real=False)
        >>> metric.compute()
        tensor(2.8284)
    """

    higher_is_better = False

    def __init__(
        self,
        kernel: Kernel | None = None,
        estimator: str = "biased",
        reset_real_features: bool = True,
        feature: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature, reset_real_features, kwargs)
        check_estimator(estimator)
        self.kernel = as_kernel(kernel)
        self.estimator = estimator

    def update(
        self, x: Tensor, y: Tensor | bool | None = None, *, real: bool | None = None
    ) -> None:
        """Add points: ``update(x, y)`` to both samples, ``update(points, real=True)`` to one.

        Args:
            x: [n, d].
            y: [m, d]; or a bool, which is taken for ``real``.
            real: whether x belongs to x (True) or to y, where there is no y.

        Raises:
            TypeError: points that are no floating tensors, or neither y nor real.
            ValueError: points that are empty, of other than rank 2 or of another width or dtype
                than those before.
        """
        if isinstance(y, bool):
            y, real = None, y
        if (y is None) == (real is None):
            raise TypeError("update takes x and y, or x and real: either y or real must be given")
        x = x if self.feature is None else self.feature(x)
        if y is None:
            self._add(x, bool(real), "x")
            return
        y = y if self.feature is None else self.feature(y)
        check_pair(x, y)
        self._add(x, True, "x")
        self._add(y, False, "y")

    def compute(self) -> Tensor:
        """MMD^2 of all points so far: a scalar."""
        real, fake = self._samples(1)
        with torch.no_grad():
            return functional.mmd2(real, fake, self.kernel, self.estimator)
