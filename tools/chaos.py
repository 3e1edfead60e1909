"""Interrupts a run many times, damages its files, and checks its result.

python tools/chaos.py --kills 100 --workdir runs/chaos

Real training processes of the smoke preset get SIGKILL at random moments (also
during their start and while they write a checkpoint) or SIGTERM. Sometimes a
second process is started on the same folder, a checkpoint is truncated or has a
bit flipped, or metrics.jsonl is truncated. The finished run must be
bit-identical to an undisturbed one. Writes chaos.json; exits with 1 if the runs
differ.
"""

import collections
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from absl import flags

from skipnet_jax import cli
from skipnet_jax import errors

_WORKDIR = flags.DEFINE_string('workdir', None, 'A new folder.')
_KILLS = flags.DEFINE_integer(
  'kills', 100, 'Number of interruptions.', lower_bound=1
)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the random choices.')
ROOT = pathlib.Path(__file__).resolve().parents[1]
# How a process ends, with relative frequencies; 'told' is SIGTERM.
FATES = {'killed': 8, 'killed starting': 2, 'killed writing': 6, 'told': 4}
# Damage to the files afterwards, with relative frequencies.
DAMAGES = {
  'none': 12,
  'metrics.jsonl cut': 3,
  'metrics.jsonl with half a line more': 2,
  'checkpoint cut': 3,
  'checkpoint with a bit flipped': 3,
}
FIELDS = {
  'model.blocks': 'simple',
  'log.progress': False,
  'log.tensorboard': False,
}
TIMEOUT = 300  # Seconds for each thing that a process is waited for.


def start(folder: pathlib.Path, epochs: int, output) -> subprocess.Popen:
  """Starts a training process of the smoke preset."""
  fields = FIELDS | {'train.epochs': epochs}
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'skipnet_jax.train',
      '--config=experiments/long_short.py:smoke',
      f'--workdir={folder.absolute()}',
      *(f'--config.{name}={value}' for name, value in fields.items()),
    ],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=output,
    stderr=subprocess.STDOUT,
    text=True,
  )


class Chaos:
  """One run and its interrupted processes, the lives."""

  def __init__(self, folder: pathlib.Path, seed: int):
    self.folder = folder
    self.random = random.Random(seed)
    self.lives: list[dict] = []

  def _pick(self, weights: dict[str, int]) -> str:
    return self.random.choices(list(weights), list(weights.values()))[0]

  def epochs(self) -> list[int]:
    """The epochs of all complete lines in metrics.jsonl."""
    path = self.folder / 'metrics.jsonl'
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)['epoch'] for line in lines if line.endswith('\n')]

  def _writing(self) -> bool:
    root = self.folder / 'checkpoints'
    return any('orbax-checkpoint-tmp' in p.name for p in root.glob('*/*'))

  def _until(
    self, process: subprocess.Popen, condition, pause: float = 0.02
  ) -> None:
    end = time.monotonic() + TIMEOUT
    while process.poll() is None and not condition():
      if time.monotonic() > end:
        process.kill()
        raise errors.RunError(
          f'A training process made no progress for {TIMEOUT} s.'
        )
      time.sleep(pause)

  def live(self, log: pathlib.Path) -> None:
    """Starts one process, interrupts it and damages the files."""
    fate, chance = self._pick(FATES), self.random.random()
    with log.open('w') as output:
      process = start(self.folder, 10**6, output)
    begin = time.monotonic()
    if fate == 'killed starting':
      self._until(process, lambda: time.monotonic() > begin + 6 * chance)
    else:
      self._until(process, lambda: '\nepoch ' in log.read_text())
      moment = time.monotonic() + 1.5 * chance
      self._until(process, lambda: time.monotonic() > moment)
    refused = None
    if fate == 'killed' and chance < 0.3:
      refused = self._second()
    if fate == 'killed writing':
      self._until(process, self._writing, 0.0005)
    process.send_signal(signal.SIGTERM if fate == 'told' else signal.SIGKILL)
    signalled = time.monotonic()
    code = process.wait(TIMEOUT)
    text = log.read_text()
    wanted = 0 if fate == 'told' else -signal.SIGKILL
    if code != wanted or 'Traceback' in text:
      raise errors.RunError(
        f'{log}: exit code {code} or a traceback; expected code {wanted}.'
      )
    resumed = [x for x in text.splitlines() if x.startswith('Resuming after')]
    life = {
      'fate': fate,
      'resumed': resumed[0] if resumed else '',
      'fell_back': 'is damaged' in text,
      'seconds_to_stop': round(time.monotonic() - signalled, 2),
      'was_writing': self._writing(),
      'last_record': max(self.epochs(), default=0),
      'second_process_refused': refused,
      'damage': self._damage(),
    }
    self.lives.append(life)
    number = len(self.lives)
    print(
      f'{number:4d}  ' + ', '.join(f'{v}' for v in life.values()), flush=True
    )

  def _second(self) -> bool:
    """Starts a second process on the folder, which must be refused."""
    second = start(self.folder, 10**6, subprocess.PIPE)
    text = second.communicate(timeout=TIMEOUT)[0]
    if second.returncode != 2 or 'is in use by process' not in text:
      raise errors.RunError(f'A second process was not refused: {text}')
    return True

  def _damage(self) -> str:
    damage = self._pick(DAMAGES)
    metrics = self.folder / 'metrics.jsonl'
    if damage.startswith('metrics') and self.epochs():
      content = metrics.read_bytes()
      last = content.rstrip(b'\n').rfind(b'\n') + 1
      if damage.endswith('cut'):
        content = content[: self.random.randrange(last, len(content))]
      else:
        content += content[last : self.random.randrange(last + 1, len(content))]
      metrics.write_bytes(content)
      return damage
    latest = self.folder / 'checkpoints' / 'latest'
    steps = sorted(int(p.name) for p in latest.glob('*') if p.name.isdigit())
    # A run falls back on an older checkpoint, so there must be one.
    if not damage.startswith('checkpoint') or len(steps) < 2:
      return 'none'
    files = [p for p in (latest / str(steps[-1])).rglob('*') if p.is_file()]
    path = self.random.choice([p for p in files if p.stat().st_size])
    content = bytearray(path.read_bytes())
    place = self.random.randrange(len(content))
    if damage.endswith('cut'):
      del content[place:]
    else:
      content[place] ^= 1 << self.random.randrange(8)
    path.write_bytes(content)
    return f'{damage} ({path.relative_to(latest / str(steps[-1]))})'


def finish(folder: pathlib.Path, epochs: int, log: pathlib.Path) -> None:
  """Trains without interruption to the end."""
  with log.open('w') as output:
    code = start(folder, epochs, output).wait()
  if code:
    raise errors.RunError(f'{log}: exit code {code}.')


def differences(a: pathlib.Path, b: pathlib.Path) -> list[str]:
  """Names of the parts in which two runs differ, times excluded."""
  import jax
  import numpy as np

  from skipnet_jax.runs import checkpoint
  from skipnet_jax.runs import flow_file
  from skipnet_jax.runs import run_log
  from skipnet_jax.runs import trained
  from skipnet_jax.runs import workdir

  clock = ('seconds', 'images_per_second')

  def read(folder):
    records = run_log.read_records(folder / 'metrics.jsonl')
    summary = json.loads((folder / 'summary.json').read_text())
    for row in (*records, summary):
      for name in clock:
        del row[name]
    like = trained.build(workdir.read_config(folder)).abstract_state
    reader = checkpoint.Checkpoints(folder, create=False)
    warnings: list[str] = []
    latest, *_ = reader.restore_latest(like, warnings.append)
    best, _ = reader.restore_best(like, warnings.append)
    reader.close()
    latest, best = (
      s.replace(key=jax.random.key_data(s.key)) for s in (latest, best)
    )
    return {
      'warnings': warnings,
      'records': records,
      'summary': summary,
      'flow': flow_file.read(folder / 'gradient_flow.npz')[1],
      'best': best,
      'latest': latest,
    }

  def same(x, y):
    if jax.tree.structure(x) != jax.tree.structure(y):
      return False
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return all(np.array_equal(u, v) for u, v in pairs)

  x, y = read(a), read(b)
  return [name for name in x if not same(x[name], y[name])]


def main() -> None:
  """Interrupts and finishes one run, trains another, compares both."""
  from skipnet_jax import environment
  from skipnet_jax import files

  cli.require(_WORKDIR)
  root = pathlib.Path(_WORKDIR.value)
  if os.path.lexists(root):
    cli.refuse(f'{root} exists: name a new --workdir.')
  (root / 'lives').mkdir(parents=True)
  chaos = Chaos(root / 'run', _SEED.value)
  for number in range(1, _KILLS.value + 1):
    chaos.live(root / 'lives' / f'{number:04d}.txt')
  epochs = max(chaos.epochs(), default=0) + 3
  finish(root / 'run', epochs, root / 'lives' / 'last.txt')
  finish(root / 'whole', epochs, root / 'lives' / 'whole.txt')
  found = differences(root / 'run', root / 'whole')
  once = chaos.epochs() == list(range(1, epochs + 1))
  report = {
    'command': environment.command(),
    'date': environment.now(),
    'versions': environment.versions(('jax', 'orbax-checkpoint')),
    'kills': len(chaos.lives),
    'fates': collections.Counter(life['fate'] for life in chaos.lives),
    'damages': collections.Counter(
      life['damage'].partition(' (')[0] for life in chaos.lives
    ),
    'fell_back': sum(life['fell_back'] for life in chaos.lives),
    'epochs': epochs,
    'every_record_once': once,
    'differences': found,
    'lives': chaos.lives,
  }
  files.write_json(root / 'chaos.json', report)
  shown = {k: v for k, v in report.items() if k != 'lives'}
  print(json.dumps(shown, indent=2))
  if found or not once:
    raise errors.RunError('The run differs from the undisturbed run.')


if __name__ == '__main__':
  cli.run(main, 'the folder stays as it is.')
