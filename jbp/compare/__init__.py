"""Any hand-written gradient against autodiff: error, where it is, what it looks like, and what it costs.

    compare(rule, oracle, *args)     two functions that return gradients
    compare_vjp(f, *args)            every jax.custom_vjp in f against autodiff of its own primal
    compare_jvp(f, *args)            every jax.custom_jvp, in forward mode
    search(f, "N I, I O")            the smallest generated input on which a rule in f is wrong

Read `error` for the verdict, `replay` for the float64 shadow, `judge` for how the three oracles are asked.
"""

from ..programs.replay import in_float64 as in_float64
from .error import LeafError as LeafError
from .gradients import compare as compare
from .gradients import compare_with as compare_with
from .inputs import annotated as annotated
from .inputs import arrays as arrays
from .inputs import search as search
from .layers import in_blocks as in_blocks
from .layers import step_reports as step_reports
from .parts import VALUE as VALUE
from .parts import Part as Part
from .parts import named_parts as named_parts
from .report import Check as Check
from .report import GradientsDisagree as GradientsDisagree
from .report import Report as Report
from .rules import compare_jvp as compare_jvp
from .rules import compare_vjp as compare_vjp
from .verdict import Verdict as Verdict
