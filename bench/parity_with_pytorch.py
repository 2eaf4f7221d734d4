"""The same weights in PyTorch and in jbp: the same logits, the same loss, the same gradient of every array.

A small GPT-2 and a small Llama are written here in PyTorch's own layers, with their weights under the published names;
`layout.load` takes their `state_dict()` by the tables of `examples/gpt2.py` and `examples/llama.py`, and
`layout.named` gives jbp's gradient back under the same names. What is off is the norm of an array's difference as a
part of its norm: in float64 between the two, at most 1e-10; in float32 from PyTorch's float64, at most twice what
PyTorch's own float32 is off, or 4 ε.

    pip install -e '.[bench]' && python bench/parity_with_pytorch.py
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout is compared, installed or not
sys.path.insert(1, str(Path(__file__).parents[1] / "examples"))

import gpt2
import harness
import jax
import llama
import numpy as np

import jbp

torch = harness.extra("torch")
nn, functional = torch.nn, torch.nn.functional

BATCH = 3
SMALL = gpt2.Config(vocabulary=96, length=24, width=32, heads=4, blocks=3)
SAME = 1e-10  # in float64


class Compared(NamedTuple):
    """A model of PyTorch's that gives logits `[N, T, K]`, jbp's cost of it in a dtype, and the table of names."""

    name: str
    model: Any
    cost: Any
    names: dict[str, str]
    classes: int


# -- GPT-2, as published ----------------------------------------------------------------------------------------------


class Conv1D(nn.Module):
    """What GPT-2 calls its dense layers: a kernel [in, out]."""

    def __init__(self, inside: int, out: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(inside, out)), nn.Parameter(torch.empty(out))

    def forward(self, x):
        return x @ self.weight + self.bias


class GPT2Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.c_attn, self.c_proj = heads, Conv1D(width, 3 * width), Conv1D(width, width)

    def forward(self, x):
        n, t, width = x.shape
        q, k, v = (part.view(n, t, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).split(width, -1))
        o = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(o.transpose(1, 2).reshape(n, t, width))


class GPT2Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln_1, self.ln_2, self.attn = nn.LayerNorm(width), nn.LayerNorm(width), GPT2Attention(width, heads)
        self.mlp = nn.ModuleDict({"c_fc": Conv1D(width, 4 * width), "c_proj": Conv1D(4 * width, width)})

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](functional.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, config: gpt2.Config):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(config.vocabulary, config.width), nn.Embedding(config.length, config.width)
        self.h = nn.ModuleList(GPT2Block(config.width, config.heads) for _ in range(config.blocks))
        self.ln_f = nn.LayerNorm(config.width)

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.h:
            x = block(x)
        return self.ln_f(x) @ self.wte.weight.T


# -- Llama, as published ----------------------------------------------------------------------------------------------


def turned(x: Any, base: float) -> Any:
    """Rotary positions of `[N, H, T, D]`: pairs are the two halves of D."""
    d = x.shape[-1]
    frequencies = base ** -(torch.arange(0, d, 2, dtype=torch.float64) / d)
    angles = torch.outer(torch.arange(x.shape[-2], dtype=torch.float64), frequencies).repeat(1, 2)
    one, two = x.chunk(2, -1)
    return x * angles.cos().to(x.dtype) + torch.cat([-two, one], -1) * angles.sin().to(x.dtype)


class LlamaAttention(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int):
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.q_proj, self.o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        keys = kv_heads * width // heads
        self.k_proj, self.v_proj = nn.Linear(width, keys, bias=False), nn.Linear(width, keys, bias=False)

    def forward(self, x):
        n, t, _ = x.shape
        by_heads = lambda y, heads: y.view(n, t, heads, -1).transpose(1, 2)
        q = turned(by_heads(self.q_proj(x), self.heads), 10_000.0)
        k, v = turned(by_heads(self.k_proj(x), self.kv_heads), 10_000.0), by_heads(self.v_proj(x), self.kv_heads)
        k, v = (part.repeat_interleave(self.heads // self.kv_heads, 1) for part in (k, v))
        o = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(o.transpose(1, 2).reshape(n, t, -1))


class LlamaMLP(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaBlock(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int):
        super().__init__()
        self.self_attn, self.mlp = LlamaAttention(width, heads, kv_heads), LlamaMLP(width, 2 * width)
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(width, eps=1e-6) for _ in range(2))

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self, classes: int, width: int, heads: int, kv_heads: int, blocks: int):
        super().__init__()
        layers = nn.ModuleList(LlamaBlock(width, heads, kv_heads) for _ in range(blocks))
        inside = {"embed_tokens": nn.Embedding(classes, width), "layers": layers, "norm": nn.RMSNorm(width, eps=1e-6)}
        self.model, self.lm_head = nn.ModuleDict(inside), nn.Linear(width, classes, bias=False)

    def forward(self, tokens):
        x = self.model["embed_tokens"](tokens)
        for block in self.model["layers"]:
            x = block(x)
        return self.lm_head(self.model["norm"](x))


# -- the comparison ---------------------------------------------------------------------------------------------------


def in_torch(of: Compared, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Logits, loss, and the gradient of each array under its published name."""
    of.model.zero_grad()
    logits = of.model(torch.tensor(x, dtype=torch.long))
    loss = functional.cross_entropy(logits.reshape(-1, of.classes), torch.tensor(y, dtype=torch.long).reshape(-1))
    loss.backward()
    gradient = {name: parameter.grad.numpy() for name, parameter in of.model.named_parameters()}
    return {"logits": logits.detach().numpy(), "loss": loss.detach().numpy(), **gradient}


def in_jbp(of: Compared, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """The same by the same names."""
    theta = of.cost.layout.load(of.model.state_dict(), of.names)
    logits = of.cost.network(theta, x)
    if of.cost.tied:  # GPT-2's last product is its loss's business
        logits = logits @ of.cost.layout.unflatten(theta).tokens.table.T
    loss, gradient = of.cost.value_and_grad(theta, x, y)
    return {"logits": np.asarray(logits), "loss": np.asarray(loss), **of.cost.layout.named(gradient, of.names)}


def off(found: np.ndarray, from_: np.ndarray) -> float:
    """The norm of the difference, as a part of the norm."""
    return float(np.linalg.norm(found.astype(np.float64) - from_) / np.linalg.norm(from_))


def models(dtype: Any) -> Iterator[Compared]:
    """Both models with random weights, the same in each dtype."""
    torch_dtype = torch.float64 if dtype == np.float64 else torch.float32
    head = jbp.Dense(llama.CLASSES, bias=False)
    sizes = llama.CLASSES, llama.WIDTH, llama.HEADS, llama.KV_HEADS, llama.BLOCKS
    for name, model, cost, names, classes in (
        ("GPT-2", GPT2(SMALL), gpt2.gpt2(SMALL, dtype=dtype), gpt2.published(SMALL), SMALL.vocabulary),
        ("Llama", Llama(*sizes), llama.llama(head, dtype=dtype), llama.PUBLISHED, llama.CLASSES),
    ):
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():  # gains and biases as well
                start = 1.0 if parameter.ndim == 1 else 0.0
                parameter.copy_(start + torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
        yield Compared(name, model.to(torch_dtype), cost, names, classes)


def main() -> int:
    jax.config.update("jax_enable_x64", True)
    ok = True
    print(f"{'model':7}{'dtype':9}{'arrays':>6}  {'jbp is off by, at most':58}{'PyTorch by':12}{'allowed':9}")
    for wide, narrow in zip(models(np.float64), models(np.float32), strict=True):
        random, length = np.random.default_rng(0), wide.cost.network.input.shape[0]
        x, y = random.integers(0, wide.classes, (2, BATCH, length)).astype(np.int32)
        (true, ours), (theirs32, ours32) = ((in_torch(of, x, y), in_jbp(of, x, y)) for of in (wide, narrow))
        assert set(ours) == set(true)
        rows = {
            "float64": [(name, off(ours[name], true[name]), 0.0, SAME) for name in true],
            "float32": [
                (name, off(ours32[name], true[name]), by, max(2 * by, 4 * np.finfo(np.float32).eps))
                for name, by in ((name, off(theirs32[name], true[name])) for name in true)
            ],
        }
        for dtype, found in rows.items():
            name, ours_off, theirs_off, allowed = max(found, key=lambda row: row[1] / row[3])
            told = f"{theirs_off:<12.1e}" if theirs_off else f"{'–':12}"
            holds = all(row[1] <= row[3] for row in found)
            ok &= holds
            at = f"{ours_off:.1e} at {name}"
            print(f"{wide.name:7}{dtype:9}{len(found):6}  {at:58}{told}{allowed:<9.1e}{'' if holds else 'DIFFERS'}")
    print("The same model, from the same weights." if ok else "These are not the same model.")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
