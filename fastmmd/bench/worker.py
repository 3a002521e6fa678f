"""A process that times lanes of one build of fastmmd on request; run as a script.

``python worker.py FOLDER`` imports fastmmd from the folder, and this package under another name, so
that builds of other commits are timed by the same code. Requests and answers are lines of JSON.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ALIAS = "fastmmd_bench"


def isolate(folder: str) -> None:
    """From now on fastmmd is imported from this folder."""
    # An editable install intercepts the import of fastmmd, wherever the path leads.
    sys.meta_path[:] = [
        f for f in sys.meta_path if not type(f).__module__.startswith(("_editable", "__editable"))
    ]
    sys.path[:] = [folder, *(p for p in sys.path if Path(p or ".").resolve() != HERE)]


def load(folder: str) -> Any:
    """The rows of this package, on the fastmmd of that folder."""
    isolate(folder)
    import fastmmd

    found = Path(fastmmd.__file__).absolute()
    if Path(folder).absolute() not in found.parents:
        raise ImportError(f"fastmmd was found in {found.parent} and not in {folder}")
    spec = importlib.util.spec_from_file_location(
        ALIAS, HERE / "__init__.py", submodule_search_locations=[str(HERE)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[ALIAS] = package
    spec.loader.exec_module(package)
    return importlib.import_module(f"{ALIAS}.rows"), importlib.import_module(f"{ALIAS}.clock")


def main() -> None:
    """Answers until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    import torch

    rows, clock = load(sys.argv[1])
    lanes: dict[str, Any] = {}
    device = "cpu"
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any
        if request["do"] == "prepare":
            torch.set_num_threads(request["threads"])
            device = request["device"]
            row = next(row for row in rows.rows() if row.name == request["row"])
            lanes = {}
            try:
                made = row.prepare(device)
            except rows.MissingError as error:
                answer = {"missing": str(error)}
            except Exception as error:  # of the operation, whatever it is
                answer = {"wrong": f"{row.name}: {type(error).__name__}: {error}"}
            else:
                lanes = dict(made.calls)
                answer = {"error": made.error}
        else:
            if request["cores"] is not None:  # each time: threads may have been added
                clock.run_on(request["cores"])
            answer = clock.fastest_of(device)(lanes[request["lane"]], request["calls"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
