"""What each checker of gradients catches: the gallery of wrong rules, and of right ones, through each.

    jbp.compare_vjp                  against autodiff of the rule's own primal; by a float64 shadow
    jax.test_util.check_grads        first order, reverse mode, its own tolerances; in float32 and in float64
    torch.autograd.gradcheck         its own settings, in float64; the rule wrapped in a torch.autograd.Function

A wrong rule that is accused is caught, and missed otherwise, also where the checker says that it can't decide. A right
one that is accused is accused falsely; one of which it can't decide is counted by itself. Integers are closed over,
as the last three want it. In float64 all floats of a case are cast, so a case about bfloat16 is no longer one.
"""

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import harness
import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

import jbp

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from gallery import REPORTED, RIGHT, WRONG, Case

CAUGHT, PASSED, UNDECIDED, NOT_THERE = "accused", "passed", "undecided", "cannot be written there"
LARGEST = 2e8  # elements of a Jacobian that gradcheck may hold


@dataclass(frozen=True)
class Verdict:
    """What a checker says of a case, and in which words."""

    says: str
    why: str = ""


# -- a case as a function of float arrays -----------------------------------------------------------------------------


def inexact(leaf: np.ndarray) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def to_double(leaf: np.ndarray) -> np.ndarray:
    return leaf.astype(np.complex128 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else np.float64)


def of_floats(case: Case) -> tuple[Callable, list[np.ndarray]]:
    """f as a function of its float leaves, and these."""
    leaves, treedef = jax.tree.flatten(case.args)
    at = [i for i, leaf in enumerate(leaves) if inexact(leaf)]

    def f(*floats):
        filled = list(leaves)
        for i, leaf in zip(at, floats, strict=True):
            filled[i] = leaf
        return case.f(*jax.tree.unflatten(treedef, filled))

    return f, [leaves[i] for i in at]


# -- the checkers -----------------------------------------------------------------------------------------------------


def by_compare_vjp(case: Case) -> Verdict:
    report = jbp.compare_vjp(case.f, *case.args, timing=False)
    kind = jbp.Verdict
    says = {kind.AGREE: PASSED, kind.WRONG: CAUGHT, kind.UNDECIDED: UNDECIDED, kind.EMPTY: UNDECIDED}
    return Verdict(says[report.kind], str(report.verdict))


def by_check_grads(case: Case) -> Verdict:
    f, floats = of_floats(case)
    try:
        check_grads(f, floats, order=1, modes=["rev"])
    except AssertionError as error:
        return Verdict(CAUGHT, str(error).strip()[:200])
    return Verdict(PASSED)


def by_check_grads_in_float64(case: Case) -> Verdict:
    f, floats = of_floats(case)
    with jax.enable_x64(True):
        try:
            check_grads(f, [to_double(leaf) for leaf in floats], order=1, modes=["rev"])
        except AssertionError as error:
            return Verdict(CAUGHT, str(error).strip()[:200])
    return Verdict(PASSED)


def by_gradcheck(case: Case) -> Verdict:
    """Torch's gradient at a complex number is the conjugate of JAX's, and so is its cotangent."""
    torch, errors = harness.extra("torch"), harness.extra("torch.autograd.gradcheck")
    f, floats = of_floats(case)
    floats = [to_double(leaf) for leaf in floats]
    with jax.enable_x64(True):
        value = jax.jit(lambda leaves: jax.tree.leaves(f(*leaves)))
        pull = jax.jit(lambda leaves, delta: jax.vjp(lambda *x: jax.tree.leaves(f(*x)), *leaves)[1](delta))
        outs = jax.eval_shape(value, floats)
        elements = sum(leaf.size for leaf in floats) * sum(out.size for out in outs)
        if elements > LARGEST:
            return Verdict(NOT_THERE, f"its Jacobian, which gradcheck builds, has {elements:.1e} elements")

        def tensors(arrays):
            return tuple(torch.from_numpy(np.array(a)) for a in arrays)

        class Wrapped(torch.autograd.Function):
            @staticmethod
            def forward(context, *leaves):
                context.save_for_backward(*leaves)
                return tensors(value([leaf.detach().numpy() for leaf in leaves]))

            @staticmethod
            def backward(context, *delta):
                leaves = [leaf.detach().numpy() for leaf in context.saved_tensors]
                delta = [d.detach().resolve_conj().numpy().conj() for d in delta]
                return tensors(np.conj(g) for g in pull(leaves, delta))

        try:
            torch.autograd.gradcheck(Wrapped.apply, [t.requires_grad_() for t in tensors(floats)])
        except errors.GradcheckError as error:
            return Verdict(CAUGHT, str(error).strip()[:200])
    return Verdict(PASSED)


CHECKERS: dict[str, Callable[[Case], Verdict]] = {
    "jbp.compare_vjp": by_compare_vjp,
    "check_grads, float32": by_check_grads,
    "check_grads, float64": by_check_grads_in_float64,
    "torch gradcheck": by_gradcheck,
}


def asked(checker: Callable, case: Case) -> Verdict:
    """The verdict; what a checker cannot run is not held against it, and listed."""
    try:
        return checker(case)
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        return Verdict(NOT_THERE, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:100]}")


# -- the table --------------------------------------------------------------------------------------------------------


def table(verdicts: dict[str, dict[str, Verdict]]) -> None:
    """Caught and accused, in all and by kind of fault."""
    width = max(31, 5 + max(len(case.kind) for case in WRONG))
    columns = [max(len(name), 12) for name in CHECKERS]

    def row(title: str, cells: list[str]) -> None:
        print(f"  {title:{width}}", *(f"{c:>{w}}" for c, w in zip(cells, columns, strict=True)), sep="  ")

    def share(name: str, cases: list[Case], what: str = CAUGHT) -> str:
        if name not in verdicts:
            return "n/a"
        says = Counter(verdicts[name][case.name].says for case in cases)
        return f"{says[what]} of {len(cases) - says[NOT_THERE]}"

    reported = {case.name for module in REPORTED for case in module.CASES}
    own, public = ([case for case in WRONG if (case.name in reported) == said] for said in (False, True))
    row("", list(CHECKERS))
    row("wrong rules caught", [share(name, WRONG) for name in CHECKERS])
    row("  of those reported in public", [share(name, public) for name in CHECKERS])
    row("  of the others", [share(name, own) for name in CHECKERS])
    row("wrong rules undecided", [share(name, WRONG, UNDECIDED) for name in CHECKERS])
    row("right rules accused", [share(name, RIGHT) for name in CHECKERS])
    row("  hard ones of these", [share(name, [case for case in RIGHT if case.hard]) for name in CHECKERS])
    row("right rules undecided", [share(name, RIGHT, UNDECIDED) for name in CHECKERS])
    print("\n  caught, by kind of fault")
    for kind, count in Counter(case.kind for case in WRONG).most_common():
        row(f"{kind} ({count})", [share(name, [case for case in WRONG if case.kind == kind]) for name in CHECKERS])


def lists(verdicts: dict[str, dict[str, Verdict]]) -> None:
    """For each checker the wrong rules that it misses, the right ones that it accuses, and what it cannot run."""
    for name, found in verdicts.items():
        said = lambda case, found=found: f"{found[case.name].says}, {' '.join(found[case.name].why.split())}"
        of = lambda cases, *says, found=found: [case for case in cases if found[case.name].says in says]
        told = {
            "misses": [f"{case.name} ({case.kind}): {said(case)}" for case in of(WRONG, PASSED, UNDECIDED)],
            "falsely accuses": [f"{case.name}: {said(case)}" for case in of(RIGHT, CAUGHT)],
            "can't decide of right ones": [f"{case.name}: {said(case)}" for case in of(RIGHT, UNDECIDED)],
            "cannot run": [f"{case.name}: {said(case)}" for case in of([*WRONG, *RIGHT], NOT_THERE)],
        }
        for what, lines in told.items():
            if lines:
                print(f"\n{name} {what} {len(lines)}:", *lines, sep="\n  ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every verdict here")
    parser.add_argument("--only", metavar="TEXT", help="only checkers with this in their name")
    options = parser.parse_args()
    torch = harness.extra("torch") if (options.only or "") in "torch gradcheck" else None
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # overflow is what some cases are about
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    print(__doc__, f"jax {jax.__version__}" + (f", torch {torch.__version__}" if torch else ""), sep="\n")
    cases = [*WRONG, *RIGHT]
    functions = len({case.function for case in WRONG})
    print(f"\n{len(WRONG)} wrong rules of {functions} functions, {len(RIGHT)} right ones\n", flush=True)

    verdicts = {}
    for name, checker in CHECKERS.items():
        if (options.only or "") in name:
            verdicts[name] = {case.name: asked(checker, case) for case in cases}
            print(f"  {name} has seen them", file=sys.stderr, flush=True)
    table(verdicts)
    lists(verdicts)
    if options.json:
        told = {name: {case: vars(verdict) for case, verdict in found.items()} for name, found in verdicts.items()}
        options.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
