"""For tests: a comparison that passes, or fails with the whole report as its message.

def test_my_softmax():
    jbp.assert_vjp(my_softmax, np.ones((3, 4), np.float32))
"""

from collections.abc import Callable
from typing import Any

from .compare import Report, compare, compare_vjp
from .errors import check_settings


def assert_vjp(f: Callable[..., Any], *args: Any, **settings: Any) -> Report:
    """Assert that each `jax.custom_vjp` in `f(*args)` is the gradient of its own primal; the report.

    `settings` as for `compare_vjp`. Raises `GradientsDisagree`, an AssertionError whose message is the report, unless
    it is ok; under pytest the failure shows the caller's line and the report. `InputError` as from `compare_vjp`.
    """
    __tracebackhide__ = True
    check_settings("assert_vjp", compare_vjp, settings)
    return compare_vjp(f, *args, **settings).raise_if_bad()


def assert_gradients(rule: Callable[..., Any], oracle: Callable[..., Any], *args: Any, **settings: Any) -> Report:
    """Assert that `rule(*args)` returns the gradients that `oracle(*args)` does; the report.

    `settings` as for `compare`. Raises `GradientsDisagree`, an AssertionError whose message is the report, unless it is
    ok; under pytest the failure shows the caller's line and the report. Raises `InputError` as `compare` does.
    """
    __tracebackhide__ = True
    check_settings("assert_gradients", compare, settings)
    return compare(rule, oracle, *args, **settings).raise_if_bad()
