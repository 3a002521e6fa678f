"""Sums of random features over the rows of a sample, which add up to those of several."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastmmd.frequencies import SCHEMES, VERSION
from fastmmd.kernels import Kernel
from fastmmd.sketch.checks import (
    Points,
    check_integer,
    checked_batch,
    checked_columns,
    checked_weights,
)
from fastmmd.sketch.features import Features
from fastmmd.sketch.kernels import kernel_of, spelled_out

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["HEAD", "FeatureSums", "doubles"]

_FORMS = ("pair", "phase")

# The numbers of a sketch: how many rows, the sums of their weights and of the squares of these, and
# then the sums of the features. Before them, on the way between processes: how many sketches these
# are the sum of, and as often a number that stands for what they were made with, and its square.
HEAD, _MARKS = 3, 3
_MARK_BITS = 20  # so that sums of squares are exact for up to 2^13 processes


class FeatureSums:
    """What a sketch is made with, and the sums that it holds.

    Arguments and errors are those of :class:`fastmmd.MeanEmbedding`, which says what they tell.
    """

    def __init__(
        self,
        num_features: int,
        kernel: Kernel,
        dim: int,
        seed: int = 0,
        form: str = "pair",
        frequencies: str = "iid",
        columns: Sequence[str] | None = None,
    ) -> None:
        for name, value, least, below in (
            ("num_features", num_features, 1, math.inf),
            ("dim", dim, 1, math.inf),
            ("seed", seed, 0, 2**64),
        ):
            check_integer(name, value, least, below)
        if form not in _FORMS:
            raise ValueError(f"form must be 'pair' or 'phase', got {form!r}")
        if form == "pair" and num_features % 2:
            raise ValueError(f"num_features must be even for form='pair', got {num_features}")
        if not isinstance(frequencies, str) or frequencies not in SCHEMES:
            raise ValueError(
                f"frequencies must be 'iid', 'orthogonal' or 'structured', got {frequencies!r}"
            )
        self._made_with: dict[str, Any] = {
            "num_features": int(num_features),
            "dim": int(dim),
            "seed": int(seed),
            "form": form,
            "frequencies": frequencies,
            "kernel": spelled_out(kernel),
            "generator": VERSION,
        }
        self._columns = checked_columns(columns, self.dim)
        # One of our own, as the other may change.
        self._kernel = kernel_of(self._made_with["kernel"])
        terms = self._kernel.terms()
        self._features = Features(
            terms,
            SCHEMES[self.frequencies],
            self.dim,
            self.num_features // 2 if form == "pair" else self.num_features,
            self.seed,
            form == "pair",
        )
        self._coefficients = terms.coefficients.detach()
        size = len(terms.families) * self.num_features
        self._numbers = torch.zeros(HEAD + size, dtype=torch.float64, device="cpu")

    # --- what it is ------------------------------------------------------------------------------

    @property
    def num_features(self) -> int:
        """D, the number of features for each bandwidth."""
        return int(self._made_with["num_features"])

    @property
    def kernel(self) -> Kernel:
        """The kernel, of fixed numbers."""
        return self._kernel

    @property
    def dim(self) -> int:
        """The width of the points."""
        return int(self._made_with["dim"])

    @property
    def seed(self) -> int:
        """The seed of the frequencies."""
        return int(self._made_with["seed"])

    @property
    def form(self) -> str:
        """``"pair"`` or ``"phase"``."""
        return str(self._made_with["form"])

    @property
    def frequencies(self) -> str:
        """How the frequencies are drawn."""
        return str(self._made_with["frequencies"])

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names of the features, if they have any."""
        return self._columns

    @property
    def count(self) -> int:
        """How many rows it has seen."""
        return int(self._numbers[0])

    @property
    def weight(self) -> float:
        """The sum of their weights."""
        return float(self._numbers[1])

    def __repr__(self) -> str:
        return (
            f"MeanEmbedding({self.num_features}, {self.kernel!r}, dim={self.dim}, seed={self.seed},"
            f" form={self.form!r}, frequencies={self.frequencies!r}): {self.count} rows"
        )

    # --- adding up -------------------------------------------------------------------------------

    def update(self, batch: Points, weights: Points | None = None) -> Self:
        """Take in rows.

        Args:
            batch: [n, d], float16, bfloat16, float32 or float64; float16 and bfloat16 count in
                float32. No rows are welcome, as some parts of a data set may be empty. NaN and
                infinity make the sketch NaN.
            weights: [n], of any floating dtype, finite and not negative; 1 each by default.

        Returns:
            The sketch itself. If anything is raised it is as it was.

        Raises:
            TypeError: an argument that is no tensor and no array, or of another dtype.
            ValueError: a wrong rank, width, length or device, or a weight that is negative or not
                finite; on a GPU such a weight makes the sketch NaN.
            NotImplementedError: tensors on a CUDA device, in a build without CUDA kernels.
        """
        x = checked_batch(batch, self.dim)
        w = None if weights is None else checked_weights(weights, x)
        n = len(x)
        if n == 0:
            return self
        with torch.no_grad():
            sums = self._features.sums(x, w).cpu()
        total, squares = (n, n) if w is None else (float(w.sum()), float(w.square().sum()))
        # At once, so that an interruption finds all of it or nothing.
        self._numbers = self._numbers + torch.cat([doubles(n, total, squares), sums.flatten()])
        return self

    def merge(self, other: FeatureSums) -> Self:
        """The sketch of the rows of both, a new one; also ``a + b``, and ``sum(sketches)``.

        Raises:
            TypeError: it is no sketch.
            ValueError: it was made with something else; the message names it.
        """
        self._check_alike(other)
        merged = self._with(self._numbers + other._numbers)
        merged._columns = self._columns or other._columns
        return merged

    def __add__(self, other: object) -> Self:
        return self.merge(other) if isinstance(other, FeatureSums) else NotImplemented

    def __radd__(self, other: object) -> Self:
        # What sum() begins with.
        return self._with(self._numbers) if type(other) is int and other == 0 else NotImplemented

    def empty(self) -> Self:
        """A sketch of no rows, made with the same: what another part of the data is to go into."""
        return self._with(torch.zeros_like(self._numbers))

    def state(self) -> Tensor:
        """Its numbers as one tensor, for processes that add theirs up.

        After ``torch.distributed.all_reduce(state)``, the sum over processes,
        ``sketch.from_state(state)`` is the sketch of all rows.

        Returns:
            [6 + K D], float64, on the CPU, a copy. Before the numbers stands a mark, by which
            :meth:`from_state` sees whether all were made with the same.
        """
        mark = self._mark()
        return torch.cat([doubles(1, mark, mark * mark), self._numbers])

    def from_state(self, state: Tensor) -> Self:
        """The sketch, made with the same as this one, of such numbers.

        Args:
            state: what :meth:`state` returned, or the sum of several.

        Raises:
            TypeError: it is no tensor of float64.
            ValueError: its shape is another, or among those that it is the sum of were sketches
                that were made with something else.
        """
        if not isinstance(state, Tensor) or state.dtype != torch.float64:
            what = state.dtype if isinstance(state, Tensor) else type(state).__name__
            raise TypeError(f"state must be a torch.Tensor of float64, got {what}")
        shape = [_MARKS + len(self._numbers)]
        if list(state.shape) != shape:
            raise ValueError(f"state must be of shape {shape}, got {list(state.shape)}")
        state = state.detach().cpu()
        several, mark = float(state[0]), self._mark()
        # Of numbers with this sum, only equal ones have so small a sum of squares.
        if not several >= 1 or state[1:_MARKS].tolist() != [several * mark, several * mark * mark]:
            raise ValueError(
                "state must be of sketches that were all made with the same kernel, width, number"
                " of features, seed, form and frequencies as this one"
            )
        return self._with(state[_MARKS:].clone())

    # --- inside ----------------------------------------------------------------------------------

    def _with(self, numbers: Tensor) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _numbers=numbers)
        return other

    def _mark(self) -> int:
        text = json.dumps(self._made_with, sort_keys=True)
        return int(hashlib.sha256(text.encode()).hexdigest(), 16) % (1 << _MARK_BITS)

    def _check_alike(self, other: FeatureSums) -> None:
        if not isinstance(other, FeatureSums):
            raise TypeError(f"other must be a MeanEmbedding, got {type(other).__name__}")
        found = [
            f"{name} ({_shown(name, self)} and {_shown(name, other)})"
            for name, mine in self._made_with.items()
            if mine != other._made_with[name]
        ]
        if self._columns and other._columns and self._columns != other._columns:
            found.append(f"columns ({list(self._columns)} and {list(other._columns)})")
        if found:
            raise ValueError(f"the two sketches must be made with the same: {', '.join(found)}")


def doubles(*numbers: float) -> Tensor:
    """Numbers as a tensor on the CPU."""
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")


def _shown(name: str, sketch: FeatureSums) -> str:
    return repr(sketch.kernel) if name == "kernel" else repr(sketch._made_with[name])
