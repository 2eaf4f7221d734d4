"""Strict settings for every test: nothing is promoted silently, annotations are checked at run time, 8 devices.

Warnings are errors too (`pyproject.toml`). Eight simulated CPU devices stand in for a machine with several, and the
tests run on these, whatever else JAX finds: `JAX_PLATFORMS=cuda,cpu python -m pytest tests/test_laws.py` is how to ask
an accelerator for the laws. A program that has been compiled once is taken from a folder, which starts empty and ends
with the run: each process of the run has its own, and the processes that its tests start share it.
"""

import gc
import importlib.metadata
import itertools
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share an accelerator
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",  # the tests compile much and compute little
        "--xla_llvm_disable_expensive_passes=true",
    ]
)
if OLD := importlib.metadata.version("jaxlib").startswith("0.10."):  # compiles in half the time; newer ones lack it
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

if "JAX_COMPILATION_CACHE_DIR" not in os.environ or "JBP_TESTS_CACHE" in os.environ:  # not the user's own
    os.environ["JBP_TESTS_CACHE"] = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jbp-tests-")
    os.environ |= {
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",  # a smaller one is compiled sooner than it is read
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

import jax
import jaxtyping
import pytest

if OLD:  # makes an MLIR context for each program, where newer ones keep it for ten, which is a quarter of a small one
    from jax._src.interpreters import mlir

    kept, make = [], mlir.make_ir_context

    def make_ir_context():
        if not kept:
            kept.extend([make()] * 10)
        return kept.pop()

    mlir.make_ir_context = make_ir_context

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Annotations are checked at run time, which costs a sixth of the suite's time: in the modules that compute, in all of
# them with JBP_CHECK_TYPES=all, as .ci/run does once, in none with =none. Before the first import of jbp. An int is a
# float there, as the annotations (PEP 484) and mypy have it.
CORE = "layer layout pair recomputed reader run activations layers losses network readouts in_jax both_modes"
CORE += " loss_leaves checking reverse"
CHECKED = {"all": ["jbp"], "core": [f"jbp.{name}" for name in CORE.split()], "none": []}
checked = CHECKED[os.environ.get("JBP_CHECK_TYPES", "core")]
jaxtyping.install_import_hook(checked, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


# Tracing makes many objects and few circles, for which Python's own thresholds look an eighth of the time.
gc.set_threshold(100_000, 20, 100)


MAPS = Path("/proc/self/maps")
MOST_MAPS = 30_000  # of the 65,530 that Linux gives a process; XLA takes some for each program, and dies without


TESTS = itertools.count(1)


def pytest_runtest_teardown():
    """Compiled programs are let go before the process has more of them than it may hold."""
    if next(TESTS) % 20 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


def pytest_unconfigure():
    if "JBP_TESTS_CACHE" in os.environ:
        shutil.rmtree(os.environ["JBP_TESTS_CACHE"], ignore_errors=True)


@pytest.fixture
def x64():
    """Float64 decides: the test runs with JAX's x64 on."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def as_for_a_user():
    """For tests of wrong calls: the type checker and the strict promotion are off, as they are for a user."""
    jaxtyping.config.update("jaxtyping_disable", True)
    with jax.numpy_dtype_promotion("standard"):
        yield
    jaxtyping.config.update("jaxtyping_disable", False)
