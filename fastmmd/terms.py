"""The form in which the layers below :mod:`fastmmd.kernels` know a kernel.

A kernel is a sum of terms ``coefficient * phi(scale / unit * u)``. ``phi`` is the profile of the
term's family, ``u`` what its geometry makes of a pair of points (their squared distance, inner
product or cosine), and ``unit`` is 1 or a statistic of the data.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# The families, by the numbers that the native core knows them by. Matern 1/2 is the Laplacian.
GAUSSIAN, LAPLACIAN, ENERGY, INVERSE_MULTIQUADRIC, RATIONAL_QUADRATIC = range(5)
MATERN_3_2, MATERN_5_2, POLYNOMIAL, LINEAR, COSINE = range(5, 10)

# What a family's profile is a function of: |x - y|^2, <x, y>, or <x, y> / (|x| |y|), which is 0
# where a norm is.
RADIAL, DOT, COSINE_SIMILARITY = range(3)
GEOMETRY = (RADIAL,) * 7 + (DOT, DOT, COSINE_SIMILARITY)  # by family

# Units: 1 is the mean of |z_i - z_j|^2 over i != j of the pooled sample z, 2 their lower median
# over i < j, 3 the lower median of all |x_i - x_j|^2, i = j among them, 4 the number of features.
FIXED, MEAN, MEDIAN, X_MEDIAN, WIDTH = range(5)
UNITS = {"mean": MEAN, "median": MEDIAN}  # the heuristics by name


class Terms(NamedTuple):
    """A kernel as a list of T terms, or a product of such lists, one for each factor.

    Of a product, factor l looks at features of its own: points are the factors' features side by
    side.
    """

    families: tuple[int, ...]
    scales: Tensor  # [T], float64, contiguous
    coefficients: Tensor  # [T], float64, contiguous
    shapes: tuple[float, ...]  # [2 T]: the two shape parameters of each term, 0 where unused
    units: tuple[int, ...]  # a unit of 0 makes the scale 0
    factors: tuple[int, ...]  # that the term is a summand of, from 0 and never falling
