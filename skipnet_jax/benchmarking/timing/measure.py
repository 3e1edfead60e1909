"""Times calls that run on devices, and each phase of compiling them."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import hashlib
import re
import time
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
import numpy as np

Clock = Callable[[], float]
# An instruction in an HLO text: `ROOT %add.3 = f32[] add(...)`.
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?[\w.-]+ = ', re.MULTILINE)
_METADATA = re.compile(r',? ?metadata=\{[^}]*\}')
# Tables at the beginning of an HLO text that its metadata point to.
_SOURCES = ('FileNames', 'FunctionNames', 'FileLocations', 'StackFrames')
_CACHE_HIT = '/jax/compilation_cache/cache_hits'


@dataclasses.dataclass(frozen=True)
class Timing:
  """How long each of several equal calls took.

  Attributes:
    warmup: number of calls before the first timed one.
    seconds: duration of each timed call, in order.
  """

  warmup: int
  seconds: tuple[float, ...]

  def summary(self) -> dict[str, Any]:
    """Statistics of the timed calls, in seconds.

    Returns:
      warmup and n (counts); mean; std (of the sample; None if n is 1); min;
      p50, p90, p95, p99 (percentiles, interpolated linearly); mad (median
      absolute deviation from p50).
    """
    x = np.asarray(self.seconds, np.float64)
    p50, p90, p95, p99 = map(float, np.percentile(x, (50, 90, 95, 99)))
    return {
      'warmup': self.warmup,
      'n': x.size,
      'mean': float(x.mean()),
      'std': float(x.std(ddof=1)) if x.size > 1 else None,
      'min': float(np.min(x)),
      'p50': p50,
      'p90': p90,
      'p95': p95,
      'p99': p99,
      'mad': float(np.median(np.abs(x - p50))),
    }


def time_calls(
  call: Callable[[], Any],
  *,
  warmup: int,
  repetitions: int,
  clock: Clock = time.perf_counter,
) -> Timing:
  """Times calls one after the other, each until its result is ready.

  Args:
    call: does the work once and returns all arrays to wait for.
    warmup: number of calls before the first timed one.
    repetitions: number of timed calls, at least 1.
    clock: returns seconds.
  """
  for _ in range(warmup):
    jax.block_until_ready(call())
  seconds = []
  for _ in range(repetitions):
    start = clock()
    jax.block_until_ready(call())
    seconds.append(clock() - start)
  return Timing(warmup, tuple(seconds))


@dataclasses.dataclass(frozen=True)
class Blocked:
  """Calls in a row with one wait at their end.

  Attributes:
    calls: how many.
    seconds: from the first call to the last result.
    host_seconds: of them, until the last call returned: what the host needs.
    result: of the last call.
  """

  calls: int
  seconds: float
  host_seconds: float
  result: Any


def time_blocked(
  call: Callable[[], Any],
  *,
  calls: int,
  clock: Clock = time.perf_counter,
) -> Blocked:
  """Times calls that are waited for together, as a training loop does.

  Args:
    call: as in `time_calls`.
    calls: at least 1.
    clock: returns seconds.
  """
  start = clock()
  for _ in range(calls):
    result = call()
  dispatched = clock()
  jax.block_until_ready(result)
  return Blocked(calls, clock() - start, dispatched - start, result)


def compile_phases(
  jitted: Any,
  *args: Any,
  cache: str | None = None,
  measure_warm: bool = False,
  options: dict[str, Any] | None = None,
  clock: Clock = time.perf_counter,
) -> tuple[Any, dict[str, Any]]:
  """Compiles a call, times each phase, and reads XLA's figures of the program.

  JAX's caches in memory are cleared: whatever else this process compiled is
  compiled again when it is next called.

  Args:
    jitted: from `jax.jit` or `jax.pmap`.
    *args: its arguments: arrays or `jax.ShapeDtypeStruct`s.
    cache: folder of the persistent compilation cache; None: no such cache.
    measure_warm: whether to compile a second time, now from the cache. `cache`
      must be empty; `compile_s` includes writing to it.
    options: of the compiler.
    clock: returns seconds.

  Returns:
    The compiled call, which takes the same arguments; JSON values. In seconds,
    trace_s (from Python to a jaxpr; None for pmap, where JAX does not separate
    it from lowering), lower_s (to StableHLO), compile_s (to an executable),
    warm_compile_s (the same from the cache; None if it was not measured or the
    cache had no executable). Of one device's program, hlo_instructions (number
    in the optimised HLO, including those in fusions), hlo_flops and hlo_bytes
    (FLOPs, and bytes read and written, as XLA counts them; None if it does
    not), hlo_hash (see `program_hash`), predicted_bytes (memory that XLA plans:
    arguments, outputs and temporaries, minus aliased buffers; None if it does
    not).
  """
  warm = None
  with _persistent_cache(cache):
    compiled, (trace_s, lower_s, compile_s) = _phases(
      jitted, args, options, clock
    )
    if measure_warm:
      with _cache_events() as events:
        _, (_, _, warm) = _phases(jitted, args, options, clock)
      if events != {_CACHE_HIT}:
        warm = None
  hlo = compiled.as_text()
  memory = compiled.memory_analysis()
  cost = compiled.cost_analysis() or {}

  def figure(name: str) -> float | None:
    # XLA gives -1 for what it does not know.
    return float(cost[name]) if cost.get(name, -1) >= 0 else None

  return compiled, {
    'trace_s': trace_s,
    'lower_s': lower_s,
    'compile_s': compile_s,
    'warm_compile_s': warm,
    'hlo_instructions': count_instructions(hlo),
    'hlo_hash': program_hash(hlo),
    'hlo_flops': figure('flops'),
    'hlo_bytes': figure('bytes accessed'),
    'predicted_bytes': memory
    and memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes,
  }


def _phases(
  jitted: Any, args: tuple, options: dict[str, Any] | None, clock: Clock
) -> tuple[Any, tuple[float | None, float, float]]:
  """A compiled call, and the seconds to trace (or None), lower and compile."""
  jax.clear_caches()
  times = [clock()]
  if hasattr(jitted, 'trace'):
    traced = jitted.trace(*args)
    times.append(clock())
    lowered = traced.lower()
  else:
    lowered = jitted.lower(*args)
  times.append(clock())
  compiled = lowered.compile(compiler_options=options)
  times.append(clock())
  *trace, lower, compile_ = np.diff(times).tolist()
  return compiled, (trace[0] if trace else None, lower, compile_)


def count_instructions(hlo: str) -> int:
  """Number of instructions in an HLO text, those of all computations."""
  return len(_INSTRUCTION.findall(hlo))


def program_hash(hlo: str) -> str:
  """Twelve hex digits of an HLO text without its places in the source.

  The kernels that a GPU's autotuner chose are part of the text.
  """
  parts = [part for part in hlo.split('\n\n') if not part.startswith(_SOURCES)]
  text = _METADATA.sub('', '\n\n'.join(parts))
  return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextlib.contextmanager
def _persistent_cache(folder: str | None) -> Iterator[None]:
  """Makes `folder` JAX's persistent cache for all programs; None: no cache."""
  settings = {
    'jax_enable_compilation_cache': folder is not None,
    'jax_compilation_cache_dir': folder,
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  _configure(settings)
  try:
    yield
  finally:
    _configure(before)


def _configure(settings: dict[str, Any]) -> None:
  for name, value in settings.items():
    jax.config.update(name, value)
  # Otherwise JAX keeps using the folder that it opened first.
  compilation_cache.reset_cache()


@contextlib.contextmanager
def _cache_events() -> Iterator[set[str]]:
  """Collects which events the persistent cache reports, such as _CACHE_HIT."""
  events: set[str] = set()

  def listen(event: str, **_: Any) -> None:
    if event.startswith('/jax/compilation_cache/cache_'):
      events.add(event)

  jax.monitoring.register_event_listener(listen)
  try:
    yield events
  finally:
    jax.monitoring.unregister_event_listener(listen)
