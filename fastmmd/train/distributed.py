"""Discrepancies of the batch of all processes, exactly: values and gradients are those of one.

Rows of features are gathered. Of an MMD each process then computes its own rows of the kernel
matrix against all columns, and the sums are added up; other discrepancies are computed as a whole
on each process. Either way a gradient flows into a process's own rows alone, and is multiplied by
the number of processes, which the averaging of ``DistributedDataParallel`` divides it by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastmmd import ops
from fastmmd.checks import CROSS, UNBIASED, check_points
from fastmmd.dtypes import concatenated
from fastmmd.functional import fixed_terms
from fastmmd.joint import product_terms, side_by_side
from fastmmd.kernels import Kernel
from fastmmd.terms import Terms
from fastmmd.train.gradients import scale_gradients, with_value

if TYPE_CHECKING:
    from fastmmd.train.alignments import Activations, Alignment

__all__ = ["gather_rows", "global_discrepancy", "global_mean", "mmd2_share", "processes"]


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def global_discrepancy(alignment: Alignment, source: Activations, target: Activations) -> Tensor:
    """The discrepancy of the rows of all processes, the same scalar on each.

    Once ``DistributedDataParallel`` has averaged them, the gradients are those of one process with
    all the rows. The processes may have different numbers of rows, each at least one of each
    domain. What is random in the alignment has to be the same on all processes.

    Args:
        alignment: Called, or asked for its share, with rows of all processes.
        source: Rows of this process.
        target: Rows of this process.

    Raises:
        RuntimeError: Another process has ended, or did not answer in time.
        ValueError: A process has no row of one of the domains; raised on all.
    """
    world = processes()
    if world == 1:
        return alignment(source, target)
    sides = (source, target)
    tensors = [t.detach() for side in sides for t in side.tensors()]
    labelled = [side for side in sides if side.labels is not None]
    gathered = gather_rows([*tensors, *(s.labels for s in labelled if s.labels is not None)])
    if not all(len(part) for parts in gathered for part in parts):
        counts = [[len(p) for p in gathered[i]] for i in (0, len(source.tensors()))]
        raise ValueError(
            "every process needs at least one row of each domain; the processes have"
            f" {counts[0]} rows of the source and {counts[1]} of the target"
        )
    everyone: list[Activations] = []
    labels = iter(gathered[len(tensors) :])
    for i, side in enumerate(sides):
        count = len(side.tensors())
        rows = [concatenated(parts) for parts in gathered[i * count : (i + 1) * count]]
        of_side = None if side.labels is None else torch.cat(next(labels))
        everyone.append(side.replace(rows, of_side))

    share = alignment.share(source, target, *everyone)
    if share is not None:
        dtype = torch.float64 if source.features.dtype == torch.float64 else torch.float32
        return with_value(share, _sum_of_all(share).to(dtype), world)
    with_own = []
    for i, side in enumerate(sides):
        live = side.with_gradient_times(world).tensors()
        parts = gathered[i * len(live) : (i + 1) * len(live)]
        with_own.append(
            everyone[i].replace(
                [concatenated(_with_own(p, t)) for p, t in zip(parts, live, strict=True)],
                everyone[i].labels,
            )
        )
    return alignment(*with_own)


def global_mean(values: Tensor) -> Tensor:
    """The mean of the entries [n] on all processes, for any n: the same scalar on each.

    Its gradients are those of one process with all entries, once they have been averaged.

    Raises:
        RuntimeError: Another process has ended, or did not answer in time.
    """
    world = processes()
    if world == 1:
        return values.mean()
    wide = values.double()  # half precision counts to 256 or 2048, and its sums overflow
    sums = torch.stack([wide.detach().sum(), wide.new_tensor(len(wide))])
    whole, count = _sum_of_all(sums).unbind()
    share = wide.sum() / count
    return with_value(share, (whole / count).to(values.dtype), world)


def mmd2_share(
    x: Sequence[Tensor],
    y: Sequence[Tensor],
    all_x: Sequence[Tensor],
    all_y: Sequence[Tensor],
    kernels: Sequence[Kernel],
    estimator: int,
) -> Tensor:
    r"""The share of some rows in the MMD^2 of all, by the product of one kernel for each layer.

    The MMD^2 is ``sum_ij a_i a_j k(z_i, z_j)`` over all points z of both samples, with signed
    weights a; the share is the sum over the given i and all j. As k is symmetric, the derivative of
    the whole in z_i is twice that of the share with the other argument held fixed. The bandwidths
    look at all points.

    Args:
        x: Rows of this process of L layers, each [n, d_l].
        y: Rows of this process, each [m, d_l].
        all_x: Rows of all processes, each [N, d_l], x among them. Constants.
        all_y: Rows of all processes, each [M, d_l].
        kernels: L kernels; of one layer the MMD is :func:`fastmmd.mmd2`, of several it is
            :func:`fastmmd.joint_mmd2`.
        estimator: Number of ``"biased"`` or ``"unbiased"``.

    Returns:
        A scalar, float64.

    Raises:
        TypeError: As :func:`fastmmd.mmd2`, of all rows.
        ValueError: As :func:`fastmmd.mmd2`, of all rows.
    """
    parts = []
    for kernel, of_x, of_y in zip(kernels, all_x, all_y, strict=True):
        check_points(of_x, of_y, estimator)
        parts.append(fixed_terms(of_x, of_y, kernel.terms_for(of_x, of_y)))
    widths = tuple(t.shape[-1] for t in all_x) if len(parts) > 1 else None
    terms = product_terms(parts) if widths else parts[0]
    own_x, own_y = side_by_side(x), side_by_side(y)
    everyone = concatenated([side_by_side(all_x), side_by_side(all_y)])
    size_x, size_y = len(all_x[0]), len(all_y[0])
    columns = torch.zeros(size_x + size_y, 2, dtype=everyone.dtype, device=everyone.device)
    columns[:size_x, 0] = 1
    columns[size_x:, 1] = 1
    own = scale_gradients([concatenated([own_x, own_y])], 2.0)[0]
    # With all of x, with all of y.
    sums = ops.kernel_sum(own, everyone, columns, terms, widths).double()
    sizes = [len(own_x), len(own_y)]
    with_x, with_y = sums.split(sizes)
    within_x, within_y = with_x[:, 0].sum(), with_y[:, 1].sum()
    pairs_x, pairs_y = size_x * size_x, size_y * size_y
    if estimator == UNBIASED:
        diagonal_x, diagonal_y = _diagonal(own, terms, widths).split(sizes)
        within_x, within_y = within_x - diagonal_x.sum(), within_y - diagonal_y.sum()
        pairs_x, pairs_y = size_x * (size_x - 1), size_y * (size_y - 1)
    across = (with_x[:, 1].sum() + with_y[:, 0].sum()) / (size_x * size_y)
    return within_x / pairs_x + within_y / pairs_y - across


def gather_rows(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The rows of all processes of each of some tensors [n, ...], in the order of the processes.

    A tensor may have other numbers of rows on other processes, but has one shape beyond that and
    one dtype. All of a dtype travel at once, padded to the longest.

    Raises:
        RuntimeError: Another process has ended, or did not answer in time.
    """
    world, device = processes(), tensors[0].device
    rows = _all_gather(torch.tensor([len(t) for t in tensors], device=device), world)
    counts = torch.stack(rows).tolist()  # [process][tensor]
    found: list[list[Tensor]] = [[] for _ in tensors]
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        chosen = [i for i, t in enumerate(tensors) if t.dtype == dtype]
        widths = [math.prod(tensors[i].shape[1:]) for i in chosen]
        sizes = [[c[i] * w for i, w in zip(chosen, widths, strict=True)] for c in counts]
        flat = concatenated([tensors[i].reshape(-1) for i in chosen])
        padded = flat.new_zeros(max(map(sum, sizes)))
        padded[: len(flat)] = flat
        for buffer, size in zip(_all_gather(padded, world), sizes, strict=True):
            parts = buffer[: sum(size)].split(size)
            for i, part in zip(chosen, parts, strict=True):
                found[i].append(part.reshape(-1, *tensors[i].shape[1:]))
    return found


def _diagonal(z: Tensor, terms: Terms, widths: Sequence[int] | None) -> Tensor:
    """k(z_i, z_i), [n], with the derivative in the first argument alone."""
    points = z.unsqueeze(1)  # batches of one point each
    value: Tensor = ops.mmd2(points, points.detach(), None, None, terms, CROSS, 0, widths)
    return value.double()


def _with_own(parts: Sequence[Tensor], own: Tensor) -> list[Tensor]:
    """The parts of all processes with this one's as it is here, where it takes gradients."""
    rank = dist.get_rank()
    return [*parts[:rank], own, *parts[rank + 1 :]]


def _sum_of_all(value: Tensor) -> Tensor:
    whole = value.detach().clone()
    _answered(lambda: dist.all_reduce(whole))
    return whole


def _all_gather(own: Tensor, world: int) -> list[Tensor]:
    parts = [torch.empty_like(own) for _ in range(world)]
    _answered(lambda: dist.all_gather(parts, own))
    return parts


def _answered(collective: Callable[[], Any]) -> None:
    try:
        collective()
    except RuntimeError as error:
        raise RuntimeError(
            f"process {dist.get_rank()} of {dist.get_world_size()} could not exchange its batch:"
            " another process has ended, or did not answer within the timeout of the process group"
        ) from error
