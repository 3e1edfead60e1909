"""Efficiency of rows whose rates are known."""

from skipnet_jax.benchmarking import plan
from skipnet_jax.benchmarking import scaling


def make(**changes):
  section = plan.get_default()
  section.update(changes)
  return section


def measured(mode, devices, batch, rate, error=None):
  return {
    'call': 'train',
    'feed': 'compute',
    'mode': mode,
    'devices': devices,
    'hosts': 1,
    'dtype': 'float32',
    'batch': batch,
    'matmul_precision': 'default',
    'images_per_second': rate,
    'error': error,
  }


def test_efficiency_is_the_rate_over_as_many_single_devices():
  table = scaling.table(
    make(),
    [
      measured('jit', 1, 8, 100.0),
      measured('pmap', 1, 8, 80.0),
      measured('pmap', 2, 16, 120.0),
      measured('pmap', 4, 32, 320.0),
      measured('pmap', 2, 8, 160.0),
      measured('pmap', 4, 8, 80.0),
      measured('sharded', 1, 8, 50.0),
      measured('sharded', 2, 16, None, 'out of memory'),
    ],
  )
  assert [
    (e['kind'], e['mode'], e['devices'], e['batch'], e['efficiency'])
    for e in table
  ] == [
    ('weak', 'pmap', 1, 8, 1.0),
    ('weak', 'pmap', 2, 16, 0.75),
    ('weak', 'pmap', 4, 32, 1.0),
    ('strong', 'pmap', 1, 8, 1.0),
    ('strong', 'pmap', 2, 8, 1.0),
    ('strong', 'pmap', 4, 8, 0.25),
  ]
  assert not scaling.table(make(scaling=()), [measured('pmap', 1, 8, 1.0)])
