"""BackPACK's quantities and jbp's, in float64, on the same weights, batch and labels: a chain and a small convolutional
network, ours of the second through `from_model`.

    python bench/parity_with_backpack.py          prints a table, and exits with 1 where two differ

BackPACK speaks of the mean over the batch, C = Σ C_n/N: its gradients of single examples are g_n/N, and so are divided
here. Its Kronecker factors of a kernel [O, I] are [G, A]: what is compared is the product. Of a convolution its G is
ours with `shared="reduce"`, from sums of δ over places, and its A ours with "expand", times the number of places. Its
sampled quantities (DiagGGNMC, KFAC) draw labels of their own, so that theirs and ours agree in expectation: the mean
over many draws is compared within five standard errors. KFRA is of chains alone.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout is compared, installed or not

import harness
import jax
import jax.numpy as jnp
import numpy as np

import jbp

torch = harness.extra("torch")
backpack, theirs = harness.extra("backpack"), harness.extra("backpack.extensions")
nn = torch.nn

N, CLASSES, DRAWS = 6, 4, 100
SAME = 1e-10


class Compared(NamedTuple):
    """A network in both, its input, and for each of PyTorch's parameters, in their order, the name of jbp's leaf and
    the turn of the axes from theirs to ours."""

    name: str
    model: Any
    network: jbp.Network
    x: np.ndarray
    leaves: tuple[tuple[str, tuple[int, ...]], ...]
    places: Any = MappingProxyType({})  # of a convolution's kernel, how many it has in its output

    @property
    def theta(self) -> Any:
        """Their weights as ours."""
        arrays = dict(zip((name for name, _ in self.leaves), self.turned(p.detach() for p in self.model.parameters()),
                          strict=True))  # fmt: skip
        layout = self.network.layout
        return jnp.asarray(np.concatenate([arrays[name].ravel() for name in layout.names]))

    def turned(self, arrays: Any, before: int = 0) -> list[np.ndarray]:
        """Theirs with the axes in our order, behind `before` axes that stay."""
        turns = ((*range(before), *(before + axis for axis in turn)) for _, turn in self.leaves)
        return [a.numpy().transpose(turn) for a, turn in zip(arrays, turns, strict=True)]

    def vector(self, arrays: Any, before: int = 0) -> np.ndarray:
        """Theirs `[*before, *leaf]` of each parameter as ours `[*before, P]`."""
        parts = dict(zip((name for name, _ in self.leaves), self.turned(arrays, before), strict=True))
        rows = [parts[name].reshape(*parts[name].shape[:before], -1) for name in self.network.layout.names]
        return np.concatenate(rows, -1)


def networks() -> Iterator[Compared]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Sigmoid(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    layers = [jbp.Dense(7), jbp.Sigmoid(), jbp.Dense(6), jbp.ReLU(), jbp.Dense(CLASSES)]
    random = np.random.default_rng(0)
    dense = tuple(leaf for i in (0, 2, 4) for leaf in ((f"{i}.w", (1, 0)), (f"{i}.b", (0,))))
    yield Compared("chain", model.double(), jbp.Network(layers, (5,)), random.standard_normal((N, 5)), dense)

    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 2, stride=2), nn.Sigmoid(), nn.Flatten(),
        nn.Linear(12, CLASSES),
    )  # fmt: skip

    def convolved(x: Any, p: Any, stride: int, padding: Any) -> Any:
        axes = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(x, p["w"], (stride, stride), padding, dimension_numbers=axes)
        return out + p["b"]

    def apply(p: Any, x: Any) -> Any:
        h = jax.nn.relu(convolved(jnp.moveaxis(x, 1, -1), p["one"], 1, "SAME"))
        h = jax.nn.sigmoid(convolved(h, p["two"], 2, "VALID"))
        return jnp.moveaxis(h, -1, 1).reshape(len(x), -1) @ p["last"]["w"] + p["last"]["b"]

    kernel, names = (2, 3, 1, 0), ("one", "two", "last")
    shapes = zip(names, ((3, 3, 2, 3), (2, 2, 3, 3), (12, CLASSES)), strict=True)
    params = {name: {"w": jnp.zeros(shape), "b": jnp.zeros(shape[-1])} for name, shape in shapes}
    leaves = tuple((f"{name}.{leaf}", turn) for name in names
                   for leaf, turn in (("w", kernel if name != "last" else (1, 0)), ("b", (0,))))  # fmt: skip
    x = random.standard_normal((N, 2, 4, 4))
    yield Compared(
        "convolutions", model.double(), jbp.from_model(apply, params, (2, 4, 4)), x, leaves, {"one.w": 16, "two.w": 4}
    )


def by_backpack(of: Compared, y: np.ndarray, *extensions: str) -> list[list[Any]]:
    """What BackPACK keeps at each parameter, for each extension by its name."""
    model = backpack.extend(of.model)
    loss = backpack.extend(nn.CrossEntropyLoss())(model(torch.tensor(of.x)), torch.tensor(y))
    made = [getattr(theirs, name)() for name in extensions]
    model.zero_grad()
    with backpack.backpack(*made):
        loss.backward()
    return [[getattr(p, each.savefield) for p in model.parameters()] for each in made]


def kron(factors: list[Any]) -> np.ndarray:
    """Their factors of a parameter as one matrix, of the ravelled parameter."""
    first, *rest = (f.detach().numpy() for f in factors)
    return np.kron(first, rest[0]) if rest else first


def ours_as_theirs(of: Compared, name: str, turn: tuple[int, ...], factors: Any) -> np.ndarray:
    """A ⊗ G with the coordinates of their parameter."""
    A, G = (np.asarray(factor) for factor in factors)
    layout = of.network.layout
    shape = layout.shapes[layout.names.index(name)]
    order = np.arange(np.prod(shape)).reshape(shape).transpose(np.argsort(turn)).ravel()
    return np.kron(A, G)[np.ix_(order, order)]


def rows(of: Compared) -> Iterator[tuple[str, str, float, float]]:
    """(BackPACK's name, jbp's, by how much they differ as a part of the norm, what is allowed)."""
    y = np.random.default_rng(1).integers(0, CLASSES, N)
    cost, theta = jbp.Cost(of.network, jbp.losses.SoftmaxCrossEntropy()), of.theta
    x, labels = jnp.asarray(of.x), jnp.asarray(y, jnp.int32)
    ask = lambda *readouts: cost.measure(theta, x, labels, *readouts)[1]
    off = lambda ours, its: float(np.linalg.norm(np.asarray(ours) - its) / np.linalg.norm(its))

    grads, norms, squares, variance, diagonal, of_each, roots = by_backpack(
        of,
        y,
        "BatchGrad",
        "BatchL2Grad",
        "SumGradSquared",
        "Variance",
        "DiagGGNExact",
        "BatchDiagGGNExact",
        "SqrtGGNExact",
    )
    ours = ask(
        jbp.PerExampleGradients(), jbp.SquaredNorms(), jbp.SumOfSquares(), jbp.Variance(), jbp.DiagonalGGN(),
        jbp.DiagonalGGN(of_each=True), jbp.GGNFactors(),
    )  # fmt: skip
    yield "BatchGrad", "PerExampleGradients / N", off(ours[0] / N, of.vector(grads, 1)), SAME
    yield "BatchL2Grad", "SquaredNorms / N²", off(ours[1] / N**2, sum(part.numpy() for part in norms)), SAME
    yield "SumGradSquared", "SumOfSquares / N²", off(ours[2] / N**2, of.vector(squares)), SAME
    yield "Variance", "Variance / N²", off(ours[3] / N**2, of.vector(variance)), SAME
    yield "DiagGGNExact", "DiagonalGGN", off(ours[4], of.vector(diagonal)), SAME
    yield "BatchDiagGGNExact", "DiagonalGGN(of_each=True) / N", off(ours[5] / N, of.vector(of_each, 1)), SAME
    root = of.vector(roots, 2).reshape(-1, cost.layout.size)
    yield "SqrtGGNExact", "GGNFactors, V Vᵀ", off(ours[6].T @ ours[6], root.T @ root), SAME

    (hessian,) = by_backpack(of, y, "DiagHessian")
    yield "DiagHessian", "hessian_diagonal", off(hessian_diagonal(cost, theta, x, labels), of.vector(hessian)), SAME

    (flr,) = by_backpack(of, y, "KFLR")
    expand, reduce = ask(jbp.KroneckerFactors(), jbp.KroneckerFactors(shared="reduce"))
    for (name, turn), factors in zip(of.leaves, flr, strict=True):
        mine, told, places = expand[name], "KroneckerFactors", of.places.get(name)
        if places:
            mine, told = (mine.A * places, reduce[name].G), f"A of expand × {places} ⊗ G of reduce"
        yield f"KFLR of {name}", told, off(ours_as_theirs(of, name, turn, mine), kron(factors)), SAME

    if not of.places:
        (fra,) = by_backpack(of, y, "KFRA")
        averaged = jbp.kfra(cost, theta, x, labels)
        for (name, turn), factors in zip(of.leaves, fra, strict=True):
            yield f"KFRA of {name}", "kfra", off(ours_as_theirs(of, name, turn, averaged[name]), kron(factors)), SAME

    for name, readout, vector in (
        ("DiagGGNMC", jbp.DiagonalGGN, lambda found: of.vector(found)),
        ("KFAC", jbp.KroneckerFactors, lambda found: kron(found[-2]).ravel()),
    ):
        torch.manual_seed(2)
        draws = np.stack([vector(by_backpack(of, y, name)[0]) for _ in range(DRAWS)])
        exact = ask(readout())
        if name == "KFAC":
            leaf, turn = of.leaves[-2]
            exact = ours_as_theirs(of, leaf, turn, exact[leaf]).ravel()
        error = np.linalg.norm(draws.std(0)) / DRAWS**0.5 / np.linalg.norm(exact)
        yield f"{name}, mean of {DRAWS}", f"{readout.__name__}", off(draws.mean(0), np.asarray(exact)), 5 * error


def hessian_diagonal(cost: jbp.Cost, theta: Any, x: Any, y: Any) -> Any:
    return jnp.diagonal(cost.hvp(theta, x, y, jnp.eye(cost.layout.size)))


def main() -> int:
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_rank_promotion", "allow")
    ok = True
    print(f"{'network':14}{'BackPACK':24}{'jbp':32}{'off by':>10}{'allowed':>10}")
    for of in networks():
        for its, mine, by, allowed in rows(of):
            ok &= by <= allowed
            print(f"{of.name:14}{its:24}{mine:32}{by:10.1e}{allowed:10.1e}{'' if by <= allowed else '  DIFFERS'}")
    print("The same quantities." if ok else "Not the same quantities.")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
