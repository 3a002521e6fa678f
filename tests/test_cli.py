"""The command line: what it prints, and what it says of mistakes."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fastmmd
from fastmmd import info as info_module
from fastmmd.cli import main
from fastmmd.info import info


def test_info_prints_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert {name: value.strip() for name, value in printed.items()} == info()
    assert printed["fastmmd"].strip() == fastmmd.__version__
    assert printed["torch"].strip() == torch.__version__
    assert printed["Python"].strip() == platform.python_version()
    assert printed["threads"].split()[0] == str(torch.get_num_threads())
    assert {"instruction set", "CUDA", "compiler"} <= set(printed)
    assert printed["instruction set"].split()[0] in {"avx512", "avx2", "baseline"}


@pytest.mark.parametrize(
    ("driver", "devices", "said"),
    [
        (0, 0, "built for 80;90 with CUDA 12.8; no driver"),
        (13000, 1, "built for 80;90 with CUDA 12.8; driver for CUDA 13.0, 1 device"),
        (12040, 2, "built for 80;90 with CUDA 12.8; driver for CUDA 12.4, 2 devices"),
    ],
)
def test_info_tells_the_state_of_cuda(
    driver: int, devices: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = SimpleNamespace(
        architectures=lambda: "80;90",
        runtime_version=lambda: 12080,
        driver_version=lambda: driver,
        device_count=lambda: devices,
    )
    monkeypatch.setitem(sys.modules, "fastmmd._cuda", module)  # type: ignore[arg-type]
    assert info_module.cuda_state() == said


def test_info_tells_that_cuda_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastmmd._cuda", None)  # type: ignore[arg-type]
    assert info_module.cuda_state() == "not built"


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "info" in text
    assert "demo" in text
    assert "compare" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"fastmmd {fastmmd.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["dance"], "'dance'"),
        (["demo", "--seeds", "0"], "--seeds: must be a whole number of at least 1; got '0'"),
        (["demo", "--epochs", "1.5"], "--epochs: must be a whole number of at least 1; got '1.5'"),
        (["demo", "--threads", "-1"], "--threads: must be a whole number"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["lightning", "torchmetrics", "sklearn", "matplotlib", "rich"])
def test_demo_without_the_extra(missing: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from fastmmd.cli import main;"
        f"sys.exit(main(['demo', '--output', {str(tmp_path / 'out')!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert f"the demo needs {missing}" in result.stderr
    assert "pip install 'fastmmd[train]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


def test_demo_with_an_output_that_is_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    assert main(["demo", "--output", str(file)]) == 2
    output = capsys.readouterr()
    assert f"--output {str(file)!r} is not a folder that can be written to" in output.err
    assert output.out == ""
    assert file.read_text() == "kept"
