"""Times and compile phases of benchmarks."""

import statistics
import types

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest

from skipnet_jax.benchmarking.timing import measure

DISPATCH, WORK = 0.25, 8.0


class Device:
  """A clock, and a device that works behind it: one call after another."""

  def __init__(self):
    self.now = 100.0
    self.free = 0.0
    self.calls = 0
    self.waited_after = []

  def clock(self):
    return self.now

  def call(self):
    self.calls += 1
    self.now += DISPATCH
    self.free = max(self.free, self.now) + WORK
    return {'state': [Pending(self, self.free)], 'loss': 0.0}


class Pending:
  """A result that is there at some time; waiting moves the clock."""

  def __init__(self, device, ready):
    self.device = device
    self.ready = ready

  def block_until_ready(self):
    self.device.waited_after.append(self.device.calls)
    self.device.now = max(self.device.now, self.ready)
    return self


def test_a_call_lasts_until_its_result_is_there_not_until_it_is_dispatched():
  device = Device()
  timing = measure.time_calls(
    device.call, warmup=2, repetitions=3, clock=device.clock
  )
  # The warm-up too was waited for: it delays no timed call.
  assert timing.seconds == (DISPATCH + WORK,) * 3
  assert timing.warmup == 2
  assert device.calls == 5


def test_no_call_waits_in_the_queue_of_another():
  device = Device()
  measure.time_calls(device.call, warmup=1, repetitions=2, clock=device.clock)
  assert device.waited_after == [1, 2, 3]


def test_blocked_calls_are_waited_for_once():
  device = Device()
  found = measure.time_blocked(device.call, calls=3, clock=device.clock)
  assert device.waited_after == [3]
  # The device works without a pause; the host is done after three dispatches.
  assert found.seconds == DISPATCH + 3 * WORK
  assert found.host_seconds == 3 * DISPATCH
  assert (found.calls, found.result['loss']) == (3, 0.0)


def test_a_real_call_takes_as_long_as_its_work():
  x = jnp.ones((512, 512))
  call = jax.jit(lambda x: jax.lax.fori_loop(0, 20, lambda _, y: y @ x, x))
  seconds = measure.time_calls(lambda: call(x), warmup=1, repetitions=1).seconds
  # 5.4 GFLOPs: no core does them in a millisecond.
  assert seconds[0] > 1e-3


@pytest.mark.parametrize('n', [1, 2, 5, 100])
def test_statistics_are_those_of_numpy_and_of_the_standard_library(n):
  seconds = np.random.default_rng(n).gamma(2.0, size=n)
  found = measure.Timing(3, tuple(seconds)).summary()
  assert (found['warmup'], found['n']) == (3, n)
  for p in (50, 90, 95, 99):
    assert found[f'p{p}'] == np.percentile(seconds, p)
  np.testing.assert_allclose(found['mean'], statistics.fmean(seconds))
  assert found['min'] == min(seconds)
  middle = statistics.median(seconds)
  far = statistics.median(abs(x - middle) for x in seconds)
  np.testing.assert_allclose(found['mad'], far, atol=1e-15)
  if n == 1:
    assert found['std'] is None
  else:
    np.testing.assert_allclose(found['std'], statistics.stdev(seconds))
  assert all(type(v) in (int, float, type(None)) for v in found.values())


def product(n):
  """Multiplies a matrix n times by another."""

  def call(x, y):
    for _ in range(n):
      x = x @ y
    return x

  return call


@pytest.mark.parametrize('n', [1, 2, 5])
def test_what_xla_says_of_matrix_products_is_what_they_are(n):
  x = jnp.ones((8, 8))
  compiled, found = measure.compile_phases(jax.jit(product(n)), x, x)
  assert found['hlo_flops'] == n * 2 * 8**3
  assert found['hlo_bytes'] == n * 3 * 8 * 8 * 4
  # Arguments and result, and what lies between products.
  assert 3 * 8 * 8 * 4 <= found['predicted_bytes'] <= 5 * 8 * 8 * 4
  np.testing.assert_array_equal(compiled(x, x), jnp.full((8, 8), 8.0**n))


@pytest.mark.parametrize('n', [1, 2, 5])
def test_instructions_of_a_chain_of_ffts_are_counted_one_by_one(n):
  def call(x):
    for _ in range(n):
      x = jnp.fft.fft(x)
    return x

  _, found = measure.compile_phases(jax.jit(call), jnp.ones(8, jnp.complex64))
  # The parameter and the transforms, which XLA fuses with nothing.
  assert found['hlo_instructions'] == 1 + n


def test_a_donated_argument_is_counted_once():
  x = jnp.ones(1024)
  call = jax.jit(lambda x: x + 1, donate_argnums=0)
  _, found = measure.compile_phases(call, x)
  assert found['predicted_bytes'] == x.nbytes


def test_instructions_are_counted_in_every_computation():
  hlo = """HloModule a, entry_computation_layout={(f32[])->f32[]}

FileNames
1 "/some/x = y.py"

%fused (p.1: f32[2]) -> f32[2] {
  %p.1 = f32[2]{0} parameter(0), metadata={op_name="a = b"}
  ROOT %add_any.2 = f32[2]{0} add(%p.1, %p.1)
}

ENTRY main.3 (x: f32[2]) -> (f32[2]) {
  x = f32[2]{0} parameter(0)
  fusion-1 = f32[2]{0} fusion(x), kind=kLoop, calls=%fused
  ROOT tuple.1 = (f32[2]{0}) tuple(fusion-1)
}
"""
  assert measure.count_instructions(hlo) == 5


def test_a_program_is_known_by_its_instructions():
  def hash_of(line, kernel):
    return measure.program_hash(
      'HloModule a\n\nFileNames\n1 "/some/y.py"\n\nENTRY main {\n'
      f'  x = f32[] parameter(0), metadata={{op_name="a" source_line={line}}}\n'
      f'  ROOT y = f32[] custom-call(x), backend_config={{"algo":{kernel}}}\n}}'
    )

  assert hash_of(1, 7) == hash_of(2, 7)
  # Another kernel of the autotuner's.
  assert hash_of(1, 7) != hash_of(1, 8)


def test_equal_programs_have_one_hash():
  x = jnp.ones((8, 8))
  compiled = [
    measure.compile_phases(jax.jit(product(n)), x, x)[1] for n in (1, 1, 2)
  ]
  first, second, other = (one['hlo_hash'] for one in compiled)
  assert first == second != other


def ways():
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  x = np.arange(64, dtype=np.float32).reshape(8, 8)

  def call(x):
    return x * x

  return {
    'jit': (jax.jit(call), jnp.asarray(x)),
    'sharded': (jax.jit(call), jax.device_put(x, sharding)),
    'pmap': (jax.pmap(call), x),
  }


@pytest.mark.parametrize('way', ['jit', 'sharded', 'pmap'])
def test_every_mode_is_compiled_by_phases(way):
  call, x = ways()[way]
  ticks = iter([0.0, 1.0, 3.0, 7.0])
  if way == 'pmap' and not hasattr(call, 'trace'):
    ticks = iter([0.0, 3.0, 7.0])
  compiled, found = measure.compile_phases(call, x, clock=lambda: next(ticks))
  if hasattr(call, 'trace'):
    assert (found['trace_s'], found['lower_s'], found['compile_s']) == (
      1.0,
      2.0,
      4.0,
    )
  else:
    assert (found['trace_s'], found['lower_s'], found['compile_s']) == (
      None,
      3.0,
      4.0,
    )
  assert found['warm_compile_s'] is None
  np.testing.assert_array_equal(compiled(x), np.square(x))
  # One device's program: a row of the eight where the call is divided.
  rows = 8 if way == 'jit' else 1
  assert found['predicted_bytes'] == 2 * rows * 8 * 4
  assert found['hlo_flops'] == rows * 8
  assert set(found) == {
    'trace_s',
    'lower_s',
    'compile_s',
    'warm_compile_s',
    'hlo_instructions',
    'hlo_hash',
    'hlo_flops',
    'hlo_bytes',
    'predicted_bytes',
  }


def fake_compiled(memory, cost):
  return types.SimpleNamespace(
    memory_analysis=lambda: memory,
    cost_analysis=lambda: cost,
    as_text=lambda: '  a = f32[] constant(0)\n',
  )


@pytest.mark.parametrize(
  ('memory', 'cost', 'expected'),
  [
    (True, {'flops': 3.0, 'bytes accessed': 5.0}, (3.0, 5.0, 10)),
    (None, None, (None, None, None)),
    (None, {'flops': -1.0}, (None, None, None)),
  ],
)
def test_what_a_backend_does_not_know_is_none(memory, cost, expected):
  stats = types.SimpleNamespace(
    argument_size_in_bytes=4,
    output_size_in_bytes=3,
    temp_size_in_bytes=5,
    alias_size_in_bytes=2,
  )
  compiled = fake_compiled(memory and stats, cost)
  lowered = types.SimpleNamespace(compile=lambda **_: compiled)
  jitted = types.SimpleNamespace(lower=lambda: lowered)
  _, found = measure.compile_phases(jitted)
  assert (
    found['hlo_flops'],
    found['hlo_bytes'],
    found['predicted_bytes'],
  ) == expected


def slow_to_compile():
  @jax.jit
  def call(x):
    for i in range(60):
      x = jnp.sort(jnp.roll(jnp.sin(x), i % 3))
    return x

  return call, jnp.ones((4, 16))


def compile_twice(call, x, cache):
  return measure.compile_phases(call, x, cache=str(cache), measure_warm=True)


def test_the_second_compile_comes_from_the_cache_and_the_first_does_not(
  tmp_path,
):
  events = []

  def listen(event, **_):
    if event.startswith('/jax/compilation_cache/cache_'):
      events.append(event.rpartition('/')[2])

  call, x = slow_to_compile()
  call(x)  # Compiled already: that must not help.
  jax.monitoring.register_event_listener(listen)
  try:
    compiled, found = compile_twice(call, x, tmp_path / 'a')
    assert events == ['cache_misses', 'cache_hits']
    # And once more in another folder.
    _, again = compile_twice(call, x, tmp_path / 'b')
    assert events == ['cache_misses', 'cache_hits'] * 2
  finally:
    jax.monitoring.unregister_event_listener(listen)
  for one in (found, again):
    assert 0 < one['warm_compile_s'] < one['compile_s'] / 2
  np.testing.assert_array_equal(compiled(x), call(x))


def test_a_cold_compile_sees_no_cache_at_all(tmp_path):
  events = []

  def listen(event, **_):
    events.append(event)

  call, x = slow_to_compile()
  before = {
    name: getattr(jax.config, name)
    for name in (
      'jax_compilation_cache_dir',
      'jax_persistent_cache_min_compile_time_secs',
    )
  }
  jax.monitoring.register_event_listener(listen)
  try:
    jax.config.update('jax_compilation_cache_dir', str(tmp_path))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    compilation_cache.reset_cache()
    call.lower(x).compile()
    assert any(tmp_path.iterdir())
    events.clear()
    measure.compile_phases(call, x)
    assert not [e for e in events if e.endswith(('cache_hits', 'misses'))]
    # What was configured before is so again.
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    assert jax.config.jax_enable_compilation_cache
    jax.clear_caches()
    call.lower(x).compile()
    assert '/jax/compilation_cache/cache_hits' in events
  finally:
    jax.monitoring.unregister_event_listener(listen)
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_a_cache_that_does_not_answer_gives_no_warm_time(tmp_path):
  call, x = slow_to_compile()
  # A file where the folder should be: nothing can be kept there.
  path = tmp_path / 'file'
  path.write_text('')
  with pytest.warns(UserWarning, match='compilation cache'):
    _, found = compile_twice(call, x, path)
  assert found['warm_compile_s'] is None
  assert found['compile_s'] > 0
