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
    # Without its workspace.
    ('cudnn', 'convolution', IMAGE + IMAGE + KERNEL),
    ('out', 'convolution', IMAGE // 2 + IMAGE + KERNEL),
    ('half', 'elementwise', IMAGE // 2 + IMAGE),
  ],
)
def test_an_instruction_has_its_kind_and_its_bytes(program, name, kind, size):
  assert program.module == 'jit_step'
  assert program.decisive(name)[0] == kind
  assert program.bytes_of(name) == size


# Of a TPU: what lies on the chip has a number of its memory.
TPU_HLO = """HloModule jit_step

%fused (p0: f32[128], p1: f32[512]) -> (f32[128], f32[128]) {
  %p0 = f32[128]{0:T(128)S(1)} parameter(0)
  %p1 = f32[512]{0:T(128)} parameter(1)
  %part = f32[128]{0:T(128)} slice(%p1), slice={[0:128]}
  %added = f32[128]{0:T(128)S(1)} add(%p0, %part)
  %less = f32[128]{0:T(128)} subtract(%p0, %part)
  ROOT %pair = (f32[128]{0:T(128)S(1)}, f32[128]{0:T(128)}) tuple(%added, %less)
}

ENTRY %main (a: f32[512]) -> f32[512] {
  %a = f32[512]{0:T(128)} parameter(0)
  %part-start = ((f32[512]{0:T(128)}), f32[128]{0:T(128)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:128]}
  %part-done = f32[128]{0:T(128)S(1)} slice-done(%part-start)
  %both = (f32[128]{0:T(128)S(1)}, f32[128]{0:T(128)}) fusion(%part-done, %a), kind=kLoop, calls=%fused
  %sum = f32[128]{0:T(128)S(1)} get-tuple-element(%both), index=0
  %difference = f32[128]{0:T(128)} get-tuple-element(%both), index=1
  %out-start = (f32[128]{0:T(128)}, f32[128]{0:T(128)S(1)}, u32[]{:S(2)}) copy-start(%sum)
  %out-done = f32[128]{0:T(128)} copy-done(%out-start)
  %moved = f32[128]{0:T(128)} copy(%difference)
  %kept = f32[128]{0:T(128)S(1)} negate(%sum)
  ROOT %end = f32[512]{0:T(128)} concatenate(%moved, %out-done, %difference, %kept), dimensions={0}
}
"""  # noqa: E501


@pytest.mark.parametrize(
  ('name', 'size', 'hbm'),
  [
    ('part-start', 2 * 512, 512),
    ('both', 4 * 512, 2 * 512),
    ('out-start', 2 * 512, 512),
    ('moved', 2 * 512, 2 * 512),
    ('kept', 2 * 512, 0),
    ('end', 8 * 512, 7 * 512),
  ],
)
def test_what_lies_on_the_chip_is_not_in_hbm(name, size, hbm):
  program = program_lib.Program(TPU_HLO)
  assert program.bytes_of(name) == size
  assert program.bytes_of(name, hbm=True) == hbm


def test_only_the_array_moves_and_a_copy_is_named_one():
  program = program_lib.Program(TPU_HLO)
  assert program.decisive('part-start')[0] == 'copy'
  assert program.decisive('out-start')[0] == 'copy'


def entry(*lines, before=''):
  """A program of these instructions, after other computations."""
  body = ''.join(f'  {line}\n' for line in lines)
  return program_lib.Program(
    f'HloModule m\n\n{before}\nENTRY %main () -> f32[] {{\n{body}}}\n'
  )


def test_a_result_that_lies_on_the_chip_in_part_counts_in_part():
  program = entry(
    '%a = f32[8]{0:T(8)} parameter(0)',
    '%b = f32[4]{0:T(4)S(1)} parameter(1)',
    'ROOT %both = (f32[8]{0:T(8)}, f32[4]{0:T(4)S(1)}) all-reduce(%a, %b)',
  )
  assert program.bytes_of('both') == 2 * 48
  assert program.bytes_of('both', hbm=True) == 2 * 32


@pytest.mark.parametrize(
  ('root', 'size'),
  [
    # Only the 10 numbers of the update move: read, and written in place.
    ('ROOT %put = f32[1000]{0} dynamic-update-slice(%a, %u, %i)', 2 * 40 + 4),
    (
      '%put = f32[1000]{0} dynamic-update-slice(%a, %u, %i)\n'
      '  ROOT %t = (f32[1000]{0}) tuple(%put)',
      2 * 40 + 4,
    ),
    # One into the other: both updates.
    (
      '%in = f32[1000]{0} dynamic-update-slice(%a, %u, %i)\n'
      '  ROOT %put = f32[1000]{0} dynamic-update-slice(%in, %u, %j)',
      3 * 40 + 2 * 4,
    ),
    # What follows writes all of it elsewhere.
    (
      '%put = f32[1000]{0} dynamic-update-slice(%a, %u, %i)\n'
      '  ROOT %b = f32[1000]{0} negate(%put)',
      2 * 4000 + 40 + 4,
    ),
  ],
)
def test_an_update_is_in_place_only_where_nothing_follows(root, size):
  fused = (
    '%fused (a: f32[1000], u: f32[10], i: s32[], j: s32[]) -> f32[1000] {\n'
    '  %a = f32[1000]{0} parameter(0)\n  %u = f32[10]{0} parameter(1)\n'
    '  %i = s32[] parameter(2)\n'
    + ('  %j = s32[] parameter(3)\n' if '%j' in root else '')
    + f'  {root}\n}}\n'
  )
  program = entry(
    '%x = f32[1000]{0} parameter(0)',
    'ROOT %f = f32[1000]{0} fusion(%x), kind=kLoop, calls=%fused',
    before=fused,
  )
  assert program.bytes_of('f') == size


def test_what_only_names_a_place_or_ends_is_no_kernel():
  program = entry(
    '%a = f32[8]{0} parameter(0)',
    '%s = ((f32[8]{0}), f32[4]{0}, s32[]) slice-start(%a), slice={[0:4]}',
    '%d = f32[4]{0} slice-done(%s)',
    '%y = ((f32[8]{0}, s32[]), f32[2]{0}, s32[]) dynamic-slice-start(%a, %i)',
    '%u = ((f32[8]{0}), f32[4]{0}, s32[]) async-update(%y)',
    '%n = f32[8]{0} custom-call(), custom_call_target="AllocateBuffer"',
    '%c = f32[8]{0} custom-call(%d, %d), custom_call_target="ConcatBitcast"',
    'ROOT %k = f32[8]{0} negate(%c)',
  )
  names = [one.name for one, _ in program.kernels()]
  assert names == ['s', 'y', 'k']
  assert program.bytes_of('y') == 2 * 8


def test_an_asynchronous_collective_of_a_tpu_counts_where_it_begins():
  program = program_lib.Program(made_hlo.ASYNC_HLO)
  kernels = {
    one.name: program.decisive(one.name)[0] for one, _ in program.kernels()
  }
  assert kernels == {'start': 'collective', 'work': 'dot', 'use': 'elementwise'}
  # The part, what was gathered, and two flags.
  assert program.bytes_of('start') == 4 * (8 + 32 + 1 + 1)
  # Two factors and their product; what passes through does not move.
  assert program.bytes_of('work') == 4 * 3 * 64


@pytest.mark.parametrize(
  ('shape', 'elements'),
  [
    # 32 channels within: a quarter of each tile.
    ('bf16[8,512,512,32]{3,0,2,1:T(8,128)(2,1)}', 8 * 512 * 512 * 128),
    # The same array with the pixels of a row within: tiles are full.
    ('bf16[8,512,512,32]{2,3,1,0:T(8,128)(2,1)S(1)}', 8 * 512 * 512 * 32),
    ('(bf16[3,200]{1,0:T(8,128)(2,1)}, bf16[5]{0:T(128)})', 8 * 256 + 128),
    ('bf16[1025]{0:T(1024)(128)(2,1)}', 2048),
    ('bf16[3,5]{1,0}', 15),
    ('bf16[]{:T(128)}', 1),
  ],
)
def test_bytes_are_those_of_whole_tiles(shape, elements):
  assert program_lib.stored_bytes(shape) == 2 * elements


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
