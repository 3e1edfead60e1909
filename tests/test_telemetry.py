"""What is recorded of each kernel while training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipnet_jax.runs import flow_file
from skipnet_jax.step import flat
from skipnet_jax.step import telemetry

NAMES = ('b/conv', 'a')
PARAMS = {
  'a': {'kernel': jnp.array([[1.0, -2.0]]), 'bias': jnp.array([9.0])},
  'b': {'conv': {'kernel': jnp.array([[3.0], [4.0]])}},
}


LAYOUT = flat.join(PARAMS).layout
KERNELS = telemetry.Kernels(NAMES, LAYOUT)


def scaled(factor):
  return flat.join(jax.tree.map(lambda x: factor * x, PARAMS))


def test_quantities_by_hand():
  flow, squared_g, squared_w = KERNELS.step_flow(
    scaled(1.0), scaled(2.0), scaled(-0.1)
  )
  assert float(squared_w) == pytest.approx(1 + 4 + 9 + 16)
  assert float(squared_g) == pytest.approx(4 * float(squared_w))
  assert flow.shape == (len(telemetry.STEP_QUANTITIES), 2)
  expected = {
    'step_update': [0.35, 0.15],
    'grad_l2': [10.0, 2 * 5**0.5],
    'grad_mean_abs': [7.0, 3.0],
    'update_ratio': [0.1, 0.1],
  }
  for name, row in zip(telemetry.STEP_QUANTITIES, flow, strict=True):
    np.testing.assert_allclose(row, expected[name], rtol=1e-6)


def test_net_change_is_not_the_sum_of_steps():
  before = telemetry.vector(scaled(1.0))
  np.testing.assert_array_equal(KERNELS.net_change(before, scaled(1.0)), [0, 0])
  np.testing.assert_allclose(
    KERNELS.net_change(before, scaled(1.5)), [1.75, 0.75]
  )


def test_a_kernel_longer_than_a_row_and_the_blocks_of_a_scan():
  rng = np.random.default_rng(0)
  blocks = {'conv': {'kernel': rng.normal(size=(3, 3, 3, 9, 20))}}
  params = {
    'across': {'blocks': blocks},
    'last': {'kernel': rng.normal(size=(1, 1, 20, 1)), 'bias': np.ones(1)},
    'unnamed': {'kernel': rng.normal(size=(5, 7))},
  }
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  names = ('last', 'across/block_4/conv', 'across/block_2/conv')
  joined = flat.join(params)
  kernels = telemetry.Kernels(names, joined.layout)
  wanted = [telemetry.kernel(params, name) for name in names]
  (found,) = kernels.sums(jnp.square(telemetry.vector(joined)))
  np.testing.assert_allclose(
    found, [np.sum(np.square(w, dtype=np.float64)) for w in wanted], rtol=1e-6
  )
  vector = telemetry.vector(joined)
  parts = kernels.split(vector)
  jax.tree.map(np.testing.assert_array_equal, parts, wanted)
  again = kernels.join(parts, vector.size)
  jax.tree.map(np.testing.assert_array_equal, kernels.split(again), wanted)


def fill(path, epochs, start=0):
  """What there was to say of the file that was there."""
  said = []
  file = flow_file.FlowFile(path, NAMES, start, 2 * start, said.append)
  for epoch in range(start, epochs):
    file.append(
      np.full(2, epoch, np.float32), np.full((4, 2), 10 + epoch, np.float32)
    )
  return said


def read(path):
  with np.load(path, allow_pickle=False) as file:
    return {name: file[name] for name in file}


def test_the_file_grows_by_epoch_in_forward_order(tmp_path):
  path = tmp_path / 'gradient_flow.npz'
  fill(path, 3)
  found = read(path)
  assert list(found['layers']) == list(NAMES)
  recorded = {'layers', 'first_steps', *telemetry.QUANTITIES}
  assert set(found) == recorded
  np.testing.assert_array_equal(found['net_change'][:, 0], [0, 1, 2])
  np.testing.assert_array_equal(found['grad_l2'][:, 1], [10, 11, 12])
  assert found['net_change'].dtype == np.float32


def test_the_first_steps_are_there_one_by_one(tmp_path):
  path = tmp_path / 'gradient_flow.npz'
  rows = np.arange(230 * 8, dtype=np.float32).reshape(230, 4, 2)
  file = flow_file.FlowFile(path, NAMES, 0, 0, print)
  for part in np.split(rows[:180], 9):
    file.add_steps(part)
  file.append(np.ones(2), np.ones((4, 2)))
  np.testing.assert_array_equal(flow_file.read_first_steps(path), rows[:180])
  # Resumed in the second epoch, from an earlier step.
  file = flow_file.FlowFile(path, NAMES, 1, 150, print)
  file.add_steps(rows[150:])
  file.write()
  first = flow_file.read_first_steps(path)
  assert first.shape == (flow_file.FIRST_STEPS, 4, 2)
  np.testing.assert_array_equal(first, rows[: flow_file.FIRST_STEPS])
  assert len(flow_file.read(path)[1]['net_change']) == 1


def test_a_file_of_an_earlier_version_has_no_first_steps(tmp_path):
  path = tmp_path / 'gradient_flow.npz'
  fill(path, 2)
  found = read(path)
  del found['first_steps']
  np.savez(path, **found)
  assert flow_file.read_first_steps(path).shape == (0, 4, 2)


def test_a_resumed_run_drops_records_after_its_checkpoint(tmp_path):
  path = tmp_path / 'gradient_flow.npz'
  fill(path, 5)
  assert not fill(path, 4, start=2)
  np.testing.assert_array_equal(read(path)['net_change'][:, 0], [0, 1, 2, 3])


@pytest.mark.parametrize('damage', ['cut', 'gone', 'noise'])
def test_lost_records_are_gaps(tmp_path, damage):
  path = tmp_path / 'gradient_flow.npz'
  fill(path, 3)
  if damage == 'cut':
    path.write_bytes(path.read_bytes()[:100])
  elif damage == 'noise':
    path.write_bytes(b'no archive at all')
  else:
    path.unlink()
  assert fill(path, 4, start=3) == [
    'gradient_flow.npz is lost or damaged: its epochs up to 3 are gone.'
  ]
  found = read(path)['net_change'][:, 0]
  assert np.isnan(found[:3]).all()
  assert found[3] == 3


def test_gates_are_summed_over_the_examples_that_count():
  rng = np.random.default_rng(0)
  masks = rng.random((3, 4, 4, 1)).astype(np.float32)
  channels = rng.random((3, 1, 1, 8)).astype(np.float32)
  gates = {'deep': {'mask': {'value': masks}}, 'wide': {'value': channels}}
  counts = np.ones((3, 8, 8, 1), np.float32)
  counts[1] = 0
  # Partly seen before: it counts.
  counts[2, :4] = 0
  once = telemetry.gate_sums(jax.tree.map(jnp.asarray, gates), counts)
  # Two batches add up.
  found = telemetry.divide_gates({k: 2 * float(v) for k, v in once.items()})
  for name, values in (('deep/mask', masks), ('wide', channels)):
    seen = values[[0, 2]].astype(np.float64)
    assert found[f'gate/{name}/mean'] == pytest.approx(seen.mean(), rel=1e-5)
    assert found[f'gate/{name}/std'] == pytest.approx(seen.std(), rel=1e-4)
    passing = (seen > 0.5).mean()
    assert found[f'gate/{name}/passing'] == pytest.approx(passing, rel=1e-6)
  assert len(found) == 6
  assert telemetry.gate_sums({}, jnp.asarray(counts)) == {}


def test_both_forms_of_row_sums_are_those_of_numpy():
  rng = np.random.default_rng(0)
  values = rng.normal(1, 1, (3, 4 * flat.ROW)).astype(np.float32)
  expected = values.reshape(3, 4, flat.ROW).astype(np.float64).sum(2).T
  for form in (telemetry.row_sums, telemetry.row_sums_by_lanes):
    np.testing.assert_allclose(jax.jit(form)(*values), expected, rtol=1e-5)
