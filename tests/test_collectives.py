"""Collectives in HLO: programs whose bytes are known, and written texts."""

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
import made_hlo
import pytest

from skipnet_jax.benchmarking.hlo import collectives
from skipnet_jax.benchmarking.hlo import program as program_lib

TPU_TEXT = """HloModule jit_step, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (p: bf16[8,128]) -> f32[32] {
  %ar.1 = (f32[32]{0:T(128)S(1)}, /*index=1*/bf16[8,128]{1,0:T(8,128)(2,1)}) \
all-reduce(%x, %y), channel_id=2, replica_groups=mesh['axis_0'=4] {'axis_0'}, \
to_apply=%add, metadata={op_name="jit(step)/norm_1/reduce_sum"}
  %ag.s = (bf16[8,128]{1,0}, bf16[32,128]{1,0}) all-gather-start(%p), \
dimensions={0}
  %ag.d = bf16[32,128]{1,0:T(8,128)(2,1)} all-gather-done(%ag.s)
  %cp.s = (u8[64]{0}, u8[64]{0}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%q), source_target_pairs={{0,1},{1,0}}
  %cp.d = u8[64]{0} collective-permute-done(%cp.s)
  %ars = f32[] all-reduce-start(%z), to_apply=%add
  %ard = f32[] all-reduce-done(%ars)
  %rs = pred[10]{0} reduce-scatter(%flags), dimensions={0}, to_apply=%add
  %use = f32[32]{0} fusion(%ar.1, %all-reduce.7), kind=kLoop, calls=%all-reduce
  ROOT %out = f32[32]{0} copy(%use)
}
"""


def count(hlo):
  return collectives.count(program_lib.Program(hlo))


def compiled(body, shape, out):
  """HLO of a function mapped over eight devices along the first axis."""
  mesh = jax.make_mesh((8,), ('d',), axis_types=(AxisType.Auto,))
  call = jax.shard_map(
    body, mesh=mesh, in_specs=PartitionSpec('d'), out_specs=out
  )
  x = jnp.zeros(shape, jnp.float32)
  return jax.jit(call).lower(x).compile().as_text()


@pytest.mark.parametrize(
  ('kind', 'body', 'out', 'expected'),
  [
    ('all-reduce', lambda x: lax.psum(x, 'd'), PartitionSpec(), 4 * 48),
    (
      'reduce-scatter',
      lambda x: lax.psum_scatter(x[0], 'd', tiled=True),
      PartitionSpec('d'),
      4 * 48 // 8,
    ),
    (
      'collective-permute',
      lambda x: lax.ppermute(x, 'd', [(i, (i + 1) % 8) for i in range(8)]),
      PartitionSpec('d'),
      4 * 48,
    ),
    (
      'all-to-all',
      lambda x: lax.all_to_all(x, 'd', 1, 1, tiled=True),
      PartitionSpec('d'),
      4 * 48,
    ),
    (
      'all-gather',
      lambda x: lax.all_gather(x, 'd'),
      PartitionSpec('d'),
      4 * 48 * 8,
    ),
  ],
)
def test_a_compiled_collective_is_found_with_its_bytes(
  kind, body, out, expected
):
  found = count(compiled(body, (8, 48), out))
  assert found == {kind: {'count': 1, 'bytes': expected}}


def test_a_program_of_one_device_sends_nothing():
  hlo = jax.jit(jnp.sum).lower(jnp.ones(8)).compile().as_text()
  assert count(hlo) == {}


def test_tuples_are_counted_by_element_and_asynchronous_pairs_once():
  assert count(TPU_TEXT) == {
    'all-reduce': {'count': 2, 'bytes': 4 * 32 + 2 * 8 * 128 + 4},
    'all-gather': {'count': 1, 'bytes': 2 * 32 * 128},
    'collective-permute': {'count': 1, 'bytes': 64},
    'reduce-scatter': {'count': 1, 'bytes': 10},
  }


@pytest.mark.parametrize(
  ('kind', 'held', 'sent'),
  [
    # Of 800 bytes on eight devices, a part is 100: seven of them go once
    # around, for a sum twice.
    ('all-reduce', 800, 1400),
    ('all-gather', 800, 700),
    ('all-to-all', 800, 700),
    ('reduce-scatter', 100, 700),
    ('collective-permute', 800, 800),
  ],
)
def test_a_ring_sends_as_many_bytes_as_its_parts_pass_on(kind, held, sent):
  found = {kind: {'count': 1, 'bytes': held}}
  assert collectives.sent_bytes(found, 8, 8) == sent
  assert collectives.sent_bytes(found, 1, 8) == 0


@pytest.mark.parametrize(
  ('kind', 'held', 'sent'),
  [
    # Each device has 800 bytes to add up, or 100 of its own to gather. Of four
    # devices' program, the result of a gathering is 400 bytes, and what a
    # scattered sum leaves of 800 is 200.
    ('all-reduce', 800, 1400),
    ('all-gather', 400, 700),
    ('reduce-scatter', 200, 700),
    ('all-to-all', 800, 700),
  ],
)
def test_a_program_of_four_devices_says_what_eight_would_send(kind, held, sent):
  found = {kind: {'count': 1, 'bytes': held}}
  assert collectives.sent_bytes(found, 8, 4) == sent


def test_a_collective_begun_in_one_fusion_and_ended_in_another_counts_once():
  assert count(made_hlo.ASYNC_HLO) == {'all-gather': {'count': 1, 'bytes': 128}}


def test_a_collective_in_a_loop_counts_as_often_as_it_runs():
  text = made_hlo.GPU_HLO.replace(
    'f32[1000]{0} copy(%now)', 'f32[1000]{0} all-reduce(%now), to_apply=%add'
  )
  found = count(text)['all-reduce']
  assert found == {'count': 1 + 4, 'bytes': 4 * 300 + 4 * 4 * 1000}
