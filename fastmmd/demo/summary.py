"""The figures of the demo: one dictionary, from which the JSON and the printed tables are made."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

import torch
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import fastmmd
from fastmmd.demo.experiment import FEATURES, MODELS, Run, Settings

__all__ = ["STYLES", "summarise", "tables"]

# Colours of the models in tables and pictures.
STYLES = {"source-only": "#8a8f98", "control": "#c98a1b", "aligned": "#1f77b4"}
MEANING = {
    "source-only": "source alone",
    "control": "both, MMD weight 0",
    "aligned": "both, MMD weight 1",
}


def summarise(
    runs: Sequence[Run],
    settings: Settings,
    sizes: dict[str, int],
    loss_ms: dict[str, float],
    seconds: float,
) -> dict[str, Any]:
    """All figures of a run of the demo.

    Args:
        runs: Every trained model, seed by seed.
        settings: What they share.
        sizes: Number of digits in each part.
        loss_ms: Milliseconds per call of the loss under ``fastmmd`` and ``pytorch``.
        seconds: Duration of the whole demo.

    Returns:
        Plain numbers, strings, lists and dictionaries: accuracies and gains in percent and
        percentage points, times as named, spreads as sample standard deviations over the seeds (0
        for one seed).
    """
    models = {
        name: {
            key: over_seeds([getattr(run, key) for run in runs if run.model == name])
            for key in ("source_accuracy", "target_accuracy", "mmd2")
        }
        for name in MODELS
    }
    target = {name: figures["target_accuracy"]["per_seed"] for name, figures in models.items()}
    gains = {
        name: over_seeds([a - b for a, b in zip(target["aligned"], target[name], strict=True)])
        for name in MODELS
        if name != "aligned"
    }
    steps = [run.step_ms for run in runs if run.model == "aligned"]
    step_ms = mean(steps)
    return {
        "fastmmd": fastmmd.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "settings": settings.as_dict(),
        "digits": sizes,
        "models": models,
        "gains": gains,
        "loss": {
            "n": settings.batch_size,
            "m": settings.batch_size,
            "d": FEATURES,
            "fastmmd_ms": loss_ms["fastmmd"],
            "pytorch_ms": loss_ms["pytorch"],
            "speedup": loss_ms["pytorch"] / loss_ms["fastmmd"],
            "step_ms": step_ms,
            "share_of_step": 100 * loss_ms["fastmmd"] / step_ms,
        },
        "seconds": seconds,
        "runs": [run.as_dict() for run in runs],
    }


def over_seeds(values: list[float]) -> dict[str, Any]:
    """Mean, spread and the values themselves."""
    spread = stdev(values) if len(values) > 1 else 0.0
    return {"mean": mean(values), "spread": spread, "per_seed": values}


def tables(summary: dict[str, Any]) -> RenderableType:
    """What is printed at the end, made from the summary alone."""
    return Group(accuracy_table(summary), Text(), *sentences(summary))


def accuracy_table(summary: dict[str, Any]) -> Table:
    """Accuracies and MMD of the three models."""
    seeds = summary["settings"]["seeds"]
    table = Table(
        title="Held-out digits after the last epoch",
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption=f"mean ± standard deviation over {seeds} seed{'s' * (seeds > 1)}",
        caption_justify="left",
    )
    table.add_column("Model", no_wrap=True)
    table.add_column("Trained with", no_wrap=True)
    table.add_column("Source, %", justify="right", no_wrap=True)
    table.add_column("Target, %", justify="right", no_wrap=True)
    table.add_column("MMD²", justify="right", no_wrap=True)
    for name, figures in summary["models"].items():
        table.add_row(
            Text(name, style=STYLES[name]),
            MEANING[name],
            plus_minus(figures["source_accuracy"], 1),
            plus_minus(figures["target_accuracy"], 1),
            plus_minus(figures["mmd2"], 3),
            style="bold" if name == "aligned" else "",
        )
    return table


def sentences(summary: dict[str, Any]) -> list[Text]:
    """Gains and times in words."""
    lines = []
    for name, gain in summary["gains"].items():
        each = ", ".join(f"{value:+.1f}" for value in gain["per_seed"])
        lines.append(
            Text(f"Aligned over {name}: {gain['mean']:+.1f} points on the target ({each}).")
        )
    loss = summary["loss"]
    lines.append(
        Text(
            f"A call of the loss, forward and backward, {loss['n']} + {loss['m']} x {loss['d']}: "
            f"{loss['fastmmd_ms']:.2f} ms; in plain PyTorch {loss['pytorch_ms']:.2f} ms "
            f"({loss['speedup']:.1f} times as long)."
        )
    )
    lines.append(
        Text(
            f"That is {loss['share_of_step']:.1f} % of a training step of {loss['step_ms']:.1f} ms."
            f" The whole run took {summary['seconds']:.0f} s (threads: {summary['threads']})."
        )
    )
    return lines


def plus_minus(figure: dict[str, Any], digits: int) -> str:
    """A mean with its spread."""
    return f"{figure['mean']:.{digits}f} ± {figure['spread']:.{digits}f}"
