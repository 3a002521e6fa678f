"""Two-sample tests and what they rest on, for NumPy arrays and tensors alike.

Results are NumPy arrays if all that was given were, tensors otherwise; single numbers are Python's.
"""

from __future__ import annotations

from fastmmd.stats._aggregated import (
    AggregatedResult,
    bandwidth_grid,
    kernel_collection,
    mmd_aggregated_test,
)
from fastmmd.stats._two_sample import TwoSampleResult, two_sample_test
from fastmmd.stats._witness import Contributions, contributions, kernel_sum, witness

__all__ = [
    "AggregatedResult",
    "Contributions",
    "TwoSampleResult",
    "bandwidth_grid",
    "contributions",
    "kernel_collection",
    "kernel_sum",
    "mmd_aggregated_test",
    "two_sample_test",
    "witness",
]
