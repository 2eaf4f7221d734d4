"""Normalisation of each example over some of its axes, then a gain and a bias for each channel.

    forward    x̂ = (x − μ)·r,  r = 1/√(mean (x − μ)² + ε)                     y = g·x̂ + b
    backward   δx = r·(δ̂ − mean δ̂ − x̂·mean(δ̂·x̂))                             δ̂ = g·δ,  δ = ∂C/∂y
    gradient   ∂C/∂g = Σ δ·x̂,  ∂C/∂b = Σ δ                                    over examples and positions

    layer           means are over                          μ                source
    LayerNorm       the last axis                           mean x           Ba, Kiros & Hinton 2016, arXiv:1607.06450
    RMSNorm         the last axis                           0; no mean δ̂     Zhang & Sennrich 2019, arXiv:1910.07467
    GroupNorm       positions and channels of one group     mean x           Wu & He 2018, arXiv:1803.08494
    InstanceNorm    positions                               mean x           Ulyanov et al. 2016, arXiv:1607.08022

Saved: x, and μ and r, one number each for all that is averaged, because x̂ follows from them element by element: a
second array like x is not kept. Low precision is computed in float32; μ and r stay in it.
Shapes: x and y `[N, *T, C]`, channels last; g and b `[C]`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..errors import check_whole
from ..layer import Context, InputError, described, wide
from ..pair import Sum
from .settings import check_above_zero, check_flags, check_float_input


class Scale(NamedTuple):
    """Params of a normalisation; `gain` and `bias` are None where there are none."""

    gain: Any
    bias: Any


class View(NamedTuple):
    """How a normalisation sees x: in which shape, and over which axes of it means are taken."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def mean(self, a: Float[Array, "..."]) -> Float[Array, "..."]:
        """The mean over the axes, each kept with one entry."""
        return a.mean(self.axes, keepdims=True)


class Statistics(NamedTuple):
    """μ, or None where nothing is subtracted, and r = 1/√(mean (x − μ)² + ε)."""

    mean: Any
    r: Any

    @classmethod
    def of(cls, x: Float[Array, "..."], view: View, epsilon: float, centred: bool) -> "Statistics":
        """Those of x in the shape of the view. The squares are of x − μ: mean x² − μ² would cancel far from 0."""
        mean = view.mean(x) if centred else None
        return cls(mean, jax.lax.rsqrt(view.mean(jnp.square(x if mean is None else x - mean)) + epsilon))

    def normalised(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """x̂."""
        return (x if self.mean is None else x - self.mean) * self.r


class Normalisation(ABC):
    """A layer that normalises each example over some axes. A leaf class states its settings and `view`."""

    epsilon: float
    gain: bool
    centred: ClassVar[bool] = True  # whether μ is the mean, else 0
    input: ClassVar[tuple[str, int]] = "[N, ..., C]", 1  # x in words, and its least number of axes without N

    @abstractmethod
    def view(self, shape: tuple[int, ...]) -> View:
        """How it sees an x of this shape."""

    @property
    def bias(self) -> bool:
        """Whether there is one; a setting of most."""
        return False

    @property
    def _who(self) -> str:
        return type(self).__name__

    def __post_init__(self):
        check_above_zero(type(self).__name__, epsilon=self.epsilon)
        check_flags(type(self).__name__, gain=self.gain, bias=self.bias)

    def init(self, key: PRNGKeyArray, x: Any) -> Scale:
        remedy = "Give the input an axis of channels, its last, and cast it to float."
        check_float_input(self._who, x, *self.input, remedy)
        ones, zeros = jnp.ones(x.shape[-1:], x.dtype), jnp.zeros(x.shape[-1:], x.dtype)
        return Scale(ones if self.gain else None, zeros if self.bias else None)

    def forward(self, params: Scale, x: Float[Array, "N *T C"], context: Context) -> tuple[Any, Any]:
        for leaf in params:
            if leaf is not None and leaf.shape != x.shape[-1:]:
                raise InputError(
                    f"{self._who}: expected x [N, ..., C = {leaf.shape[0]}], got {described(x)}. "
                    "Check the width of the layer before."
                )
        view = self.view(x.shape)
        seen = wide(x).reshape(view.shape)
        statistics = Statistics.of(seen, view, self.epsilon, self.centred)
        y = statistics.normalised(seen).reshape(x.shape)
        if params.gain is not None:
            y = y * jnp.broadcast_to(wide(params.gain), y.shape)
        if params.bias is not None:
            y = y + jnp.broadcast_to(wide(params.bias), y.shape)
        return y.astype(x.dtype), (x, statistics)

    def backward(
        self, params: Scale, feedback: Scale, saved: Any, delta: Float[Array, "N *T C"], read: Scale
    ) -> tuple[Any, Scale]:
        (x, statistics), view = saved, self.view(delta.shape)
        normal, d = statistics.normalised(wide(x).reshape(view.shape)), wide(delta)
        readings = Scale(
            None if read.gain is None else read.gain(Sum(d * normal.reshape(x.shape))),
            None if read.bias is None else read.bias(Sum(delta)),
        )
        # reverses y = g·x̂ + b, and then x̂ = (x − μ)·r, where μ and r depend on x, too
        d = (d if feedback.gain is None else d * jnp.broadcast_to(wide(feedback.gain), d.shape)).reshape(view.shape)
        inside = d - normal * view.mean(d * normal)
        inside = inside if statistics.mean is None else inside - view.mean(d)
        return (statistics.r * inside).reshape(x.shape).astype(delta.dtype), readings


@dataclass(frozen=True)
class LayerNorm(Normalisation):
    """Mean 0 and variance 1 over the last axis of each position, then a gain and a bias for each channel."""

    epsilon: float = 1e-5
    gain: bool = True
    bias: bool = True

    def view(self, shape: tuple[int, ...]) -> View:
        return View(shape, (-1,))


@dataclass(frozen=True)
class RMSNorm(Normalisation):
    """Mean square 1 over the last axis of each position, then a gain for each channel; nothing is subtracted."""

    epsilon: float = 1e-6
    gain: bool = True
    centred: ClassVar[bool] = False

    def view(self, shape: tuple[int, ...]) -> View:
        return View(shape, (-1,))


@dataclass(frozen=True)
class GroupNorm(Normalisation):
    """Mean 0 and variance 1 over all positions and the channels of one of `groups` equal groups, in each example."""

    groups: int
    epsilon: float = 1e-5
    gain: bool = True
    bias: bool = True

    def __post_init__(self):
        check_whole("GroupNorm", groups=self.groups)
        super().__post_init__()

    @property
    def _who(self) -> str:
        return f"GroupNorm({self.groups})"

    def view(self, shape: tuple[int, ...]) -> View:
        n, *positions, channels = shape
        return View((n, math.prod(positions), self.groups, channels // self.groups), (1, 3))

    def init(self, key: PRNGKeyArray, x: Any) -> Scale:
        params = super().init(key, x)
        if x.shape[-1] % self.groups:
            raise InputError(
                f"GroupNorm({self.groups}): expected channels in {self.groups} equal groups, got C = {x.shape[-1]}. "
                "Choose groups that divide C."
            )
        return params


@dataclass(frozen=True)
class InstanceNorm(Normalisation):
    """Mean 0 and variance 1 over all positions of each channel, in each example."""

    epsilon: float = 1e-5
    gain: bool = True
    bias: bool = True
    input: ClassVar[tuple[str, int]] = "[N, *positions, C]", 2

    def view(self, shape: tuple[int, ...]) -> View:
        return View(shape, tuple(range(1, len(shape) - 1)))
