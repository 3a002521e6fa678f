"""That what results are held to can fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tolerance import SEEDS, Case, Results, check, findings, make_case, native

CASES = [make_case(seed, 9, 7, 3, "gaussian", weighted=True) for seed in SEEDS]
RESULTS = tuple(native(CASES[0]))


def without(*names: str) -> Callable[[Case], Results]:
    def function(case: Case) -> Results:
        return {name: t for name, t in native(case).items() if name not in names}

    return function


@pytest.mark.parametrize("names", [*((name,) for name in RESULTS), RESULTS])
def test_missing_results(names: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError, match="in place of"):
        check(CASES[:1], without(*names))
    found = findings(CASES[:1], without(*names), held=names)
    assert [f.name for f in found] == [name for name in RESULTS if name not in names]


def test_results_that_are_held() -> None:
    with pytest.raises(AssertionError, match="in place of"):
        check(CASES[:1], held=("x",))


@pytest.mark.parametrize("wrong", RESULTS)
def test_wrong_results(wrong: str) -> None:
    def function(case: Case) -> Results:
        return {name: t * 1.01 if name == wrong else t for name, t in native(case).items()}

    check(CASES)
    with pytest.raises(AssertionError, match=f"{wrong}, seed 0: error"):
        check(CASES, function)
