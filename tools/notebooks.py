"""Writes the tutorials as notebooks, and executes them.

python tools/notebooks.py             # writes docs/notebooks/*.ipynb
python tools/notebooks.py --execute   # also runs them; needs .[docs]

A page becomes cells: text, code in Python, commands in bash. A `text` block
after a command is what to expect. With --execute, the outputs are compared with
it: `...` stands for any text, alone in a line for any lines; numbers before it
may differ by a tenth. Exits with 1 where an output is another one. A notebook
runs in a new folder; what takes longer than a trial is left out
(`<!-- long -->`).
"""

from collections.abc import Iterator
import json
import os
import pathlib
import re
import sys
import tempfile
from typing import Any

from absl import flags

from skipnet_jax import cli

_EXECUTE = flags.DEFINE_bool(
  'execute', False, 'Run the notebooks, and compare.'
)
ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / 'docs'
FOLDER = DOCS / 'notebooks'
_BLOCK = re.compile(
  r'^(<!-- long -->\n+)?```(bash|python|text)\n(.*?)^```\n', re.M | re.S
)
_NUMBER = re.compile(r'(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)')
_TOLERANCE = 0.1


def pages() -> list[pathlib.Path]:
  """The tutorials."""
  return sorted(DOCS.glob('tutorial_*.md'))


def parts(text: str) -> Iterator[tuple[str, str]]:
  """Kind and content of the parts of a page, in order.

  Kinds are markdown, bash, python, text (expected) and long, a command that is
  not executed.
  """
  end = 0
  for block in _BLOCK.finditer(text):
    if before := text[end : block.start()].strip():
      yield 'markdown', before
    yield ('long' if block[1] else block[2]), block[3].rstrip('\n')
    end = block.end()
  if rest := text[end:].strip():
    yield 'markdown', rest


def notebook(page: pathlib.Path) -> dict[str, Any]:
  """The notebook of a page, without outputs."""
  cells: list[dict[str, Any]] = []
  for kind, content in parts(page.read_text()):
    code = kind in ('bash', 'python')
    if kind == 'bash':
      content = f'%%bash\n{content}'
    elif kind == 'text':
      content = f'Expected:\n\n```text\n{content}\n```'
    elif kind == 'long':
      content = f'```bash\n{content}\n```'
    else:
      # Links are those of the page, one folder up.
      content = re.sub(r'\]\((?![a-z]+://|#)', '](../', content)
    cell: dict[str, Any] = {
      'cell_type': 'code' if code else 'markdown',
      'id': f'cell-{len(cells)}',
      'metadata': {},
      'source': content.splitlines(keepends=True),
    }
    if code:
      cell |= {'execution_count': None, 'outputs': []}
    cells.append(cell)
  kernel = {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}
  return {
    'cells': cells,
    'metadata': {'kernelspec': kernel},
    'nbformat': 4,
    'nbformat_minor': 5,
  }


def to_text(content: dict[str, Any]) -> str:
  """The content of a notebook's file."""
  return json.dumps(content, indent=1, ensure_ascii=False) + '\n'


def difference(expected: str, output: str) -> str:
  """What an output has other than expected; '' if it is alike."""
  pattern = ''
  numbers: list[str] = []
  for line in expected.splitlines():
    if line.strip() == '...':
      pattern += r'(?:.*\n)*?'
      continue
    end = 0
    for found in re.finditer(rf'\.\.\.|\s+|{_NUMBER.pattern}', line):
      pattern += re.escape(line[end : found.start()])
      end = found.end()
      if found[0] == '...':
        pattern += '.*'
      elif found[0].isspace():
        pattern += r'\s+'
      else:
        pattern += r'([-+\d.,e]+)'
        numbers.append(found[0])
    pattern += re.escape(line[end:]) + r'\s*\n'
  match = re.fullmatch(pattern, output.strip('\n') + '\n')
  if match is None:
    return f'expected\n{expected}\nbut got\n{output}'
  for ours, theirs in zip(numbers, match.groups(), strict=True):
    wanted, found_ = (float(n.replace(',', '')) for n in (ours, theirs))
    if abs(wanted - found_) > _TOLERANCE * abs(wanted):
      return f'expected {ours}, but got {theirs}'
  return ''


def outputs(cell: Any) -> str:
  """All that an executed cell printed."""
  return ''.join(o.get('text', '') for o in cell['outputs'])


def execute(page: pathlib.Path) -> list[str]:
  """Executes a page's notebook in a new folder; returns what differs."""
  import nbclient
  import nbformat

  content = nbformat.reads(to_text(notebook(page)), as_version=4)
  with tempfile.TemporaryDirectory() as folder:
    client = nbclient.NotebookClient(
      content, timeout=None, resources={'metadata': {'path': folder}}
    )
    client.execute()
  found = []
  printed = ''
  for cell in content.cells:
    if cell['cell_type'] == 'code':
      printed = outputs(cell)
    elif cell['source'].startswith('Expected:\n'):
      expected = cell['source'].split('```text\n')[1].removesuffix('\n```')
      if wrong := difference(expected, printed):
        found.append(f'{page.name}: {wrong}')
  return found


def main() -> None:
  """Writes and executes the notebooks."""
  FOLDER.mkdir(exist_ok=True)
  found = []
  # Commands of the environment that this Python belongs to come first.
  here = str(pathlib.Path(sys.executable).parent)
  os.environ['PATH'] = here + os.pathsep + os.environ['PATH']
  for page in pages():
    path = FOLDER / f'{page.stem}.ipynb'
    path.write_text(to_text(notebook(page)))
    print(path.relative_to(ROOT))
    if _EXECUTE.value:
      found += execute(page)
  print(*found, sep='\n')
  sys.exit(bool(found))


if __name__ == '__main__':
  cli.run(main)
