"""Networks and batches small enough to compile in a second or two."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from skipnet_jax.models import fc_resnet
from skipnet_jax.step import losses


def bce(outputs, batch):
  loss = losses.LOSSES['bce']
  return loss.value(loss.sums(outputs, batch))


def make_batch(
  size=32, dtype=np.float32, slices=1, count=2, noise=0.3, weight=False
):
  """Labels in squares, and an image of them with noise: easily learnt.

  Args:
    size: sides y and x, or one for both.
    dtype: of all arrays.
    slices: channels of the image.
    count: examples.
    noise: standard deviation, of an image that is -1 and 1 else.
    weight: whether pixels have a weight.
  """
  rng = np.random.default_rng(1)
  y, x = np.broadcast_to(size, 2)
  side = max(1, y // 4)
  squares = rng.random((count, -(-y // side), -(-x // side), 1)) > 0.4
  label = squares.repeat(side, 1).repeat(side, 2)[:, :y, :x]
  shape = (count, y, x, slices)
  batch = {
    'image': 2 * label - 1 + noise * rng.normal(size=shape),
    'label': label,
    'mask': np.ones(label.shape),
  }
  if weight:
    batch['weight'] = rng.uniform(0.5, 2, label.shape)
  return {name: jnp.asarray(array, dtype) for name, array in batch.items()}


# The smallest FC-ResNet, by fields of the module or of a config's model.
SMALL = {
  'base_width': 2,
  'blocks': 'simple',
  'repetitions': (1, 1, 1, 2, 1, 1, 1),
  'dropout': 0.0,
}


def make_model(**fields):
  return fc_resnet.FCResNet(**SMALL | fields)


def make_net(**fields):
  model = make_model(**fields)
  return model, draw(model, (1, 32, 32, 1))


@functools.cache
def draw(model, shape, seed=0):
  """Variables for a model of some image shape: He normal kernels, by NumPy.

  Compiling a network's own initialisation takes as long as a training step.
  """
  image = jax.ShapeDtypeStruct(shape, jnp.float32)
  shapes = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False), image
  )
  return fill(shapes, seed)


def fill(shapes, seed):
  """Values for a tree of variables' shapes, as `draw` has them."""
  rng = np.random.default_rng(seed)

  def one(path, leaf):
    if path[-1].key == 'kernel':
      fan_in = np.prod(leaf.shape[:-1])
      drawn = rng.normal(0, np.sqrt(2 / fan_in), leaf.shape)
    else:
      drawn = np.full(leaf.shape, float(path[-1].key in ('scale', 'var')))
    return jnp.asarray(drawn, leaf.dtype)

  return jax.tree_util.tree_map_with_path(one, shapes)


class LinearChain(nn.Module):
  """x -> x + w x, `depth` times: its routes have a closed form."""

  depth: int

  class Skip(nn.Module):
    skip_kind: ClassVar[str] = 'short'

    @nn.compact
    def __call__(self, path, skipped):
      return path + skipped

  @nn.compact
  def __call__(self, x, train):
    del train
    for i in range(self.depth):
      y = nn.Dense(1, use_bias=False, name=f'dense_{i}')(x)
      x = self.Skip(name=f'skip_{i}')(y, x)
    return {'logits': x}
