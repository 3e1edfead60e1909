"""Every system does everything: one list of them, one list of demands."""

import contextlib
import functools
import json

import conftest
from conftest import ROOT
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks
from small_networks import bce
from small_networks import equations_of
from small_networks import make_batch
import systems
import test_parallel
import tifffile

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.analysis import gradient_flow
from skipnet_jax.analysis import routes
from skipnet_jax.benchmarking import plan
from skipnet_jax.benchmarking import workload
from skipnet_jax.data import volume
from skipnet_jax.models import network
from skipnet_jax.step import agreement
from skipnet_jax.step import build as build_lib

# Their kernels are not, or not all, He normal. Of the others test_propagation
# and test_clmser ask what is drawn, and it takes longest to compile.
OWN_DRAWS = ('cumedvision', 'm2fcn', 'fcn_lstm', 'sfcnn')


@pytest.fixture(scope='module', params=systems.SYSTEMS)
def name(request):
  """A system; pytest runs all tests of one before those of the next."""
  own = request.param in OWN_DRAWS
  with contextlib.nullcontext() if own else conftest.numpy_draws():
    yield request.param


@pytest.fixture
def mixed():
  """Adam and Flax's BatchNorm in bfloat16 mix dtypes inside."""
  with jax.numpy_dtype_promotion('standard'):
    yield


def build(name, **fields):
  return models.build_model(
    models.model_config(name, **systems.SYSTEMS[name].small | fields)
  )


def test_the_list_is_complete():
  assert set(systems.SYSTEMS) == set(models.MODELS)


def test_a_prediction_may_normalise_as_training_does_an_image_alone(name):
  """As the code of F-CLmser-S, which tests slice by slice."""
  model = build(name)
  images = make_batch(64, slices=model.slices)['image']
  variables = small_networks.draw(model, images.shape)
  has = {field.name for field in network.fields(type(model))}
  assert ('use_running_average' in has) == ('batch_stats' in variables)
  if 'batch_stats' not in variables:
    return
  model = model.clone(**{'dropout': 0.0} if 'dropout' in has else {})

  @functools.partial(jax.jit, static_argnums=0)
  def alone(model, image):
    call = functools.partial(model.apply, variables, image)
    outputs, _ = call(train=True, mutable=['batch_stats'])
    own = model.clone(use_running_average=False)
    predicted = own.apply(variables, image, train=False)
    running = call(train=False)
    return [each['logits'] for each in (outputs, predicted, running)]

  for image in images:
    expected, found, running = alone(model, image[None])
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert not np.allclose(found, running, atol=1e-2)


# Every test asks about one training of each system: what one compiled, the
# others need not. Plain SGD, as an adaptive optimizer would hide a wrong scale
# of the gradient between modes; their own losses and optimizers: test_build.
TRAINING = {
  'data.slices': 10,
  'data.valid': '8-9',
  'train.batch_size': 8,
  'train.epochs': 1,
  'train.loss': 'bce',
  # From the second step on, auxiliary outputs have another weight.
  'train.auxiliary': (1.0, 0.5),
  'train.auxiliary_at': (1,),
  'optim.name': 'sgd',
  'optim.schedule': 'constant',
  'optim.learning_rate': 0.01,
  'optim.momentum': 0.9,
  'log.progress': False,
  'log.tensorboard': False,
}
# At 32 the deepest maps are of so few pixels that what rounding changes in
# their statistics is more than the modes may differ by.
SIZES = {'f_clmser_s': 64, 'fcn_lstm': 64}
# Of an experiment's augmentation: what no other test asks of a system.
PLAIN = {'rotation': 0.0, 'shear': 0.0, 'warp': 0.0, 'elastic': 0.0}
TRAINING |= {f'data.augment.{k}': v for k, v in PLAIN.items()}


def changes_of(name):
  small = {f'model.{k}': v for k, v in systems.SYSTEMS[name].small.items()}
  return TRAINING | small | {'data.size': SIZES.get(name, 32)}


@functools.cache
def config(name):
  """The experiment's smoke preset with TRAINING and a network of seconds."""
  experiment = systems.EXPERIMENTS[name]
  changes = changes_of(name)
  c = conftest.experiment(experiment).get_config('smoke')
  c.update_from_flattened_dict(changes)
  return c


@functools.cache
def setting(name):
  return test_parallel.Setting(
    config(name).copy_and_resolve_references(), shift_biases
  )


def made(name):
  """Model without dropout, its first variables, and a batch."""
  model = build(name)
  state = build_lib.build(config(name), (32, 32), 1).create_state(0)
  variables = state.variables()
  if model.dropout:
    model = build(name, dropout=0.0)
  return model, variables, make_batch(slices=model.slices)


def test_trains_and_is_described_scored_and_used(command, name, tmp_path):
  experiment = systems.EXPERIMENTS[name]
  arguments = [
    f'--config={ROOT}/experiments/{experiment}.py:smoke',
    *(f'--config.{k}={v}' for k, v in changes_of(name).items()),
  ]
  done = command('train', *arguments, '--describe')
  assert done.code == 0, done
  assert 'GFLOPs forward per image' in done.out

  run = tmp_path / 'run'
  done = command('train', f'--workdir={run}', *arguments)
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

  # Padded to the size of the run's slices, for which the network is compiled.
  side = SIZES.get(name, 32)
  shape = (3, side - 6, side - 4)
  pixels = np.random.default_rng(0).integers(0, 255, shape)
  volume.write_stack(tmp_path / 'in.tif', pixels.astype(np.uint8), {})
  done = command(
    'predict',
    f'--workdir={run}',
    f'--input={tmp_path / "in.tif"}',
    f'--output={tmp_path / "out.tif"}',
  )
  assert done.code == 0, done
  probability = tifffile.imread(tmp_path / 'out.tif')
  assert probability.shape == shape
  assert probability.dtype == np.float32
  assert 0 <= probability.min() < probability.max() <= 1


def shift_biases(params):
  """Without it rounding flips ReLUs, and these networks have few units."""
  params = agreement.shift_biases(params)
  return jax.tree_util.tree_map_with_path(
    # M2FCN's trunks have no BatchNorm, and each follows the ones before it.
    lambda path, x: (
      x + 1 if 'trunk' in str(path) and path[-1].key == 'bias' else x
    ),
    params,
  )


@pytest.mark.parametrize('mode', ['pmap', 'sharded'])
@pytest.mark.parametrize(
  'name', [n for n in systems.SYSTEMS if n != 'fc_resnet'], indirect=True
)
def test_modes_give_the_parameters_of_one_device(name, mode):
  # FC-ResNet: tests/test_parallel.py, more closely.
  test_parallel._compare(setting(name), mode, 4)


def test_its_gradient_is_taken_apart_by_its_skips(name):
  model, variables, batch = made(name)
  found = routes.Routes(model, variables, batch, bce)
  parts = found.by_skip()
  whole = gradient_flow.layer_gradients(model, variables, batch, bce)
  for layer, gradient in whole.items():
    total = sum(np.asarray(part[layer]) for part in parts.values())
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(total, gradient, atol=1e-3 * scale + 1e-7)
  size = {
    kind: sum(np.square(np.asarray(g)).sum() for g in part.values())
    for kind, part in parts.items()
  }
  for kind in systems.BOTH:
    assert (size.get(kind, 0) > 0) == (kind in systems.SYSTEMS[name].skips)
  assert bool(found.branches) == ('short' in systems.SYSTEMS[name].skips)


def test_its_skips_can_be_taken_away(name):
  model = build(name)
  image = make_batch(slices=model.slices)['image']
  kinds = [k for k in ('long_skips', 'short_skips') if hasattr(model, k)]
  assert kinds == [f'{kind}_skips' for kind in systems.SYSTEMS[name].skips]
  for kind in kinds:
    less = build(name, **{kind: False})
    variables = jax.eval_shape(
      lambda x, m=less: m.init(jax.random.key(0), x, train=False), image
    )
    seen = []

    def note(next_fun, args, kwargs, context, seen=seen):
      seen.append(getattr(context.module, 'skip_kind', None))
      return next_fun(*args, **kwargs)

    with nn.intercept_methods(note):
      jax.eval_shape(
        lambda v, x, m=less: m.apply(v, x, train=False), variables, image
      )
    assert kind.removesuffix('_skips') not in seen
  for kind in systems.BOTH:
    if kind not in systems.SYSTEMS[name].skips:
      with pytest.raises(errors.InputError, match=f'no {kind} skips'):
        build(name, **{f'{kind}_skips': False})


def test_a_width_of_nothing_is_refused(name):
  with pytest.raises(errors.InputError, match='base_width is 0; it must be at'):
    build(name, base_width=0)


def test_bfloat16_is_inside_only(mixed, name):
  model = build(name, dtype='bfloat16')
  image = make_batch(slices=model.slices)['image']
  variables = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False), image
  )
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}

  def gradient(variables):
    def loss(params):
      outputs, _ = model.apply(
        variables | {'params': params},
        image,
        train=True,
        mutable=['batch_stats'],
        rngs={'dropout': jax.random.key(0)},
      )
      return jnp.sum(outputs['logits']), outputs

    return jax.grad(loss, has_aux=True)(variables['params'])

  program, (_, outputs) = jax.make_jaxpr(gradient, return_shape=True)(variables)
  assert outputs['logits'].dtype == jnp.float32
  assert outputs['logits'].shape == (*image.shape[:3], 1)
  # A sum in bfloat16 stops growing after a few hundred numbers.
  assert max(sums_in_bfloat16(program), default=0) <= UPSAMPLED
  with pytest.raises(errors.InputError, match='float32 or bfloat16'):
    build(name, dtype='float16')


# Numbers that the gradient of `layers.upsample` adds up.
UPSAMPLED = 4


def sums_in_bfloat16(program):
  """How many numbers each sum adds up whose numbers are of bfloat16."""
  sums = [e for e in equations_of(program) if e.primitive.name == 'reduce_sum']
  return [
    e.invars[0].aval.size // e.outvars[0].aval.size
    for e in sums
    if e.invars[0].aval.dtype == jnp.bfloat16
  ]


def test_it_is_measured(name):
  bench = workload.Bench(config(name))
  work = bench.build(plan.Cell('eval', 'compute', 'jit', 1, 'float32', 2))
  call = work.start(work.jitted.lower(*work.arguments).compile())
  assert np.isfinite(float(call()['bce']))
  assert work.flops > 0
  assert bench.describe()['model'] == name
