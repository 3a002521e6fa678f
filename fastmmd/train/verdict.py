"""Whether one model is better than another on a target without labels, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastmmd.train.evaluation import IGNORED, Outputs
from fastmmd.train.validators import (
    VALIDATORS,
    Validator,
    density_ratio,
    importance_weighted_risk,
)

__all__ = [
    "LEAST_SAMPLES",
    "Evidence",
    "Says",
    "Verdict",
    "Word",
    "check_max_samples",
    "judge",
]

Word = Literal["helped", "did not help", "harmed", "unclear"]
Says = Literal["better", "worse", "same", "cannot tell"]

_ERRORS = 2.0  # a difference counts from so many of its standard errors
_SHARE = 0.05  # ... and from this share of the largest possible entropy: less is of no use
_GROUPS = 10  # of the jackknife
LEAST_SAMPLES = 2 * _GROUPS
_EFFECTIVE = 20.0  # samples that the importance weights must amount to
_MEAN_WEIGHT = (0.5, 2.0)  # 1 where the domains overlap

_ALIKE = 0.05  # share of the target on which models may disagree that are as good as each other

SOURCE, IM, SND, IWR = (
    "source risk",
    "information maximization",
    "soft neighborhood density",
    "importance-weighted risk",
)


@dataclass(frozen=True)
class Evidence:
    """What one validator says of the aligned model against its twin."""

    validator: str
    aligned: float
    twin: float
    gain: float  # how much better the aligned model is; negative if worse
    error: float  # standard error of the gain, from the samples
    says: Says
    counts: bool  # whether it has a say in the verdict


@dataclass(frozen=True)
class Verdict:
    """The result of :func:`judge`."""

    word: Word
    evidence: tuple[Evidence, ...]
    disagreement: float  # share of the target on which the models predict different classes
    true_gain: float | None  # in target accuracy; None without target labels
    true_error: float | None  # its standard error
    diverged: bool = False  # outputs of the aligned model are infinite or NaN: no evidence

    def __str__(self) -> str:
        """The verdict, and its evidence as a Markdown table."""
        lines = [
            self.sentence(),
            "",
            "| validator | aligned | source only | gain | says | counts |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {e.validator} | {e.aligned:.4g} | {e.twin:.4g} | {e.gain:+.2g} ± {e.error:.1g}"
            f" | {e.says} | {'yes' if e.counts else 'no'} |"
            for e in self.evidence
        ]
        return "\n".join(lines)

    def sentence(self) -> str:
        """The verdict in words, with the truth beside it where it could be measured."""
        counting = [e for e in self.evidence if e.counts]
        said = "; ".join(f"{e.validator}: {e.says}" for e in counting)
        said = "some of its outputs are infinite or NaN" if self.diverged else said
        text = {
            "helped": "Alignment helped",
            "did not help": "Alignment did not help",
            "harmed": "Alignment harmed",
            "unclear": "It is unclear whether alignment helped",
        }[self.word]
        text += (
            f", judged without target labels ({said}). The models disagree on"
            f" {100 * self.disagreement:.1f} % of the target samples, so accuracy has not changed"
            " by more than that."
        )
        if self.true_gain is not None:
            text += (
                f" Measured with target labels, accuracy changed by {100 * self.true_gain:+.1f}"
                f" ± {100 * (self.true_error or 0.0):.1f} points."
            )
        return text


def judge(
    aligned: tuple[Outputs, Outputs],
    twin: tuple[Outputs, Outputs],
    *,
    max_samples: int = 2000,
    seed: int = 0,
) -> Verdict:
    r"""Compares an aligned model with its source-only twin by the validators that see the target.

    A validator says better or worse if the two values differ by more than two standard errors of
    the difference and by more than 5 % of the largest possible entropy, log C (for soft
    neighborhood density, log(m - 1)). The standard error is that of a jackknife over ten groups of
    samples, the same for both models; it does not know how another training would have turned out.
    These have a say, where they can tell:

    - information maximization, unless entropy and diversity contradict each other: one model is
      surer, the other spreads over more classes;
    - soft neighborhood density, unless entropies or diversities differ: predictions that are all
      alike, however wrong, have the densest neighbourhoods;
    - importance-weighted risk, unless the weights of either model amount to fewer than 20 samples,
      :math:`(\sum w)^2 / \sum w^2`, or their mean is far from 1 (outside 1/2 to 2): then the
      domains hardly overlap in its features;
    - source risk, if it is worse: to be better on the source is not what alignment is for.

    The accuracies differ by no more than the share of target samples on which the two models
    predict different classes, whatever the labels are. The verdict is *helped* if some say better
    and none worse, *harmed* if some say worse and none better, otherwise *did not help* if that
    share is at most 5 %, and *unclear* if it is larger. It is *harmed* without further evidence if
    outputs of the aligned model are infinite or NaN, as after a training that diverged.

    Args:
        aligned: Outputs of the aligned model on held-out source samples, with labels, and on target
            samples. Target labels are used for the true difference alone.
        twin: Those of the source-only model on the same samples in the same order.
        max_samples: Of more, in either domain, so many are drawn; soft neighborhood density grows
            with their square.
        seed: Seed of that draw and of the groups.

    Raises:
        ValueError: The models were measured on different samples, the source has no labels, a
            domain has fewer than 20 samples, ``max_samples`` is less than 20, or outputs of the
            twin are infinite or NaN.
    """
    for i, domain in enumerate(("source", "target")):
        a, b = aligned[i], twin[i]
        same = len(a) == len(b) and (a.labels is None) == (b.labels is None)
        if not same or (a.labels is not None and not torch.equal(a.labels, b.labels)):  # type: ignore[arg-type]
            raise ValueError(f"aligned and twin must be measured on the same {domain} samples")
        if len(a) < LEAST_SAMPLES:
            raise ValueError(f"{domain} must have at least {LEAST_SAMPLES} samples; got {len(a)}")
    source = aligned[0].labelled(), twin[0].labelled()
    if len(source[0]) < LEAST_SAMPLES:
        raise ValueError(
            f"source must have at least {LEAST_SAMPLES} samples with labels; got {len(source[0])}"
        )
    aligned, twin = (source[0], aligned[1]), (source[1], twin[1])
    check_max_samples(max_samples)
    if not all(outputs.is_finite() for outputs in twin):
        raise ValueError("the outputs of twin must be finite to compare with; some are not")
    diverged = not all(outputs.is_finite() for outputs in aligned)
    evidence = () if diverged else _evidence(aligned, twin, max_samples, seed)
    votes = [e.says for e in evidence if e.counts and (e.validator, e.says) != (SOURCE, "better")]
    disagreement = float((aligned[1].predictions != twin[1].predictions).double().mean())
    word: Word = "unclear"
    if diverged:
        word = "harmed"
    elif ("better" in votes) != ("worse" in votes):
        word = "helped" if "better" in votes else "harmed"
    elif disagreement <= _ALIKE:
        word = "did not help"
    true_gain = true_error = None
    labels = aligned[1].labels
    if labels is not None and bool((labels != IGNORED).any()):
        measured = [m[1].labelled() for m in (aligned, twin)]
        difference = torch.stack([(m.predictions == m.known_labels()).double() for m in measured])
        difference = difference[0] - difference[1]
        true_gain = float(difference.mean())
        true_error = float(difference.std() / math.sqrt(len(difference)))
    return Verdict(word, evidence, disagreement, true_gain, true_error, diverged)


def check_max_samples(max_samples: int) -> None:
    """Raises ValueError for fewer samples than :func:`judge` needs."""
    if max_samples < LEAST_SAMPLES:
        raise ValueError(f"max_samples must be at least {LEAST_SAMPLES}; got {max_samples!r}")


def _evidence(
    aligned: tuple[Outputs, Outputs], twin: tuple[Outputs, Outputs], max_samples: int, seed: int
) -> tuple[Evidence, ...]:
    """What each validator says."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(len(outputs), generator=generator)[:max_samples] for outputs in aligned]
    models = [_Model(*(o.subset(r) for o, r in zip(m, rows, strict=True))) for m in (aligned, twin)]
    groups = [list(torch.tensor_split(torch.arange(len(part)), _GROUPS)) for part in rows]
    compared = {name: _compare(name, models, groups) for name in VALIDATORS}
    return tuple(
        Evidence(name, *numbers, _says(name, compared, models), name in (SOURCE, IM, SND, IWR))
        for name, numbers in compared.items()
    )


class _Model:
    """Outputs on both domains, and the importance weights of the source."""

    def __init__(self, source: Outputs, target: Outputs) -> None:
        self.source, self.target = source, target
        self.weights = density_ratio(source.features, target.features)

    def score(self, validator: Validator, s: Tensor, t: Tensor) -> float:
        """The validator on these rows of source and target."""
        source, target = self.source.subset(s), self.target.subset(t)
        if validator.name == IWR:
            # The density ratio is taken as given: to fit it for each group takes long.
            return importance_weighted_risk(source, target, weights=self.weights[s])
        return validator.score(source, target)

    def overlaps(self) -> bool:
        """Whether the weighted source can stand for the target."""
        low, high = _MEAN_WEIGHT
        effective = self.weights.sum().square() / self.weights.square().sum()
        return float(effective) >= _EFFECTIVE and low <= float(self.weights.mean()) <= high


def _compare(
    name: str, models: list[_Model], groups: list[list[Tensor]]
) -> tuple[float, float, float, float]:
    """The values of both models, the gain and its standard error."""
    validator = VALIDATORS[name]
    values = [model.score(validator, *map(torch.cat, groups)) for model in models]
    gains = []
    for k in range(_GROUPS):
        rest = [torch.cat(parts[:k] + parts[k + 1 :]) for parts in groups]
        gains.append(validator.gain(*(model.score(validator, *rest) for model in models)))
    spread = torch.tensor(gains, dtype=torch.float64)
    variance = (_GROUPS - 1) * (spread - spread.mean()).square().mean()
    return values[0], values[1], validator.gain(*values), float(variance.sqrt())


# What has to be looked at beside a validator.
_PARTS = {IM: ("target entropy", "diversity"), SND: ("target entropy", "diversity")}


def _says(
    name: str, compared: dict[str, tuple[float, float, float, float]], models: list[_Model]
) -> Says:
    parts = {_says(part, compared, models) for part in _PARTS.get(name, ())}
    if (
        (name == IM and {"better", "worse"} <= parts)
        or (name == SND and parts != {"same"})
        or (name == IWR and not all(model.overlaps() for model in models))
    ):
        return "cannot tell"
    target = models[0].target
    scale = math.log(len(target) - 1 if name == SND else target.logits.shape[1])
    *_, gain, error = compared[name]
    if not abs(gain) > max(_ERRORS * error, _SHARE * scale):
        return "same"
    return "better" if gain > 0 else "worse"
