"""Backpropagation written out by hand on JAX: readable, steerable, and measured against `jax.grad`.

Public is what this file imports by name, as `jbp.__all__` lists it: classes, functions, and the modules `jbp.data`,
`jbp.draw` and `jbp.losses` with their names without an underscore. All other modules may change without notice; this
is where things are in them.

Read first: `reverse`, the induction; `layers/dense`, one step of it; `readouts`, what is read at each parameter.

    errors / meshes                  what bad input is told / arrays that are cut over several devices
    blocks / markup / paint          a page as data, text and JSON / as Markdown and HTML / the one look of all figures
    programs/                        programs as JAX traces them: run again in float64, tapped, timed; no layer is known
    layer / run                      the contract of a layer / layers run forward and back
    layout / symbols / published     leaves and one vector θ / names of its coordinates / names that others gave leaves
    pair / gather / patches          (a, δ) at a leaf / at a table / at a convolution's kernel, and views of leaves
    derived / uses / recomputed      a leaf that is worked on first / pairs of pairs / that come a part at a time
    reader / readouts                who reads a pair / quantities over pairs
    activations layers/ losses/      the steps of the induction, and its base case
    network / outside / mlp          layers with an input and a layout / what arguments from outside must be / a chain
    reverse (loss_leaves checking)   `Cost`: the induction, with leaves of the loss; what needs values to be checked
    rows moments gram projected clipping terms   readouts by family; of each term of a cost
    seeds / ggn / kronecker          seeds other than the loss's δ / what is read at them: diagonals, factors
    curvature / ntk / kfac           products with curvature / the neural tangent kernel / an optimiser
    in_jax / both_modes              layers in anybody's model / in forward mode too
    found / model / examples         pairs found in a trace / anybody's model as a network / examples of anybody's loss
    record / named / chain / kfra    one recorded run / its names / which networks are chains / averages along them
    compare/ testing                 a rule against autodiff: evidence → leaf errors → verdict → report; in a test
    explain/ flow draw/              a run in words, in numbers, in pictures
    fit (course descent state stream optimizer history console)   a descent that goes on where it stopped
    data figure commands/ __main__   the digits; the command line and its figure

Where to change what: a form of pair, `pair` (where it is found in a trace: `found`, `programs/meets`); a readout's
seed, `seeds`; a call that JAX gains, `programs/calls`, and a loop or a branch besides `programs/sites`, `taps`, `names`
and `compare/choices`; a primitive that compares its arguments, `compare/sides`; the rule of what is allowed,
`compare/error`, what passes beyond it, `compare/why`, what fails within it, `compare/hidden`; a pattern's name,
`compare/patterns`; a column of the table of leaves, `compare/table`, of the tables of checks and calls,
`compare/report`; a colour, `paint`; a page's look, `markup`.
"""

from . import data as data
from . import draw as draw
from . import losses as losses
from .activations import ELU as ELU
from .activations import GELU as GELU
from .activations import SELU as SELU
from .activations import Identity as Identity
from .activations import LeakyReLU as LeakyReLU
from .activations import LogSigmoid as LogSigmoid
from .activations import ReLU as ReLU
from .activations import Sigmoid as Sigmoid
from .activations import SiLU as SiLU
from .activations import Softmax as Softmax
from .activations import Softplus as Softplus
from .activations import Tanh as Tanh
from .clipping import ClippedSum as ClippedSum
from .compare import GradientsDisagree as GradientsDisagree
from .compare import Report as Report
from .compare import Verdict as Verdict
from .compare import arrays as arrays
from .compare import compare as compare
from .compare import compare_jvp as compare_jvp
from .compare import compare_vjp as compare_vjp
from .compare import search as search
from .course import Run as Run
from .examples import clipped_grad as clipped_grad
from .examples import per_example_norms as per_example_norms
from .explain import Explanation as Explanation
from .explain import explain as explain
from .fit import fit as fit
from .flow import Flow as Flow
from .flow import flow as flow
from .gather import Gather as Gather
from .ggn import DiagonalGGN as DiagonalGGN
from .ggn import GGNFactors as GGNFactors
from .ggn import GGNGram as GGNGram
from .gram import Gram as Gram
from .history import History as History
from .in_jax import as_function as as_function
from .kfac import kfac as kfac
from .kfra import kfra as kfra
from .kronecker import CorrectedEigenvalues as CorrectedEigenvalues
from .kronecker import Diagonal as Diagonal
from .kronecker import Factors as Factors
from .kronecker import KroneckerFactors as KroneckerFactors
from .kronecker import eigenbases as eigenbases
from .layer import Context as Context
from .layer import InputError as InputError
from .layer import Layer as Layer
from .layers.attention import DotProductAttention as DotProductAttention
from .layers.branches import Fork as Fork
from .layers.branches import Parallel as Parallel
from .layers.branches import Residual as Residual
from .layers.checkpoint import Checkpoint as Checkpoint
from .layers.compose import Sequential as Sequential
from .layers.compressed import Compressed as Compressed
from .layers.dense import Dense as Dense
from .layers.dropout import Dropout as Dropout
from .layers.dropout import StochasticDepth as StochasticDepth
from .layers.edits import Frozen as Frozen
from .layers.edits import Tap as Tap
from .layers.embedding import Embedding as Embedding
from .layers.embedding import Positions as Positions
from .layers.embedding import SinusoidalPositions as SinusoidalPositions
from .layers.function import from_function as from_function
from .layers.glu import GLU as GLU
from .layers.low_rank import LowRank as LowRank
from .layers.multihead import Attention as Attention
from .layers.norm import GroupNorm as GroupNorm
from .layers.norm import InstanceNorm as InstanceNorm
from .layers.norm import LayerNorm as LayerNorm
from .layers.norm import RMSNorm as RMSNorm
from .layers.repeat import Repeat as Repeat
from .layers.reversible import Reversible as Reversible
from .layers.tied import Tied as Tied
from .layout import Layout as Layout
from .mlp import mlp as mlp
from .model import from_model as from_model
from .moments import MeanGradient as MeanGradient
from .moments import Noise as Noise
from .moments import NoiseScale as NoiseScale
from .moments import SignalToNoise as SignalToNoise
from .moments import SumOfSquares as SumOfSquares
from .moments import Variance as Variance
from .network import Network as Network
from .ntk import ntk as ntk
from .pair import Outer as Outer
from .pair import Pair as Pair
from .pair import Sum as Sum
from .patches import Patches as Patches
from .patches import Viewed as Viewed
from .patches import Window as Window
from .projected import MapGradients as MapGradients
from .projected import Projected as Projected
from .reader import Reader as Reader
from .reader import read_gradient as read_gradient
from .reader import read_pair as read_pair
from .reader import readers as readers
from .reader import stacked as stacked
from .readouts import Along as Along
from .readouts import Gradient as Gradient
from .readouts import PerExampleGradients as PerExampleGradients
from .readouts import SquaredNorms as SquaredNorms
from .reverse import Cost as Cost
from .rows import RowGradients as RowGradients
from .rows import Rows as Rows
from .run import run as run
from .run import step as step
from .run import step_back as step_back
from .seeds import Sampled as Sampled
from .state import State as State
from .terms import by_term as by_term
from .testing import assert_gradients as assert_gradients
from .testing import assert_vjp as assert_vjp
from .uses import Nothing as Nothing
from .uses import Several as Several
from .uses import Stack as Stack

__all__ = sorted(
    name
    for name, value in vars().items()
    if not name.startswith("_") and (not isinstance(value, type(losses)) or value in (data, draw, losses))
)
