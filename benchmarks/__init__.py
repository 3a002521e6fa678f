"""Time, memory and accuracy of fastmmd beside what people use; ``python -m benchmarks`` runs it.

Everything compared is measured in one process, in interleaved rounds
(:mod:`fastmmd.bench.interleave`), so that what disturbs the machine disturbs both sides.
pytest-benchmark records the rounds; every table and picture is made from its file alone.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
