"""The scanned network is the unrolled one, and is reported as it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks

from skipnet_jax import config as config_lib
from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.analysis import gradient_flow
from skipnet_jax.models import fc_resnet
from skipnet_jax.step import flat
from skipnet_jax.step import losses
from skipnet_jax.step import optim
from skipnet_jax.step import state as state_lib
from skipnet_jax.step import step as step_lib
from skipnet_jax.step import telemetry
from skipnet_jax.training import loop
from skipnet_jax.training import nonfinite
from skipnet_jax.training import prepare

# Stages with no, one and several blocks between the ends.
REPETITIONS = (1, 1, 1, 4, 1, 3, 1)
SHAPE = (2, 64, 64, 1)
SWITCHES = [
  {'blocks': 'simple'},
  {'blocks': 'bottleneck', 'batch_norm': False},
  {'blocks': 'bottleneck', 'short_skips': False, 'long_skips': False},
]


def make_pair(**fields):
  """A scanned model, its variables, and the same network unrolled."""
  scanned = fc_resnet.FCResNet(
    **dict(base_width=4, repetitions=REPETITIONS, dropout=0.0) | fields,
    scan=True,
  )
  variables = small_networks.draw(scanned, SHAPE)
  # Biases and scales away from zero and one, or a swap would not be seen.
  rng = np.random.default_rng(0)
  variables = jax.tree_util.tree_map_with_path(
    lambda path, v: (
      v
      if optim.is_kernel(path, v)
      else v + np.asarray(0.1 * np.abs(rng.normal(size=v.shape)), v.dtype)
    ),
    variables,
  )
  return scanned, variables, scanned.unrolled()


def assert_close(a, b, tolerance=1e-5):
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
  ):
    scale = max(np.linalg.norm(y), 1e-3)
    error = np.linalg.norm(np.asarray(x) - np.asarray(y))
    assert error <= tolerance * scale, jax.tree_util.keystr(path)


@pytest.mark.parametrize('fields', SWITCHES, ids=lambda c: '-'.join(c))
def test_outputs_statistics_and_gradients_are_the_unrolled_ones(fields):
  # In float64: rounding would turn a ReLU or a maximum the other way.
  with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):
    scanned, variables, unrolled = make_pair(**fields, dtype='float64')
    variables = jax.tree.map(lambda v: np.asarray(v, float), variables)
    batch = small_networks.make_batch(64, jnp.float64)

    def run(model, variables):
      def objective(params):
        outputs, updated = model.apply(
          variables | {'params': params},
          batch['image'],
          train=True,
          mutable=['batch_stats'],
        )
        return small_networks.bce(outputs, batch), (outputs, updated)

      grads, aux = jax.grad(objective, has_aux=True)(variables['params'])
      known = {'params': variables['params'], **aux[1]}
      return (grads, *aux, model.apply(known, batch['image'], train=False))

    grads, *rest = jax.jit(lambda v: run(scanned, v))(variables)
    flat = fc_resnet.unroll(variables)
    want, *others = jax.jit(lambda v: run(unrolled, v))(flat)
    got = fc_resnet.unroll({'params': grads})['params']
    rest[1] = fc_resnet.unroll(rest[1])
  assert 'blocks' in variables['params']['across']
  assert jax.tree.structure(got) == jax.tree.structure(want)
  assert_close(got, want)
  assert_close(rest, others)


def test_the_full_network_has_its_parameters():
  model = models.build_model(models.model_config('fc_resnet', scan=True))
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros(SHAPE), train=False)
  )
  params = variables['params']
  assert state_lib.parameter_count(params) == 11_451_745
  assert set(params['down_4']) == {'block_1', 'blocks', 'block_8'}
  # Stacked on the first axis, and drawn for each block.
  assert params['down_4']['blocks']['conv_2']['kernel'].shape[0] == 6


def test_each_block_draws_its_own_kernel_and_dropout():
  scanned, *_ = make_pair(blocks='simple')
  drawn = jax.jit(
    lambda: scanned.init(jax.random.key(0), jnp.zeros(SHAPE), train=False)
  )()
  kernel = drawn['params']['across']['blocks']['conv_1']['kernel']
  assert not np.allclose(kernel[0], kernel[1], atol=0.1)

  class Noise(fc_resnet.blocks.Block):
    def residual(self, x, train, drop):
      return self._drop(jnp.ones_like(x), drop)

  stage = fc_resnet.Stage(
    'noise', 8, 5, False, False, True, {'dropout': 0.5, 'short_skip': True}
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(fc_resnet.blocks.BLOCKS, 'noise', (Noise, 1))
    sums = stage.apply(
      {},
      jnp.zeros((1, 8, 8, 8)),
      True,
      True,
      rngs={'dropout': jax.random.key(3)},
    )
  # Five masks of one half, times two: a binomial, not five times one mask.
  assert len(np.unique(sums)) == 6
  # Of independent masks the variances add, 5 * 2^2 / 4; of one it would be 25.
  assert np.var(sums) < 7


def test_one_step_records_the_unrolled_network_s_flow():
  scanned, variables, unrolled = make_pair(blocks='simple')
  names = gradient_flow.conv_names(unrolled, SHAPE)
  config = config_lib.get_default().optim
  optimizer = optim.make_optimizer(config, optim.make_schedule(config, 5, 1))
  batch = small_networks.make_batch(64)

  def flow(model, variables):
    step = step_lib.make_train_step(
      model, optimizer, losses.LOSSES['bce'], record=names
    )
    state = state_lib.begin_at(optimizer, variables, 0)
    new, metrics = jax.jit(step)(state, batch)
    kernels = telemetry.Kernels(names, state.params.layout)
    change = kernels.net_change(telemetry.vector(state.params), new.params)
    return np.asarray(metrics['flow']), np.asarray(change)

  got, got_change = flow(scanned, variables)
  want, want_change = flow(unrolled, fc_resnet.unroll(variables))
  assert 'across/block_4/conv_1' in names
  # RMSprop turns a gradient's rounding near zero into a whole update.
  np.testing.assert_allclose(got, want, rtol=2e-3)
  np.testing.assert_allclose(got_change, want_change, rtol=2e-3)


def test_an_interceptor_changes_the_gradient_inside_the_scan():
  # As `analysis.routes` does: a custom_vjp over a scalar that is traced.
  scanned, variables, unrolled = make_pair(blocks='simple', long_skips=False)
  batch = small_networks.make_batch(64)
  names = gradient_flow.conv_names(unrolled, SHAPE)

  @jax.custom_vjp
  def scale_gradient(x, scale):
    del scale
    return x

  scale_gradient.defvjp(
    lambda x, scale: (x, scale),
    lambda scale, g: (g * scale, jnp.zeros_like(scale)),
  )

  def gradients(model, scale, variables):
    def intercept(next_fun, args, kwargs, context):
      kind = getattr(context.module, 'skip_kind', None)
      if kind == 'short' and context.method_name == '__call__':
        path, skipped = args
        args = (path, scale_gradient(skipped, scale))
      return next_fun(*args, **kwargs)

    def objective(params):
      with nn.intercept_methods(intercept):
        return gradient_flow.loss_at(
          model,
          variables | {'params': params},
          batch,
          small_networks.bce,
          train=True,
        )

    grads = jax.grad(objective)(variables['params'])
    return [telemetry.kernel(grads, name) for name in names]

  flat = fc_resnet.unroll(variables)
  through_scan = jax.jit(lambda s: gradients(scanned, s, variables))
  through_blocks = jax.jit(lambda s: gradients(unrolled, s, flat))
  for scale in (jnp.float32(0), jnp.float32(1)):
    got, want = through_scan(scale), through_blocks(scale)
    assert_close(got, want, 1e-3)
  stopped, whole = through_scan(jnp.float32(0))[0], got[0]
  assert jnp.linalg.norm(stopped - whole) > 0.1 * jnp.linalg.norm(whole)


@pytest.fixture(scope='module')
def scanned_run(smoke, drawn, tmp_path_factory):
  config = smoke(
    {'model.scan': True, 'model.repetitions': (1, 1, 1, 4, 1, 1, 4)}
  )
  folder = tmp_path_factory.mktemp('scanned') / 'run'
  return folder, config, loop.train_and_evaluate(config, folder)


def test_a_scanned_run_is_reported_by_the_unrolled_names(scanned_run):
  folder, config, summary = scanned_run
  model = models.build_model(config.model).unrolled()
  with np.load(folder / 'gradient_flow.npz', allow_pickle=False) as flow:
    names = gradient_flow.conv_names(model, (1, 64, 64, 1))
    assert list(flow['layers']) == names
    assert 'up_3/block_2/conv_1' in names
    assert np.all(flow['grad_l2'] > 0)
  assert np.isfinite(summary['best_val_loss'])
  table = prepare.describe(config)
  assert 'across/block_3/conv_1' in table
  assert 'blocks/' not in table


def test_a_scanned_run_names_the_layer_that_broke(scanned_run, tmp_path):
  _, config, _ = scanned_run
  with loop.open_run(config, tmp_path) as run:
    state = run.state
  params = state.params.tree()
  layer = params['across']['blocks']['conv_1']
  layer['kernel'] = layer['kernel'].at[1].set(jnp.nan)
  state = state.replace(params=flat.join(params))
  with pytest.raises(errors.RunError, match='across/block_3/conv_1'):
    nonfinite.fail(run.prepared, state)
