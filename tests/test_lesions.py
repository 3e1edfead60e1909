"""A branch that is left out, against a network that was built without it."""

import jax
import numpy as np
import optax
import pytest
import small_networks

from skipnet_jax.analysis import lesions
from skipnet_jax.scores import scores

SKIPS = {'s1': 'short', 's2': 'short', 'l': 'long'}


@pytest.fixture(scope='module')
def stack():
  batch = small_networks.make_batch(16, count=2)
  return np.asarray(batch['image']), np.asarray(batch['label'])[..., 0] > 0.5


@pytest.fixture(scope='module')
def variables(stack):
  return small_networks.draw(small_networks.SkipNet(), (1, 16, 16, 1))


@pytest.fixture(scope='module')
def both(stack, variables):
  return [
    lesions.measure(small_networks.SkipNet(named), variables, *stack)
    for named in (True, False)
  ]


def bce_and_rand(model, variables, stack):
  images, inside = stack
  logits = model.apply(variables, images, False)['logits']
  bce = optax.sigmoid_binary_cross_entropy(logits[..., 0], inside).mean()
  maps = np.asarray(jax.nn.sigmoid(logits))[..., 0]
  return float(bce), scores.score_stack(maps, inside)['v_rand']


@pytest.mark.parametrize('named', [True, False])
def test_a_lesion_is_a_network_built_without_the_branch(
  both, stack, variables, named
):
  found = both[0] if named else both[1]
  assert found.kinds == tuple(SKIPS.values())
  assert found.names == (tuple(SKIPS) if named else found.names)
  whole = small_networks.SkipNet(named)
  expected = bce_and_rand(whole, variables, stack)
  np.testing.assert_allclose(found.whole, expected, rtol=1e-4)
  for i, name in enumerate(SKIPS):
    built = small_networks.SkipNet(named, (name,))
    bce, v_rand = bce_and_rand(built, variables, stack)
    assert found.bce[i] == pytest.approx(bce, rel=1e-4)
    assert found.v_rand[i] == pytest.approx(v_rand, abs=1e-4)
    assert abs(bce - expected[0]) > 1e-4


def test_depth_counts_the_layers_before_a_sum(both):
  # Before s1 first, a and b; then c; then d; then the gate and the classifier.
  np.testing.assert_allclose(both[0].depth, [3 / 7, 4 / 7, 5 / 7])
  np.testing.assert_allclose(both[1].depth, [1 / 6, 3 / 6, 5 / 6])


def test_shares_are_of_the_norms_in_the_sum(both, stack, variables):
  kept = {}

  def keep(next_fun, args, kwargs, context):
    out = next_fun(*args, **kwargs)
    if context.module.name in SKIPS:
      kept[context.module.name] = (*map(np.float64, args), np.float64(out))
    return out

  import flax.linen as nn

  with nn.intercept_methods(keep):
    small_networks.SkipNet(True).apply(variables, stack[0], False)
  for i, (name, kind) in enumerate(SKIPS.items()):
    path, skipped, out = kept[name]
    branch, rest = (path, skipped) if kind == 'short' else (skipped, path)
    norms = [np.linalg.norm(x) for x in (branch, rest, out)]
    cosine = 0.0
    if kind == 'short':
      cosine = np.vdot(branch, rest) / (norms[0] * norms[1])
    for found in both:
      assert found.share[i] == pytest.approx(norms[0] / norms[2], rel=1e-4)
      assert found.cosine[i] == pytest.approx(cosine, abs=1e-4)


def test_a_network_without_skips_has_nothing_to_leave_out(stack):
  model = small_networks.Normalised()
  variables = small_networks.draw(model, (1, 16, 16, 1))
  assert lesions.measure(model, variables, *stack) is None
