"""A small set of calls, each kernel at least once, to be run under compute-sanitizer."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch

import fastmmd as fm
from benchmarks.gpu_device import precision

# A size for each road: few rows, narrow and, in clusters, wide; many narrow ones; many wide ones.
# None is a multiple of a tile.
SIZES = ((33, 21, 20), (33, 21, 700), (600, 500, 72), (600, 500, 300))
LEVELS = (
    *((torch.float32, level) for level in ("highest", "high", "medium")),
    *((dtype, "highest") for dtype in (torch.bfloat16, torch.float16, torch.float64)),
)


def calls() -> Iterator[tuple[fm.Kernel, dict[str, Any]]]:
    """Kernels with options of ``mmd2``, on top of the plain call."""
    yield fm.Gaussian("median"), {"estimator": "unbiased"}
    yield fm.Laplacian("mean") + 0.5 * fm.Energy(), {}
    yield fm.Polynomial() + fm.Cosine(), {}
    for estimator in ("linear", "block", "incomplete"):
        yield fm.Gaussian("mean"), {"estimator": estimator}


def begin(name: str) -> None:
    """Say what comes, should it be the last."""
    print(name, flush=True)


def main() -> None:
    """Make the calls; that they end is all that is asked here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_sanitize", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at toy sizes")
    dry = parser.parse_args().dry_run
    device = torch.device("cpu" if dry else "cuda")
    generator = torch.Generator().manual_seed(0)
    for n, m, d in [(9, 7, 5)] if dry else SIZES:
        z = torch.randn(n + m, d, generator=generator).to(device)
        for dtype, level in LEVELS:
            begin(f"{n}, {m}, {d}: {dtype}, {level}")
            x, y = (t.to(dtype).requires_grad_() for t in z.split([n, m]))
            with precision(level):
                fm.mmd2(x, y, fm.Gaussian("mean")).backward()
                with torch.no_grad():
                    fm.mmd2(x, y, fm.Gaussian("mean"))
                for scheme in ("iid", "structured"):
                    fm.random_feature_mmd2(x, y, 200, fm.Gaussian("mean"), 0, scheme).backward()
        x, y = (t.clone().requires_grad_() for t in z.split([n, m]))
        for kernel, options in calls():
            begin(f"{n}, {m}, {d}: {kernel}, {options}")
            fm.mmd2(x, y, kernel, **options).backward()
        begin(f"{n}, {m}, {d}: weights, kernel sums, a test")
        weights = torch.rand(n, generator=generator).to(device).requires_grad_()
        fm.mmd2(x, y, x_weights=weights).backward()
        fm.kernel_sum(x, y, torch.ones(m, device=device)).sum().backward()
        fm.two_sample_test(x.detach(), y.detach(), num_permutations=39)
    if not dry:
        torch.cuda.synchronize()
    begin("all calls were made")


if __name__ == "__main__":
    main()
