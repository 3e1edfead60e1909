"""Networks and batches small enough to compile in a second or two."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from skipnet_jax import config as config_lib
from skipnet_jax.models import fc_resnet
from skipnet_jax.models import layers
from skipnet_jax.models import network
from skipnet_jax.models import skips
from skipnet_jax.step import losses
from skipnet_jax.step import optim
from skipnet_jax.step import state as state_lib


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
  return {k: jnp.asarray(np.asarray(v, dtype)) for k, v in batch.items()}


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
    # Converted by NumPy: JAX would compile a program for each shape.
    return jnp.asarray(drawn.astype(leaf.dtype))

  return jax.tree_util.tree_map_with_path(one, shapes)


def make_state(model, optimizer):
  """The state before the first step, of variables by `draw`."""
  variables = draw(model, model.input_shape(model.init_size()))
  return state_lib.begin_at(optimizer, variables, 0)


class Normalised(network.Network):
  """Twice a 1x1 convolution, BatchNorm and ReLU."""

  @nn.compact
  def __call__(self, image, train, sample=False):
    x = image
    for i in range(2):
      x = layers.Conv(2, 1, name=f'conv_{i}')(x)
      x = layers.batch_norm(f'norm_{i}', train, jnp.float32, self.axis_name)(x)
      x = nn.relu(x)
    return {'logits': x[..., :1]}


class SkipNet(nn.Module):
  """A small net with two short skips and a long concatenation.

  Attributes:
    named: whether its skips are modules with a `skip_kind`.
    without: skips, s1, s2 or l, whose branch is not there.
  """

  named: bool = False
  without: tuple[str, ...] = ()

  @nn.compact
  def __call__(self, image, train):
    def add(name, residual, x):
      if name in self.without:
        return x
      if self.named:
        return skips.ShortSkip('none', jnp.float32, name=name)(residual, x)
      return residual + x

    def beside(name, decoder, encoder):
      if name in self.without:
        encoder = 0 * encoder
      if self.named:
        return skips.LongConcatenation(name=name)(decoder, encoder)
      return jnp.concatenate([encoder, decoder], -1)

    def conv(name, x, features=4):
      return nn.Conv(features, (3, 3), name=name)(x)

    first = nn.relu(conv('first', image))
    top = add('s1', conv('b', nn.relu(conv('a', first))), first)
    low = nn.max_pool(top, (2, 2), (2, 2))
    low = add('s2', nn.relu(conv('c', low)), low)
    up = jnp.repeat(jnp.repeat(low, 2, 1), 2, 2)
    x = beside('l', conv('d', up), top)
    # A gate, and statistics of the image, are no skips.
    x = x * nn.sigmoid(conv('gate', x, 1))
    x = x - x.mean((1, 2), keepdims=True)
    return {'logits': conv('classifier', x, 1)}


def averaging_state(model):
  """A state of an optimizer with `ema`, and its averaged parameters."""
  settings = config_lib.get_default().optim
  settings.update(name='sgd', ema=0.9)
  optimizer = optim.make_optimizer(settings, lambda _: 0.1)
  state = make_state(model, optimizer)
  averaged = jax.tree.map(lambda x: x + 0.5, state.params)
  *first, last = state.opt_state
  last = last._replace(ema_params=averaged)
  return state.replace(opt_state=(*first, last)), averaged


def batch_statistics(params, batches):
  """Means over batches of what each BatchNorm of `Normalised` normalises by."""
  params, each = jax.tree.map(np.asarray, params), []
  for batch in batches:
    x, found = np.asarray(batch['image'], np.float64), {}
    for i in range(2):
      conv, norm = params[f'conv_{i}'], params[f'norm_{i}']
      x = x @ conv['kernel'][0, 0] + conv['bias']
      mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
      found[f'norm_{i}'] = {'mean': mean, 'var': var}
      x = (x - mean) / np.sqrt(var + 1e-5) * norm['scale'] + norm['bias']
      x = np.maximum(x, 0)
    each.append(found)
  return jax.tree.map(lambda *x: np.mean(x, 0), *each)


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


def equations_of(program):
  """All equations of a traced program, those of calls inside it included."""
  found, todo = [], [program.jaxpr]
  while todo:
    for equation in todo.pop().eqns:
      found.append(equation)
      for value in equation.params.values():
        inside = value if isinstance(value, tuple | list) else [value]
        inside = [getattr(inner, 'jaxpr', inner) for inner in inside]
        todo += [inner for inner in inside if hasattr(inner, 'eqns')]
  return found
