"""Writes the reference pages from the code: config fields, and commands.

python tools/reference.py          # writes docs/reference_*.md
python tools/reference.py --check  # exits with 1 if they are not as the code

The fields are those of config.get_default and of its dataclasses, with the
comment on each; the networks' are those of their docstrings. The commands are
the flags that their modules define.
"""

import ast
from collections.abc import Iterator
import dataclasses
import inspect
import pathlib
import re
import sys
import tokenize

from absl import flags

from skipnet_jax import cli
from skipnet_jax import config_checks
from skipnet_jax.benchmarking import plan

_CHECK = flags.DEFINE_bool('check', False, 'Write nothing; compare.')
ROOT = pathlib.Path(__file__).resolve().parents[1]
COMMANDS = (
  *('train', 'predict', 'export', 'evaluate', 'gradflow', 'benchmark'),
)
# Short names of sections in get_default, as the code has them.
_SECTION = re.compile(r'^c\.(\w+) = (\w) = ConfigDict\(\)')


def comments(path: pathlib.Path) -> dict[int, str]:
  """The comment of each line of a file, by its number."""
  with path.open('rb') as file:
    return {
      token.start[0]: token.string.removeprefix('#').strip()
      for token in tokenize.tokenize(file.readline)
      if token.type == tokenize.COMMENT
    }


def on_line(number: int, lines: list[str], found: dict[int, str]) -> str:
  """The comment on a statement: behind it, or in the lines before it."""
  if number in found:
    return found[number]
  above: list[str] = []
  number -= 1
  while number in found and lines[number - 1].lstrip().startswith('#'):
    above.insert(0, found[number])
    number -= 1
  return ' '.join(above)


def config_fields(path: pathlib.Path, start: str) -> Iterator[tuple[str, ...]]:
  """Name, default and comment of each field that a function assigns.

  Args:
    path: of the module.
    start: its function, whose statements are `section.field = default`.
  """
  text = path.read_text()
  lines, found = text.splitlines(), comments(path)
  function = next(
    node
    for node in ast.parse(text).body
    if isinstance(node, ast.FunctionDef) and node.name == start
  )
  sections = {'c': '', 'b': 'benchmark.'}
  for node in function.body:
    if not isinstance(node, ast.Assign):
      continue
    target = node.targets[0]
    if not isinstance(target, ast.Attribute):
      continue
    name = sections[ast.unparse(target.value)] + target.attr
    if match := _SECTION.match(lines[node.lineno - 1].strip()):
      sections[match[2]] = f'{match[1]}.'
    elif not isinstance(node.value, ast.Call):
      text = on_line(node.lineno, lines, found)
      if choices := config_checks._CHOICES.get(name):
        text = f'One of {", ".join(choices)}. {text}'.strip()
      if not text:
        raise ValueError(f'{path}: {name} has no comment that explains it.')
      yield name, default_of(name, node.value), text


def default_of(name: str, value: ast.expr) -> str:
  """A default as Python; the value of a constant that another room names."""
  if any(isinstance(part, ast.Name) for part in ast.walk(value)):
    section, _, field = name.rpartition('.')
    assert section == 'benchmark', name
    return repr(plan.get_default()[field])
  return ast.unparse(value)


def augmentation_fields(path: pathlib.Path) -> Iterator[tuple[str, ...]]:
  """The same of the dataclass of `data.augment`."""
  text = path.read_text()
  lines, found = text.splitlines(), comments(path)
  body = next(
    node.body
    for node in ast.parse(text).body
    if isinstance(node, ast.ClassDef) and node.name == 'Augmentation'
  )
  for node in body:
    if isinstance(node, ast.AnnAssign):
      name, default = ast.unparse(node.target), ast.unparse(node.value)
      text = on_line(node.lineno, lines, found)
      if not text:
        raise ValueError(f'{path}: {name} has no comment that explains it.')
      yield f'data.augment.{name}', default, text


def network_fields(network: type) -> Iterator[tuple[str, ...]]:
  """Name, default and meaning of the fields of a network."""
  texts = {}
  for base in reversed(network.__mro__):
    doc = inspect.getdoc(base) or ''
    part = doc.partition('Attributes:')[2]
    part = re.split(r'\n\S', part)[0]
    for match in re.finditer(
      r'^ {2}(\w+): (.*(?:\n {4}.*)*)', part, re.MULTILINE
    ):
      texts[match[1]] = ' '.join(match[2].split())
  for field in dataclasses.fields(network):
    if field.name in ('parent', 'name', 'axis_name') or field.name not in texts:
      continue
    yield f'model.{field.name}', repr(field.default), texts[field.name]


def defined_flags(path: pathlib.Path) -> Iterator[tuple[str, ...]]:
  """Name, default and help of each flag that a module defines."""
  for node in ast.walk(ast.parse(path.read_text())):
    if not isinstance(node, ast.Call):
      continue
    called = ast.unparse(node.func)
    if called == 'config_flags.DEFINE_config_file':
      kind = 'DEFINE_config_file'
    elif called.startswith('flags.DEFINE_'):
      kind = called.removeprefix('flags.')
    else:
      continue
    if kind == 'DEFINE_alias':
      continue
    values = [ast.literal_eval(argument) for argument in node.args]
    name, default, *rest = values
    yield f'--{name}', '' if default is None else str(default), rest[-1]


def table(heads: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
  """A table in Markdown, the first two columns as code."""

  def cell(text: str, code: bool) -> str:
    text = ' '.join(text.split()).replace('|', '\\|')
    if not code:
      text = text.replace('<', '&lt;')
    return f'`{text}`' if code and text else text

  lines = [f'| {" | ".join(heads)} |', f'|{"---|" * len(heads)}']
  for row in rows:
    cells = [cell(text, i < 2) for i, text in enumerate(row)]
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def config_page() -> str:
  """The page of all fields of a config."""
  from skipnet_jax import models

  home = ROOT / 'skipnet_jax'
  heads = 'field', 'default', 'meaning'
  parts = [
    '# Fields of a config',
    'Written by `tools/reference.py` from the code. An experiment file sets '
    'fields, and the command line has the last word: '
    '`--config.optim.learning_rate=3e-4`.',
    '## Training',
    table(heads, config_fields(home / 'config.py', 'get_default')),
    '## Augmentation',
    table(heads, augmentation_fields(home / 'config.py')),
    '## Networks',
    'An experiment chooses one by `model.name`; another one of the same name '
    'or of your own replaces it, with its own fields.',
  ]
  for name, network in models.MODELS.items():
    parts += [f'### `{name}`', table(heads, network_fields(network))]
  parts += [
    '## Benchmarks',
    'Of `--config=experiments/benchmark.py`.',
    table(heads, config_fields(home / 'benchmarking/plan.py', 'get_default')),
  ]
  return '\n\n'.join(parts) + '\n'


def commands_page() -> str:
  """The page of all commands and tools."""
  parts = [
    '# Commands',
    'Written by `tools/reference.py` from the code. `python -m '
    'skipnet_jax.train` and, once the package is installed, `skipnet train` '
    'are the same command; so it is with the others. `--help` says what this '
    'page says.',
  ]
  paths = [ROOT / f'skipnet_jax/{name}.py' for name in COMMANDS]
  tools = sorted((ROOT / 'tools').glob('*.py'))
  for path in [*paths, *tools]:
    rows = list(defined_flags(path))
    if not rows:
      continue
    first = (ast.get_docstring(ast.parse(path.read_text())) or '').splitlines()
    command = f'tools/{path.name}' if path in tools else path.stem
    parts += [f'## `{command}`', first[0]]
    parts.append(table(('flag', 'default', 'meaning'), iter(rows)))
  return '\n\n'.join(parts) + '\n'


def main() -> None:
  """Writes or compares the pages."""
  pages = {
    ROOT / 'docs/reference_config.md': config_page(),
    ROOT / 'docs/reference_commands.md': commands_page(),
  }
  for path, text in pages.items():
    if not _CHECK.value:
      path.write_text(text)
      print(path.relative_to(ROOT))
    elif not path.exists() or path.read_text() != text:
      print(f'{path.relative_to(ROOT)} is old: run python tools/reference.py')
      sys.exit(1)


if __name__ == '__main__':
  cli.run(main)
