"""Interrupts a run many times, damages its files, and checks its result.

python tools/chaos.py --kills 100 --workdir runs/chaos [--processes 2]

Real training processes of the smoke preset get SIGKILL at random moments (also
during their start and while they write a checkpoint), SIGTERM or Ctrl-C.
Sometimes a second process is started on the same folder, a checkpoint is
truncated or has a bit flipped, the newest one is damaged with its copy (then
the run trains on, is stopped and resumes), all checkpoints are lost and put
back, the folder gets an odd name or links to a foreign file, or metrics.jsonl
is truncated or has a damaged line. After each process, the steps on the disk
must be those that its messages name. With several processes, one of them gets
the signal, and all must end. The finished run must be bit-identical to an
undisturbed one. Writes chaos.json; exits with 1 if the runs differ.
"""

import collections
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

from absl import flags
import compare_runs

from skipnet_jax import cli
from skipnet_jax import errors
from skipnet_jax.runs import plain_path

_WORKDIR = flags.DEFINE_string('workdir', None, 'A new folder.')
_KILLS = flags.DEFINE_integer(
  'kills', 100, 'Number of interruptions.', lower_bound=1
)
_PROCESSES = flags.DEFINE_integer(
  'processes', 1, 'Number of processes that train the run.', lower_bound=1
)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the random choices.')
ROOT = pathlib.Path(__file__).resolve().parents[1]
# How a process ends, with relative frequencies; 'told' is SIGTERM.
FATES = {
  **{'killed': 8, 'killed starting': 2, 'killed writing': 6, 'told': 4},
  'interrupted': 2,
}
# Signal and exit code of each fate; the others are killed.
SIGNALS = {'told': (signal.SIGTERM, 0), 'interrupted': (signal.SIGINT, 130)}
# Damage to the files afterwards, with relative frequencies.
DAMAGES = {
  'none': 12,
  'metrics.jsonl cut': 3,
  'metrics.jsonl with half a line more': 2,
  'checkpoint cut': 3,
  'checkpoint with a bit flipped': 3,
  'newest checkpoint damaged': 3,
  'checkpoints lost': 2,
  'folder renamed': 2,
  'links planted': 2,
  'metrics.jsonl with a damaged line': 4,
}
# Names that Orbax or TensorStore would not read as they are written.
NAMES = ('a[b]', 'a*b?', 'a\\b', 'gs:', os.fsdecode(b'\xff'), 'run')
# What replaces a line of metrics.jsonl, given that line without its end.
LINES = {
  'cut': lambda line: line[: len(line) // 2],
  'nested': lambda line: b'[' * 100_000 + b']' * 100_000,
  'long': lambda line: b' ' * 2**21 + line,
  'bytes': lambda line: b'\xff\xfe\0\v',
  'list': lambda line: b'[' + line + b']',
  'fields': lambda line: line.split(b', "train_bce"')[0] + b'}',
  'nan': lambda line: re.sub(rb'("train_bce": )[^,]+', rb'\1NaN', line),
  'value': lambda line: re.sub(rb'("valid_loss": )[^,]+', rb'\g<1>7.5', line),
  'twice': lambda line: line + b'\r\n' + line,
}
# Steps in an epoch of the smoke preset.
STEPS = 2
FIELDS = {
  'model.blocks': 'simple',
  'log.progress': False,
  'log.tensorboard': False,
}
TIMEOUT = 300  # Seconds for each thing that a process is waited for.


def start(
  folder: pathlib.Path, epochs: int, log: pathlib.Path
) -> list[subprocess.Popen]:
  """Starts the training processes of the smoke preset.

  Args:
    folder: of the run.
    epochs: number of epochs.
    log: file for the output of the first; see `logs`.
  """
  fields = FIELDS | {'train.epochs': epochs}
  count, started = _PROCESSES.value, []
  if count > 1:
    with socket.socket() as s:
      s.bind(('127.0.0.1', 0))
      address = f'127.0.0.1:{s.getsockname()[1]}'
    fields |= {
      'parallel.mode': 'sharded',
      'parallel.coordinator': address,
      'parallel.num_processes': count,
    }
  for number, path in enumerate(logs(log)):
    if count > 1:
      fields['parallel.process_id'] = number
    with path.open('w') as output:
      process = subprocess.Popen(
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
      )
    started.append(process)
  return started


def logs(first: pathlib.Path) -> list[pathlib.Path]:
  """The files with the output of each process."""
  others = range(1, _PROCESSES.value)
  return [first, *(first.with_suffix(f'.{i}.txt') for i in others)]


def end(started: list[subprocess.Popen]) -> list[int]:
  """Exit codes of all processes."""
  until = time.monotonic() + TIMEOUT
  return [p.wait(max(0.1, until - time.monotonic())) for p in started]


class Chaos:
  """One run and its interrupted processes, the lives."""

  def __init__(self, folder: pathlib.Path, seed: int):
    self.folder = folder
    # Fates and damages depend on the seed alone, details also on the files.
    self.random, self.details = random.Random(seed), random.Random(seed)
    self.lives: list[dict] = []
    # No run may write to it.
    self.foreign = folder.with_name('foreign')
    self.foreign.write_text('foreign')
    # Steps of checkpoints that cannot be read, and of those that might not.
    self.damaged: set[int] = set()
    self.doubtful: set[int] = set()

  def _pick(self, weights: dict[str, int]) -> str:
    return self.random.choices(list(weights), list(weights.values()))[0]

  def epochs(self) -> list[int]:
    """The epochs of all complete lines in metrics.jsonl that are JSON."""
    path = self.folder / 'metrics.jsonl'
    found = []
    for line in path.read_bytes().split(b'\n')[:-1] if path.exists() else ():
      try:
        found.append(json.loads(line)['epoch'])
      except (ValueError, TypeError, KeyError, RecursionError):
        continue
    return found

  def steps(self) -> list[int]:
    """Steps of the checkpoints on the disk, the newest first."""
    root = self.folder / 'checkpoints'
    # While a step is saved again, its old checkpoint is hidden.
    names = [p.name for p in (*root.glob('*/*'), *root.glob('*.replaced'))]
    found = (re.fullmatch(r'(?:.*_)?(\d+)(?:\.replaced)?', n) for n in names)
    return sorted({int(match[1]) for match in found if match}, reverse=True)

  def resumable(self) -> list[int]:
    """Steps from which a process may resume, the lowest last."""
    found = []
    for step in self.steps():
      if step not in self.damaged:
        found.append(step)
        if step not in self.doubtful:
          return found
    return [*found, 0]

  def check_saved(self, log: pathlib.Path, resumable: list[int]) -> None:
    """Compares the messages of a process with the steps on the disk.

    Args:
      log: what it printed.
      resumable: from `resumable`, before it was started.

    Raises:
      RunError: it resumed from another step, or lost one, or did not save what
        it says.
    """
    text, newest = log.read_text(), max(self.steps(), default=0)
    place = r'after epoch (\d+)(?: and (\d+) steps)?'
    first, last = (
      match and STEPS * int(match[1]) + int(match[2] or 0)
      for match in (
        re.search(rf'(?m)^Resuming {place}\.$', text),
        re.search(rf'(?m)^Stopped by SIGTERM {place}\.', text),
      )
    )
    if first is None and '\nepoch ' in text:
      first = 0
    if first is not None and first not in resumable:
      raise errors.RunError(
        f'{log}: resumed from step {first}; expected one of {resumable}.'
      )
    least = resumable[-1] if first is None else first
    if newest < least or newest != (newest if last is None else last):
      raise errors.RunError(
        f'{log}: the newest checkpoint on the disk is of step {newest}; '
        f'resumed from {least}, said to have saved {last}.'
      )
    if first is not None:
      self.damaged = {step for step in self.damaged if step < first}
      self.doubtful = {step for step in self.doubtful if step < first}

  def _writing(self) -> bool:
    root = self.folder / 'checkpoints'
    return any('orbax-checkpoint-tmp' in p.name for p in root.glob('*/*'))

  def _until(
    self, started: list[subprocess.Popen], condition, pause: float = 0.02
  ) -> None:
    until = time.monotonic() + TIMEOUT
    while started[0].poll() is None and not condition():
      if time.monotonic() > until:
        for process in started:
          process.kill()
        raise errors.RunError(
          f'A training process made no progress for {TIMEOUT} s.'
        )
      time.sleep(pause)

  def live(self, log: pathlib.Path) -> None:
    """Starts the processes, interrupts one and damages the files."""
    fate, chance = self._pick(FATES), self.random.random()
    if self.lives and self.lives[-1]['damage'] == 'newest checkpoint damaged':
      fate = 'told'
    resumable = self.resumable()
    started = start(self.folder, 10**6, log)
    begin = time.monotonic()
    if fate == 'killed starting':
      self._until(started, lambda: time.monotonic() > begin + 6 * chance)
    else:
      self._until(started, lambda: '\nepoch ' in log.read_text())
      moment = time.monotonic() + 1.5 * chance
      self._until(started, lambda: time.monotonic() > moment)
    refused = None
    if fate == 'killed' and chance < 0.3:
      self._require_refusal('is in use by process')
      refused = True
    if fate == 'killed writing':
      self._until(started, self._writing, 0.0005)
    number, code = SIGNALS.get(fate, (signal.SIGKILL, -signal.SIGKILL))
    victim = self.details.randrange(len(started))
    # Before they have joined, the others would wait for minutes.
    for process in started if fate == 'killed starting' else [started[victim]]:
      process.send_signal(number)
    signalled = time.monotonic()
    codes = end(started)
    text = log.read_text()
    all_text = ''.join(path.read_text() for path in logs(log))
    wanted = [code if fate in ('told', 'killed starting') else 1] * len(codes)
    wanted[victim] = code
    if (
      codes != wanted
      or 'Traceback' in all_text
      or all_text.count('lost another one') != wanted.count(1)
    ):
      raise errors.RunError(
        f'{log}: exit codes {codes}, expected {wanted}; or a traceback, or a '
        'process that does not say that another one is lost.'
      )
    if self.foreign.read_text() != 'foreign':
      raise errors.RunError(
        f'{log}: {self.foreign} was written through a link.'
      )
    self.check_saved(log, resumable)
    resumed = [x for x in text.splitlines() if x.startswith('Resuming after')]
    life = {
      'fate': fate,
      'resumed': resumed[0] if resumed else '',
      'fell_back': 'is damaged' in text,
      'seconds_to_stop': round(time.monotonic() - signalled, 2),
      'was_writing': self._writing(),
      'last_record': max(self.epochs(), default=0),
      'newest_step': max(self.steps(), default=0),
      'second_process_refused': refused,
      'damage': self._damage(),
    }
    self.lives.append(life)
    number = len(self.lives)
    print(
      f'{number:4d}  ' + ', '.join(f'{v}' for v in life.values()), flush=True
    )

  def _require_refusal(self, words: str) -> None:
    """Starts the processes, which must be refused with these words."""
    log = self.folder.with_name('refused.txt')
    codes = end(start(self.folder, 10**6, log))
    if {*codes} != {2} or words not in log.read_text():
      raise errors.RunError(f'Not refused, see {log}; expected {words!r}.')

  def _damage(self) -> str:
    damage = self._pick(DAMAGES)
    if damage == 'folder renamed':
      return self._rename()
    if damage == 'checkpoints lost':
      return self._lose()
    if damage == 'links planted':
      return self._plant()
    if damage.startswith('metrics'):
      return self._damage_metrics(damage)
    root = self.folder / 'checkpoints'
    if damage == 'newest checkpoint damaged':
      # A run falls back on an older checkpoint, so there must be one.
      newest, *others = self.steps() or [0]
      if not set(others) - self.damaged - self.doubtful:
        return 'none'
      for place in root.glob(f'*/{newest}'):
        for path in place.rglob('*'):
          if path.is_file():
            os.truncate(path, path.stat().st_size // 3)
      self.damaged.add(newest)
      return damage
    steps = sorted(
      int(p.name) for p in root.glob('latest/*') if p.name.isdigit()
    )
    if (
      not damage.startswith('checkpoint')
      or len(steps) < 2
      or {steps[-2]} & (self.damaged | self.doubtful)
    ):
      return 'none'
    latest = root / 'latest' / str(steps[-1])
    files = [p for p in latest.rglob('*') if p.is_file()]
    path = self.details.choice([p for p in files if p.stat().st_size])
    content = bytearray(path.read_bytes())
    place = self.details.randrange(len(content))
    if damage.endswith('cut'):
      del content[place:]
    else:
      content[place] ^= 1 << self.details.randrange(8)
    path.write_bytes(content)
    self.doubtful.add(steps[-1])
    return f'{damage} ({path.relative_to(latest)})'

  def _damage_metrics(self, damage: str) -> str:
    path = self.folder / 'metrics.jsonl'
    if not self.epochs():
      return 'none'
    content = path.read_bytes()
    last = content.rstrip(b'\n').rfind(b'\n') + 1
    if damage.endswith('cut'):
      path.write_bytes(content[: self.details.randrange(last, len(content))])
    elif damage.endswith('more'):
      end = self.details.randrange(last + 1, len(content))
      path.write_bytes(content + content[last:end])
    else:
      lines = content.split(b'\n')
      # A checkpoint has copies of the newest records.
      number = self.details.randrange(max(0, len(lines) - 6), len(lines))
      how = self.details.choice(list(LINES))
      lines[number] = LINES[how](lines[number])
      path.write_bytes(b'\n'.join(lines))
      damage += f' ({how})'
    return damage

  def _rename(self) -> str:
    name = NAMES[sum('renamed' in x['damage'] for x in self.lives) % len(NAMES)]
    new = self.folder.with_name(name)
    if not plain_path.is_usable(new):
      return 'none'
    self.folder = self.folder.rename(new)
    return f'folder renamed ({name!a})'

  def _lose(self) -> str:
    """Starts a process without the checkpoints, which must be refused."""
    if len(self.epochs()) < 2:
      return 'none'
    place, metrics = self.folder / 'checkpoints', self.folder / 'metrics.jsonl'
    content = metrics.read_bytes()
    hidden = place.rename(self.folder.with_name('hidden'))
    self._require_refusal('no checkpoint to resume from')
    if metrics.read_bytes() != content:
      raise errors.RunError(f'{metrics} of a refused run was replaced.')
    hidden.rename(place)
    return 'checkpoints lost'

  def _plant(self) -> str:
    """Puts links to a foreign file where a run might write."""
    for name in ('config.json', 'metrics.jsonl', 'gradient_flow.npz'):
      link = self.folder / f'{name}.tmp'
      if self.folder.exists() and not link.is_symlink():
        link.symlink_to(self.foreign.absolute())
    lock = self.folder / '.lock'
    if not lock.exists():
      return 'none'
    lock.rename(self.folder.with_name('lock'))
    lock.symlink_to(self.foreign.absolute())
    self._require_refusal('is not the lock of a run')
    self.folder.with_name('lock').rename(lock)
    return 'links planted'


def finish(folder: pathlib.Path, epochs: int, log: pathlib.Path) -> None:
  """Trains without interruption to the end."""
  codes = [process.wait() for process in start(folder, epochs, log)]
  if any(codes):
    raise errors.RunError(f'{log}: exit codes {codes}.')


def main() -> None:
  """Interrupts and finishes one run, trains another, compares both."""
  from skipnet_jax import environment
  from skipnet_jax import files

  cli.require(_WORKDIR)
  root = pathlib.Path(_WORKDIR.value)
  if os.path.lexists(root):
    cli.refuse(f'{root} exists: name a new --workdir.')
  (root / 'lives').mkdir(parents=True)
  # A shell lets a command in the background ignore Ctrl-C, and what it starts.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  chaos = Chaos(root / 'run', _SEED.value)
  for number in range(1, _KILLS.value + 1):
    chaos.live(root / 'lives' / f'{number:04d}.txt')
  epochs = max(chaos.epochs(), default=0) + 3
  chaos.folder = chaos.folder.rename(root / 'run')
  resumable = chaos.resumable()
  finish(root / 'run', epochs, root / 'lives' / 'last.txt')
  chaos.check_saved(root / 'lives' / 'last.txt', resumable)
  finish(root / 'whole', epochs, root / 'lives' / 'whole.txt')
  found = compare_runs.differences(root / 'run', root / 'whole')
  once = chaos.epochs() == list(range(1, epochs + 1))
  report = {
    'command': environment.command(),
    'date': environment.now(),
    'versions': environment.versions(('jax', 'orbax-checkpoint')),
    'kills': len(chaos.lives),
    'processes': _PROCESSES.value,
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
