from __future__ import annotations

import math
import warnings
from importlib.util import find_spec
from pathlib import Path

import originals
import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

import fastmmd as fm
from fastmmd import ops
from fastmmd._extras import MissingExtraError
from fastmmd.compat.torchmetrics import CMMD, KernelInceptionDistance, MaximumMeanDiscrepancy

torchmetrics = pytest.importorskip("torchmetrics")

METRICS = {
    "kid": lambda **options: KernelInceptionDistance(subsets=4, subset_size=6, **options),
    "cmmd": CMMD,
    "mmd": MaximumMeanDiscrepancy,
}


def samples(
    n: int, m: int, d: int = 5, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    x, y = originals.features(n, m, (d,))(0, dtype)
    return x[0], y[0]


def filled(metric: torchmetrics.Metric, x: Tensor, y: Tensor) -> torchmetrics.Metric:
    for points, real in ((x, True), (y, False)):
        for part in points.split(7):
            metric.update(part, real=real)
    return metric


def theirs(options: dict[str, object]) -> torchmetrics.Metric:
    from torchmetrics.image.kid import KernelInceptionDistance as Theirs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about the memory that the features take
        return Theirs(feature=nn.Identity(), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [
        {"subsets": 7, "subset_size": 10},
        {"subsets": 5, "subset_size": 20, "degree": 2, "gamma": 0.3, "coef": 0.5},
        {"subsets": 1, "subset_size": 2},
    ],
)
def test_kid_is_that_of_torchmetrics(options: dict[str, object], dtype: torch.dtype) -> None:
    """One seed, one number: the subsets are the same."""
    x, y = samples(40, 30, dtype=dtype)
    metrics = KernelInceptionDistance(**options), theirs(options)
    results = []
    for metric in metrics:
        filled(metric, x, y)
        torch.manual_seed(3)
        results.append(metric.compute())
    torch.testing.assert_close(results[0], results[1])
    assert results[0][0].dtype == dtype


def test_kid_defaults_are_those_of_torchmetrics() -> None:
    ours, original = KernelInceptionDistance(), theirs({})
    for name in ("subsets", "subset_size", "degree", "gamma", "coef", "reset_real_features"):
        assert getattr(ours, name) == getattr(original, name), name
    for name in ("higher_is_better", "is_differentiable", "plot_lower_bound", "plot_upper_bound"):
        assert getattr(ours, name) == getattr(original, name), name


def test_kid_calls_once_or_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import fastmmd.compat.torchmetrics as module

    calls, original = [], ops.mmd2
    monkeypatch.setattr(ops, "mmd2", lambda *args: calls.append(args) or original(*args))
    metric = filled(KernelInceptionDistance(subsets=9, subset_size=10), *samples(40, 30))
    torch.manual_seed(3)
    whole = metric.compute()
    assert len(calls) == 1
    monkeypatch.setattr(module, "_GATHERED", 1)  # then as much as the features: 70 points
    metric = filled(KernelInceptionDistance(subsets=9, subset_size=10), *samples(40, 30))
    torch.manual_seed(3)
    torch.testing.assert_close(metric.compute(), whole)
    assert len(calls) == 4


def test_kid_with_a_module() -> None:
    torch.manual_seed(0)
    network = nn.Linear(5, 3).double()
    x, y = samples(20, 20)
    with_network = filled(KernelInceptionDistance(network, 3, 10), x, y)
    with torch.no_grad():
        without = filled(KernelInceptionDistance(None, 3, 10), network(x), network(y))
    torch.manual_seed(1)
    first = with_network.compute()
    torch.manual_seed(1)
    assert without.compute() == first
    assert not with_network.real_features[0].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cmmd(dtype: torch.dtype) -> None:
    x, y = samples(20, 30, dtype=dtype)

    def original(a: list[Tensor], b: list[Tensor], distances: object) -> originals.Pairs:
        pairs = originals.geomloss("gaussian", 10.0)(a, b, distances)
        return pairs._replace(masses=2000 * pairs.masses)

    def ours(a: list[Tensor], b: list[Tensor]) -> Tensor:
        value = filled(CMMD(), a[0], b[0]).compute()
        return value + 0 * (a[0].sum() + b[0].sum())  # it has no gradient, and need not

    x, y = [x], [y]
    wide = originals.Pairs(*original([x[0].double()], [y[0].double()], originals.direct))
    plain = original(*originals.centred(x, y), originals.gram).value()
    found = abs(float(ours(x, y)) - float(wide.value()))
    allowed = 2 * abs(float(plain) - float(wide.value())) + 8 * torch.finfo(dtype).eps * wide.size()
    assert found <= allowed


@pytest.mark.parametrize("kernel", [None, fm.Energy(), fm.Gaussian("median")])
@pytest.mark.parametrize("estimator", ["biased", "unbiased", "linear"])
def test_mmd(kernel: fm.Kernel | None, estimator: str) -> None:
    x, y = samples(20, 30)
    expected = fm.mmd2(x, y, kernel, estimator)
    metric = MaximumMeanDiscrepancy(kernel, estimator)
    assert filled(metric, x, y).compute() == expected
    metric.reset()
    metric.update(x, y[:20])
    metric.update(y[20:], False)
    assert metric.compute() == expected


def test_mmd_forward_gives_the_batch_and_keeps_all() -> None:
    x, y = samples(20, 20)
    metric = MaximumMeanDiscrepancy(fm.Energy())
    for i in (0, 10):
        batch = metric(x[i : i + 10], y[i : i + 10])
        assert batch == fm.mmd2(x[i : i + 10], y[i : i + 10], fm.Energy())
    assert metric.compute() == fm.mmd2(x, y, fm.Energy())


@pytest.mark.parametrize("name", METRICS)
def test_reset(name: str) -> None:
    x, y = samples(20, 20)
    keeps = filled(METRICS[name](reset_real_features=False), x, y)
    keeps.reset()
    assert sum(map(len, keeps.real_features)) == 20
    assert not keeps.fake_features
    forgets = filled(METRICS[name](), x, y)
    forgets.reset()
    assert not forgets.real_features
    assert not forgets.fake_features
    with (
        pytest.warns(UserWarning, match="called before the ``update`` method"),
        pytest.raises(ValueError, match="there are no real features"),
    ):
        forgets.compute()


@pytest.mark.parametrize("name", METRICS)
def test_plot(name: str, tmp_path: Path) -> None:
    if not find_spec("matplotlib"):
        pytest.skip("matplotlib is not installed")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metric = filled(METRICS[name](), *samples(20, 20))
    figure, axes = metric.plot()
    assert axes is not None
    figure.savefig(tmp_path / "metric.png")
    value = metric.compute()
    value = value[0] if name == "kid" else value
    metric.plot([value, value])
    plt.close("all")


@pytest.mark.parametrize("name", METRICS)
def test_collections_and_pickles(name: str) -> None:
    import pickle

    x, y = samples(20, 20)
    collection = torchmetrics.MetricCollection({"metric": METRICS[name]()})
    collection.update(x, real=True)
    collection.update(y, real=False)
    torch.manual_seed(0)
    value = collection["metric"].compute()
    copy = pickle.loads(pickle.dumps(filled(METRICS[name](), x, y)))
    torch.manual_seed(0)
    assert copy.compute() == value


def run_process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    x, y = samples(20, 14)
    mine = slice(rank * 8, 8 + rank * 12)  # unequal shares
    results = {}
    for name in METRICS:
        metric = METRICS[name]()
        metric.update(x[mine], real=True)
        metric.update(y[rank * 7 : rank * 7 + 7], real=False)
        torch.manual_seed(5)
        results[name] = metric.compute()
        assert len(metric.real_features[0]) == len(x[mine])  # unsynced again
        metric.update(x[mine], real=True)  # and goes on
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_sync_over_two_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=run_process, args=(r, str(tmp_path))) for r in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert results[0] == results[1]
    for name in METRICS:
        torch.manual_seed(5)
        assert filled(METRICS[name](), *samples(20, 14)).compute() == results[0][name]


def test_missing_torchmetrics_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    import fastmmd._extras as extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "fastmmd.compat.torchmetrics")
    with pytest.raises(MissingExtraError, match=r"needs torchmetrics.*fastmmd\[metrics\]"):
        importlib.import_module("fastmmd.compat.torchmetrics")


F = torch.randn(8, 3)


def kid_of(real: int, fake: int) -> object:
    metric = KernelInceptionDistance(subsets=2, subset_size=6)
    metric.update(F[:real], real=True)
    metric.update(F[:fake], real=False)
    return metric.compute()


def with_features(*updates: tuple[Tensor, bool]) -> object:
    metric = CMMD()
    for features, real in updates:
        metric.update(features, real=real)
    return metric.compute()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: KernelInceptionDistance(2048), TypeError, "feature must be .* got 2048: no net"),
        (lambda: KernelInceptionDistance(subsets=0), ValueError, "subsets must be a whole number"),
        (lambda: KernelInceptionDistance(subset_size=1), ValueError, "subset_size must be at leas"),
        (lambda: KernelInceptionDistance(degree=2.5), TypeError, "degree must be a whole number"),
        (lambda: KernelInceptionDistance(gamma=-1.0), ValueError, "gamma must be positive"),
        (lambda: KernelInceptionDistance(coef=-1.0), ValueError, "coef must be positive"),
        (lambda: KernelInceptionDistance(coef=math.nan), ValueError, "coef must be positive"),
        (lambda: KernelInceptionDistance(normalize=1), ValueError, "normalize must be a bool"),
        (lambda: CMMD(reset_real_features=1), ValueError, "reset_real_features must be a bool"),
        (lambda: CMMD(sigma=0), ValueError, "sigma must be positive"),
        (lambda: CMMD(scale="1"), TypeError, "scale must be a positive number"),
        (lambda: MaximumMeanDiscrepancy("rbf"), TypeError, "kernel must be a fastmmd.Kernel"),
        (lambda: MaximumMeanDiscrepancy(None, "best"), ValueError, "estimator must be"),
        (lambda: kid_of(5, 8), ValueError, "subset_size must not exceed .* 6 and 5 real features"),
        (lambda: kid_of(8, 5), ValueError, "subset_size must not exceed .* 6 and 5 fake features"),
        (lambda: CMMD().compute(), ValueError, "there are no real features"),
        (lambda: with_features((F, True)), ValueError, "there are no fake features"),
        (lambda: with_features((F[0], True)), ValueError, r"features must be of shape \[points, w"),
        (lambda: with_features((F.long(), True)), TypeError, "features must be float16"),
        (lambda: with_features((F, True), (F[:, :2], False)), ValueError, "of one width and dtype"),
        (
            lambda: with_features((F, True), (F.double(), True)),
            ValueError,
            "of one width and dtype",
        ),
        (lambda: with_features((F, "real")), TypeError, "real must be True or False"),
        (lambda: MaximumMeanDiscrepancy().update(F), TypeError, "either y or real must be given"),
        (lambda: MaximumMeanDiscrepancy().update(F, F, real=True), TypeError, "either y or real"),
        (lambda: MaximumMeanDiscrepancy().update(F, F[:, :2]), ValueError, "x and y must be of on"),
    ],
)
@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_bad_input(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
