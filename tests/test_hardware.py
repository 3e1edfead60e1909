"""What a benchmark says of the machine it ran on."""

import importlib.metadata
import os
import platform
import re
import types

import flax
import jax
import jaxlib
import numpy as np
import optax
import pytest

from skipnet_jax.benchmarking.timing import hardware


def test_versions_are_those_that_the_packages_give_themselves():
  found = hardware.software()
  for module in (jax, jaxlib, flax, optax, np):
    assert found[module.__name__] == module.__version__
  assert found['python'] == platform.python_version()
  for name in ('XLA_FLAGS', 'GLIBC_TUNABLES', 'JAX_PLATFORMS'):
    assert found['environment'][name] == os.environ[name]
  assert re.fullmatch('[0-9a-f]{12}', found['packages'])


def test_variables_are_those_of_the_list_without_private_folders(monkeypatch):
  for name in list(os.environ):
    monkeypatch.delenv(name)
  for name, value in (
    ('XLA_FLAGS', '--xla_dump_to=/home/me/secret/dump --xla_b=1,2 --xla_c=~/d'),
    ('XLA_PYTHON_CLIENT_MEM_FRACTION', '.9'),
    ('LIBTPU_INIT_ARGS', '--xla_tpu_a=true'),
    ('NCCL_DEBUG', 'INFO'),
    ('JAX_COMPILATION_CACHE_DIR', '/tmp/x'),
    ('HOME', '/home/me'),
    ('API_KEY', 'secret'),
  ):
    monkeypatch.setenv(name, value)
  assert hardware.software()['environment'] == {
    'LIBTPU_INIT_ARGS': '--xla_tpu_a=true',
    'NCCL_DEBUG': 'INFO',
    'XLA_FLAGS': '--xla_dump_to=…/dump --xla_b=1,2 --xla_c=…/d',
    'XLA_PYTHON_CLIENT_MEM_FRACTION': '.9',
  }


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('cgroup', '5:cpu:/docker/{id}\n'),
    ('cgroup', '0::/system.slice/docker-{id}.scope\n'),
    (
      'mountinfo',
      f'1 / overlay upperdir=/var/lib/docker/overlay2/{64 * "e"}/diff\n'
      '9 8 0:1 /var/lib/docker/containers/{id}/hostname /etc\n',
    ),
    ('mountinfo', '9 8 0:1 /var/lib/docker/containers/{id}/hostname /etc\n'),
    ('mountinfo', '9 8 0:1 /containers/overlay-containers/{id}/userdata /x\n'),
  ],
)
def test_a_container_is_known_by_its_id(tmp_path, name, text):
  assert hardware._container(tmp_path) is None
  (tmp_path / name).write_text(
    '0::/\n' + text.format(id='0123456789ab' + 52 * 'c')
  )
  assert hardware._container(tmp_path) == '0123456789ab'


def pretend(monkeypatch, **packages):
  real = importlib.metadata.version

  def version(name):
    if name in packages:
      return packages[name]
    if name.startswith(('nvidia-', 'jax-', 'libtpu')):
      raise importlib.metadata.PackageNotFoundError(name)
    return real(name)

  monkeypatch.setattr(importlib.metadata, 'version', version)


@pytest.mark.parametrize(
  ('packages', 'expected'),
  [
    ({}, (None, None, None)),
    ({'libtpu': '0.0.52'}, ('libtpu 0.0.52', None, None)),
    (
      {
        'jax-cuda12-plugin': '0.10.2',
        'nvidia-cuda-runtime-cu12': '12.9.79',
        'nvidia-cudnn-cu12': '9.10',
        # Another library's.
        'nvidia-cudnn-cu13': '9.19',
      },
      ('jax-cuda12-plugin 0.10.2', '12.9.79', '9.10'),
    ),
    (
      {
        'jax-cuda13-plugin': '0.11.2',
        'nvidia-cuda-runtime': '13.0.96',
        'nvidia-cudnn-cu13': '9.19',
      },
      ('jax-cuda13-plugin 0.11.2', '13.0.96', '9.19'),
    ),
    # The machine's own CUDA.
    ({'jax-cuda12-plugin': '1'}, ('jax-cuda12-plugin 1', None, None)),
  ],
)
def test_cuda_and_cudnn_are_those_of_jaxs_plugin(
  monkeypatch, packages, expected
):
  pretend(monkeypatch, **packages)
  found = hardware.software()
  assert (found['plugin'], found['cuda'], found['cudnn']) == expected


@pytest.mark.parametrize(
  ('script', 'expected'),
  [
    (None, None),
    ('printf "580.159.04\\n580.159.04\\n"', '580.159.04'),
    ('echo NVIDIA-SMI has failed; exit 9', 'unknown'),
  ],
)
def test_the_driver_is_what_nvidia_smi_says(
  tmp_path, monkeypatch, script, expected
):
  if script:
    program = tmp_path / 'nvidia-smi'
    program.write_text(f'#!/bin/sh\n{script}\n')
    program.chmod(0o755)
  monkeypatch.setenv('PATH', str(tmp_path))
  assert hardware.software()['driver'] == expected


def test_the_host_is_described_as_the_system_does():
  found = hardware.hardware()
  assert found['platform'] == jax.default_backend()
  assert found['device_kind'] == jax.devices()[0].device_kind
  assert found['device_count'] == found['local_device_count'] == 8
  assert found['device_memory_bytes'] is None
  assert 1 <= found['cores'] <= os.cpu_count()
  assert found['cpu']
  assert 2**28 < found['memory_bytes'] < 2**50
  now = os.getloadavg()
  assert all(
    abs(a - b) < 1 for a, b in zip(found['load_average'], now, strict=True)
  )


def device(**stats):
  return types.SimpleNamespace(
    platform='gpu',
    device_kind='Some GPU',
    memory_stats=lambda: stats or None,
  )


def test_memory_of_a_device_is_what_jax_may_take(monkeypatch):
  monkeypatch.setattr(jax, 'local_devices', lambda: [device(bytes_limit=5)])
  assert hardware.hardware()['device_memory_bytes'] == 5


def test_the_peak_is_that_of_the_fullest_device_and_none_on_a_cpu():
  full, empty = device(peak_bytes_in_use=7), device(peak_bytes_in_use=3)
  assert hardware.peak_bytes([empty, full]) == 7
  assert hardware.peak_bytes([full, device()]) is None
  assert hardware.peak_bytes(jax.devices()) is None
