"""Published accuracies beside ours: `python -m benchmarks.transfer_tables --data DIR`.

1-nearest-neighbour accuracy in % on the target, trained on the source, without adaptation, after
joint PCA, TCA and JDA: twelve tasks of Office + Caltech (SURF, ten classes) and two of digits. The
numbers are those of Long et al., "Transfer feature learning with joint distribution adaptation"
(ICCV 2013), and of Wang et al., "Visual domain adaptation with manifold embedded distribution
alignment" (ACM MM 2018). DIR holds office_caltech_surf.npz and mnist_usps_long.npz, each with X
[n, d], y [n], domain [n] and domain_names; FASTMMD_TEST_DATA names it by default.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import sklearn
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from fastmmd.transfer import JointDistributionAdaptation, TransferComponentAnalysis

Array = npt.NDArray[np.float64]

METHODS = ("none", "PCA", "TCA", "JDA")
COMPONENTS = 100
RESULT = Path(__file__).parent / "results" / "transfer-tables.json"

# By task, source first, in the order of METHODS.
PUBLISHED = {
    "C-A": (23.70, 36.95, 38.20, 44.78),
    "C-W": (25.76, 32.54, 38.64, 41.69),
    "C-D": (25.48, 38.22, 41.40, 45.22),
    "A-C": (26.00, 34.73, 37.76, 39.36),
    "A-W": (29.83, 35.59, 37.63, 37.97),
    "A-D": (25.48, 27.39, 33.12, 39.49),
    "W-C": (19.86, 26.36, 29.30, 31.17),
    "W-A": (22.96, 31.00, 30.06, 32.78),
    "W-D": (59.24, 77.07, 87.26, 89.17),
    "D-C": (26.27, 29.65, 31.70, 31.52),
    "D-A": (28.50, 32.05, 32.15, 33.09),
    "D-W": (63.39, 75.93, 86.10, 89.49),
    "USPS-MNIST": (44.70, 44.95, 51.05, 59.65),
    "MNIST-USPS": (65.94, 66.22, 56.28, 67.28),
}
DOMAINS = {
    "C": "caltech10",
    "A": "amazon",
    "W": "webcam",
    "D": "dslr",
    "USPS": "usps",
    "MNIST": "mnist",
}


class Setting(NamedTuple):
    """Of TCA and JDA."""

    kernel: str
    reg: float
    unit_rows: bool  # whether JDA gets rows of unit length


def sample(folder: Path, name: str) -> tuple[Array, Array]:
    """Rows and labels of a domain, prepared as in the papers.

    Counts are divided by their sum and standardised within the domain; pictures of digits get unit
    length.
    """
    digits = len(name) > 1
    with np.load(folder / ("mnist_usps_long.npz" if digits else "office_caltech_surf.npz")) as file:
        index = file["domain_names"].tolist().index(DOMAINS[name])
        own = file["domain"] == index
        x, y = file["X"][own].astype(float), file["y"][own]
    if digits:
        return normalize(x), y
    x /= x.sum(1, keepdims=True)
    spread = x.std(0)
    return (x - x.mean(0)) / np.where(spread > 0, spread, 1), y


def accuracies(folder: Path, task: str) -> list[float]:
    """By the methods, in their order."""
    (x, y), (target, truth) = (sample(folder, name) for name in task.split("-"))
    both, labels = np.concatenate([x, target]), np.concatenate([y, truth])
    # What the target's labels are plays no part: JDA ignores them.
    domain = np.concatenate([np.zeros(len(y), int), np.full(len(truth), -1)])
    setting = Setting("primal", 0.1, False) if len(task) > 3 else Setting("linear", 1.0, True)
    pca = PCA(COMPONENTS, svd_solver="covariance_eigh")
    tca = TransferComponentAnalysis(COMPONENTS, setting.kernel, setting.reg)
    jda = JointDistributionAdaptation(COMPONENTS, setting.kernel, setting.reg, n_iter=10)
    rows = normalize(both) if setting.unit_rows else both
    embeddings = (
        both,
        pca.fit_transform(both),
        tca.fit_transform(both, sample_domain=domain),
        normalize(jda.fit_transform(rows, labels, sample_domain=domain)),
    )
    found = []
    for z in embeddings:
        classifier = KNeighborsClassifier(1, algorithm="brute").fit(z[domain >= 0], y)
        found.append(100 * classifier.score(z[domain < 0], truth))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        Exit status: 0 if all numbers agree with the printed ones, 1 if not.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("FASTMMD_TEST_DATA"))
    parser.add_argument("-o", "--output", type=Path, help=f"JSON file to write, such as {RESULT}")
    options = parser.parse_args(arguments)
    if options.data is None or not options.data.is_dir():
        parser.error(f"--data must name the folder of the data sets, got {options.data}")
    print(f"{'accuracy, % (published)':24}" + "".join(f"{name:>18}" for name in METHODS))
    found, agreed = {}, 0
    for task, published in PUBLISHED.items():
        found[task] = {
            name: round(value, 2)
            for name, value in zip(METHODS, accuracies(options.data, task), strict=True)
        }
        pairs = list(zip(found[task].values(), published, strict=True))
        agreed += sum(ours == theirs for ours, theirs in pairs)
        cells = "".join(f"{ours:>10.2f} ({theirs:.2f})" for ours, theirs in pairs)
        print(f"{task:24}{cells}", flush=True)
    count = len(PUBLISHED) * len(METHODS)
    print(f"{agreed} of {count} agree to the printed digit")
    if options.output:
        versions = {"torch": torch.__version__, "scikit-learn": sklearn.__version__}
        record = {"versions": versions, "accuracy_percent": found}
        options.output.write_text(json.dumps(record, indent=1) + "\n")
    return int(agreed != count)


if __name__ == "__main__":
    raise SystemExit(main())
