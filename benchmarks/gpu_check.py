"""``make gpu-check``: build, test, sanitize and measure on a machine with a GPU, in 9 minutes.

It uses the Python it is called with, fetches nothing, and leaves that Python as it is. Each phase
has a budget and writes what it has found at once; one that overruns is cut, and the next begins.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.gpu_journal import Journal, end_group, supervise
from benchmarks.gpu_machine import (
    COMMIT,
    ROOT,
    commit_of,
    digest,
    driver,
    find_sanitizer,
    installed,
    nvcc,
    nvcc_version,
)
from benchmarks.gpu_report import markdown

START = time.monotonic()  # before torch is imported and the device wakes up
SCRATCH = ROOT / "build" / "gpu-check"
# Seconds at most. What a phase leaves goes to the last.
BUDGETS = {"build": 170.0, "tests": 110.0, "sanitizer": 70.0, "bench": 160.0}
TOTAL = 520.0
TEST_PROCESSES = 4  # at a time, for tests whose oracle is on the CPU
TEST_LIMIT = 45.0  # seconds of one test, the start of the device with the first included
TOOLS = ("memcheck", "racecheck", "initcheck")
AT_RUN_TIME = ("compiled", "keops")  # rows of others that compile then, where they can
FOUND = 9  # exit status by which a tool says that it found something
OLDEST = (7, 5)  # compute capability


class Unusable(Exception):
    """What the user has to mend."""


class Check:
    """One run.

    Args:
        out: the folder for what it writes.
        dry: on the CPU, at toy sizes, without a build.
        commit: of the sources, where there is no repository to ask.
        rows: of the benchmark, or all.
        archs: what to build for.
    """

    def __init__(
        self, out: Path, dry: bool, commit: str | None, rows: str | None, archs: str
    ) -> None:
        self.out, self.dry, self.rows, self.archs = out, dry, rows, archs
        self.scratch = Path(tempfile.mkdtemp()) if dry else SCRATCH
        self.site = self.scratch / "site"
        self.failed = False
        self.results: dict[str, Any] = {
            "date": datetime.now(timezone.utc).isoformat(timespec="minutes")[:16],
            "dry": dry,
            "commit": commit or commit_of(ROOT),
            "sources": digest(ROOT),
            "driver": driver(),
            "torch": installed("torch"),
            "cuda": "",
            "nvcc": nvcc_version(),
            "python": platform.python_version(),
            "device": {},
            "phases": [],
            "tests": {},
            "sanitizer": {},
            "rows": {},
        }

    def environment(self, **more: str) -> dict[str, str]:
        """That of a process that imports what was built, and the benchmarks from here."""
        # The sources of fastmmd lie here too: what was built has to come first, or is installed.
        paths = [sysconfig.get_path("purelib") if self.dry else str(self.site), str(ROOT)]
        before = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([*paths, *([before] if before else [])])
        return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **more}

    def run(self) -> int:
        """All phases.

        Returns:
            0, or 1 if anything failed.
        """
        self.scratch.mkdir(parents=True, exist_ok=True)
        for old in ("build.log", "pytest.log", "sanitizer.log", "bench.log"):
            (self.out / old).unlink(missing_ok=True)
        built = self.phase("build", self.build)
        for name, work in (
            ("tests", self.tests),
            ("sanitizer", self.sanitizer),
            ("bench", self.bench),
        ):
            if built:
                self.phase(name, work)
            else:
                self._note(name, "skipped", 0.0, "there is no build")
        if self.dry:
            shutil.rmtree(self.scratch, ignore_errors=True)
        return int(self.failed)

    def phase(self, name: str, work: Any) -> bool:
        """One phase, and what it came to."""
        begun = time.monotonic()
        end = START + TOTAL
        deadline = end if name == "bench" else min(end, begun + BUDGETS[name])
        print(f"gpu-check: {name} ...", flush=True)
        try:
            outcome, detail = work(deadline)
        except Exception as error:
            outcome, detail = "failed", f"{type(error).__name__}: {error}"
        self._note(name, outcome, time.monotonic() - begun, detail)
        return outcome in ("passed", "not run")

    def _note(self, name: str, outcome: str, seconds: float, detail: str) -> None:
        self.failed |= outcome in ("failed", "skipped")
        phase = {"name": name, "outcome": outcome, "seconds": seconds, "detail": detail}
        self.results["phases"].append(phase | {"budget": BUDGETS[name]})
        self.write()
        print(f"gpu-check: {name}: {outcome} after {seconds:.0f} s. {detail}", flush=True)

    def journal(self, name: str, folder: Path | None = None) -> Journal:
        """A new one."""
        path = (folder or self.scratch) / f"{name}.jsonl"
        path.unlink(missing_ok=True)
        return Journal(path)

    def write(self) -> None:
        """What is known by now."""
        (self.out / "results.json").write_text(json.dumps(self.results, indent=1) + "\n")
        try:
            table = markdown(self.results)
        except Exception as error:  # the phases that follow find more
            table = f"No table: {type(error).__name__}: {error}\n"
        (self.out / "table.md").write_text(table)

    # --- the phases ------------------------------------------------------------------------------

    def build(self, deadline: float) -> tuple[str, str]:
        """Into a folder of its own, for the GPU that is here."""
        command = build_command(self.site, self.archs)
        log = self.out / "build.log"
        log.write_text(" ".join(command) + "\n")
        if self.dry:
            return "not run", "a dry run uses what is installed"
        shutil.rmtree(self.site, ignore_errors=True)
        environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        environment.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(len(os.sched_getaffinity(0))))
        environment.setdefault("CUDACXX", nvcc() or "nvcc")
        if shutil.which("ninja"):
            environment.setdefault("CMAKE_GENERATOR", "Ninja")
        status = run_until(command, log, deadline, cwd=ROOT, env=environment)
        modules = list(self.site.glob("fastmmd/_cuda*.so"))
        if status != 0 or not modules:
            last = log.read_text(errors="replace").strip().splitlines()[-1]
            reason = "cut" if status is None else f"pip ended with status {status}"
            return "failed", f"{reason}; build.log ends: {last[:200]}"
        code = "import fastmmd, fastmmd._cuda as m; print(fastmmd.__file__, m.architectures())"
        told = subprocess.run(
            [sys.executable, "-c", code],
            cwd=self.scratch, env=self.environment(), capture_output=True, text=True,
        )  # fmt: skip
        if str(self.site) not in told.stdout:
            # An editable install comes before all paths.
            last = (told.stderr.strip().splitlines() or [told.stdout])[-1]
            return "failed", f"what was built is not what is imported: {last}"
        built = told.stdout.split(maxsplit=1)[1].strip()
        return "passed", f"_cuda is {modules[0].stat().st_size / 2**20:.1f} MiB, for {built}"

    def tests(self, deadline: float) -> tuple[str, str]:
        """``pytest -m gpu``, on the files that have such tests."""
        files = [
            str(path)
            for path in sorted((ROOT / "tests").rglob("test_*.py"))
            if "mark.gpu" in path.read_text()
        ]
        # First what tells whether the device does what the emulator stands for.
        files.sort(key=lambda file: not file.endswith("test_emulation.py"))
        if not files:
            return ("not run" if self.dry else "failed"), "no test is marked gpu"
        shares = max(1, min(TEST_PROCESSES, len(os.sched_getaffinity(0)) // 2))

        def run(share: int) -> tuple[str, Journal]:
            return self.tests_of(files, share, shares, deadline)

        with ThreadPoolExecutor(shares) as pool:
            statuses, journals = zip(*pool.map(run, range(shares)), strict=True)
        status = sorted(statuses, key=lambda s: (s != "done", s != "cut"))[-1]
        ended = {name: end for journal in journals for name, end in journal.ended().items()}
        with (self.out / "pytest.log").open("wb") as joined:
            for share in range(shares):
                joined.write((self.scratch / f"tests-{share}.log").read_bytes())
        self.results["tests"] = {
            name: {key: value for key, value in end.items() if key in ("outcome", "message")}
            for name, end in ended.items()
        }
        log = (self.out / "pytest.log").read_text(errors="replace")
        broken = re.findall(r"^ERROR (\S+)", log, re.M)
        counts = Counter(end["outcome"].split(" (")[0] for end in ended.values())
        told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "no test"
        if broken:
            told += f"; not collected: {', '.join(sorted(set(broken)))}"
        if status == "cut":
            return "cut", told
        fine = status == "done" and set(counts) <= {"passed", "skipped"} and not broken
        ran = "passed" in counts or (self.dry and counts)  # all are skipped without a GPU
        return ("passed" if fine and ran else "failed"), f"{told}; {status}"

    def tests_of(
        self, files: list[str], share: int, shares: int, deadline: float
    ) -> tuple[str, Journal]:
        """Every so many of the tests, in a process of its own."""
        journal = self.journal(f"tests-{share}")
        log = self.scratch / f"tests-{share}.log"
        log.unlink(missing_ok=True)
        command = [
            *(sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-ra", "--tb=short"),
            *("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)),
            *("-p", "benchmarks.gpu_pytest", "-p", "no:cacheprovider", "-p", "no:benchmark"),
            # Those of other releases of torch are not what is checked here.
            *("-W", "default", "--continue-on-collection-errors", "--durations=10", *files),
        ]
        environment = self.environment(
            FASTMMD_GPU_JOURNAL=str(journal.path),
            FASTMMD_GPU_SHARE=f"{share}/{shares}",
            OMP_NUM_THREADS=str(max(1, len(os.sched_getaffinity(0)) // shares)),
        )
        options: dict[str, Any] = {"fine": (0, 1, 5), "cwd": self.scratch, "env": environment}
        status = supervise(command, journal, log, limit_of_test, deadline, **options)
        return status, journal

    def sanitizer(self, deadline: float) -> tuple[str, str]:
        """The tools side by side, each over the same small set of calls."""
        script = [sys.executable, "-m", "benchmarks.gpu_sanitize", *["--dry-run"] * self.dry]
        # Every allocation by itself: the ends of tensors are the ends of what may be touched.
        environment = self.environment(PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        options: dict[str, Any] = {"cwd": self.scratch, "env": environment}
        program = find_sanitizer()
        if program is None:
            with (self.out / "sanitizer.log").open("wb") as log:
                log.write(b"compute-sanitizer was not found: the calls by themselves\n")
            status = run_until(script, self.out / "sanitizer.log", deadline, **options)
            self.results["sanitizer"] = dict.fromkeys(TOOLS, "not installed")
            outcome = "failed" if status else "cut" if status is None else "not run"
            return outcome, f"compute-sanitizer is not installed; the calls: status {status}"
        logs = {tool: self.scratch / f"{tool}.log" for tool in TOOLS}
        running = {
            tool: start([*sanitizer_command(program, tool), *script], logs[tool], **options)
            for tool in TOOLS
        }
        verdicts = {}
        for tool, process in running.items():
            status = wait_until(process, deadline)
            verdicts[tool] = sanitizer_verdict(status, logs[tool].read_text(errors="replace"))
        self.results["sanitizer"] = verdicts
        with (self.out / "sanitizer.log").open("wb") as joined:
            for tool, log in logs.items():
                joined.write(f"\n===== {tool}: {verdicts[tool]}\n".encode() + log.read_bytes())
        told = "; ".join(f"{tool}: {verdict}" for tool, verdict in verdicts.items())
        if any("found" in verdict or "crashed" in verdict for verdict in verdicts.values()):
            return "failed", told
        clean = all(verdict == "clean" for verdict in verdicts.values())
        return ("passed" if clean else "cut" if "cut" in verdicts.values() else "not run"), told

    def bench(self, deadline: float) -> tuple[str, str]:
        """The rows of the benchmark."""
        # There for whoever cuts this short.
        journal = self.journal("bench", self.out)
        command = [sys.executable, "-m", "benchmarks.gpu_rows", "--journal", str(journal.path)]
        command += ["--dry-run"] * self.dry + (["--rows", self.rows] if self.rows else [])
        # Should they hang, each row that takes them would.
        clusters = has_proved(self.results["tests"], "test_clusters")
        command += ["--no-clusters"] * (not clusters)
        status = supervise(
            command,
            journal,
            self.out / "bench.log",
            row_limit,
            deadline,
            cwd=self.scratch,
            env=self.environment(),
        )
        rows = journal.ended()
        journal.path.unlink(missing_ok=True)
        self.results["rows"] = {
            name: {key: value for key, value in end.items() if key != "end"}
            for name, end in rows.items()
        }
        facts = self.results["rows"].pop("facts", {})
        if facts.get("records"):
            self.results["device"] = facts["records"][0]["device"]
            self.results["machine"] = facts["records"][0]["machine"]
            self.results["cuda"] = facts["records"][0]["cuda"]
        bad = [name for name, end in rows.items() if end["outcome"] != "passed"]
        told = f"{len(rows) - len(bad)} rows measured"
        if not clusters:
            told += " without clusters, whose tests did not pass"
        if bad:
            told += f"; not: {', '.join(bad)}"
        bad = [name for name in bad if name not in AT_RUN_TIME]
        if status == "cut":
            return "cut", told
        return ("passed" if status == "done" and not bad else "failed"), f"{told}; {status}"


def has_proved(tests: dict[str, dict[str, Any]], name: str) -> bool:
    """Whether tests of that name passed, and none came to anything else but to be skipped."""
    outcomes = {end["outcome"] for test, end in tests.items() if name in test}
    return "passed" in outcomes and outcomes <= {"passed", "skipped"}


def limit_of_test(test: str) -> float:
    """Seconds that a test may take; of those that torch compiles for, more."""
    return 2 * TEST_LIMIT if "compiled" in test else TEST_LIMIT


def row_limit(row: str) -> float:
    """Seconds that a row may take."""
    return 90.0 if row in AT_RUN_TIME else 40.0


def build_command(site: Path, archs: str = "native") -> list[str]:
    """What builds the package for this GPU, with what is installed here."""
    settings = {
        "build-dir": SCRATCH / "cmake",
        "cmake.define.FASTMMD_CUDA": "ON",
        "cmake.define.FASTMMD_CUDA_ARCHS": archs,
    }
    return [
        *(sys.executable, "-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps"),
        *("--no-index", "--target", str(site)),
        *(f"--config-settings={name}={value}" for name, value in settings.items()),
        str(ROOT),
    ]


def sanitizer_command(program: str, tool: str) -> list[str]:
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20"]
    command += ["--launch-timeout", "60"]
    # A write by a kernel that is not looked at would make what it wrote count as uninitialised.
    return command + ["--kernel-name", "kns=fastmmd"] * (tool != "initcheck")


def sanitizer_verdict(status: int | None, log: str) -> str:
    """What a tool said, in a few words."""
    if status is None:
        return "cut"
    if refused := re.search(r"Device not supported|not supported on this|Unable to find", log):
        return f"refused ({refused[0]})"
    summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", log)
    if status == FOUND:
        return f"found: {summary[1] if summary else 'see the log'}"
    if status == 0 and "all calls were made" in log:
        return "clean"
    return f"crashed (status {status})"


def start(command: Sequence[str], log: Path, **options: Any) -> subprocess.Popen[bytes]:
    """A command in a session of its own."""
    with log.open("ab") as output:
        return subprocess.Popen(
            list(command),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )


def wait_until(process: subprocess.Popen[bytes], deadline: float) -> int | None:
    """Its exit status, or None if it had to be ended at the deadline."""
    try:
        return process.wait(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        end_group(process)
        return None


def run_until(command: Sequence[str], log: Path, deadline: float, **options: Any) -> int | None:
    return wait_until(start(command, log, **options), deadline)


# --- the command --------------------------------------------------------------------------------


def require_gpu() -> str:
    """The architecture to build for; raises for what makes a run impossible."""
    try:
        import torch
    except ImportError as error:
        raise Unusable(
            f"{sys.executable} cannot import torch ({error}): name a Python that can, as in"
            " make gpu-check PYTHON=/path/to/python"
        ) from error
    if not torch.cuda.is_available():
        raise Unusable(
            f"no CUDA device that torch {torch.__version__} can use: this needs one (--dry-run"
            " goes through the motions on a CPU)"
        )
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST:
        has, needs = (".".join(map(str, c)) for c in (capability, OLDEST))
        name = torch.cuda.get_device_name()
        raise Unusable(f"{name} has compute capability {has}; fastmmd needs {needs} or later")
    if nvcc() is None:
        raise Unusable("no CUDA compiler: put nvcc (CUDA 12 or 13) on PATH, or name it in CUDACXX")
    # By nvidia-smi, which CMake asks for all GPUs.
    return "native" if shutil.which("nvidia-smi") else "".join(map(str, capability))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check.

    Returns:
        Exit status: 0; 1 if the build, a test, a tool or a row failed; 2 for what the user has to
        mend.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--commit", help=f"of the sources, if git cannot tell (or ${COMMIT})")
    parser.add_argument("--rows", help="of the benchmark, with commas between; all by default")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at toy sizes")
    options = parser.parse_args(arguments)
    try:
        archs = "native" if options.dry_run else require_gpu()
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results.json").touch()
    except (Unusable, OSError) as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    check = Check(options.out.resolve(), options.dry_run, options.commit, options.rows, archs)
    status = check.run()
    print("\n" + (check.out / "table.md").read_text())
    return status


if __name__ == "__main__":
    sys.exit(main())
