"""FC-ResNet against the published table and against a plain transcription."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_fc_resnet
import pytest
import small_networks

from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.models import fc_resnet

# PAPERS: exact arithmetic from the paper's Table 1.
COUNTS = [
  ({}, 11_451_745),
  ({'long_skip_projection': 'both'}, 11_042_273),
  ({'long_skips': False}, 11_567_393),
  ({'short_skips': False}, 10_757_601),
  ({'short_skips': False, 'long_skips': False}, 10_180_097),
  ({'batch_norm': False}, 11_399_009),
  ({'base_width': 16}, 2_883_761),
  ({'blocks': 'basic'}, 10_482_145),
]
SMALL = dict(base_width=4, repetitions=(1, 1, 1, 2, 1, 1, 1), dropout=0.0)
MIXED = 'simple,basic,bottleneck,simple,bottleneck,basic,simple'


def _build(**changes):
  return models.build_model(models.model_config('fc_resnet', **changes))


def _abstract(model, side=64):
  image = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
  return jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False), image
  )['params']


def _count(params):
  return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(('changes', 'count'), COUNTS)
def test_parameter_counts_are_the_published_ones(changes, count):
  assert _count(_abstract(_build(**changes))) == count


def test_counts_do_not_depend_on_the_image():
  assert _count(_abstract(_build(), 512)) == 11_451_745


def test_layer_names_carry_stage_and_repetition():
  params = _abstract(_build())
  names = {'/'.join(p[:-1]) for p in flax.traverse_util.flatten_dict(params)}
  kernels = {
    '/'.join(p[:-1])
    for p in flax.traverse_util.flatten_dict(params)
    if p[-1] == 'kernel'
  }
  main = {n for n in kernels if 'projection' not in n and 'long_skip' not in n}
  # 3 outermost, down_2 and up_4, and three for each of 45 bottlenecks.
  assert len(main) == 140
  repetitions = dict(
    zip(plain_fc_resnet.STAGES, (3, 8, 10, 3, 10, 8, 3), strict=True)
  )
  assert main == {
    'down_1',
    'up_5',
    'classifier',
    'down_2/block_1/conv_1',
    'up_4/block_1/conv_1',
  } | {
    f'{stage}/block_{i}/conv_{j}'
    for stage, count in repetitions.items()
    for i in range(1, count + 1)
    for j in (1, 2, 3)
  }
  assert {'up_1/block_3/norm_2', 'norm', 'long_skip_up_4/decoder'} <= names


@pytest.mark.parametrize('base', [1, 5, 64])
def test_base_width_scales_every_stage(base):
  params = _abstract(_build(base_width=base, repetitions=(1, 1, 1, 2, 1, 1, 1)))
  widths = {
    stage: params[stage]['block_1']['conv_3']['kernel'].shape[-1]
    for stage in plain_fc_resnet.STAGES
  }
  assert list(widths.values()) == [4 * base * w for w in (1, 2, 4, 8, 4, 2, 1)]
  assert params['down_1']['kernel'].shape == (3, 3, 1, base)
  assert params['up_5']['kernel'].shape == (3, 3, base, base)


def test_hundreds_of_layers_build():
  params = _abstract(_build(base_width=1, repetitions=(30,) * 7))
  kernels = [
    k
    for k in flax.traverse_util.flatten_dict(params)
    if k[-1] == 'kernel' and 'conv' in k[-2]
  ]
  assert len(kernels) == 7 * 30 * 3 + 2


@pytest.mark.parametrize(
  'changes',
  [
    {'repetitions': (1, 2, 1, 2, 1, 2, 1)},
    {'blocks': MIXED, 'long_skip_projection': 'both'},
    {'blocks': 'basic', 'long_skips': False},
    {
      'blocks': 'simple',
      'repetitions': (1, 1, 2, 2, 2, 1, 1),
      'short_skips': False,
    },
    {'short_skips': False, 'long_skips': False, 'batch_norm': False},
  ],
  ids=lambda c: '-'.join(c),
)
def test_equals_the_plain_transcription(changes):
  # In float64, where no rounding turns a ReLU or a maximum the other way.
  # Flax promotes in BatchNorm and in its initialisers.
  with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):
    _compare_with_the_transcription(changes)


def _compare_with_the_transcription(changes):
  settings = SMALL | changes
  ours = fc_resnet.FCResNet(**settings, dtype='float64')
  kinds = settings.pop('blocks', 'bottleneck').split(',')
  plain = plain_fc_resnet.PlainFCResNet(
    **settings, blocks=tuple(kinds) * (7 // len(kinds))
  )
  keys = jax.random.split(jax.random.key(1), 2)
  image = jax.random.normal(keys[0], (2, 32, 64, 1))
  label = jax.random.bernoulli(keys[1], 0.7, image.shape).astype(float)
  variables = small_networks.draw(ours, image.shape)
  # Biases and scales away from zero and one, or a swap would not be seen.
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda v: np.asarray(v, float) + 0.1 * np.abs(rng.normal(size=v.shape)),
    variables,
  )
  stats = variables.get('batch_stats', {})

  def make(model, logits_of):
    def run(params, stats):
      v = {'params': params, 'batch_stats': stats}

      def loss(params):
        outputs, updated = model.apply(
          v | {'params': params},
          image,
          train=True,
          mutable=['batch_stats'],
          rngs={'dropout': keys[0]},
        )
        logits = logits_of(outputs)
        losses = optax.sigmoid_binary_cross_entropy(logits, label)
        return losses.mean(), (logits, updated.get('batch_stats', {}))

      grads, (logits, updated) = jax.grad(loss, has_aux=True)(params)
      return {
        'training': logits,
        'inference': logits_of(model.apply(v, image, train=False)),
        'statistics': updated,
        'gradients': grads,
      }

    return jax.jit(run)

  got = make(ours, lambda o: o['logits'])(variables['params'], stats)
  want = make(plain, lambda o: o)(
    plain_fc_resnet.flat(variables['params']), plain_fc_resnet.flat(stats)
  )
  for part in ('statistics', 'gradients'):
    got[part] = plain_fc_resnet.flat(got[part])
  got, want = jax.device_get((got, want))
  assert jax.tree.structure(got) == jax.tree.structure(want)
  norm = np.linalg.norm
  whole = norm([norm(x) for x in jax.tree.leaves(want['gradients'])])
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
  ):
    # A bias before BatchNorm has no gradient but rounding.
    scale = max(norm(b), 1e-3 * whole if path[0].key == 'gradients' else 0)
    assert norm(a - b) <= 1e-6 * scale, jax.tree_util.keystr(path)


@pytest.mark.parametrize('size', [(48, 64), (64, 100), (0, 32), (16, 16)])
def test_sides_that_are_no_multiple_of_32_are_refused(size):
  model = _build(**SMALL)
  with pytest.raises(errors.InputError, match='multiples of 32, the nearest'):
    jax.eval_shape(
      lambda x: model.init(jax.random.key(0), x, train=False),
      jax.ShapeDtypeStruct((1, *size, 1), jnp.float32),
    )


def test_bfloat16_computes_in_it_and_keeps_float32_outside():
  # Flax's BatchNorm takes float32 statistics from bfloat16 activations.
  with jax.numpy_dtype_promotion('standard'):
    _compare_bfloat16_with_float32()


def _compare_bfloat16_with_float32():
  image = jax.random.normal(jax.random.key(0), (2, 64, 64, 1))
  full, half = _build(**SMALL), _build(**SMALL, dtype='bfloat16')
  variables = small_networks.draw(full, image.shape)
  assert {v.dtype for v in jax.tree.leaves(_abstract(half))} == {
    jnp.dtype('float32')
  }

  def forward(model):
    def run(v):
      outputs, updated = model.apply(
        v,
        image,
        train=True,
        mutable=['batch_stats'],
        rngs={'dropout': jax.random.key(2)},
      )
      return outputs['logits'], updated

    return jax.jit(run)(variables)

  (exact, _), (rounded, stats) = forward(full), forward(half)
  assert rounded.dtype == jnp.float32
  assert {v.dtype for v in jax.tree.leaves(stats)} == {jnp.dtype('float32')}
  error = np.std(rounded - exact) / np.std(exact)
  # bfloat16 has 8 bits: not float32's result, and near it.
  assert 1e-4 < error < 0.2


@pytest.mark.parametrize(
  ('changes', 'sentence'),
  [
    ({'blocks': 'bottlneck'}, "did you mean 'bottleneck'"),
    ({'blocks': 'simple,basic'}, 'names 2 kinds'),
    ({'repetitions': (1, 2, 3)}, 'give 7 numbers'),
    ({'repetitions': (1, 1, 1, 0, 1, 1, 1)}, 'at least 1'),
    ({'long_skip_projection': 'encoder'}, 'must be decoder or both'),
    ({'base_width': 0}, 'base_width is 0'),
    ({'dtype': 'float16'}, 'float32 or bfloat16'),
    ({'dropout': 1.0}, 'below 1'),
    ({'shortskips': False}, "did you mean 'short_skips'"),
  ],
)
def test_settings_without_a_network_are_refused(changes, sentence):
  config = models.model_config('fc_resnet', **changes)
  with pytest.raises(errors.InputError, match=sentence):
    models.build_model(config)


def test_unknown_model_names_the_nearest():
  with pytest.raises(errors.InputError, match="did you mean 'fc_resnet'"):
    models.model_config('fcresnet')


def test_a_single_across_block_halves_and_doubles():
  # One block cannot do both, so there are two and the network keeps its shape.
  model = _build(**SMALL | {'repetitions': (1,) * 7})
  params = _abstract(model)
  assert set(params['across']) == {'block_1', 'block_2'}


@pytest.mark.gpu
def test_a_gpu_gives_the_cpu_s_logits():
  model = _build(**SMALL)
  image = jax.random.normal(jax.random.key(0), (2, 64, 64, 1))
  variables = jax.jit(lambda: model.init(jax.random.key(1), image, False))()
  logits = [
    np.asarray(
      jax.jit(lambda v, x: model.apply(v, x, train=False)['logits'])(
        *jax.device_put((variables, image), jax.devices(platform)[0])
      )
    )
    for platform in ('cpu', 'gpu')
  ]
  assert np.std(logits[0] - logits[1]) < 1e-2 * np.std(logits[0])
