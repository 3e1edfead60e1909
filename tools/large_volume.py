"""Predicts a large synthetic volume, kills it on the way, and compares.

python tools/large_volume.py --workdir=RUN --output=runs/large_volume

Makes volume.zarr of --slices x --side x --side grey values, predicts it once
undisturbed, and once in processes that are killed three times, of which two
work at the same time in the end: all files must be equal. Of the first --few
slices, it also compares the time with that of a TIFF in turns, and two
processes of one core each with one. Writes large_volume.json, and exits with 1
if the files differ.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time

from absl import flags
import numpy as np
import tensorstore as ts

from skipnet_jax import cli
from skipnet_jax import environment
from skipnet_jax import files
from skipnet_jax.data import synthetic
from skipnet_jax.data import volume

_WORKDIR = flags.DEFINE_string('workdir', None, 'A run whose network predicts.')
_OUTPUT = flags.DEFINE_string('output', None, 'A new folder.')
_SLICES = flags.DEFINE_integer('slices', 32, 'Of the volume.', lower_bound=4)
_FEW = flags.DEFINE_integer('few', 4, 'Of what is timed.', lower_bound=2)
_SIDE = flags.DEFINE_integer('side', 4096, 'In pixels.', lower_bound=512)
_MEMORY = flags.DEFINE_float('memory_gb', 2.0, 'As of predict.')
_TILE = flags.DEFINE_integer('tile', 512, 'As of predict.')
_ROUNDS = flags.DEFINE_integer(
  'rounds', 2, 'Of the timing, in turns.', lower_bound=1
)
KILLS = 3


def make(path: pathlib.Path, slices: int, side: int) -> None:
  """Writes an OME-Zarr 0.5 volume: synthetic pages mirrored, noise in each."""
  pages, _ = synthetic.generate(seed=0, slices=8, size=512)
  rng = np.random.default_rng(0)
  array = ts.open(
    {
      'driver': 'zarr3',
      'kvstore': {'driver': 'file', 'path': f'{path}/0/'},
      'metadata': {
        'shape': [slices, side, side],
        'data_type': 'uint8',
        'chunk_grid': {
          'name': 'regular',
          'configuration': {'chunk_shape': [1, 512, 512]},
        },
      },
    },
    create=True,
  ).result()
  for z in range(slices):
    page = np.pad(pages[z % len(pages)], (0, side - 512), 'symmetric')
    noise = rng.integers(-4, 5, page.shape)
    array[z].write(np.clip(page + noise, 0, 255).astype(np.uint8)).result()
  scale = {'type': 'scale', 'scale': [50.0, 4.0, 4.0]}
  image = {
    'axes': [
      {'name': name, 'type': 'space', 'unit': 'nanometer'} for name in 'zyx'
    ],
    'datasets': [{'path': '0', 'coordinateTransformations': [scale]}],
  }
  attributes = {'ome': {'version': '0.5', 'multiscales': [image]}}
  group = {'zarr_format': 3, 'node_type': 'group', 'attributes': attributes}
  files.write_json(path / 'zarr.json', group)


@dataclasses.dataclass
class Cost:
  """What a process took: seconds, also of processors, and its peak memory."""

  seconds: float
  cpu_seconds: float
  peak_gb: float
  code: int


class Predict:
  """A running predict.

  Args:
    source: the input.
    target: the output.
    *arguments: more of them.
    core: on which alone it runs; None: on all.
  """

  def __init__(
    self,
    source: pathlib.Path,
    target: pathlib.Path,
    *arguments: str,
    core: int | None = None,
  ):
    self._begin = time.perf_counter()
    self._process = subprocess.Popen(
      [
        *(sys.executable, '-m', 'skipnet_jax.predict'),
        f'--workdir={cli.require(_WORKDIR)}',
        f'--input={source}',
        f'--output={target}',
        f'--tile={_TILE.value}',
        *arguments,
      ],
      stdout=subprocess.DEVNULL,
      preexec_fn=None
      if core is None
      else lambda: os.sched_setaffinity(0, {core}),
    )

  def kill_at(self, folder: pathlib.Path, count: int) -> None:
    """Kills it once a volume has so many files."""
    while self._process.poll() is None and len(digests(folder)) < count:
      time.sleep(0.2)
    self._process.send_signal(signal.SIGKILL)
    self._process.wait()

  def wait(self) -> Cost:
    """Waits for its end."""
    _, status, used = os.wait4(self._process.pid, 0)
    self._process.returncode = code = os.waitstatus_to_exitcode(status)
    return Cost(
      seconds=time.perf_counter() - self._begin,
      cpu_seconds=used.ru_utime + used.ru_stime,
      peak_gb=used.ru_maxrss * 1024 / 1e9,
      code=code,
    )


def digests(folder: pathlib.Path) -> dict[str, str]:
  """SHA-256 by name of a volume's files; its metadata name the folder."""
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob('*'))
    if path.is_file() and path.name != 'zarr.json' and path.suffix != '.part'
  }


def survive(
  source: pathlib.Path, target: pathlib.Path, memory: str, whole: int
) -> None:
  """Predicts in processes that are killed, and in two at the end."""
  for kill in range(1, KILLS + 1):
    Predict(source, target, memory).kill_at(target, kill * whole // 6)
  halves = [
    Predict(source, target, memory, f'--shard_id={i}', '--num_shards=2')
    for i in range(2)
  ]
  halves[0].kill_at(target, 5 * whole // 6)
  halves[1].wait()
  Predict(source, target, memory).wait()


def compare_times(
  few: pathlib.Path, tiff: pathlib.Path, folder: pathlib.Path, memory: str
) -> dict[str, list[Cost]]:
  """Volume and TIFF, and one and two processes of one core, in turns."""
  found: dict[str, list[Cost]] = {
    name: [] for name in ('volume', 'tiff', 'one_core', 'two_cores')
  }
  for turn in range(_ROUNDS.value):
    to = folder / f'turn_{turn}'
    to.mkdir()
    found['volume'].append(Predict(few, to / 'volume.zarr', memory).wait())
    found['tiff'].append(Predict(tiff, to / 'tiff.tif').wait())
    one = Predict(few, to / 'one.zarr', memory, core=0)
    found['one_core'].append(one.wait())
    pair = [
      Predict(
        *(few, to / 'two.zarr', memory),
        *(f'--shard_id={i}', '--num_shards=2'),
        core=i,
      )
      for i in range(2)
    ]
    costs = [each.wait() for each in pair]
    found['two_cores'].append(max(costs, key=lambda cost: cost.seconds))
  return found


def ratio(costs: dict[str, list[Cost]], one: str, other: str) -> float:
  """Of the seconds, the median over the turns."""
  pairs = zip(costs[one], costs[other], strict=True)
  return statistics.median(a.seconds / b.seconds for a, b in pairs)


def main() -> None:
  """Makes, predicts, compares."""
  folder = pathlib.Path(cli.require(_OUTPUT))
  cli.require(_WORKDIR)
  if os.path.lexists(folder):
    cli.refuse(f'{folder} exists: name a new --output.')
  folder.mkdir(parents=True)
  big, few = folder / 'volume.zarr', folder / 'few.zarr'
  make(big, _SLICES.value, _SIDE.value)
  make(few, _FEW.value, _SIDE.value)
  memory = f'--memory_gb={_MEMORY.value}'
  whole = Predict(big, folder / 'whole.zarr', memory).wait()
  expected = digests(folder / 'whole.zarr')
  print(f'undisturbed: {whole}, {len(expected)} files', flush=True)
  survive(big, folder / 'killed.zarr', memory, len(expected))
  equal = digests(folder / 'killed.zarr') == expected
  print(f'killed: {"equal" if equal else "DIFFERENT"}', flush=True)
  with volume.open_stack(few) as stack:
    metadata = {'unit': 'nm', 'resolution': (0.25, 0.25)}
    volume.write_stack(folder / 'few.tif', stack.read_all(), metadata)
  costs = compare_times(few, folder / 'few.tif', folder, memory)
  report = {
    'command': environment.command(),
    'date': environment.now(),
    'versions': environment.versions(('jax', 'jaxlib', 'tensorstore')),
    'cores': os.cpu_count(),
    'shape': [_SLICES.value, _SIDE.value, _SIDE.value],
    'memory_gb': _MEMORY.value,
    'undisturbed': dataclasses.asdict(whole),
    'kills': KILLS + 1,
    'equal_after_kills': equal,
    'slices_timed': _FEW.value,
    'volume_over_tiff': ratio(costs, 'volume', 'tiff'),
    'two_processes_over_one': ratio(costs, 'two_cores', 'one_core'),
    'costs': {
      name: [dataclasses.asdict(each) for each in turns]
      for name, turns in costs.items()
    },
  }
  files.write_json(folder / 'large_volume.json', report)
  codes: Sequence[int] = [c.code for turns in costs.values() for c in turns]
  print(
    f'time of a volume over that of a TIFF: {report["volume_over_tiff"]:.2f}, '
    f'of two processes over one: {report["two_processes_over_one"]:.2f}, peak '
    f'memory {whole.peak_gb:.2f} GB'
  )
  if not equal or whole.code or any(codes):
    sys.exit(1)


if __name__ == '__main__':
  cli.run(main)
