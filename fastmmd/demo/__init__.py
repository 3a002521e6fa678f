"""The demo: aligning handwritten digits with the same kind of digits over clutter.

``fastmmd demo`` trains, per seed, three models that differ in one thing each (see
:mod:`fastmmd.demo.experiment`), and writes a table, its figures as JSON, and pictures. It needs the
extra ``train`` and no network.
"""

from __future__ import annotations

from fastmmd._extras import require_extra

require_extra("the demo", "train", "lightning", "torchmetrics", "sklearn", "matplotlib", "rich")
