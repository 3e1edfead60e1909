"""Fresh processes: what they say, and how they may end."""

import json
import sys

import pytest

from skipnet_jax import errors
from skipnet_jax.benchmarking import children


@pytest.fixture
def child(tmp_path, monkeypatch):
  """Makes every process run some Python, with `journal` at hand."""

  def use(code):
    script = tmp_path / 'child'
    script.write_text(
      f'#!{sys.executable}\n'
      'import json, os, pathlib, sys\n'
      "path = pathlib.Path(sys.argv[-1].removeprefix('--child='))\n"
      'journal = json.loads(path.read_text())\n'
      'def save(): path.write_text(json.dumps(journal))\n'
      f'{code}\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(script))

  return use


def test_each_process_starts_from_what_the_first_one_found(child):
  child(
    "print('measuring', flush=True)\n"
    "journal['about']['hardware'] = {'platform': 'cpu'}\n"
    "journal['about']['seen'] = [journal['first'], journal['largest'],"
    " sorted(journal['rows'])]\n"
    "journal['largest'] = {'train float32': 5}\n"
    "journal['rows'] = {'a': {'error': None}, 'b': {'error': 'too large'}}\n"
    'save()'
  )
  said = []
  journals = children.measure({'seed': 3}, 3, said.append)
  assert said == [
    f'{line}' for n in (1, 2, 3) for line in (f'Process {n} of 3', 'measuring')
  ]
  assert [j.config for j in journals] == [{'seed': 3}] * 3
  later = [False, {'train float32': 5}, ['b']]
  assert [j.about['seen'] for j in journals] == [[True, {}, []], later, later]
  # They share one folder for compiled programs.
  assert len({j.cache for j in journals}) == 1


def test_later_processes_may_compile_anew(child):
  child("journal['about'] = {'hardware': {'platform': 'gpu'}}; save()")
  seen = []
  journals = children.measure({}, 3, print, lambda p: not seen.append(p))
  assert seen == ['gpu'] * 2
  # Only the first has a folder for programs, to time the cache with.
  assert [bool(j.cache) for j in journals] == [True, False, False]


def test_the_process_runs_this_package(child):
  child("journal['about'] = os.environ['PYTHONPATH'].split(':')[0]; save()")
  (journal,) = children.measure({}, 1, print)
  assert children.pathlib.Path(
    journal.about, 'skipnet_jax', 'benchmark.py'
  ).exists()


def test_another_process_goes_on_after_one_that_was_killed(child):
  child(
    "if not journal['trials']:\n"
    "  journal['current'] = 'the row'\n"
    "  journal['rows'] = {'before': {'error': None}}\n"
    '  save()\n'
    '  os.kill(os.getpid(), 9)\n'
    "journal['rows']['the row'] = {'error': journal['trials']['the row']}\n"
    'save()'
  )
  said = []
  (journal,) = children.measure({}, 1, said.append)
  assert journal.rows['before'] == {'error': None}
  assert 'killed (SIGKILL)' in journal.rows['the row']['error']
  assert journal.current is None
  assert '    killed (SIGKILL)' in said


def test_one_that_is_killed_at_once_ends_the_benchmark(child):
  child('os.kill(os.getpid(), 6)')
  with pytest.raises(errors.RunError, match='SIGABRT'):
    children.measure({}, 1, print)


@pytest.mark.parametrize(
  ('code', 'error'), [(2, errors.InputError), (1, errors.RunError)]
)
def test_a_sentence_is_handed_on(child, code, error):
  child(
    f"print('a warning\\nerror: no such thing.', file=sys.stderr); exit({code})"
  )
  with pytest.raises(error, match=r'^no such thing\.$'):
    children.measure({}, 1, print)


def test_what_nobody_foresaw_is_shown_whole(child, capsys):
  child('1 / 0')
  with pytest.raises(errors.RunError, match='ZeroDivisionError'):
    children.measure({}, 1, print)
  assert 'Traceback' in capsys.readouterr().err


def test_no_process_is_left_when_the_parent_stops(child):
  child('print(os.getpid(), flush=True)\nimport time\ntime.sleep(60)')
  seen = []

  def interrupted(line):
    if line.isdigit():
      seen.append(int(line))
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    children.measure({}, 1, interrupted)
  with pytest.raises(ProcessLookupError):
    children.os.kill(seen[0], 0)


def test_the_journal_is_json_that_a_person_can_read(child):
  child("print(json.dumps(journal['config'])); save()")
  said = []
  children.measure({'model': {'name': 'fc_resnet'}}, 1, said.append)
  assert json.loads(said[1]) == {'model': {'name': 'fc_resnet'}}


ROWS = (
  "journal['about'] = {'hardware': {'platform': 'cpu'}}\n"
  "journal['rows'] = {'a': {'error': None}}"
)


@pytest.mark.parametrize(
  ('code', 'rows'),
  [
    # The first process is interrupted: after its first row, and before it.
    (f"{ROWS}; save(); print('now')", {'a': {'error': None}}),
    ("print('now')", None),
    # The second one, after its second row.
    (
      f"{ROWS}; journal['first'] or journal['rows'].update(b={{}}); save()\n"
      "journal['first'] or print('now')",
      {'a': {'error': None}},
    ),
    # An error.
    (f"{ROWS}; save(); exit('error: a fault.')", {'a': {'error': None}}),
  ],
)
def test_what_was_measured_is_kept(child, code, rows):
  child(code)
  kept = []

  def say(line):
    if line == 'now':
      raise KeyboardInterrupt

  with pytest.raises((KeyboardInterrupt, errors.RunError)):
    children.measure({}, 3, say, keep=kept.extend)
  assert [journal.rows for journal in kept] == ([rows] if rows else [])
