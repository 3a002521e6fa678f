"""Random features on a GPU: what the emulator runs, and what only a GPU can show."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cuda_backend import precision
from cuda_feature_bodies import *  # noqa: F403
from torch import Tensor

import fastmmd as fm

pytestmark = pytest.mark.gpu


def of_device(device: torch.device, n: int, m: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(n, d, generator=generator, device=device)
    y = torch.randn(m, d, generator=generator, device=device) * 1.2 + 0.3
    return x.requires_grad_(), y.requires_grad_()


def loss_of(scheme: str, d: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: fm.random_feature_mmd2(x, y, 500, fm.Gaussian(d**0.5), 0, scheme)


def with_gradients(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Any:
    value = function(x, y)
    return value.detach(), *torch.autograd.grad(value, (x, y))


@pytest.mark.parametrize("scheme", ["iid", "structured"])
@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_large_samples(device: torch.device, setting: str, scheme: str) -> None:
    """Many panels and many parts, beside float64 of the device."""
    x, y = of_device(device, 9000, 7000, 200)
    loss = loss_of(scheme, 200)
    exact = with_gradients(loss, *(t.detach().double().requires_grad_() for t in (x, y)))
    with precision(setting):
        found = with_gradients(loss, x, y)
    eps = {"highest": 2.0**-20, "high": 2.0**-11, "medium": 2.0**-8}[setting]
    if scheme == "structured":
        eps = 2.0**-18
    assert abs(float(found[0] - exact[0])) <= 8 * eps * 2
    for a, b in zip(found[1:], exact[1:], strict=True):
        assert float((a - b).abs().max()) <= 32 * eps * float(b.abs().max())


@pytest.mark.parametrize("scheme", ["iid", "structured"])
def test_nothing_waits(device: torch.device, scheme: str) -> None:
    x, y = of_device(device, 800, 700, 16)
    loss = loss_of(scheme, 16)
    loss(x, y)  # draws
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = with_gradients(loss, x, y)
        fm.random_feature_mmd2(x, y, 500, fm.Gaussian("mean"), 0, scheme, return_error=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(t.isfinite().all() for t in found)


@pytest.mark.parametrize("scheme", ["iid", "structured"])
def test_graph_replays_with_new_data(device: torch.device, scheme: str) -> None:
    x, y = of_device(device, 800, 700, 16)
    loss = loss_of(scheme, 16)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        with_gradients(loss, x, y)
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = with_gradients(loss, x, y)
    new_x, new_y = of_device(device, 800, 700, 16, seed=1)
    with torch.no_grad():
        x.copy_(new_x), y.copy_(new_y)
    graph.replay()
    for a, b in zip(captured, with_gradients(loss, new_x, new_y), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_streams(device: torch.device) -> None:
    x, y = of_device(device, 800, 700, 16)
    loss = loss_of("iid", 16)
    expected = with_gradients(loss, x, y)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        a, b = (t.detach() * 2 for t in (x, y))  # not there yet on another stream
        found = with_gradients(loss, (a / 2).requires_grad_(), (b / 2).requires_grad_())
    torch.cuda.current_stream(device).wait_stream(stream)
    assert all(torch.equal(t, e) for t, e in zip(found, expected, strict=True))


def test_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    x, y = of_device(torch.device("cuda", 1), 300, 200, 16)
    loss = loss_of("iid", 16)
    with torch.cuda.device(0):
        found = with_gradients(loss, x, y)
    with torch.cuda.device(1):
        expected = with_gradients(loss, x, y)
    assert all(torch.equal(t, e) for t, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("scheme", ["iid", "structured"])
def test_memory(device: torch.device, scheme: str) -> None:
    """Of the order of points and frequencies, and a panel."""
    n, d, count = 60000, 256, 8192
    x, y = of_device(device, n, n, d)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return fm.random_feature_mmd2(x, y, count, fm.Gaussian(16.0), 0, scheme)

    with precision("high"):
        with_gradients(loss, *(t[:2000].detach().requires_grad_() for t in (x, y)))
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        with_gradients(loss, x, y)
        peak = torch.cuda.max_memory_allocated(device) - before
    sizes = 4 * d * (2 * n + (count if scheme == "iid" else 0))
    # One packed sample, both gradients, numbers by frequency, and a panel.
    assert peak <= 2.5 * sizes + 40 * count * 8 + (40 << 20), peak / sizes
    assert peak < n * count
