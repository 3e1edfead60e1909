"""Every system does everything: one list of them, one list of demands."""

import functools
import json

from conftest import ROOT
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import bce
from small_networks import make_batch
import test_parallel
import tifffile

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.analysis import gradient_flow
from skipnet_jax.analysis import routes
from skipnet_jax.benchmarking import agreement
from skipnet_jax.benchmarking import plan
from skipnet_jax.benchmarking import workload
from skipnet_jax.data import volume

# System: experiment, and the fields of a network compiled in seconds.
SYSTEMS = {
  'fc_resnet': (
    'long_short',
    {'base_width': 2, 'blocks': 'simple', 'repetitions': (1,) * 7},
  ),
  'f_clmser_s': ('f_clmser_s', {'base_width': 2, 'pad': 0}),
  'unet': ('unet', {'base_width': 2, 'padding': 'SAME'}),
  'fusionnet': ('fusionnet', {'base_width': 2}),
  'polymtl': (
    'polymtl',
    {
      'base_width': 2,
      'blocks': 'simple',
      'repetitions': (1,) * 7,
      'normaliser_width': 2,
    },
  ),
  'cumedvision': ('cumedvision', {'base_width': 2}),
  'm2fcn': ('m2fcn', {'base_width': 2, 'stages': 2}),
  'fcn_lstm': ('fcn_lstm', {'base_width': 2, 'hidden': 2}),
  'addn': ('addn', {'base_width': 2, 'discriminator_width': 4}),
  'sfcnn': ('sfcnn', {'base_width': 1, 'kernel_size': 3}),
}
# Which kinds of skips each has, and has a switch for.
BOTH, LONG = ('long', 'short'), ('long',)
SKIPS = {
  'fc_resnet': BOTH,
  'f_clmser_s': BOTH,
  'unet': LONG,
  'fusionnet': BOTH,
  'polymtl': BOTH,
  'cumedvision': (),
  'm2fcn': (),
  'fcn_lstm': LONG,
  'addn': LONG,
  'sfcnn': LONG,
}
each = pytest.mark.parametrize('name', SYSTEMS)


@pytest.fixture
def mixed():
  """Adam and Flax's BatchNorm in bfloat16 mix dtypes inside."""
  with jax.numpy_dtype_promotion('standard'):
    yield


def build(name, **fields):
  return models.build_model(
    models.model_config(name, **SYSTEMS[name][1] | fields)
  )


def test_the_list_is_complete():
  assert set(SYSTEMS) == set(models.MODELS)


@functools.cache
def made(name):
  """Model without dropout, and its variables."""
  model = build(name)
  if hasattr(model, 'dropout'):
    model = build(name, dropout=0.0)
  batch = make_batch(slices=models.slices(model))
  return (
    model,
    jax.jit(
      lambda: model.init(jax.random.key(0), batch['image'], train=False)
    )(),
    batch,
  )


@each
def test_trains_and_is_described_scored_and_used(
  command, mixed, name, tmp_path
):
  experiment, fields = SYSTEMS[name]
  config = f'--config={ROOT}/experiments/{experiment}.py:smoke'
  arguments = [f'--config.model.{k}={v}' for k, v in fields.items()]
  done = command('train', config, *arguments, '--describe')
  assert done.code == 0, done
  assert 'GFLOPs forward per image' in done.out

  run = tmp_path / 'run'
  arguments += [
    '--config.train.epochs=1',
    '--config.log.progress=False',
    '--config.log.tensorboard=False',
  ]
  done = command('train', config, f'--workdir={run}', *arguments)
  assert done.code == 0, done
  summary = json.loads((run / 'summary.json').read_text())
  assert 0 <= summary['v_rand'] <= 1
  record = json.loads((run / 'metrics.jsonl').read_text())
  gates = {k.split('/')[1] for k in record if k.startswith('valid_gate/')}
  pictures = list((run / 'samples').glob('*_gates.png'))
  assert bool(gates) == bool(pictures) == (name == 'f_clmser_s')
  with np.load(run / 'gradient_flow.npz') as flow:
    assert flow['net_change'].shape == (1, len(flow['layers']))
    assert (flow['net_change'] > 0).all()

  scores = tmp_path / 'scores.json'
  done = command('evaluate', f'--workdir={run}', f'--output={scores}')
  assert done.code == 0, done
  found = json.loads(scores.read_text())
  assert found['v_rand'] == pytest.approx(summary['v_rand'], abs=1e-6)

  normalised = list((run / 'samples').glob('*_normalised.png'))
  assert bool(normalised) == (name == 'polymtl')

  pixels = np.random.default_rng(0).integers(0, 255, (3, 40, 50))
  volume.write_stack(tmp_path / 'in.tif', pixels.astype(np.uint8), {})
  done = command(
    'predict',
    f'--workdir={run}',
    f'--input={tmp_path / "in.tif"}',
    f'--output={tmp_path / "out.tif"}',
  )
  assert done.code == 0, done
  probability = tifffile.imread(tmp_path / 'out.tif')
  assert probability.shape == (3, 40, 50)
  assert probability.dtype == np.float32
  assert 0 <= probability.min() < probability.max() <= 1


def raise_biases(params):
  """Or rounding turns over a ReLU of the few units there are."""
  params = agreement.raise_biases(params)
  return jax.tree_util.tree_map_with_path(
    # M2FCN's trunks have no BatchNorm, and each follows the ones before it.
    lambda path, x: (
      x + 1 if 'trunk' in str(path) and path[-1].key == 'bias' else x
    ),
    params,
  )


@functools.cache
def setting(name):
  config = test_parallel._config(
    **{'data.size': 32, 'optim.learning_rate': 0.01}
  )
  config.model = models.model_config(name, **SYSTEMS[name][1])
  return test_parallel.Setting(config, raise_biases)


@pytest.mark.parametrize('mode', ['pmap', 'sharded'])
@pytest.mark.parametrize('name', [n for n in SYSTEMS if n != 'fc_resnet'])
def test_modes_give_the_parameters_of_one_device(name, mode):
  # FC-ResNet: tests/test_parallel.py, more closely.
  test_parallel._compare(setting(name), mode, 4)


@each
def test_its_gradient_is_taken_apart_by_its_skips(name):
  model, variables, batch = made(name)
  found = routes.Routes(model, variables, batch, bce)
  parts = found.by_skip()
  whole = gradient_flow.layer_gradients(model, variables, batch, bce)
  for layer, gradient in whole.items():
    total = sum(part[layer] for part in parts.values())
    scale = float(jnp.abs(gradient).max())
    np.testing.assert_allclose(total, gradient, atol=1e-3 * scale + 1e-7)
  size = {
    kind: sum(float(np.square(g).sum()) for g in part.values())
    for kind, part in parts.items()
  }
  for kind in BOTH:
    assert (size.get(kind, 0) > 0) == (kind in SKIPS[name])
  assert bool(found.branches) == ('short' in SKIPS[name])


@each
def test_its_skips_can_be_taken_away(name):
  model = build(name)
  image = make_batch(slices=models.slices(model))['image']
  kinds = [k for k in ('long_skips', 'short_skips') if hasattr(model, k)]
  assert kinds == [f'{kind}_skips' for kind in SKIPS[name]]
  for kind in kinds:
    less = build(name, **{kind: False})
    variables = jax.eval_shape(
      lambda x, m=less: m.init(jax.random.key(0), x, train=False), image
    )
    seen = []

    def note(next_fun, args, kwargs, context, seen=seen):
      seen.append(getattr(context.module, 'skip_kind', None))
      return next_fun(*args, **kwargs)

    with models.nn.intercept_methods(note):
      jax.eval_shape(
        lambda v, x, m=less: m.apply(v, x, train=False), variables, image
      )
    assert kind.removesuffix('_skips') not in seen
  for kind in BOTH:
    if kind not in SKIPS[name]:
      with pytest.raises(errors.InputError, match=f'no {kind} skips'):
        build(name, **{f'{kind}_skips': False})


@each
def test_a_width_of_nothing_is_refused(name):
  with pytest.raises(errors.InputError, match='base_width is 0; it must be at'):
    build(name, base_width=0)


@each
def test_bfloat16_is_inside_only(mixed, name):
  model = build(name, dtype='bfloat16')
  image = make_batch(slices=models.slices(model))['image']
  variables = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False), image
  )
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  outputs = jax.eval_shape(
    lambda v, x: model.apply(v, x, train=False), variables, image
  )
  assert outputs['logits'].dtype == jnp.float32
  assert outputs['logits'].shape == (*image.shape[:3], 1)
  with pytest.raises(errors.InputError, match='float32 or bfloat16'):
    build(name, dtype='float16')


@each
def test_it_is_measured(name, smoke):
  config = smoke({'data.size': 32})
  config.model = models.model_config(name, **SYSTEMS[name][1])
  bench = workload.Bench(config)
  work = bench.build(plan.Cell('eval', 'compute', 'jit', 1, 'float32', 2))
  call = work.start(work.jitted.lower(*work.arguments).compile())
  assert np.isfinite(float(call()['bce']))
  assert work.flops > 0
  assert bench.describe()['model'] == name
