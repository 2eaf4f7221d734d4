"""Losses: layers from (output, y) to C_n, the cost of one example; read `loss` first."""

from .cross_entropy import SigmoidCrossEntropy as SigmoidCrossEntropy
from .cross_entropy import SoftmaxCrossEntropy as SoftmaxCrossEntropy
from .linear_cross_entropy import LinearCrossEntropy as LinearCrossEntropy
from .loss import FromFunction as FromFunction
from .loss import FromValue as FromValue
from .loss import Loss as Loss
from .loss import as_layer as as_layer
from .loss import check_by_example as check_by_example
from .loss import from_function as from_function
from .squares import HalfSquaredError as HalfSquaredError
from .squares import Huber as Huber
from .squares import SquaredError as SquaredError
from .terms import Terms as Terms
