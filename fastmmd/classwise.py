"""Discrepancies between classes: the MMD family with a weight for each pair of points.

All have weights of the form ``sum_c u_ic v_jc``, an inner product of what two points have to do
with each class. So the kernel of features times the linear kernel of class weights, in the one pass
over the pairs that every MMD is, gives the sum over classes without a loop over them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmmd import ops
from fastmmd.checks import BIASED, CROSS, check_points, check_weights, is_plain
from fastmmd.joint import product_terms
from fastmmd.kernels import Kernel, as_kernel
from fastmmd.terms import FIXED, LINEAR, Terms, numbers


def local_mmd2(
    x: Tensor,
    y: Tensor,
    y_source: Tensor,
    p_target: Tensor,
    num_classes: int,
    kernel: Kernel | None = None,
    *,
    presence: str = "argmax",
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    differentiate_classes: bool = False,
) -> Tensor:
    r"""Local MMD: the mean over classes of the biased MMD^2 between the domains' parts in a class.

    With s_ic the membership of source point i in class c (of labels, 1 for its own class and 0 for
    others), ``v_ic = s_ic / sum_i s_ic``, and t_jc and w_jc in the same way of the target,

    ``1 / |C| sum_{c in C} [sum_ij v_ic v_jc k(x_i, x_j) + sum_ij w_ic w_jc k(y_i, y_j)
    - 2 sum_ij v_ic w_jc k(x_i, y_j)]``,

    which is LMMD of Zhu et al., "Deep subdomain adaptation network for image classification" (IEEE
    Transactions on Neural Networks and Learning Systems 2020), with the set C that its authors'
    program takes: the classes that are present in both domains. By ``presence`` a class is present
    in a domain

    - ``"argmax"``, as there: if some point has it as its label or as its most probable class;
    - ``"mass"``: if some point has any membership in it. Target probabilities that come from a
      softmax then make every class present in the target.

    Other classes have no share. If no class is present in both, the result is 0, as are its
    gradients. The parts of a class need not be of one size, nor the domains.

    Memory is O((n + m)(d + num_classes)), and it is one pass: the kernel of the features times a
    linear one of the class weights. Heuristic bandwidths look at all features of both domains.
    Differentiable in x, y, the sample weights, the tensor bandwidths and weights of the kernel, and
    on request in the probabilities. Nothing is synchronised on a GPU.

    Args:
        x: features of the source domain, [n, d], float16, bfloat16, float32 or float64; or a batch
            of such samples, [B, n, d], when all other arguments are batches too.
        y: features of the target domain, [m, d] or [B, m, d], of the dtype and on the device of x.
        y_source: the classes of x: integer labels from 0 to num_classes - 1, [n], or
            probabilities, [n, num_classes], of any floating dtype.
        p_target: those of y, in the same way: as a rule the softmax of a classifier's output,
            [m, num_classes]; labels, [m], as of a clustering, will do.
        num_classes: the number of classes, 2 or more.
        kernel: a :class:`fastmmd.Kernel`; ``Gaussian("mean")`` by default.
        presence: ``"argmax"`` or ``"mass"``.
        x_weights: weights of the points of x by which their memberships are multiplied, [n], as 0
            for padding.
        y_weights: those of y, [m].
        differentiate_classes: whether gradients reach probabilities, which are constants otherwise,
            as in the original.

    Returns:
        A scalar, or [B] of a batch: float64 for float64 inputs, float32 otherwise.

    Raises:
        TypeError: as :func:`fastmmd.mmd2`, or classes that are no tensors or of another dtype.
        ValueError: as :func:`fastmmd.mmd2`, or classes of a wrong shape or on another device. On
            the CPU in eager mode also labels out of range, and probabilities that are negative or
            whose sum is not 1; elsewhere labels out of range belong to no class.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> x, y = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[2.0], [4.0]])
        >>> labels, probabilities = torch.tensor([0, 0, 1]), torch.tensor([[1.0, 0], [0, 1]])
        >>> fm.local_mmd2(x, y, labels, probabilities, 2, fm.Linear())  # ((2 - 1/2)^2 + 1) / 2
        tensor(1.6250)
    """
    source, target = _memberships(
        x, y, y_source, p_target, num_classes, presence, x_weights, y_weights, differentiate_classes
    )
    common = (source.present & target.present).to(source.values.dtype)
    share = common / common.sum(-1, keepdim=True).clamp(min=1).sqrt()
    v, w = (side.values * (side.factors * share) for side in (source, target))
    return _sum(x, y, v, w, kernel, BIASED, source.constant and target.constant)


def class_conditional_mmd2(
    x: Tensor,
    y: Tensor,
    y_source: Tensor,
    p_target: Tensor,
    num_classes: int,
    kernel: Kernel | None = None,
    *,
    presence: str = "argmax",
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    differentiate_classes: bool = False,
) -> Tensor:
    r"""Contrastive domain discrepancy: the MMD^2 within classes less that between classes.

    With D(c, c') the biased MMD^2 between the source's part in class c and the target's in class
    c', weighted as in :func:`local_mmd2`, and C the classes that are present in both domains,

    ``1 / |C| sum_{c in C} D(c, c) - 1 / (|C| (|C| - 1)) sum_{c != c' in C} D(c, c')``,

    which is CDD of Kang et al., "Contrastive adaptation network for unsupervised domain adaptation"
    (CVPR 2019). With one class in C there is no second sum, and with none the result is 0. It is no
    distance and may have either sign; where it is small, points are near to the other domain's of
    their class and far from those of other classes.

    Each domain's sums over pairs of its own points occur in both parts alike, and cancel. With mu_c
    and nu_c the mean embeddings of the parts and a bar for means over C, what is left is

    ``-2 / (|C| - 1) sum_{c in C} <mu_c - mu_bar, nu_c - nu_bar>``,

    so that one pass over the n m pairs of the two domains does, half of what an MMD costs. Only
    with one class in C are the others made; where nobody may look at how many there are, on a GPU
    or under ``torch.compile``, always. Memory is O((n + m)(d + num_classes)).

    Args:
        x: features of the source domain, as for :func:`local_mmd2`.
        y: features of the target domain.
        y_source: the classes of x, labels or probabilities.
        p_target: the classes of y, probabilities or labels.
        num_classes: the number of classes, 2 or more.
        kernel: a :class:`fastmmd.Kernel`; ``Gaussian("mean")`` by default.
        presence: ``"argmax"`` or ``"mass"``, as for :func:`local_mmd2`.
        x_weights: weights of the points of x, [n].
        y_weights: those of y, [m].
        differentiate_classes: whether gradients reach probabilities.

    Returns:
        A scalar, or [B] of a batch: float64 for float64 inputs, float32 otherwise.

    Raises:
        TypeError: as :func:`local_mmd2`.
        ValueError: as :func:`local_mmd2`.

    Example:
        >>> import torch
        >>> import fastmmd as fm
        >>> x, y = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[2.0], [4.0]])
        >>> labels = torch.tensor([0, 0, 1]), torch.tensor([0, 1])
        >>> fm.class_conditional_mmd2(x, y, *labels, 2, fm.Linear())  # 13/8 - (3.5^2 + 3^2) / 2
        tensor(-9.)
    """
    source, target = _memberships(
        x, y, y_source, p_target, num_classes, presence, x_weights, y_weights, differentiate_classes
    )
    common = (source.present & target.present).to(source.values.dtype)
    count = common.sum(-1, keepdim=True)
    v, w = (side.values * (side.factors * common) for side in (source, target))
    centred = (v - v.sum(-1, keepdim=True) / count.clamp(min=1)) * common
    constant = source.constant and target.constant
    v_between = centred / (count - 1).clamp(min=1)
    between = -2 * _sum(x, y, v_between, w, kernel, CROSS, constant)
    if is_plain(x, y, y_source, p_target, x_weights, y_weights) and not bool((count == 1).any()):
        return between
    alone = (count == 1).to(v.dtype)
    return between + _sum(x, y, v * alone, w * alone, kernel, BIASED, constant)


def check_presence(presence: str) -> str:
    """The rule of presence, if there is one of that name."""
    if presence not in ("argmax", "mass"):
        raise ValueError(f"presence must be 'argmax' or 'mass', got {presence!r}")
    return presence


def check_num_classes(num_classes: int) -> int:
    """The number of classes, if it is one."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int):
        raise TypeError(f"num_classes must be an integer, got {num_classes!r}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be 2 or more, got {num_classes}")
    return num_classes


class _Memberships:
    """How far each point of a domain belongs to each class.

    Attributes:
        values: [..., n, num_classes].
        factors: what makes their mean over the points 1; 0 of a class without any, [..., 1,
            num_classes].
        present: whether there is the class, [..., 1, num_classes].
        constant: whether nothing is to be differentiated through them.
    """

    def __init__(
        self,
        points: Tensor,
        classes: Tensor,
        num_classes: int,
        weights: Tensor | None,
        presence: str,
        differentiate: bool,
    ) -> None:
        self.constant = not differentiate and weights is None
        if not differentiate:
            classes = classes.detach()
        dtype = torch.float64 if points.dtype == torch.float64 else torch.float32
        everyone = torch.arange(num_classes, device=points.device)
        soft = classes.is_floating_point()
        values = classes if soft else classes.unsqueeze(-1) == everyone
        self.values = values.to(dtype)
        if weights is not None:
            weights = weights.to(dtype).unsqueeze(-1)
            self.values = self.values * weights
        sums = self.values.sum(-2, keepdim=True)
        some = sums > 0
        self.factors = points.shape[-2] / torch.where(some, sums, torch.inf)
        if not soft or presence == "mass":
            self.present = some
            return
        best = classes.detach().max(-1).indices  # faster than argmax
        if weights is None:
            self.present = torch.zeros_like(some).scatter(-1, best.unsqueeze(-2), True)
        else:
            counted = (best.unsqueeze(-1) == everyone) & (weights > 0)
            self.present = counted.any(-2, keepdim=True)


def _memberships(
    x: Tensor,
    y: Tensor,
    y_source: Tensor,
    p_target: Tensor,
    num_classes: int,
    presence: str,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    differentiate: bool,
) -> tuple[_Memberships, _Memberships]:
    check_points(x, y, BIASED)
    check_num_classes(num_classes)
    check_presence(presence)
    _check_classes("y_source", y_source, x, num_classes)
    _check_classes("p_target", p_target, y, num_classes)
    if x_weights is not None:
        check_weights("x_weights", x_weights, x, BIASED)
    if y_weights is not None:
        check_weights("y_weights", y_weights, y, BIASED)
    return (
        _Memberships(x, y_source, num_classes, x_weights, presence, differentiate),
        _Memberships(y, p_target, num_classes, y_weights, presence, differentiate),
    )


def _check_classes(name: str, classes: Tensor, points: Tensor, num_classes: int) -> None:
    if not isinstance(classes, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(classes).__name__}")
    soft = classes.is_floating_point()
    if not soft and (classes.dtype == torch.bool or classes.is_complex()):
        raise TypeError(
            f"{name} must be integer labels or floating probabilities, got {classes.dtype}"
        )
    labels = list(points.shape[:-1])
    shape = [*labels, num_classes] if soft else labels
    if list(classes.shape) != shape:
        what = "probabilities" if soft else "labels"
        raise ValueError(f"{name} must be of shape {shape} as {what}, got {list(classes.shape)}")
    if classes.device != points.device:
        raise ValueError(
            f"{name} must be on the device of its points, {points.device}, got {classes.device}"
        )
    if not is_plain(classes):
        return
    classes = classes.detach()
    low, high = torch.aminmax(classes)
    if not soft:
        if not 0 <= low.item() <= high.item() < num_classes:
            raise ValueError(
                f"{name} must hold classes from 0 to {num_classes - 1}, got values from"
                f" {low.item()} to {high.item()}"
            )
        return
    if not low.item() >= 0:  # nor NaN
        raise ValueError(
            f"{name} must be probabilities, none negative or NaN, got {low.item()}; of logits they"
            " are the softmax"
        )
    # The entries were rounded in the dtype that they come in.
    off = (classes.sum(-1, dtype=torch.float64) - 1).abs().max().item()
    if not off <= max(1e-4, 4 * torch.finfo(classes.dtype).eps):
        raise ValueError(
            f"{name} must hold probabilities whose sum is 1 in each row, got a sum that is off by"
            f" {off:.4g}: they come from a softmax, not from its logits"
        )


def _sum(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    w: Tensor,
    kernel: Kernel | None,
    estimator: int,
    constant: bool,
) -> Tensor:
    """The estimator with ``k(x, y) <v, w>`` as its kernel, with or without gradients to v and w."""
    one = numbers([1.0], x.device)
    classes = Terms((LINEAR,), one, one, (0.0, 0.0), (FIXED,), (0,))
    terms = product_terms([as_kernel(kernel).terms_for(x, y), classes])
    widths = (x.shape[-1], v.shape[-1])
    x, y = torch.cat([x.to(v.dtype), v], -1), torch.cat([y.to(w.dtype), w], -1)
    return ops.mmd2(x, y, None, None, terms, estimator, 0, widths, int(constant))
