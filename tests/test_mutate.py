"""tools/mutate.py: its list fits the package; caught faults are recognised."""

import ast
import functools
import subprocess

from conftest import ROOT
from conftest import tool
import pytest

mutate = tool('mutate')

MUTATIONS = mutate.mutations.MUTATIONS
NAMES = [each.name for each in MUTATIONS]


@functools.cache
def functions(path):
  """The test functions of a file."""
  tree = ast.parse((ROOT / path).read_text())
  return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_there_are_enough_and_their_names_differ():
  assert len(MUTATIONS) >= 25
  assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize('mutation', MUTATIONS, ids=NAMES)
def test_a_mutation_fits_the_package(mutation):
  broken, line = mutate.mutated(mutation, ROOT)
  text = (ROOT / mutation.path).read_text()
  assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(text))
  assert text.splitlines()[line - 1].count(mutation.old.splitlines()[0]) == 1
  assert mutation.why.endswith('.')
  assert mutation.tests
  for test in mutation.tests:
    path, _, name = test.partition('::')
    assert (ROOT / path).is_file()
    assert not name or name in functions(path)


def run(capsys, *arguments, **known):
  """Exit code, what was printed, and the error message."""
  try:
    code = mutate.main(arguments, **known)
  except SystemExit as e:
    code = e.code
  return code, *capsys.readouterr()


def test_the_list_shows_place_and_fault(capsys):
  code, out, _ = run(capsys, '--list')
  assert code == 0
  assert len(out.splitlines()) == 2 + len(MUTATIONS)
  for each in MUTATIONS:
    _, line = mutate.mutated(each, ROOT)
    assert f'| {each.name} | {each.path}:{line} | {each.why} |' in out


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ((), '--list shows them'),
    (('psum-for-mean',), "did you mean 'psum-for-pmean'?"),
    (('psum-for-pmean', 'XYZ'), '--list shows the names'),
    (('psum-for-pmean', '--root=/nowhere'), 'No such file'),
    (('--all', 'psum-for-pmean'), 'is given together with psum-for-pmean'),
  ],
)
def test_bad_input_is_one_sentence(capsys, arguments, words):
  code, out, err = run(capsys, *arguments)
  assert code == 2
  assert not out
  assert words in err
  assert err.count('\n') == 1


def test_exit_codes_of_pytest_but_1_catch_nothing():
  def verdict(code, output):
    return mutate.judge(code, output, 1.0).verdict

  failed = 'FAILED tests/test_a.py::test_b[1 - 2] - assert 1 - 2 == 3\n1 failed'
  assert mutate.judge(1, failed, 1.0).text == 'tests/test_a.py::test_b[1 - 2]'
  assert verdict(1, failed) == mutate.FAILED
  assert verdict(0, '2 passed, 1 skipped in 0.1s') == mutate.PASSED
  assert verdict(0, '3 skipped in 0.1s') is None
  for code in (2, 3, 4, 5, 77, -9):
    assert verdict(code, failed) is None


def test_caught_and_not_caught_are_told_apart(capsys, tmp_path):
  """A package of one function, whose test finds one fault of two."""
  (tmp_path / 'skipnet_jax').mkdir()
  (tmp_path / 'skipnet_jax' / '__init__.py').touch()
  (tmp_path / 'skipnet_jax' / 'sums.py').write_text(
    'def add(a, b):\n  return a + b + 0\n'
  )
  (tmp_path / 'test_sums.py').write_text(
    'from skipnet_jax import sums\n\n\n'
    'def test_add():\n  assert sums.add(2, 3) == 5\n'
  )
  subprocess.run(['git', 'init', '--quiet'], cwd=tmp_path, check=True)
  seen, unseen = (
    mutate.Mutation(
      name, 'skipnet_jax/sums.py', old, new, 'Wrong.', ('test_sums.py',)
    )
    for name, old, new in (
      ('minus', 'a + b', 'a - b'),
      ('one', '+ 0', '+ 0 * a'),
    )
  )
  root = f'--root={tmp_path}'
  code, out, _ = run(capsys, root, '--all', known=(seen, unseen))
  assert code == 1
  assert 'minus: caught by test_sums.py::test_add in ' in out
  assert 'one: NOT CAUGHT, 1 passed in ' in out
  assert '1 of 2 mutations were caught' in out
  code, out, _ = run(capsys, root, '--unmutated', '--all', known=(seen,))
  assert code == 0
  assert out.startswith('unmutated: 1 passed in ')
