"""Attention beyond the laws: tiles, memory, keys that nobody sees, faults in its own reverse, errors."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_close, dot_product_attention, draw, near, qkv

import jbp
from jbp.layers import attention, attention_tiles, cudnn
from jbp.programs.calls import inner_jaxprs

N = 2
CORE = jbp.DotProductAttention


def of(t: int, s: int, h: int = 2, k: int = 1, dtype: Any = jnp.float32, **more: Any) -> Any:
    """(q, k, v, …) of N examples."""
    return draw(0, jax.tree.map(lambda a: jax.ShapeDtypeStruct((N, *a.shape), dtype), qkv(t, s, h, k, **more)))


def both_ways(layer: jbp.Layer, x: Any, mask: Any = None) -> tuple[Any, Any]:
    """(output, gradient, its derivative along a direction) by hand, and by autodiff of forward."""
    context = jbp.Context(mask=mask)
    forward = lambda x: layer.forward((), x, context)[0]
    delta, along = (draw(seed, tree) for seed, tree in ((1, jax.eval_shape(forward, x)), (2, x)))

    def ask(x: Any) -> tuple[Any, Any]:
        by_hand = lambda x: jbp.run(layer, (), x, context)[1](delta)[0]
        by_autodiff = lambda x: jax.vjp(forward, x)[1](delta)[0]
        return tuple((forward(x), *jax.jvp(gradient, (x,), (along,))) for gradient in (by_hand, by_autodiff))

    return jax.jit(ask)(x)


TILED = {
    "T = S, a last tile": (CORE(causal=True), 7, 7, None),
    "more keys": (CORE(causal=True), 3, 7, None),
    "more queries": (CORE(causal=True), 7, 3, None),
    "not causal": (CORE(), 5, 4, None),
    "a window": (CORE(window=(2, 1)), 7, 7, None),
    "a causal window that leaves out tiles": (CORE(causal=True, window=2), 9, 9, None),
    "a window that ends before the last queries": (CORE(window=(1, 0)), 9, 3, None),
    "soft cap and bias": (CORE(causal=True, soft_cap=1.5), 7, 7, (2, 7, 7)),
    "a bias for all heads and queries": (CORE(), 5, 4, (1, 1, 4)),
}


TOGETHER = "soft cap and bias", "a bias for all heads and queries", "a causal window that leaves out tiles"


@pytest.mark.parametrize(("name", "together"), [(name, 1) for name in TILED] + [(name, 3) for name in TOGETHER])
def test_any_tiles_give_the_same_and_its_derivatives(
    name: str, together: int, x64: None, monkeypatch: pytest.MonkeyPatch
):
    """Heads one by one, or two of four together, the most of at most three that divides them."""
    monkeypatch.setattr(attention_tiles, "tile_size", lambda length: 3)
    monkeypatch.setattr(attention, "heads_at_once", lambda g, length: together)
    layer, t, s, bias = TILED[name]
    x = of(t, s, dtype=jnp.float64, **({"bias": bias} if bias else {}))
    by_hand, by_autodiff = both_ways(layer, x)
    assert_close(by_hand, by_autodiff)
    left, right = layer.window or (t + s, t + s)
    seen = near(t, s, left, 0 if layer.causal else right)
    assert_close(by_hand[0], dot_product_attention(*map(np.asarray, x), seen=seen, cap=layer.soft_cap))


def test_it_is_that_of_jax(x64: None):
    q, k, v = x = of(6, 6, 4, 2, jnp.float64, e=3)
    mask = jnp.asarray([[True] * 6, [True] * 4 + [False] * 2])
    got = CORE(causal=True, window=(2, 0)).forward((), x, jbp.Context(mask=mask))[0]
    with jax.numpy_dtype_promotion("standard"):
        due = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None], is_causal=True, local_window_size=(2, 0))
    assert_close(got[:1], due[:1], 1e-6)  # jax.nn computes in float32
    seen = near(6, 6, 2, 0) & np.asarray(mask)[1]
    assert_close(got[1][seen.any(-1)], due[1][seen.any(-1)], 1e-6)


def test_a_query_that_sees_no_key_gives_0_in_all_orders(x64: None):
    mask = jnp.asarray([[False, False, True, True], [False] * 4])
    by_hand, by_autodiff = both_ways(CORE(causal=True), of(4, 4, dtype=jnp.float64), mask)
    assert_close(by_hand, by_autodiff)
    out, (delta_q, *_), (second_q, *_) = by_hand
    for a in (out, delta_q, second_q):
        np.testing.assert_array_equal(a[0, :2], 0)
        np.testing.assert_array_equal(a[1], 0)
        assert np.any(a[0, 2]) or a is not out
    for a in (*by_hand[1][1:], *by_hand[2][1:]):
        np.testing.assert_array_equal(a[1], 0)
        np.testing.assert_array_equal(a[0, :2], 0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_stands_at_a_key_that_is_not_there_does_not_count(wrong: float, x64: None):
    mask = jnp.asarray([[True, False, True, True], [False, True, True, False]])
    q, k, v = of(4, 4, dtype=jnp.float64)
    spoiled = [jnp.where(jnp.broadcast_to(mask[:, :, None, None], a.shape), a, wrong) for a in (k, v)]
    by_hand, by_autodiff = both_ways(CORE(causal=True), (q, *spoiled), mask)
    assert_close(by_hand, by_autodiff)
    assert_close(by_hand, both_ways(CORE(causal=True), (q, k, v), mask)[0])


@pytest.mark.parametrize("causal", [False, True])
def test_a_bias_of_minus_infinity_leaves_a_key_out_as_the_mask_does(causal: bool, x64: None):
    mask = jnp.asarray([[False, False, True, True], [False] * 4])
    x = of(4, 4, dtype=jnp.float64)
    bias = jnp.where(mask, 0.0, -jnp.inf)[:, None, None]
    by_hand, by_autodiff = both_ways(CORE(causal), (*x, bias))
    assert_close(by_hand, by_autodiff)
    due, back = jbp.run(CORE(causal), (), x, jbp.Context(mask=mask))
    delta = draw(1, due)
    assert_close((by_hand[0], by_hand[1][:3]), (due, back(delta)[0]))
    out, back = jbp.run(CORE(causal), (), x, jbp.Context(side={"attention_bias": bias}))
    assert_close((out, back(delta)[0]), (by_hand[0], by_hand[1][:3]))


def test_a_bias_in_side_has_no_delta_and_counts_as_one_in_x(x64: None):
    *x, bias = of(4, 5, dtype=jnp.float64, bias=(2, 4, 5))
    out, back = jbp.run(CORE(), (), (*x, bias))
    context = jbp.Context(side={"attention_bias": bias})
    same, back_too = jbp.run(CORE(), (), tuple(x), context)
    assert_close(same, out)
    assert_close(back_too(out)[0], back(out)[0][:3])


def largest(jaxpr: Any) -> int:
    """The elements of the largest array in a program."""
    sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
    return max(
        [*sizes, *(largest(getattr(inner, "jaxpr", inner)) for eqn in jaxpr.eqns for inner in inner_jaxprs(eqn))]
    )


def temporary_bytes(layer: jbp.Layer, t: int) -> int:
    x = qkv(t, t, 1, 1, 16, 16)
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), x)

    def ask(x: Any, delta: Any) -> Any:
        out, back = jbp.run(layer, (), x)
        return out, back(delta)[0]

    compiled = jax.jit(ask).lower(x, x[0]).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def barriers_hold() -> bool:
    """Whether a compiled program keeps the order that barriers give: XLA for the CPU of jax 0.10 drops them."""

    def one_after_another(x: Any) -> Any:
        total = jnp.zeros(())
        for i in range(8):
            x, total = jax.lax.optimization_barrier((x, total))
            total = total + jnp.sort(x * i).sum()
        return total

    x = jax.ShapeDtypeStruct((1 << 16,), jnp.float32)
    held = jax.jit(one_after_another).lower(x).compile().memory_analysis().temp_size_in_bytes
    return held < 4 * 4 * x.size


def test_memory_grows_with_the_length_and_not_with_its_square():
    if barriers_hold():
        few, many = (temporary_bytes(CORE(causal=True), t) for t in (512, 4096))
        assert many < 10 * few
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), qkv(4096, 4096, 1, 1, 16, 16))
    program = jax.make_jaxpr(lambda x: jbp.run(CORE(causal=True), (), x)[1](x[0])[0])(x)
    assert largest(program.jaxpr) <= attention_tiles.tile_size(4096) * 4096


def test_a_window_costs_no_products_beyond_it():
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), qkv(4096, 4096, 1, 1, 16, 16))
    whole, part = (
        jax.jit(lambda x, layer=layer: jbp.run(layer, (), x)[1](x[0])[0]).lower(x).cost_analysis()["flops"]
        for layer in (CORE(), CORE(causal=True, window=attention_tiles.tile_size(4096)))
    )
    assert part < whole / 4


def test_it_lowers_for_every_platform():
    x = of(300, 300)

    def ask(x: Any) -> Any:
        return jbp.run(CORE(causal=True), (), x)[1](jnp.ones((N, 300, 2, 4)))[0]

    exported = jax.export.export(jax.jit(ask), platforms=("cpu", "cuda", "tpu"))(x)
    assert [a.shape for a in exported.out_avals] == [a.shape for a in x]


# -- faults in its own reverse ----------------------------------------------------------------------------------------

FAULTS = {
    "no scale": ("kind.scale * delta_q", "delta_q"),
    "the mean of the deltas left out": ("p * (of_p - mean[None, :, low:high])", "p * of_p"),
    "its sign": ("of_p - mean[", "of_p + mean["),
    "scores not normalised": ("jnp.exp(u - log_sum[None, :, low:high])", "jnp.exp(u)"),
    "the mask forgotten": ("p = jnp.where(jnp.broadcast_to(seen.T[:, None], shape), p, 0)", "pass"),
    "the mask one off": ("_seen(kind, head, (low, high), (a, e))", "_seen(kind, head, (low + 1, high + 1), (a, e))"),
    "the soft cap's slope left out": ("of_z * (1 - jnp.square(u / kind.soft_cap))", "of_z"),
    "δ of v by the scores": ("_product(p.reshape(flat)", "_product(u.reshape(flat)"),
    "a tile of q overwritten": ("delta_q.at[:, :, low:high].add", "delta_q.at[:, :, low:high].set"),
    "δ of k by the values": ("deltas_k.append(_product(of_z, q, 1, 0))", "deltas_k.append(_product(of_z, of_o, 1, 0))"),
    "the last tile of v left out": ("jnp.concatenate(deltas_v)", "jnp.concatenate([*deltas_v[:-1], 0 * deltas_v[-1]])"),
    "δ of the bias not added up": ("own = _added_up(own, of_z", "own = _added_up(own, p"),
}


def with_fault(old: str, new: str) -> Callable[..., Any]:
    """`backward_head` with a fault in its text."""
    source = inspect.getsource(attention_tiles.backward_head)
    assert source.count(old) == 1
    made: dict[str, Any] = {}
    exec(source.replace(old, new), dict(vars(attention_tiles)), made)
    return made["backward_head"]


def faulty(name: str | None, monkeypatch: pytest.MonkeyPatch) -> jbp.Report:
    monkeypatch.setattr(attention_tiles, "tile_size", lambda length: 3)
    if name is not None:
        monkeypatch.setattr(attention, "backward_head", with_fault(*FAULTS[name]))
    f = jbp.as_function(CORE(causal=True, soft_cap=2.0))
    x = of(4, 4, e=3, bias=(2, 4, 4))
    return jbp.compare_vjp(lambda q, k, v, bias: f((), (q, k, v, bias)), *x, timing=False, checks=False)


def test_the_reverse_is_right(monkeypatch: pytest.MonkeyPatch):
    assert faulty(None, monkeypatch).kind is jbp.Verdict.AGREE


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_reverse_is_found(name: str, monkeypatch: pytest.MonkeyPatch):
    assert faulty(name, monkeypatch).kind is jbp.Verdict.WRONG


# -- cuDNN's kernel, which no CPU has: what it is asked for ------------------------------------------------------------


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A machine with CUDA whose kernel takes float64; the list gets what each call asks for by name."""
    asked: list[dict[str, Any]] = []

    def kernel(q, k, v, bias, mask, *, scale, is_causal, local_window_size, implementation):
        """As `jax.nn` documents it, masks by a large negative number: a row that sees nothing has the mean of v."""
        assert all(a is None or a.shape[2:] == (q.shape[1], k.shape[1]) for a in (bias, mask))  # it broadcasts no other
        asked.append({"bias": bias is not None, "mask": mask is not None, "window": local_window_size})
        assert implementation == "cudnn"
        assert local_window_size is None or (is_causal and local_window_size[1] == 0)
        k, v = (jnp.repeat(a, q.shape[2] // k.shape[2], axis=2) for a in (k, v))
        z = jnp.einsum("nthd,nshd->nhts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        z = z if bias is None else z + jnp.broadcast_to(bias, z.shape)
        left = k.shape[1] + q.shape[1] if local_window_size is None else local_window_size[0]
        seen = np.broadcast_to(near(q.shape[1], k.shape[1], left, 0) | (not is_causal), z.shape)
        seen = seen if mask is None else seen & jnp.broadcast_to(mask, z.shape)
        weighted = lambda z, v: jnp.einsum("nhts,nshd->nthd", jax.nn.softmax(jnp.where(seen, z, -1e9)), v)
        return without_jvp(weighted, z, v)

    def without_jvp(f: Callable[..., Any], *args: Any) -> Any:
        """f with a reverse, of which no pass has a forward mode."""
        call = lambda f: lambda *args: jax.pure_callback(jax.jit(f), jax.eval_shape(f, *args), *args)
        of = jax.custom_vjp(lambda *args: call(f)(*args))
        of.defvjp(
            lambda *args: (call(f)(*args), args),
            lambda args, delta: call(lambda delta, *args: jax.vjp(f, *args)[1](delta))(delta, *args),
        )
        return of(*args)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(cudnn, "KERNEL_DTYPES", (jnp.bfloat16, jnp.float16, jnp.dtype(jnp.float64)))
    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    return asked


SEEN = jnp.array([[False, True, True, False], [False, False, False, False]])
BY_CUDNN = {
    "causal": ({"causal": True, "scale": 0.3}, None, None, None),
    "a mask, and queries that see nothing": ({"causal": True}, SEEN, None, None),
    "a window that ends before the last queries": ({"window": (1, 0)}, None, None, None),
    "a causal window, masked": ({"causal": True, "window": 2}, SEEN, None, None),
    "a bias": ({}, None, (1, 1, 4), None),
    "two biases and a mask": ({"causal": True}, SEEN, (2, 6, 4), (1, 2, 1, 4)),
}


@pytest.mark.parametrize("name", BY_CUDNN)
def test_cudnn_is_asked_for_the_same(name: str, x64: None, as_on_cuda: list[dict[str, Any]]):
    settings, mask, bias, side = BY_CUDNN[name]
    x = of(6, 4, dtype=jnp.float64, d=8, e=8, **({"bias": bias} if bias else {}))
    more = None if side is None else {"attention_bias": draw(3, jax.ShapeDtypeStruct(side, jnp.float64))}
    delta = draw(1, jax.ShapeDtypeStruct(x[0].shape, jnp.float64))
    found = []
    for implementation in ("xla", "cudnn"):
        o, back = jbp.run(CORE(**settings, implementation=implementation), (), x, jbp.Context(mask=mask, side=more))
        found.append((o, back(delta)[0]))
    assert_close(*found)
    assert [(asked["bias"], asked["mask"]) for asked in as_on_cuda] == [(bool(bias or side), mask is not None)]
    by_autodiff = lambda x: layer.forward((), x, jbp.Context(mask=mask, side=more))[0]
    layer = CORE(**settings, implementation="cudnn")
    assert_close(jax.vjp(by_autodiff, x)[1](delta)[0], found[0][1])


def test_a_network_in_bfloat16_by_cudnn_has_a_float64_shadow(as_on_cuda: list[dict[str, Any]], monkeypatch: Any):
    """Its shapes are found in float32, which the kernel doesn't have."""
    monkeypatch.setattr(cudnn, "KERNEL_DTYPES", (jnp.bfloat16, jnp.float16))
    layers = lambda how: [jbp.Embedding(5, 16), jbp.Repeat(jbp.Residual(jbp.Attention(2, implementation=how)), 2)]
    tokens = jax.ShapeDtypeStruct((4,), jnp.int32)
    kernel, plain = (
        jbp.Cost(jbp.Network(layers(how), tokens, compute_dtype=jnp.bfloat16), jbp.losses.HalfSquaredError())
        for how in ("cudnn", "xla")
    )
    theta, x = kernel.init(jax.random.key(0)), jnp.array([[0, 1, 2, 3], [3, 3, 1, 0]])
    y = jnp.ones((2, 4, 16))
    low = kernel.grad(theta, x, y)
    assert as_on_cuda
    assert_close(low, plain.grad(theta, x, y), 0.05)
    with jax.enable_x64(True):
        assert_close(kernel.grad(np.float64(theta), x, y), plain.grad(np.float64(theta), x, y), 1e-12)
    with pytest.raises(jbp.InputError, match="runs on CUDA in bfloat16 or float16, got float32 on gpu"):
        jbp.Network(layers("cudnn"), tokens)(theta, x)


def test_what_cudnn_refuses_has_a_remedy(as_on_cuda: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch):
    def raises(*args, **more):
        raise NotImplementedError("Compute capability 10.3 requires cuDNN version >= 9.11.")

    fits, mask = of(6, 4, dtype=jnp.bfloat16, d=8, e=8), jbp.Context(mask=jnp.ones((N, 3), bool))
    for settings, x, context, text in (
        ({}, of(6, 4, d=8, e=8), None, "runs on CUDA in bfloat16 or float16, got float32 on gpu"),
        ({}, of(6, 4, dtype=jnp.bfloat16, d=8, e=16), None, "needs heads of one size for q, k and v, a multiple of 8"),
        ({"window": 2}, fits, None, "has windows to the left alone: causal=True or window=(left, 0)"),
        ({}, of(6, 3, dtype=jnp.bfloat16, d=8, e=8), mask, "for even T and S alone, got T = 6 and S = 3. Pad them"),
    ):
        with pytest.raises(jbp.InputError) as caught:
            jbp.run(CORE(**settings, implementation="cudnn"), (), x, context or jbp.Context())
        assert text in str(caught.value)
        assert "implementation='xla'" in str(caught.value)
    monkeypatch.setattr(jax.nn, "dot_product_attention", raises)
    with pytest.raises(jbp.InputError, match=r"requires cuDNN version >= 9\.11\. Write implementation='xla'\."):
        jbp.run(CORE(implementation="cudnn"), (), fits)
    with pytest.raises(jbp.InputError, match="cudnn has no soft cap"):
        CORE(implementation="cudnn", soft_cap=1.0)


# -- errors -----------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "window": (lambda: CORE(window=(1, -1)), "window must be (left, right), whole numbers of at least 0, got (1, -1)"),
    "scale": (lambda: CORE(scale=0.0), "scale must be a number above 0, got 0.0"),
    "causal": (lambda: CORE(causal=3), "causal must be True or False, got 3"),
    "implementation": (lambda: CORE(implementation="flash"), "must be 'xla' or 'cudnn', got 'flash'"),
    "two parts": (lambda: jbp.run(CORE(), (), of(2, 2)[:2]), "expected x as (q, k, v) or (q, k, v, bias)"),
    "heads": (lambda: jbp.run(CORE(), (), of(2, 2, 3, 2)), "H as a multiple of the keys' K, got H = 3 and K = 2"),
    "no heads": (lambda: jbp.run(CORE(), (), (jnp.ones((2, 3, 4)),) * 3), "Split the width into heads first"),
    "dtypes": (
        lambda: jbp.run(CORE(), (), (of(2, 2)[0].astype(jnp.bfloat16), *of(2, 2)[1:])),
        "expected q, k, v of one dtype",
    ),
    "mask": (
        lambda: jbp.run(CORE(), (), of(2, 3), jbp.Context(mask=jnp.ones((N, 2), bool))),
        "expected context.mask bool [N, S] = [2, 3], True at keys that count, got bool[2, 2]",
    ),
    "mask of floats": (
        lambda: jbp.run(CORE(), (), of(2, 3), jbp.Context(mask=jnp.ones((N, 3)))),
        "expected context.mask bool [N, S]",
    ),
    "mask as a list": (
        lambda: jbp.run(CORE(), (), of(2, 3), jbp.Context(mask=[[True] * 3] * N)),
        "expected context.mask bool [N, S] = [2, 3]",
    ),
    "no positions of the core": (lambda: jbp.run(CORE(), (), of(2, 0)), "expected at least 1 of each axis"),
    "bias of bools": (
        lambda: jbp.run(CORE(), (), of(2, 3), jbp.Context(side={"attention_bias": jnp.ones((1, 1, 2, 3), bool)})),
        "expected context.side['attention_bias'] as floats, which are added, got bool[1, 1, 2, 3]",
    ),
    "bias": (
        lambda: jbp.run(CORE(), (), (*of(2, 3), jnp.ones((N, 2, 3, 2)))),
        "expected bias [N, H, T, S] = [2, 2|1, 2|1, 3|1]",
    ),
    "cudnn": (lambda: jbp.run(CORE(implementation="cudnn"), (), of(2, 2)), "runs on CUDA in bfloat16 or float16"),
    "width": (lambda: jbp.Network([jbp.Attention(3)], (5, 4)), "expected a width that 3 heads divide, got W = 4"),
    "kv_heads": (lambda: jbp.Attention(4, 3), "expected heads as a multiple of kv_heads, got 4 and 3"),
    "heads of text": (lambda: jbp.Attention("4"), "heads must be a whole number of at least 1, got '4'"),
    "rope": (lambda: jbp.Attention(2, rope=-1.0), "rope must be a base above 0, as in 10_000.0, or None, got -1.0"),
    "rope by a flag": (lambda: jbp.Attention(2, rope=True), "rope must be a base above 0, as in 10_000.0, or None"),
    "odd pairs": (lambda: jbp.Network([jbp.Attention(2, rope=10.0)], (5, 6)), "D = 3. Make it even: change"),
    "no positions": (lambda: jbp.Network([jbp.Attention(2)], (4,)), "Attention: expected"),
    "another width": (
        lambda: jbp.Attention(2).forward(
            jbp.Attention(2).init(jax.random.key(0), jax.ShapeDtypeStruct((3, 4), jnp.float32)),
            jnp.ones((2, 3, 6)),
            jbp.Context(),
        ),
        "expected x [N, T, W = 4], got float32[2, 3, 6]",
    ),
}


@pytest.mark.usefixtures("as_for_a_user")
@pytest.mark.parametrize("name", WRONG)
def test_errors(name: str):
    call, text = WRONG[name]
    with pytest.raises(jbp.InputError) as caught:
        call()
    assert text in str(caught.value)
