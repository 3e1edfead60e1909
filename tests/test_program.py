"""Kinds, layers and bytes of a written program's instructions."""

import made_hlo
import pytest

from skipnet_jax.benchmarking.hlo import program as program_lib

IMAGE, KERNEL = made_hlo.IMAGE, made_hlo.KERNEL


@pytest.fixture(scope='module')
def program():
  return program_lib.Program(made_hlo.HLO)


@pytest.mark.parametrize(
  ('name', 'kind', 'size'),
  [
    ('flip', 'transpose', 2 * IMAGE),
    ('mask', 'random', 4 * 256 + IMAGE),
    ('moved', 'copy', 2 * IMAGE),
    ('total', 'reduce', 4 + IMAGE + 4),
    ('cudnn', 'convolution', IMAGE + 16 + IMAGE + KERNEL),
    ('out', 'convolution', IMAGE // 2 + IMAGE + KERNEL),
    ('half', 'elementwise', IMAGE // 2 + IMAGE),
  ],
)
def test_an_instruction_has_its_kind_and_its_bytes(program, name, kind, size):
  assert program.module == 'jit_step'
  assert program.decisive(name)[0] == kind
  assert program.bytes_of(name) == size


def test_a_kernel_in_triton_is_a_product():
  line = '  ROOT %y = f32[2]{0} custom-call(), custom_call_target='
  text = f'ENTRY %main () -> f32[2] {{\n{line}"__gpu$xla.gpu.triton"\n}}'
  assert program_lib.Program(text).decisive('y')[0] == 'dot'


@pytest.mark.parametrize(
  ('op_name', 'layer'),
  [
    ('jit(one)/jvp(Net)/up_5/norm/mul', 'up_5/norm'),
    ('jit(one)/transpose(jvp(Net))/up_5/norm/mul', 'up_5/norm (gradient)'),
    ('jit(one)/while/body/closed_call/Net/mul', 'Net'),
    ('jit(one)/reduce_sum', 'reduce_sum'),
    ('', ''),
  ],
)
def test_the_layer_is_read_from_the_op_name(op_name, layer):
  assert program_lib.layer(op_name) == layer
