"""A data set is known again by all its pixels, wherever they lie."""

import json
import os

import numpy as np
import pytest
import tifffile

from skipnet_jax import environment
from skipnet_jax.data import fingerprint


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('SKIPNET_CACHE_DIR', str(tmp_path / 'cache'))
  return environment.cache_dir() / 'fingerprints.json'


def test_every_pixel_counts():
  image = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
  label = image > 20
  first = fingerprint.of_arrays(image, label)
  assert [len(part) for part in first.split('-')] == [12, 12]
  assert fingerprint.of_arrays(np.asfortranarray(image), label) == first

  def changed(image, label):
    found = fingerprint.of_arrays(image, label).split('-')
    return [a != b for a, b in zip(found, first.split('-'), strict=True)]

  other = image.copy()
  other[2, 3, 4] += 1
  assert changed(other, label) == [True, False]
  turned = label.copy()
  turned[1, 0, 0] ^= True
  assert changed(image, turned) == [False, True]
  assert changed(image.reshape(3, 5, 4), label) == [True, False]
  assert changed(image.view(np.int8), label) == [True, False]


def test_files_are_hashed_once_for_each_state(tmp_path, cache):
  path = tmp_path / 'a.tif'
  tifffile.imwrite(path, np.zeros((2, 8, 8), np.uint8))
  calls = []

  def known(*reading):
    state = fingerprint.state_of([path], *reading)
    return fingerprint.remembered(state, lambda: calls.append(0) or 'a-b')

  assert known() == known() == 'a-b'
  assert len(calls) == 1
  known('instances')
  assert len(calls) == 2
  # Changed in place: another time, the same size.
  times = path.stat()
  with path.open('r+b') as file:
    file.seek(-1, 2)
    file.write(b'\1')
  os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
  known()
  assert len(calls) == 3
  # Nothing that is wrong with the cache is an error.
  for content in ('{', '[]', json.dumps({k: 1 for k in 'ab'})):
    cache.write_text(content)
    assert known() == 'a-b'
  assert len(calls) == 6
  cache.unlink()
  cache.parent.rmdir()
  cache.parent.write_text('no folder')
  assert known() == 'a-b'


def test_a_folder_is_all_its_files(tmp_path):
  for name in 'ab':
    (tmp_path / name).write_text(name)
  first = fingerprint.state_of([tmp_path])
  assert first
  (tmp_path / 'b').write_text('longer')
  assert fingerprint.state_of([tmp_path]) not in (first, '')
  assert fingerprint.state_of([tmp_path / 'none']) == ''
  # A link to a file is followed, one to a folder hides what changes there.
  (tmp_path / 'c').symlink_to('a')
  assert fingerprint.state_of([tmp_path])
  (tmp_path / 'd').symlink_to('.')
  assert fingerprint.state_of([tmp_path]) == ''
  assert fingerprint.remembered('', lambda: 'x') == 'x'


def test_the_cache_stays_small(monkeypatch, cache):
  monkeypatch.setattr(fingerprint, '_MOST', 3)
  for state in 'abcde':
    fingerprint.remembered(state, lambda s=state: s)
  assert [*json.loads(cache.read_text())] == ['c', 'd', 'e']
