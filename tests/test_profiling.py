"""Traces joined with HLO: a product of known bytes, and a written program."""

import csv

import jax
import jax.numpy as jnp
import pytest

from skipnet_jax.benchmarking import profiling

HLO = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p0: f32[2,8,8,4], p1: f32[3,3,4,4]) -> bf16[2,8,8,4] {
  %p0 = f32[2,8,8,4]{3,2,1,0} parameter(0)
  %p1 = f32[3,3,4,4]{3,2,1,0} parameter(1)
  %inner = f32[2,8,8,4]{3,2,1,0} convolution(%p0, %p1), window={size=3x3}, \
dim_labels=b01f_01io->b01f, \
metadata={op_name="jit(one)/transpose(jvp(Net))/down_1/conv/conv_dilated"}
  ROOT %half = bf16[2,8,8,4]{3,2,1,0} convert(%inner)
}

%body (state: (f32[], /*index=1*/f32[2,8,8,4])) -> (f32[], f32[2,8,8,4]) {
  %state = (f32[], /*index=1*/f32[2,8,8,4]{3,2,1,0:T(8,128)}) parameter(0)
  %gte = f32[2,8,8,4]{3,2,1,0:T(8,128)} get-tuple-element(%state), index=1
  %zero = f32[] constant(0)
  %total = f32[] reduce(%gte, %zero), dimensions={0,1,2,3}, to_apply=%add
  ROOT %again = (f32[], f32[2,8,8,4]{3,2,1,0}) tuple(%total, %gte)
}

ENTRY %main (x: f32[2,8,8,4], k: f32[3,3,4,4]) -> bf16[2,8,8,4] {
  %x = f32[2,8,8,4]{3,2,1,0} parameter(0)
  %k = f32[3,3,4,4]{3,2,1,0} parameter(1)
  %flip = f32[2,4,8,8]{3,2,1,0} transpose(%x), dimensions={0,3,1,2}
  %mask = u32[256]{0} rng-bit-generator(%x), algorithm=rng_default
  %loop = (f32[], f32[2,8,8,4]{3,2,1,0}) while(%init), condition=%cond, \
body=%body
  %moved = f32[2,8,8,4]{3,2,1,0} copy(%x)
  %cudnn = (f32[2,8,8,4]{3,2,1,0}, u8[16]{0}) custom-call(%x, %k), \
custom_call_target="__cudnn$convForward"
  ROOT %out = bf16[2,8,8,4]{3,2,1,0} fusion(%moved, %k), kind=kLoop, \
calls=%fused, metadata={op_name="jit(one)/Net/cast/convert"}
}
"""
IMAGE, KERNEL = 4 * 2 * 8 * 8 * 4, 4 * 3 * 3 * 4 * 4


@pytest.fixture(scope='module')
def program():
  return profiling.Program(HLO)


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
  assert program.instructions[name].bytes == size


def test_a_fusion_is_of_the_layer_that_decides_its_kind(program):
  (row,) = profiling.table(program, [profiling.Event('out', 0, 1.0)], 1)
  assert row['layer'] == 'down_1/conv (gradient)'


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
  assert profiling.layer(op_name) == layer


def test_times_and_bytes_are_those_of_one_step(program):
  events = [profiling.Event('moved', t, 0.5) for t in range(6)]
  (row,) = profiling.table(program, events, 2)
  assert row['seconds'] == 1.5
  assert row['runs'] == 3
  assert row['bytes'] == 3 * 2 * IMAGE


def test_a_loop_does_not_count_beside_what_it_runs(program):
  loop = profiling.Event('loop', 0, 2.0)
  inner = profiling.Event('total', 0.5, 1.0)
  assert [r['name'] for r in profiling.table(program, [loop], 1)] == ['loop']
  both = profiling.table(program, [loop, inner], 1)
  assert [row['name'] for row in both] == ['total']


def test_time_in_which_two_run_is_covered_once():
  spans = [(0, 2), (1, 0.5), (1.5, 1), (4, 1)]
  events = [profiling.Event('x', start, length) for start, length in spans]
  assert profiling.covered(events) == pytest.approx(2.5 + 1)
  assert profiling.covered([]) == 0


def test_the_table_shows_shares_that_add_to_one(program):
  events = [
    profiling.Event('moved', 0, 0.003),
    profiling.Event('flip', 0.003, 0.001),
  ]
  rows = profiling.table(program, events, 1)
  text = profiling.format_table(rows, wall=0.008, busy=0.004)
  assert 'cover 50.0% of it' in text
  assert '75.0%' in text
  assert '25.0%' in text
  assert max(map(len, text.splitlines())) <= 100


def test_a_traced_product_is_found_with_its_bytes(tmp_path):
  m, k, n, steps = 256, 192, 320, 3
  left, right = jnp.ones((m, k)), jnp.ones((k, n))
  compiled = jax.jit(jnp.matmul).lower(left, right).compile()
  jax.block_until_ready(compiled(left, right))
  with jax.profiler.trace(str(tmp_path)):
    for _ in range(steps):
      jax.block_until_ready(compiled(left, right))
  (path,) = tmp_path.rglob('*.xplane.pb')
  program = profiling.Program(compiled.as_text())
  events = profiling.read_events(path, program)
  rows = profiling.table(program, events, steps)
  (row,) = [row for row in rows if row['kind'] == 'dot']
  assert row['bytes'] == 4 * (m * k + k * n + m * n)
  assert row['runs'] == 1
  assert 0 < row['seconds'] < 1
  written = tmp_path / 'operations.csv'
  profiling.write_csv(written, rows)
  with written.open() as file:
    assert [r['name'] for r in csv.DictReader(file)] == [
      r['name'] for r in rows
    ]
