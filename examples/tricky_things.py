"""The five things that make backpropagation tricky, each as a few lines that run, with their numbers asserted.

They are those of the text that jbp began from, "Tricky things about backpropagation". The network has layers of
4, 5, 3 and 2 neurons, so L = 4; ℓ counts from 1, the input layer.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import jbp

WIDTHS = (4, 5, 3, 2)
NETWORK = jbp.mlp(*WIDTHS)
COST = jbp.Cost(NETWORK, jbp.losses.HalfSquaredError())
LAYOUT = NETWORK.layout
THETA = NETWORK.init(jax.random.key(0))
X = jnp.array([[0.9, -0.4, 0.2, 0.7]])  # one example
Y = jnp.array([[1.0, 0.0]])


def close(a, b, relative=1e-5):
    """Whether two arrays agree, up to float32 rounding of numbers of their size."""
    return bool(np.abs(np.subtract(a, b)).max() <= relative * np.abs(b).max())


def surgery():
    """1. The usual graph has no weights as nodes, so one must operate on it before the chain rule can speak of them.

    In the usual graph the nodes are activations: its chain rule ends at x. With a node for each weight and bias, the
    same C is a function of θ, and the chain rule ends there.
    """
    of_the_usual_graph = jax.grad(lambda x: COST(THETA, x, Y))(X)
    after_surgery = COST.grad(THETA, X, Y)
    assert of_the_usual_graph.shape == (1, 4)  # a number for each pixel: useless for descent
    assert after_surgery.shape == (LAYOUT.num_weights + LAYOUT.num_biases,) == (51,)
    assert close(after_surgery, jax.grad(COST)(THETA, X, Y))
    print(f"1. ∂C/∂x has {of_the_usual_graph.size} numbers; with the weights as nodes, ∂C/∂θ has {after_surgery.size}")


def sequence_of_costs():
    """2. The cost is not one function but a sequence: for each layer ℓ, C as a function of that layer's outputs a^ℓ.

    C_ℓ is the network above layer ℓ, and then the loss. C_L is the loss alone. C_ℓ = C_{ℓ+1} ∘ (layer ℓ+1): the
    derivative of each comes from that of the one before it, and that is the induction.
    """
    layers, params = NETWORK.layers, LAYOUT.unflatten(THETA)
    L = LAYOUT.num_layers

    def forward(a, first, last):  # from the outputs of layer `first` to those of layer `last`, in the text's ℓ
        backs = []
        for i in range(2 * (first - 1), 2 * (last - 1)):  # a dense layer and a sigmoid for each ℓ
            a, back = jbp.run(layers[i], params[i], a)
            backs.append(back)
        return a, backs

    def cost_of(l):
        return lambda a: COST.loss.value(forward(a, l, L)[0], Y).sum()

    output, backs = forward(X, 1, L)
    delta, checked = COST.loss.delta(output, Y), 0  # base case: the derivative of C_L
    for l in range(L, 0, -1):
        a = forward(X, 1, l)[0]
        assert close(delta, jax.grad(cost_of(l))(a))
        checked += 1
        if l > 1:  # inductive step: the derivative of C_{l-1} from that of C_l
            for i in (2 * (l - 1) - 1, 2 * (l - 1) - 2):
                delta, _ = backs[i](delta)
    numbers = ", ".join(map(str, WIDTHS[::-1]))
    print(f"2. {checked} cost functions, C_{L} … C_1, of {numbers} numbers each: every gradient checked")


def one_partial_derivative():
    """3. For one weight it is not the whole chain rule, but a single partial derivative of a composition.

    Only z^ℓ_j depends on w^ℓ_{j←k}. So with g(w) = z^ℓ_j, in one number, and f = C as a function of z^ℓ_j, in one
    number, ∂C/∂w = (f ∘ g)′(w) = f′(g(w)) · g′(w) = δ^ℓ_j · a^{ℓ-1}_k.
    """
    symbol = "w^2_{3←1}"
    i = LAYOUT.index(symbol)
    composition = lambda w: COST(THETA.at[i].set(w), X, Y)
    pair = COST.pairs(THETA, X, Y)["0.w"]
    delta, a = pair.delta[0, 0, 3], pair.a[0, 0, 1]
    assert a == X[0, 1]  # g′(w): what the weight meets
    assert close(jax.grad(composition)(THETA[i]), delta * a)
    assert close(COST.grad(THETA, X, Y)[i], delta * a)
    print(f"3. ∂C/∂{symbol} = δ · a = {delta:.6f} · {a:.1f} = {delta * a:.6f}, one product of two numbers")


def what_stays_fixed():
    """4. C(W, b; x) is a function of W and b, with x fixed; the usual notation hides it.

    Both gradients exist, of different types. A step along one changes the network; along the other, what it is shown.
    """
    of_theta, of_x = jax.grad(COST, 0)(THETA, X, Y), jax.grad(COST, 1)(THETA, X, Y)
    assert of_theta.shape == THETA.shape != X.shape == of_x.shape
    assert close(of_theta, COST.grad(THETA, X, Y))
    before = COST(THETA, X, Y)
    learned, fooled = COST(THETA - 5 * of_theta, X, Y), COST(THETA, X - 5 * of_x, Y)
    assert learned < before  # the network has learned
    assert fooled < before  # the network is what it was, and has another image before it
    print(
        f"4. C = {before:.6f}; a step of θ, in R^{THETA.size}, gives {learned:.6f}; a step of x, in R^4, {fooled:.6f}"
    )


def what_the_induction_reuses():
    """5. It is an induction, so that layer ℓ uses only later derivatives and values of the forward pass.

    The chain rule alone gives ∂C/∂w as a sum over all paths from that weight up to the cost: a product of weights and
    slopes for each path. The recursion computes each δ once and uses it for all that is below.
    """
    naive, used = path_sums()
    assert close(naive, COST.grad(THETA, X, Y))
    assert used == multiplications_by_paths(WIDTHS) == 1022
    assert multiplications_by_recursion(WIDTHS) == 72
    print(f"5. by paths {used} multiplications, by the recursion {multiplications_by_recursion(WIDTHS)}; and growing:")
    counts = []
    for depth in (2, 4, 8, 16):  # layers of weights, of 10 neurons each
        widths = (10,) * (depth + 1)
        counts.append((multiplications_by_paths(widths), multiplications_by_recursion(widths)))
        paths, recursion = counts[-1]
        print(f"   {depth:2} layers: {paths:.1e} against {recursion:,}, {paths / recursion:.0e} times as many")
    assert all(recursion == 210 * depth - 100 for (_, recursion), depth in zip(counts, (2, 4, 8, 16), strict=True))
    assert counts[-1][0] > 1e16  # ten times as many for each layer more
    return counts


def path_sums():
    """(∇C by summing over paths, the multiplications that it took), in NumPy, with nothing kept from path to path."""
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    L, count = len(WIDTHS), 0
    leaves = LAYOUT.unflatten(THETA)
    w = {l: np.asarray(LAYOUT.matrix(THETA, l), np.float64) for l in range(2, L + 1)}
    a, slope = {1: np.asarray(X[0], np.float64)}, {}
    for l in range(2, L + 1):
        a[l] = sigmoid(w[l] @ a[l - 1] + np.asarray(leaves[2 * (l - 2)].b, np.float64))
        slope[l] = a[l] * (1 - a[l])

    def over_paths(l, j, *factors):  # from neuron j of layer l to every output
        nonlocal count
        total = 0.0
        for path in itertools.product((j,), *map(range, WIDTHS[l:])):
            product = a[L][path[-1]] - float(Y[0, path[-1]])  # ∂C/∂a^L
            slopes = [slope[m][neuron] for m, neuron in enumerate(path, start=l)]
            weights = [w[m][above, below] for m, (below, above) in enumerate(itertools.pairwise(path), start=l + 1)]
            for factor in (*slopes, *weights, *factors):
                product, count = product * factor, count + 1
            total += product
        return total

    gradient = np.zeros(THETA.size)
    for l in range(2, L + 1):
        for j in range(WIDTHS[l - 1]):
            gradient[LAYOUT.index(f"b^{l}_{j}")] = over_paths(l, j)
            for k in range(WIDTHS[l - 2]):
                gradient[LAYOUT.index(f"w^{l}_{{{j}←{k}}}")] = over_paths(l, j, a[l - 1][k])
    return gradient, count


def multiplications_by_paths(widths):
    """Exactly what `path_sums` uses: for each weight and bias, each path's length in slopes and weights, and a."""
    count = 0
    for l, (below, width) in enumerate(itertools.pairwise(widths), start=1):
        paths, factors = width * np.prod(widths[l + 1 :], dtype=object), 2 * (len(widths) - l) - 1
        count += below * paths * (factors + 1) + paths * factors
    return int(count)


def multiplications_by_recursion(widths):
    """Of the reverse pass: δ · f′ at each neuron, w · δ at each weight above the first layer's, a · δ at each weight.

    For a bias there is nothing to multiply.
    """
    kernels = [below * width for below, width in itertools.pairwise(widths)]
    return sum(widths[1:]) + sum(kernels[1:]) + sum(kernels)


def main():
    surgery()
    sequence_of_costs()
    one_partial_derivative()
    what_stays_fixed()
    return what_the_induction_reuses()


if __name__ == "__main__":
    main()
