"""The operators behind the public functions, and the only place that knows the native module.

Arguments have been checked by the time they come here. ``_core`` talks to the native module,
``_mmd2`` holds the MMD and its derivatives, ``_sums`` products of kernel matrices and matrices,
``_lines`` what is made by sorting, and ``_statistics`` what has no derivative. All call the native
core without the dispatcher where nothing needs the dispatcher, as a small batch costs less than the
way through it; both roads end in the same native calls, so they give the same bits.
"""

from __future__ import annotations

from fastmmd.ops._core import native, pick
from fastmmd.ops._features import MAX_RATES, feature_mean
from fastmmd.ops._frequencies import frequencies
from fastmmd.ops._lines import line_energy, sliced_energy
from fastmmd.ops._mmd2 import mmd2
from fastmmd.ops._projected import ACTIVATIONS, projected_mmd2
from fastmmd.ops._statistics import PERMUTATION, WILD, SignForms, resolve, sign_forms
from fastmmd.ops._sums import kernel_sum

__all__ = [
    "ACTIVATIONS",
    "MAX_RATES",
    "PERMUTATION",
    "WILD",
    "SignForms",
    "feature_mean",
    "frequencies",
    "kernel_sum",
    "line_energy",
    "mmd2",
    "native",
    "pick",
    "projected_mmd2",
    "resolve",
    "sign_forms",
    "sliced_energy",
]
