"""Trains the smoke preset for many steps and checks for leaks.

python tools/soak.py --steps=10000 --output=runs/soak

Twice a second it records the memory, open files, threads and compilations of
the process. Writes soak.csv, soak.png and soak.json. Exits with 1 if, after the
first tenth of the run, anything was compiled, the number of open files or
threads grew, or memory grew by more than 1 % per tenth.
"""

import os
import pathlib
import statistics
import threading
import time

from absl import flags

from skipnet_jax import cli
from skipnet_jax import config as config_lib
from skipnet_jax import errors

_STEPS = flags.DEFINE_integer(
  'steps', 10_000, 'Number of steps.', lower_bound=100
)
_OUTPUT = flags.DEFINE_string('output', None, 'A new folder.')
_EVERY = flags.DEFINE_integer(
  'checkpoint_every', 5, 'In epochs.', lower_bound=1
)
ROOT = pathlib.Path(__file__).resolve().parents[1]
SECONDS = 0.5
EVENT = '/jax/core/compile/backend_compile_duration'


class Watch:
  """Records the resources of this process until `stop`."""

  def __init__(self, workdir: pathlib.Path):
    self.rows: list[dict[str, float]] = []
    self.compiled = 0
    self._metrics = workdir / 'metrics.jsonl'
    self._end = threading.Event()
    self._thread = threading.Thread(target=self._work, daemon=True)
    self._thread.start()

  def count(self, event: str, duration: float, **_) -> None:
    """A listener for JAX's events."""
    del duration
    self.compiled += event == EVENT

  def _work(self) -> None:
    begin, epochs, place = time.monotonic(), 0, 0
    page = os.sysconf('SC_PAGE_SIZE') / 2**20
    while not self._end.wait(SECONDS):
      if self._metrics.exists():
        with self._metrics.open('rb') as file:
          file.seek(place)
          epochs += file.read().count(b'\n')
          place = file.tell()
      resident = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
      self.rows.append(
        {
          'seconds': round(time.monotonic() - begin, 1),
          'epoch': epochs,
          'resident_mib': round(resident * page, 1),
          'open_files': len(os.listdir('/proc/self/fd')),
          'threads': threading.active_count(),
          'compiled': self.compiled,
        }
      )

  def stop(self) -> None:
    """Stops the recording thread."""
    self._end.set()
    self._thread.join()


def judge(rows: list[dict[str, float]], epochs: int) -> dict:
  """Growth over tenths of the run, and the faults found."""
  tenths = []
  for i in range(10):
    part = [r for r in rows if i * epochs < 10 * r['epoch'] <= (i + 1) * epochs]
    if part:
      row = {name: max(r[name] for r in part) for name in part[0]}
      # The minimum: a checkpoint may be being written in the background.
      for name in ('open_files', 'threads'):
        row[name] = min(r[name] for r in part)
      row['resident_mib'] = statistics.median(r['resident_mib'] for r in part)
      tenths.append(row)
  first, last = tenths[1], tenths[-1]
  faults = [
    f'{name}: {first[name]} to {last[name]}'
    for name in ('open_files', 'threads', 'compiled')
    if last[name] > first[name]
  ]
  growth = last['resident_mib'] / first['resident_mib'] - 1
  if growth > 0.01 * len(tenths):
    faults.append(f'resident memory: {growth:+.1%}')
  return {'tenths': tenths, 'memory_growth': growth, 'faults': faults}


def draw(rows: list[dict[str, float]], path: pathlib.Path) -> None:
  """Plots memory, open files and compilations by step."""
  from matplotlib import figure

  page = figure.Figure((7, 5), layout='constrained')
  axes = page.subplots(3, sharex=True)
  for ax, name, label in zip(
    axes,
    ('resident_mib', 'open_files', 'compiled'),
    ('resident memory, MiB', 'open files', 'compilations'),
    strict=True,
  ):
    ax.plot([2 * r['epoch'] for r in rows], [r[name] for r in rows])
    ax.set_ylabel(label)
    ax.set_ylim(0)
  axes[-1].set_xlabel('steps')
  page.savefig(path, dpi=100)


def main() -> None:
  """Trains, records and checks."""
  import jax

  from skipnet_jax import environment
  from skipnet_jax import files
  from skipnet_jax.training import loop

  cli.require(_OUTPUT)
  output = pathlib.Path(_OUTPUT.value)
  if os.path.lexists(output):
    cli.refuse(f'{output} exists: name a new --output.')
  config = config_lib.load_experiment(
    ROOT / 'experiments' / 'long_short.py', 'smoke'
  )
  config.train.epochs = _STEPS.value // 2  # An epoch has two steps.
  config.train.checkpoint_every = _EVERY.value
  config.log.progress = False
  (output / 'run').mkdir(parents=True)
  watch = Watch(output / 'run')
  jax.monitoring.register_event_duration_secs_listener(watch.count)
  loop.train_and_evaluate(config, output / 'run')
  watch.stop()
  rows = [row for row in watch.rows if 0 < row['epoch'] < config.train.epochs]
  sizes = {
    path.name: sum(p.stat().st_size for p in [path, *path.rglob('*')])
    for path in sorted((output / 'run').iterdir())
  }
  report = {
    'command': environment.command(),
    'date': environment.now(),
    'versions': environment.versions(('jax', 'orbax-checkpoint')),
    'steps': _STEPS.value,
    'checkpoint_every_epochs': _EVERY.value,
    'bytes': sizes,
    **judge(rows, config.train.epochs),
  }
  files.write_json(output / 'soak.json', report)
  cells = [row.values() for row in rows]
  files.write_csv(output / 'soak.csv', list(rows[0]), cells)
  draw(rows, output / 'soak.png')
  for row in report['tenths']:
    print(row)
  if report['faults']:
    raise errors.RunError(f'Growth: {"; ".join(report["faults"])}.')


if __name__ == '__main__':
  cli.run(main, 'no report was written.')
