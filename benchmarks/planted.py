"""Does ``fastmmd bench compare`` find a planted slow-down, and nothing where there is none?

``python -m benchmarks.planted -o FILE`` compares three builds of this checkout again and again
while another process keeps a core busy: one as it is, a second one as it is, and one whose pass
takes 10 % longer. The third has to be worse than the first; the second must not be.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from benchmarks import ROOT
from fastmmd.bench import measure, rows
from fastmmd.bench.builds import build, checked_out, commit_of
from fastmmd.bench.machine import Disturbance
from fastmmd.bench.main import PASSES
from fastmmd.bench.verdict import Thresholds

SELECT = "mmd2, n=512 d=256, float32, forward \\+ backward"
PLACE = "void mmd2(const Mmd2Args& args, const Mmd2Out& out) {\n"
PLANT = """#include <chrono>
namespace fastmmd::cpu {
struct Longer {  // by a share of what the scope took
  std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
  ~Longer() {
    const auto end = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() - end < (end - start) * %s) {
    }
  }
};
}
"""


def plant(tree: Path, share: float) -> None:
    """Makes the pass of a checkout slower by this share of its time."""
    file = tree / "csrc" / "cpu" / "mmd.cpp"
    text = file.read_text()
    assert text.count(PLACE) == 1, "the pass has another name now"
    file.write_text(PLANT % share + text.replace(PLACE, PLACE + "  const Longer longer;\n"))


def trial(folders: dict[str, Path], threads: int, passes: int) -> dict[str, Any]:
    """One comparison: its answer and change."""
    found = measure.duel(
        folders,
        {side: {"id": side} for side in folders},
        rows.select(SELECT, quick=True),
        "cpu",
        threads,
        1.5,
        passes,
        Thresholds(),
        lambda line: None,
    )
    (verdict,) = found.verdicts
    return verdict.as_dict()


def summary(trials: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """How many answers of the trials so far were right."""
    false = [t["answer"] in ("worse", "better") for t in trials["same"]]
    return {
        "trials": len(trials["same"]),
        "found": sum(t["answer"] == "worse" for t in trials["planted"]),
        "false_alarms": sum(false),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the trials.

    Returns:
        0 if at least 19 of 20 plants were found, and at most 1 of 20 alarms was false.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planted", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--trials", type=int, default=20, help="of each kind (default: 20)")
    parser.add_argument("--share", type=float, default=0.1, help="of the plant (default: 0.1)")
    options = parser.parse_args(arguments)
    threads = measure.THREADS_OF_DUELS
    head = {
        "machine": measure.machine("cpu", threads),
        "commit": commit_of(ROOT),
        "torch": torch.__version__,
        "share": options.share,
        "row": SELECT.replace("\\", ""),
    }
    trials: dict[str, list[dict[str, Any]]] = {"planted": [], "same": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with checked_out("HEAD", ROOT) as tree:
            for build_name in ("one", "two"):
                build(str(tree), ROOT, folder / build_name)
            plant(tree, options.share)
            build(str(tree), ROOT, folder / "slow")
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        noise, began = Disturbance(), monotonic()
        try:
            for number in range(1, options.trials + 1):
                for kind, other in (("planted", "slow"), ("same", "two")):
                    sides = {measure.BASE: folder / "one", measure.HEAD: folder / other}
                    start = monotonic()
                    last = trial(sides, threads, PASSES)
                    taken = noise.since_last()
                    trials[kind].append({**last, "taken_by_others": taken})
                    print(
                        f"{number} {kind}: {last['answer']}, {100 * last['change']:+.1f} %"
                        f" ({100 * last['low']:+.1f} to {100 * last['high']:+.1f} %),"
                        f" {last['rounds']} rounds, {monotonic() - start:.0f} s",
                        flush=True,
                    )
                result = {**head, **summary(trials), "seconds": monotonic() - began, "each": trials}
                partial = options.output.with_suffix(".incomplete")
                partial.write_text(json.dumps(result, indent=1) + "\n")
                partial.replace(options.output)
        finally:
            busy.kill()
            busy.wait()
    found, false = result["found"], result["false_alarms"]
    print(f"found {found} of {options.trials} plants; {false} of {options.trials} false alarms")
    allowed = options.trials // 20
    return int(found < options.trials - allowed or false > allowed)


if __name__ == "__main__":
    sys.exit(main())
