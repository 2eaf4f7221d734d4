"""A traced function run again: in float64 it is the same mathematics, without its rules it is its own primal.

Every case is written twice: with JAX in float32 or less, and with NumPy in float64, from the same arguments.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.special
from jax import lax

from jbp.compare import in_float64
from jbp.programs.replay import double_dtype, equations, first_nonfinite, recast, to_double, without_rules


def numbers(seed: int, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


X, Y = numbers(0, 4, 4), numbers(1, 4, 4)
V, S = numbers(2, 12), (X @ X.T + np.eye(4)).astype(np.float32)
Z = (numbers(3, 8) + 1j * numbers(4, 8)).astype(np.complex64)
TENTH = float(np.float32(0.1))  # what becomes of 0.1 in a float32 program
KEY = np.asarray([1, 2], np.uint32)


def in_float32(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float64)


# -- in float64: with JAX, with NumPy, arguments ----------------------------------------------------------------------


def newton(x):
    """√(1 + x²) from 1 by Newton's steps, until the square is near."""
    a = 1 + x * x
    return lax.while_loop(
        lambda s: (jnp.abs(s * s - a) > 1e-3).any(), lambda s: 0.5 * (s + a / s), jnp.ones_like(x) + jnp.abs(x)
    )


def newton_in_numpy(x):
    a, s = 1 + x * x, 1 + abs(x)
    while (abs(s * s - a) > np.float32(1e-3)).any():
        s = 0.5 * (s + a / s)
    return s


def recurrence(x):
    """h_t = tanh(x_t + h_{t−1}), and all h."""
    return lax.scan(lambda h, x: (jnp.tanh(x + h),) * 2, jnp.zeros(x.shape[1:], x.dtype), x)


def recurrence_in_numpy(x):
    h, all = np.zeros(x.shape[1:]), []
    for turn in x:
        h = np.tanh(turn + h)
        all.append(h)
    return h, np.stack(all)


@jax.custom_jvp
def with_jvp(x):
    return jnp.log1p(jnp.exp(x))


with_jvp.defjvp(lambda x, t: (with_jvp(*x), 7 * t[0]))


@jax.custom_vjp
def with_vjp(x):
    return jnp.sin(x)


with_vjp.defvjp(lambda x: (with_vjp(x), x), lambda x, delta: (7 * delta,))


@jax.custom_batching.custom_vmap
def with_vmap(x):
    return jnp.exp(x) + 1


with_vmap.def_vmap(lambda size, batched, x: (jnp.exp(x) + 1, batched[0]))

CASES: dict[str, tuple[Callable, Callable, tuple]] = {
    "arithmetic": (lambda x: jnp.exp(x) * 0.1 - x / 3, lambda x: np.exp(x) * TENTH - x / 3, (X,)),
    "matmul in bfloat16": (
        lambda x, y: lax.dot(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16), preferred_element_type=jnp.bfloat16),
        np.matmul, (X, Y),
    ),
    "matmul of a given precision": (
        lambda x, y: jnp.matmul(x, y, precision=lax.DotAlgorithmPreset.F32_F32_F32), np.matmul, (X, Y),
    ),
    "cast down and up": (lambda x: x.astype(jnp.float16).astype(x.dtype) * 3, lambda x: x * 3, (X,)),
    "reduce_precision": (lambda x: lax.reduce_precision(x, 5, 2), lambda x: x, (X,)),
    "a barrier": (lambda x: lax.optimization_barrier(x) * 3, lambda x: x * 3, (X,)),
    "bfloat16 arguments": (
        lambda x: jax.nn.softmax(x, -1), lambda x: scipy.special.softmax(x, -1), (X.astype(ml_dtypes.bfloat16),),
    ),
    "float8 arguments": (
        lambda x: (x.astype(jnp.float32) * 0.1).astype(x.dtype),
        lambda x: x * TENTH,
        (X.astype(ml_dtypes.float8_e4m3fn),),
    ),
    "float iota": (lambda x: x * jnp.arange(12, dtype=x.dtype), lambda x: x * np.arange(12), (V,)),
    "integers and back": (
        lambda x: jnp.floor(x * 3).astype(jnp.int32).astype(x.dtype) + x, lambda x: np.floor(x * 3) + x, (X,),
    ),
    "scan": (recurrence, recurrence_in_numpy, (X,)),
    "scan backwards": (
        lambda x: lax.scan(lambda c, x: (0.5 * c + x, c), x[0] * 0, x, reverse=True)[0],
        lambda x: x[0] + x[1] / 2 + x[2] / 4 + x[3] / 8, (X,),
    ),
    "while": (newton, newton_in_numpy, (V,)),
    "fori": (lambda x: lax.fori_loop(0, 3, lambda i, x: jnp.sin(x), x), lambda x: np.sin(np.sin(np.sin(x))), (X,)),
    "cond": (lambda i, x: lax.switch(i, [jnp.sin, jnp.cos, jnp.exp], x), lambda i, x: np.cos(x), (np.int32(1), X)),
    "where": (lambda x: jnp.where(x > 0, x, 0.1 * x), lambda x: np.where(x > 0, x, TENTH * x), (X,)),
    "remat": (jax.checkpoint(lambda x: jnp.sin(jnp.cos(x))), lambda x: np.sin(np.cos(x)), (X,)),
    "jit": (jax.jit(lambda x: jnp.log1p(x * x)), lambda x: np.log1p(x * x), (X,)),
    "custom_jvp": (with_jvp, lambda x: np.log1p(np.exp(x)), (X,)),
    "custom_vjp": (with_vjp, np.sin, (X,)),
    "custom_vmap": (with_vmap, lambda x: np.exp(x) + 1, (X,)),
    "vmap": (jax.vmap(lambda x: jnp.dot(x, x)), lambda x: (x * x).sum(1), (X,)),
    "grad": (jax.grad(lambda x: jnp.tanh(x).sum()), lambda x: 1 / np.cosh(x) ** 2, (X,)),
    "solve": (jnp.linalg.solve, np.linalg.solve, (S, X)),
    "triangular solve": (
        lambda a, b: jax.scipy.linalg.solve_triangular(a, b, lower=True),
        lambda a, b: np.linalg.solve(np.tril(a), b),
        (S, X),
    ),
    "cholesky": (jnp.linalg.cholesky, np.linalg.cholesky, (S,)),
    "eigh": (lambda a: jnp.linalg.eigh(a)[0], np.linalg.eigvalsh, (S,)),
    "svd": (lambda a: jnp.linalg.svd(a, compute_uv=False), lambda a: np.linalg.svd(a, compute_uv=False), (X,)),
    "qr": (lambda a: jnp.matmul(*jnp.linalg.qr(a)), lambda a: a, (X,)),
    "inverse and determinant": (
        lambda a: (jnp.linalg.inv(a), jnp.linalg.det(a)), lambda a: (np.linalg.inv(a), np.linalg.det(a)), (S,),
    ),
    "convolution": (
        lambda x, w: lax.conv(x[None, None], w[None, None], (1,), "VALID")[0, 0],
        lambda x, w: np.correlate(x, w, "valid"), (V, V[:3]),
    ),
    "reduce with a computation": (
        lambda x: lax.reduce(x, np.float32(0), lambda a, b: a + b + a * b, (0,)), lambda x: np.prod(1 + x) - 1, (V,),
    ),
    "windows with a computation": (
        lambda x: lax.reduce_window(x, np.float32(0), lambda a, b: a + b + a * b, (3,), (3,), "VALID"),
        lambda x: np.prod(1 + x.reshape(4, 3), 1) - 1, (V,),
    ),
    "pooling": (
        lambda x: lax.reduce_window(x, -np.float32(np.inf), lax.max, (3,), (3,), "VALID"),
        lambda x: x.reshape(4, 3).max(1), (V,),
    ),
    "scatter": (
        lambda x: jnp.zeros(5, x.dtype).at[jnp.arange(12) % 5].add(x).at[1].mul(0.1),
        lambda x: np.bincount(np.arange(12) % 5, x) * [1, TENTH, 1, 1, 1], (V,),
    ),
    "gather": (lambda x, i: x[i], lambda x, i: x[i], (V, np.array([3, 3, 0], np.int32))),
    "slices": (
        lambda x: lax.dynamic_update_slice(jnp.pad(x, (1, 0)), 0.1 * x[:2], (3,)),
        lambda x: np.concatenate([[0], x[:2], TENTH * x[:2], x[4:]]), (V,),
    ),
    "sort": (
        lambda x, y: lax.sort((x, y), num_keys=1), lambda x, y: (np.sort(x), y[np.argsort(x)]), (V, numbers(5, 12)),
    ),
    "top 3": (lambda x: lax.top_k(x, 3)[0], lambda x: np.sort(x)[:-4:-1], (V,)),
    "cumulative": (
        lambda x: (jnp.cumsum(x), jnp.cumprod(x), lax.cumlogsumexp(x)),
        lambda x: (np.cumsum(x), np.cumprod(x), np.log(np.cumsum(np.exp(x)))), (V,),
    ),
    "associative scan": (lambda x: lax.associative_scan(jnp.multiply, x), np.cumprod, (V,)),
    "special functions": (
        lambda x: (jax.scipy.special.erf(x), jax.scipy.special.gammaln(x * x + 1)),
        lambda x: (scipy.special.erf(x), scipy.special.gammaln(x * x + 1)), (V,),
    ),
    "fft": (lambda x: jnp.fft.rfft(x), np.fft.rfft, (V,)),
    "complex": (lambda z: 0.1 * jnp.exp(z.conj()) / z, lambda z: TENTH * np.exp(z.conj()) / z, (Z,)),
    "complex to real": (lambda z: z.real * jnp.angle(z), lambda z: z.real * np.angle(z), (Z,)),
    "real to complex": (lambda x: lax.complex(x, 0.5 * x), lambda x: x + 0.5j * x, (V,)),
    "a constant": (lambda x: x * Y + jnp.asarray(Y), lambda x: x * in_float32(Y) + Y, (X,)),
    "a constant in a loop": (
        lambda x: lax.scan(lambda c, x: (c @ jnp.asarray(Y) + x, None), x[0], x)[0],
        lambda x: (((x[0] @ Y + x[0]) @ Y + x[1]) @ Y + x[2]) @ Y + x[3], (X,),
    ),
}  # fmt: skip


def run_wide(f: Callable, *args: Any) -> Any:
    """f in float64, by the trace of f as it is."""
    jaxpr = jax.make_jaxpr(f)(*args)
    with jax.enable_x64(True):
        return [np.asarray(out) for out in jax.jit(recast(jaxpr))(*jax.tree.leaves(args))]


@pytest.mark.parametrize("x64", [False, True], ids=["x64 off", "x64 on"])
@pytest.mark.parametrize("name", CASES)
def test_in_float64_it_is_the_same_mathematics(name: str, x64: bool):
    f, reference, args = CASES[name]
    with jax.enable_x64(x64):
        found = run_wide(f, *args)
    expected = [np.asarray(out) for out in jax.tree.leaves(reference(*in_float64(args)))]
    assert [a.dtype for a in found] == [b.dtype for b in expected]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_random_numbers_are_those_of_float32():
    def f(x):
        u, kept = jax.random.uniform(KEY, (12,), x.dtype), jax.random.bernoulli(KEY, np.float32(0.3), (12,))
        normal = jax.random.normal(jax.random.wrap_key_data(KEY), (12,), x.dtype)
        return u, normal, jnp.where(kept, x, 0), jax.random.permutation(KEY, x)

    for x64 in (False, True):
        with jax.enable_x64(x64):
            expected = f(V)
            u, normal, dropped, permuted = run_wide(jax.jit(f), V)
        assert u.dtype == normal.dtype == np.float64
        for found, b in ((u, expected[0]), (dropped, expected[2]), (permuted, expected[3])):
            np.testing.assert_array_equal(found, b)
        np.testing.assert_allclose(normal, expected[1], rtol=1e-5)


def test_what_has_no_wider_form_runs_in_its_own_dtype():
    def host(x):
        assert x.dtype == np.float32
        return np.cbrt(x)

    def f(x):
        bits = lax.bitcast_convert_type(lax.bitcast_convert_type(x, jnp.int32) + 1, jnp.float32)
        return (
            bits,
            jnp.nextafter(x, np.float32(9)),
            jax.pure_callback(host, jax.ShapeDtypeStruct((12,), np.float32), x),
        )

    bits, after, called = run_wide(f, V)
    np.testing.assert_array_equal(bits, (V.view(np.int32) + 1).view(np.float32))
    np.testing.assert_array_equal(after, np.nextafter(V, np.float32(9)))
    np.testing.assert_array_equal(called, np.cbrt(V))


def test_a_pytree_in_float64():
    tree = {"a": X.astype(ml_dtypes.bfloat16), "b": jnp.asarray(Z), "n": np.arange(3), "s": "text", "f": 0.5}
    wide_tree = in_float64(tree)
    assert [wide_tree[k].dtype for k in "abn"] == [np.float64, np.complex128, tree["n"].dtype]
    assert (wide_tree["s"], wide_tree["f"]) == ("text", 0.5)
    np.testing.assert_array_equal(wide_tree["a"], tree["a"].astype(np.float64))
    assert to_double(tree["n"]) is tree["n"]
    assert double_dtype(np.dtype(bool)) == np.dtype(bool)


# -- without custom rules ---------------------------------------------------------------------------------------------

AROUND: dict[str, Callable] = {
    "itself": lambda f: f,
    "jit": lambda f: jax.jit(lambda x: jnp.square(jax.jit(f)(x))),
    "scan": lambda f: lambda x: lax.scan(lambda c, x: (f(c + x), None), 0.1 * x[0], x)[0],
    "scan in scan": lambda f: lambda x: lax.scan(lambda c, x: (AROUND["scan"](f)(jnp.stack([c, x])), None), x[0], x)[0],
    "cond": lambda f: lambda x: lax.cond(x[0] < 9, lambda x: f(2 * x), jnp.cos, x),
    "remat": lambda f: jax.checkpoint(lambda x: f(f(x))),
    "vmap": lambda f: jax.vmap(f),
    "another rule": lambda f: _in_a_rule(f),
    "all at once": lambda f: jax.jit(AROUND["scan"](jax.checkpoint(AROUND["jit"](f)))),
}


def _in_a_rule(f: Callable) -> Callable:
    outer = jax.custom_vjp(lambda x: 3 * f(x))
    outer.defvjp(lambda x: (outer(x), x), lambda x, delta: (11 * delta,))
    return outer


@pytest.mark.parametrize("around", AROUND)
def test_without_rules_autodiff_goes_through_the_primal(around: str):
    """with_vjp is sin with a gradient of 7: without its rule the derivative is that of sin."""
    f, plain = AROUND[around](with_vjp), AROUND[around](jnp.sin)
    if around == "another rule":
        plain = lambda x: 3 * jnp.sin(x)
    jaxpr = jax.make_jaxpr(f)(V)
    bare = lambda x: without_rules(jaxpr, "vjp")(x)[0]
    assert not [e for e in equations(jax.make_jaxpr(bare)(V)) if e.primitive.name == "custom_vjp_call"]
    gradients = [jax.jit(jax.grad(lambda x, g=g: jnp.sum(g(x))))(V) for g in (bare, plain, f)]
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)
    assert not np.allclose(gradients[2], gradients[1], rtol=1e-2)


@pytest.mark.parametrize("around", ["itself", "scan", "remat"])
def test_rules_that_are_not_named_stay(around: str):
    """Of log(1 + eˣ) with a tangent of 7 and sin with a gradient of 7, one loses its rule."""
    f = AROUND[around](lambda x: with_jvp(with_vjp(x)))
    jaxpr = jax.make_jaxpr(f)(V)
    for kind, gone, kept in (
        ("vjp", "custom_vjp_call", "custom_jvp_call"),
        ("jvp", "custom_jvp_call", "custom_vjp_call"),
    ):
        bare = jax.make_jaxpr(without_rules(jaxpr, kind))(V)
        assert {e.primitive.name for e in equations(bare)} & {gone, kept} == {kept}


# -- where NaN comes from ---------------------------------------------------------------------------------------------


def line_with(text: str) -> str:
    """The place of the line in this file that holds a text first."""
    lines = Path(__file__).read_text().splitlines()
    return f"{Path(__file__).name}:{next(i for i, line in enumerate(lines, 1) if text in line)}"


def told(f: Callable, *args: Any) -> str | None:
    return first_nonfinite(jax.make_jaxpr(f)(*args), args)


def test_the_first_nan_has_its_primitive_and_line():
    def f(x):
        y = jnp.exp(x) + 1
        root = jnp.sqrt(x - 5)  # the line of the NaN
        return jnp.log(y) * root

    assert told(f, V) == f"NaN first appears in sqrt ({line_with('the line of' + ' the NaN')}, f)"


def test_infinity_is_told_from_nan_and_found_in_jitted_functions():
    @jax.jit
    def inner(x):
        return jnp.exp(100 * x) - 1  # the line of the infinity

    text = told(lambda x: inner(x + 3) / inner(x + 3), V * 0)
    assert text == f"infinity first appears in exp ({line_with('the line of' + ' the infinity')}, inner)"


def test_in_a_loop_the_loop_is_named():
    assert told(lambda x: lax.scan(lambda c, x: (jnp.log(c) + x, c), x[0], x)[0], -X * X).startswith(
        "NaN first appears in scan (test_replay.py:"
    )


def test_what_is_not_finite_from_the_start_is_nobodys_fault():
    assert told(lambda x: jnp.sqrt(x) + 1, np.float32([1, 2])) is None
    assert told(lambda x: x + 1, np.float32([1, np.nan])) is None
