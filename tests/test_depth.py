"""The sweep over depth: its rows, its resumption, its figure."""

import csv

import conftest
import jax
import ml_collections
import numpy as np
import pytest

from skipnet_jax import config_checks
from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax import plots
from skipnet_jax.analysis import depth
from skipnet_jax.analysis import gradient_flow
from skipnet_jax.data import pipeline as pipeline_lib
from skipnet_jax.data import sources
from skipnet_jax.step import build
from skipnet_jax.step import losses

SMALL = {
  'model.base_width': 2,
  'model.dropout': 0.0,
  'data.augment.flip': False,
  'data.augment.rotation': 0.0,
  'data.augment.shear': 0.0,
  'data.augment.warp': 0.0,
  'depths.repetitions': (1, 4),
  'depths.steps': 3,
}


def make(**changes):
  config = conftest.experiment('depth_sweep').get_config('smoke')
  for name in ('short_only', 'no_skips'):
    del config.variants[name]
  config.update_from_flattened_dict(SMALL | changes)
  return config


@pytest.fixture(scope='module')
def swept(tmp_path_factory, drawn):
  folder = tmp_path_factory.mktemp('depth')
  said = []
  return folder, depth.sweep(make(), folder, said.append), said


def test_a_row_for_each_variant_and_depth(swept):
  folder, rows, said = swept
  assert len(said) == len(rows) == 4
  assert {row['variant'] for row in rows} == {'long_short', 'long_only'}
  # 7 r + 5, and `across` has two where r is one.
  assert {row['convolutions'] for row in rows} == {13, 33}
  for row in rows:
    assert list(row) == list(depth.COLUMNS)
    assert row['finite_steps'] == row['steps'] == 3
    assert 0 < row['loss_last'] < 2
    assert 0.1 < row['constant_loss'] < 0.7
    assert row['compile_seconds'] > row['step_seconds'] > 0
    assert row['dataset'] == 'synthetic 6x64x64'
  found, layers = depth.read(folder)
  assert found == rows
  for row in rows:
    own = [
      r
      for r in layers
      if (r['variant'], r['convolutions'])
      == (row['variant'], row['convolutions'])
    ]
    assert [r['index'] for r in own] == list(range(len(own)))
    assert (
      sum(depth.on_main_path(r['layer']) for r in own) == (row['convolutions'])
    )
    assert all(r['grad_l2_last'] > 0 for r in own)


def test_the_gradient_at_initialisation_is_the_layers_own(swept):
  folder, _, _ = swept
  config = config_checks.variants(without_depths(make()))['long_only']
  config.model.repetitions = (4,) * 7
  data = sources.load(config)
  pipeline = pipeline_lib.make_pipeline(config, data, 1)
  key = jax.random.key(config.seed)
  plan = pipeline.plan(key, 0)
  raw = pipeline.read_host(pipeline_lib.host_arrays(data), plan)
  batch = pipeline.train_batch(raw, plan['key'])
  # The sweep's own, compiled already.
  training = build.build(config, pipeline.window, pipeline.steps_per_epoch)
  state = training.create_state(config.seed)
  variables = state.variables()
  loss = losses.LOSSES['bce']
  grads = gradient_flow.layer_gradients(
    training.model.unrolled(),
    models.fc_resnet.unroll(variables),
    batch,
    lambda outputs, batch: loss.value(loss.sums(outputs, batch)),
  )
  found = {
    r['layer']: r['grad_l2_first']
    for r in depth.read(folder)[1]
    if (r['variant'], r['repetitions']) == ('long_only', 4)
  }
  assert list(found) == list(grads)
  np.testing.assert_allclose(
    list(found.values()),
    [float(np.linalg.norm(g)) for g in grads.values()],
    rtol=1e-2,
  )


def without_depths(config):
  del config.depths
  return config


def test_what_is_finished_is_not_trained_again(swept, monkeypatch):
  folder, rows, _ = swept
  trained = []
  real = depth._train

  def train(config, *arguments):
    trained.append((config.experiment, config.model.repetitions))
    return real(config, *arguments)

  monkeypatch.setattr(depth, '_train', train)
  path = folder / 'depth.csv'
  whole = path.read_text()
  # As if the sweep had been cut off after the layers of the last row.
  path.write_text(''.join(whole.splitlines(keepends=True)[:-1]))
  again = depth.sweep(make(), folder, lambda _: None)
  last = rows[-1]
  assert trained == [(last['variant'], (last['repetitions'],) * 7)]
  assert [r['loss_last'] for r in again] == [r['loss_last'] for r in rows]
  _, layers = depth.read(folder)
  places = [(r['variant'], r['repetitions'], r['index']) for r in layers]
  assert len(set(places)) == len(places)


def test_another_config_is_refused_by_its_fields(swept):
  folder, _, _ = swept
  with pytest.raises(errors.InputError, match=r'depths\.steps \(3, now 4\)'):
    depth.sweep(make(**{'depths.steps': 4}), folder, print)


@pytest.mark.parametrize(
  ('changes', 'sentence'),
  [
    ({'depths.steps': 0}, r'depths\.steps is 0'),
    ({'depths.repetitions': (0,)}, 'at least 1'),
    ({'parallel.mode': 'pmap'}, 'give jit'),
    ({'data.size': 72}, 'multiples of 32'),
  ],
)
def test_what_cannot_be_swept_is_refused_before_anything(
  changes, sentence, tmp_path
):
  with pytest.raises(errors.InputError, match=sentence):
    depth.sweep(make(**changes), tmp_path / 'new', print)
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
  'depths', [{'repetitions': 3, 'steps': 3}, {'repetitions': (1,)}, {}]
)
def test_depths_that_are_none_are_refused(depths, tmp_path):
  config = make()
  del config.depths
  config.depths = ml_collections.ConfigDict(depths)
  with pytest.raises(errors.InputError, match='depths is'):
    depth.sweep(config, tmp_path, print)


def test_a_variant_with_other_data_is_refused(tmp_path):
  config = make()
  config.variants.long_only = {'seed': 1}
  with pytest.raises(errors.InputError, match="'long_only' changes data"):
    depth.sweep(config, tmp_path, print)


def test_a_network_that_dies_is_a_result(tmp_path):
  config = make(**{'optim.learning_rate': 1e29, 'depths.repetitions': (1,)})
  del config.variants['long_short']
  (row,) = depth.sweep(config, tmp_path, print)
  assert row['finite_steps'] < row['steps']
  assert np.isnan(row['loss_last'])
  rows, layers = depth.read(tmp_path)
  assert plots.to_array(depth.figure(rows, layers)).std() > 0


def test_a_damaged_table_is_refused(tmp_path):
  (tmp_path / 'depth.csv').write_text('variant,convolutions\na,many\n')
  with pytest.raises(errors.InputError, match=r'depth\.csv cannot be read'):
    depth.read(tmp_path)


def test_the_figure_says_what_it_shows(swept):
  folder, rows, _ = swept
  figure = depth.figure(*depth.read(folder))
  assert 'synthetic' in figure.get_suptitle()
  assert len(figure.axes) == 4
  for ax in figure.axes:
    assert ax.get_xlabel()
    assert ax.get_ylabel()
  variants = {row['variant'] for row in rows}
  assert variants <= {line.get_label() for line in figure.axes[0].lines}
  assert plots.to_array(figure).shape[2] == 3


def test_gradient_ratios_by_hand():
  names = ('down_1', 'across/block_1/conv_1', 'across/block_2/conv_1')
  names += ('classifier', 'across/block_1/short_skip/projection')
  rows = [
    {'layer': name, 'grad_l2_first': norm}
    for name, norm in zip(names, (4.0, 1.0, 3.0, 8.0, 1e-9), strict=True)
  ]
  assert depth.gradient_ratios(rows) == (2 / 8, 1 / 3.5)


def test_the_files_have_the_documented_columns(swept):
  folder, _, _ = swept
  for name, columns in depth.FILES.items():
    with (folder / name).open(newline='') as file:
      assert next(csv.reader(file)) == list(columns)
