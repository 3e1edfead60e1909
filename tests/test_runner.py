"""The tests' own runner: a lost process or a test that hangs ends the run."""

import subprocess
import sys
import textwrap

from conftest import ROOT
import pytest


@pytest.mark.parametrize(
  ('fault', 'words'),
  [
    ('os.abort()', 'crashed while running'),
    ('time.sleep(600)', 'crashed while running'),
  ],
)
def test_a_lost_process_ends_the_run_and_its_test_is_named(
  tmp_path, fault, words
):
  (tmp_path / 'test_it.py').write_text(
    textwrap.dedent(f"""
      import os, time

      def test_before():
        pass

      def test_that_is_lost():
        {fault}
      """)
  )
  script = (ROOT / 'tools/test.sh').read_text()
  assert '--max-worker-restart=0' in script
  config = (ROOT / 'pyproject.toml').read_text()
  assert 'faulthandler_exit_on_timeout = true' in config
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'pytest', '-n2', '--max-worker-restart=0'),
      *('-c', str(ROOT / 'pyproject.toml'), '--rootdir', str(tmp_path)),
      *('-o', 'faulthandler_timeout=2', '-p', 'no:cacheprovider'),
      str(tmp_path / 'test_it.py'),
    ],
    cwd=tmp_path,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=60,
    check=False,
  )
  assert done.returncode not in (0, 5), done.stdout
  assert words in done.stdout
  assert 'test_that_is_lost' in done.stdout
