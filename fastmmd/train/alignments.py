"""Discrepancies between the activations of two domains: the part of a training that aligns them.

Each is a module called with the :class:`Activations` of a source batch and of a target batch, and
returns a scalar to be minimised. What they compute are the losses of the package; what they add is
which layers, logits and labels go in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fastmmd.checks import BIASED, ESTIMATORS, UNBIASED
from fastmmd.classwise import check_presence, class_conditional_mmd2, local_mmd2
from fastmmd.joint import joint_mmd2
from fastmmd.kernels import Gaussian, Kernel, as_kernel
from fastmmd.losses import CORALLoss, EnergyDistanceLoss, MMDLoss
from fastmmd.random_features import RandomFeatureMMDLoss
from fastmmd.train.distributed import mmd2_share
from fastmmd.train.gradients import scale_gradients

__all__ = [
    "Activations",
    "Alignment",
    "ClassConditionalAlignment",
    "JointAlignment",
    "LayerwiseAlignment",
    "LocalAlignment",
    "as_alignment",
]

# JAN's kernel of the softmax, exp(-r^2 / 1.68).
SOFTMAX_KERNEL = (0.84**0.5, (1.0,))


@dataclass(frozen=True)
class Activations:
    """What a network made of one batch of one domain.

    Attributes:
        layers: The layers that are aligned, each [n, d_l], by name; the last is ``"features"``.
        logits: Outputs of the classifier, [n, C].
        labels: Classes, [n], integer; None of an unlabelled target.
    """

    layers: Mapping[str, Tensor]
    logits: Tensor
    labels: Tensor | None = None

    @property
    def features(self) -> Tensor:
        """The layer that the classifier looks at, [n, d]."""
        return self.layers["features"]

    def tensors(self) -> list[Tensor]:
        """The layers in their order, then the logits."""
        return [*self.layers.values(), self.logits]

    def replace(self, tensors: Sequence[Tensor], labels: Tensor | None = None) -> Activations:
        """The same layers with other contents, in the order of :meth:`tensors`."""
        layers = dict(zip(self.layers, tensors[:-1], strict=True))
        return Activations(layers, tensors[-1], labels)

    def with_gradient_times(self, factor: float) -> Activations:
        """The same values; gradients that pass through them are multiplied by the factor."""
        if factor == 1:
            return self
        return self.replace(scale_gradients(self.tensors(), factor), self.labels)

    def __len__(self) -> int:
        return len(self.logits)


class Alignment(nn.Module):
    """Base class of discrepancies of :class:`Activations`.

    A subclass has ``forward(source, target)``, which returns a scalar. Its gradient reaches the
    network times the weight that the trainer gives it; parameters of its own are trained at the
    full rate, as a discriminator has to be.
    """

    def share(
        self, source: Activations, target: Activations, sources: Activations, targets: Activations
    ) -> Tensor | None:
        """What the rows of this process add to the discrepancy of the rows of all processes.

        Args:
            source: Rows of this process, which take gradients.
            target: As ``source``.
            sources: Rows of all processes, constants; those of this process are among them.
            targets: As ``sources``.

        Returns:
            A scalar whose sum over the processes is ``forward(sources, targets)``, with the whole
            gradient of that sum in the rows, and its share of the gradient in parameters; None
            where there is no way but to compute the whole, which is then done.
        """
        return None


class LayerwiseAlignment(Alignment):
    """Sum over the aligned layers of a loss of two samples.

    With :class:`fastmmd.MMDLoss` on the features alone it is Deep Domain Confusion (DDC; Tzeng et
    al., arXiv 1412.3474, 2014); on several layers, the classifier's output among them, Deep
    Adaptation Networks (DAN; Long et al., ICML 2015); with :class:`fastmmd.CORALLoss` it is Deep
    CORAL (Sun and Saenko, ECCV 2016).

    Args:
        loss: Called with features [n, d] of the source and [m, d] of the target, returns a scalar.
            Default ``MMDLoss()``.
        logits: Whether the logits are one of the layers.

    Raises:
        TypeError: The loss is no module.

    Example:
        >>> import torch
        >>> from fastmmd.train import Activations, LayerwiseAlignment
        >>> x = Activations({"features": torch.zeros(4, 8)}, torch.zeros(4, 3))
        >>> float(LayerwiseAlignment(logits=True)(x, x))
        0.0
    """

    def __init__(self, loss: nn.Module | None = None, logits: bool = False) -> None:
        super().__init__()
        if loss is not None and not isinstance(loss, nn.Module):
            raise TypeError(f"loss must be a torch.nn.Module or None, got {loss!r}")
        self.loss = MMDLoss() if loss is None else loss
        self.logits = logits

    def forward(self, source: Activations, target: Activations) -> Tensor:
        """The sum over layers, a scalar."""
        return total(self.loss(x, y) for x, y in self._pairs(source, target))

    def share(
        self, source: Activations, target: Activations, sources: Activations, targets: Activations
    ) -> Tensor | None:
        """The share of the MMD, biased or unbiased; None for other losses and sums of them."""
        loss = self.loss
        # Not of a subclass, of this or of the loss: nobody knows what its forward does.
        if _overrides(self, LayerwiseAlignment, "forward", "_pairs"):
            return None
        if type(loss) not in (MMDLoss, EnergyDistanceLoss) or not isinstance(loss, MMDLoss):
            return None
        number = ESTIMATORS[loss.estimator]
        if number not in (BIASED, UNBIASED):
            return None
        own, everyone = self._pairs(source, target), self._pairs(sources, targets)
        return total(
            mmd2_share([x], [y], [all_x], [all_y], [loss.kernel], number)
            for (x, y), (all_x, all_y) in zip(own, everyone, strict=True)
        )

    def _pairs(self, source: Activations, target: Activations) -> list[tuple[Tensor, Tensor]]:
        pairs = list(zip(source.layers.values(), target.layers.values(), strict=True))
        return [*pairs, (source.logits, target.logits)] if self.logits else pairs


class JointAlignment(Alignment):
    """MMD between the joint distributions of all aligned layers and the class probabilities.

    Joint Adaptation Networks (JAN; Long et al., ICML 2017): the product of one kernel for each
    layer and one for the softmax of the logits, see :func:`fastmmd.joint_mmd2`.

    Args:
        kernel: Of each layer. Default ``Gaussian("mean")``.
        softmax_kernel: Of the probabilities. Default one Gaussian with ``2 s^2 = 1.68``, as in the
            authors' program.
        estimator: As for :class:`fastmmd.MMDLoss`.

    Raises:
        TypeError: A kernel that is none.
        ValueError: An unknown estimator.
    """

    def __init__(
        self,
        kernel: Kernel | None = None,
        softmax_kernel: Kernel | None = None,
        estimator: str = "biased",
    ) -> None:
        super().__init__()
        self.kernel = as_kernel(kernel)
        bandwidth, multipliers = SOFTMAX_KERNEL
        self.softmax_kernel = as_kernel(softmax_kernel or Gaussian(bandwidth, multipliers))
        self.estimator = MMDLoss(estimator=estimator).estimator

    def forward(self, source: Activations, target: Activations) -> Tensor:
        """The discrepancy, a scalar."""
        x, y = self._layers(source), self._layers(target)
        return joint_mmd2(x, y, self._kernels(x), self.estimator)

    def share(
        self, source: Activations, target: Activations, sources: Activations, targets: Activations
    ) -> Tensor | None:
        """The share of the joint MMD, biased or unbiased; None for other estimators."""
        number = ESTIMATORS[self.estimator]
        own_way = _overrides(self, JointAlignment, "forward", "_kernels", "_layers")
        if own_way or number not in (BIASED, UNBIASED):
            return None
        x, y, all_x, all_y = map(self._layers, (source, target, sources, targets))
        return mmd2_share(x, y, all_x, all_y, self._kernels(x), number)

    def _kernels(self, layers: Sequence[Tensor]) -> list[Kernel]:
        return [*[self.kernel] * (len(layers) - 1), self.softmax_kernel]

    @staticmethod
    def _layers(side: Activations) -> list[Tensor]:
        return [*side.layers.values(), side.logits.softmax(1)]


class _ByClass(Alignment):
    """A discrepancy of features by source labels and what the classifier says of the target."""

    def __init__(self, kernel: Kernel | None = None) -> None:
        super().__init__()
        self.kernel = as_kernel(kernel)

    def forward(self, source: Activations, target: Activations) -> Tensor:
        """The discrepancy, a scalar.

        Raises:
            ValueError: The source has no labels.
        """
        if source.labels is None:
            raise ValueError(f"{type(self).__name__} needs the labels of the source, got None")
        points = source.features, target.features
        return self._mmd2(*points, source.labels, target.logits, source.logits.shape[1])

    def _mmd2(
        self, x: Tensor, y: Tensor, labels: Tensor, target_logits: Tensor, num_classes: int
    ) -> Tensor:
        raise NotImplementedError


class LocalAlignment(_ByClass):
    """MMD of the features within each class, by source labels and target probabilities.

    Deep Subdomain Adaptation Networks (DSAN; Zhu et al., IEEE TNNLS 2020), see
    :func:`fastmmd.local_mmd2`. A class that one of the two batches does not hold has no share in
    it; without a common class it is 0.

    Args:
        kernel: Default ``Gaussian("mean")``.
        presence: As for :func:`fastmmd.local_mmd2`.

    Raises:
        TypeError: A kernel that is none.
        ValueError: An unknown presence. In use: the source has no labels.
    """

    def __init__(self, kernel: Kernel | None = None, presence: str = "argmax") -> None:
        super().__init__(kernel)
        self.presence = check_presence(presence)

    def _mmd2(
        self, x: Tensor, y: Tensor, labels: Tensor, target_logits: Tensor, num_classes: int
    ) -> Tensor:
        shares = target_logits.softmax(1)
        return local_mmd2(x, y, labels, shares, num_classes, self.kernel, presence=self.presence)


class ClassConditionalAlignment(_ByClass):
    """MMD of the features within classes less that between classes, by pseudo-labels.

    Target points are taken to be of the class with the largest logit. The discrepancy is that of
    Contrastive Adaptation Networks (CAN; Kang et al., CVPR 2019), whose pseudo-labels come from a
    clustering, see :func:`fastmmd.class_conditional_mmd2`. It may be negative.

    Args:
        kernel: Default ``Gaussian("mean")``.

    Raises:
        TypeError: A kernel that is none.
        ValueError: In use: the source has no labels.
    """

    def _mmd2(
        self, x: Tensor, y: Tensor, labels: Tensor, target_logits: Tensor, num_classes: int
    ) -> Tensor:
        classes = target_logits.argmax(1)
        return class_conditional_mmd2(x, y, labels, classes, num_classes, self.kernel)


def _overrides(alignment: Alignment, base: type[Alignment], *names: str) -> bool:
    """Whether the class of an alignment has another one of these methods than the base has."""
    return any(getattr(type(alignment), name) is not getattr(base, name) for name in names)


def total(losses: Iterable[Tensor]) -> Tensor:
    """The sum of scalars, without the 0 that ``sum`` begins with."""
    first, *others = losses
    for loss in others:
        first = first + loss
    return first


def _adversarial(conditional: bool) -> Callable[[int, int], Alignment]:
    def make(num_features: int, num_classes: int) -> Alignment:
        from fastmmd.train.adversarial import AdversarialAlignment, ConditionalAdversarialAlignment

        if conditional:
            return ConditionalAdversarialAlignment(num_features, num_classes)
        return AdversarialAlignment(num_features)

    return make


# By the names under which they were published: makers, called with the numbers of features and of
# classes.
NAMED: dict[str, Callable[[int, int], Alignment]] = {
    "ddc": lambda *_: LayerwiseAlignment(),
    "dan": lambda *_: LayerwiseAlignment(logits=True),
    "jan": lambda *_: JointAlignment(),
    "dsan": lambda *_: LocalAlignment(),
    "can": lambda *_: ClassConditionalAlignment(),
    "coral": lambda *_: LayerwiseAlignment(CORALLoss()),
    "energy": lambda *_: LayerwiseAlignment(EnergyDistanceLoss()),
    "random_features": lambda *_: LayerwiseAlignment(RandomFeatureMMDLoss()),
    "dann": _adversarial(conditional=False),
    "cdan": _adversarial(conditional=True),
}
ADVERSARIAL = ("dann", "cdan")


def as_alignment(
    alignment: str | nn.Module | None, classifier: nn.Module, num_classes: int
) -> Alignment:
    """The alignment that is meant.

    Args:
        alignment: A name; an :class:`Alignment`; a module called as ``loss(x, y)``, which is then
            taken of each layer; or None for ``"ddc"``.
        classifier: Module whose first linear layer tells the number of features.
        num_classes: Number of classes.

    Raises:
        ValueError: An unknown name, or an adversarial one and a classifier without a linear layer.
        TypeError: Something else.
    """
    if alignment is None:
        alignment = "ddc"
    if isinstance(alignment, Alignment):
        return alignment
    if isinstance(alignment, nn.Module):
        return LayerwiseAlignment(alignment)
    if not isinstance(alignment, str):
        raise TypeError(f"alignment must be a name, a torch.nn.Module or None, got {alignment!r}")
    if alignment not in NAMED:
        raise ValueError(f"alignment must be one of {', '.join(NAMED)}; got {alignment!r}")
    width = 0
    if alignment in ADVERSARIAL:
        linear = (m.in_features for m in classifier.modules() if isinstance(m, nn.Linear))
        width = next(linear, 0)
        if not width:
            raise ValueError(
                f"alignment={alignment!r} needs a classifier with a torch.nn.Linear, which tells"
                " the number of features; of another give the module itself, such as"
                " AdversarialAlignment(num_features)"
            )
    return NAMED[alignment](width, num_classes)
