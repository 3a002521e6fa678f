"""The mean embedding of a sample in random features, a sketch of it that merges with others."""

from __future__ import annotations

import math
import os
import sys

import torch
from torch import Tensor

from fastmmd.frequencies import SCHEMES, VERSION, block_of
from fastmmd.sketch import files
from fastmmd.sketch.kernels import kernel_of
from fastmmd.sketch.sums import HEAD, FeatureSums, doubles

__all__ = ["MeanEmbedding"]

_ESTIMATORS = ("biased", "unbiased")
_MANY_BLOCKS = 8  # from which on the spread is that between blocks of dependent frequencies


class MeanEmbedding(FeatureSums):
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
        count, weight, squares = self._numbers[:HEAD].tolist()
        header = {
            **self._made_with,
            "columns": None if self._columns is None else list(self._columns),
            "count": int(count),
            "weight": weight,
            "squared_weights": squares,
        }
        files.write(path, header, self._numbers[HEAD:].numpy())

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
            numbers = torch.cat([doubles(*head), torch.from_numpy(sums)])
            if numbers.shape != sketch._numbers.shape or not min(head) >= 0:
                raise ValueError("its numbers do not fit together")
        except (KeyError, TypeError, ValueError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{os.fspath(path)}: is no sketch, or is damaged: {reason}") from error
        sketch._numbers = numbers
        return sketch

    # --- inside ----------------------------------------------------------------------------------

    def _diagonal(self) -> float:
        """k(x, x)."""
        return float(self._coefficients.sum())

    def _means(self) -> Tensor:
        """The mean features, [K, D]."""
        return self._numbers[HEAD:].reshape(len(self._coefficients), -1) / self._numbers[1]

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


def _halves(each: Tensor, form: str) -> Tensor:
    """From numbers of the D features to those of the F frequencies, whose mean is the sum."""
    if form == "phase":
        return 2 * each
    half = len(each) // 2
    return each[:half] + each[half:]
