"""The direction of the difference of means against what a search finds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastmmd as fm


def samples(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1.0, 0.1, 3.0, 0.5])
    x = torch.randn(300, 4, generator=generator) * spread
    y = torch.randn(200, 4, generator=generator) * spread + torch.tensor([1.0, 0.3, -0.5, 0.0])
    return x.to(dtype), y.to(dtype)


def separation(w: Tensor, x: Tensor, y: Tensor, scaling: str) -> Tensor:
    """What the direction is to make large, for rows of w."""
    along = (w @ (x.mean(0) - y.mean(0))).square()
    if scaling == "none":
        return along / w.square().sum(-1)
    squares = sum((z - z.mean(0)).square().sum(0) for z in (x, y))
    return along / (w.square() @ (squares / (len(x) + len(y))))


@pytest.mark.parametrize("scaling", ["none", "variance"])
def test_no_direction_is_better(scaling: str) -> None:
    x, y = samples()
    line = fm.MeanDifferenceProjection(scaling).fit(x, y)
    best = separation(line.direction, x, y, scaling)
    others = torch.randn(20_000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    near = line.direction + 0.01 * others
    assert float(torch.linalg.vector_norm(line.direction)) == pytest.approx(1)
    assert bool((separation(torch.cat([others, near]), x, y, scaling) <= best).all())
    assert float(line.distance) > 0


@pytest.mark.parametrize("scaling", ["none", "variance"])
def test_line_and_complement(scaling: str) -> None:
    x, y = samples()
    line = fm.MeanDifferenceProjection(scaling).fit(x, y)
    torch.testing.assert_close(line.transform(x) + line.remove(x), x + line.center)
    gap = line.coordinates(x).mean() - line.coordinates(y).mean()
    torch.testing.assert_close(gap, line.distance)
    torch.testing.assert_close(
        line.remove(x).mean(0) @ line.direction, line.remove(y).mean(0) @ line.direction
    )
    if scaling == "none":  # nothing is left of the difference of means
        torch.testing.assert_close(line.remove(x).mean(0), line.remove(y).mean(0))
        linear = fm.mmd2(x, y, fm.Linear())
        torch.testing.assert_close(line.distance.square(), linear)


@pytest.mark.parametrize("scaling", ["none", "variance"])
def test_degenerate(scaling: str) -> None:
    x = torch.ones(3, 2)
    same = fm.MeanDifferenceProjection(scaling).fit(x, x)
    assert torch.equal(same.direction, torch.zeros(2))
    assert torch.equal(same.remove(x), x)
    apart = fm.MeanDifferenceProjection(scaling).fit(x, x + torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(apart.direction, torch.tensor([0.0, -1.0]))


def test_halves_and_gradients() -> None:
    x, y = samples(torch.bfloat16)
    line = fm.MeanDifferenceProjection().fit(x, y)
    assert line.direction.dtype == torch.float32
    a, b = (t.requires_grad_() for t in samples())
    fm.MeanDifferenceProjection("variance").fit(a, b).distance.backward()
    assert bool(a.grad.isfinite().all())


def test_bad_input() -> None:
    x, y = samples()
    with pytest.raises(ValueError, match="scaling must be 'none' or 'variance', got 'std'"):
        fm.MeanDifferenceProjection("std")
    with pytest.raises(ValueError, match="floor must be positive"):
        fm.MeanDifferenceProjection(floor=0)
    with pytest.raises(ValueError, match="one width"):
        fm.MeanDifferenceProjection().fit(x, y[:, :3])
    with pytest.raises(RuntimeError, match="call fit"):
        fm.MeanDifferenceProjection().transform(x)
    line = fm.MeanDifferenceProjection().fit(x, y)
    with pytest.raises(ValueError, match=r"shape \[n, 4\]"):
        line.remove(x[:, :2])
    with pytest.raises(TypeError, match=r"torch\.Tensor"):
        line.remove([1.0])
    with pytest.raises(ValueError, match="rank 2"):
        line.fit(x[None], y[None])
