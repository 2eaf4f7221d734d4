"""The text's network: dense layers, each with its activation."""

from typing import Any

from .activations import Sigmoid
from .errors import check_settings
from .layer import InputError, Layer
from .layers.dense import Dense
from .network import Network


def mlp(
    *widths: int,
    activation: Layer = Sigmoid(),
    last: Layer | None = None,
    **settings: Any,
) -> Network:
    """The text's network: `mlp(784, 30, 10)` has L = 3 layers of 784, 30 and 10 neurons.

    `activation` follows each dense layer, `last` (the same unless given) the output one; for `SoftmaxCrossEntropy`,
    whose input are logits, give `last=jbp.Identity()`. `settings`: `dtype`, `compute_dtype` of the `Network`.
    """
    check_settings("mlp", Network, settings, ("dtype", "compute_dtype"))
    if len(widths) < 2:
        raise InputError(f"mlp: expected at least an input and an output width, got {widths}. As in mlp(784, 30, 10).")
    layers: list[Layer] = []
    for width in widths[1:]:
        layers += [Dense(width), activation]
    return Network([*layers[:-1], activation if last is None else last], input=(widths[0],), **settings)
