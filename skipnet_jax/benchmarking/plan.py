"""Which rows a benchmark measures: `config.benchmark`, and its checks."""

from collections.abc import Iterator, Sequence
import dataclasses
import math
from typing import Any

import ml_collections

from skipnet_jax import config as config_lib
from skipnet_jax import errors

Section = ml_collections.ConfigDict

CALLS = ('train', 'eval', 'inference')
FEEDS = ('compute', 'augment', 'end_to_end')
DTYPES = ('float32', 'bfloat16')
SCALING = ('weak', 'strong')
# Images that the slice of a tiled prediction counts as.
INFERENCE_BATCH = 4


@dataclasses.dataclass(frozen=True)
class Cell:
  """What one row measures.

  Attributes:
    call: one of CALLS.
    feed: one of FEEDS, see `workload`.
    mode: of `training.parallel`.
    devices: how many, of all processes.
    dtype: of compute.
    batch: examples, over all devices.
  """

  call: str
  feed: str
  mode: str
  devices: int
  dtype: str
  batch: int

  def __str__(self) -> str:
    return (
      f'{self.call} {self.feed} {self.mode} x{self.devices} {self.dtype} '
      f'batch {self.batch}'
    )


def get_default() -> Section:
  """The section `config.benchmark`: every field, documented."""
  b = Section()
  b.calls = CALLS
  b.feeds = FEEDS  # Of the training step.
  b.dtypes = ('float32', 'bfloat16')
  # Examples over all devices, for weak scaling on each; 0: the largest batch
  # that fits on one device, found.
  b.batches = (0,)
  # The first measures every call and feed. The others measure the training step
  # by the first feed: what modes and numbers of devices are compared by.
  b.modes = ('jit', 'pmap', 'sharded')
  # Numbers of devices for pmap and sharded; 0: all. Empty: 1, 2, 4 ... all.
  b.devices = ()
  # weak: the batch on each device, strong: the batch over all of them. Empty:
  # as strong, without its table.
  b.scaling = SCALING
  b.warmup = 3  # Calls before the timed ones.
  b.repetitions = 20  # Timed calls, in each process.
  b.processes = 3  # Fresh processes that measure everything.
  return b


def split(
  config: ml_collections.ConfigDict,
) -> tuple[ml_collections.ConfigDict, Section]:
  """The config of what is measured, and the section that says how.

  Raises:
    InputError: either cannot be used; found without data and devices.
  """
  if 'benchmark' not in config:
    raise errors.InputError(
      'This experiment does not say what to measure: give '
      'experiments/benchmark.py, or one that sets config.benchmark too.'
    )
  bare = config.copy_and_resolve_references()
  with bare.unlocked():
    section = bare.benchmark
    del bare.benchmark
  known = get_default()
  for field in section:
    if field not in known:
      raise errors.InputError(
        f'Unknown config field benchmark.{field}: '
        f'{config_lib.nearest(field, list(known))}'
      )
  for field in known:
    if field not in section:
      section[field] = known[field]
  _check(section)
  if bare.parallel.coordinator:
    _check_several(section)
  # Each row has its own.
  bare.parallel.mode = section.modes[0]
  config_lib.validate(bare)
  return bare, section


def _check(section: Section) -> None:
  for field, choices in (
    ('calls', CALLS),
    ('feeds', FEEDS),
    ('dtypes', DTYPES),
    ('modes', config_lib.MODES),
    ('scaling', SCALING),
  ):
    values = section[field]
    if isinstance(values, str) or any(v not in choices for v in values):
      raise errors.InputError(
        f'benchmark.{field} is {values!r}; it must be names among '
        f'{", ".join(choices)}.'
      )
    if not values and field != 'scaling':
      raise errors.InputError(
        f'benchmark.{field} is empty; name at least one of '
        f'{", ".join(choices)}.'
      )
  for field, low, values in (
    ('batches', 0, section.batches),
    ('devices', 0, section.devices),
    ('warmup', 1, [section.warmup]),
    ('repetitions', 1, [section.repetitions]),
    ('processes', 1, [section.processes]),
  ):
    for value in values:
      if value < low:
        raise errors.InputError(
          f'benchmark.{field} is {value}; it must be at least {low}.'
        )
  if not section.batches:
    raise errors.InputError(
      'benchmark.batches is empty; give numbers, 0 for the largest that fits.'
    )
  if 'inference' in section.calls and 'jit' not in section.modes:
    raise errors.InputError(
      'benchmark.calls has inference, which runs on one device: add jit to '
      'benchmark.modes, or leave it out.'
    )


def _check_several(section: Section) -> None:
  if tuple(section.modes) != ('sharded',):
    raise errors.InputError(
      f'benchmark.modes is {tuple(section.modes)}; with parallel.coordinator '
      "it must be ('sharded',), the one mode of several processes."
    )
  if 0 in section.batches:
    raise errors.InputError(
      'benchmark.batches has 0, and the largest batch is looked for on one '
      'device: give a number where there are several processes.'
    )


def device_counts(
  section: Section, available: int, hosts: int, platform: str
) -> tuple[int, ...]:
  """Numbers of devices that pmap and sharded run on, in order.

  Args:
    section: `config.benchmark`.
    available: devices of all processes.
    hosts: processes.
    platform: of the devices.

  Raises:
    InputError: more than there are, or fewer where there are several processes.
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
      f'benchmark.devices is {counts}, but {hosts} processes take part with '
      f'{available} devices: give {available}, and start fewer processes for '
      'fewer.'
    )
  return tuple(counts)


def groups(section: Section) -> Iterator[tuple[str, str, int]]:
  """Call, dtype and batch of each group of rows; batch 0 is to be found."""
  for dtype in dict.fromkeys(section.dtypes):
    for call in dict.fromkeys(section.calls):
      if call == 'inference':
        yield call, dtype, INFERENCE_BATCH
      else:
        for batch in dict.fromkeys(section.batches):
          yield call, dtype, batch


def trial(section: Section, call: str, dtype: str, batch: int) -> Cell:
  """The cell by which a batch of a group is tried, on one device.

  Of the feeds the one that needs most memory: the data set and its
  augmentation.
  """
  feed = 'compute'
  if call == 'train' and set(section.feeds) - {'compute'}:
    feed = 'augment'
  return Cell(call, feed, section.modes[0], 1, dtype, batch)


def cells(
  section: Section,
  call: str,
  dtype: str,
  batch: int,
  counts: Sequence[int],
  *,
  found: bool,
) -> list[Cell]:
  """The rows of a group.

  Args:
    section: `config.benchmark`.
    call: of the group.
    dtype: of the group.
    batch: of the group.
    counts: from `device_counts`.
    found: whether the batch was looked for. Then strong scaling has the largest
      one below it that all counts divide, and none if there is none.

  Raises:
    InputError: a given batch that a number of devices does not divide.
  """
  if call == 'inference':
    return [Cell(call, 'end_to_end', 'jit', 1, dtype, batch)]
  rows: dict[Cell, Any] = {}
  for mode in dict.fromkeys(section.modes):
    first = mode == section.modes[0]
    if call == 'eval' and not first:
      continue
    feeds = ['compute']
    if call == 'train':
      feeds = section.feeds if first else section.feeds[:1]
    for count, size in _shapes(section, mode, batch, counts, found):
      for feed in feeds:
        rows[Cell(call, feed, mode, count, dtype, size)] = None
  return list(rows)


def _shapes(section, mode, batch, counts, found) -> list[tuple[int, int]]:
  """Number of devices and batch of a mode's rows."""
  if mode == 'jit':
    return [(1, batch)]
  shapes = []
  if 'weak' in section.scaling:
    shapes += [(n, n * batch) for n in counts]
  if 'strong' in section.scaling or not section.scaling:
    divisor = math.lcm(*counts)
    if found:
      batch = batch // divisor * divisor
    elif batch % divisor:
      raise errors.InputError(
        f'benchmark.batches has {batch}, which is to be divided among '
        f'{", ".join(map(str, counts))} devices: give multiples of {divisor}, '
        "or benchmark.scaling=('weak',) for a batch on each."
      )
    shapes += [(n, batch) for n in counts if batch]
  return shapes
