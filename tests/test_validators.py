"""Outputs of models, and the validators against loops and where the answer is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fastmmd.train import (
    VALIDATORS,
    Aligner,
    FineTuner,
    Outputs,
    collect,
    density_ratio,
    diversity,
    importance_weighted_risk,
    information_maximization,
    rank,
    soft_neighborhood_density,
    source_risk,
    target_entropy,
)

pytestmark = pytest.mark.training

EXACT: dict[str, Any] = {"rel": 1e-12, "abs": 1e-12}  # float64 on both sides


def random_outputs(n: int, seed: int, width: int = 4, classes: int = 3) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    return Outputs(
        torch.randn(n, width, generator=generator),
        2 * torch.randn(n, classes, generator=generator),
        torch.randint(classes, (n,), generator=generator),
    )


def softmax(row: Tensor) -> list[float]:
    powers = [math.exp(v) for v in row.tolist()]
    return [p / sum(powers) for p in powers]


def entropy(row: list[float]) -> float:
    return -sum(p * math.log(p) for p in row if p > 0)


# The definitions, written out


@pytest.fixture(scope="module")
def domains() -> tuple[Outputs, Outputs]:
    return random_outputs(37, 0), random_outputs(29, 1)


def test_risk_entropy_and_diversity_by_loops(domains: tuple[Outputs, Outputs]) -> None:
    source, target = domains
    assert source.labels is not None
    losses = [
        -math.log(softmax(row)[label])
        for row, label in zip(source.logits.double(), source.labels.tolist(), strict=True)
    ]
    assert source_risk(*domains) == pytest.approx(sum(losses) / 37, **EXACT)
    rows = [softmax(row) for row in target.logits.double()]
    certain = sum(map(entropy, rows)) / 29
    mean = [sum(column) / 29 for column in zip(*rows, strict=True)]
    assert target_entropy(*domains) == pytest.approx(certain, **EXACT)
    assert diversity(*domains) == pytest.approx(entropy(mean), **EXACT)
    assert information_maximization(*domains) == pytest.approx(entropy(mean) - certain, **EXACT)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_soft_neighbourhoods_by_loops(
    domains: tuple[Outputs, Outputs], temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several blocks, the last of which is short.
    monkeypatch.setattr("fastmmd.train.validators._BLOCK", 8)
    rows = [softmax(row) for row in domains[1].logits.double()]
    units = [[p / math.sqrt(sum(q * q for q in row)) for p in row] for row in rows]
    entropies = []
    for j, u in enumerate(units):
        similar = [
            sum(a * b for a, b in zip(u, v, strict=True)) / temperature
            for k, v in enumerate(units)
            if k != j
        ]
        powers = [math.exp(s - max(similar)) for s in similar]
        entropies.append(entropy([p / sum(powers) for p in powers]))
    expected = sum(entropies) / len(entropies)
    assert soft_neighborhood_density(*domains, temperature) == pytest.approx(expected, **EXACT)


def test_importance_weighted_risk_by_loops(domains: tuple[Outputs, Outputs]) -> None:
    source, target = domains
    weights = density_ratio(source.features, target.features)
    losses = source.losses().tolist()
    weighted = [w * loss for w, loss in zip(weights.tolist(), losses, strict=True)]
    mean, risk = float(weights.mean()), sum(weighted) / 37
    covariance = sum(
        (w - mean) * (r - risk) for w, r in zip(weights.tolist(), weighted, strict=True)
    )
    variance = sum((w - mean) ** 2 for w in weights.tolist())
    plain = importance_weighted_risk(source, target, control_variate=False)
    assert plain == pytest.approx(risk, **EXACT)
    controlled = importance_weighted_risk(source, target)
    assert controlled == pytest.approx(risk - covariance / variance * (mean - 1), **EXACT)
    ones = torch.ones(37)
    assert importance_weighted_risk(source, target, weights=ones) == pytest.approx(sum(losses) / 37)


# Known answers


def constant(logits: list[float], n: int = 8) -> Outputs:
    return Outputs(torch.zeros(n, 2), torch.tensor([logits]).repeat(n, 1))


def test_extremes() -> None:
    nobody = None
    undecided, collapsed = constant([0.0, 0.0, 0.0]), constant([1e3, 0.0, 0.0])
    spread = Outputs(torch.zeros(9, 2), 1e3 * torch.eye(3).repeat(3, 1))
    assert target_entropy(nobody, undecided) == pytest.approx(math.log(3))
    assert target_entropy(nobody, collapsed) == target_entropy(nobody, spread) == 0
    assert diversity(nobody, collapsed) == 0
    assert diversity(nobody, spread) == pytest.approx(math.log(3))
    assert information_maximization(nobody, spread) == pytest.approx(math.log(3))
    assert information_maximization(nobody, undecided) == pytest.approx(0, abs=1e-12)
    # Clusters of 3: two neighbours each. A single cluster: all others are.
    assert soft_neighborhood_density(nobody, spread) == pytest.approx(math.log(2), rel=1e-6)
    assert soft_neighborhood_density(nobody, collapsed) == pytest.approx(math.log(7))


def gaussians(seed: int, n: int = 400) -> tuple[Tensor, Tensor]:
    """x ~ N(0, 1) and x ~ N(1, 1), whose ratio of densities is exp(x - 1/2)."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(2, n, 1, generator=generator, dtype=torch.float64)
    return points[0], points[1] + 1


def test_density_ratio_of_two_gaussians() -> None:
    source, target = gaussians(0, 20_000)
    weights, exact = density_ratio(source, target), (source[:, 0] - 0.5).exp()
    assert float((weights / exact - 1).abs().quantile(0.95)) < 0.1
    assert float(weights.mean()) == pytest.approx(1, abs=0.05)
    # An unequal number of samples changes nothing but the noise.
    halved = density_ratio(source, target[:10_000])
    assert float((halved / weights).log().abs().mean()) < 0.1


def shifted(seed: int) -> tuple[Outputs, Outputs]:
    """Outputs of a classifier that is wrong where x > 0; classes depend on x alone."""
    generator = torch.Generator().manual_seed(seed + 100)
    parts = []
    for x in gaussians(seed):
        chance, logits = torch.sigmoid(3 * x[:, 0]), 3 * x - 4.5 * x.clamp(min=0)
        labels = (torch.rand(len(x), generator=generator, dtype=torch.float64) < chance).long()
        parts.append(Outputs(x, torch.cat((torch.zeros_like(x), logits), dim=1), labels))
    return parts[0], parts[1]


def test_risk_on_the_target_without_its_labels() -> None:
    weighted, naive = [], []
    for seed in range(6):
        source, target = shifted(seed)
        truth = source_risk(target)
        naive.append(abs(source_risk(source) - truth))
        blind = Outputs(target.features, target.logits)
        weighted.append(abs(importance_weighted_risk(source, blind) - truth))
    assert sum(weighted) < 0.5 * sum(naive)


def test_control_variate_takes_away_variance_alone() -> None:
    risks: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(100):
        source, target = shifted(seed)
        exact = (source.features[:, 0] - 0.5).exp()
        for control, values in risks.items():
            risk = importance_weighted_risk(source, target, control_variate=control, weights=exact)
            values.append(risk)
    plain, controlled = (torch.tensor(risks[control]) for control in (False, True))
    assert controlled.std() < 0.8 * plain.std()
    # The difference of the means, within 3 of its standard errors.
    assert (controlled - plain).mean().abs() < 3 * (controlled - plain).std() / 10


def test_separated_domains_give_no_nonsense() -> None:
    """The ratio cannot be estimated where the domains do not overlap, but it stays a number."""
    weights = density_ratio(torch.zeros(20, 2), torch.full((20, 2), 50.0))
    assert weights.isfinite().all()
    assert (weights >= 0).all()


# Rankings


def graded(quality: float, seed: int = 0) -> tuple[Outputs, Outputs]:
    """A model that is the surer and the more often right the higher its quality is."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(120) % 3
    noise = torch.randn(2, 120, 3, generator=generator)
    features = torch.randn(2, 120, 4, generator=generator)
    logits = quality * torch.eye(3)[labels] + noise
    return Outputs(features[0], logits[0], labels), Outputs(features[1], logits[1])


def test_rank_orders_models_and_agrees() -> None:
    result = rank({"poor": graded(1), "good": graded(6), "fair": graded(3)})
    assert result.best == ("good",)
    assert result.ranks["information maximization"] == (3, 1, 2)
    assert result.ranks["source risk"] == (3, 1, 2)
    pair = ("source risk", "information maximization")
    assert result.agreement[pair] == pytest.approx(1)
    assert len(result.agreement) == 6
    for name, validator in VALIDATORS.items():
        assert result.scores[name][1] == validator.score(*graded(6))


def test_rank_says_that_validators_disagree() -> None:
    source, target = graded(4)
    worse_source, better_target = graded(3)[0], graded(9)[1]
    result = rank({"a": (source, target), "b": (worse_source, better_target)})
    assert not result.agreed
    assert result.favourites["source risk"] == ("a",)
    assert result.favourites["information maximization"] == ("b",)
    assert "disagree" in result.summary()
    assert "source risk: a" in str(result)
    assert "| source risk, information maximization | -1.00 |" in str(result)
    ties = rank({"a": (source, target), "b": (source, target)})
    assert ties.best == ("a", "b")
    assert ties.agreed
    assert math.isnan(ties.agreement["source risk", "soft neighborhood density"])


def test_rank_rejects() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        rank({})
    with pytest.raises(ValueError, match="the same samples"):
        rank({"a": graded(1), "b": (graded(1)[0], constant([0.0, 1.0, 2.0]))})
    target = graded(1)[1]
    with pytest.raises(ValueError, match="labels are needed"):
        rank({"a": (target, target)})


# Collecting


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
        self.head = nn.Linear(5, 2)

    def features(self, inputs: Any) -> Tensor:
        return self.body(inputs["x"] if isinstance(inputs, dict) else inputs)

    def forward(self, inputs: Any) -> Tensor:
        return self.head(self.features(inputs))


def test_collect_joins_batches_in_order_and_leaves_the_module_as_it_was() -> None:
    torch.manual_seed(0)
    model, x, y = Model(), torch.randn(11, 3), torch.arange(11) % 2
    model.body[1].eval()  # as frozen batch normalisation is
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outputs = collect(model, DataLoader(TensorDataset(x, y), 4), layers=["body.0"])
    assert model.training
    assert not model.body[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    torch.testing.assert_close(outputs.logits, model(x).detach())
    torch.testing.assert_close(outputs.features, model.features(x).detach())
    torch.testing.assert_close(outputs.layers["body.0"], model.body[0](x).detach())
    assert torch.equal(outputs.known_labels(), y)
    assert not outputs.logits.requires_grad
    half = outputs.subset(y == 1)
    assert half.accuracy() == float((half.predictions == 1).double().mean())
    assert len(model._forward_hooks) == len(model.body[0]._forward_hooks) == 0


def test_collect_takes_mappings_and_inputs_alone() -> None:
    torch.manual_seed(0)
    model, x = Model(), torch.randn(6, 3)
    plain = collect(model, [x[:2], x[2:]])
    named = collect(model, [{"x": x[:2]}, {"x": x[2:]}])
    assert plain.labels is None
    assert torch.equal(plain.logits, named.logits)
    both = collect(model, [({"x": x}, torch.zeros(6, dtype=torch.long))])
    assert both.labels is not None


def test_collect_runs_an_aligner() -> None:
    aligner = Aligner(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2), num_classes=2)
    outputs = collect(aligner, [torch.zeros(5, 2, 2)])
    assert outputs.features.shape == (5, 3)


class Counting(nn.Module):
    """Counts how often it computes features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.head = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2))
        self.calls = 0

    def features(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.body(inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))


class InTwoParts(Counting):
    def from_features(self, features: Tensor) -> Tensor:
        return self.head(features)


@pytest.mark.parametrize(("kind", "calls"), [(Counting, 2), (InTwoParts, 1)])
def test_collect_computes_features_once(kind: type[Counting], calls: int) -> None:
    """Also where the classifier changes them in place, and where the loader has one tensor."""
    torch.manual_seed(0)
    model = kind()
    buffer, rows = torch.empty(5, 3), torch.randn(15, 3)
    outputs = collect(model, (buffer.copy_(part) for part in rows.split(5)), layers=["body"])
    assert model.calls == 3 * calls
    torch.testing.assert_close(outputs.features, model.body(rows).detach())
    torch.testing.assert_close(outputs.logits, model(rows).detach())
    assert torch.equal(outputs.layers["body"], outputs.features)


@pytest.mark.parametrize(
    "make",
    [
        lambda body: Aligner(body, nn.Linear(4, 3), nn.Linear(3, 2), 2),
        lambda body: FineTuner(body, num_classes=2, in_features=4),
    ],
)
def test_trainers_compute_features_once(make: Any) -> None:
    module, passes = make(Counting().body), []
    module.backbone.register_forward_hook(lambda *_: passes.append(1))
    collect(module, torch.randn(6, 3).split(3))
    assert len(passes) == 2


@pytest.mark.parametrize(
    ("loader", "layers", "message"),
    [
        ([], (), "it gave none"),
        ([torch.zeros(2, 3), (torch.zeros(2, 3), torch.zeros(2))], (), "labels in 1 of 2 batches"),
        (
            [torch.zeros(2, 3)],
            ("tail",),
            r"layers must be names of modules, .*; got 'tail'",
        ),
        ([(torch.zeros(2, 3), torch.tensor([0, 2]))], (), r"labels must lie in \[0, 2\)"),
    ],
)
def test_collect_rejects(loader: Any, layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collect(Model(), loader, layers=layers)


def test_collect_needs_features() -> None:
    with pytest.raises(TypeError, match="Linear has no features"):
        collect(nn.Linear(3, 2), [torch.zeros(2, 3)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), torch.zeros(3, 2)), "features must be of shape"),
        ((torch.zeros(0, 2), torch.zeros(0, 2)), "n > 0"),
        ((torch.zeros(2, 2), torch.zeros(3, 2)), "the 3 rows of logits"),
        ((torch.zeros(3, 2), torch.zeros(3, 1)), "at least 2 columns"),
        ((torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(2)), r"labels must be of shape \[3\]"),
    ],
)
def test_outputs_reject(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Outputs(*arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: soft_neighborhood_density(None, constant([0.0, 1.0], 1)), "at least 2 samples"),
        (lambda: soft_neighborhood_density(None, constant([0.0, 1.0]), 0.0), "temperature"),
        (lambda: density_ratio(torch.zeros(9, 2), torch.zeros(9, 3)), "source and target must be"),
        (lambda: density_ratio(torch.zeros(4, 2), torch.zeros(9, 2)), "folds must lie between"),
        (
            lambda: importance_weighted_risk(*graded(1), weights=torch.ones(3)),
            r"weights must be of shape \[120\]",
        ),
    ],
)
def test_validators_reject(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
