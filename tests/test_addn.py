"""ADDN: who learns from what, with which optimizer."""

import functools
import itertools

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_networks
from small_networks import make_batch
import systems

from skipnet_jax import config as config_lib
from skipnet_jax import config_checks
from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.step import build
from skipnet_jax.step import losses
from skipnet_jax.step import metrics as metrics_lib
from skipnet_jax.step import optim

PLAYERS = ('discriminator', 'generator')


@functools.cache
def made():
  model = models.build_model(
    models.model_config('addn', base_width=2, discriminator_width=4)
  )
  batch = make_batch()
  return model, small_networks.draw(model, (1, 64, 64, 1)), batch


def test_its_parameters():
  model = models.build_model(models.model_config('addn'))
  variables = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False),
    jax.ShapeDtypeStruct((1, 64, 64, 1), jnp.float32),
  )
  sizes = {
    name: sum(x.size for x in jax.tree.leaves(tree))
    for name, tree in variables['params'].items()
  }
  widths = (2, 64, 128, 256, 512)
  pairs = itertools.pairwise(widths)
  judge = sum(9 * a * b + b for a, b in pairs) + 512 + 1
  assert sizes == {'discriminator': judge, 'generator': 7_443_145}
  assert sum(sizes.values()) == 8_994_058


PARTS = ('dice', 'fooled', 'real', 'fake')


@functools.cache
def judgements():
  """Gradients of the terms of the loss, stacked, and the outputs."""
  model, variables, batch = made()

  def terms(params):
    outputs, _ = model.apply(
      {'params': params, 'batch_stats': variables['batch_stats']},
      batch['image'],
      train=True,
      label=batch['label'],
      mutable=['batch_stats'],
    )
    loss = losses.LOSSES['dice']
    sums = losses.training_sums(loss, outputs, batch)
    found = {'dice': loss.value(sums['logits'])} | sums['judged']
    return jnp.stack([found[part] for part in PARTS]), outputs

  # One compilation for all of them.
  stacked = jax.jit(jax.jacrev(terms, has_aux=True))
  return jax.tree.map(np.asarray, stacked(variables['params']))


@pytest.mark.parametrize(
  ('part', 'learns'),
  [
    ('dice', 'generator'),
    ('fooled', 'generator'),
    ('real', 'discriminator'),
    ('fake', 'discriminator'),
  ],
)
def test_a_gradient_reaches_one_of_the_two(part, learns):
  gradients, _ = judgements()
  for name in PLAYERS:
    own = [g[PARTS.index(part)] for g in jax.tree.leaves(gradients[name])]
    size = sum(np.square(g).sum() for g in own)
    assert (size > 0) == (name == learns), (name, size)


def test_what_fools_is_the_discriminator_itself():
  """The same judgement of the prediction, whoever learns from it."""
  judged = judgements()[1]['judged']
  np.testing.assert_allclose(judged['fooled'], judged['fake'], atol=1e-6)
  assert np.abs(judged['real'] - judged['fake']).max() > 1e-4
  assert judged['real'].shape == (2, 2, 2, 1)


def test_the_terms_are_cross_entropies():
  rng = np.random.default_rng(0)
  judged = {
    name: jnp.asarray(rng.normal(size=(2, 3, 3, 1)), jnp.float32)
    for name in ('real', 'fake', 'fooled')
  }
  batch = make_batch(8)
  outputs = {'logits': batch['image'], 'judged': judged}
  loss = losses.LOSSES['dice']
  sums = losses.training_sums(loss, outputs, batch)
  terms = losses.Terms(adversarial=0.3)
  value, parts = losses.training_value(loss, terms, sums, jnp.zeros(()))

  def entropy(name, target):
    p = 1 / (1 + np.exp(-np.asarray(judged[name], np.float64)))
    return -np.mean(np.log(p if target else 1 - p))

  expected = {
    'judged_real': entropy('real', 1),
    'judged_fake': entropy('fake', 0),
    'judged_fooled': entropy('fooled', 1),
  }
  assert {k: float(v) for k, v in parts.items()} == pytest.approx(expected)
  dice = float(loss.value(sums['logits']))
  total = dice + 0.3 * expected.pop('judged_fooled') + sum(expected.values())
  assert float(value) == pytest.approx(total, rel=1e-5)


def settings(**changes):
  config = config_lib.get_default()
  config.optim.update(
    {'name': 'adam', 'momentum': 0.5, 'decay': 0.999, 'l2': 0.0} | changes
  )
  config_checks.validate(config)
  return config.optim


def test_each_has_its_optimizer(drawn):
  config = conftest.experiment('addn').get_config('smoke')
  config.model.update(systems.SYSTEMS['addn'].small)
  config.optim.update(learning_rate=1e-3, discriminator_learning_rate=4e-3)
  training = build.build(config, (32, 32), 1, record=False)
  state = training.create_state(0)
  # Adam mixes dtypes inside.
  with jax.numpy_dtype_promotion('standard'):
    new, metrics = jax.jit(training.train_step)(state, make_batch())
  # Adam's first step is the learning rate, whatever the gradient.
  for name, rate in (('generator', 1e-3), ('discriminator', 4e-3)):
    moved = jax.tree.map(
      lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(),
      new.params.tree()[name],
      state.params.tree()[name],
    )
    assert max(jax.tree.leaves(moved)) == pytest.approx(rate, rel=1e-2)
  record = metrics_lib.divide({k: np.asarray(v) for k, v in metrics.items()})
  assert {'judged_real', 'judged_fake', 'judged_fooled'} <= record.keys()
  # An average of the parameters is kept of both.
  averaged = optim.make_optimizer(settings(ema=0.9), lambda _: 1e-3, True)
  kept = optim.eval_params(state.params, averaged.init(new.params))
  assert jax.tree.structure(kept) == jax.tree.structure(new.params)


def test_without_a_discriminator_the_state_is_the_plain_one():
  params = {'layer': {'kernel': jnp.ones((1, 1, 2, 2))}}
  config = settings()
  mine = optim.make_optimizer(config, lambda count: 1e-3).init(params)
  plain = optax.chain(optax.adam(lambda count: 1e-3, 0.5, 0.999, 1e-8))
  assert jax.tree.structure(mine) == jax.tree.structure(plain.init(params))


@pytest.mark.parametrize('rate', [0.0, -1.0, float('nan'), float('inf')])
def test_a_discriminator_that_cannot_learn_is_refused(rate):
  with pytest.raises(errors.InputError, match='discriminator_learning_rate'):
    settings(discriminator_learning_rate=rate)
