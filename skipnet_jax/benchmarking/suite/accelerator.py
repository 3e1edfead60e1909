"""What wants a real accelerator: each piece a function of a config.

A piece is given `save(result)`, which it calls whenever it has found something:
what it had when it was stopped is kept. `lines` of a result is for the table.
"""

from collections.abc import Callable, Iterator
import functools
import importlib.util
from typing import Any

import ml_collections

from skipnet_jax import environment
from skipnet_jax import errors

Config = ml_collections.ConfigDict
Result = dict[str, Any]
Save = Callable[[Result], None]
SIDE = 128  # Pixels, of parity: a CPU computes it too.
ROUNDS = 10
# The systems beside the config's own: fields of their networks, and losses.
OTHERS = {
  'unet': ({'padding': 'VALID'}, 'bce'),
  'f_clmser_s': ({}, 'smooth_l1'),
  'fusionnet': ({}, 'bce'),
}


def _split(config: Config) -> Config:
  from skipnet_jax.benchmarking import plan

  return plan.split(config)[0]


def parity(config: Config, save: Save) -> None:
  """Each network on the accelerator beside the CPU, in float32.

  Logits, loss, gradient and statistics of one batch without dropout, each as
  the norm of the difference over the norm; with raised biases, see `agreement`.

  Raises:
    RunError: they do not agree.
  """
  import jax

  found, lines = {}, []
  for one in (config, *_others(config)):
    bare = _split(one)
    name = bare.model.name
    apart, limits = _apart(bare)
    found[name] = apart
    lines += [
      f'{name}, {part}: differs by {x:.1e}' for part, x in apart.items()
    ]
    save({'device': jax.devices()[0].device_kind, **found, 'lines': lines})
    judge(apart, limits)


def _others(config: Config) -> Iterator[Config]:
  """The config with the other systems in place of its network."""
  from skipnet_jax import models

  small = bool(config.data.size)  # Slices are cut for a CPU.
  for name, (fields, loss) in list(OTHERS.items())[: 1 if small else None]:
    one = config.copy_and_resolve_references()
    with one.unlocked():
      one.model = models.model_config(name, dtype=config.model.dtype, **fields)
    if small:
      one.model.update(base_width=2, padding='SAME')
    one.train.loss = loss
    yield one


def _apart(bare: Config) -> tuple[dict[str, float], dict[str, float]]:
  """How far each part is off, and how far it may be."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from skipnet_jax import models
  from skipnet_jax.step import agreement

  rng = np.random.default_rng(bare.seed)
  side = min(SIDE, bare.data.size or SIDE)
  image = rng.normal(size=(1, side, side, 1))
  label = (rng.random(image.shape) < 0.8).astype(image.dtype)
  model = models.build_model(bare.model)
  variables = jax.jit(functools.partial(model.init, train=False))(
    jax.random.key(bare.seed), jnp.zeros(image.shape, jnp.float32)
  )
  variables = agreement.raise_biases(jax.device_get(variables))
  batch = {'image': image, 'label': label}

  def point(device):
    found = agreement.point(
      model, variables, batch, 'float32', device, bare.train.loss
    )
    leaves = {name: jax.tree.leaves(tree) for name, tree in found.items()}
    # A network without BatchNorm has no statistics.
    return {
      name: np.concatenate([np.ravel(x) for x in arrays])
      for name, arrays in leaves.items()
      if arrays
    }

  apart = distances(point(jax.devices()[0]), point(jax.devices('cpu')[0]))
  return apart, {part: agreement.limit(part, variables) for part in apart}


def distances(a: dict[str, Any], b: dict[str, Any]) -> dict[str, float]:
  """Norm of a - b over the norm of b, of each array by name, in float64."""
  import numpy as np

  norm = np.linalg.norm
  return {
    name: float(norm(a[name].astype('float64') - b[name]) / norm(b[name]))
    for name in b
  }


def judge(apart: dict[str, float], limits: dict[str, float]) -> None:
  """Refuses a difference beyond its limit.

  Raises:
    RunError: naming the first.
  """
  for name, found in apart.items():
    # Not `found > limit`: NaN is no agreement.
    if not found <= limits[name]:
      raise errors.RunError(
        f'The accelerator does not agree with the CPU: {name} differs by '
        f'{found:.1e} of its norm, and {limits[name]:.1e} is allowed.'
      )


def throughput(config: Config, save: Save) -> None:
  """The benchmark's training rows, one at a time, with the roofline."""
  section = config.benchmark
  _throughput(
    [(config, b, d) for b in section.batches for d in section.dtypes], save
  )


def systems(config: Config, save: Save) -> None:
  """The first of those rows for each of the other systems."""
  section = config.benchmark
  _throughput(
    [(o, section.batches[0], section.dtypes[0]) for o in _others(config)], save
  )


def _throughput(rows: list[tuple[Config, int, str]], save: Save) -> None:
  from skipnet_jax.benchmarking import sweep
  from skipnet_jax.benchmarking.reporting import report as report_lib

  reports, lines = [], []
  for config, batch, dtype in rows:
    one = config.copy_and_resolve_references()
    one.benchmark.batches, one.benchmark.dtypes = (batch,), (dtype,)
    measured = sweep.run(one, functools.partial(print, flush=True))
    assert measured is not None  # This is the only host.
    report, _ = measured
    reports.append(report)
    lines += report_lib.format_table(report).splitlines()
    save({'reports': reports, 'lines': lines})
  failed = [r['error'] for one in reports for r in one['results'] if r['error']]
  if failed:
    raise errors.RunError(f'{len(failed)} row(s) failed: {failed[0]}')


def peer(config: Config, save: Save) -> None:
  """The race against PyTorch, in bfloat16 and in float32."""
  if importlib.util.find_spec('torch') is None:
    save({'skipped': 'PyTorch is not installed.'})
    return
  from skipnet_jax.benchmarking.peer import race

  races, lines = [], []
  for dtype in config.benchmark.dtypes:
    bare = _split(config)
    bare.model.dtype = dtype
    say = functools.partial(print, flush=True)
    races.append(race.race(bare, rounds=ROUNDS, say=say))
    lines += race.format_table(races[-1]).splitlines()
    save({'races': races, 'lines': lines})


def scan(config: Config, save: Save) -> None:
  """Compiling the training step with repetitions unrolled and scanned."""
  from skipnet_jax.benchmarking import plan
  from skipnet_jax.benchmarking import workload
  from skipnet_jax.benchmarking.timing import measure

  found, lines = {}, []
  for scanned in (True, False):
    bare = _split(config)
    bare.model.scan = scanned
    work = workload.Bench(bare).build(_cell(plan, bare, 'compute'))
    _, compilation = measure.compile_phases(work.jitted, *work.arguments)
    name = 'scanned' if scanned else 'unrolled'
    found[name] = c = compilation.to_dict()
    lines.append(
      f'{name}: traced {c["trace_s"]:.1f} s, lowered {c["lower_s"]:.1f} s, '
      f'compiled {c["compile_s"]:.1f} s, {c["hlo_instructions"]} instructions'
    )
    save({**found, 'lines': lines})


def _cell(plan: Any, bare: Config, feed: str) -> Any:
  size, dtype = bare.train.batch_size, bare.model.dtype
  return plan.Cell('train', feed, 'jit', 1, dtype, size)


def epoch(config: Config, save: Save) -> None:
  """A whole epoch in one call, and the share of augmentation in a step."""
  from skipnet_jax.benchmarking import plan
  from skipnet_jax.benchmarking import workload
  from skipnet_jax.benchmarking.timing import measure

  section = plan.split(config)[1]
  bare = _split(config)
  bare.train.batch_size = min(5, bare.train.batch_size)
  bench = workload.Bench(bare)
  size = bare.train.batch_size
  bare.train.steps_per_call = bench.pipeline(size).steps_per_epoch
  bench = workload.Bench(bare)
  found: dict[str, dict[str, Any]] = {}
  lines = []
  for feed in ('compute', 'augment', 'end_to_end'):
    work = bench.build(_cell(plan, bare, feed))
    compiled = work.jitted.lower(*work.arguments).compile()
    timing = measure.time_calls(
      work.start(compiled),
      warmup=section.warmup,
      repetitions=section.repetitions,
    )
    found[feed] = {'steps': work.steps, **timing.summary()}
    p50 = found[feed]['p50']
    lines.append(
      f'{feed}: {p50 * 1e3:.4g} ms for {work.steps} step(s), '
      f'{work.steps * size / p50:.4g} images/s'
    )
    save({'batch': size, **found, 'lines': lines})
  share = 1 - found['compute']['p50'] / found['augment']['p50']
  lines.append(f'augmentation takes {share:.1%} of a step')
  save(
    {
      'batch': size,
      **found,
      'augmentation_share': share,
      'lines': lines,
    }
  )


def determinism(config: Config, save: Save) -> None:
  """What the same bits every time cost: the first row without, then with it."""
  section, rates, lines = config.benchmark, {}, []
  row = (config, section.batches[0], section.dtypes[0])
  for name in ('usual', 'deterministic'):
    if name == 'deterministic':
      # Of effect in the processes that measure.
      environment.add_xla_flag(environment.DETERMINISTIC)
    found: Result = {}
    _throughput([row], found.update)
    rates[name] = found['reports'][0]['results'][0]['images_per_second']
    lines += [f'{name}:', *found['lines']]
    save({'images_per_second': rates, 'lines': lines})
  ratio = rates['deterministic'] / rates['usual']
  lines.append(f'deterministic: {ratio:.3f} of the usual images/s')
  save({'images_per_second': rates, 'ratio': ratio, 'lines': lines})


# In order of worth; later studies go to the end.
PIECES: dict[str, Callable[[Config, Save], None]] = {
  'parity': parity,
  'throughput': throughput,
  'peer': peer,
  'systems': systems,
  'scan': scan,
  'epoch': epoch,
  'determinism': determinism,
}


def adapt(config: Config, smoke: bool) -> Config:
  """What `experiments/benchmark.py` is measured with here, changed in place."""
  config.data.source = 'synthetic'  # No download.
  config.benchmark.update(
    {
      'calls': ('train',),
      'feeds': ('compute',),
      'modes': ('jit',),
      'devices': (),
      'scaling': (),
      'processes': 1,
      'batches': (4,) if smoke else (8, 32),
      'dtypes': ('float32',) if smoke else ('bfloat16', 'float32'),
      'repetitions': 3 if smoke else 20,
    }
  )
  if not smoke:
    config.model.dtype = 'bfloat16'
  return config
