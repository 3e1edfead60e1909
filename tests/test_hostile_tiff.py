"""A TIFF whose directory says anything is read or refused, and cheaply."""

import math
import resource
import struct

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import tifffile

from skipnet_jax import errors
from skipnet_jax.data import volume

SHAPE = (3, 24, 32)
NUMBERS = st.one_of(
  st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 16, 24, 32, 255, 256, 2**15, 2**16]),
  st.sampled_from([2**31 - 1, 2**31, 2**32 - 1, 2**32 - 16]),
  st.integers(0, 2**32 - 1),
)
# Of a directory's twelve-byte entry: where, and how it is packed.
FIELDS = {
  'code': (0, 'H'),
  'type': (2, 'H'),
  'count': (4, 'I'),
  'value': (8, 'I'),
}
OPTIONS = {
  'plain': {'metadata': None},
  'imagej': {'imagej': True, 'metadata': {'axes': 'ZYX'}},
  'zip': {'compression': 'zlib', 'metadata': None},
  'tiles': {'tile': (16, 16), 'metadata': None},
  'big-endian': {'byteorder': '>', 'metadata': None},
}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """Each kind as bytes."""
  folder = tmp_path_factory.mktemp('whole')
  array = np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)
  found = {}
  for name, options in OPTIONS.items():
    path = folder / f'{name}.tif'
    tifffile.imwrite(path, array, photometric='minisblack', **options)
    found[name] = path.read_bytes()
  return found


def directories(data):
  """Where each directory of a classic TIFF lies, and its number of entries."""
  order = '<' if data[:2] == b'II' else '>'
  (at,) = struct.unpack_from(f'{order}I', data, 4)
  while at:
    (count,) = struct.unpack_from(f'{order}H', data, at)
    yield order, at, count
    (at,) = struct.unpack_from(f'{order}I', data, at + 2 + 12 * count)


CHANGES = st.lists(
  st.tuples(
    st.integers(0, 2),
    st.integers(0, 30),
    st.sampled_from(list(FIELDS)),
    NUMBERS,
  ),
  min_size=1,
  max_size=4,
)


@hypothesis.settings(
  max_examples=800,
  deadline=None,
  derandomize=True,
  database=None,
  suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(st.sampled_from(list(OPTIONS)), CHANGES)
def test_any_directory_is_read_or_refused(
  whole, tmp_path_factory, kind, changes
):
  data = bytearray(whole[kind])
  found = list(directories(data))
  for page, entry, field, value in changes:
    order, at, count = found[page % len(found)]
    offset, form = FIELDS[field]
    size = 2 ** (8 * struct.calcsize(form))
    struct.pack_into(
      f'{order}{form}',
      data,
      at + 2 + 12 * (entry % count) + offset,
      value % size,
    )
  path = tmp_path_factory.mktemp('tiff') / 'a.tif'
  path.write_bytes(data)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  try:
    with volume.open_stack(path) as stack:
      assert math.prod(stack.shape) < 1000 * len(data) + 2**30
      for page in stack:
        assert page.shape == stack.shape[1:]
  except errors.InputError as e:
    refusal = str(e)
    assert '\n' not in refusal
    assert str(path) in refusal
    assert len(refusal) < 700
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert grown < 160 * 1024, 'KiB'
