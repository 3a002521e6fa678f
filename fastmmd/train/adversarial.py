"""Alignment by a discriminator that tells the domains apart, for comparison with the MMD."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmmd.dtypes import concatenated
from fastmmd.train.alignments import Activations, Alignment

__all__ = ["AdversarialAlignment", "ConditionalAdversarialAlignment"]


class AdversarialAlignment(Alignment):
    r"""Domain-adversarial training: a discriminator, and features that mislead it (DANN).

    The loss is the discriminator's, with D its logit of "source":

    ``1/2 (mean_i softplus(-D(f(x_i))) + mean_j softplus(D(f(y_j))))``,

    so each domain counts one half whatever the sizes of the batches. The discriminator descends it;
    the gradient that reaches the features is reversed, so that they ascend it (Ganin et al.,
    "Domain-adversarial training of neural networks", JMLR 2016). At log 2 = 0.69 the domains cannot
    be told apart.

    Args:
        num_features: d, the width of the features.
        hidden: Width of the two hidden layers of the discriminator.

    Raises:
        ValueError: A number less than 1.
    """

    def __init__(self, num_features: int, hidden: int = 256) -> None:
        super().__init__()
        check_at_least_one(num_features=num_features, hidden=hidden)
        # No batch normalisation: it would show each domain's own statistics, not the mixture's.
        self.discriminator = nn.Sequential(
            nn.Linear(num_features, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )

    def inputs(self, activations: Activations) -> Tensor:
        """What the discriminator sees, [n, its width]."""
        return activations.features

    def forward(self, source: Activations, target: Activations) -> Tensor:
        """The loss of the discriminator, a scalar, with reversed gradients to the features."""
        sides = [self.inputs(side.with_gradient_times(-1.0)) for side in (source, target)]
        scores = self.discriminator(concatenated(sides)).flatten()
        if scores.dtype != torch.float64:  # half precision under autocast
            scores = scores.float()
        of_source, of_target = scores.split([len(source), len(target)])
        loss: Tensor = 0.5 * (F.softplus(-of_source).mean() + F.softplus(of_target).mean())
        return loss


class ConditionalAdversarialAlignment(AdversarialAlignment):
    """Adversarial training on the outer product of features and class probabilities (CDAN).

    Long et al., "Conditional adversarial domain adaptation" (NeurIPS 2018), without its entropy
    weights. The discriminator sees ``f g^T`` with g the softmax of the logits, a constant here as
    in the authors' program. If that has more than 4096 entries, it sees the D random products
    ``(R_f f) * (R_g g) / sqrt(D)`` instead, with normal matrices R that are drawn once and saved
    with the module.

    Args:
        num_features: d, the width of the features.
        num_classes: C, the number of classes.
        hidden: Width of the two hidden layers of the discriminator.
        num_products: D, the number of random products.
        randomized: Whether to take them; None for whether ``d C`` is above 4096.

    Raises:
        ValueError: A number less than 1.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        hidden: int = 256,
        num_products: int = 1024,
        randomized: bool | None = None,
    ) -> None:
        check_at_least_one(
            num_features=num_features, num_classes=num_classes, num_products=num_products
        )
        if randomized is None:
            randomized = num_features * num_classes > 4096
        super().__init__(num_products if randomized else num_features * num_classes, hidden)
        self.randomized = randomized
        if randomized:
            self.register_buffer("of_features", torch.randn(num_features, num_products))
            self.register_buffer("of_classes", torch.randn(num_classes, num_products))

    def inputs(self, activations: Activations) -> Tensor:
        """Products of features and probabilities, [n, d C] or [n, D]."""
        features = activations.features
        classes = activations.logits.detach().softmax(1).to(features.dtype)
        if not self.randomized:
            return (features.unsqueeze(2) * classes.unsqueeze(1)).flatten(1)
        of_features, of_classes = self.get_buffer("of_features"), self.get_buffer("of_classes")
        products = (features @ of_features) * (classes @ of_classes)
        return products / math.sqrt(of_features.shape[1])


def check_at_least_one(**numbers: int) -> None:
    """Raise unless each number is an integer and positive."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
