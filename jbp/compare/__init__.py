"""Any hand-written gradient against autodiff: error, where it is, what it looks like, and what it costs.

    compare(rule, oracle, *args)     two functions that return gradients
    compare_vjp(f, *args)            every jax.custom_vjp in f against autodiff of its own primal
    compare_jvp(f, *args)            every jax.custom_jvp, in forward mode
    search(f, "N I, I O")            the smallest generated input on which a rule in f is wrong

One way: what is compared (`comparison`) → what stands at a point (`evidence`) → how far each leaf is off, and whether
that is too far (`error`) → why (`why`) → a `Report`. `judge` walks it; `rules`, `gradients` and `costs` begin it.
"""

from ..programs.replay import in_float64 as in_float64
from .error import LeafError as LeafError
from .gradients import compare as compare
from .inputs import search as search
from .report import Check as Check
from .report import GradientsDisagree as GradientsDisagree
from .report import Report as Report
from .rules import compare_jvp as compare_jvp
from .rules import compare_vjp as compare_vjp
from .shapes import annotated as annotated
from .shapes import arrays as arrays
from .verdict import Verdict as Verdict
