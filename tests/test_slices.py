"""Names of TPU slices and GPUs, and the refusals."""

import sys

import pytest

from skipnet_jax import errors
from skipnet_jax.benchmarking.aot import gpus
from skipnet_jax.benchmarking.aot import slices
from skipnet_jax.benchmarking.timing import peaks


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


@pytest.mark.parametrize(
  ('text', 'count'), [('h100:1', 1), ('a100:8', 8), ('gb200:16x4', 64)]
)
def test_gpus_are_counted_over_their_hosts(text, count):
  assert slices.chips(text) == count


@pytest.mark.parametrize(
  'text', ['h100', 'h100:', 'h100:0', 'h100:9', 'h100:33x8', 'h100:2x2x2']
)
def test_gpus_that_no_host_has_are_refused_with_the_limits(text):
  with pytest.raises(errors.InputError, match='at most 32') as caught:
    slices.chips(text)
  assert repr(text) in str(caught.value)
  assert 'at most 8' in str(caught.value)


def test_a_tray_of_gb200_has_four():
  assert slices.chips('gb200:18x4') == 72
  with pytest.raises(errors.InputError, match='at most 4, such as gb200:4'):
    slices.chips('gb200:8')


@pytest.mark.parametrize(
  ('name', 'hosts', 'count'),
  [('h100', 1, 8), ('h100', 2, 0), ('gb200', 1, 72), ('gb200', 16, 72)],
)
def test_nvlink_ends_at_the_host_or_at_the_rack(name, hosts, count):
  assert gpus.linked(gpus.GPUS[name].name, hosts) == count


@pytest.mark.parametrize('gpu', gpus.GPUS.values(), ids=gpus.GPUS)
def test_a_gpu_has_published_rates_that_agree_with_its_description(gpu):
  peak = peaks.PEAKS[gpu.name]
  assert gpu.bandwidth == pytest.approx(peak.bandwidth_gb_s * 1e9, rel=0.05)
  # Vendors write GB and mean GiB; a part is reserved.
  assert 0.9 < gpu.memory / (peak.memory_gib * 2**30) < 1.001
  # Two FLOPs a unit and clock.
  assert 2e-3 * gpu.cores * gpu.fpus * gpu.clock_ghz == pytest.approx(
    peak.float32_tflops, rel=0.05
  )


@pytest.mark.parametrize(
  ('installed', 'said'),
  [
    ({}, 'found: none'),
    ({'jax-cuda13-plugin': '0.0.1'}, 'found: jax-cuda13-plugin 0.0.1'),
    # The one that contains the compiler is missing, or is of another CUDA.
    ({'jax-cuda13-plugin': 'this'}, 'found: jax-cuda13-plugin '),
    ({'jax-cuda13-plugin': 'this', 'jax-cuda12-pjrt': 'this'}, 'cuda12-pjrt'),
  ],
)
def test_without_the_plugin_of_this_version_its_package_is_named(
  monkeypatch, installed, said
):
  version = gpus.jaxlib.__version__
  monkeypatch.setattr(
    gpus.environment,
    'versions',
    lambda names: {
      n: installed.get(n, '').replace('this', version) for n in names
    },
  )
  wanted = (
    f'pip install jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version}'
  )
  with pytest.raises(errors.InputError, match=wanted) as caught:
    slices.devices('h100:1')
  assert said in str(caught.value)


def test_without_libtpu_the_extra_that_brings_it_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'libtpu', None)
  with pytest.raises(errors.InputError, match=r'pip install .*\[tpu\]'):
    slices.devices('v5e:2x2')


@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
  ('text', 'kind'),
  [
    ('v4:2x2x1', 'TPU v4'),
    ('v5e:1x1', 'TPU v5 lite'),
    ('v5e:2x4', 'TPU v5 lite'),
    ('v5p:2x2x1', 'TPU v5'),
    ('v6e:4x4', 'TPU v6 lite'),
  ],
)
def test_libtpu_gives_one_device_a_chip(text, kind):
  found = slices.devices(text)
  assert [d.device_kind for d in found] == [kind] * slices.chips(text)
