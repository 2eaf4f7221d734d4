"""The gallery: rules that are right, some of them numerically hard, and rules with one fault each.

A checker of gradients is as good as what it finds among `WRONG`, and as honest as what it leaves alone among `RIGHT`.
"""

from . import (
    complex_numbers,
    edges,
    elementwise,
    kinks,
    losses,
    means,
    normalizations,
    products,
    recurrences,
    selections,
)
from .case import Case as Case

MODULES = (products, normalizations, means, losses, elementwise, selections, recurrences, complex_numbers, kinks, edges)
CASES: list[Case] = [case for module in MODULES for case in module.CASES]
WRONG: list[Case] = [case for case in CASES if case.kind is not None]
RIGHT: list[Case] = [case for case in CASES if case.kind is None]
