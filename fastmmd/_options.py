"""Values of the command line, for argparse."""

from __future__ import annotations

import argparse
import math

__all__ = ["between", "positive", "positive_number", "share", "whole"]


def whole(text: str) -> int:
    """A whole number of at least 0."""
    return between(text, 0)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return between(text, 1)


def between(text: str, least: int, below: float = math.inf) -> int:
    """A whole number of that range."""
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number < below:
        bound = "" if math.isinf(below) else f" and below 2^{round(math.log2(below))}"
        raise argparse.ArgumentTypeError(
            f"must be a whole number of at least {least}{bound}; got {text!r}"
        )
    return number


def positive_number(text: str) -> float:
    """A positive, finite number."""
    number = _float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number; got {text!r}")
    return number


def share(text: str) -> float:
    """A number between 0 and 1, both excluded."""
    number = _float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1; got {text!r}")
    return number


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
