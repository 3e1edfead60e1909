"""The commands and the code in the docs, read out of them.

Bash reads the commands, with stubs in place of the programs.
"""

import ast
import functools
import pathlib
import re
import shutil
import subprocess
import tempfile

from conftest import PAGES
from conftest import ROOT

# Pages whose code and commands another test runs.
OTHER_TESTS = {
  'docs/own_model.md': 'test_own_model',
  'docs/own_loop.md': 'test_own_loop',
  'docs/export.md': 'test_export',
}
# Words that stand for a value.
PLACEHOLDERS = {'--config=...': '--config=experiments/long_short.py'}
PLACEHOLDERS |= {'SECONDS': '5'}
PLACEHOLDERS |= {'--pixel_size=NANOMETRES': '--pixel_size=4.6'}

MODULES = sorted((ROOT / 'experiments').glob('*.py'))
MODULES += sorted((ROOT / 'tools').glob('*.py'))
MODULES += sorted((ROOT / 'skipnet_jax').glob('*.py'))
LANGUAGES = {'bash', 'yaml', 'python', 'text', ''}
STUBS = {
  **dict.fromkeys(
    ('python', 'pip', 'bash', 'skipnet'),
    'IFS=$\'\\x1f\'; echo "$PLACE$IFS${0##*/}$IFS$*" >> "$FOUND"',
  ),
  'srun': 'exec "$@"',
  'ssh': 'shift; exec $BASH -c "$*"',
}


def name_of(path):
  return str(path.relative_to(ROOT))


def blocks(page, language):
  """The code blocks of a page."""
  found = re.findall(r'^```(\w*)\n(.*?)^```', page.read_text(), re.M | re.S)
  assert {name for name, _ in found} <= LANGUAGES, page
  return [text for name, text in found if name == language]


def inline(text):
  """The commands in a text, between backticks."""
  spans = re.findall(r'(?<!`)`(python [^`]+)`', text)
  return [' '.join(span.split()) for span in spans]


def of_page(page):
  """The scripts and commands of a page, as bash reads them."""
  prose = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
  jobs = [
    command
    for block in blocks(page, 'yaml')
    # Lines that go on, of a scalar without quotes.
    for command in re.findall(r'- (exec .+)', re.sub(r'\n +(?=--)', ' ', block))
  ]
  return [*blocks(page, 'bash'), *jobs, *inline(prose)]


def of_module(path):
  """The commands in a module's docstring."""
  doc = ast.get_docstring(ast.parse(path.read_text())) or ''
  lines = re.sub(r'\\\n *', ' ', doc)
  found = re.findall(
    r'^(?:Command:|Usage:)? *((?:PYTHONPATH=\. )?python .*)$', lines, re.M
  )
  # A main also names other flags that go with it.
  main = f'python -m skipnet_jax.{path.stem} '
  others = [main + f for f in re.findall(r'`(--[^`]+=[^`]+)`', doc)]
  found += inline(doc) + (others if inline(doc) else [])
  # What is in brackets may be left out, but is right.
  return [re.sub(r'\[(--[^]]+)\]', r'\1', ' '.join(c.split())) for c in found]


def of_script(path):
  """The commands that a script of tools/ shows or runs."""
  text = re.sub(r'\\+\n *', ' ', path.read_text())
  shown = re.findall(r'^# .*(bash tools/\w+\.sh)', text, re.M)
  run = re.findall(r'\.venv/bin/(python -m skipnet_jax.*)', text)
  return [*shown, *(command.replace(' "$@"', '') for command in run)]


@functools.cache
def read():
  """Commands with the first file that has each; and what bash complained of."""
  texts = {page: of_page(page) for page in PAGES}
  texts |= {path: of_module(path) for path in MODULES}
  texts |= {p: of_script(p) for p in sorted((ROOT / 'tools').glob('*.sh'))}
  bash = shutil.which('bash')
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    (folder / 'bin').mkdir()
    (folder / 'skipnet_jax').mkdir()  # Where the docs go by `cd`.
    for program, body in STUBS.items():
      (folder / 'bin' / program).write_text(f'#!{bash}\n{body}\n')
      (folder / 'bin' / program).chmod(0o755)
    found = folder / 'found'
    found.touch()
    script = [
      f'(\nPLACE={name_of(path)}\n{text}\nwait\n)'
      for path, several in texts.items()
      if name_of(path) not in OTHER_TESTS
      for text in several
    ]
    ended = subprocess.run(
      [bash, '-c', '\n'.join(script)],
      cwd=folder,
      env={
        'PATH': str(folder / 'bin'),
        'FOUND': str(found),
        'PLACE': '',
        # Of the places that the docs leave to the user or a cluster.
        'workdir': 'runs/quick',
        'JOB_NAME': 'train',
        'JOB_COMPLETION_INDEX': '1',
        'SLURM_ARRAY_TASK_ID': '1',
      },
      capture_output=True,
      text=True,
      timeout=60,
    )
    # Sorted, as some run in the background.
    lines = sorted(found.read_text().splitlines())
  commands = {}
  for line in lines:
    place, *words = line.split('\x1f')
    words = [PLACEHOLDERS.get(word, word) for word in words]
    commands.setdefault(tuple(words), place)
  return commands, ended.stderr
