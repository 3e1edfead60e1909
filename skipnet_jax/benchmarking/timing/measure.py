"""Seconds: of calls that were waited for, and of each phase of compiling."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import re
import tempfile
import time
from typing import Any, TypedDict

import jax
from jax.experimental.compilation_cache import compilation_cache
import numpy as np

from skipnet_jax import errors

Clock = Callable[[], float]
# A line of HLO text that defines something: `ROOT %add.3 = f32[] add(...)`.
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?[\w.-]+ = ', re.MULTILINE)


class Summary(TypedDict):
  """Statistics of calls, see `Timing.summary`."""

  warmup: int
  n: int
  mean: float
  std: float | None
  min: float
  p50: float
  p90: float
  p95: float
  p99: float
  mad: float


@dataclasses.dataclass(frozen=True)
class Timing:
  """What a call took.

  Attributes:
    warmup: calls before, which were not timed.
    seconds: of each timed call, in order.
  """

  warmup: int
  seconds: tuple[float, ...]

  def summary(self) -> Summary:
    """Statistics, in seconds but for the two counts.

    Returns:
      warmup, n, mean, std (sample; None where n is 1), min, p50, p90, p95, p99
      (linear between neighbours), mad: the median distance from p50.
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
  block: Callable[[Any], Any] = jax.block_until_ready,
) -> Timing:
  """Times calls one by one, each from its start until its result is there.

  Args:
    call: does the work once and returns all that must be waited for.
    warmup: calls before the first timed one, waited for too.
    repetitions: timed calls.
    clock: gives seconds.
    block: waits for what `call` returned.

  Raises:
    InputError: no repetition, or a negative number of warm-up calls.
  """
  for name, value, low in (
    ('repetitions', repetitions, 1),
    ('warmup', warmup, 0),
  ):
    if value < low:
      raise errors.InputError(f'{name} is {value}; it must be at least {low}.')
  for _ in range(warmup):
    block(call())
  seconds = []
  for _ in range(repetitions):
    start = clock()
    block(call())
    seconds.append(clock() - start)
  return Timing(warmup, tuple(seconds))


@dataclasses.dataclass(frozen=True)
class Compilation:
  """How a call was compiled, and what XLA says of the program.

  A program is that of one device: of a call divided among several, its FLOPs,
  bytes and memory are one device's part.

  Attributes:
    trace_s: seconds from Python to a jaxpr; None where JAX does not separate it
      from lowering (pmap).
    lower_s: seconds from there to StableHLO.
    compile_s: seconds from there to an executable, without any cache.
    warm_compile_s: the same with the executable in the persistent cache; None
      where that was not measured.
    hlo_instructions: in the optimised HLO, those inside fusions counted.
    hlo_flops: XLA's count; not the model's FLOPs.
    hlo_bytes: XLA's count of bytes read and written.
    predicted_bytes: memory by XLA's plan: arguments, outputs and temporaries,
      less what is aliased.
  """

  trace_s: float | None
  lower_s: float
  compile_s: float
  warm_compile_s: float | None
  hlo_instructions: int
  hlo_flops: float | None
  hlo_bytes: float | None
  predicted_bytes: int | None

  def to_dict(self) -> dict[str, Any]:
    """All attributes, as JSON values."""
    return dataclasses.asdict(self)


def compile_phases(
  jitted: Any, *args: Any, clock: Clock = time.perf_counter
) -> tuple[Any, Compilation]:
  """Compiles a call and times the phases; no cache shortens any.

  JAX's caches in memory are emptied, so that whatever else was compiled in this
  process is compiled again when it is next called.

  Args:
    jitted: from `jax.jit` or `jax.pmap`.
    *args: its arguments: arrays, or their shapes as `jax.ShapeDtypeStruct`.
    clock: gives seconds.

  Returns:
    The compiled call, which takes the same arguments, and how it came about.
  """
  with _persistent_cache(None):
    compiled, seconds = _phases(jitted, args, clock)
  return compiled, _describe(compiled, seconds, None)


def compile_cold_and_warm(
  jitted: Any,
  *args: Any,
  folder: str | None = None,
  clock: Clock = time.perf_counter,
) -> tuple[Any, Compilation]:
  """`compile_phases`, and again from the persistent cache.

  The first time with the cache empty (which includes writing to it), the second
  time with the executable in it. `warm_compile_s` is None if the cache did not
  answer, and for several processes, of which only the first one writes to it.

  Args:
    jitted: as in `compile_phases`.
    *args: as there.
    folder: the cache, so far empty, for `compile_cached` in other processes; by
      default one that is thrown away.
    clock: gives seconds.
  """
  if jax.process_count() > 1:
    return compile_phases(jitted, *args, clock=clock)
  with contextlib.ExitStack() as stack:
    if folder is None:
      folder = stack.enter_context(tempfile.TemporaryDirectory())
    stack.enter_context(_persistent_cache(folder))
    compiled, cold = _phases(jitted, args, clock)
    with _cache_answers() as answers:
      _, warm = _phases(jitted, args, clock)
  found = set(answers) == {'cache_hits'}
  return compiled, _describe(compiled, cold, warm[2] if found else None)


def compile_cached(
  jitted: Any, *args: Any, folder: str, clock: Clock = time.perf_counter
) -> tuple[Any, Compilation]:
  """`compile_phases` with the persistent cache in a folder, whatever it has."""
  with _persistent_cache(folder):
    compiled, seconds = _phases(jitted, args, clock)
  return compiled, _describe(compiled, seconds, None)


def _phases(
  jitted: Any, args: tuple, clock: Clock
) -> tuple[Any, tuple[float | None, float, float]]:
  jax.clear_caches()
  times = [clock()]
  stage = jitted
  if hasattr(jitted, 'trace'):
    stage = jitted.trace(*args)
    times.append(clock())
    stage = stage.lower()
  else:
    stage = jitted.lower(*args)
  times.append(clock())
  compiled = stage.compile()
  times.append(clock())
  *trace, lower, compile_ = np.diff(times).tolist()
  return compiled, (trace[0] if trace else None, lower, compile_)


def _describe(
  compiled: Any,
  seconds: tuple[float | None, float, float],
  warm: float | None,
) -> Compilation:
  memory = _only(compiled.memory_analysis())
  cost = _only(compiled.cost_analysis()) or {}

  def count(name: str) -> float | None:
    # XLA says -1 where it does not know.
    return float(cost[name]) if cost.get(name, -1) >= 0 else None

  return Compilation(
    *seconds,
    warm_compile_s=warm,
    hlo_instructions=count_instructions(compiled.as_text()),
    hlo_flops=count('flops'),
    hlo_bytes=count('bytes accessed'),
    predicted_bytes=memory
    and memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes,
  )


def count_instructions(hlo: str) -> int:
  """Instructions of all computations in an HLO text."""
  return len(_INSTRUCTION.findall(hlo))


def _only(analysis: Any) -> Any:
  # Some versions of JAX and some backends give a list with one item.
  if isinstance(analysis, list | tuple):
    return analysis[0] if analysis else None
  return analysis


@contextlib.contextmanager
def _persistent_cache(folder: str | None) -> Iterator[None]:
  """Everything compiled within is cached in `folder` alone; None: nowhere."""
  wanted = {
    'jax_enable_compilation_cache': folder is not None,
    'jax_compilation_cache_dir': folder,
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
  }
  before = {name: getattr(jax.config, name) for name in wanted}
  _configure(wanted)
  try:
    yield
  finally:
    _configure(before)


def _configure(values: dict[str, Any]) -> None:
  for name, value in values.items():
    jax.config.update(name, value)
  # JAX opens its cache once and keeps to that folder.
  compilation_cache.reset_cache()


@contextlib.contextmanager
def _cache_answers() -> Iterator[list[str]]:
  """Collects what JAX reports of its cache: 'cache_hits' or 'cache_misses'."""
  answers: list[str] = []

  def listen(event: str, **_: Any) -> None:
    name = event.removeprefix('/jax/compilation_cache/')
    if name in ('cache_hits', 'cache_misses'):
      answers.append(name)

  jax.monitoring.register_event_listener(listen)
  try:
    yield answers
  finally:
    jax.monitoring.unregister_event_listener(listen)
