"""Introduces known faults into the package and shows which test fails.

python tools/mutate.py --list
python tools/mutate.py psum-for-pmean
python tools/mutate.py --all

Each mutation of tools/mutations.py is applied to a temporary copy of the
checkout, where its listed tests run; the checkout itself is not changed.
--unmutated runs the same tests without a mutation: they must pass. --tests
replaces the listed tests, for example by the whole suite: --tests tests. Exits
with 0 if every mutation made a test fail, with 1 if one did not, with 2 for bad
input.
"""

import argparse
import ast
from collections.abc import Sequence
import contextlib
import dataclasses
import difflib
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import NoReturn

import mutations

from skipnet_jax import files

Mutation = mutations.Mutation
ROOT = pathlib.Path(__file__).resolve().parents[1]
PASSED, FAILED = 0, 1
# Other exit codes of pytest.
ERRORS = {
  2: 'pytest was interrupted: a test file could not be imported',
  3: 'pytest had an internal error',
  4: 'pytest did not find a test that is named, or an option is wrong',
  5: 'pytest found no test',
}
TIMEOUT = 2 * 3600  # Seconds for one pytest process.


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The result of pytest.

  Attributes:
    verdict: PASSED, FAILED (a test failed), or None for anything else.
    text: the first failed test, the number of passed tests, or the error.
    seconds: the duration.
  """

  verdict: int | None
  text: str
  seconds: float


def mutated(mutation: Mutation, root: pathlib.Path) -> tuple[str, int]:
  """The mutated text of a mutation's file, and the line of the change.

  Raises:
    ValueError: the text to be replaced does not occur exactly once, or the
      result is not valid Python.
  """
  try:
    text = (root / mutation.path).read_text()
  except OSError as e:
    raise ValueError(f'{root / mutation.path}: {e.strerror}') from e
  count = text.count(mutation.old)
  if count != 1:
    raise ValueError(
      f'{root / mutation.path} has the text that {mutation.name} replaces '
      f'{count} times instead of once: correct its entry in tools/mutations.py.'
    )
  broken = text.replace(mutation.old, mutation.new)
  try:
    ast.parse(broken)
  except SyntaxError as e:
    raise ValueError(f'{mutation.name} makes no valid Python: {e}') from e
  return broken, text[: text.index(mutation.old)].count('\n') + 1


def copy_checkout(root: pathlib.Path, folder: pathlib.Path) -> None:
  """Copies tracked files and new files that git does not ignore.

  The copy is a git repository without commits, as some tests need a repository.

  Raises:
    ValueError: `root` is not a git checkout.
  """
  try:
    listed = subprocess.run(
      ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
      cwd=root,
      capture_output=True,
      check=True,
      text=True,
    ).stdout
  except (OSError, subprocess.CalledProcessError) as e:
    raise ValueError(f'{root} is not a git checkout.') from e
  for name in filter(None, listed.split('\0')):
    # Deleted files are still tracked.
    if (root / name).is_file():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(root / name, folder / name)
  subprocess.run(['git', 'init', '--quiet'], cwd=folder, check=True)


def environment(folder: pathlib.Path) -> dict[str, str]:
  """Environment variables with which Python imports from `folder`."""
  # This function may run under pytest; the child must not get its variables.
  kept = {k: v for k, v in os.environ.items() if not k.startswith('PYTEST_')}
  paths = [str(folder), *filter(None, [kept.get('PYTHONPATH')])]
  return kept | {'PYTHONPATH': os.pathsep.join(paths)}


def check_imported(folder: pathlib.Path, path: str) -> None:
  """Raises RuntimeError unless Python imports the file `path` of `folder`."""
  module = '.'.join(pathlib.PurePath(path).with_suffix('').parts)
  code = (
    'import importlib.util as u, sys; print(u.find_spec(sys.argv[1]).origin)'
  )
  found = subprocess.run(
    [sys.executable, '-c', code, module],
    cwd=folder,
    env=environment(folder),
    capture_output=True,
    check=False,
    text=True,
  ).stdout.strip()
  if not found or not os.path.samefile(found, folder / path):
    raise RuntimeError(
      f'{module} is imported from {found or "nowhere"}, not from the copy'
    )


def run_tests(folder: pathlib.Path, tests: Sequence[str]) -> Outcome:
  """Runs pytest in `folder` until a test fails."""
  begin = time.monotonic()
  options = ['-x', '-q', '-rfE', '-p', 'no:cacheprovider']
  try:
    done = subprocess.run(
      [sys.executable, '-m', 'pytest', *options, *tests],
      cwd=folder,
      env=environment(folder),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      check=False,
      text=True,
      timeout=TIMEOUT,
    )
  except subprocess.TimeoutExpired:
    text = f'pytest did not finish within {TIMEOUT} s'
    return Outcome(None, text, time.monotonic() - begin)
  seconds = time.monotonic() - begin
  return judge(done.returncode, done.stdout, seconds)


def judge(code: int, output: str, seconds: float) -> Outcome:
  """Interprets the exit code and output of pytest."""
  # Spaces occur only in the parameters of a test, in brackets.
  failed = re.search(
    r'^(?:FAILED|ERROR) ([^\s\[]+(?:\[.*?\](?= - |$))?)', output, re.MULTILINE
  )
  passed = re.search(r'\b\d+ passed', output)
  if code == 1 and failed:
    return Outcome(FAILED, failed[1], seconds)
  if code == 0 and passed:
    return Outcome(PASSED, passed[0], seconds)
  if code == 0:
    reason = 'every test was skipped'
  elif code < 0:
    reason = f'pytest was killed by signal {-code}'
  else:
    reason = ERRORS.get(code, f'pytest ended with code {code}')
  tail = '\n'.join(f'  | {line}' for line in output.splitlines()[-15:])
  return Outcome(None, f'{reason}:\n{tail}', seconds)


def try_in_copy(
  root: pathlib.Path, tests: Sequence[str], mutation: Mutation | None = None
) -> Outcome:
  """Runs tests in a copy of a checkout, with a mutation or without."""
  with files.temporary_folder('skipnet_jax-mutated-') as folder:
    folder = folder.resolve()
    copy_checkout(root, folder)
    if mutation:
      (folder / mutation.path).write_text(mutated(mutation, root)[0])
      check_imported(folder, mutation.path)
    return run_tests(folder, tests)


def table(chosen: Sequence[Mutation], root: pathlib.Path) -> str:
  """The mutations as a Markdown table."""
  lines = ['| name | place | fault | tests |', '|---|---|---|---|']
  for each in chosen:
    place = f'{each.path}:{mutated(each, root)[1]}'
    tests = ' '.join(each.tests)
    lines.append(f'| {each.name} | {place} | {each.why} | {tests} |')
  return '\n'.join(lines)


def choose(names: Sequence[str], known: Sequence[Mutation]) -> list[Mutation]:
  """The mutations with these names, in the given order.

  Raises:
    ValueError: a name is unknown.
  """
  by_name = {each.name: each for each in known}
  for name in names:
    if name not in by_name:
      near = difflib.get_close_matches(name, by_name, 1, 0.3)
      raise ValueError(
        f'There is no mutation {name!r}: '
        + (f'did you mean {near[0]!r}?' if near else '--list shows the names.')
      )
  return [by_name[name] for name in names]


def report(
  root: pathlib.Path, chosen: Sequence[Mutation], tests: Sequence[str]
) -> bool:
  """Tries each mutation and prints the results; True if all were caught."""
  begin, caught = time.monotonic(), 0
  for each in chosen:
    outcome = try_in_copy(root, tests or each.tests, each)
    took = f'in {outcome.seconds:.0f} s'
    if outcome.verdict == FAILED:
      caught += 1
      text = f'caught by {outcome.text} {took}'
    elif outcome.verdict == PASSED:
      text = f'NOT CAUGHT, {outcome.text} {took}'
    else:
      text = f'NOT TRIED, {outcome.text}'
    print(f'{each.name}: {text}', flush=True)
  seconds = time.monotonic() - begin
  print(f'{caught} of {len(chosen)} mutations were caught in {seconds:.0f} s.')
  return caught == len(chosen)


def report_unmutated(root: pathlib.Path, tests: Sequence[str]) -> bool:
  """Runs tests without a mutation; True if all passed."""
  outcome = try_in_copy(root, tests)
  took = f'in {outcome.seconds:.0f} s'
  if outcome.verdict == FAILED:
    print(f'unmutated: FAILED {outcome.text} {took}')
  elif outcome.verdict == PASSED:
    print(f'unmutated: {outcome.text} {took}')
  else:
    print(f'unmutated: NOT TRIED, {outcome.text}')
  return outcome.verdict == PASSED


def _refuse(message: str) -> NoReturn:
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)


def main(
  arguments: Sequence[str] | None = None,
  known: Sequence[Mutation] = mutations.MUTATIONS,
) -> int:
  """Returns the exit code; `arguments` are those of the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('names', nargs='*', metavar='NAME', help='a mutation')
  parser.add_argument('--all', action='store_true', help='every mutation')
  parser.add_argument('--list', action='store_true', help='show the mutations')
  parser.add_argument(
    '--unmutated', action='store_true', help='run the tests without a change'
  )
  parser.add_argument(
    '--root', type=pathlib.Path, default=ROOT, help='another git checkout'
  )
  parser.add_argument(
    '--tests', default='', help="pytest's arguments instead of the listed tests"
  )
  given = parser.parse_args(arguments)
  root = given.root.resolve()
  try:
    chosen = choose(given.names, known)
    if given.all and chosen:
      raise ValueError(
        f'--all is given together with {chosen[0].name}: name the mutations to '
        'try, or give --all alone.'
      )
    if given.all or (given.list and not chosen):
      chosen = list(known)
    if not chosen:
      raise ValueError('Name a mutation, or give --all; --list shows them.')
    # Also finds entries that do not fit, before anything runs.
    listed = table(chosen, root)
    tests = shlex.split(given.tests)
  except ValueError as e:
    _refuse(str(e))
  if given.list:
    print(listed)
    return 0
  try:
    if given.unmutated:
      named = dict.fromkeys(test for each in chosen for test in each.tests)
      good = report_unmutated(root, tests or list(named))
    else:
      good = report(root, chosen, tests)
  except ValueError as e:
    _refuse(str(e))
  return 0 if good else 1


if __name__ == '__main__':
  # Otherwise SIGTERM would leave the copy in the temporary folder.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  with contextlib.suppress(KeyboardInterrupt):
    sys.exit(main())
  sys.exit(130)
