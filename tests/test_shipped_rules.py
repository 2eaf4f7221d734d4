"""Rules that others ship (jax, optax, flax): the verdicts on some of `bench/shipped_rules.py`, right ones and faults.

A fault that is mended there makes a test here fail: then its row becomes a right one.
"""

import sys
import warnings
from pathlib import Path

import jax
import pytest

import jbp

pytest.importorskip("flax")
sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what they deprecate is theirs
    import shipped_rules
sys.path.pop(0)

RULES = {rule.name: rule for rule in shipped_rules.OUTSIDE}
GPU = "jax.experimental.pallas.ops.gpu."
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(jax.default_backend() != "cpu", reason="Pallas' kernels are interpreted on a CPU"),
]


@pytest.fixture(autouse=True)
def _as_for_a_user():
    """Their code relies on what the tests here forbid."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


SOMETIMES_PLAIN = ("jax.numpy.sinc, 0", "jax.numpy.frexp")  # in some JAX these have a rule, in others they need none


def row(name: str) -> shipped_rules.Row:
    rule = RULES[name]
    if name in SOMETIMES_PLAIN and "custom_jvp_call" not in str(jax.make_jaxpr(rule.f)(*rule.args)):
        pytest.skip(f"in this JAX {name} has no rule of its own")
    return shipped_rules.row(rule)


RIGHT = [
    "jax.nn.softmax",
    "jax.numpy.sinc, 0",
    "jax.scipy.special.logit",
    "jax.scipy.special.wofz",  # a rule with constants
    "jax.numpy.linalg.slogdet, 2 × 2",
    "jax.custom_gradient",
    "optax.projections.projection_l1_ball",
    "optax.safe_softmax_cross_entropy, its minimum",
    "flax.linen.custom_vjp",
    "flax.nnx.custom_vjp, graph_updates=False",
]


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_rule_passes(name: str):
    found = row(name)
    assert found.ok, found.verdict
    assert found.verdict.startswith(("right: ", "right, "))
    assert found.oracle == "autodiff"


# Right rules where autodiff of the primal is not: they are there for that. At kinks of the primal some choice of slopes
# gives the rule; of xlogy at (0, y), where autodiff has NaN, differences say what is right.
EXCUSED = {
    "jax.nn.relu, 0": "right: ",
    "jax.numpy.logaddexp": "right: ",  # at ties
    "jax.numpy.i0, 0": "right: ",
    "jax.scipy.special.xlogy": "right: ",
    "jax.numpy.frexp": "right; autodiff is wrong here: the rule agrees with central differences",  # bits, in float32
}


@pytest.mark.parametrize("name", EXCUSED)
def test_a_rule_is_right_where_autodiff_is_not(name: str):
    found = row(name)
    assert found.ok
    assert found.verdict.startswith(EXCUSED[name])


# What is wrong, and what the verdict must hold of it.
FAULTS = {
    "jax.scipy.special.log_ndtr, far tail": "WRONG in log_ndtr: output[3] is 0.28446",
    "jax.scipy.special.log_ndtr, tails": "WRONG in log_ndtr: output[0] is -14.49",
    "jax.scipy.special.xlogy, (0, 0)": "WRONG in xlogy: NaN in 1 of 2 elements, first at [0]; output[0] is nan",
    "jax.numpy.logaddexp, both inf": "WRONG in logaddexp: NaN in 1 of 3 elements, first at [2]; output[2] is nan",
    "optax.safe_softmax_cross_entropy, a logit of −∞": "WRONG in weighted_logsoftmax: NaN in 1 of 3 elements",
    f"{GPU}rms_norm, xla, eps 0.5": "WRONG in rms_norm: x[0,0,31] is -4.78",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name: str):
    found = row(name)
    assert found.ok is False
    assert found.verdict.startswith(FAULTS[name])
    assert found.found  # it is known


def test_of_lost_digits_it_is_said_that_it_is_the_arithmetic():
    """The rule's own float32 constants stay in float64, so that its formula can't be called right to the last digit."""
    assert (
        "output: in float64 the rule differs by as little as rounded constants make: its arithmetic loses digits."
        in row("jax.scipy.special.log_ndtr, far tail").notes
    )


def test_of_what_is_not_meant_to_be_the_derivative_the_factor_is_named():
    found = row("optax.scale_gradient")
    assert found.ok is False
    assert found.verdict.startswith("WRONG in _scale_gradient: off by the factor 0.250 = 1/4; ")
    assert found.meant == "scales an identity's gradient"


@pytest.mark.parametrize("eps", ["", ", eps 0.5"])
def test_a_pallas_kernel_is_compared_with_forward_mode(eps: str):
    found = row(f"{GPU}rms_norm{eps}")
    assert found.ok, found.verdict
    assert found.oracle == "forward mode"
    assert not any(note.startswith("Rule and autodiff agree, but") for note in found.notes)  # float32's noise is known


def test_an_exported_function_is_compared_with_central_differences():
    """Of a function that keeps float32: they have its noise, and say no more than that lets them."""
    found = row("jax.export.Exported.call")
    assert found.ok, found.verdict
    assert found.oracle == "central differences"


def test_what_cannot_be_compared_says_why():
    found = row("jax.experimental.pallas.ops.tpu.megablox.gmm")
    assert found.ok is None
    assert found.verdict.startswith(
        "can't be compared: InputError: compare_vjp: autodiff of gmm raises NotImplementedError: interpret with "
        "dynamic grid bounds unsupported. Its primal has no derivative to compare with, and 34,816 elements are too "
    )


def test_every_rule_has_a_name_of_its_own_and_what_it_needs():
    assert len(RULES) == len(shipped_rules.OUTSIDE) > 100
    for rule in RULES.values():
        assert rule.kind in ("vjp", "jvp")
        assert callable(rule.f)
    assert all(any(slow in name for name in RULES) for slow in shipped_rules.SLOW)
    assert isinstance(shipped_rules.compared(RULES["jax.nn.relu"]), jbp.Report)
