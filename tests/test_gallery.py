"""Of the gallery every wrong rule is caught, and no right one accused.

Here a fixed part of it runs, chosen by one rule: of each function and of each kind of fault the first wrong rules in
the gallery's order; of each function the right rule with the smallest arguments, a numerically hard one if there is
any, and of these the 40 smallest. All of it, by this checker and by others, is run by
`bench/what_each_checker_catches.py`.
"""

import inspect
from collections import Counter, defaultdict

import jax
import numpy as np
import pytest
from gallery import RIGHT, WRONG, Case, edges, kinks

import jbp

A_FUNCTION, A_KIND = 1, 1  # wrong rules of each
RIGHT_ONES = 40  # right rules
BY_CHECKS = ("not linear in the cotangent", "cotangent ignored")  # values at one cotangent need not show it


def chosen_wrong() -> list[Case]:
    """The first `A_FUNCTION` wrong rules of each function, the first `A_KIND` of each kind, in the gallery's order."""
    functions, kinds = Counter[str](), Counter[str]()
    chosen = []
    for case in WRONG:
        if functions[case.function] < A_FUNCTION or kinds[case.kind] < A_KIND:
            functions[case.function] += 1
            kinds[case.kind] += 1
            chosen.append(case)
    return chosen


def chosen_right() -> list[Case]:
    """Of each function the right rule with the smallest arguments, a hard one if there is any; the 40 smallest."""
    of = defaultdict(list)
    for case in RIGHT:
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


@pytest.mark.parametrize("case", [*kinks.CASES, *edges.CASES], ids=lambda case: case.name)
def test_kinks_edges_and_stops(case: Case):
    """All of them, values alone: nothing wrong is missed, and undecided is only what has no finite derivative."""
    report = jbp.compare_vjp(case.f, *case.args, timing=False, checks=False)
    if case.kind is not None:
        assert report.kind is jbp.Verdict.WRONG, report
        return
    assert report.ok, report
    undecided = case.function in ("logsumexp of a masked row", "softmax of a masked row")
    assert report.kind is (jbp.Verdict.UNDECIDED if undecided else jbp.Verdict.AGREE), report


def test_enough_of_the_gallery_runs():
    assert len(SOME_WRONG) >= 60
    assert len({case.name for case in SOME_WRONG}) == len(SOME_WRONG)
    assert {case.function for case in SOME_WRONG} == {case.function for case in WRONG}
    assert {case.kind for case in SOME_WRONG} == {case.kind for case in WRONG}
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
