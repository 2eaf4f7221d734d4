"""θ from arrays that others have named, and the way back: every place a table can say, and wrong calls."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_told, over_calls

import jbp


def stacked_net(**settings) -> jbp.Network:
    block = jbp.Residual(jbp.Attention(2, bias=False))
    return jbp.Network({"first": jbp.Dense(4), "blocks": jbp.Repeat(block, 2)}, (3, 2), **settings)


PROJECTIONS = "blocks.layer.layer"  # of the stacked attention: the leaves q.w, k.w, v.w, out.w, each [2, 4, 4]
FUSED = {f"{PROJECTIONS}.{part}.w": f"h.{{i}}.qkv[:, {4 * i}:{4 * i + 4}]" for i, part in enumerate("qkv")}
NAMES = {"first.w": "in.weight.T", "first.b": "in.bias", f"{PROJECTIONS}.out.w": "h.{i}.out.T", **FUSED}


def published() -> dict[str, np.ndarray]:
    """Arrays by the names of the table, each of other numbers."""
    shapes = {"in.weight": (4, 2), "in.bias": (4,)}
    shapes |= {f"h.{i}.{name}": shape for i in range(2) for name, shape in (("qkv", (4, 12)), ("out", (4, 4)))}
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_each_leaf_has_its_part_of_its_arrays():
    layout, source = stacked_net().layout, published()
    theta = layout.load(source, NAMES)
    assert (theta.dtype, theta.shape) == (jnp.float32, (layout.size,))
    leaves = dict(zip(layout.names, layout.leaves(theta), strict=True))
    assert len(leaves) == 6
    np.testing.assert_array_equal(leaves["first.w"], source["in.weight"].T)
    np.testing.assert_array_equal(leaves["first.b"], source["in.bias"])
    for i in range(2):
        np.testing.assert_array_equal(leaves[f"{PROJECTIONS}.out.w"][i], source[f"h.{i}.out"].T)
        for j, part in enumerate("qkv"):
            np.testing.assert_array_equal(
                leaves[f"{PROJECTIONS}.{part}.w"][i], source[f"h.{i}.qkv"][:, 4 * j : 4 * j + 4]
            )


def test_the_way_back_gives_the_same_arrays():
    layout, source = stacked_net().layout, published()
    back = layout.named(layout.load(source, NAMES), NAMES)
    assert set(back) == set(source)
    for name, array in back.items():
        np.testing.assert_array_equal(array, source[name])
        assert array.flags.c_contiguous  # as safetensors needs it


def test_without_a_table_a_leaf_has_its_own_name():
    net = stacked_net()
    theta = net.init(jax.random.key(0))
    np.testing.assert_array_equal(net.layout.load(net.layout.named(theta)), theta)
    np.testing.assert_array_equal(net.layout.load(net.layout.unflatten(theta)), theta)  # the tree's paths are names
    assert tuple(net.layout.named(theta)) == net.layout.names
    odd = jbp.Layout.of({"q.T": np.zeros((2, 3)), "a[0:1]": np.zeros(2), "{i}": np.zeros(1)})
    np.testing.assert_array_equal(odd.load(odd.named(np.arange(9.0))), np.arange(9.0))


def test_a_part_of_theta_is_loaded_over_the_rest():
    layout = stacked_net().layout
    part = {"first.b": np.ones(4)}
    theta = layout.load(layout.named(np.zeros(layout.size, np.float32)) | part)
    assert theta.sum() == layout.unflatten(theta).first.b.sum() == 4


def test_names_may_be_nested_and_of_many_kinds_of_arrays():
    layout = jbp.Layout.of({"w": np.zeros((2, 3)), "b": np.zeros(3)})
    source = {"model": {"proj": {"w": jnp.ones((2, 3), jnp.bfloat16)}}, "b": np.full(3, 2, np.float16)}
    theta = layout.load(source, {"w": "model.proj.w"})
    assert theta.dtype == layout.dtype
    assert list(theta) == [2] * 3 + [1] * 6


def test_a_layout_of_float64_loses_no_digit(x64: None):
    layout = jbp.Network([jbp.Dense(2)], (3,)).layout
    source = {"0.w": np.full((3, 2), 1 / 3), "0.b": np.full(2, 1 / 7)}
    theta = layout.load(source)
    assert theta.dtype == np.float64
    assert set(map(float, theta)) == {1 / 3, 1 / 7}


def test_two_letters_count_two_axes_and_a_function_makes_the_rest():
    layout = jbp.Layout.of({"stack": np.zeros((2, 3, 4)), "conv": np.zeros((3, 3, 2, 5))})
    source = {f"g.{i}.{j}": np.full(4, 10.0 * i + j) for i in range(2) for j in range(3)}
    source["conv.weight"] = np.arange(90.0).reshape(5, 2, 3, 3)
    names = {"stack": "g.{i}.{j}", "conv": lambda get: get("conv.weight").transpose(2, 3, 1, 0)}
    tree = layout.unflatten(layout.load(source, names))
    np.testing.assert_array_equal(tree["stack"][..., 0], [[0, 1, 2], [10, 11, 12]])
    np.testing.assert_array_equal(tree["conv"], source["conv.weight"].transpose(2, 3, 1, 0))
    with pytest.raises(jbp.InputError, match="leaf conv is made by a function, which has no way back"):
        layout.named(np.zeros(layout.size), names)


def test_what_no_leaf_needs_is_ignored_by_name():
    source = published() | {"h.0.mask": np.ones(3), "h.1.mask": np.ones(3, bool)}
    theta = stacked_net().layout.load(source, NAMES, ignore=["h.*.mask"])
    np.testing.assert_array_equal(theta, stacked_net().layout.load(published(), NAMES))


def test_from_a_file_and_from_a_folder(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy", reason="it needs safetensors: pip install 'jbp[checkpoint]'")
    layout, source = stacked_net().layout, published()
    theta = layout.load(source, NAMES)
    safetensors.save_file(layout.named(theta, NAMES), tmp_path / "all.safetensors")
    np.testing.assert_array_equal(layout.load(tmp_path / "all.safetensors", NAMES), theta)
    (tmp_path / "parts").mkdir()
    for i, (name, array) in enumerate(source.items()):
        safetensors.save_file({name: array.astype(jnp.bfloat16)}, tmp_path / "parts" / f"{i}.safetensors")
    rounded = {name: array.astype(jnp.bfloat16) for name, array in source.items()}
    np.testing.assert_array_equal(layout.load(str(tmp_path / "parts"), NAMES), layout.load(rounded, NAMES))
    (tmp_path / "cut").write_bytes((tmp_path / "all.safetensors").read_bytes()[:40])
    with pytest.raises(jbp.InputError, match=r"layout.load: .*cut is no safetensors file: .* Save it again"):
        layout.load(tmp_path / "cut", NAMES)
    with pytest.raises(
        jbp.InputError, match=r"a safetensors file, or a folder of them, got '.*nowhere'\. Check the path"
    ):
        layout.load(tmp_path / "nowhere", NAMES)


def test_without_safetensors_the_error_has_the_command(tmp_path, monkeypatch):
    (tmp_path / "x.safetensors").touch()
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(jbp.InputError, match=r"which is missing. Run pip install 'jbp\[checkpoint\]'"):
        stacked_net().layout.load(tmp_path / "x.safetensors")


EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_names_of_gpt2_are_those_that_are_published():
    """The shapes of `gpt2` at Hugging Face, at another width: their Conv1D has kernels [in, out]."""
    example = runpy.run_path(str(EXAMPLES / "gpt2.py"))
    config = example["Config"](vocabulary=7, length=5, width=4, heads=2, blocks=3)
    layout = example["gpt2"](config).layout
    shapes = {"wte.weight": (7, 4), "wpe.weight": (5, 4), "ln_f.weight": (4,), "ln_f.bias": (4,)}
    for i in range(3):
        dense = {"attn.c_attn": (4, 12), "attn.c_proj": (4, 4), "mlp.c_fc": (4, 16), "mlp.c_proj": (16, 4)}
        for name, shape in ({"ln_1": (4,), "ln_2": (4,)} | dense).items():
            shapes |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[-1:]}
    held_by(layout, example["published"](config), shapes, {"h.0.attn.bias": (1, 1, 5, 5)}, example["MASKS"])


def test_the_names_of_llama_are_those_that_are_published():
    """Kernels [out, in], and fewer heads of keys and values than of queries."""
    example = runpy.run_path(str(EXAMPLES / "llama.py"))
    classes, width, hidden, blocks = example["CLASSES"], example["WIDTH"], 2 * example["WIDTH"], example["BLOCKS"]
    keys = width // example["HEADS"] * example["KV_HEADS"]
    layout = example["llama"](jbp.Dense(classes, bias=False)).layout
    shapes = {f"{name}.weight": (classes, width) for name in ("model.embed_tokens", "lm_head")}
    shapes["model.norm.weight"] = (width,)
    for i in range(blocks):
        block = {"input_layernorm": (width,), "post_attention_layernorm": (width,), "mlp.down_proj": (width, hidden)}
        block |= {f"mlp.{name}_proj": (hidden, width) for name in ("gate", "up")}
        block |= {
            f"self_attn.{name}_proj": (n, width) for name, n in zip("qkvo", (width, keys, keys, width), strict=True)
        }
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in block.items()}
    held_by(layout, example["PUBLISHED"], shapes, {}, ())


def held_by(layout: jbp.Layout, names: dict, shapes: dict, besides: dict, ignore) -> None:
    """A checkpoint of these shapes fills the layout, and comes back."""
    random = np.random.default_rng(0)
    source = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    theta = layout.load(source | {name: np.ones(shape) for name, shape in besides.items()}, names, ignore)
    back = layout.named(theta, names)
    assert {name: array.shape for name, array in back.items()} == shapes
    assert all(np.array_equal(array, source[name]) for name, array in back.items())
    assert layout.size == sum(array.size for array in source.values())


class OnAnotherDevice:
    shape, dtype = (4,), np.dtype(np.float32)

    def __array__(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


# -- wrong calls ------------------------------------------------------------------------------------------------------


def load(change: dict | None = None, names: object = None, without: str = "", **settings):
    source = {name: array for name, array in published().items() if name != without}
    return stacked_net().layout.load(
        source | (change or {}), names if isinstance(names, list) else NAMES | (names or {}), **settings
    )


def back(names: dict):
    layout = stacked_net().layout
    return layout.named(np.zeros(layout.size, np.float32), NAMES | names)


Q = f"{PROJECTIONS}.q.w"
WRONG_CALLS: list[tuple[Callable, str]] = [
    (lambda: load(without="in.bias"),
     "layout.load: 1 of 6 arrays are not in the source: in.bias (leaf first.b). Give names={leaf: published name}, or "
     "put them into the source."),
    (lambda: load({"in.biases": np.ones(4, np.float32)}, without="in.bias"),
     "layout.load: 1 of 6 arrays are not in the source: in.bias (leaf first.b). The nearest name is "
     "in.biases. Give […]"),
    (lambda: stacked_net().layout.load(published()),
     "layout.load: 6 of 6 arrays are not in the source: first.w (leaf first.w), first.b (leaf first.b), "
     f"{PROJECTIONS}.q.w (leaf {PROJECTIONS}.q.w), {PROJECTIONS}.k.w (leaf {PROJECTIONS}.k.w), …. […]"),
    (lambda: load({"h.2.qkv": np.ones(2), "h.2.out": np.ones(2)}),
     "layout.load: 2 of 8 arrays belong to no leaf: h.2.out, h.2.qkv. Give names={leaf: published name}; what the "
     "network has no place for, name in ignore=, as in ignore=['*.attn.bias']."),
    (lambda: load({"in.weight": np.ones((2, 4))}),
     "layout.load: leaf first.w: expected [2, 4], got [4, 2] from in.weight, of an array [2, 4]. Write .T behind its "
     "name."),
    (lambda: load({"h.1.qkv": np.ones((4, 10))}),
     f"layout.load: leaf {PROJECTIONS}.v.w: expected [4, 4], got [4, 2] from h.1.qkv, of an array [4, 10]. Check the "
     "settings of the network and the table of names."),
    (lambda: load({"in.bias": np.ones(5)}),
     "layout.load: leaf first.b: expected [4], got [5] from in.bias. Check the settings of the network and the "
     "table of names."),
    (lambda: load({"in.bias": np.ones(4, int)}),
     "layout.load: expected floats, in.bias is int64[4]. Cast it, or give another name."),
    (lambda: load({"in.bias": OnAnotherDevice()}),
     "layout.load: in.bias does not become a NumPy array: can't convert cuda:0 device type tensor to numpy. Of a "
     "PyTorch tensor pass tensor.detach().float().cpu().numpy()."),
    (lambda: load(names={"frist.w": "in.weight"}),
     "layout.load: names has 'frist.w', which is no leaf of this layout. The nearest name is first.w. Its leaves are "
     "layout.names."),
    (lambda: load(names={"first.b": lambda get: get("in.bia")}, ignore="in.bias"),
     "layout.load: get('in.bia') asks for what is not in the source. The nearest name is in.bias. […]"),
    (lambda: load(names={"first.b": lambda get: get("in.bias")[:3]}),
     "layout.load: leaf first.b: expected [4], got [3] from its function. Check the settings […]"),
    (lambda: load(names={"first.b": 3}),
     "layout.load: leaf first.b: expected a published name or a function of get, got 3. As in 'h.{i}.attn.weight', "
     "'h.{i}.attn.weight[:, 0:64]' or 'h.{i}.attn.weight.T'."),
    (lambda: load(names={Q: "h.{i}.qkv[0]"}),
     f"layout.load: leaf {Q}: expected a published name or a function of get, got 'h.{{i}}.qkv[0]'. As in […]"),
    (lambda: load(names={"first.b": "in.{i}.{j}"}),
     "layout.load: leaf first.b has shape [4], and 'in.{i}.{j}' counts over 2 axes. Leave a letter in braces out."),
    (lambda: load(names=["first.w"]), "layout.load: names must be {leaf: published name}, got […]"),
    (lambda: stacked_net().layout.load(np.ones(3, np.float32)),
     "layout.load: expected arrays by name, or the path of a safetensors file, got float32[3]. As in {'wte.weight': "
     "array}."),
    (lambda: stacked_net().layout.load({"a": "b"}),
     "layout.load: expected arrays by name, or the path of a safetensors file, got 'b'. As in {'wte.weight': array}."),
    (lambda: stacked_net().layout.load({"a.b": np.ones(2), "a": {"b": np.ones(2)}}),
     "layout.load: two arrays of the source have one name, as 'a.b' and {'a': {'b': …}} have."),
    (lambda: back({Q: "h.{i}.qkv[:, 4:8]"}),
     f"layout.named: leaves {Q}, {PROJECTIONS}.k.w, {PROJECTIONS}.v.w are the parts of h.0.qkv [4, 12], and overlap. "
     "Check the slices."),
    (lambda: back({Q: "h.{i}.q"}),
     f"layout.named: leaves {PROJECTIONS}.k.w, {PROJECTIONS}.v.w are the parts of h.0.qkv [4, 12], and leave a gap. "
     "Check the slices."),
    (lambda: back({"first.b": "in.bias[0:4, 0:1]"}),
     "layout.named: leaf first.b, a block [4], is no part of in.bias. Check the slice."),
]  # fmt: skip


@pytest.mark.usefixtures("as_for_a_user")
@over_calls(WRONG_CALLS)
def test_a_wrong_call_is_told_what_to_do(call: Callable, message: str):
    assert_told(call, message)
