"""Complex functions. JAX's convention: `vjp` is the transpose of the real Jacobian without a conjugate, so that the
gradient of |z|² is 2 z̄, and that of a holomorphic f is f′(z) δ.
"""

import jax.numpy as jnp
import numpy as np

from .case import Rule, numbers, ones, times

# -- |z|², and |z| ----------------------------------------------------------------------------------------------------


def abs2(z):
    return z.real**2 + z.imag**2


def abs2_forward(z):
    return abs2(z), z


def abs2_backward(z, delta):
    return (2 * delta.astype(z.dtype) * z.conj(),)


def modulus(z):
    return jnp.abs(z)


def modulus_forward(z):
    return jnp.abs(z), z


def modulus_backward(z, delta):
    return ((delta / jnp.abs(z)).astype(z.dtype) * z.conj(),)


def complex_numbers(seed, *shape):
    return numbers(seed, *shape) + 1j * numbers(seed + 1, *shape)


ABS2 = Rule("|z|²", abs2, abs2_forward, abs2_backward, (complex_numbers(120, 6),))
MODULUS = Rule("|z|", modulus, modulus_forward, modulus_backward, (complex_numbers(122, 6),))
SIZES = (complex_numbers(122, 5) * np.complex64(10) ** np.arange(-8, 12, 4),)

CASES = [
    ABS2.right("by hand"),
    ABS2.wrong("the conjugate is dropped", "dropped conjugate", 0, gradient=jnp.conj),
    ABS2.wrong("the imaginary part is dropped", "missing term", 0, gradient=lambda g: g.real.astype(g.dtype)),
    ABS2.wrong("the factor 2", "factor", 0, gradient=times(0.5)),
    MODULUS.right("tiny and large", args=tuple(a.astype(np.complex64) for a in SIZES), hard=True),
    MODULUS.wrong("the conjugate is dropped", "dropped conjugate", 0, gradient=jnp.conj),
    MODULUS.wrong("not divided by |z|", "missing term", 0, backward=abs2_backward),
]

# -- exp(z) w: holomorphic, two arguments; a complex product of matrices ----------------------------------------------


def wave(z, w):
    return jnp.exp(z) * w


def wave_forward(z, w):
    return wave(z, w), (jnp.exp(z), w)


def wave_backward(saved, delta):
    e, w = saved
    return delta * e * w, delta * e


def product(x, w):
    return x @ w


def product_forward(x, w):
    return x @ w, (x, w)


def product_backward(saved, delta):
    x, w = saved
    return delta @ w.T, x.T @ delta


WAVE = Rule("exp(z) w", wave, wave_forward, wave_backward, (complex_numbers(124, 6), complex_numbers(126, 6)))
PRODUCT = Rule(
    "complex matmul",
    product,
    product_forward,
    product_backward,
    (complex_numbers(128, 4, 3), complex_numbers(130, 3, 3)),
)

CASES += [
    WAVE.right("holomorphic"),
    WAVE.wrong("a conjugate too many", "dropped conjugate", saved=lambda s: (s[0].conj(), s[1].conj())),
    WAVE.wrong("w's gradient has z's factor", "wrong formula", 1, backward=lambda s, d: (d * s[0] * s[1],) * 2),
    PRODUCT.right("transposes without conjugates"),
    PRODUCT.wrong("adjoints for transposes", "dropped conjugate", saved=lambda s: (s[0].conj(), s[1].conj())),
    PRODUCT.wrong("w's gradient transposed", "transpose", 1, gradient=jnp.transpose),
]

# -- the power spectrum |FFT x|² of real x ----------------------------------------------------------------------------


def spectrum(x):
    return abs2(jnp.fft.fft(x))


def spectrum_forward(x):
    return spectrum(x), jnp.fft.fft(x)


def spectrum_backward(transform, delta):
    """∂/∂x_n Σ_k δ_k |X_k|² = Re Σ_k 2 δ_k X̄_k exp(-2πi k n / N)."""
    return (jnp.fft.fft(2 * delta.astype(transform.dtype) * transform.conj()).real,)


def spectrum_by_inverse(transform, delta, n=8):
    return (2 * n * jnp.fft.ifft(delta.astype(transform.dtype) * transform).real,)


SPECTRUM = Rule("power spectrum", spectrum, spectrum_forward, spectrum_backward, (numbers(132, 2, 8),))

CASES += [
    SPECTRUM.right("by another FFT"),
    SPECTRUM.right("by the inverse FFT", backward=spectrum_by_inverse),
    SPECTRUM.right("a large constant part", args=(np.float32(100) + numbers(132, 2, 8),), hard=True),
    SPECTRUM.wrong("the conjugate is dropped", "dropped conjugate", 0, saved=jnp.conj),
    SPECTRUM.wrong("the inverse FFT's 1/N", "factor", 0, backward=lambda s, d: spectrum_by_inverse(s, d, n=1)),
    SPECTRUM.wrong("the negative frequencies are missing", "missing term", 0, delta=lambda d: d.at[:, 5:].set(0)),
    SPECTRUM.wrong("the cotangent ignored", "cotangent ignored", 0, delta=ones),
]
