"""A function traced once at given arguments: compiled as it is, and run in float64 by the same trace."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from ..errors import InputError, first_line, said
from .arguments import Arguments
from .calls import inner_jaxprs
from .clock import Measured
from .replay import DEBUG, OPAQUE, equations, quiet, recast, to_double

GIVEN_BACK = 0.2  # seconds in which a run that has ended gives back its memory
SMALL = 2**18  # elements of all arguments, up to which compiling takes longer than running
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


@cache
def quick(backend: str) -> dict[str, Any]:
    """Options of a compiler that hurries: those of QUICK that it knows; none where it isn't the CPU's."""
    return {name: value for name, value in QUICK.items() if backend == "cpu" and _is_known(name, value)}


def _is_known(option: str, value: Any) -> bool:
    """Whether the compiler takes an option: one that it doesn't know is an error."""
    try:
        jax.jit(lambda: 0, compiler_options={option: value})()
    except Exception:  # of whatever kind this XLA raises
        return False
    return True


def quickly(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function jitted for a few runs."""
    return jax.jit(function, compiler_options=quick(jax.default_backend()))


class ClosesOver(InputError):
    """A program holds a value of another trace, which has ended."""

    def __init__(self, who: str):
        super().__init__(
            f"{who} closes over a traced value of the function around it, which jax.grad of a jitted function "
            "can't do either. Make it an argument of the rule."
        )


class Program:
    """`function(*args)` as a program of the arrays in `args`.

    Raises `InputError` where it can't be traced, or does something besides returning arrays. `who` is for messages.
    `hurry`: it is compiled in a quarter of the time, and runs slower, for what is run a few times.
    """

    def __init__(self, who: str, function: Callable[..., Any], args: Any, hurry: bool = False):
        self.who, self.hurry, self.notes = who, hurry, list[str]()
        self.instead: Callable[..., Any] | None = None  # the result in float64 by other means, if memory runs out
        self.derived: dict[Any, Any] = {}  # other programs made of this one, compiled once
        self.options = quick(jax.default_backend()) if hurry else None
        self.arguments = arguments = Arguments.of(args)
        if any(
            isinstance(a, jax.Array) and not isinstance(a, jax.core.Tracer) and a.is_deleted() for a in arguments.arrays
        ):
            raise InputError(
                f"{who.split(':')[0]}: an argument's array has been deleted, perhaps donated. Make it anew."
            )
        if any(isinstance(a, jax.core.Tracer) for a in arguments.arrays):
            raise InputError(
                f"{who.split(':')[0]}: it reads values, and under jit there are none. Call it outside jit."
            )
        started = time.perf_counter()
        try:
            self._traced = jax.jit(lambda *arrays: function(*arguments.filled(arrays))).trace(*arguments.arrays)
            if any(e.primitive.name in DEBUG for e in equations(self._traced.jaxpr)):
                self._traced = self._without_output()
        except InputError:
            raise
        except jax.errors.UnexpectedTracerError as error:
            raise ClosesOver(who) from error
        except Exception as error:
            raise InputError(f"{who} raises {said(error)}") from error
        self._tracing = time.perf_counter() - started
        self.out: Any = self._traced.out_info
        self.jaxpr: ClosedJaxpr = self._traced.jaxpr
        more = len(self.jaxpr.jaxpr.invars) > len(arguments.arrays)  # what is not an argument, and not known either
        if more or any(isinstance(value, jax.core.Tracer) for value in _held(self.jaxpr)):
            raise ClosesOver(who)
        if kept := sorted({e.primitive.name for e in equations(self.jaxpr)} & set(OPAQUE)):
            self.notes.append(f"{who} holds {', '.join(kept)}, which keeps its own precision in the float64 shadow.")
        if effects := sorted(str(e) for e in self.jaxpr.effects if "debug" not in str(e).lower()):
            raise InputError(
                f"{who} has side effects ({', '.join(effects)}), and it is run many times. Take them out to compare."
            )

    def _without_output(self) -> Any:
        """Traced again, without what `jax.debug` prints: it is run many times."""
        run, structure = quiet(self._traced.jaxpr), jax.tree.structure(self._traced.out_info)
        return jax.jit(lambda *arrays: jax.tree.unflatten(structure, run(*arrays))).trace(*self.arguments.arrays)

    @cached_property
    def compiled(self) -> tuple[Callable[..., Any], int, float, float | None]:
        """(program, temporary bytes, seconds to trace and compile, FLOPs)."""
        started = time.perf_counter()
        try:
            program = self._traced.lower().compile(self.options)
        except Exception as error:
            raise InputError(f"{self.who} can't be compiled: {said(error)}") from error
        memory: Any = program.memory_analysis()
        cost: Any = program.cost_analysis()
        flops = (cost[0] if isinstance(cost, list) else cost or {}).get("flops")
        return program, int(memory.temp_size_in_bytes), self._tracing + time.perf_counter() - started, flops

    def __call__(self, *arrays: Any) -> Any:
        """The result as the function gives it."""
        program = self.compiled[0]
        run = lambda: jax.block_until_ready(program(*arrays))  # an error may come as late as that
        try:
            try:
                return run()
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
            gc.collect()  # what another run held may not have been given back yet
            time.sleep(GIVEN_BACK)
            return run()
        except Exception as error:
            raise InputError(f"{self.who} fails as it runs: {first_line(error)}") from error

    def exact(self, *arrays: Any) -> Any:
        """The result in float64, in the same structure, as NumPy arrays."""
        with jax.enable_x64(True):
            try:
                leaves = self._wide(self.jaxpr.consts, arrays)
                leaves = jax.device_get(leaves)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise InputError(f"{self.who} fails in float64: {first_line(error)}") from error
                if self.instead is not None:
                    return self.instead(self, arrays)
                leaves = self._step_by_step(arrays)
        return jax.tree.unflatten(jax.tree.structure(self.out), leaves)

    @cached_property
    def _wide(self) -> Callable[..., list[Any]]:
        return quickly(self.in_float64)

    def in_float64(self, consts: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
        """The flat result in float64; to be traced with x64 on."""
        inner = self.jaxpr.jaxpr
        opened = inner.replace(constvars=[], invars=[*inner.constvars, *inner.invars])
        try:
            return [to_double(jnp.asarray(out)) for out in recast(ClosedJaxpr(opened, []))(*consts, *arrays)]
        except (InputError, jax.errors.JaxRuntimeError):  # such as no memory, for the caller to see
            raise
        except Exception as error:
            raise InputError(f"{self.who} can't be run in float64: {said(error)}") from error

    def _step_by_step(self, arrays: Sequence[Any]) -> list[Any]:
        """As `in_float64`, one operation at a time: each value is let go after its last use."""
        self.notes.append(f"{self.who} ran out of memory in float64, and was run again one operation at a time.")
        try:
            return jax.device_get(self.in_float64(self.jaxpr.consts, arrays))
        except jax.errors.JaxRuntimeError as error:
            raise InputError(
                f"{self.who} runs out of memory in float64, also one operation at a time. Compare on fewer examples."
            ) from error

    def measured(self, seconds: float) -> Measured:
        _, temp, compile_seconds, flops = self.compiled
        return Measured(seconds, temp, compile_seconds, flops)


class Together:
    """Rule, oracle and the oracle's float64 shadow as one program, for small arguments where nothing is timed.

    It compiles in less time than the three. Where it fails, each of them runs by itself, and tells what the matter is.
    """

    def __init__(self, rule: Program, oracle: Program):
        self.rule, self.oracle = rule, oracle
        self.able = sum(map(np.size, rule.arguments.arrays)) <= SMALL

    @classmethod
    def of(cls, rule: Program, oracle: Program) -> "Together":
        """The one of these two, made once."""
        kept = rule.derived.get(cls)
        if kept is None or kept.oracle is not oracle:
            kept = rule.derived[cls] = cls(rule, oracle)
        return kept

    def __call__(self, *arrays: Any) -> tuple[Any, Any, Any]:
        """What the rule gives, what the oracle gives, and that in float64."""
        if self.able:
            try:
                with jax.enable_x64(True):
                    got, plain, exact = self._run([p.jaxpr.consts for p in (self.rule, self.oracle)], arrays)
                    told = jax.block_until_ready(got), jax.block_until_ready(plain), jax.device_get(exact)
                structures = [jax.tree.structure(p.out) for p in (self.rule, self.oracle, self.oracle)]
                return tuple(map(jax.tree.unflatten, structures, told))
            except Exception:  # whatever it is: run apart, it is raised by the one that has it
                self.able = False
        return self.rule(*arrays), self.oracle(*arrays), self.oracle.exact(*arrays)

    @cached_property
    def _run(self) -> Callable[..., tuple[list[Any], list[Any], list[Any]]]:
        def run(consts: Sequence[Any], arrays: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
            got, plain = (
                jax.core.eval_jaxpr(p.jaxpr.jaxpr, c, *arrays)
                for p, c in zip((self.rule, self.oracle), consts, strict=True)
            )
            return got, plain, self.oracle.in_float64(consts[1], arrays)

        return quickly(run)


def _held(jaxpr: ClosedJaxpr) -> Iterator[Any]:
    """The constants of a program, wherever they stand."""
    yield from jaxpr.consts
    for eqn in equations(jaxpr):
        yield from (c for inner in inner_jaxprs(eqn) if isinstance(inner, ClosedJaxpr) for c in inner.consts)
