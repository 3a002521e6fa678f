"""The demo from its first line on the terminal to the last file."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastmmd import reference
from fastmmd._output import OutputFolder
from fastmmd.demo import figures
from fastmmd.demo.data import make_domains
from fastmmd.demo.experiment import MODELS, Run, Settings, batch_features, train
from fastmmd.demo.summary import STYLES, summarise, tables
from fastmmd.demo.timing import interleaved_ms
from fastmmd.losses import MMDLoss

__all__ = ["demo"]


def demo(
    output: str | os.PathLike[str],
    settings: Settings | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains the three models for each seed, prints the table and writes the files.

    Args:
        output: Folder for ``summary.json``, the pictures and ``aligned.ckpt``, the aligned model of
            the first seed. Files of these names are replaced.
        settings: Seeds, epochs and what else the models share.
        console: Where to print. Default: standard output.

    Returns:
        What is in ``summary.json``.

    Raises:
        OutputError: The folder cannot be written to; found out before any work.
    """
    settings = settings or Settings()
    console = console or Console(highlight=False)
    folder = OutputFolder(output)
    start = time.perf_counter()
    runs = train_all(settings, console)

    domains = make_domains(0)
    last = {run.model: run for run in runs if run.seed == 0}
    x, y = batch_features(last["aligned"].aligner, domains, settings)
    loss_ms = interleaved_ms({"fastmmd": MMDLoss(), "pytorch": reference.mmd2}, x, y, rounds=200)
    # Not sooner: what draws the status would disturb the timing.
    with console.status("drawing the pictures"), folder.filling() as path:
        figures.samples(path / "samples.png", domains)
        figures.features(path / "features.png", last["source-only"], last["aligned"], domains)
        trained = last["aligned"].aligner
        trained.trainer.save_checkpoint(path / "aligned.ckpt", weights_only=True)
        seconds = time.perf_counter() - start
        summary = summarise(runs, settings, domains.sizes(), loss_ms, seconds)
        figures.accuracy(path / "accuracy.png", summary)
        (path / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        written = sorted(file.name for file in path.iterdir())
    console.print()
    console.print(tables(summary))
    console.print(f"\nWritten to {folder.path}: {', '.join(written)}", soft_wrap=True)
    return summary


def train_all(settings: Settings, console: Console) -> list[Run]:
    """Trains every model of every seed: a line for each that is done, a bar for the rest."""
    sizes = make_domains(0).sizes()
    console.print(
        "[bold]Digits to digits over clutter[/bold]\n"
        f"  source  {sizes['source_train']} labelled digits to train on, "
        f"{sizes['source_test']} held out\n"
        f"  target  {sizes['target_train']} unlabelled digits over photographs to train on, "
        f"{sizes['target_test']} held out\n"
        f"  {settings.seeds} seed{'s' * (settings.seeds > 1)}, {len(MODELS)} models each, "
        f"{settings.epochs} epochs, threads: {torch.get_num_threads()}\n"
    )
    runs = []
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[latest]}"),
        console=console,
        transient=True,
        # Without a terminal a bar would leave one stray line; the lines of the models are enough.
        disable=not console.is_terminal,
    )
    with progress:
        total = settings.seeds * len(MODELS) * settings.epochs
        task = progress.add_task("training", total=total, latest="")
        width = len(str(settings.seeds - 1))
        for seed in range(settings.seeds):
            name = f"seed {seed:>{width}}"
            for model in MODELS:
                progress.update(task, description=f"{name}  {model:<11}", latest="")

                def on_epoch(source: float, target: float) -> None:
                    latest = f"target {target:.1f} %"
                    progress.update(task, advance=1, latest=latest)

                run = train(model, seed, make_domains(seed), settings, on_epoch)
                runs.append(run)
                console.print(
                    f"{name}  [{STYLES[model]}]{model:<11}[/]  "
                    f"source {run.source_accuracy:5.1f} %   target {run.target_accuracy:5.1f} %   "
                    f"MMD² {run.mmd2:6.3f}   {run.seconds:4.1f} s"
                )
    return runs
