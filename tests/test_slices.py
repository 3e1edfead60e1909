"""Names of TPU slices, and the refusals."""

import sys

import pytest

from skipnet_jax import errors
from skipnet_jax.benchmarking.aot import slices


@pytest.mark.parametrize(
  ('text', 'chips'),
  [('v4:2x2x2', 8), ('v5e:2x2', 4), ('v5p:2x2x1', 4), ('v6e:16x16', 256)],
)
def test_a_slice_has_as_many_chips_as_its_sides_multiply_to(text, chips):
  assert slices.chips(text) == chips


@pytest.mark.parametrize('text', ['', '2x2', 'v3:2x2', 'TPU v5e:2x2'])
def test_an_unknown_generation_is_refused_with_those_that_are_known(text):
  with pytest.raises(errors.InputError, match='v4, v5e, v5p, v6e') as caught:
    slices.chips(text)
  assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
  ('text', 'known'),
  [('v5e:3x3', '8x16'), ('v5e', '1x1'), ('v5p:2x2', '2x2x1')],
)
def test_an_unknown_slice_is_refused_with_those_of_its_generation(text, known):
  with pytest.raises(errors.InputError, match=known):
    slices.chips(text)


def test_without_libtpu_the_extra_that_brings_it_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'libtpu', None)
  with pytest.raises(errors.InputError, match=r'pip install .*\[tpu\]'):
    slices.devices('v5e:2x2')


@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
  ('text', 'kind'),
  [
    ('v4:2x2x1', 'TPU v4'),
    ('v5e:2x4', 'TPU v5 lite'),
    ('v5p:2x2x1', 'TPU v5'),
    ('v6e:4x4', 'TPU v6 lite'),
  ],
)
def test_libtpu_gives_one_device_a_chip(text, kind):
  found = slices.devices(text)
  assert [d.device_kind for d in found] == [kind] * slices.chips(text)
