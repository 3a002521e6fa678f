from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import fastmmd as fm


@pytest.fixture
def samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 6, generator=generator, requires_grad=True)
    return x, torch.randn(25, 6, generator=generator) + 0.5


def learnable() -> fm.MMDLoss:
    bandwidth = nn.Parameter(torch.tensor([1.0, 2.0]))
    return fm.MMDLoss(fm.Gaussian(bandwidth, (1,)) + 0.5 * fm.Energy(), "unbiased")


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_is_the_function(samples, estimator: str) -> None:
    x, y = samples
    p, q = torch.rand(30), torch.rand(25)
    kernel = fm.Laplacian(2.0)
    loss = fm.MMDLoss(kernel, estimator)
    assert torch.equal(loss(x, y), fm.mmd2(x, y, kernel, estimator))
    assert torch.equal(loss(x, y, p, q), fm.mmd2(x, y, kernel, estimator, p, q))
    assert torch.equal(loss(x, y, y_weights=q), fm.mmd2(x, y, kernel, estimator, None, q))


def test_defaults(samples) -> None:
    assert torch.equal(fm.MMDLoss()(*samples), fm.mmd2(*samples, fm.Gaussian("mean"), "biased"))


def test_repr() -> None:
    assert repr(fm.MMDLoss()) == (
        "MMDLoss(\n  estimator='biased'\n"
        "  (kernel): Gaussian(bandwidth='mean', multipliers=(0.25, 0.5, 1, 2, 4))\n)"
    )


def test_repr_of_other_losses() -> None:
    assert fm.MMDLoss(estimator="block", block_size=4).extra_repr() == (
        "estimator='block', block_size=4"
    )
    assert repr(fm.JointMMDLoss([fm.Energy(), fm.Linear()], "incomplete", None, 5)) == (
        "JointMMDLoss(\n  estimator='incomplete', num_superdiagonals=5\n  (kernels): ModuleList(\n"
        "    (0): Energy()\n    (1): Linear()\n  )\n)"
    )
    assert repr(fm.EnergyDistanceLoss("linear")) == (
        "EnergyDistanceLoss(\n  estimator='linear'\n  (kernel): Energy()\n)"
    )
    assert repr(fm.CORALLoss()) == "CORALLoss(scaling='deep_coral')"
    assert repr(fm.CORALLoss(1.5, 2)) == "CORALLoss(scaling=1.5, mean_scaling=2)"


@pytest.mark.parametrize(
    ("estimator", "options"),
    [
        ("linear", {}),
        ("block", {"block_size": 4}),
        ("incomplete", {"num_superdiagonals": 3}),
    ],
)
def test_passes_its_numbers_on(samples, estimator: str, options: dict[str, int]) -> None:
    x, y = samples
    expected = fm.mmd2(x, y, None, estimator, **options)
    assert torch.equal(fm.MMDLoss(None, estimator, **options)(x, y), expected)
    joint = fm.joint_mmd2((x, x), (y, y), None, estimator, **options)
    assert torch.equal(fm.JointMMDLoss(None, estimator, **options)((x, x), (y, y)), joint)
    expected = fm.energy_distance(x, y, estimator, **options)
    assert torch.equal(fm.EnergyDistanceLoss(estimator, **options)(x, y), expected)


def test_running_bandwidth_of_a_loss(samples) -> None:
    x, y = (t.detach() for t in samples)
    loss = fm.MMDLoss(fm.Gaussian(fm.RunningBandwidth("mean"), (1,)))
    assert torch.allclose(loss(x, y), fm.mmd2(x, y, fm.Gaussian("mean", (1,))), rtol=1e-5)
    loss.eval()
    fixed = fm.Gaussian(float(loss.kernel.bandwidth.value / 2) ** 0.5, (1,))
    assert torch.allclose(loss(3 * x, y), fm.mmd2(3 * x, y, fixed), rtol=1e-5)


def test_state_dict(samples) -> None:
    loss = learnable()
    assert list(loss.state_dict()) == ["kernel.kernels.0.bandwidth"]
    other = learnable()
    with torch.no_grad():
        loss.kernel.kernels[0].bandwidth.mul_(3)
    assert not torch.equal(loss(*samples), other(*samples))
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(loss(*samples), other(*samples))


@pytest.mark.parametrize("make", [fm.MMDLoss, learnable])
def test_copies(samples, make) -> None:
    loss = make()
    expected = loss(*samples)
    expected.backward()  # what a call leaves behind must not stand in the way of a copy
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(*samples), expected)
        assert repr(other) == repr(loss)


def test_to_dtype(samples) -> None:
    loss = learnable().double()
    assert loss.kernel.kernels[0].bandwidth.dtype == torch.float64
    assert loss(*samples).dtype == torch.float32
    loss(*samples).backward()
    assert loss.kernel.kernels[0].bandwidth.grad.dtype == torch.float64


def test_trains(samples) -> None:
    x = samples[0].detach()
    y = x + 0.5
    shift = nn.Parameter(torch.zeros(6))
    loss = learnable()
    optimiser = torch.optim.Adam([shift], lr=0.05)
    first = loss(x, y).item()
    for _ in range(60):
        optimiser.zero_grad()
        loss(x + shift, y).backward()
        optimiser.step()
    assert loss(x + shift, y).item() < first
    assert (shift - 0.5).abs().max() < 0.05


def test_checkpointing(samples) -> None:
    from torch.utils.checkpoint import checkpoint

    x, y = samples
    layer, loss = nn.Linear(6, 4), fm.MMDLoss()
    run = lambda x: loss(layer(x), layer(y))  # noqa: E731
    (expected,) = torch.autograd.grad(run(x), x)
    (result,) = torch.autograd.grad(checkpoint(run, x, use_reentrant=False), x)
    assert torch.equal(result, expected)


def test_data_changed_before_backward(samples) -> None:
    x, y = samples
    z = x * 1
    value = fm.mmd2(z, y)
    with torch.no_grad():
        z.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_backward_twice(samples) -> None:
    value = fm.mmd2(*samples)
    (first,) = torch.autograd.grad(value, samples[0], retain_graph=True)
    (second,) = torch.autograd.grad(value, samples[0])
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()
