"""Kernels of a written program: what each does, its bytes, and their sums."""

import made_hlo
import pytest

from skipnet_jax.benchmarking.hlo import kernels
from skipnet_jax.benchmarking.hlo import program as program_lib

OPTIMIZER = 'optimizer, finite check'
BATCH_NORM = 'BatchNorm, elementwise'


@pytest.fixture(scope='module')
def table():
  return kernels.table(program_lib.Program(made_hlo.GPU_HLO))


def test_a_program_is_read_as_it_was(table):
  columns = ('name', 'kind', 'task', 'bytes', 'runs')
  assert [tuple(row[c] for c in columns) for row in table] == [
    # 300 of the 1,000 parameters are read, and written in bfloat16.
    ('w', 'elementwise', 'casts', 4 * 300 + 2 * 300, 1),
    # Without the workspace of cuBLAS.
    ('y', 'dot', 'matrix products', 2 * (80 + 300 + 240), 1),
    # Of one vector a slice is read, of the other all. Two results are written.
    ('dw', 'elementwise', OPTIMIZER, 4 * (300 + 1000 + 300 + 1000), 1),
    ('sum', 'collective', 'collectives', 4 * (300 + 300), 1),
    # The result of an asynchronous start also holds the operand.
    ('all', 'collective', 'collectives', 4 * (300 + 600), 1),
    # The update is read, and written into the vector where it lies.
    ('grown', 'copy', OPTIMIZER, 4 * (300 + 300), 1),
    # A loop runs its condition and its body four times.
    ('less', 'elementwise', 'copies and layouts', 4 + 4 + 1, 4),
    ('next', 'copy', 'copies and layouts', 4 * (1000 + 1000), 4),
    ('cut', 'copy', 'copies and layouts', 4 * (30 + 30), 1),
  ]


def test_the_sums_are_those_of_all_runs(table):
  found = kernels.count(table)
  assert found['kernels'] == found['small'] == 15
  assert found['bytes'] == sum(row['bytes'] * row['runs'] for row in table)
  assert found['tasks']['collectives'] == {
    'kernels': 2,
    'small': 2,
    'bytes': 4 * 1500,
    # All of a GPU's arrays lie in HBM.
    'hbm_bytes': 4 * 1500,
  }
  for column in ('kinds', 'tasks'):
    rows = found[column].values()
    assert sum(row['kernels'] for row in rows) == 15
    assert sum(row['bytes'] for row in rows) == found['bytes']
  assert next(iter(found['tasks'])) == 'copies and layouts'


def test_a_kernel_of_a_megabyte_is_not_small():
  row = {'kind': 'dot', 'task': 'matrix products', 'runs': 2}
  sizes = (10**6, 10**6 - 1)
  rows = [row | {'bytes': size, 'hbm_bytes': size} for size in sizes]
  assert kernels.count(rows)['small'] == 2


NET = 'jit(<lambda>)/jvp(Net)/up_1'
BACK = 'jit(<lambda>)/transpose(jvp(Net))/up_1'


@pytest.mark.parametrize(
  ('kind', 'op_name', 'task'),
  [
    ('reduce', f'{BACK}/block_1._act/norm_1/reduce_sum', 'BatchNorm, sums'),
    ('elementwise', f'{NET}_norm/mul', BATCH_NORM),
    (
      'elementwise',
      f'{NET}/norm/convert_element_type',
      BATCH_NORM,
    ),
    ('elementwise', f'{NET}/normaliser/mul', 'other elementwise'),
    ('convolution', f'{BACK}/norm_1/conv_general_dilated', 'convolutions'),
    ('dot', f'{BACK}/conv_1/transpose', 'matrix products'),
    ('reduce', f'{BACK}/conv_1/transpose', 'products, sums of parts'),
    ('reduce', f'{BACK}/conv_1/reduce_sum', 'biases and other sums'),
    ('elementwise', f'{NET}/short_skip/add', 'skips'),
    ('random', f'{NET}/Dropout_0/vmap()/xor', 'dropout'),
    ('transpose', f'{BACK}/conv_1/transpose', 'transposes'),
    ('elementwise', 'jit(<lambda>)/jvp()/mul', 'loss'),
    ('reduce', 'jit(f)/jvp(jit(log_sigmoid))/jit(softplus)/add', 'loss'),
    ('reduce', 'jit(<lambda>)/reduce_sum', 'sums over parameters'),
    ('reduce', 'jit(<lambda>)/stack', 'stacking the record'),
    (
      'elementwise',
      'jit(<lambda>)/jit(_where)/select_n',
      OPTIMIZER,
    ),
    ('copy', "state.params['up_1']['kernel']", 'copies and layouts'),
    ('copy', '', 'copies and layouts'),
  ],
)
def test_what_a_kernel_does_is_read_from_its_name(kind, op_name, task):
  assert kernels.task(kind, op_name) == task
