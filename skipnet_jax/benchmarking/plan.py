"""Reads and checks `config.benchmark`, and lists the rows to measure."""

from collections.abc import Iterator, Sequence
import dataclasses
import math

import ml_collections

from skipnet_jax import config as config_lib
from skipnet_jax import config_checks
from skipnet_jax import errors
from skipnet_jax.benchmarking.reporting import schema

Section = ml_collections.ConfigDict

DTYPES = ('float32', 'bfloat16')
COMPILE = ('reuse', 'anew')
PRECISIONS = ('default', 'high', 'highest')
SCALING = ('weak', 'strong')
# A tiled prediction counts as this number of images.
INFERENCE_BATCH = 4


@dataclasses.dataclass(frozen=True)
class Cell:
  """What one row measures.

  Attributes:
    call: one of `schema.CALLS`.
    feed: one of `schema.FEEDS`, see `workload`.
    mode: of `step.parallel`.
    devices: number of devices, of all processes.
    dtype: of the computation.
    batch: examples, over all devices.
    matmul_precision: JAX's name of the precision of float32 products.
  """

  call: str
  feed: str
  mode: str
  devices: int
  dtype: str
  batch: int
  matmul_precision: str = 'default'

  def __str__(self) -> str:
    exact = self.matmul_precision
    return (
      f'{self.call} {self.feed} {self.mode} x{self.devices} {self.dtype} '
      f'{"" if exact == "default" else f"{exact} "}batch {self.batch}'
    )


def get_default() -> Section:
  """The default of `config.benchmark`, with a comment on every field."""
  b = Section()
  b.calls = schema.CALLS  # What is timed.
  b.feeds = schema.FEEDS  # Of the training step.
  b.dtypes = DTYPES  # Of the network, one after the other.
  # Of float32 products: default (TF32 on NVIDIA GPUs since the A100, one
  # bfloat16 pass on a TPU), high (TF32, three) or highest (float32, six).
  b.matmul_precision = 'default'
  # Examples over all devices; for weak scaling, on each device. 0: search for
  # the largest batch that fits on one device.
  b.batches = (0,)
  # The first mode measures every call and feed. The others measure the training
  # step with the first feed: it compares modes and numbers of devices.
  b.modes = config_lib.MODES
  # Numbers of devices for pmap and sharded; 0: all. Empty: 1, 2, 4 ... all.
  b.devices = ()
  # weak: the batch is that of each device. strong: the batch is divided among
  # the devices. Empty: as strong, but without the table of efficiencies.
  b.scaling = SCALING
  b.warmup = 3  # Untimed calls before the timed ones.
  b.repetitions = 20  # Timed calls in each process.
  b.processes = 3  # New processes, each of which measures everything.
  # The programs of the processes after the first: reuse (load its programs) or
  # anew (compile again, so that a GPU's kernels are chosen again). '': anew on
  # a GPU, else reuse.
  b.processes_compile = ''
  return b


def split(
  config: ml_collections.ConfigDict,
) -> tuple[ml_collections.ConfigDict, Section]:
  """Splits off `config.benchmark`, and checks both parts.

  Returns:
    The config of the network that is measured; the section, complete.

  Raises:
    InputError: either cannot be used. Data and devices are not looked at.
  """
  if 'benchmark' not in config:
    raise errors.InputError(
      'This experiment does not say what to measure: give --config=benchmark, '
      'or an experiment that sets config.benchmark.'
    )
  bare = config.copy_and_resolve_references()
  with bare.unlocked():
    given = bare.benchmark
    del bare.benchmark
  default = get_default()
  for field in given:
    if field not in default:
      raise errors.InputError(
        f'Unknown config field benchmark.{field}: '
        f'{config_lib.nearest(field, list(default))}'
      )
  section = Section({**default, **given})
  _check(section)
  if bare.parallel.coordinator:
    if tuple(section.modes) != ('sharded',):
      raise errors.InputError(
        f'benchmark.modes is {tuple(section.modes)}; with parallel.coordinator '
        "it must be ('sharded',), the only mode for several processes."
      )
    if 0 in section.batches:
      raise errors.InputError(
        'benchmark.batches has 0, but the largest batch is searched for on one '
        'device only: with parallel.coordinator, give numbers above 0.'
      )
  # Each row sets its own mode.
  bare.parallel.mode = section.modes[0]
  config_checks.validate(bare)
  config_checks.require_random_start(bare, 'a benchmark')
  return bare, section


def check_measured(config: ml_collections.ConfigDict, section: Section) -> None:
  """Refuses fields of a config in whose place `config.benchmark` has others.

  Args:
    config: as it was given.
    section: from `split`.

  Raises:
    InputError: one of them is set, and nothing with this value is measured.
  """
  default = config_lib.get_default().parallel
  for field, value, usual, own in (
    ('model.dtype', config.model.dtype, 'float32', 'dtypes'),
    ('parallel.mode', config.parallel.mode, default.mode, 'modes'),
    ('parallel.devices', config.parallel.devices, 0, 'devices'),
  ):
    if value != usual and value not in section[own]:
      raise errors.InputError(
        f'{field} is {value!r}, but benchmark.{own} says what is measured, '
        f'{tuple(section[own])}: set that instead.'
      )


def check_predicted(config: ml_collections.ConfigDict) -> None:
  """Refuses fields of a config that a prediction does not follow.

  Raises:
    InputError: a mode or a number of devices.
  """
  for field, value, usual in (
    ('mode', config.parallel.mode, ('jit', 'sharded')),
    ('devices', config.parallel.devices, (0,)),
    ('coordinator', config.parallel.coordinator, ('',)),
  ):
    if value not in usual:
      raise errors.InputError(
        f'parallel.{field} is {value!r}, but --aot compiles the sharded step '
        'for all devices that it names: leave it out.'
      )


def _check(section: Section) -> None:
  for field, choices in (
    ('calls', schema.CALLS),
    ('feeds', schema.FEEDS),
    ('dtypes', DTYPES),
    ('modes', config_lib.MODES),
    ('scaling', SCALING),
  ):
    values = section[field]
    if isinstance(values, str) or any(v not in choices for v in values):
      raise errors.InputError(
        f'benchmark.{field} is {values!r}; it must be a tuple of names among '
        f'{", ".join(choices)}.'
      )
    if not values and field != 'scaling':
      raise errors.InputError(
        f'benchmark.{field} is empty; name at least one of '
        f'{", ".join(choices)}.'
      )
  for field, choices in (
    ('matmul_precision', PRECISIONS),
    ('processes_compile', ('', *COMPILE)),
  ):
    if section[field] not in choices:
      raise errors.InputError(
        f'benchmark.{field} is {section[field]!r}; it must be one of '
        f'{", ".join(map(repr, choices))}.'
      )
  for field, low, values in (
    ('batches', 0, section.batches),
    ('devices', 0, section.devices),
    ('warmup', 1, [section.warmup]),
    ('repetitions', 1, [section.repetitions]),
    ('processes', 1, [section.processes]),
  ):
    if not isinstance(values, tuple | list):
      raise errors.InputError(
        f'benchmark.{field} is {values!r}; it must be a tuple of whole numbers.'
      )
    for value in values:
      if type(value) is not int or value < low:
        raise errors.InputError(
          f'benchmark.{field} is {value!r}; it must be a whole number and at '
          f'least {low}.'
        )
  if not section.batches:
    raise errors.InputError(
      'benchmark.batches is empty; give numbers, 0 for the largest that fits.'
    )
  if 'inference' in section.calls and 'jit' not in section.modes:
    raise errors.InputError(
      'benchmark.calls has inference, which runs on one device: leave it out, '
      "as in benchmark.calls=('train', 'eval'), or add jit to benchmark.modes, "
      'which several processes do not have.'
    )


def device_counts(
  section: Section, available: int, hosts: int, platform: str
) -> tuple[int, ...]:
  """Numbers of devices that pmap and sharded run on, in ascending order.

  Args:
    section: `config.benchmark`.
    available: number of devices, of all processes.
    hosts: number of processes.
    platform: of the devices.

  Raises:
    InputError: more devices than there are; fewer with several processes.
  """
  wanted = section.devices
  if not wanted:
    powers = [2**i for i in range(available.bit_length())]
    wanted = [*powers, available] if hosts == 1 else [available]
  counts = sorted({n or available for n in wanted})
  if counts[-1] > available:
    raise errors.InputError(
      f'benchmark.devices has {counts[-1]}, but there are {available} '
      f'{platform} device(s): give at most {available}.'
    )
  if hosts > 1 and counts != [available]:
    raise errors.InputError(
      f'benchmark.devices is {counts}, but the {hosts} processes have '
      f'{available} devices: give {available}; to measure fewer, start fewer '
      'processes.'
    )
  return tuple(counts)


def compile_again(section: Section, platform: str) -> bool:
  """Whether the processes after the first compile their programs anew."""
  if section.processes_compile:
    return section.processes_compile == 'anew'
  return platform == 'gpu'


def describe(section: Section, available: int, platform: str) -> str:
  """What is measured, a line for each row.

  Args:
    section: `config.benchmark`, from `split`.
    available: number of devices of this process.
    platform: of the devices.

  Raises:
    InputError: as `device_counts` and `cells`.
  """
  counts = device_counts(section, available, 1, platform)
  lines = [
    f'Measured in {section.processes} new process(es), each row '
    f'{section.repetitions} times after {section.warmup} untimed calls:'
  ]
  for call, dtype, batch in groups(section):
    # The size of a batch that is searched for is not known.
    found = cells(
      section, call, dtype, batch or math.lcm(*counts), counts, searched=False
    )
    for cell in dict.fromkeys(found):
      words = str(cell)
      if not batch:
        words = words.rpartition(' ')[0] + ': the largest that fits'
      lines.append(f'  {words}')
  return '\n'.join(dict.fromkeys(lines))


def groups(section: Section) -> Iterator[tuple[str, str, int]]:
  """Call, dtype and batch of each group of rows; batch 0: search for it."""
  for dtype in dict.fromkeys(section.dtypes):
    for call in dict.fromkeys(section.calls):
      if call == 'inference':
        yield call, dtype, INFERENCE_BATCH
      else:
        for batch in dict.fromkeys(section.batches):
          yield call, dtype, batch


def trial(section: Section, call: str, dtype: str) -> Cell:
  """The cell that a search for the largest batch begins with: batch 1.

  It has the feed that needs most memory: the data set with augmentation.
  """
  feed = 'compute'
  if call == 'train' and set(section.feeds) - {'compute'}:
    feed = 'augment'
  mode, precision = section.modes[0], section.matmul_precision
  return Cell(call, feed, mode, 1, dtype, 1, precision)


def cells(
  section: Section,
  call: str,
  dtype: str,
  batch: int,
  counts: Sequence[int],
  *,
  searched: bool,
) -> list[Cell]:
  """The rows of a group from `groups`.

  Args:
    section: `config.benchmark`.
    call, dtype: of the group.
    batch: of the group, or the result of a search.
    counts: from `device_counts`.
    searched: whether the batch comes from a search. Strong scaling then reduces
      it to a multiple of all counts, and has no rows if there is none.

  Raises:
    InputError: a given batch that a number of devices does not divide.
  """
  precision = section.matmul_precision
  if call == 'inference':
    return [Cell(call, 'end_to_end', 'jit', 1, dtype, batch, precision)]
  rows = []
  for mode in dict.fromkeys(section.modes):
    first = mode == section.modes[0]
    if call == 'eval' and not first:
      continue
    feeds = ['compute']
    if call == 'train':
      feeds = section.feeds if first else section.feeds[:1]
    for count, size in _shapes(section, mode, batch, counts, searched):
      rows += [
        Cell(call, feed, mode, count, dtype, size, precision) for feed in feeds
      ]
  return list(dict.fromkeys(rows))


def _shapes(section, mode, batch, counts, searched) -> list[tuple[int, int]]:
  """Number of devices and batch of each row of a mode."""
  if mode == 'jit':
    return [(1, batch)]
  shapes = []
  if 'weak' in section.scaling:
    shapes += [(n, n * batch) for n in counts]
  if 'strong' in section.scaling or not section.scaling:
    divisor = math.lcm(*counts)
    if searched:
      batch = batch // divisor * divisor
    elif batch % divisor:
      raise errors.InputError(
        f'benchmark.batches has {batch}, which is to be divided among '
        f'{", ".join(map(str, counts))} devices: give multiples of {divisor}, '
        "or benchmark.scaling=('weak',) for this batch on each device."
      )
    shapes += [(n, batch) for n in counts if batch]
  return shapes
