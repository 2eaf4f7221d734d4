"""Element-wise functions a = f(z), each with its derivative f′ beside it.

    forward    a = f(z)
    backward   δ_z = δ_a · f′

Saved: a where f′ follows from a at no loss (the next layer keeps a in any case, so it costs nothing), else z.
Each class states f′ at its kinks, far out and at ±∞, and f is written so that plain autodiff of it gives the same f′
there: by selects, as in `jax.nn`, because the derivative of `maximum` at a tie is ½. No f has a rule of ours, so that
autodiff can vouch for `slope`. Low precision is computed in float32 and rounded once.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .layer import Context, InputError, described, wide


class Activation(ABC):
    """A layer without parameters that acts on each element alone. A leaf class states `f`, `slope` and `keeps`."""

    keeps: ClassVar[str] = "a"
    elementwise: ClassVar[bool] = True

    @abstractmethod
    def f(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """a = f(z)."""

    @abstractmethod
    def slope(self, saved: Float[Array, "..."]) -> Float[Array, "..."]:
        """f′, from a or from z as `keeps` says."""

    def init(self, key: PRNGKeyArray, x: Any) -> tuple:
        if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
            raise InputError(
                f"{type(self).__name__}: expected a float input z, got {described(x)}. Cast it, or join its parts."
            )
        return ()

    def forward(self, params: tuple, x: Float[Array, "N ..."], context: Context) -> tuple[Any, Any]:
        a = self.f(wide(x)).astype(x.dtype)
        return a, a if self.keeps == "a" else x

    def backward(
        self, params: tuple, feedback: tuple, saved: Any, delta: Float[Array, "N ..."], read: Any
    ) -> tuple[Any, tuple]:
        return (wide(delta) * self.slope(wide(saved))).astype(delta.dtype), ()


@dataclass(frozen=True)
class Identity(Activation):
    """a = z; f′ = 1."""

    def f(self, z):
        return z

    def slope(self, saved):
        return jnp.ones_like(saved)


@dataclass(frozen=True)
class Sigmoid(Activation):
    """a = 1/(1 + e⁻ᶻ); f′ = a(1 − a), 0 far out."""

    gives_probabilities: ClassVar[bool] = True

    def f(self, z):
        return jax.nn.sigmoid(z)

    def slope(self, saved):
        return saved * (1 - saved)


@dataclass(frozen=True)
class Tanh(Activation):
    """a = tanh z; f′ = 1 − a², 0 far out."""

    def f(self, z):
        return jnp.tanh(z)

    def slope(self, saved):
        return (1 - saved) * (1 + saved)


@dataclass(frozen=True)
class ReLU(Activation):
    """a = max(z, 0); f′ = 1 for z > 0, else 0. At the kink f′(0) = 0, as in `jax.nn.relu`."""

    def f(self, z):
        return jnp.where(z > 0, z, jnp.where(z <= 0, 0.0, jnp.nan))  # NaN stays NaN

    def slope(self, saved):
        return (saved > 0).astype(saved.dtype)


@dataclass(frozen=True)
class LeakyReLU(Activation):
    """a = z for z ≥ 0, else `negative_slope`·z; f′ = 1 or `negative_slope`. At the kink f′(0) = 1.

    Saved: z. The sign of a would tell f′ too, but not where a small a is rounded to 0.
    """

    negative_slope: float = 0.01
    keeps: ClassVar[str] = "z"

    def __post_init__(self):
        if not self.negative_slope > 0:
            raise InputError(f"LeakyReLU: negative_slope must be above 0, got {self.negative_slope}. For 0 use ReLU().")

    def f(self, z):
        return jnp.where(z >= 0, z, self.negative_slope * z)

    def slope(self, saved):
        return jnp.where(saved >= 0, 1.0, self.negative_slope).astype(saved.dtype)


@dataclass(frozen=True)
class ELU(Activation):
    """a = z for z > 0, else α(eᶻ − 1); f′ = 1, or αeᶻ, 0 far left. At the kink f′(0) = α, as in `jax.nn.elu`.

    Saved: z. From a, f′ would be a + α, which cancels far left.
    """

    alpha: float = 1.0
    keeps: ClassVar[str] = "z"

    def f(self, z):
        return jnp.where(z > 0, z, self.alpha * jnp.expm1(jnp.where(z > 0, 0, z)))  # no ∞·0 where eᶻ is large

    def slope(self, saved):
        return jnp.where(saved > 0, 1.0, self.alpha * jnp.exp(jnp.where(saved > 0, 0, saved)))


@dataclass(frozen=True)
class SELU(Activation):
    """a = λz for z > 0, else λα(eᶻ − 1); f′ = λ, or λαeᶻ, 0 far left. At the kink f′(0) = λα. Klambauer et al. 2017."""

    keeps: ClassVar[str] = "z"
    scale: ClassVar[float] = 1.0507009873554804934193349852946
    alpha: ClassVar[float] = 1.6732632423543772848170429916717

    def f(self, z):
        return self.scale * ELU(self.alpha).f(z)

    def slope(self, saved):
        return self.scale * ELU(self.alpha).slope(saved)


@dataclass(frozen=True)
class GELU(Activation):
    """a = zΦ(z); f′ = Φ(z) + zφ(z), 0 far left and 1 far right (Hendrycks & Gimpel 2016, arXiv:1606.08415).

    With `approximate` (the default, as in `jax.nn.gelu`), Φ(z) ≈ ½(1 + tanh u), u = √(2/π)(z + 0.044715 z³).
    """

    approximate: bool = True
    keeps: ClassVar[str] = "z"

    def f(self, z):
        # the clip keeps ∞·0 out, of autodiff as well; its own kinks are where f′ is 0 or nothing is taken from it
        return jnp.where(z > 40, z, jax.nn.gelu(jnp.clip(z, -41, 41), approximate=self.approximate))

    def slope(self, saved):
        z = jnp.clip(saved, -40, 40)  # beyond, f′ is 0 or 1 to the last bit; the clip keeps ∞·0 out
        if not self.approximate:
            cdf = 0.5 * jax.lax.erfc(-z * math.sqrt(0.5))
            return cdf + z * jnp.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        c = math.sqrt(2 / math.pi)
        t = jnp.tanh(c * (z + 0.044715 * z * z * z))
        return 0.5 * (1 + t) + 0.5 * z * (1 - t) * (1 + t) * c * (1 + 3 * 0.044715 * z * z)


@dataclass(frozen=True)
class SiLU(Activation):
    """a = zσ(z); f′ = σ(z)(1 + z(1 − σ(z))), 0 far left and 1 far right."""

    keeps: ClassVar[str] = "z"

    def f(self, z):
        return jnp.where(z > 800, z, jax.nn.silu(jnp.clip(z, -801, 801)))  # as in GELU

    def slope(self, saved):
        z = jnp.clip(saved, -800, 800)  # beyond, σ is 0 or 1 in every dtype; the clip keeps ∞·0 out
        s = jax.nn.sigmoid(z)
        return s * (1 + z * jax.nn.sigmoid(-z))


@dataclass(frozen=True)
class Softplus(Activation):
    """a = log(1 + eᶻ); f′ = σ(z) = 1 − e⁻ᵃ, 0 far left and 1 far right."""

    def f(self, z):
        return jax.nn.softplus(z)

    def slope(self, saved):
        return -jnp.expm1(-saved)


@dataclass(frozen=True)
class LogSigmoid(Activation):
    """a = log σ(z) = −log(1 + e⁻ᶻ); f′ = σ(−z) = 1 − eᵃ, 1 far left and 0 far right."""

    def f(self, z):
        return jax.nn.log_sigmoid(z)

    def slope(self, saved):
        return -jnp.expm1(saved)


@dataclass(frozen=True)
class Softmax:
    """a_j = e^{z_j} / Σ_k e^{z_k} over the last axis; δ_z = a · (δ − Σ_k δ_k a_k). Saved: a. No parameters.

    For a cost, prefer `losses.SoftmaxCrossEntropy`, which takes the logits z and is stable.
    """

    elementwise: ClassVar[bool] = False
    gives_probabilities: ClassVar[bool] = True

    def init(self, key: PRNGKeyArray, x: Any) -> tuple:
        if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating) or not x.shape:
            raise InputError(
                f"Softmax: expected a float input z with a class axis, got {described(x)}. "
                "Give the input an axis of classes, or cast it."
            )
        return ()

    def forward(self, params: tuple, x: Float[Array, "N *T K"], context: Context) -> tuple[Any, Any]:
        a = jax.nn.softmax(wide(x), axis=-1).astype(x.dtype)
        return a, a

    def backward(
        self, params: tuple, feedback: tuple, saved: Any, delta: Float[Array, "N *T K"], read: Any
    ) -> tuple[Any, tuple]:
        a, d = wide(saved), wide(delta)
        return (a * (d - (d * a).sum(-1, keepdims=True))).astype(delta.dtype), ()
