"""No function of the family holds a matrix of all pairs, forwards or backwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """if True:
    import resource
    import torch
    import fastmmd as fm

    def peak():
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def run(n):
        x, y = (torch.randn(n, 8).requires_grad_() for _ in range(2))
        labels = torch.arange(n) % 5
        value = CALL
        value.sum().backward()

    torch.set_num_threads(2)
    run(300)  # pools of threads, lazy modules
    before = peak()
    run(8000)
    print((peak() - before) / (4 * 8000 * 8000))
"""
CALLS = {
    "unbiased": "fm.mmd2(x, y, None, 'unbiased')",
    "linear": "fm.mmd2(x, y, None, 'linear')",
    "block": "fm.mmd2(x, y, None, 'block')",
    "incomplete": "fm.mmd2(x, y, None, 'incomplete')",
    "batch": "fm.mmd2(x.view(2, -1, 8), y.view(2, -1, 8))",
    "joint": "fm.joint_mmd2((x, y), (y, x))",
    "local": "fm.local_mmd2(x, y, labels, labels, 5)",
    "class-conditional": "fm.class_conditional_mmd2(x, y, labels, labels, 5)",
    "coral": "fm.coral(x, y)",
    "kernel sum": "fm.kernel_sum(x, y, y)",
    "witness": "fm.witness(x, y, x)",
    "contributions": "fm.contributions(x, y)[0]",
    "power": "fm.power_criterion(x, y)",
}


@pytest.mark.parametrize("name", CALLS)
def test_far_from_the_matrix(name: str) -> None:
    # Measured by one n x m block of kernel values in float32, of which a composition would hold
    # three or more, and their gradients. What is linear takes 0.002 for each copy of the points.
    code = CODE.replace("CALL", CALLS[name])
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 0.25
