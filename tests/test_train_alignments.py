"""The discrepancies that a trainer takes, each against its definition, and the batches they see."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

import fastmmd as fm
from fastmmd.train import (
    Activations,
    AdversarialAlignment,
    Aligner,
    ClassConditionalAlignment,
    ConditionalAdversarialAlignment,
    DomainData,
    DomainPair,
    JointAlignment,
    LayerwiseAlignment,
    LocalAlignment,
    Samples,
    alignment_weight,
)
from fastmmd.train.alignments import NAMED, as_alignment
from fastmmd.train.batches import read_batch
from fastmmd.train.data import known_labels
from fastmmd.train.datasets.domains import Domain

pytestmark = pytest.mark.training

CLASSES, WIDTH = 3, 5


def activations(n: int, seed: int, labelled: bool = True) -> Activations:
    """Two layers and logits, float64, which take gradients."""
    generator = torch.Generator().manual_seed(seed)

    def points(width: int) -> Tensor:
        out = torch.randn(n, width, generator=generator, dtype=torch.float64) + seed
        return out.requires_grad_()

    labels = torch.arange(n) % CLASSES if labelled else None
    return Activations({"early": points(7), "features": points(WIDTH)}, points(CLASSES), labels)


def sides() -> tuple[Activations, Activations]:
    return activations(12, 0), activations(9, 1, labelled=False)


def parts(**options: Any) -> dict[str, Any]:
    torch.manual_seed(7)
    return {
        "backbone": nn.Sequential(nn.Linear(2, 16), nn.ReLU()),
        "bottleneck": nn.Sequential(nn.Linear(16, WIDTH), nn.Tanh()),
        "classifier": nn.Linear(WIDTH, CLASSES),
        "num_classes": CLASSES,
        **options,
    }


def blobs(n: int, shift: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    angles = labels * (2 * math.pi / CLASSES)
    centres = 2 * torch.stack((angles.cos(), angles.sin()), dim=1)
    return centres + shift + 0.3 * torch.randn(n, 2, generator=generator), labels


def trainer(**options: Any) -> L.Trainer:
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    return L.Trainer(**{"accelerator": "cpu", **quiet, **options})


# Each against its definition


def expected(name: str, x: Activations, y: Activations) -> Tensor:
    """What the alignment of a name is, by the functions of the package."""
    features = x.features, y.features
    layers = [(x.layers["early"], y.layers["early"]), features]
    p, q = x.logits.softmax(1), y.logits.softmax(1)
    own = fm.Gaussian(math.sqrt(0.84), (1,))
    mean = fm.Gaussian("mean")
    return {
        "ddc": lambda: sum(fm.mmd2(a, b) for a, b in layers),
        "dan": lambda: sum(fm.mmd2(a, b) for a, b in [*layers, (x.logits, y.logits)]),
        "jan": lambda: fm.joint_mmd2(
            (*x.layers.values(), p), (*y.layers.values(), q), (mean, mean, own)
        ),
        "dsan": lambda: fm.local_mmd2(*features, x.labels, q, CLASSES),
        "can": lambda: fm.class_conditional_mmd2(*features, x.labels, q.argmax(1), CLASSES),
        "coral": lambda: sum(fm.coral(a, b) for a, b in layers),
        "energy": lambda: sum(fm.energy_distance(a, b) for a, b in layers),
        "random_features": lambda: sum(fm.random_feature_mmd2(a, b) for a, b in layers),
    }[name]()


@pytest.mark.parametrize("name", [n for n in NAMED if n not in ("dann", "cdan")])
def test_named_alignments_are_what_their_papers_say(name: str) -> None:
    x, y = sides()
    value = as_alignment(name, nn.Identity(), CLASSES)(x, y)
    torch.testing.assert_close(value, expected(name, x, y), rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(value, [x.features, y.features])
    assert all(g.abs().max() > 0 for g in gradients)


def test_softmax_kernel_of_jan() -> None:
    """exp(-r^2 / 1.68) on the probabilities, as in the authors' program."""
    x, y = sides()
    loss = JointAlignment(kernel=fm.Linear())
    x, y = (Activations({"features": torch.ones(len(s), 1).double()}, s.logits) for s in (x, y))
    p, q = x.logits.softmax(1), y.logits.softmax(1)

    def k(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(a, b).square() / 1.68).mean()

    torch.testing.assert_close(loss(x, y), k(p, p) + k(q, q) - 2 * k(p, q), rtol=1e-9, atol=1e-12)


def test_discriminator_descends_and_features_ascend() -> None:
    x, y = sides()
    alignment = AdversarialAlignment(WIDTH, hidden=8).double()
    value = alignment(x, y)
    network = list(alignment.parameters())
    reversed_, own = [], []
    for loss, into in ((value, reversed_), (_domain_loss(alignment, x.features, y.features), own)):
        into += torch.autograd.grad(loss, [x.features, y.features, *network])
    torch.testing.assert_close(value, _domain_loss(alignment, x.features, y.features))
    for a, b in zip(reversed_[:2], own[:2], strict=True):
        torch.testing.assert_close(a, -b)
    for a, b in zip(reversed_[2:], own[2:], strict=True):
        torch.testing.assert_close(a, b)


def _domain_loss(alignment: AdversarialAlignment, x: Tensor, y: Tensor) -> Tensor:
    scores = [alignment.discriminator(z).flatten() for z in (x, y)]
    right = [torch.ones_like(scores[0]), torch.zeros_like(scores[1])]
    losses = [F.binary_cross_entropy_with_logits(s, r) for s, r in zip(scores, right, strict=True)]
    return 0.5 * (losses[0] + losses[1])


def test_conditional_discriminator_sees_products_with_the_classes() -> None:
    x, _ = sides()
    exact = ConditionalAdversarialAlignment(WIDTH, CLASSES).double()
    products = exact.inputs(x)
    outer = torch.einsum("nd,nc->ndc", x.features, x.logits.softmax(1)).flatten(1)
    torch.testing.assert_close(products, outer)
    assert ConditionalAdversarialAlignment(410, 10).randomized
    assert not exact.randomized
    torch.manual_seed(0)
    random = ConditionalAdversarialAlignment(
        WIDTH, CLASSES, num_products=200_000, randomized=True
    ).double()
    found = random.inputs(x).detach()
    inner, wanted = found @ found.T, (outer @ outer.T).detach()
    assert (inner - wanted).abs().max() < 0.05 * wanted.abs().max()
    assert {"of_features", "of_classes"} <= set(random.state_dict())


# In the trainer


@pytest.mark.parametrize("name", NAMED)
def test_every_name_trains(name: str) -> None:
    (x, y), z = blobs(96, 0.0, 0), blobs(96, 1.5, 1)[0]
    aligner = Aligner(**parts(alignment=name, layers=["backbone.0"], schedule="constant"))
    before = {k: v.clone() for k, v in aligner.state_dict().items()}
    data = DomainPair(TensorDataset(x, y), TensorDataset(z), batch_size=32, seed=0)
    run = trainer(max_epochs=2)
    run.fit(aligner, data)
    assert math.isfinite(run.callback_metrics["train_alignment_loss"])
    moved = {k for k, v in aligner.state_dict().items() if not torch.equal(v, before[k])}
    assert set(dict(aligner.named_parameters())) <= moved, "a parameter without a gradient"
    assert aligner.hparams["alignment"] == name


def test_the_weight_is_the_networks_and_not_the_discriminators() -> None:
    """Half the weight, half the reversed gradient; the discriminator learns at the full rate."""
    (x, y), z = blobs(32, 0.0, 0), blobs(24, 1.0, 1)[0]
    found = {}
    for weight in (1e-9, 0.5, 1.0):
        aligner = Aligner(**parts(alignment="dann", weight=weight, schedule="constant"))
        objective = _one_step(aligner, {"source": (x, y), "target": z})
        found[weight] = (objective, aligner)
    task, half, whole = ({k: p.grad for k, p in a.named_parameters()} for _, a in found.values())
    for name in task:
        if name.startswith("alignment"):
            torch.testing.assert_close(half[name], whole[name])
            assert whole[name].abs().max() > 0
        else:
            torch.testing.assert_close(whole[name] - task[name], 2 * (half[name] - task[name]))


class Shared(nn.Module):
    """A discrepancy with a parameter of its own, and a part of the network."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.scale, self.classifier = nn.Parameter(torch.ones(())), classifier

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.scale * (self.classifier(x).mean(0) - self.classifier(y).mean(0)).square().sum()


@pytest.mark.parametrize("options", [{"weight": 0.0}, {"target_forward": "none"}])
def test_a_control_withholds_what_is_the_discrepancys_alone(options: Any) -> None:
    """While it is wrapped, that is; what the network has learns, and a later training has both."""
    network = parts()
    loss = Shared(network["classifier"])
    frozen: list[str] = []

    class Control(Aligner):
        def configure_optimizers(self) -> Any:
            frozen.extend(n for n, p in self.named_parameters() if not p.requires_grad)
            return super().configure_optimizers()

    (x, y), z = blobs(32, 0.0, 0), blobs(32, 1.0, 1)[0]
    data = DomainPair(TensorDataset(x, y), TensorDataset(z), batch_size=16)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    for kind, learned in ((Control, False), (Aligner, True)):
        trainer(max_epochs=1).fit(kind(**network, **({} if learned else options), loss=loss), data)
        assert not torch.equal(loss.classifier.weight, before["classifier.weight"])
        assert torch.equal(loss.scale, before["scale"]) != learned
    assert frozen == ["alignment.loss.scale"]


def _one_step(aligner: Aligner, batch: Any) -> Tensor:
    """Loss and gradients of one batch, without a trainer."""
    aligner._log_step = lambda *_: None
    aligner.progress = lambda: 0.0
    objective = aligner.training_step(batch, 0)
    objective.backward()
    return objective


def test_layers_are_taken_by_name() -> None:
    (x, y), z = blobs(8, 0.0, 0), blobs(6, 1.0, 1)[0]
    convolution = nn.Sequential(nn.Unflatten(1, (1, 1, 2)), nn.Conv2d(1, 4, 1), nn.Flatten())
    aligner = Aligner(
        convolution, nn.Linear(8, WIDTH), nn.Linear(WIDTH, CLASSES), CLASSES,
        alignment="dan", layers=["backbone.1", "backbone"], schedule="constant",
    )  # fmt: skip
    layers = aligner.layer_features(x)
    assert list(layers) == ["backbone.1", "backbone", "features", "logits"]
    torch.testing.assert_close(layers["backbone.1"], convolution(x))
    torch.testing.assert_close(layers["logits"], aligner(x))
    objective = _one_step(aligner, {"source": (x, y), "target": z})
    of_x, of_z = (aligner.layer_features(side) for side in (x, z))
    wanted = F.cross_entropy(of_x["logits"], y) + sum(
        fm.mmd2(of_x[name], of_z[name]) for name in of_x
    )
    torch.testing.assert_close(objective, wanted)
    assert not any(m._forward_hooks for m in aligner.modules())


def test_several_sources_and_a_few_target_labels() -> None:
    """Weighted means over sources, and a cross-entropy of its own for labelled targets."""
    sources = [blobs(12, 0.0, 0), blobs(9, 0.5, 1)]
    z, labelled = blobs(10, 1.0, 2)[0], blobs(4, 1.0, 3)
    batch = {"source": [list(s) for s in sources], "target": z, "target_labelled": list(labelled)}
    aligner = Aligner(
        **parts(source_weights=[3, 1], weight=0.5, target_label_weight=0.3, schedule="constant")
    )
    objective = _one_step(aligner, batch)
    wanted = 0.3 * F.cross_entropy(aligner(labelled[0]), labelled[1])
    for share, (x, y) in zip((0.75, 0.25), sources, strict=True):
        discrepancy = fm.mmd2(aligner.features(x), aligner.features(z))
        wanted = wanted + share * (F.cross_entropy(aligner(x), y) + 0.5 * discrepancy)
    torch.testing.assert_close(objective, wanted)
    gradients = torch.autograd.grad(wanted, list(aligner.parameters()))
    for parameter, gradient in zip(aligner.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_domain_pair_of_several_sources_and_labelled_targets() -> None:
    sources = [TensorDataset(*blobs(96, shift, 0)) for shift in (0.0, 0.5)]
    data = DomainPair(
        sources,
        TensorDataset(blobs(64, 1.5, 1)[0]),
        target_labelled=TensorDataset(*blobs(6, 1.5, 2)),
        batch_size=32,
        seed=0,
    )
    batch = next(iter(data.train_dataloader()))[0]
    assert [len(inputs) for inputs, _ in batch["source"]] == [32, 32]
    assert len(batch["target_labelled"][0]) == 6
    run = trainer(max_epochs=2)
    run.fit(Aligner(**parts()), data)
    assert run.callback_metrics["train_target_labelled_loss"] > 0
    assert run.global_step == 6


def test_inputs_may_be_mappings() -> None:
    class Sum(nn.Module):
        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            return inputs["a"] + inputs["b"]

    x, y = blobs(8, 0.0, 0)
    batch = {"source": ({"a": x, "b": x}, y), "target": {"a": x, "b": -x}}
    for target_forward in ("joint", "separate", "none"):
        modules = parts(target_forward=target_forward)
        modules["backbone"] = nn.Sequential(Sum(), modules["backbone"])
        objective = _one_step(Aligner(**modules), batch)
        assert objective.isfinite()


@pytest.mark.parametrize("schedule", ["linear", "warmup", "cosine", lambda p: p**2])
def test_schedules_rise_from_zero_to_the_maximum(schedule: Any) -> None:
    weights = [alignment_weight(p / 100, schedule, 2.0) for p in range(101)]
    assert weights[0] == 0.0
    assert weights == sorted(weights)
    assert weights[-1] == 2.0


def test_a_function_as_schedule_stays_out_of_checkpoints() -> None:
    aligner = Aligner(**parts(schedule=lambda p: p, alignment=fm.CORALLoss()))
    assert not {"schedule", "alignment"} & set(aligner.hparams)
    with pytest.raises(ValueError, match=r"schedule must have values in \[0, 1\]; got 3"):
        Aligner(**parts(schedule=lambda p: 3.0))


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alignment": "mmd"}, "alignment must be one of ddc, dan, jan, .*; got 'mmd'"),
        ({"alignment": "ddc", "loss": fm.MMDLoss()}, "alignment and loss are the same thing"),
        ({"layers": ["backbone.7"]}, "layers must be names of modules, .*; got 'backbone.7'"),
        ({"layers": [""]}, "got ''"),
        ({"source_weights": [0.0, 0.0]}, "source_weights must be"),
        ({"source_weights": [1.0, -1.0]}, "source_weights must be"),
        ({"target_label_weight": math.nan}, "target_label_weight must be a finite"),
        ({"alignment": "dann", "classifier": nn.Identity()}, "needs a classifier with"),
    ],
)
def test_aligner_rejects(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Aligner(**parts(**options))


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match="alignment must be a name"):
        Aligner(**parts(alignment=3))
    with pytest.raises(TypeError, match="layers must be a sequence of names"):
        Aligner(**parts(layers="backbone"))
    with pytest.raises(TypeError, match=r"loss must be a torch\.nn\.Module"):
        LayerwiseAlignment(F.mse_loss)
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        AdversarialAlignment(4, hidden=0)
    with pytest.raises(ValueError, match="estimator must be"):
        JointAlignment(estimator="none")


@pytest.mark.parametrize("alignment", [LocalAlignment(), ClassConditionalAlignment()])
def test_classwise_alignments_need_source_labels(alignment: nn.Module) -> None:
    x, y = sides()
    with pytest.raises(ValueError, match="needs the labels of the source"):
        alignment(y, x)


X, Y = blobs(6, 0.0, 0)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([X, Y], "a training batch must be"),
        ({"target": X}, "got keys 'target'"),
        ({"source": X, "target": X}, r"a batch of source must be \(inputs, labels\)"),
        ({"source": (X,), "target": X}, "got inputs alone"),
        ({"source": [(X, Y), (X,)], "target": X}, "a batch of source 1 must be"),
        ({"source": (X, Y)}, "a training batch must have a target"),
        ({"source": (X, Y), "target": None}, "the loader of target ended before the others"),
        ({"source": None, "target": X}, "the loader of source ended before the others"),
        ({"source": (X, Y), "target": X[:0]}, "the batch of target must not be empty"),
        ({"source": (X[:0], Y[:0]), "target": X}, "the batch of source must not be empty"),
        ({"source": (X, Y[:3]), "target": X}, "got 6 samples and 3 labels"),
        ({"source": (X, X[:, 0]), "target": X}, "must be an integer tensor"),
        ({"source": (X, Y), "target": X, "target_labelled": X}, "target_labelled must be"),
    ],
)
def test_batches_that_are_none(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_batch(batch)


def test_batches_that_do_not_fit_the_network() -> None:
    aligner = Aligner(**parts(source_weights=[1, 1]))
    with pytest.raises(ValueError, match="got 2 and a batch of 1 sources"):
        _one_step(aligner, {"source": (X, Y), "target": X})
    with pytest.raises(ValueError, match="needs inputs of one shape"):
        _one_step(Aligner(**parts()), {"source": (X, Y), "target": X[:, :1]})
    keys = {"source": ({"a": X}, Y), "target": {"b": X}}
    with pytest.raises(ValueError, match="same keys"):
        _one_step(Aligner(**parts()), keys)
    for labels in (Y + 5, Y - 1):
        with pytest.raises(ValueError, match="labels must be classes from 0 to 2, got values from"):
            _one_step(Aligner(**parts()), {"source": (X, labels), "target": X})
    whole = parts(bottleneck=nn.Unflatten(1, (4, 4)), classifier=nn.Linear(4, CLASSES))
    with pytest.raises(ValueError, match=r"features must be of shape \[n, d\], got \[12, 4, 4\]"):
        _one_step(Aligner(**whole), {"source": (X, Y), "target": X})


def test_a_target_loader_that_ends_early() -> None:
    """It begins again where that was asked for, and is a named error where it was not."""
    loaders = {
        "source": DataLoader(TensorDataset(*blobs(32, 0.0, 0)), 8),
        "target": DataLoader(TensorDataset(blobs(16, 1.0, 1)[0]), 8),
    }
    run = trainer(max_epochs=1)
    run.fit(Aligner(**parts()), CombinedLoader(loaders, "max_size_cycle"))
    assert run.global_step == 4
    with pytest.raises(ValueError, match="the loader of target ended before the others"):
        trainer(max_epochs=1).fit(Aligner(**parts()), CombinedLoader(loaders, "max_size"))


class Torchvision(Dataset[Any]):
    """Stands for a data set of torchvision: labels in ``targets``, a list."""

    def __init__(self, targets: list[int]) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        return X[index], self.targets[index]


def test_labels_that_are_known() -> None:
    whole = Torchvision([0, 2, 1, 1])
    assert known_labels(whole).tolist() == [0, 2, 1, 1]
    assert known_labels(Subset(whole, [1, 3])).tolist() == [2, 1]
    both = ConcatDataset([whole, TensorDataset(X, Y)])
    assert known_labels(both).tolist() == [0, 2, 1, 1, *Y.tolist()]
    assert known_labels(TensorDataset(X)) is None
    assert known_labels(TensorDataset(X, X)) is None


def test_classes_that_differ_between_domains() -> None:
    source = TensorDataset(X, Y)
    other = TensorDataset(X, Y + 1)
    message = (
        r"target_val and source must have the same classes: target_val lacks \[0\] and has \[3\]"
    )
    with pytest.raises(ValueError, match=message):
        DomainPair(source, TensorDataset(X), source_val=source, target_val=other, batch_size=2)
    with pytest.raises(ValueError, match=r"source 1 lacks \[0\]"):
        DomainPair([source, other], TensorDataset(X), batch_size=2)
    with pytest.raises(ValueError, match=r"target_labelled lacks \[\] and has \[3\]"):
        DomainPair(source, TensorDataset(X), target_labelled=other, batch_size=2)
    options = {"source_val": source, "target_val": other, "batch_size": 2}
    DomainPair(source, TensorDataset(X), same_labels=False, **options)
    # Of a target to measure on some labels may not be known, and none need be.
    for labels in (Y.where(Y != 1, -100), torch.full_like(Y, -100)):
        options["target_val"] = TensorDataset(X, labels)
        DomainPair(source, TensorDataset(X), **options)
        with pytest.raises(ValueError, match=r"target_labelled lacks \[\] and has \[-100\]"):
            DomainPair(
                source, TensorDataset(X), batch_size=2, target_labelled=options["target_val"]
            )
    options["target_val"] = TensorDataset(X, (Y + 1).where(Y != 0, -100))
    with pytest.raises(ValueError, match=r"target_val lacks \[\] and has \[3\]"):
        DomainPair(source, TensorDataset(X), **options)
    # A few labelled targets may lack a class.
    few = TensorDataset(X[:1], Y[:1])
    DomainPair(source, TensorDataset(X), target_labelled=few, batch_size=2)


def test_a_class_without_samples_and_an_empty_domain() -> None:
    source, target = TensorDataset(X, Y.clamp(max=1)), TensorDataset(X)
    with pytest.raises(ValueError, match=r"none is of the classes \[2\]"):
        trainer(max_epochs=1).fit(Aligner(**parts()), DomainPair(source, target, batch_size=2))
    foreign = TensorDataset(X, Y + 1)
    with pytest.raises(ValueError, match=r"\[3\] are no classes, .*; none is of the classes \[0\]"):
        trainer(max_epochs=1).fit(Aligner(**parts()), DomainPair(foreign, target, batch_size=2))
    with pytest.raises(ValueError, match="target must not be empty"):
        DomainPair(TensorDataset(X, Y), TensorDataset(X[:0]), batch_size=2)
    with pytest.raises(ValueError, match="source must hold at least one dataset"):
        DomainPair([], target)


@pytest.mark.parametrize("name", ["dsan", "can"])
def test_a_batch_that_lacks_a_class_is_no_error(name: str) -> None:
    """Nor one whose domains have no class in common: the discrepancy is 0, not NaN."""
    x, y = sides()
    alignment = as_alignment(name, nn.Identity(), CLASSES)
    only = torch.zeros_like(x.labels)
    pushed = y.replace([*y.layers.values(), torch.eye(CLASSES).double()[[2] * 9] * 50])
    value = alignment(x.replace(x.tensors(), only), pushed)
    value.backward()
    assert value == 0
    assert not x.features.grad.any()


# Configurations


def test_alignments_are_made_from_configurations() -> None:
    """By name, by class and, as a plain loss, with a kernel; unknown keys are refused."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Aligner, "model")
    linear = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 3}}
    common = {
        **dict.fromkeys(("bottleneck", "classifier"), linear),
        "backbone": {"class_path": "torch.nn.Flatten"},
        "num_classes": CLASSES,
    }

    def made(**options: Any) -> Aligner:
        model = {"class_path": "fastmmd.train.Aligner", "init_args": {**common, **options}}
        return parser.instantiate(parser.parse_object({"model": model})).model

    kernel = {"class_path": "fastmmd.Laplacian", "init_args": {"bandwidth": "median"}}
    loss = {"class_path": "fastmmd.MMDLoss", "init_args": {"kernel": kernel}}
    assert isinstance(made(alignment="jan", schedule="linear").alignment, JointAlignment)
    assert made(alignment=loss).alignment.loss.kernel.bandwidth == "median"
    options = {"loss": loss, "logits": True}
    layerwise = {"class_path": "fastmmd.train.LayerwiseAlignment", "init_args": options}
    assert made(alignment=layerwise, layers=["backbone"]).alignment.logits
    with pytest.raises(ArgumentError, match="alignmnt"):
        made(alignmnt="jan")
    with pytest.raises(ValueError, match="alignment must be one of ddc"):
        made(alignment="mmd")


def test_data_modules_without_a_sample_of_some_class() -> None:
    class Points(DomainData):
        def read(self) -> Any:
            one, other = (
                Domain(name, ("a", "b", "c"), samples, samples)
                for name, samples in (("first", Samples(X, Y)), ("second", Samples(X, None)))
            )
            return [one], other

    four = Aligner(**parts(num_classes=4, classifier=nn.Linear(WIDTH, 4)))
    with pytest.raises(ValueError, match=r"none is of the classes \[3\]"):
        trainer(max_epochs=1).fit(four, Points(batch_size=2, val_share=0.0))
    run = trainer(max_epochs=1)
    run.fit(Aligner(**parts()), Points(batch_size=2, val_share=0.0))
    assert run.global_step == 3
