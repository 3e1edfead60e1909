"""Networks and batches small enough to compile in a second or two."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from skipnet_jax.models import fc_resnet
from skipnet_jax.training import losses


def bce(outputs, batch):
  loss = losses.LOSSES['bce']
  return loss.value(loss.sums(outputs, batch))


def make_batch(size=32, dtype=jnp.float32, slices=1):
  key_x, key_y = jax.random.split(jax.random.key(1))
  shape = (2, size, size, 1)
  return {
    'image': jax.random.normal(key_x, (*shape[:3], slices), dtype),
    'label': jax.random.bernoulli(key_y, 0.8, shape).astype(dtype),
    'mask': jnp.ones(shape, dtype),
  }


def make_net(**fields):
  model = fc_resnet.FCResNet(
    **dict(
      base_width=2,
      blocks='simple',
      repetitions=(1, 1, 1, 2, 1, 1, 1),
      dropout=0.0,
    )
    | fields
  )
  variables = model.init(
    jax.random.key(0), jnp.zeros((1, 32, 32, 1)), train=False
  )
  return model, variables


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
