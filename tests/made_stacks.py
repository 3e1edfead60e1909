"""Stacks as files, and how one that cannot be used is refused."""

import pathlib

import numpy as np
import pytest
import tifffile

from skipnet_jax import errors
from skipnet_jax.data import volume


def make_pixels(dtype='uint8', shape=(5, 40, 48)) -> np.ndarray:
  rng = np.random.default_rng(0)
  if dtype == 'float32':
    return rng.normal(size=shape).astype(dtype)
  return rng.integers(0, np.iinfo(dtype).max, shape).astype(dtype)


def write_tiff(path, array, **options) -> pathlib.Path:
  tifffile.imwrite(path, array, **{'photometric': 'minisblack'} | options)
  return path


def refuse(path, *words, **options) -> str:
  with (
    pytest.raises(errors.InputError) as caught,
    volume.open_stack(path, **options) as stack,
  ):
    stack.read_all()
  message = str(caught.value)
  assert '\n' not in message
  assert str(path) in message
  for word in words:
    assert word in message
  return message
