"""The notebooks are those of the tutorials; outputs are compared."""

import importlib.util

from absl import flags
from conftest import ROOT
import pytest


@pytest.fixture(scope='module')
def notebooks():
  path = ROOT / 'tools/notebooks.py'
  if 'execute' in flags.FLAGS:  # Another test ran it as a command.
    delattr(flags.FLAGS, 'execute')
  spec = importlib.util.spec_from_file_location('notebooks', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  delattr(flags.FLAGS, 'execute')
  return module


def test_the_notebooks_are_those_of_the_pages(notebooks):
  pages = notebooks.pages()
  assert len(pages) >= 3
  folder = notebooks.FOLDER
  assert {p.stem for p in folder.iterdir()} == {p.stem for p in pages}
  for page in pages:
    text = notebooks.to_text(notebooks.notebook(page))
    found = (folder / f'{page.stem}.ipynb').read_text()
    assert found == text, 'run python tools/notebooks.py'


def test_a_page_becomes_cells(notebooks):
  page = 'A\n\n```bash\nls\n```\n\n```text\na\n```\n\n<!-- long -->\n'
  page += '```bash\nsleep 9\n```\n'
  assert list(notebooks.parts(page)) == [
    ('markdown', 'A'),
    ('bash', 'ls'),
    ('text', 'a'),
    ('long', 'sleep 9'),
  ]


@pytest.mark.parametrize(
  ('expected', 'output', 'alike'),
  [
    ('a 0.92', 'a   0.95\n', True),
    ('a 0.92', 'a 0.72\n', False),
    ('a 0.92', 'b 0.92\n', False),
    ('...\nloss 0.30 ...', 'one\ntwo\nloss 0.31 in 3 s\n', True),
    ('...\nloss 0.30 ...', 'one\ntwo\nloss 0.31 in 3 s\nmore\n', False),
    ('1,000 rows', '1,050 rows', True),
    ('1e-8', '-1e-8', False),
  ],
)
def test_outputs_are_compared(notebooks, expected, output, alike):
  assert (notebooks.difference(expected, output) == '') == alike
