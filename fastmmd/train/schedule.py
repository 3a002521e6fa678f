"""How strongly the alignment loss counts, from the first step of a training to the last."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

__all__ = ["SCHEDULES", "Schedule", "alignment_weight"]

WARMUP = 0.1  # of the training

# Shares of the maximum, as functions of the share of the training that is done.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "dann": lambda p: 2.0 / (1.0 + math.exp(-10.0 * p)) - 1.0,
    "constant": lambda p: 1.0,
    "linear": lambda p: p,
    "warmup": lambda p: min(p / WARMUP, 1.0),
    "cosine": lambda p: 0.5 * (1.0 - math.cos(math.pi * p)),
}
Schedule = Literal["dann", "constant", "linear", "warmup", "cosine"]


def alignment_weight(
    progress: float, schedule: Schedule | Callable[[float], float] = "dann", maximum: float = 1.0
) -> float:
    r"""Weight of the alignment loss at a point of the training.

    With p the share of the training that is done, it is ``maximum`` times

    - ``"dann"``: :math:`\frac{2}{1 + e^{-10 p}} - 1`, from Ganin et al., "Domain-Adversarial
      Training of Neural Networks", JMLR 17 (2016), section 5.2.2: 0 at the start, when the features
      still say nothing, 0.99 halfway;
    - ``"constant"``: 1;
    - ``"linear"``: p;
    - ``"warmup"``: 10 p in the first tenth of the training, 1 after it;
    - ``"cosine"``: :math:`\frac{1 - \cos \pi p}{2}`, slow at both ends.

    Args:
        progress: p, in [0, 1].
        schedule: One of these names, or a function of p with values in [0, 1].
        maximum: Weight that the schedule is a share of, not negative.

    Returns:
        The weight, in [0, maximum].

    Raises:
        ValueError: The schedule is unknown or its value not in [0, 1], progress is outside [0, 1],
            or the maximum is negative, infinite or NaN.

    Example:
        >>> [round(alignment_weight(p), 3) for p in (0.0, 0.1, 0.5, 1.0)]
        [0.0, 0.462, 0.987, 1.0]
        >>> alignment_weight(0.25, lambda p: p**2, maximum=2.0)
        0.125
    """
    if not callable(schedule) and schedule not in SCHEDULES:
        raise ValueError(
            f"schedule must be one of {', '.join(SCHEDULES)}, or a function; got {schedule!r}"
        )
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress must lie in [0, 1]; got {progress!r}")
    if not (math.isfinite(maximum) and maximum >= 0):
        raise ValueError(f"maximum must be a finite number that is not negative; got {maximum!r}")
    share = (schedule if callable(schedule) else SCHEDULES[schedule])(progress)
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"schedule must have values in [0, 1]; got {share!r} at {progress!r}")
    return maximum * share
