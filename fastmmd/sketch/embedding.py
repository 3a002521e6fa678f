"""The mean embedding of a sample in random features, a sketch of it that merges with others."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmmd.frequencies import SCHEMES, VERSION, block_of
from fastmmd.kernels import Kernel
from fastmmd.sketch import files
from fastmmd.sketch.checks import (
    Points,
    check_integer,
    checked_batch,
    checked_columns,
    checked_weights,
)
from fastmmd.sketch.features import Features
from fastmmd.sketch.kernels import kernel_of, spelled_out

__all__ = ["MeanEmbedding"]

_FORMS = ("pair", "phase")
_ESTIMATORS = ("biased", "unbiased")
_MANY_BLOCKS = 8  # from which on the spread is that between blocks of dependent frequencies

# The numbers of a sketch: how many rows, the sums of their weights and of the squares of these, and
# then the sums of the features. Before them, on the way between processes: how many sketches these
# are the sum of, and as often a number that stands for what they were made with, and its square.
_HEAD, _MARKS = 3, 3
_MARK_BITS = 20  # so that sums of squares are exact for up to 2^13 processes


class MeanEmbedding:
    r"""A sketch of a sample that is small, merges, and gives the MMD to any other of its kind.

    It holds the sums ``S_kj = sum_i w_i phi_kj(x_i)`` of random features whose inner product is the
    kernel on average, for each bandwidth k of the kernel, the sum W of the weights w_i, 1 each if
    none are given, and how many rows there were. Two samples that never meet on one machine are
    sketched where they are, and

    ``mmd2 = sum_k c_k (2 / D) sum_j (S_kj / W - S'_kj / W')^2``

    is an estimate without bias of the biased :func:`fastmmd.mmd2`, whose standard error is known
    and falls as D^(-1/2) (Rahimi and Recht, "Random features for large-scale kernel machines",
    NeurIPS 2007; Zhao and Meng, "FastMMD", Neural Computation 2015).

    With F random frequencies w_j, and the rate r_k of a bandwidth:

    - ``form="pair"``: ``cos(r_k <w_j, x>)`` and ``sin(r_k <w_j, x>)``, D = 2 F. The features of
      each point have the length that they should have, and for the same D the error is smaller
      (Sutherland and Schneider, "On the error of random Fourier features", UAI 2015);
    - ``form="phase"``: ``cos(r_k <w_j, x> + b_j)``, D = F.

    Everything is summed in float64. :meth:`merge` adds, so that it is commutative, and associative
    to the rounding of float64. The same seed gives the same features on every machine and with
    every release of torch and NumPy, whatever the dtype of the data, see
    :mod:`fastmmd.frequencies`. A sketch takes 8 K D bytes, whatever the number of rows; an update
    takes O((n + D) d) memory besides.

    Args:
        num_features: D, for each bandwidth; even for pairs.
        kernel: of :class:`Gaussian`, :class:`Laplacian`, :class:`Matern`,
            :class:`InverseMultiquadric` and :class:`RationalQuadratic`, and sums and multiples of
            these. Bandwidths and weights are taken as they are now. A heuristic needs all of the
            data, which a sketch never sees; a :class:`RunningBandwidth` that has seen some rows is
            accepted.
        dim: d, the width of the points.
        seed: of the frequencies, at least 0 and below 2^64. Sketches merge if they are of one seed.
        form: ``"pair"`` or ``"phase"``.
        frequencies: ``"iid"``; ``"orthogonal"``, in blocks of d, with less variance; or
            ``"structured"``, products of Hadamard matrices and random signs, for wide points.
        columns: names of the d features, if they have any; those of sketches that meet must agree.

    Raises:
        TypeError: a number that is no integer, or no kernel.
        ValueError: fewer than one feature, an odd number of them for pairs, no width, a seed out of
            range, an unknown form or scheme, a kernel that is no mean of cosines, a heuristic
            bandwidth, or another number of names than d.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(400, 4, generator=generator)
        >>> y = torch.randn(300, 4, generator=generator) + 1
        >>> kernel = fm.Gaussian(2.0)
        >>> a = fm.MeanEmbedding(4096, kernel, dim=4).update(x[:100])  # on one machine
        >>> a = a.merge(a.empty().update(x[100:]))                     # and on another
        >>> b = a.empty().update(y)
        >>> bool(abs(a.mmd2(b) - fm.mmd2(x, y, kernel)) < 4 * a.standard_error(b))
        True
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
        self._numbers = torch.zeros(_HEAD + size, dtype=torch.float64, device="cpu")

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

    def update(self, batch: Points, weights: Points | None = None) -> MeanEmbedding:
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
        self._numbers = self._numbers + torch.cat([_doubles(n, total, squares), sums.flatten()])
        return self

    def merge(self, other: MeanEmbedding) -> MeanEmbedding:
        """The sketch of the rows of both, a new one; also ``a + b``, and ``sum(sketches)``.

        Raises:
            TypeError: it is no sketch.
            ValueError: it was made with something else; the message names it.
        """
        self._check_alike(other)
        merged = self._with(self._numbers + other._numbers)
        merged._columns = self._columns or other._columns
        return merged

    def __add__(self, other: object) -> MeanEmbedding:
        return self.merge(other) if isinstance(other, MeanEmbedding) else NotImplemented

    def __radd__(self, other: object) -> MeanEmbedding:
        # What sum() begins with.
        return self._with(self._numbers) if type(other) is int and other == 0 else NotImplemented

    def empty(self) -> MeanEmbedding:
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
        return torch.cat([_doubles(1, mark, mark * mark), self._numbers])

    def from_state(self, state: Tensor) -> MeanEmbedding:
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

    # --- comparing -------------------------------------------------------------------------------

    def mmd2(self, other: MeanEmbedding, estimator: str = "biased") -> float:
        """The squared MMD between the two samples, estimated from the features.

        Args:
            other: a sketch that was made with the same.
            estimator: ``"biased"`` or ``"unbiased"``, as for :func:`fastmmd.mmd2`. For
                ``form="phase"`` the diagonal, which the latter leaves out, is known on average
                only.

        Returns:
            The estimate; without bias, over seeds, for :func:`fastmmd.mmd2` of the samples.

        Raises:
            TypeError: it is no sketch.
            ValueError: it was made with something else, one of the two has seen no rows, or for
                ``"unbiased"`` fewer than two with a positive weight; an unknown estimator.
        """
        return float(self._each(other, estimator).mean())

    def standard_error(self, other: MeanEmbedding, estimator: str = "biased") -> float:
        """The standard error of :meth:`mmd2` that comes from the random frequencies.

        It is taken from the spread over the frequencies. Those that are orthogonal or structured
        depend on each other within blocks; the spread is over the means of blocks where there are
        eight or more of them, and else as if they were independent, which is rather too large an
        error. How much the MMD itself varies with the samples it does not say.

        Args:
            other: as for :meth:`mmd2`.
            estimator: as for :meth:`mmd2`.

        Returns:
            The standard error; NaN for a single frequency.

        Raises:
            TypeError: as :meth:`mmd2`.
            ValueError: as :meth:`mmd2`.
        """
        each = self._each(other, estimator)
        block = block_of(SCHEMES[self.frequencies], self.dim)
        blocks = len(each) // block
        if blocks >= _MANY_BLOCKS:
            each = each[: blocks * block].reshape(blocks, block).mean(1)
        return math.nan if len(each) == 1 else float(each.std()) / math.sqrt(len(each))

    def pvalue_bound(self, other: MeanEmbedding) -> float:
        r"""A bound on the p-value of "the two samples come from one distribution".

        The features of a point have a bounded length: at most C = k(0) in square for pairs, 2 k(0)
        for phases. If all rows are independent and of one distribution, then with
        ``s = sum_i w_i^2 / W^2`` of one sample plus that of the other, 1/n + 1/m without weights,
        the biased estimate exceeds ``C s (1 + sqrt(2 log(1 / p)))^2`` with a probability of at most
        p: by McDiarmid's inequality, as in theorem 7 of Gretton et al., "A kernel two-sample test"
        (JMLR 2012). This holds for any distribution, size and number of features, and for weights
        that do not depend on the rows. A test that sees the data, as
        :func:`fastmmd.stats.two_sample_test`, finds smaller differences.

        Args:
            other: a sketch that was made with the same.

        Returns:
            The smallest such p, and 1 where there is none. NaN if a sketch is.

        Raises:
            TypeError: as :meth:`mmd2`.
            ValueError: as :meth:`mmd2`.
        """
        squared = self.mmd2(other)
        bound = self._diagonal() * (1 if self.form == "pair" else 2)
        scale = bound * sum(float(s._numbers[2]) / s.weight**2 for s in (self, other))
        if math.isnan(squared):
            return math.nan
        excess = math.sqrt(squared / scale) - 1
        # A bound of 0 would be too good.
        return max(math.exp(-excess * excess / 2), sys.float_info.min) if excess > 0 else 1.0

    def expected_mmd2(self, other: MeanEmbedding) -> float:
        """The mean of the biased :meth:`mmd2` if both samples came from one distribution.

        ``(1 / n + 1 / m) (k(0) - |mu|^2)`` for samples of that size, with the length of the mean
        embedding mu taken from both together: how large a value says nothing.

        Args:
            other: a sketch that was made with the same.

        Raises:
            TypeError: as :meth:`mmd2`.
            ValueError: as :meth:`mmd2`.
        """
        self._check_comparable(other)
        both = self.merge(other)
        square = float(_halves(self._coefficients @ both._means().square(), self.form).mean())
        scale = sum(float(s._numbers[2]) / s.weight**2 for s in (self, other))
        return scale * max(0.0, self._diagonal() - square)

    # --- files -----------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, which appears when it is complete, or not at all.

        Args:
            path: ends in ``.npz``, or in ``.safetensors``, which needs the extra ``sketch``. A file
                that is there is replaced.

        Raises:
            ValueError: another suffix.
            OSError: the file cannot be written.
            ImportError: safetensors is not installed.
        """
        count, weight, squares = self._numbers[:_HEAD].tolist()
        header = {
            **self._made_with,
            "columns": None if self._columns is None else list(self._columns),
            "count": int(count),
            "weight": weight,
            "squared_weights": squares,
        }
        files.write(path, header, self._numbers[_HEAD:].numpy())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MeanEmbedding:
        """Read it from a file that :meth:`save` wrote. Nothing in the file is executed.

        Args:
            path: ends in ``.npz`` or ``.safetensors``.

        Raises:
            ValueError: the file is damaged, holds something else, or is of a later format.
            OSError: the file cannot be read.
            ImportError: safetensors is not installed.
        """
        header, sums = files.read(path)
        generator = header.get("generator")
        if generator != VERSION:
            raise ValueError(
                f"{os.fspath(path)}: its frequencies are drawn in a way {generator!r}, and this"
                f" fastmmd knows {VERSION}"
            )
        try:
            if header["num_features"] > len(sums):  # before room is made for so many
                raise ValueError("its numbers do not fit together")
            sketch = cls(
                header["num_features"],
                kernel_of(header["kernel"]),
                header["dim"],
                header["seed"],
                header["form"],
                header["frequencies"],
                header["columns"],
            )
            head = [float(header[name]) for name in ("count", "weight", "squared_weights")]
            numbers = torch.cat([_doubles(*head), torch.from_numpy(sums)])
            if numbers.shape != sketch._numbers.shape or not min(head) >= 0:
                raise ValueError("its numbers do not fit together")
        except (KeyError, TypeError, ValueError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{os.fspath(path)}: is no sketch, or is damaged: {reason}") from error
        sketch._numbers = numbers
        return sketch

    # --- inside ----------------------------------------------------------------------------------

    def _with(self, numbers: Tensor) -> MeanEmbedding:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _numbers=numbers)
        return other

    def _mark(self) -> int:
        text = json.dumps(self._made_with, sort_keys=True)
        return int(hashlib.sha256(text.encode()).hexdigest(), 16) % (1 << _MARK_BITS)

    def _diagonal(self) -> float:
        """k(x, x)."""
        return float(self._coefficients.sum())

    def _means(self) -> Tensor:
        """The mean features, [K, D]."""
        return self._numbers[_HEAD:].reshape(len(self._coefficients), -1) / self._numbers[1]

    def _each(self, other: MeanEmbedding, estimator: str) -> Tensor:
        """What each frequency estimates, [F]."""
        if estimator not in _ESTIMATORS:
            raise ValueError(f"estimator must be 'biased' or 'unbiased', got {estimator!r}")
        self._check_comparable(other)
        mine, others = self._means(), other._means()
        each = self._coefficients @ (mine - others).square()
        if estimator == "unbiased":
            for sketch, means in ((self, mine), (other, others)):
                # |mu|^2 without the diagonal, of which sum_i a_i^2 k(x_i, x_i) is the part.
                part = float(sketch._numbers[2]) / sketch.weight**2
                if not part < 1:
                    raise ValueError(
                        "each sketch must have at least 2 rows of positive weight for"
                        f" estimator='unbiased', got one of {sketch.count}"
                    )
                each = each + (self._coefficients @ means.square()) * (part / (1 - part))
                each = each - self._diagonal() / 2 * (part / (1 - part))
        return _halves(each, self.form)

    def _check_comparable(self, other: MeanEmbedding) -> None:
        self._check_alike(other)
        for sketch in (self, other):
            if not sketch.weight > 0:
                raise ValueError(
                    "each sketch must have seen rows of positive weight, got one of"
                    f" {sketch.count} rows"
                )

    def _check_alike(self, other: MeanEmbedding) -> None:
        if not isinstance(other, MeanEmbedding):
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


def _doubles(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")


def _halves(each: Tensor, form: str) -> Tensor:
    """From numbers of the D features to those of the F frequencies, whose mean is the sum."""
    if form == "phase":
        return 2 * each
    half = len(each) // 2
    return each[:half] + each[half:]


def _shown(name: str, sketch: MeanEmbedding) -> str:
    return repr(sketch.kernel) if name == "kernel" else repr(sketch._made_with[name])
