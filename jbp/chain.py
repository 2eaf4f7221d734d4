"""The network of the text, if that is what a network is: a plain chain of dense layers.

    layer 1       a^1 = x
    layer ℓ       z^ℓ = W^ℓ a^{ℓ-1} + b^ℓ,   a^ℓ = g(z^ℓ)

g is whatever stands behind the dense layer and has no parameters. The layers say so themselves (`affine`,
`elementwise`); one that states neither, or a layer of positions, is no part of a chain.
"""

from dataclasses import dataclass
from functools import lru_cache

import jax

from .layer import Layer, output_spec, stated
from .layers.compose import Sequential
from .network import Network


@dataclass(frozen=True, eq=False)
class Chain:
    """`places`: of W^2, …, W^L among the network's layers. `widths`: of a^1 … a^L, `sums`: of z^2 … z^L.

    `behind`: the layers that g is, of layers 2 … L, and `elementwise`: whether g acts on each element alone.
    """

    places: tuple[int, ...]
    widths: tuple[int, ...]
    sums: tuple[int, ...]
    behind: tuple[tuple[Layer, ...], ...]
    elementwise: tuple[bool, ...]

    @property
    def input_is_first(self) -> bool:
        """Whether a^1 is x itself."""
        return self.places[0] == 0


@lru_cache(maxsize=32)
def chain_of(net: Network) -> Chain | None:
    """The network as a plain chain of dense layers, or None if it is more than that."""
    if not isinstance(net.layer.layers, Sequential):
        return None
    places = tuple(i for i, layer in enumerate(net.layers) if stated(layer, "affine"))
    for i, (layer, params) in enumerate(zip(net.layers, net.params_spec, strict=True)):
        if i not in places and (stated(layer, "elementwise") is None or jax.tree.leaves(params)):
            return None
    if not places or not net.layout.is_chain or not isinstance(net.input, jax.ShapeDtypeStruct):
        return None
    specs = [net.input]
    for layer, params in zip(net.layers, net.params_spec, strict=True):
        specs.append(output_spec(layer, params, specs[-1]))
    if any(len(getattr(spec, "shape", ())) != 1 for spec in specs[places[0] :]):
        return None
    behind = tuple(
        tuple(net.layers[i + 1 : end]) for i, end in zip(places, (*places[1:], len(net.layers)), strict=True)
    )
    return Chain(
        places,
        tuple(specs[i].shape[0] for i in (*places, -1)),
        tuple(specs[i + 1].shape[0] for i in places),
        behind,
        tuple(all(stated(layer, "elementwise") for layer in layers) for layers in behind),
    )
