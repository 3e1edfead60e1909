"""Runs `train` on a corpus of broken input and tabulates the messages.

python tools/hostile.py --output runs/hostile [--stack train-volume.tif]

Every input is given to a real process: a stack of one's own, a config field, an
experiment file or the config.json of a run.
Broken input must give exit code 2 and one sentence, without a traceback, a
started run, files outside workdir and cache, or much more memory than for a
missing file. Unusual but valid input must be read correctly and train. With
--stack, --fuzz copies of a real stack with changed bytes are read too. Writes
hostile.md and hostile.json; exits with 1 if a requirement is not met.
"""

import json
import multiprocessing
import os
import pathlib
import random
import resource
import subprocess
import sys
from typing import Any
import warnings

from absl import flags
from hostile_configs import CONFIGS
from hostile_configs import STATEMENTS
from hostile_configs import VALUES
from hostile_inputs import REFUSED
from hostile_inputs import SOUND
from hostile_inputs import corpus
from hostile_inputs import pixels
from hostile_meanings import meanings

from skipnet_jax import cli
from skipnet_jax import errors

_OUTPUT = flags.DEFINE_string('output', None, 'A new folder.')
_STACK = flags.DEFINE_string('stack', None, 'A TIFF whose bytes are changed.')
_FUZZ = flags.DEFINE_integer(
  'fuzz', 2000, 'Number of copies with changed bytes.', lower_bound=1
)
ROOT = pathlib.Path(__file__).resolve().parents[1]
# MiB that are allowed above the peak for a missing file.
MEMORY = 256
# Bytes of address space that other readers get.
ELSEWHERE = 4 * 2**30
SMOKE = 'experiments/long_short.py'


def change_times(
  folder: pathlib.Path, but: pathlib.Path | None = None
) -> dict[str, int]:
  """Modification times of the files below a folder, but of no cache.

  Those below `but` are left out: the tool writes there itself.
  """
  found = {}
  for path in folder.rglob('*'):
    passed = {'.git', '__pycache__', '.venv'} & set(path.parts)
    ours = but is not None and path.is_relative_to(but)
    if path.is_file() and not passed and not ours:
      found[str(path)] = path.stat().st_mtime_ns
  return found


def experiment(path: pathlib.Path, statement: str) -> None:
  """Writes an experiment file that changes the config of the smoke preset."""
  path.write_text(
    'import pathlib\n'
    'from skipnet_jax import config as config_lib\n'
    'def get_config(preset):\n'
    f'  file = pathlib.Path({str(ROOT / SMOKE)!r})\n'
    '  config = config_lib.load_experiment(file, preset)\n'
    f'  with config.unlocked():\n    {statement}\n'
    '  return config\n'
  )


def damage(workdir: pathlib.Path, field: str, value: Any) -> None:
  """Makes the folder of a run whose config.json has another value."""
  from skipnet_jax import config as config_lib

  config = config_lib.load_experiment(ROOT / SMOKE, 'smoke')
  content = {
    'config': json.loads(config.to_json()),
    'dataset': {'name': 'a', 'fingerprint': 'b'},
  }
  *sections, last = ['config', *filter(None, field.split('.'))]
  place = content
  for section in sections:
    place = place[section]
  place[last] = value
  workdir.mkdir(parents=True)
  (workdir / 'config.json').write_text(json.dumps(content))


def run(
  arguments: list[str], home: pathlib.Path, config: str = SMOKE
) -> tuple[int, str, int]:
  """Trains; returns exit code, output and peak memory in MiB."""
  # ru_maxrss of RUSAGE_CHILDREN is the largest peak of all children so far, so
  # a small process with one child starts the command.
  script = (
    'import resource, subprocess, sys\n'
    'code = subprocess.call(sys.argv[1:])\n'
    'peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n'
    'print(f"\\nPEAK {peak}")\n'
    'sys.exit(code)\n'
  )
  done = subprocess.run(
    [
      *(sys.executable, '-c', script),
      *(sys.executable, '-m', 'skipnet_jax.train'),
      f'--config={config}:smoke',
      '--config.train.epochs=1',
      '--config.model.blocks=simple',
      '--config.log.tensorboard=False',
      *arguments,
    ],
    cwd=ROOT,
    env=os.environ
    | {
      'PYTHONPATH': str(ROOT),
      'HOME': str(home),
      'TMPDIR': str(home),
      'SKIPNET_CACHE_DIR': str(home / 'cache'),
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=600,
    check=False,
  )
  text, _, peak = done.stdout.rpartition('\nPEAK ')
  return done.returncode, text.strip(), int(peak) // 1024


def fuzz(path: pathlib.Path, copies: int, folder: pathlib.Path) -> dict:
  """Opens and reads copies of a stack in which a few bytes are changed."""
  import tifffile

  from skipnet_jax.data import volume

  data = path.read_bytes()
  with tifffile.TiffFile(path) as tiff:
    # Only headers and tags: most bytes are pixels, and any value is valid.
    places = [
      (page.offset, page.offset + 12 * len(page.tags) + 6)
      for page in tiff.pages
    ]
  places.append((0, 8))
  chance = random.Random(0)
  target = folder / 'fuzzed.tif'
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  counts = {'read': 0, 'refused': 0}
  for _ in range(copies):
    copy = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
      low, high = chance.choice(places)
      copy[chance.randrange(low, min(high, len(copy)))] = chance.randrange(256)
    if chance.random() < 0.1:
      del copy[chance.randrange(len(copy)) :]
    target.write_bytes(copy)
    refused = False
    try:
      with volume.open_stack(target) as stack:
        for z in {0, len(stack) // 2, len(stack) - 1}:
          stack.read(z)
    except errors.InputError:
      refused = True
    counts['refused' if refused else 'read'] += 1
  target.unlink()
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return counts | {'grown_mib': (after - before) // 1024}


def read_elsewhere(path: pathlib.Path) -> str:
  """What tifffile and scikit-image make of a TIFF: its shape, or what fails.

  They read it in another process, as some of the files exhaust the memory.
  """
  limit = (ELSEWHERE, ELSEWHERE)
  with multiprocessing.get_context('fork').Pool(
    1, resource.setrlimit, (resource.RLIMIT_AS, limit)
  ) as pool:
    try:
      return pool.apply_async(_read_elsewhere, (path,)).get(60)
    except multiprocessing.TimeoutError:
      return 'no answer in 60 s'


def _read_elsewhere(path: pathlib.Path) -> str:
  import skimage.io
  import tifffile

  found = []
  for read in (tifffile.imread, skimage.io.imread):
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      try:
        found.append(' x '.join(map(str, read(path).shape)))
      except Exception as error:
        found.append(type(error).__name__)
  return ' / '.join(dict.fromkeys(found))


def judge(code: int, wanted: int, text: str, work: pathlib.Path) -> str:
  """The violated requirement, or ''."""
  lines = [x for x in text.splitlines() if x.startswith('error: ')]
  if 'Traceback' in text:
    return 'a traceback'
  if code != wanted:
    return f'exit code {code}'
  if wanted == REFUSED and (len(lines) != 1 or text.count('\n') > 1):
    return 'not one sentence'
  if wanted == REFUSED and (work / 'metrics.jsonl').exists():
    return 'a run was started'
  return ''


def main() -> None:
  """Runs corpus, configs and fuzzing, one after the other."""
  import numpy as np

  from skipnet_jax import environment
  from skipnet_jax import files
  from skipnet_jax.data import volume

  cli.require(_OUTPUT)
  if not _STACK.value:
    cli.refuse_given('goes with --stack, whose copies it counts.', _FUZZ)
  output = pathlib.Path(_OUTPUT.value).absolute()
  if os.path.lexists(output):
    cli.refuse(f'{output} exists: name a new --output.')
  (output / 'corpus').mkdir(parents=True)
  labels = output / 'labels.tif'
  stripes = np.zeros((10, 64, 64), np.uint8)
  stripes[:, ::3] = 255
  volume.write_stack(labels, stripes)
  people_have = meanings(output / 'corpus')
  inputs = corpus(output / 'corpus') | people_have
  todo = [
    (
      name,
      wanted,
      [
        '--config.data.source=stack',
        f'--config.data.image={path}',
        f'--config.data.label={labels}',
      ],
    )
    for name, (path, wanted) in inputs.items()
  ]
  todo += [(field, REFUSED, [f'--config.{field}']) for field in CONFIGS]
  todo += [(statement, REFUSED, []) for statement in STATEMENTS]
  damaged = {f'config.json: {f} = {json.dumps(v)}': (f, v) for f, v in VALUES}
  todo += [(name, REFUSED, []) for name in damaged]
  # The missing file is first: its memory is the baseline of the others.
  todo.sort(key=lambda row: row[0] != 'a missing file')
  rows, least = [], 0
  home = output / 'home'
  home.mkdir()
  before = [change_times(ROOT, output), change_times(output / 'corpus')]
  for number, (name, wanted, arguments) in enumerate(todo):
    work = output / 'runs' / str(number)
    config = SMOKE
    if name in STATEMENTS:
      config = str(output / 'experiment.py')
      experiment(output / 'experiment.py', name)
    if name in damaged:
      damage(work, *damaged[name])
    code, text, peak = run([*arguments, f'--workdir={work}'], home, config)
    least = least or peak
    fault = judge(code, wanted, text, work)
    if wanted == SOUND and not fault:
      with volume.open_stack(inputs[name][0]) as stack:
        if not np.array_equal(stack.read_all(), pixels()):
          fault = 'wrong pixels'
    if wanted == REFUSED and peak > least + MEMORY:
      fault = fault or f'{peak - least} MiB'
    said = text.splitlines()[-1] if wanted == REFUSED and text else 'trained'
    said = said.replace(str(output), '.').removeprefix('error: ')
    rows.append(
      {
        'input': name,
        'exit_code': code,
        'message': said,
        'peak_mib': peak,
        'fault': fault,
        'elsewhere': read_elsewhere(inputs[name][0])
        if name in people_have and inputs[name][0].is_file()
        else '',
      }
    )
    print(f'{code}  {name}: {said}' + (f'  FAULT: {fault}' if fault else ''))
    sys.stdout.flush()
  report = {
    'command': environment.command(),
    'date': environment.now(),
    'versions': environment.versions(('jax', 'tifffile', 'numpy')),
    'rows': rows,
  }
  # Commands may write to their workdir and the cache only.
  after = [change_times(ROOT, output), change_times(output / 'corpus')]
  stray = [
    p for p in change_times(home) if not p.startswith(str(home / 'cache'))
  ]
  report['written_elsewhere'] = stray + ['changed'] * (before != after)
  if _STACK.value:
    path = pathlib.Path(_STACK.value)
    report['fuzz'] = fuzz(path, _FUZZ.value, output)
    print(json.dumps(report['fuzz']))
  files.write_json(output / 'hostile.json', report)
  table = [
    '# Hostile input',
    '',
    '| input | exit code | message | tifffile / scikit-image read |',
    '|---|---|---|---|',
  ]
  table += [
    f'| {row["input"]} | {row["exit_code"]} | {row["message"]} | '
    f'{row["elsewhere"]} |'
    for row in rows
  ]
  (output / 'hostile.md').write_text('\n'.join(table) + '\n')
  faults = [row['input'] for row in rows if row['fault']]
  faults += report['written_elsewhere']
  if faults:
    raise errors.RunError(f'Requirements violated by: {", ".join(faults)}.')


if __name__ == '__main__':
  cli.run(main, 'no report was written.')
