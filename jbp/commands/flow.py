"""Where the gradient lives in a network on the shipped digits, layer by layer.

`jbp flow` prints a table of outputs, deltas, gradients and updates, and what stands out in it: vanishing and exploding
deltas, dead units. The update is the first of --optimizer on the gradient of all digits.
Try `jbp flow --widths 30,30,30,30,30,30`.
"""

from dataclasses import dataclass

import jax

from .. import paint
from ..flow import flow
from . import options


@dataclass(frozen=True)
class Settings(options.Descending):
    """What the command line asks for."""

    out: str | None = options.file("flow.svg", "draw it as well", options.PLOTS)
    json: str | None = options.file("flow.json", "write the table and the verdict")


def run(settings: Settings) -> int:
    """Print the table; the exit code."""
    if settings.out:
        paint.needed()
    with settings.in_precision():
        cost, theta, x, y, *_ = settings.job()
        descent = settings.transformation()
        update, _ = descent.update(jax.jit(cost.grad)(theta, x, y), descent.init(theta), theta)
        found = flow(cost, theta, x, y, update)
    print(f"The network {settings.name}, {settings.activation}, {settings.loss} loss: C = {found.cost:.6g}")
    print(f"Updates by {settings.optimizer} at learning rate {settings.learning_rate:g}\n\n{found}")
    if settings.json:
        options.write(settings.json, found.to_json())
    if settings.out:
        paint.save(found.figure(), settings.out)
    return 0
