"""fastmmd bench compare: better, same, worse or unclear."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_runs import MACHINE, SharedMachine, SimulatedWorker, content, series, write

from fastmmd.bench import measure, record, table, verdict
from fastmmd.bench import rows as tracked
from fastmmd.bench.clock import Cores
from fastmmd.bench.interleave import Budget, Rounds, fastest, interleave
from fastmmd.bench.main import PASSES
from fastmmd.bench.record import Record, RecordError, Series
from fastmmd.bench.verdict import Thresholds, Verdict, compare, judge
from fastmmd.cli import main


@pytest.mark.parametrize(("factor", "answer"), [(1.25, "worse"), (0.75, "better"), (1.0, "same")])
def test_verdict_under_noise(factor: float, answer: str) -> None:
    found = [
        judge(series(2 * i), series(2 * i + 1, factor), False, Thresholds()).answer
        for i in range(20)
    ]
    assert found.count(answer) >= 19, found


def test_machine_out_of_control_is_unclear() -> None:
    wild = [
        judge(series(i, noise=1.5), series(i + 50, noise=1.5), False, Thresholds())
        for i in range(20)
    ]
    assert [v.answer for v in wild].count("unclear") >= 18, [v.answer for v in wild]


def test_paired_rounds_need_no_reference() -> None:
    base = replace(series(0, noise=0.0), runs=(20, 10))
    head = replace(
        base,
        subject=tuple(1.1 * t for t in base.subject),
        reference=tuple(reversed(base.reference)),
    )
    found = judge(base, head, True, Thresholds())
    assert found.answer == "worse"
    assert found.change == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1)


def test_one_run_a_side_needs_twice_the_change() -> None:
    found = [judge(series(2 * i), series(2 * i + 1, 1.08), False, Thresholds()) for i in range(10)]
    assert {v.answer for v in found} <= {"unclear", "same"}
    # A single pass of two revisions too.
    base = series(0)
    head = replace(base, subject=tuple(1.08 * t for t in base.subject))
    answers = [
        judge(replace(base, runs=runs), replace(head, runs=runs), True, Thresholds()).answer
        for runs in ((), (15, 15))
    ]
    assert answers == ["same", "worse"]


def joined(seeds: range, factor: float, offset: float = 0.0) -> Series:
    """Runs in processes that differ by themselves."""
    draw = np.random.default_rng(seeds.start)
    runs = [series(i, factor * np.exp(offset * draw.standard_normal())) for i in seeds]
    whole = runs[0]
    for run in runs[1:]:
        whole = whole.followed_by(run)
    return whole


def test_several_runs_a_side() -> None:
    found = judge(joined(range(4), 1.0), joined(range(4, 8), 1.1), False, Thresholds())
    assert found.answer == "worse"
    assert found.rounds == 120
    # Processes that differ by 4 % of themselves: seldom an alarm.
    alarms = [
        judge(
            joined(range(10 * i, 10 * i + 4), 1.0, 0.04),
            joined(range(10 * i + 4, 10 * i + 8), 1.0, 0.04),
            False,
            Thresholds(),
        ).answer
        in ("worse", "better")
        for i in range(20)
    ]
    assert sum(alarms) <= 1


def test_few_rounds_are_unclear() -> None:
    assert (
        judge(series(0, rounds=8), series(1, 2.0, rounds=8), False, Thresholds()).answer
        == "unclear"
    )


def test_confidence_grows_with_the_number_of_rows() -> None:
    assert Thresholds().of_rows(1).confidence == 0.99
    assert Thresholds().of_rows(50).confidence == pytest.approx(0.999)


def test_folders_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side, factor in (("base", 1.0), ("head", 1.0)):
        (tmp_path / side).mkdir()
        for run in range(3):
            made = content({"row": series(len(side) + 10 * run, factor)})
            write(tmp_path / side / f"{run}.json", made)
    assert main(["bench", "compare", str(tmp_path / "base"), str(tmp_path / "head")]) == 0
    assert "1 same" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main(["bench", "compare", str(tmp_path / "base"), str(tmp_path / "empty")]) == 2
    assert "no .json file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"commit_info": {"id": "1" * 40}}, "commit"),
        ({"fastmmd_bench": {"schema": 1, "plain_forms": "others"}}, "plain forms"),
        ({"fastmmd_bench": {"schema": 1, "rounds_with": "another"}}, "rounds measured with"),
    ],
)
def test_folder_of_different_code(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path / "a.json", content({"row": series(0)}))
    write(tmp_path / "b.json", content({"row": series(1)}, **change))
    with pytest.raises(RecordError, match=f"not runs of the same code: {message}"):
        Record.load(tmp_path)


def test_place_of_the_verdicts_is_tried_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmmd.bench.builds.build", lambda *_: pytest.fail("it builds"))
    (tmp_path / "file").write_text("")
    place = str(tmp_path / "file" / "verdicts.json")
    assert main(["bench", "compare", "HEAD", "HEAD", "--json", place]) == 2
    assert "not a folder that can be written to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--select", "nosuch"], "selects no row"),
        (["--select", "("], "no regular expression"),
        (["--quick"], "--quick is for revisions"),
        (["--save", "x"], "--save is for revisions"),
        (["--threads", "2"], "--threads is for revisions"),
        (["--device", "cuda"], "--device is for revisions"),
        (["--passes", "3"], "--passes is for revisions"),
    ],
)
def test_options_of_files(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.json", content({"row": series(0)}))
    assert main(["bench", "compare", file, file, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_other_plain_forms_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = content({"row": series(0)}), content({"row": series(1)})
    b["fastmmd_bench"]["plain_forms"] = "changed"
    main(["bench", "compare", write(tmp_path / "a.json", a), write(tmp_path / "b.json", b)])
    assert "plain forms differ" in capsys.readouterr().err


def test_absolute_threshold() -> None:
    base, head = series(0, time=2e-6), series(1, 1.3, time=2e-6)
    assert judge(base, head, False, Thresholds(absolute=2e-6)).answer == "same"
    assert judge(base, head, False, Thresholds(absolute=1e-9)).answer == "worse"


def test_busy_through_all_rounds_of_a_row() -> None:
    # A few rounds that are as fast as ever show that the code is.
    base = series(0, noise=0.01)
    slow = [t * (1 if i % 7 == 0 else 1.5) for i, t in enumerate(series(1, noise=0.01).subject)]
    head = Series("row", tuple(slow), series(1, noise=0.01).reference)
    assert judge(base, head, False, Thresholds()).answer == "unclear"


def test_verdicts_do_not_depend_on_the_run() -> None:
    assert judge(series(0), series(1), False, Thresholds()) == judge(
        series(0), series(1), False, Thresholds()
    )


def test_new_and_gone_rows() -> None:
    base = Record.parse(content({"a": series(0), "b": series(1)}))
    head = Record.parse(content({"b": series(1), "c": series(2)}))
    answers = {v.row: v.answer for v in compare(base, head)}
    assert answers == {"b": "same", "c": "new", "a": "gone"}
    text = table.comparison(compare(base, head), "base", "head", MACHINE)
    assert "1 same, 1 new, 1 gone" in text
    assert "nan" not in text


def test_bootstrap_keeps_neighbours_together() -> None:
    made = verdict._resampled(np.arange(27.0), np.random.default_rng(0))
    assert made.shape == (verdict._RESAMPLES, 27)
    assert (np.diff(made.reshape(-1, 3)) == 1).all()


def test_bootstrap_over_runs_of_different_lengths() -> None:
    samples = verdict._samples((9, 4), np.random.default_rng(0))
    lengths = (samples >= 0).sum(axis=1)
    assert set(lengths) == {2 * 9, 9 + 4, 2 * 4}
    of_first = ((samples >= 0) & (samples < 9)).sum(axis=1)
    assert set(of_first) == {2 * 9, 9, 0}
    values = np.random.default_rng(1).standard_normal(13)
    chosen = [np.sort(values[of[of >= 0]]) for of in samples[:50]]
    expected = [v[len(v) // 4 : len(v) - len(v) // 4].mean() for v in chosen]
    assert verdict._midmeans(values, samples[:50]) == pytest.approx(expected)
    few = np.array([[0, -1, -1], [0, 1, -1], [0, 1, 2]])
    assert verdict._midmeans(np.array([1.0, 2.0, 6.0]), few) == pytest.approx([1.0, 1.5, 3.0])


# --- machines that others use --------------------------------------------------------------------


def trial(
    monkeypatch: pytest.MonkeyPatch, machine: SharedMachine, plant: float, passes: int = PASSES
) -> Verdict:
    """A duel of two builds, one of them slower by a plant, on a simulated machine."""
    monkeypatch.setattr(measure, "Worker", SimulatedWorker)
    monkeypatch.setattr(measure, "Cores", lambda threads, _: Cores(threads, range(machine.CORES)))
    monkeypatch.setattr(measure, "MOST_ROUNDS", 30)  # as many as fit into a pass of 1.5 s
    monkeypatch.setattr(verdict, "_RESAMPLES", 1000)
    monkeypatch.setattr("gc.collect", int)  # most of the time of a duel that takes none
    monkeypatch.setattr(SimulatedWorker, "machine", machine, raising=False)
    monkeypatch.setattr(SimulatedWorker, "plant", {"base": 0.0, "head": plant})
    sides = (measure.BASE, measure.HEAD)
    rows = tracked.select("mmd2, n=512 d=256, float32, forward [+]", quick=True)
    (found,) = measure.duel(
        dict.fromkeys(sides, Path()),
        {side: {"id": side} for side in sides},
        rows,
        "cpu",
        2,
        1e9,
        passes,
        Thresholds(),
        lambda line: None,
    ).verdicts
    return found


# Seconds that a core is slow and quiet, and how slow. Another guest on the sibling of a core makes
# it slower by a third or so; a time slice of another process halves what two threads do together.
DISTURBANCES = {
    "quiet": (1e-9, 1e9, 1.0),
    "guests that stay": (10.0, 20.0, 1.3),
    "guests that come and go": (3.0, 6.0, 1.3),
    "guests that take a core's half": (0.7, 1.0, 1.9),
    "time slices": (0.01, 0.02, 2.0),
}


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_planted_slow_downs_on_a_shared_machine(
    disturbance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted, same = (
        [
            trial(monkeypatch, SharedMachine(seed, *DISTURBANCES[disturbance]), plant).answer
            for seed in range(20)
        ]
        for plant in (0.1, 0.0)
    )
    assert planted.count("worse") >= 19, planted
    assert same.count("worse") + same.count("better") <= 1, same


def test_recorded_stretch() -> None:
    """Rounds that were measured beside three busy processes, up to four passes: no wrong answer."""
    recorded = json.loads(Path(__file__).with_name("recorded_rounds.json").read_text())

    def answers(head: str) -> list[str]:
        found = []
        for passes in range(1, 5):
            base, other = (
                Series(
                    "row",
                    *2 * [tuple(t * 1e-6 for p in recorded[of][:passes] for t in p)],
                    runs=tuple(map(len, recorded[of][:passes])),
                )
                for of in ("base", head)
            )
            found.append(judge(base, other, True, Thresholds()).answer)
        return found

    assert set(answers("planted")) <= {"unclear", "worse"}
    assert set(answers("same")) <= {"unclear", "same"}


def test_lanes_of_the_same_work_have_turns_of_the_same_length() -> None:
    """Of two slices the fastest is faster than of one, by as much as a small change."""
    took = iter([7e-3, 7e-3, 4e-3, 4e-3])  # the first calls of one lane are held up
    asked: dict[str, set[int]] = {"one": set(), "two": set()}

    def measure(lane: str, calls: int) -> float:
        if calls > 1:
            asked[lane].add(calls)
        return calls * next(took, 4e-3)

    lanes: dict[str, Any] = {"one": "one", "two": "two"}
    budget = Budget(1e9, least=3, most=3, turn=0.01)
    rounds = interleave(lanes, budget, measure, alike=["one", "two"])
    assert asked == {"one": {3}, "two": {3}}
    assert rounds.calls == {"one": 3, "two": 3}
    took = iter([7e-3, 7e-3, 4e-3, 4e-3])
    assert interleave(lanes, budget, measure).calls == {"one": 2, "two": 3}


def test_the_fastest_slice_counts_for_the_turn() -> None:
    disturbed = iter([0.0, 5e-3, 0.0, 2e-3, 1e-3, 0.0, 0.0, 4e-3])
    timed = []

    def measure(lane: str, calls: int) -> float:
        timed.append(calls)
        return 3e-4 * calls + next(disturbed)

    assert fastest(measure)("lane", 25) == pytest.approx(25 * 3e-4)
    assert timed == [3] * 8
    # A call as long as a slice is one.
    long = iter([3e-3, 2.4e-3, 2.6e-3])
    assert fastest(lambda lane, calls: next(long))("lane", 3) == pytest.approx(3 * 2.4e-3)


def test_rounds_visit_all_cores_alike() -> None:
    cores = Cores(2, [0, 1, 2, 3])
    visited = []
    for _ in range(8):
        visited.append(cores.now)
        cores.next_round()
    assert visited[::2] == visited[1::2] == [[0, 1], [2, 3], [1, 2], [0, 3]]
    assert Cores(4, [0, 1, 2, 3]).now is None
    assert Cores(3, ()).now is None


def test_no_answer_stands_on_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SharedMachine(0, *DISTURBANCES["quiet"])
    for plant, passes in ((0.0, 2), (0.1, 3), (-0.1, 3)):
        assert trial(monkeypatch, machine, plant).rounds == 30 * passes


def test_processes_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """By 3 % of themselves, where pooled passes raise an alarm at every eighth row."""
    monkeypatch.setattr(SimulatedWorker, "spread", 0.03)
    planted, same = (
        [
            trial(monkeypatch, SharedMachine(seed, *DISTURBANCES["quiet"]), plant).answer
            for seed in range(40)
        ]
        for plant in (0.1, 0.0)
    )
    assert planted.count("worse") >= 36, planted
    assert same.count("worse") + same.count("better") <= 2, same


def test_passes_are_kept_in_the_files(tmp_path: Path) -> None:
    rounds = Rounds({"a": [1.0, 2.0, 3.0]}, {"a": 1}, (1, 2))
    entries = [record.entry("row", lane, rounds, "a", {}) for lane in ("fastmmd", "reference")]
    made = record.content(MACHINE, {"id": None}, entries)
    assert Record.load(write(tmp_path / "a.json", made)).series["row"].runs == (1, 2)
    for wrong in ([1, 1], [3, 0], "3", [1.0, 2.0]):
        for entry in entries:
            entry["extra_info"]["runs"] = wrong
        with pytest.raises(RecordError, match="the runs of 'row' are not"):
            Record.parse(made)
