"""Files are written whole: the old one or the new one, never a part."""

import contextlib
import errno
import json
import os
import stat
import subprocess
import sys

from conftest import ROOT
import pytest

from skipnet_jax import errors
from skipnet_jax import files


def test_an_existing_file_is_replaced(tmp_path):
  path = tmp_path / 'a'
  for data in ('first, and longer', 'µ', b'\x00\xff'):
    files.write_whole(path, data)
    want = data.encode() if isinstance(data, str) else data
    assert path.read_bytes() == want
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('there', [True, False])
def test_a_failed_write_leaves_the_old_file(tmp_path, there):
  path = tmp_path / 'a'
  if there:
    path.write_text('old')

  def write():
    with files.replacing(path) as file:
      file.write(b'half')
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    write()
  assert [p.read_text() for p in tmp_path.iterdir()] == ['old'] * there


def test_a_failed_rename_leaves_no_part(tmp_path):
  (tmp_path / 'a').mkdir()
  with pytest.raises(IsADirectoryError):
    files.write_whole(tmp_path / 'a', 'new')
  assert [p.name for p in tmp_path.iterdir()] == ['a']


def test_a_link_is_replaced_and_not_followed(tmp_path):
  (tmp_path / 'elsewhere').write_text('kept')
  (tmp_path / 'a').symlink_to(tmp_path / 'elsewhere')
  files.write_whole(tmp_path / 'a', 'new')
  assert (tmp_path / 'elsewhere').read_text() == 'kept'
  assert not (tmp_path / 'a').is_symlink()


def test_an_existing_part_is_never_overwritten(tmp_path, monkeypatch):
  monkeypatch.setattr(files.secrets, 'token_hex', lambda _: 'guessed')
  (tmp_path / 'elsewhere').write_text('kept')
  (tmp_path / '.a.guessed.part').symlink_to(tmp_path / 'elsewhere')
  with pytest.raises(FileExistsError):
    files.write_whole(tmp_path / 'a', 'new')
  assert (tmp_path / 'elsewhere').read_text() == 'kept'


@pytest.mark.parametrize('mask', [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path, mask):
  before = os.umask(mask)
  try:
    files.write_whole(tmp_path / 'a', '')
  finally:
    os.umask(before)
  assert stat.S_IMODE((tmp_path / 'a').stat().st_mode) == 0o666 & ~mask


def test_json_is_replaced_whole(tmp_path):
  path = tmp_path / 'a.json'
  files.write_json(path, {'a': 1})
  with pytest.raises(ValueError, match='JSON'):
    files.write_json(path, {'a': float('inf')})
  assert json.loads(path.read_text()) == {'a': 1}


def test_a_table_is_written_with_its_heading(tmp_path):
  files.write_csv(
    tmp_path / 'a.csv', ['a', 'b'], iter([(1, 'x,y'), (None, '')])
  )
  assert (tmp_path / 'a.csv').read_bytes() == b'a,b\r\n1,"x,y"\r\n,\r\n'


@pytest.mark.parametrize('content', [None, b'{"a": 1', b'\xff', b'[1]'])
def test_a_missing_or_damaged_object_is_empty(tmp_path, content):
  path = tmp_path / 'a.json'
  if content is not None:
    path.write_bytes(content)
  assert files.read_json(path) == {}
  files.write_json(path, {'a': 1})
  assert files.read_json(path) == {'a': 1}


@pytest.mark.parametrize(
  ('e', 'words'),
  [
    (FileNotFoundError(errno.ENOENT, 'No such file'), 'does not exist'),
    (NotADirectoryError(errno.ENOTDIR, 'Not a folder'), 'does not exist'),
    (IsADirectoryError(errno.EISDIR, 'Is a directory'), 'is a folder'),
    (PermissionError(errno.EACCES, 'Denied'), 'cannot be read (Denied)'),
    (OSError('no number'), 'is damaged'),
    (RecursionError(), 'is not JSON, or is damaged'),
    (KeyError('version'), "is damaged (it has no 'version')"),
    (TypeError('int() of None'), 'is damaged'),
  ],
)
def test_a_reason_is_in_words_not_the_name_of_a_class(e, words):
  assert files.why_unreadable(e) == words


# In another process: holds what it writes until standard input ends.
HOLDER = """
import pathlib, sys
from skipnet_jax import files
path = pathlib.Path(sys.argv[1])
with (
  files.replacing(path) as file,
  files.temporary_folder('.temporary.', path.parent) as folder,
):
  file.write(b'whole')
  (folder / 'a').touch()
  print('ready', flush=True)
  sys.stdin.read()
"""


def test_only_what_a_killed_process_left_is_removed(tmp_path, capsys):
  path = tmp_path / 'a[b].tif'
  (tmp_path / '.a[b].tif.not_ours.part').write_text('kept')
  (tmp_path / '.a[b].tif.01234567.part').symlink_to('elsewhere')
  (tmp_path / '.a.tif.01234567.part').write_text('of another file')
  others = set(tmp_path.iterdir())

  def start():
    before = set(tmp_path.iterdir())
    process = subprocess.Popen(
      [sys.executable, '-c', HOLDER, str(path)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=os.environ | {'PYTHONPATH': str(ROOT)},
    )
    assert process.stdout.readline() == b'ready\n'
    return process, set(tmp_path.iterdir()) - before

  with contextlib.ExitStack() as undo:
    (alive, kept), (killed, left) = start(), start()
    undo.enter_context(alive)
    undo.enter_context(killed)
    undo.callback(alive.kill)
    killed.kill()
    killed.wait()
    assert len(kept) == len(left) == 2
    files.write_whole(path, 'new')
    with files.temporary_folder('.temporary.', tmp_path) as folder:
      assert set(tmp_path.iterdir()) == {path, folder} | others | kept
    said = capsys.readouterr().err
    for name in left:
      assert f'Removed {name}, which a killed command left.\n' in said
    assert len(said.splitlines()) == 2
    alive.communicate()
  assert path.read_text() == 'whole'
  assert set(tmp_path.iterdir()) == {path} | others


def test_a_part_taken_for_a_dead_one_is_made_again(tmp_path, monkeypatch):
  lock = files._lock

  def late(descriptor):
    # Another process comes between making a part and locking it.
    monkeypatch.setattr(files, '_lock', lock)
    for part in tmp_path.iterdir():
      files._remove_if_left(part)
    assert not list(tmp_path.iterdir())
    lock(descriptor)

  monkeypatch.setattr(files, '_lock', late)
  files.write_whole(tmp_path / 'a', 'new')
  monkeypatch.setattr(files, '_lock', late)
  with files.temporary_folder('b', tmp_path / '.') as folder:
    assert set(tmp_path.iterdir()) == {folder}


def test_lines_are_appended_to_this_file_alone(tmp_path):
  for make in ('symlink_to', 'hardlink_to'):
    other, path = tmp_path / make, tmp_path / 'a'
    other.write_text('1\n')
    getattr(path, make)(other)
    for line in ('2\n', '3\n'):
      with files.open_to_append(path) as file:
        file.write(line)
    assert path.read_text() == '1\n2\n3\n'
    assert other.read_text() == '1\n'
    path.unlink()
  path.symlink_to(tmp_path / 'nowhere')
  files.open_to_append(path).close()
  assert not (tmp_path / 'nowhere').exists()


def test_a_folder_is_no_output(tmp_path):
  (tmp_path / 'a.json').mkdir()
  with pytest.raises(errors.InputError, match='is a folder: choose another'):
    files.check_outputs([tmp_path / 'a.json'], overwrite=True)


# The hidden file that replaces the second has too long a name.
@pytest.mark.parametrize('length', [300, 245])
def test_a_name_that_is_too_long(tmp_path, length):
  with pytest.raises(errors.InputError, match='too long: choose a shorter'):
    files.check_outputs([tmp_path / ('a' * length)], overwrite=True)
  files.check_outputs([tmp_path / ('a' * 200)], overwrite=False)


@pytest.mark.parametrize('links', [True, False])
def test_a_file_that_appears_is_not_replaced(tmp_path, monkeypatch, links):
  def refuse(*_):
    raise OSError(errno.EPERM, 'no links here')

  if not links:
    monkeypatch.setattr(files.os, 'link', refuse)
  path = tmp_path / 'a.json'
  files.check_outputs([path], overwrite=False)
  path.write_text('precious')
  (tmp_path / 'a_2.json').write_text('precious too')
  with pytest.raises(
    files.AppearedError, match=r'a\.json has appeared .*a_3\.json'
  ):
    files.write_whole(path, 'new')
  found = {p.name: p.read_text() for p in tmp_path.iterdir()}
  kept = {'a.json': 'precious', 'a_2.json': 'precious too'}
  assert found == kept | {'a_3.json': 'new'}
  path.unlink()
  # Its own file is replaced; so is another one with --overwrite.
  for text in ('first', 'second'):
    files.write_whole(path, text)
    assert path.read_text() == text
  files.check_outputs([path], overwrite=True)
  files.write_whole(path, 'third')
  assert path.read_text() == 'third'
