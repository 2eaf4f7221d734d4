"""Generated inputs: what `jbp.arrays` draws, and what `jbp.search` finds, shrinks and prints as code."""

import random
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Bool, Complex, Float, Int

import jbp
from jbp.compare import annotated

INPUTS = sys.modules["jbp.compare.inputs"]
SHAPES = sys.modules["jbp.compare.shapes"]
# The run-time type checker looks at random elements, which Hypothesis takes for randomness of our own.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch):
    """Times are of no interest here, and each size of an axis is compiled anew."""
    monkeypatch.setattr(sys.modules["jbp.programs.clock"], "SECONDS", 0.0)
    monkeypatch.setattr(SHAPES, "SIZES", (1, 2, 3))


def drawn(shapes: str, count: int = 100, **settings: Any) -> list[tuple[np.ndarray, ...]]:
    """So many examples of `jbp.arrays`."""
    found: list[tuple[np.ndarray, ...]] = []
    options = hypothesis.settings(max_examples=count, deadline=None, database=None)
    with pytest.raises(hypothesis.errors.NoSuchExample):
        hypothesis.find(
            jbp.arrays(shapes, **settings), lambda args: bool(found.append(args)), settings=options,
            random=random.Random(0),
        )  # fmt: skip
    return found


# -- arrays -----------------------------------------------------------------------------------------------------------


def test_a_letter_is_one_size_in_all_arguments():
    examples = drawn("N I, I O, 5 N, ")
    sizes = {(x.shape, w.shape) for x, w, _, _ in examples}
    assert len(sizes) > 10
    for x, w, five, scalar in examples:
        assert x.ndim == w.ndim == five.ndim == 2
        assert x.shape[1] == w.shape[0]
        assert five.shape == (5, x.shape[0])
        assert scalar.shape == ()
        assert {a.dtype for a in (x, w, five, scalar)} == {np.dtype(np.float32)}
    assert {x.shape[0] for x, *_ in examples} == {1, 2, 3}  # 1 is an edge that must come


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2", "complex64", "int8", "bool"]
)
def test_every_dtype_and_nothing_that_is_not_finite(dtype: str):
    for default in (False, True):
        examples = drawn("N" if default else f"N: {dtype}", 60, **({"dtype": dtype} if default else {}))
        assert {a.dtype for (a,) in examples} == {jnp.dtype(dtype)}
        assert all(np.isfinite(a.astype(np.complex128)).all() for (a,) in examples)
        assert len({a.tobytes() for (a,) in examples}) > 5
    if dtype == "complex64":
        assert any(np.imag(a).any() for (a,) in examples)


def test_whole_numbers_stay_below_an_axis_or_a_number():
    examples = drawn("V D, N: int32 < V, N: uint8 < 7")
    assert all((i >= 0).all() and (i < len(table)).all() for table, i, _ in examples)
    assert any(i.max() == len(table) - 1 > 0 for table, i, _ in examples)
    assert {int(k.max()) for _, _, k in examples} == set(range(7))


def test_axes_are_empty_only_where_that_is_asked_for():
    assert all(0 not in x.shape for (x,) in drawn("N I"))
    examples = drawn("N I, V D, T: int32 < V", empty=True)
    assert {0 in x.shape for x, *_ in examples} == {False, True}
    assert any(len(table) == 0 and len(i) for table, i in ((t, i) for _, t, i in examples))


def test_every_style_is_reached(monkeypatch: pytest.MonkeyPatch):
    made: list[str] = []
    for name, style in SHAPES.STYLES.items():
        monkeypatch.setitem(SHAPES.STYLES, name, lambda *a, name=name, style=style: (made.append(name), style(*a))[1])
    drawn("N, N I", 200)
    assert set(made) == set(SHAPES.STYLES)
    assert len(SHAPES.STYLES) >= 10


def test_the_edges_are_among_the_values():
    values = [a for (a,) in drawn("N I", 300)]
    tiny = float(jnp.finfo(np.float32).tiny) ** 0.5
    assert any((a == 0).all() for a in values)
    assert any((a == 0).any() and (a != 0).any() for a in values)
    assert any(a.size > 1 and (a == a.flat[0]).all() and a.flat[0] not in (0, 1) for a in values)
    assert any(np.abs(a).max() > 1e9 for a in values)
    assert any(0 < np.abs(a).max() < 10 * tiny for a in values)
    assert any(len({*np.abs(a).flat}) < a.size and a.std() > 0 for a in values)  # ties


def test_the_same_seed_draws_the_same():
    first, second = drawn("N I, N: bfloat16", 30), drawn("N I, N: bfloat16", 30)
    assert [[a.tobytes() for a in args] for args in first] == [[a.tobytes() for a in args] for args in second]


TEXT = 'Write for example "N I, I O" or "V D, N T: int32 < V".'
BAD_TEXTS = {
    "N; I": f"shapes: expected arguments with commas between, each its axes and perhaps a dtype, got 'N; I'. {TEXT}",
    "N, I: float33": "shapes: no dtype is called 'float33'. Write for example float32 or bfloat16.",
    "N:": f"shapes: expected arguments with commas between, each its axes and perhaps a dtype, got 'N:'. {TEXT}",
    "N: int32 <": "shapes: expected arguments with commas between, each its axes and perhaps a dtype, got "
    f"'N: int32 <'. {TEXT}",
    "(N, I)": f"shapes: expected arguments with commas between, each its axes and perhaps a dtype, got '(N'. {TEXT}",
    "V D, N: int32 < W": "shapes: no axis is called 'W', which whole numbers should stay below. Name one of D, N, V.",
}


@pytest.mark.parametrize("text", BAD_TEXTS)
@pytest.mark.parametrize("call", [jbp.arrays, lambda text: jbp.search(matmul, text)], ids=["arrays", "search"])
def test_a_bad_text_is_told_what_to_write(text: str, call: Callable):
    with pytest.raises(jbp.InputError) as error:
        call(text)
    assert str(error.value) == BAD_TEXTS[text]


def test_without_hypothesis_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    for call in (lambda: jbp.arrays("N"), lambda: jbp.search(matmul, "N I, I O")):
        with pytest.raises(jbp.InputError) as error:
            call()
        assert str(error.value) == (
            "hypothesis is not installed, and generated inputs need it. Write: pip install 'jbp[check]'"
        )


# -- search: rules that are wrong somewhere ---------------------------------------------------------------------------


def ruled(primal: Callable, backward: Callable) -> Callable:
    """`primal` with the gradient `backward(args, cotangent)`."""
    f = jax.custom_vjp(primal)
    f.defvjp(lambda *args: (primal(*args), args), backward)
    return f


def times_softmax(p: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    return (p * (g - (p * g).sum(-1, keepdims=True)),)


def times_two_if(wrong: bool) -> float:
    return 2.0 if wrong else 1.0


softmax = ruled(lambda x: jax.nn.softmax(x), lambda args, g: times_softmax(jax.nn.softmax(args[0]), g))
naive_softmax = ruled(
    lambda x: jax.nn.softmax(x),
    lambda args, g: times_softmax(jnp.exp(args[0]) / jnp.exp(args[0]).sum(-1, keepdims=True), g),
)
all_of_a_tie = ruled(lambda x: x.max(), lambda args, g: (jnp.where(args[0] == args[0].max(), g, 0.0),))
matmul = ruled(lambda x, w: x @ w, lambda args, g: (g @ args[1].T, args[0].T @ g))
wrong_for_one = ruled(
    lambda x, w: x @ w, lambda args, g: (g @ args[1].T, args[0].T @ g * times_two_if(args[0].shape[0] == 1))
)
wrong_for_none = ruled(
    lambda x, b: x.sum(0) + b,
    lambda args, g: (jnp.broadcast_to(g, args[0].shape), g * times_two_if(args[0].shape[0] == 0)),
)


def again(report: jbp.Report, **functions: Callable) -> jbp.Report:
    """What the code that reproduces a report compares."""
    made: list[jbp.Report] = []
    exec(report.reproduce, {**functions, "print": made.append})
    assert len(made) == 1
    return made[0]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """A search that fails, values only: see `_found`."""
    compare_rules, compare = INPUTS.compare_rules, INPUTS.compare
    monkeypatch.setattr(
        INPUTS, "compare_rules", lambda *args, **hurry: compare_rules(*args[:4], False, False, *args[6:], **hurry)
    )
    for where, name in ((jbp, "compare_vjp"), (jbp, "compare_jvp")):
        short = partial(getattr(where, name), timing=False, **({"checks": False} if name == "compare_vjp" else {}))
        monkeypatch.setattr(where, name, short)
    monkeypatch.setattr(jbp, "compare", partial(compare, timing=False, checks=False))
    monkeypatch.setattr(INPUTS, "compare", lambda *args, **_: compare(*args, timing=False, checks=False))
    return _found


def _found(f: Callable, shapes: str | None, **settings: Any) -> tuple[jbp.Report, list[np.ndarray]]:
    """A report that fails, whose code fails the same way; and the arguments in the code."""
    report = jbp.search(f, shapes, **{"examples": 12, **settings})
    assert not report.ok
    oracle = {"oracle": settings["oracle"]} if "oracle" in settings else {}
    second = again(report, f=f, **oracle)
    assert not second.ok
    assert second.verdict == report.verdict
    assert report.reproduce.rstrip() in str(report)
    names: dict[str, Any] = {"f": f, "print": len, **oracle}
    exec(report.reproduce.rpartition("print")[0], names)
    return report, [names[f"x{i}"] for i in range(9) if f"x{i}" in names]


def test_a_softmax_that_overflows_is_found(found: Callable, monkeypatch: pytest.MonkeyPatch):
    some = {name: SHAPES.STYLES[name] for name in ("ones", "normal", "a large mean")}  # others lose digits first
    monkeypatch.setattr(SHAPES, "STYLES", some)
    report, (x,) = found(naive_softmax, "2")
    assert x.max() > 88  # where exp overflows in float32
    assert "NaN" in report.worst.pattern
    assert any(note.startswith("In the rule, infinity first appears in exp") for note in report.notes)
    assert report.notes[-1].startswith("The smallest case found in ")


def test_a_max_whose_ties_all_get_the_gradient_is_found_and_shrunk(found: Callable):
    _, (x,) = found(all_of_a_tie, "N")
    np.testing.assert_array_equal(x, np.ones(2, np.float32))


def test_a_rule_wrong_for_an_axis_of_length_1_is_found_and_shrunk(found: Callable):
    report, args = found(wrong_for_one, "N I, I O")
    assert [a.tolist() for a in args] == [[[1.0]], [[1.0]]]
    assert report.worst.pattern == "off by the factor 2.000"


def test_a_rule_wrong_for_empty_axes_is_found_where_axes_may_be_empty(found: Callable):
    _, (x, b) = found(wrong_for_none, "N I, I", empty=True, examples=25)
    assert x.shape == (0, 1)
    assert b.shape == (1,)
    assert jbp.search(wrong_for_none, "N 2, 2", examples=5).ok


def test_the_code_keeps_other_dtypes(found: Callable):
    def f(x: Any) -> Any:
        return wrong_for_one(x, x.T)

    report, (x,) = found(f, "N 1", dtype="bfloat16", examples=5)
    assert x.dtype == jnp.bfloat16
    assert report.reproduce.startswith("import ml_dtypes")


def test_a_function_of_one_scalar_is_searched():
    def annotated_double(x: Float[Array, ""]) -> Float[Array, ""]:
        return 2 * x

    double = ruled(annotated_double, lambda args, g: (2 * g,))
    assert annotated(double) == annotated(annotated_double) == ""
    report = jbp.search(double, examples=3)
    assert report.ok
    assert report.worst.shape == ()


def test_a_function_of_a_module_is_imported():
    def fails(x: Any, w: Any) -> Any:
        return wrong_for_one(x, w)

    fails.__module__, fails.__qualname__ = "mine.layers", "fails"
    code = INPUTS.reproduction(fails, None, [np.ones((1, 1), np.float32)] * 2, "vjp")
    assert code.splitlines()[:4] == ["import numpy as np", "", "import jbp", "from mine.layers import fails"]
    assert code.endswith("print(jbp.compare_vjp(fails, x0, x1))\n")


@pytest.mark.parametrize(
    "a",
    [
        np.array([1e-45, -0.0, 3.4e38], np.float32),
        np.array([np.nan, -np.inf, np.inf], np.float32),
        np.array([[1 + 2j], [complex(0, -1e-20)]], np.complex64),
        np.array(0.1, jnp.bfloat16),
        np.array([448, 0.25], jnp.float8_e4m3fn),
        np.array([[True, False]]),
        np.array([3, 0], np.int8),
        np.zeros((0, 2), np.float16),
    ],
    ids=lambda a: f"{a.dtype}{list(a.shape)}",
)
def test_an_array_as_code_is_the_array(a: np.ndarray):
    import ml_dtypes

    text = sys.modules["jbp.compare.reproduction"]._literal(a)
    made = eval(text, {"np": np, "ml_dtypes": ml_dtypes})
    assert made.dtype == a.dtype
    assert made.shape == a.shape
    np.testing.assert_array_equal(made, a)
    assert np.iscomplexobj(a) or (np.signbit(made.astype(float)) == np.signbit(a.astype(float))).all()


def test_the_same_seed_finds_the_same_case(found: Callable):
    (first, _), (second, _) = (found(all_of_a_tie, "2", seed=3, examples=6) for _ in range(2))
    assert first.reproduce == second.reproduce


forward_overflows = jax.custom_vjp(lambda x: jax.nn.logsumexp(x))
forward_overflows.defvjp(lambda x: (jnp.log(jnp.exp(x).sum()), x), lambda x, g: (jax.nn.softmax(x) * g,))


def test_a_forward_pass_that_overflows_where_the_primal_does_not_is_found(found: Callable):
    report, (x,) = found(forward_overflows, "N", examples=40)
    assert x.max() > 88
    assert report.worst.name == "output"
    assert "print(jbp.compare(*both_values(forward_overflows), x0))" in report.reproduce
    assert any(note.startswith("The value of f, as the rule's forward pass has it") for note in report.notes)


def test_a_forward_pass_of_another_function_is_found_also_deep_inside(found: Callable):
    def f(x: Any, i: Any) -> Any:
        return jax.lax.scan(lambda c, x: (c + wrong(x), i), 0.0 * x[0], x)

    wrong = jax.custom_vjp(lambda x: 2 * x)
    wrong.defvjp(lambda x: (jnp.where(x > 12, 0, 2 * x), None), lambda _, g: (2 * g,))
    report, (x, _) = found(f, "3, 3: int32", examples=30)
    assert x.max() > 12
    assert report.worst.name == "output"  # of two the one that is no float does not count


def test_a_custom_jvp_of_another_value_is_found(found: Callable):
    square = jax.custom_jvp(lambda x: x * x)
    square.defjvp(lambda primals, tangents: (primals[0] * jnp.abs(primals[0]), 2 * primals[0] * tangents[0]))
    report, (x,) = found(square, "N")
    assert report.worst.name == "output"
    assert x.min() < 0


def test_a_rule_is_imported_under_its_own_name(monkeypatch: pytest.MonkeyPatch):
    def _sine(x: Any) -> Any:
        return jnp.sin(x)

    _sine.__module__, _sine.__qualname__ = "mine", "_sine"
    sine = ruled(_sine, lambda args, g: (jnp.cos(args[0]) * g,))
    module = types.ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", module)
    assert "# f: your function" in INPUTS.reproduction(sine, None, [np.ones(1)], "vjp")
    vars(module).update(_sine=_sine, sine=sine)
    assert "from mine import sine\n" in INPUTS.reproduction(sine, None, [np.ones(1)], "vjp")


def test_a_wrong_custom_jvp_is_found(found: Callable):
    @jax.custom_jvp
    def square(x):
        return x * x

    square.defjvp(lambda primals, tangents: (square(*primals), 2 * jnp.abs(primals[0]) * tangents[0]))
    report, (x,) = found(square, "N")
    assert x.min() < 0
    assert "jbp.compare_jvp(f, x0)" in report.reproduce


def test_with_an_oracle_any_gradient_is_searched(found: Callable):
    oracle = jax.grad(lambda x: (x * x).sum())
    report, (x,) = found(lambda x: 2 * jnp.abs(x), "N", oracle=oracle)
    assert x.min() < 0
    assert "print(jbp.compare(f, oracle, x0))" in report.reproduce
    right = jbp.search(lambda x: 2 * x, "N", oracle=oracle, examples=5)
    assert right.ok


# -- search: rules that are right -------------------------------------------------------------------------------------


def test_a_right_rule_passes_and_it_is_said_on_how_many_examples():
    report = jbp.search(softmax, "N I", examples=10)
    assert report.ok
    assert report.notes[-1] == "10 generated examples passed; this is one more."
    assert report.reproduce == ""
    assert report.race is not None
    assert {check.name for check in report.checks} >= {"vmap", "scan", "determinism"}


@pytest.mark.parametrize("dtype", ["float32", "float8_e4m3fn"])  # which have infinity, and NaN alone
def test_a_right_rule_is_not_accused_where_autodiff_overflows(dtype: str, monkeypatch: pytest.MonkeyPatch):
    large = {name: SHAPES.STYLES[name] for name in ("ones", "normal", "a large mean")}
    monkeypatch.setattr(SHAPES, "STYLES", large)
    exp = ruled(lambda x: jnp.exp(x), lambda args, g: (g * jnp.exp(args[0]),))
    assert jbp.search(exp, "2", dtype=dtype, examples=10).ok


def test_examples_that_f_refuses_are_passed_over():
    def only_square(x: Any) -> Any:
        if x.shape[0] != x.shape[1]:
            raise ValueError("not square")
        return matmul(x, x)

    with pytest.raises(jbp.InputError, match="raises ValueError: not square"):
        jbp.search(only_square, "N I", examples=6)  # also of the usual sizes, which differ
    assert jbp.search(only_square, "N N", examples=4).ok


def test_examples_are_compiled_in_a_hurry_and_what_fails_once_more_as_usual(monkeypatch: pytest.MonkeyPatch):
    compare_rules, hurried = INPUTS.compare_rules, []

    def noted(f: Callable, args: tuple, *others: Any, hurry: bool) -> jbp.Report:
        program = INPUTS.Program("search: f", f, args, hurry)
        hurried.append(program.options)
        np.testing.assert_allclose(program(*args), f(*args), 1e-5)
        return compare_rules(f, args, *others, hurry=hurry)

    monkeypatch.setattr(INPUTS, "compare_rules", noted)
    assert jbp.search(softmax, "2", examples=4).ok
    *examples, last = hurried
    assert [options["xla_backend_optimization_level"] for options in examples] == [0] * 4
    assert last is None
    hurried.clear()
    assert not jbp.search(all_of_a_tie, "2", examples=4).ok
    assert hurried[-1] is None  # the report
    assert None in hurried[:-1]  # what is wrong in a hurry is looked at again


# -- shapes in annotations --------------------------------------------------------------------------------------------


def everything(
    x: Float[Array, "N I"],
    i: Int[Array, "N"],
    m: Bool[Array, "*batch"],
    z: Complex[Array, ""],
    eps: float = 1e-6,
    w: Float[Array, "I 3"] = None,  # type: ignore[assignment]
) -> Any: ...


def half(x: Float[Array, "N"], y: Any) -> Any: ...


def test_shapes_are_read_off_annotations():
    assert annotated(everything) == "N I, N: int32, batch: bool, : complex64, I 3"
    assert annotated(half) is None
    assert annotated(lambda x: x) is None
    assert annotated(max) is None


def test_annotations_are_enough_for_a_search():
    def product(x: Float[Array, "N I"], w: Float[Array, "I O"]) -> Float[Array, "N O"]:
        return x @ w

    f = jax.custom_vjp(product)
    f.defvjp(lambda x, w: (x @ w, (x, w)), lambda args, g: (g @ args[1].T, args[0].T @ g))
    assert annotated(f) == "N I, I O"
    assert jbp.search(f, examples=3).ok


# -- searches that can't be made --------------------------------------------------------------------------------------


def test_a_search_that_cannot_be_made_says_why():
    calls: dict[str, Callable] = {
        "search: f's arguments are not annotated with shapes. Give them, as in search(f, 'N I, I O').": lambda: (
            jbp.search(matmul)
        ),
        "search: f calls no custom_vjp or custom_jvp. If it is a gradient itself, give an oracle.": lambda: jbp.search(
            jnp.sin, "N"
        ),
        "search: dtype must be one of float32, float16, bfloat16, float64, float8_e4m3fn, float8_e5m2, complex64, "
        "complex128, got 'int32'.": lambda: jbp.search(softmax, "N", dtype="int32"),
    }
    for message, call in calls.items():
        with pytest.raises(jbp.InputError) as error:
            call()
        assert str(error.value) == message


def test_every_example_refused():
    def oracle(x: Any) -> Any:
        raise RuntimeError("never")

    with pytest.raises(jbp.InputError) as error:
        jbp.search(lambda x: x, "N", oracle=oracle, examples=3)
    assert str(error.value) == (
        "search: every example is refused: compare: the oracle raises RuntimeError: never Give shapes that f takes."
    )


def test_a_rule_that_raises_is_shown_with_code():
    def backward(args: Any, g: Any) -> Any:
        if args[0].shape[0] == 1:
            raise ValueError("no axis to sum over")
        return (g + 0 * args[0],)

    f = ruled(lambda x: 1 * x, backward)
    with pytest.raises(jbp.InputError) as error:
        jbp.search(f, "N", examples=5)
    message, _, code = str(error.value).partition(" To see it again:\n\n")
    assert message.endswith("raises ValueError: no axis to sum over")
    assert "x0 = np.array([1.0], np.float32)" in code
    with pytest.raises(jbp.InputError, match="no axis to sum over"):
        exec(code, {"f": f})
