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
    ours, plain = loss_ms["fastmmd"], loss_ms["pytorch"]
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
            "fastmmd_ms": ours,
            "pytorch_ms": plain,
            "speedup": plain / ours,
            "step_ms": step_ms,
            "fastmmd_share_of_step": 100 * ours / step_ms,
            # As if the plain loss took the place of ours in the step that was timed.
            "pytorch_share_of_step": 100 * plain / (step_ms - ours + plain),
        },
        "seconds": seconds,
        "runs": [run.as_dict() for run in runs],
    }


def over_seeds(values: list[float]) -> dict[str, Any]:
    """Mean, spread and the values themselves."""
    spread = stdev(values) if len(values) > 1 else 0.0
    return {"mean": mean(values), "spread": spread, "per_seed": values}


def tables(summary: dict[str, Any]) -> RenderableType:
    """What is printed at the end, made from the summary alone; it fits into 80 columns."""
    seeds, loss = summary["settings"]["seeds"], summary["loss"]
    return Group(
        Text("Held-out digits after the last epoch", style="bold"),
        Text(f"mean ± standard deviation over {seeds} seed{'s' * (seeds > 1)}", style="dim"),
        accuracy_table(summary),
        *gain_lines(summary),
        Text(),
        Text(
            f"A call of the loss, forward and backward, {loss['n']} + {loss['m']} x {loss['d']}",
            style="bold",
        ),
        Text(f"medians, in turns; a training step takes {loss['step_ms']:.1f} ms", style="dim"),
        loss_table(loss),
        Text(f"The demo took {summary['seconds']:.0f} s (threads: {summary['threads']})."),
    )


def accuracy_table(summary: dict[str, Any]) -> Table:
    """Accuracies and MMD of the three models."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("Model")
    table.add_column("Trained with")
    for heading in ("Source, %", "Target, %", "MMD²"):
        table.add_column(heading, justify="right")
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


def gain_lines(summary: dict[str, Any]) -> list[Text]:
    """What alignment adds on the target, on average and over the range of the seeds."""
    lines = []
    for name, gain in summary["gains"].items():
        least, most = min(gain["per_seed"]), max(gain["per_seed"])
        lines.append(
            Text(
                f"Aligned over {name}: {gain['mean']:+.1f} points on the target "
                f"({least:+.1f} to {most:+.1f})."
            )
        )
    return lines


def loss_table(loss: dict[str, Any]) -> Table:
    """What a call of the loss costs, ours and in plain PyTorch."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("Loss")
    for heading in ("ms", "Share of a training step, %"):
        table.add_column(heading, justify="right")
    for name, key in (("fastmmd", "fastmmd"), ("plain PyTorch", "pytorch")):
        table.add_row(name, f"{loss[f'{key}_ms']:.2f}", f"{loss[f'{key}_share_of_step']:.1f}")
    return table


def plus_minus(figure: dict[str, Any], digits: int) -> str:
    """A mean with its spread."""
    return f"{figure['mean']:.{digits}f} ± {figure['spread']:.{digits}f}"
