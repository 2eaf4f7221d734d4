"""Of the gallery every wrong rule is caught, and no right one accused.

Here a fixed part of it runs, chosen by one rule: of each function and of each kind of fault the first wrong rules in
the gallery's order; of each function the right rule with the smallest arguments, a numerically hard one if there is
any, and of these the 40 smallest. Kinks and edges, and what was reported in public trackers, run whole, values alone.
All of it, by this checker and by others, is run by `bench/what_each_checker_catches.py`.
"""

import inspect
from collections import Counter, defaultdict

import jax
import numpy as np
import pytest
from gallery import REPORTED, RIGHT, WRONG, Case, edges, kinks

import jbp

A_FUNCTION, A_KIND = 1, 1  # wrong rules of each
RIGHT_ONES = 40  # right rules
BY_CHECKS = ("not linear in the cotangent", "cotangent ignored")  # values at one cotangent need not show it
EDGES = [*kinks.CASES, *edges.CASES]
REPORTS = [case for module in REPORTED for case in module.CASES]
WHOLE = {case.name for case in (*EDGES, *REPORTS)}
# Wrong rules that nothing says is wrong; which is mended fails here, and then its line goes.
MISSED = {
    "Bessel's I₀ at 0, jax#11479: 1 at 0": "a slope at |x|'s kink, which a kink inside i0e makes up for",
    "log-sigmoid at 0, jax#2140: 0 at 0": "slopes at two kinks that make up for each other; second order tells",
    "mean of squares beside NaN, jax#9040: NaN where it is": "autodiff has NaN, and no difference can be taken at NaN",
}


def chosen_wrong() -> list[Case]:
    """The first `A_FUNCTION` wrong rules of each function, the first `A_KIND` of each kind, in the gallery's order."""
    functions, kinds = Counter[str](), Counter[str]()
    chosen = []
    for case in (case for case in WRONG if case.name not in WHOLE):
        if functions[case.function] < A_FUNCTION or kinds[case.kind] < A_KIND:
            functions[case.function] += 1
            kinds[case.kind] += 1
            chosen.append(case)
    return chosen


def chosen_right() -> list[Case]:
    """Of each function the right rule with the smallest arguments, a hard one if there is any; the 40 smallest."""
    of = defaultdict(list)
    for case in (case for case in RIGHT if case.name not in WHOLE):
        of[case.function].append(case)
    chosen = [min([case for case in cases if case.hard] or cases, key=size) for cases in of.values()]
    return sorted(chosen, key=size)[:RIGHT_ONES]


def size(case: Case) -> int:
    return sum(np.size(leaf) for leaf in jax.tree.leaves(case.args))


SOME_WRONG, SOME_RIGHT = chosen_wrong(), chosen_right()


def arguments(case: Case) -> list[str]:
    """The names of the arguments."""
    return list(inspect.signature(case.f).parameters)


@pytest.mark.parametrize("case", SOME_WRONG, ids=lambda case: case.name)
def test_a_wrong_rule_is_caught_and_its_leaf_named(case: Case):
    report = jbp.compare_vjp(case.f, *case.args, timing=False, checks=False)
    if report.ok and case.kind in BY_CHECKS:
        report = jbp.compare_vjp(case.f, *case.args, timing=False)
        assert [check.name for check in report.checks if check.ok is False] == ["linear in the cotangent"]
        return
    assert not report.ok, report
    assert not report.worst.ok
    assert "DISAGREE" in report.verdict
    if case.leaf is not None:
        assert report.worst.name.split(".")[0] == arguments(case)[case.leaf]


@pytest.mark.parametrize("case", SOME_RIGHT, ids=lambda case: case.name)
def test_a_right_rule_is_not_accused(case: Case):
    report = jbp.compare_vjp(case.f, *case.args, timing=False)
    assert report.kind is not jbp.Verdict.WRONG, report
    assert report.ok or report.kind is jbp.Verdict.EMPTY, report
    assert len(report.checks) >= 10


@pytest.mark.parametrize("case", EDGES, ids=lambda case: case.name)
def test_kinks_edges_and_stops(case: Case):
    """All of them, values alone: nothing wrong is missed, and undecided is only what has no finite derivative."""
    report = jbp.compare_vjp(case.f, *case.args, timing=False, checks=False)
    if case.kind is not None:
        assert report.kind is jbp.Verdict.WRONG, report
        return
    assert report.ok, report
    undecided = case.function in ("logsumexp of a masked row", "softmax of a masked row")
    assert report.kind is (jbp.Verdict.UNDECIDED if undecided else jbp.Verdict.AGREE), report


@pytest.mark.parametrize(
    "case", [c for c in EDGES if c.kind is None and "infinit" in c.name], ids=lambda case: case.name
)
def test_an_infinite_derivative_fails_no_check(case: Case):
    """Sums of infinities say nothing of linearity."""
    assert jbp.compare_vjp(case.f, *case.args, timing=False).ok


@pytest.mark.parametrize("case", REPORTS, ids=lambda case: case.name)
def test_what_was_reported(case: Case):
    report = jbp.compare_vjp(case.f, *case.args, timing=False, checks=False)
    caught = case.kind is not None and case.name not in MISSED
    assert (report.kind is jbp.Verdict.WRONG) == caught, report


def test_what_is_missed_is_in_the_gallery():
    assert MISSED.keys() <= {case.name for case in REPORTS if case.kind is not None}


def test_enough_of_the_gallery_runs():
    assert len(SOME_WRONG) >= 60
    assert len({case.name for case in SOME_WRONG}) == len(SOME_WRONG)
    assert {case.function for case in (*SOME_WRONG, *EDGES, *REPORTS)} >= {case.function for case in WRONG}
    assert {case.kind for case in (*SOME_WRONG, *EDGES, *REPORTS)} >= {case.kind for case in WRONG}
    assert len(SOME_RIGHT) >= 40
    assert sum(case.hard for case in SOME_RIGHT) >= 20


def test_the_gallery_is_as_large_as_it_is_said_to_be():
    """At least 60 wrong rules of at least 12 functions and 40 right ones, all of them different."""
    assert len(WRONG) >= 60
    assert len({case.function for case in WRONG}) >= 12
    assert len(RIGHT) >= 40
    names = Counter(case.name for case in (*WRONG, *RIGHT))
    assert max(names.values()) == 1
    assert all(hasattr(leaf, "dtype") for case in (*WRONG, *RIGHT) for leaf in jax.tree.leaves(case.args))
