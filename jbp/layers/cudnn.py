"""Attention by cuDNN's kernel: the public function of `jax.nn`, and that function's own reverse.

What it is asked for is put into its words: a mask of keys, a bias and a window as `DotProductAttention` has them. cuDNN
adds masks and biases as an array `[N|1, H|1, T, S]`, and gives a query that sees no key the mean of v; here that is 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import said
from ..layer import PROBE, InputError, described

KERNEL_DTYPES = jnp.bfloat16, jnp.float16
_OTHERWISE = "Write implementation='xla'."


def has_no_kernel(q: Any) -> bool:
    """Whether XLA computes it instead: in float64, and for the abstract batch of which only shapes are asked, which is
    in θ's dtype whatever is computed in."""
    return q.dtype not in KERNEL_DTYPES and (q.dtype == np.float64 or q.shape[0] == PROBE)


def check_cudnn(q: Any, v: Any, added: bool, reach: tuple[int | None, int | None]) -> None:
    """Raise `InputError` for what cuDNN's kernel can't do; `added`: whether there is a mask or a bias.

    `reach`: how many keys a query sees on each side of its own place, None for all.
    """
    who = "DotProductAttention: implementation='cudnn'"
    if q.dtype not in KERNEL_DTYPES or jax.default_backend() != "gpu":
        raise InputError(
            f"{who} runs on CUDA in bfloat16 or float16, got {q.dtype} on {jax.default_backend()}. Write "
            "implementation='xla', or cast and run there."
        )
    if v.shape[3] != q.shape[3] or q.shape[3] % 8:
        raise InputError(
            f"{who} needs heads of one size for q, k and v, a multiple of 8, got {described((q, v))}. {_OTHERWISE}"
        )
    if reach[1]:
        raise InputError(f"{who} has windows to the left alone: causal=True or window=(left, 0). {_OTHERWISE}")
    if added and (q.shape[1] % 2 or v.shape[1] % 2):
        raise InputError(
            f"{who} takes a mask or a bias for even T and S alone, got T = {q.shape[1]} and S = {v.shape[1]}. Pad "
            "them, or write implementation='xla'."
        )


def attention_by_cudnn(
    q: Any, k: Any, v: Any, bias: Any, side: Any, mask: Any, scale: float | None, reach: tuple[int | None, int | None]
) -> tuple[Any, Any]:
    """(o, its reverse: delta -> the deltas of q, k, v, and of a bias if there is one). Raises `InputError`."""
    check_cudnn(q, v, any(a is not None for a in (bias, side, mask)), reach)
    left, causal = reach[0], reach[1] == 0
    t, s = q.shape[1], k.shape[1]
    whole = lambda a: jnp.broadcast_to(a, (*a.shape[:2], t, s))
    seen = _sees(mask, t, s, *reach)

    def run(q: Any, k: Any, v: Any, *bias: Any) -> Any:
        biases = [whole(b.astype(q.dtype)) for b in (*bias, side) if b is not None]
        o = jax.nn.dot_product_attention(
            q, k, v,
            sum(biases[1:], biases[0]) if biases else None,
            None if mask is None else whole(mask[:, None, None]),
            scale=scale, is_causal=causal, local_window_size=None if left is None else (left, 0),
            implementation="cudnn",
        )  # fmt: skip
        return o if seen is None else jnp.where(seen[:, :, None, None], o, jnp.zeros((), o.dtype))

    @jax.custom_vjp
    def both(*x: Any) -> tuple[Any, Any]:
        return jax.vjp(run, *x)

    def forward(*x: Any) -> tuple[Any, Any]:
        o, pull = jax.vjp(run, *x)
        return (o, pull), pull

    both.defvjp(forward, lambda pull, deltas: pull(deltas[0]))  # autodiff meets o alone
    try:
        return both(q, k, v, *(() if bias is None else (bias,)))
    except (NotImplementedError, RuntimeError, ValueError) as error:
        told = said(error).removesuffix(".")
        raise InputError(f"DotProductAttention: implementation='cudnn' raises {told}. {_OTHERWISE}") from error


def _sees(mask: Any, t: int, s: int, left: int | None, right: int | None) -> Any:
    """[N|1, T]: whether a query sees a key; None where each sees one."""
    at = np.arange(t)
    first = np.zeros(t, int) if left is None else np.clip(at - left, 0, s)
    end = np.full(t, s) if right is None else np.clip(at + right + 1, 0, s)
    if mask is None:
        some = first < end
        return None if some.all() else jnp.asarray(some[None])
    keys = jnp.pad(jnp.cumsum(mask, 1, dtype=np.int32), ((0, 0), (1, 0)))  # how many there are before each place
    return keys[:, end] > keys[:, first]
