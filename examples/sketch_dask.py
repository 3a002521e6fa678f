"""The MMD between two data sets in Dask bags, whose parts are sketched on local workers.

python examples/sketch_dask.py
"""

from __future__ import annotations

import dask
import dask.bag as db
import numpy as np
import numpy.typing as npt

import fastmmd as fm

WIDTH = 16
EMPTY = fm.MeanEmbedding(2048, fm.Gaussian(4.0), WIDTH)


def load(part: tuple[int, float]) -> npt.NDArray[np.float32]:
    """Stands for reading a part of a data set, on the worker that takes it."""
    number, shift = part
    rng = np.random.default_rng(number)
    return (rng.normal(size=(500 + number, WIDTH)) + shift).astype(np.float32)


def sketch(rows: npt.NDArray[np.float32]) -> fm.MeanEmbedding:
    """The sketch of one part."""
    return EMPTY.empty().update(rows)


def main() -> None:
    """Sketches both data sets, each in parts that are merged as they come."""
    first = [(number, 0.0) for number in range(6)]
    second = [(number, 0.2) for number in range(6, 11)]
    bags = [
        db.from_sequence(parts, npartitions=3).map(load).map(sketch).fold(fm.MeanEmbedding.merge)
        for parts in (first, second)
    ]
    a, b = dask.compute(*bags, scheduler="processes", num_workers=2)
    print(f"{a.count} and {b.count} rows")
    print(f"MMD^2 = {a.mmd2(b):.9f} +- {a.standard_error(b):.6f}")


if __name__ == "__main__":
    main()
