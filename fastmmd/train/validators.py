"""Validators: how good a model is on a target without labels, and which of several is best.

Each is a function of the :class:`~fastmmd.train.Outputs` of a model on held-out source samples,
with labels, and on target samples, whose labels none of them reads. None is right in every case:
:func:`rank` shows several side by side, and says where they disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmmd.train.evaluation import IGNORED, Outputs

__all__ = [
    "VALIDATORS",
    "Ranking",
    "Validator",
    "density_ratio",
    "diversity",
    "importance_weighted_risk",
    "information_maximization",
    "rank",
    "soft_neighborhood_density",
    "source_risk",
    "target_entropy",
]

_BLOCK = 1024  # rows of the similarity matrix at a time


def source_risk(source: Outputs, target: Outputs | None = None) -> float:
    r"""Mean cross-entropy on the held-out source; lower is better.

    :math:`\frac1n \sum_i -\log p_{i, y_i}`. It knows nothing of the target: a model that forgot
    what it was to learn shows here, one that does not transfer does not.

    Raises:
        ValueError: The source has no labels.

    Example:
        >>> sure = Outputs(torch.eye(2), 100 * torch.eye(2), torch.tensor([0, 1]))
        >>> source_risk(sure)
        0.0
    """
    return float(source.labelled().losses().mean())


def target_entropy(source: Outputs | None, target: Outputs) -> float:
    r"""Mean entropy of the predictions on the target, in nats; lower is better.

    :math:`\frac1m \sum_j H(p_j)`, :math:`H(p) = -\sum_c p_c \log p_c`: in [0, log C]. Used to
    choose hyperparameters by Morerio et al., "Minimal-Entropy Correlation Alignment for
    Unsupervised Deep Domain Adaptation", ICLR 2018. A model that gives every sample the same class
    with certainty has the best value.
    """
    return float(torch.special.entr(target.probabilities).sum(1).mean())


def diversity(source: Outputs | None, target: Outputs) -> float:
    r"""Entropy of the mean prediction on the target, in nats; higher is better.

    :math:`H(\bar p)`, :math:`\bar p = \frac1m \sum_j p_j`: in [0, log C], 0 where all samples get
    one class. It is largest for equally frequent classes, whether the target's are or not.
    """
    return float(torch.special.entr(target.probabilities.mean(0)).sum())


def information_maximization(source: Outputs | None, target: Outputs) -> float:
    r"""Mutual information of target samples and predicted classes, in nats; higher is better.

    :math:`H(\bar p) - \frac1m \sum_j H(p_j)`, :func:`diversity` less :func:`target_entropy`: in
    [0, log C]. Shi and Sha, "Information-Theoretical Learning of Discriminative Clusters for
    Unsupervised Domain Adaptation", ICML 2012.
    """
    return diversity(source, target) - target_entropy(source, target)


def soft_neighborhood_density(
    source: Outputs | None, target: Outputs, temperature: float = 0.05
) -> float:
    r"""How densely the predictions on the target have neighbours, in nats; higher is better.

    With :math:`u_j = p_j / |p_j|_2` and :math:`s_{jk} = \langle u_j, u_k \rangle / \tau`, the mean
    over j of the entropy of the softmax of :math:`s_{jk}` over :math:`k \ne j`: in [0, log(m - 1)].
    Saito et al., "Tune it the Right Way: Unsupervised Validation of Domain Adaptation via Soft
    Neighborhood Density", ICCV 2021, with their :math:`\tau`. It depends on m, so compare models
    on the same samples. A model that gives every sample the same prediction has the largest value.

    Args:
        source: Not read.
        target: Outputs of m samples; time grows as m^2, memory as m.
        temperature: :math:`\tau`, positive.

    Raises:
        ValueError: Fewer than 2 samples, or a temperature that is not positive.
    """
    if len(target) < 2:
        raise ValueError(f"target must have at least 2 samples; got {len(target)}")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a positive number; got {temperature!r}")
    directions = F.normalize(target.probabilities, dim=1)
    total = 0.0
    for start in range(0, len(directions), _BLOCK):
        similarity = directions[start : start + _BLOCK] @ directions.T / temperature
        rows = torch.arange(len(similarity))
        similarity[rows, start + rows] = -math.inf
        total += float(torch.special.entr(similarity.softmax(1)).sum())
    return total / len(directions)


def density_ratio(source: Tensor, target: Tensor, *, folds: int = 5, seed: int = 0) -> Tensor:
    r"""Importance weights of source samples: the density of the target over that of the source.

    :math:`w(x) = \frac{n}{m} \frac{P(\text{target} | x)}{P(\text{source} | x)}`, with the
    probabilities of a logistic regression on standardised features (Bickel et al., "Discriminative
    Learning for Differing Training and Test Distributions", ICML 2007). The weight of a sample
    comes from a regression that did not see it, one of ``folds``.

    Args:
        source: Features [n, d].
        target: Features [m, d].
        folds: Number of parts, at least 2, at most n and m.
        seed: Seed of the split.

    Returns:
        Weights [n], float64, positive; their mean is near 1 if the domains overlap.

    Raises:
        ValueError: Another rank or width, or fewer samples than folds.
    """
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(
            "source and target must be of shapes [n, d] and [m, d]; got"
            f" {tuple(source.shape)} and {tuple(target.shape)}"
        )
    # Not at the top: importing fastmmd.train would take a second longer.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    n, m = len(source), len(target)
    if not 2 <= folds <= min(n, m):
        raise ValueError(f"folds must lie between 2 and the {min(n, m)} samples; got {folds!r}")
    points = torch.cat((source, target)).double().numpy()
    domain = torch.cat((torch.zeros(n), torch.ones(m))).long().numpy()
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    # On one thread: products this small gain nothing from more, and lose much on a busy machine.
    with threadpool_limits(1, "blas"):
        # The log-odds, which are finite where a probability rounds to 0 or 1.
        odds = cross_val_predict(classifier, points, domain, cv=split, method="decision_function")
    return torch.from_numpy(odds[:n]).exp() * (n / m)


def importance_weighted_risk(
    source: Outputs,
    target: Outputs,
    *,
    control_variate: bool = True,
    weights: Tensor | None = None,
) -> float:
    r"""Risk on the target, estimated from weighted source losses; lower is better.

    With cross-entropies :math:`\ell_i` and weights :math:`w_i` of :func:`density_ratio`,

    .. math:: \frac1n \sum_i w_i \ell_i + \eta \left(\frac1n \sum_i w_i - 1\right), \quad
        \eta = -\frac{\text{Cov}(w \ell, w)}{\text{Var}(w)}.

    The second term has expectation 0 and takes away variance: Deep Embedded Validation (You et
    al., "Towards Accurate Model Selection in Deep Unsupervised Domain Adaptation", ICML 2019).
    Without it, importance-weighted validation (Sugiyama et al., JMLR 8, 2007). It is right under
    covariate shift, if the source has samples wherever the target has them in the feature space.
    The authors fit the ratio on training samples; here it is cross-fitted.

    Args:
        source: Held-out source with labels, n samples.
        target: Target, m samples.
        control_variate: With the second term.
        weights: Weights [n] in place of the estimated ones.

    Raises:
        ValueError: The source has no labels, weights of another shape, or fewer samples than folds.
    """
    if weights is None:
        weights = density_ratio(source.features, target.features)
    elif weights.shape != (len(source),):
        raise ValueError(f"weights must be of shape [{len(source)}]; got {tuple(weights.shape)}")
    known = source.known_labels() != IGNORED
    weights = weights.double()[known]
    weighted = weights * source.labelled().losses()
    risk = weighted.mean()
    if control_variate:
        centred = weights - weights.mean()
        variance = centred.square().mean()
        if variance > 0:
            covariance = (centred * (weighted - weighted.mean())).mean()
            risk = risk - covariance / variance * (weights.mean() - 1)
    return float(risk)


@dataclass(frozen=True)
class Validator:
    """A function of source and target outputs, and how its values are read."""

    name: str
    score: Callable[[Outputs, Outputs], float]
    higher_is_better: bool
    counts: bool  # whether it has a say; not one that is good for a model that failed
    target: bool = True  # whether it looks at the target

    def gain(self, new: float, old: float) -> float:
        """How much better a value is than another; negative if worse."""
        return new - old if self.higher_is_better else old - new


VALIDATORS: dict[str, Validator] = {
    validator.name: validator
    for validator in (
        Validator("source risk", source_risk, False, counts=True, target=False),
        Validator("target entropy", target_entropy, False, counts=False),
        Validator("diversity", diversity, True, counts=False),
        Validator("information maximization", information_maximization, True, counts=True),
        Validator("soft neighborhood density", soft_neighborhood_density, True, counts=True),
        Validator("importance-weighted risk", importance_weighted_risk, False, counts=True),
    )
}


@dataclass(frozen=True)
class Ranking:
    """The result of :func:`rank`."""

    runs: tuple[str, ...]
    scores: dict[str, tuple[float, ...]]  # by validator, in the order of runs
    ranks: dict[str, tuple[float, ...]]  # 1 is best; ties share the mean of their ranks
    agreement: dict[tuple[str, str], float]  # Kendall's tau-b of two that count; NaN if all tie

    @property
    def mean_ranks(self) -> tuple[float, ...]:
        """Mean rank of each run over the validators that count."""
        counting = [self.ranks[name] for name in self.scores if VALIDATORS[name].counts]
        return tuple(sum(column) / len(counting) for column in zip(*counting, strict=True))

    @property
    def best(self) -> tuple[str, ...]:
        """The runs of the best mean rank: one, or several that tie."""
        least = min(self.mean_ranks)
        return tuple(
            run for run, mean in zip(self.runs, self.mean_ranks, strict=True) if mean == least
        )

    @property
    def favourites(self) -> dict[str, tuple[str, ...]]:
        """The runs that each validator that counts puts first."""
        return {
            name: tuple(r for r, place in zip(self.runs, ranks, strict=True) if place == min(ranks))
            for name, ranks in self.ranks.items()
            if VALIDATORS[name].counts
        }

    @property
    def agreed(self) -> bool:
        """Whether some run is first for every validator that counts."""
        return bool(set.intersection(*map(set, self.favourites.values())))

    def __str__(self) -> str:
        """Markdown: scores and ranks, whether the validators agree, and how far each two do."""
        names = list(self.scores)
        lines = [
            f"| run | {' | '.join(names)} | mean rank |",
            "|---" * (len(names) + 2) + "|",
        ]
        for i, run in enumerate(self.runs):
            cells = [f"{self.scores[n][i]:.4g} ({self.ranks[n][i]:g})" for n in names]
            lines.append(f"| {run} | {' | '.join(cells)} | {self.mean_ranks[i]:.3g} |")
        pairs = [f"| {a}, {b} | {tau:.2f} |" for (a, b), tau in self.agreement.items()]
        agreement = ["| validators | Kendall's tau |", "|---|---|", *pairs]
        return "\n".join([*lines, "", self.summary(), "", *agreement])

    def summary(self) -> str:
        """Which run is best, and whether the validators agree."""
        best = " and ".join(self.best)
        if self.agreed:
            return f"The validators that count all put {best} first."
        firsts = "; ".join(f"{name}: {', '.join(runs)}" for name, runs in self.favourites.items())
        return f"The validators disagree ({firsts}). By mean rank: {best}."


def rank(runs: Mapping[str, tuple[Outputs, Outputs]]) -> Ranking:
    """Ranks models by the validators, without target labels.

    Those that count have an equal say in the mean rank. Target entropy and diversity are shown
    alone: each is at its best for a model that failed, and information maximization is their
    difference.

    Args:
        runs: By name, outputs on the held-out source, with labels, and on the target. All runs
            must be measured on the same samples.

    Returns:
        Scores, ranks and how far the validators agree.

    Raises:
        ValueError: No runs, a source without labels, or runs of different numbers of samples.

    Example:
        >>> labels = torch.arange(40) % 2
        >>> good = 4.0 * torch.eye(2)[labels]
        >>> runs = {
        ...     "aligned": (Outputs(good, good, labels), Outputs(good, good)),
        ...     "unsure": (Outputs(good, good / 4, labels), Outputs(good, good / 4)),
        ... }
        >>> rank(runs).best
        ('aligned',)
    """
    from scipy.stats import kendalltau, rankdata

    if not runs:
        raise ValueError("runs must hold at least one run; got none")
    sizes = {name: (len(source), len(target)) for name, (source, target) in runs.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"runs must be measured on the same samples; their numbers are {sizes}")
    scores = {
        name: tuple(validator.score(source, target) for source, target in runs.values())
        for name, validator in VALIDATORS.items()
    }
    ranks = {
        name: tuple(
            rankdata([-v if VALIDATORS[name].higher_is_better else v for v in values]).tolist()
        )
        for name, values in scores.items()
    }
    counting = [name for name in scores if VALIDATORS[name].counts]
    agreement = {
        (a, b): float(kendalltau(ranks[a], ranks[b]).statistic)
        for i, a in enumerate(counting)
        for b in counting[i + 1 :]
    }
    return Ranking(tuple(runs), scores, ranks, agreement)
