"""How strongly the alignment loss counts, from the first step of a training to the last."""

from __future__ import annotations

import math
from typing import Literal, get_args

__all__ = ["Schedule", "alignment_weight"]

Schedule = Literal["dann", "constant"]


def alignment_weight(progress: float, schedule: Schedule = "dann", maximum: float = 1.0) -> float:
    r"""Weight of the alignment loss at a point of the training.

    ``"dann"`` is :math:`w(p) = w_{max} \left(\frac{2}{1 + e^{-10 p}} - 1\right)`, from Ganin et
    al., "Domain-Adversarial Training of Neural Networks", JMLR 17 (2016), section 5.2.2: 0 at the
    start, when the features still say nothing, 0.99 of the maximum halfway. ``"constant"`` is the
    maximum throughout.

    Args:
        progress: Share of the training that is done, in [0, 1].
        schedule: ``"dann"`` or ``"constant"``.
        maximum: Weight that the schedule tends to, not negative.

    Returns:
        The weight, in [0, maximum].

    Raises:
        ValueError: The schedule is unknown, progress is outside [0, 1], or the maximum is negative,
            infinite or NaN.

    Example:
        >>> [round(alignment_weight(p), 3) for p in (0.0, 0.1, 0.5, 1.0)]
        [0.0, 0.462, 0.987, 1.0]
    """
    if schedule not in get_args(Schedule):
        raise ValueError(
            f"schedule must be one of {', '.join(get_args(Schedule))}; got {schedule!r}"
        )
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress must lie in [0, 1]; got {progress!r}")
    if not (math.isfinite(maximum) and maximum >= 0):
        raise ValueError(f"maximum must be a finite number that is not negative; got {maximum!r}")
    if schedule == "constant":
        return maximum
    return maximum * (2.0 / (1.0 + math.exp(-10.0 * progress)) - 1.0)
