"""Embeddings that bring two domains together: one eigenproblem, or a sequence of them.

The rows Z of the problem are X itself, X projected, or a kernel matrix; with e a column that has
1/n on source rows and -1/m on target rows, ``|Z' e|`` is how far apart the means of the two lie.
Wanted are directions a along which the rows scatter much and the means differ little:

    maximise    a' Z' H Z a / (a' Z' M Z a + reg a' a),    M = sum_i e_i e_i'

M is of low rank, so that the denominator's matrix has a square root in closed form, and what is
left is one symmetric eigenproblem.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, clone
from torch import Tensor
from torch.nn.functional import normalize

from fastmmd.kernels import Kernel
from fastmmd.transfer._base import (
    Domains,
    DomainTransformer,
    check_components,
    check_count,
    check_number,
    labels,
    like,
    points,
    split,
)
from fastmmd.transfer._kernels import FittedKernel, check_kernel
from fastmmd.transfer._matching import nearest

__all__ = ["JointDistributionAdaptation", "TransferComponentAnalysis"]


class _Embedding(ClassNamePrefixFeaturesOutMixin, DomainTransformer):
    """What TCA and JDA share: the rows of the problem, before, and the embedding, after it."""

    n_components: int
    kernel: str | Kernel
    reg: float

    def _start(self, rows: Tensor, domains: Domains) -> Tensor:
        """The rows of the eigenproblem."""
        reg = check_number("reg", self.reg, zero=False)
        kernel = check_kernel(self.kernel, "primal")
        n, d = rows.shape
        self._embedded_by: FittedKernel | Tensor
        if kernel in ("primal", "linear"):
            k = check_components(
                self.n_components, min(n, d), f"the smaller of {n} rows and {d} features"
            )
            self._embedded_by = _span(rows, kernel == "linear")
            z = rows @ self._embedded_by
        else:
            k = check_components(self.n_components, n, "the number of rows")
            self._embedded_by = FittedKernel(kernel, rows, domains)
            self._rows = rows
            z = self._embedded_by.matrix(rows, rows)
        self._n_features_out, self._reg = k, reg
        self._scatter: Tensor | None = None
        return z

    def _solve(self, z: Tensor, differences: Tensor) -> tuple[Tensor, Tensor]:
        if self._scatter is None:
            centred = z - z.mean(0)
            self._scatter = centred.T @ centred
        return _components(z, self._scatter, differences, self._reg, self._n_features_out)

    def _finish(self, X: Any, a: Tensor, values: Tensor) -> None:
        if isinstance(self._embedded_by, Tensor):
            a = self._embedded_by @ a
            self._embedded_by = a  # [d, n_components]: all that transform needs
        self.components_ = like(a.T, X)
        self.eigenvalues_ = like(values, X)
        self._coefficients = a
        self._scatter = None

    def transform(self, X: Any) -> Any:
        """Embed rows, of either domain, whether ``fit`` saw them or not.

        Args:
            X: [n, d], NumPy array or tensor of real numbers.

        Returns:
            [n, n_components], of the kind, device and floating dtype of X.

        Raises:
            NotFittedError: ``fit`` was not called.
            TypeError: as ``fit``.
            ValueError: a width other than that of ``fit``, NaN or infinity.
        """
        rows = points(self, X, reset=False)
        z = rows
        if isinstance(self._embedded_by, FittedKernel):
            z = self._embedded_by.matrix(rows, self._rows.to(rows.device))
        return like(z @ self._coefficients.to(rows.device), X)


class TransferComponentAnalysis(_Embedding):
    r"""Transfer component analysis (TCA): what both domains vary in, and their means agree on.

    With K the kernel matrix of all rows, H the centring matrix and ``M = e e' / |e|^2``, where e is
    1/n on the n source rows and -1/m on the m target rows, the embedding is ``K A`` with the
    columns of A the eigenvectors of ``(K M K + reg I) a = 1/mu K H K a`` with the largest mu, each
    of unit length: equation (9) of Pan, Tsang, Kwok and Yang, "Domain adaptation via transfer
    component analysis" (IEEE Transactions on Neural Networks 2011). ``|K e|^2`` is what is left of
    the MMD.

    ``kernel="primal"`` looks for directions of the features instead, ``X W``, with
    ``(X' M X + reg I) w = 1/mu X' H X w``: another regulariser, and another result than
    ``"linear"``. Both take O(n d + min(n, d)^2) memory, and O(min(n, d)^3 + n d min(n, d)) time:
    the linear kernel's matrix has the column space of X, and the problem is solved in there. Any
    other kernel takes the n x n matrix, and O(n^3) time.

    Everything is computed in float64, on the device of X.

    Args:
        n_components: the number of columns of the result, at most that of the rows, and of the
            features for ``"primal"`` and ``"linear"``.
        kernel: ``"primal"``; ``"linear"``, ``"rbf"``, ``"laplacian"``, ``"inverse_multiquadric"``,
            ``"rational_quadratic"``, ``"matern"``, ``"polynomial"``, ``"cosine"``, with the median
            heuristic for the bandwidth; or a :class:`fastmmd.Kernel`, but for Energy.
        reg: what keeps the coefficients small, positive, in units of the squares of Z.

    Attributes:
        components_: [n_components, d] for ``"primal"`` and ``"linear"``, directions in the space of
            X; else [n_components, n], coefficients of the rows.
        eigenvalues_: [n_components], mu, the largest first.
        n_features_in_: d.

    Example:
        >>> import numpy as np
        >>> from fastmmd.transfer import TransferComponentAnalysis
        >>> x = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [9.0, 1.0], [9.0, 2.0], [9.0, 3.0]])
        >>> domain = np.array([0, 0, 0, -1, -1, -1])
        >>> tca = TransferComponentAnalysis(1, kernel="primal", reg=0.1)
        >>> tca.fit_transform(x, sample_domain=domain).round(3).T  # the feature that they share
        array([[1., 2., 3., 1., 2., 3.]])
    """

    def __init__(
        self, n_components: int = 2, kernel: str | Kernel = "linear", reg: float = 1.0
    ) -> None:
        self.n_components = n_components
        self.kernel = kernel
        self.reg = reg

    def _learn(self, X: Any, rows: Tensor, domains: Domains) -> None:
        z = self._start(rows, domains)
        self._finish(X, *self._solve(z, _of_means(domains)))


class JointDistributionAdaptation(_Embedding):
    r"""Joint distribution adaptation (JDA): TCA that looks at the means of each class, too.

    As :class:`TransferComponentAnalysis`, with ``M = C e e' + sum_c e_c e_c'`` divided by its
    Frobenius norm, C the number of classes and e_c as e, of the rows of class c alone. The classes
    of target rows are guessed: the first eigenproblem does without them, and each further one takes
    them from a classifier that was trained on the source rows of the embedding before. From Long,
    Wang, Ding, Sun and Yu, "Transfer feature learning with joint distribution adaptation"
    (ICCV 2013), with the weight C of the first term that their results are reproduced with.

    The classifier gets embedded rows of unit length. It is 1-nearest-neighbour by default, of
    equally near source rows the first. The result of ``transform`` is not normalised.

    Args:
        n_components: as for :class:`TransferComponentAnalysis`.
        kernel: as there.
        reg: as there.
        n_iter: the number of eigenproblems.
        classifier: a scikit-learn classifier, of which a clone is fitted; None for 1-nearest-
            neighbour.

    Attributes:
        components_: as for :class:`TransferComponentAnalysis`.
        eigenvalues_: as there.
        classes_: the class labels.
        pseudo_labels_: [m], the classes of the target rows by the last embedding, in their order.
        n_features_in_: d.

    Example:
        >>> import numpy as np
        >>> from fastmmd.transfer import JointDistributionAdaptation
        >>> x = np.array([[1.0, 0, 0], [0, 1, 0], [1, 0.1, 2], [0.1, 1, 2]])
        >>> jda = JointDistributionAdaptation(2, kernel="primal", reg=0.1)
        >>> _ = jda.fit(x, y=["cat", "dog", "", ""], sample_domain=[0, 0, -1, -1])
        >>> jda.pseudo_labels_
        array(['cat', 'dog'], dtype='<U3')
    """

    def __init__(
        self,
        n_components: int = 2,
        kernel: str | Kernel = "linear",
        reg: float = 1.0,
        n_iter: int = 10,
        classifier: Any = None,
    ) -> None:
        self.n_components = n_components
        self.kernel = kernel
        self.reg = reg
        self.n_iter = n_iter
        self.classifier = classifier

    def fit(
        self, X: Any, y: Any = None, *, sample_domain: Any = None
    ) -> JointDistributionAdaptation:
        """Find the embedding.

        Args:
            X: [n, d], the rows of both domains, NumPy array or tensor of real numbers.
            y: [n], the class labels, numbers or strings; what it holds for target rows is ignored.
            sample_domain: [n] integers, >= 0 for source rows, < 0 for target rows.

        Returns:
            This object.

        Raises:
            TypeError: data or domain labels of another type, a parameter of another type.
            ValueError: NaN or infinity, a wrong rank or shape, one domain only, a source row
                without a label, an unknown kernel, ``n_components`` below 1 or above what there can
                be, ``reg`` not positive, ``n_iter`` below 1, a classifier that predicts a class
                which the source does not have.
        """
        iterations = check_count("n_iter", self.n_iter)
        rows = points(self, X, reset=True, least=2)
        domains = split(sample_domain, rows)
        z = self._start(rows, domains)
        named = labels(y, z, domains.source, "source")
        self.classes_, numbered = np.unique(named, return_inverse=True)
        source = torch.from_numpy(numbered).to(z.device)
        differences = _of_means(domains) * len(self.classes_) ** 0.5
        a, values = self._solve(z, differences)
        target = self._classify(normalize(z @ a), domains, named, source)
        for _ in range(iterations - 1):
            of_classes = _of_class_means(domains, source, target, len(self.classes_))
            a, values = self._solve(z, torch.cat([differences, of_classes], 1))
            target = self._classify(normalize(z @ a), domains, named, source)
        self.pseudo_labels_ = self.classes_[target.cpu().numpy()]
        self._finish(X, a, values)
        return self

    def _classify(self, embedded: Tensor, domains: Domains, named: Any, source: Tensor) -> Tensor:
        """The numbers of the target rows' classes."""
        known, unknown = embedded[domains.source], embedded[domains.target]
        if self.classifier is None:
            return source[nearest(unknown, known)[0]]
        classifier = clone(self.classifier).fit(known.cpu().numpy(), named)
        predicted = np.asarray(classifier.predict(unknown.cpu().numpy()))
        foreign = np.setdiff1d(predicted, self.classes_)
        if len(foreign):
            raise ValueError(
                f"classifier must predict classes of the source, {self.classes_.tolist()}, got"
                f" {foreign.tolist()}"
            )
        return torch.from_numpy(np.searchsorted(self.classes_, predicted)).to(embedded.device)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


def _of_means(domains: Domains) -> Tensor:
    """e, [N, 1]: with it, the difference of the domains' means of Z is Z' e."""
    n, m = len(domains.source), len(domains.target)
    e = torch.empty(n + m, 1, dtype=torch.float64, device=domains.source.device)
    e[domains.source], e[domains.target] = 1 / n, -1 / m
    return e


def _of_class_means(domains: Domains, source: Tensor, target: Tensor, count: int) -> Tensor:
    """e_c, [N, C], of classes by number. Of one that no target row has, there is the source half.

    So have the code and the results of the paper it; the sum is then no difference of means.
    """
    size = len(source) + len(target)
    e = torch.zeros(size, count, dtype=torch.float64, device=source.device)
    for sign, rows, classes in ((1, domains.source, source), (-1, domains.target, target)):
        sizes = torch.bincount(classes, minlength=count).double()
        e[rows, classes] = sign / sizes[classes]
    return e


def _span(rows: Tensor, linear: bool) -> Tensor:
    """Q [d, r], r <= min(n, d), such that directions in the range of Q are all that matter.

    With X = U S V', the rows of the problem are U S and Q = V; for the linear kernel, whose matrix
    is U S^2 U', they are U S^2 and Q = V S. The smaller of the two Gram matrices has S and one of
    the factors.
    """
    n, d = rows.shape
    if n < d:
        squares, u = torch.linalg.eigh(rows @ rows.T)
        vs = rows.T @ u
        # What has no length has no direction, and gets none.
        return vs if linear else normalize(vs * (squares > squares[-1] * n * _EPSILON), dim=0)
    if not linear:
        return torch.eye(d, dtype=rows.dtype, device=rows.device)
    squares, v = torch.linalg.eigh(rows.T @ rows)
    return v * squares.clamp(min=0).sqrt()


def _components(
    z: Tensor, scatter: Tensor, differences: Tensor, reg: float, k: int
) -> tuple[Tensor, Tensor]:
    """The first k solutions of ``Z' H Z a = mu (Z' M Z + reg I) a``, each of unit length.

    Args:
        z: [N, r].
        scatter: Z' H Z, [r, r].
        differences: E [N, q] with ``M = E E' / |E E'|``, in the Frobenius norm.
        reg: positive.
        k: at most r.

    Returns:
        [r, k], with the entry of largest magnitude of each column positive, and the k values of mu.
    """
    norm = torch.linalg.matrix_norm(differences.T @ differences)
    f = z.T @ (differences / norm.sqrt())
    # f f' + reg I is reg times the inverse square of I - Q diag(shrink) Q'
    q, s, _ = torch.linalg.svd(f, full_matrices=False)
    weighed = q * (1 - (reg / (reg + s.square())).sqrt())
    half = scatter - (scatter @ weighed) @ q.T
    values, vectors = torch.linalg.eigh(half - weighed @ (q.T @ half))
    values, vectors = values[-k:].flip(0) / reg, vectors[:, -k:].flip(1)
    a = normalize(vectors - weighed @ (q.T @ vectors), dim=0)
    largest = a.gather(0, a.abs().argmax(0, keepdim=True))
    return torch.where(largest < 0, -a, a), values


_EPSILON = torch.finfo(torch.float64).eps
