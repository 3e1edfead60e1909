"""The measurements that need an accelerator, each a function of a config.

Each calls `save(result)` after every step, so that what it measured is kept
when the time is over. `lines` of a result are shown in the table.
"""

from collections.abc import Callable, Sequence
import functools
import importlib.util
import pathlib
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from skipnet_jax import config as config_lib
from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax import models
from skipnet_jax.benchmarking import plan
from skipnet_jax.benchmarking import sweep
from skipnet_jax.benchmarking import workload
from skipnet_jax.benchmarking.aot import bounds
from skipnet_jax.benchmarking.hlo import kernels
from skipnet_jax.benchmarking.hlo import program
from skipnet_jax.benchmarking.peer import race
from skipnet_jax.benchmarking.reporting import report as report_lib
from skipnet_jax.benchmarking.suite import published
from skipnet_jax.benchmarking.timing import measure
from skipnet_jax.benchmarking.timing import peaks
from skipnet_jax.step import agreement
from skipnet_jax.step import state as state_lib

Config = ml_collections.ConfigDict
Result = dict[str, Any]
Save = Callable[[Result], None]
SIDE = 128  # Pixels of the parity check, which also runs on a CPU.
ROUNDS = 10
SCANNED = (1, 1, 1, 5, 1, 1, 1)  # Three equal blocks in the middle.
EXPERIMENTS = pathlib.Path(__file__).parents[3] / 'experiments'
# Other networks to measure: fields of `model`, and the loss.
OTHERS = {
  'unet': ({'padding': 'VALID'}, 'bce'),
  'f_clmser_s': ({}, 'smooth_l1'),
  'fusionnet': ({}, 'bce'),
}
_say = functools.partial(print, flush=True)


def parity(config: Config, save: Save) -> None:
  """Compares each network on the accelerator with the CPU, in float32.

  Logits, loss, gradient and statistics of one batch without dropout, with
  shifted biases: see `agreement`.

  Raises:
    RunError: a difference is above its tolerance.
  """
  result: Result = {}
  lines: list[str] = []
  for one in (config, *_others(config)):
    bare, _ = plan.split(one)
    name = bare.model.name
    result[name], tolerances = _compare(bare)
    lines += [
      f'{name}, {k}: differs by {x:.1e}' for k, x in result[name].items()
    ]
    save({'device': jax.devices()[0].device_kind, **result, 'lines': lines})
    agreement.check(
      result[name], tolerances, 'The accelerator does not agree with the CPU'
    )


def _others(config: Config) -> list[Config]:
  """The config with each of the other networks."""
  configs = []
  small = bool(config.data.size)  # --smoke crops the slices.
  for name, (fields, loss) in list(OTHERS.items())[: 1 if small else None]:
    one = config.copy_and_resolve_references()
    with one.unlocked():
      one.model = models.model_config(name, dtype=config.model.dtype, **fields)
    if small:
      one.model.update(base_width=2, padding='SAME')
    one.train.loss = loss
    configs.append(one)
  return configs


def _compare(bare: Config) -> tuple[dict[str, float], dict[str, float]]:
  """Distances between accelerator and CPU, and their tolerances."""
  rng = np.random.default_rng(bare.seed)
  side = min(SIDE, bare.data.size or SIDE)
  image = rng.normal(size=(1, side, side, 1))
  label = (rng.random(image.shape) < 0.8).astype(image.dtype)
  batch = {'image': image, 'label': label}
  model = models.build_model(bare.model)
  variables = agreement.shift_biases(
    jax.device_get(state_lib.draw(model, bare.seed))
  )
  here, cpu = (
    agreement.point(model, variables, batch, 'float32', device, bare.train.loss)
    for device in (jax.devices()[0], jax.devices('cpu')[0])
  )
  distances = {
    part: agreement.distance(here[part], cpu[part])
    for part in cpu
    # A network without BatchNorm has no statistics.
    if jax.tree.leaves(cpu[part])
  }
  tolerances = {part: agreement.tolerance(part, variables) for part in cpu}
  return distances, tolerances


def throughput(config: Config, save: Save) -> None:
  """The benchmark's training rows, one at a time, with the roofline."""
  section = config.benchmark
  _measure(
    [(config, b, d) for b in section.batches for d in section.dtypes], save
  )


def nvidia_unet(config: Config, save: Save) -> None:
  """Training rows of the U-Net that NVIDIA published rates of."""
  small = bool(config.data.size)
  theirs = config_lib.load_experiment(EXPERIMENTS / 'unet.py', 'gpu_benchmark')
  one = config.copy_and_resolve_references()
  with one.unlocked():
    one.model, one.optim = theirs.model, theirs.optim
    one.train.loss = theirs.train.loss
    if small:
      one.model.update(base_width=2, padding='SAME')
    else:
      one.data = theirs.data
      one.data.source = 'synthetic'
  rows = [(one, b, d) for d in config.benchmark.dtypes for b in (8, 1)]
  _measure(rows[-1:] if small else rows, save, published.lines())


def predictions(config: Config, save: Save) -> None:
  """What the compiled step must take and was predicted to, and what it takes.

  The bound is that of its kernels one after the other, see
  `bounds.one_by_one`; the prediction is the committed one for one such device.
  """
  bare, section = plan.split(config)
  work = workload.Bench(bare).build(_cell(bare, 'compute'))
  compiled, found = measure.compile_phases(work.jitted, *work.arguments)
  timing = measure.time_calls(
    work.start(compiled),
    warmup=section.warmup,
    repetitions=section.repetitions,
  )
  table = kernels.table(program.Program(compiled.as_text()))
  kind, p50 = jax.devices()[0].device_kind, timing.summary()['p50']
  peak = peaks.PEAKS.get(kind)
  here = {
    'kernels': kernels.count(table)['kernels'],
    'GB of the kernels': kernels.count(table)['bytes'] / 1e9,
    'GiB of memory': (found['predicted_bytes'] or 0) / 2**30,
  }
  result: Result = {'device': kind, 'p50': p50, 'here': here, 'ahead': None}
  lines = [f'{kind}: a step takes {p50 * 1e3:.4g} ms']
  if peak:
    bound = bounds.one_by_one(table, peak)
    result['bound_s'] = bound
    lines.append(
      f'its kernels one after the other at least {bound * 1e3:.4g} ms, '
      f'{bound / p50:.1%} of that'
    )
  ahead = _predicted(kind, bare)
  if ahead:
    memory = ahead['memory']['peak'] / 2**30
    figures = ahead['kernels']['kernels'], ahead['kernels']['bytes'] / 1e9
    result['ahead'] = dict(zip(here, (*figures, memory), strict=True))
  for name, value in here.items():
    predicted = f', predicted {result["ahead"][name]:,.4g}' if ahead else ''
    lines.append(f'{name}: {value:,.4g}{predicted}')
  save({**result, 'lines': lines})


def _predicted(kind: str, bare: Config) -> dict[str, Any] | None:
  """The committed prediction for one device of a kind and this config."""
  work = (bare.model.name, bare.train.batch_size, bare.model.dtype)
  kernels = bare.train.kernels
  for path in sorted((EXPERIMENTS / 'results/benchmark').glob('aot_*.json')):
    report = files.read_json(path)
    place, about = report['topology'], report['workload']
    row = report['rows'][0]
    made = report['identity']['config'].get('train.kernels', 'xla')
    if (
      (place['device_kind'], place['devices'], made) == (kind, 1, kernels)
    ) and work == (about['model'], row['batch'], about['dtype']):
      return row
  return None


def systems(config: Config, save: Save) -> None:
  """The first of these rows for each of the other networks."""
  batch, dtype = config.benchmark.batches[0], config.benchmark.dtypes[0]
  _measure([(other, batch, dtype) for other in _others(config)], save)


def _measure(
  rows: list[tuple[Config, int, str]], save: Save, more: Sequence[str] = ()
) -> None:
  reports, lines = [], list(more)
  for config, batch, dtype in rows:
    one = config.copy_and_resolve_references()
    one.benchmark.batches, one.benchmark.dtypes = (batch,), (dtype,)
    measured = sweep.run(one, _say)
    assert measured is not None  # This is the only host.
    report, _ = measured
    reports.append(report)
    lines += report_lib.format_table(report).splitlines()
    save({'reports': reports, 'lines': lines})
  failed = [r['error'] for one in reports for r in one['results'] if r['error']]
  if failed:
    raise errors.RunError(f'{len(failed)} row(s) failed: {failed[0]}')


def peer(config: Config, save: Save) -> None:
  """The race against PyTorch, in each dtype."""
  if importlib.util.find_spec('torch') is None:
    save({'skipped': 'PyTorch is not installed.'})
    return
  races, lines = [], []
  rounds = min(ROUNDS, config.benchmark.repetitions)
  for dtype in config.benchmark.dtypes:
    bare, _ = plan.split(config)
    bare.model.dtype = dtype
    races.append(race.race(bare, rounds=rounds, say=_say))
    lines += race.format_table(races[-1]).splitlines()
    save({'races': races, 'lines': lines})


def scan(config: Config, save: Save) -> None:
  """Compile times of the training step, scanned and unrolled."""
  result, lines = {}, []
  for name in ('scanned', 'unrolled'):
    bare, _ = plan.split(config)
    bare.model.scan = name == 'scanned'
    if bare.data.size:  # --smoke, where no stage has equal blocks to scan.
      bare.model.repetitions = SCANNED
    work = workload.Bench(bare).build(_cell(bare, 'compute'))
    _, c = measure.compile_phases(work.jitted, *work.arguments)
    result[name] = c
    lines.append(
      f'{name}: traced {c["trace_s"]:.1f} s, lowered {c["lower_s"]:.1f} s, '
      f'compiled {c["compile_s"]:.1f} s, {c["hlo_instructions"]} instructions'
    )
    save({**result, 'lines': lines})


def _cell(bare: Config, feed: str) -> plan.Cell:
  size, dtype = bare.train.batch_size, bare.model.dtype
  return plan.Cell('train', feed, 'jit', 1, dtype, size)


def epoch(config: Config, save: Save) -> None:
  """Times a whole epoch in one call, and the share of augmentation."""
  bare, section = plan.split(config)
  bare.train.batch_size = min(5, bare.train.batch_size)
  bench = workload.Bench(bare)
  size = bare.train.batch_size
  bare.train.steps_per_call = bench.pipeline(size).steps_per_epoch
  bench = workload.Bench(bare)
  result: dict[str, dict[str, Any]] = {}
  lines = []
  for feed in ('compute', 'augment', 'end_to_end'):
    work = bench.build(_cell(bare, feed))
    compiled = work.jitted.lower(*work.arguments).compile()
    timing = measure.time_calls(
      work.start(compiled),
      warmup=section.warmup,
      repetitions=section.repetitions,
    )
    result[feed] = {'steps': work.steps, **timing.summary()}
    p50 = result[feed]['p50']
    lines.append(
      f'{feed}: {p50 * 1e3:.4g} ms for {work.steps} step(s), '
      f'{work.steps * size / p50:.4g} images/s'
    )
    save({'batch': size, **result, 'lines': lines})
  share = 1 - result['compute']['p50'] / result['augment']['p50']
  lines.append(f'augmentation takes {share:.1%} of a step')
  save({'batch': size, **result, 'augmentation_share': share, 'lines': lines})


def determinism(config: Config, save: Save) -> None:
  """The first row with XLA's usual, then with deterministic operations."""
  section, rates, lines = config.benchmark, {}, []
  row = (config, section.batches[0], section.dtypes[0])
  for name in ('usual', 'deterministic'):
    if name == 'deterministic':
      # The processes that measure are started after this and inherit it.
      environment.set_deterministic()
    result: Result = {}
    _measure([row], result.update)
    rates[name] = result['reports'][0]['results'][0]['images_per_second']
    lines += [f'{name}:', *result['lines']]
    save({'images_per_second': rates, 'lines': lines})
  ratio = rates['deterministic'] / rates['usual']
  lines.append(f'deterministic: {ratio:.3f} of the usual images/s')
  save({'images_per_second': rates, 'ratio': ratio, 'lines': lines})


class Piece(NamedTuple):
  """A measurement, and the seconds that it may take."""

  run: Callable[[Config, Save], None]
  limit: float


# The most important first. A limit keeps one piece from taking the time of all
# that follow; the first five take at most 500 of 540 seconds.
PIECES: dict[str, Piece] = {
  'parity': Piece(parity, 60),
  'throughput': Piece(throughput, 170),
  'nvidia_unet': Piece(nvidia_unet, 90),
  'peer': Piece(peer, 130),
  'predictions': Piece(predictions, 50),
  'scan': Piece(scan, 60),
  'systems': Piece(systems, 60),
  'epoch': Piece(epoch, 45),
  'determinism': Piece(determinism, 60),
}


def adapt(config: Config, smoke: bool) -> Config:
  """Adapts the config of `experiments/benchmark.py` in place."""
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
  if smoke:
    # One convolution a block: torch.compile takes half a minute for three.
    config.model.blocks = 'simple'
  else:
    config.model.dtype = 'bfloat16'
  return config
