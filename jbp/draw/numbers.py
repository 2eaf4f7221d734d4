"""The numbers of one example in a plain chain of dense layers, from one recorded run and the layers' own backward."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..chain import Chain
from ..layer import Context
from ..layers.compose import Sequential
from ..record import run as recorded_run
from ..run import run


@dataclass(frozen=True, eq=False)
class Numbers:
    """All values of one example and all local derivatives, as NumPy arrays. `cost_of_y` is None for labels."""

    w: list[np.ndarray]  # [j, k]
    b: list[np.ndarray | None]
    a: list[np.ndarray]  # a^1 … a^L
    z: list[np.ndarray]
    slope: list[np.ndarray]  # ∂a/∂z: [a, z], its diagonal where g is element-wise
    y: Any  # an array, or a label
    cost: float
    cost_of_a: np.ndarray
    cost_of_y: np.ndarray | None


def numbers_of(cost: Any, chain: Chain, theta: Any, x: Any, y: Any) -> Numbers:
    """The numbers at one example: x `[1, *input]` and its y."""
    record = recorded_run(cost, theta, x, y)
    steps = {step.path: step for step in record.steps}
    dense = [steps[str(place)] for place in chain.places]
    slopes = zip(chain.behind, chain.elementwise, dense, strict=True)
    of_y = None
    if jnp.issubdtype(y.dtype, jnp.floating):
        of_y = np.asarray(_by_y(cost.loss_layer, cost.loss_params(theta), record.output, y)[0])
    return Numbers(
        w=[step.params.w.T for step in dense],
        b=[step.params.b for step in dense],
        a=[*(step.x[0] for step in dense), record.output[0]],
        z=[step.output[0] for step in dense],
        slope=[np.asarray(_slope(behind, alone, step.output[0])) for behind, alone, step in slopes],
        y=np.asarray(y)[0],
        cost=float(record.values[0]),
        cost_of_a=record.delta[0],
        cost_of_y=of_y,
    )


@partial(jax.jit, static_argnums=(0, 1))
def _slope(layers: tuple, alone: bool, z: Any) -> Any:
    """∂a/∂z `[a, z]` of the layers behind a dense one, at z `[z]`, by their own backward; its diagonal if `alone`."""
    layer = Sequential(layers)
    params = ((),) * len(layers)
    if alone:
        a, back = run(layer, params, z[None])
        return back(jnp.ones_like(a))[0][0]
    width = jax.eval_shape(lambda z: layer.forward(params, z, Context())[0], z[None]).shape[1]
    a, back = run(layer, params, jnp.broadcast_to(z[None], (width, len(z))))
    return back(jnp.eye(width, dtype=a.dtype))[0]


@partial(jax.jit, static_argnums=0)
def _by_y(loss: Any, params: Any, a: Any, y: Any) -> Any:
    """∂C_n/∂y."""
    return jax.grad(lambda y: loss.forward(params, (a, y), Context())[0].sum())(y)
