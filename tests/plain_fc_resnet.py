"""A plain Flax transcription of the paper's network, to check and to race.

Every operation stands where Drozdzal et al. 2016 state it: 1x1 convolutions
with a stride, repetition before the convolution that follows it. Nothing of
`skipnet_jax.models` is used. `python tests/plain_fc_resnet.py` times a training
step of both at 512x512.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

STAGES = ('down_3', 'down_4', 'down_5', 'across', 'up_1', 'up_2', 'up_3')
WIDTHS = (1, 2, 4, 8, 4, 2, 1)


def flat(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  """Parameters of the package's network under the names used here."""
  found = {}
  for name, value in tree.items():
    path = f'{prefix}.{name}' if prefix else name
    if any(isinstance(v, dict) for v in value.values()):
      found |= flat(value, path)
    else:
      found[path] = value
  return found


class PlainFCResNet(nn.Module):
  """Table 1, written down in one function; fields as in the package."""

  short_skips: bool = True
  long_skips: bool = True
  batch_norm: bool = True
  dropout: float = 0.1
  base_width: int = 32
  blocks: tuple[str, ...] = ('bottleneck',) * 7
  repetitions: tuple[int, ...] = (3, 8, 10, 3, 10, 8, 3)
  long_skip_projection: str = 'decoder'

  @nn.compact
  def __call__(self, image: jax.Array, train: bool) -> jax.Array:
    """Maps `[b, y, x, 1]` to logits `[b, y, x, 1]`."""

    def conv(name, x, features, size, stride=1):
      return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=size // 2,
        kernel_init=nn.initializers.he_normal(),
        name=name,
      )(x)

    def bn_relu(name, x):
      if self.batch_norm:
        x = nn.BatchNorm(
          use_running_average=not train, momentum=0.9, name=name
        )(x)
      return nn.relu(x)

    def up(x):
      return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)

    def drop(x):
      return nn.Dropout(self.dropout, deterministic=not train)(x)

    def bottleneck(name, x, width, down, doubled):
      h = bn_relu(f'{name}.norm_1', x)
      h = conv(f'{name}.conv_1', h, width // 4, 1, 2 if down else 1)
      h = bn_relu(f'{name}.norm_2', h)
      h = conv(f'{name}.conv_2', h, width // 4, 3)
      h = bn_relu(f'{name}.norm_3', h)
      h = up(h) if doubled else h
      h = conv(f'{name}.conv_3', h, width, 1)
      return drop(h)

    def basic(name, x, width, down, doubled):
      h = bn_relu(f'{name}.norm_1', x)
      h = conv(f'{name}.conv_1', h, width, 3, 2 if down else 1)
      h = drop(h)
      h = bn_relu(f'{name}.norm_2', h)
      h = up(h) if doubled else h
      return conv(f'{name}.conv_2', h, width, 3)

    def simple(name, x, width, down, doubled):
      h = bn_relu(f'{name}.norm_1', x)
      h = nn.max_pool(h, (2, 2), (2, 2)) if down else h
      h = conv(f'{name}.conv_1', h, width, 3)
      h = drop(h)
      return up(h) if doubled else h

    residuals = dict(bottleneck=bottleneck, basic=basic, simple=simple)

    def block(name, kind, x, width, down, doubled):
      h = residuals[kind](name, x, width, down, doubled)
      if not self.short_skips:
        return h
      shortcut = x[:, ::2, ::2] if down else x
      shortcut = up(shortcut) if doubled else shortcut
      if x.shape[-1] != width:
        shortcut = conv(f'{name}.short_skip.projection', shortcut, width, 1)
      return h + shortcut

    def stage(name, x):
      kind, count, width = 'simple', 1, self.base_width
      if name in STAGES:
        i = STAGES.index(name)
        kind, count = self.blocks[i], self.repetitions[i]
        width = self.base_width * WIDTHS[i]
        width *= 4 if kind == 'bottleneck' else 1
      for j in range(count):
        halved = j == 0 and name.startswith(('down', 'across'))
        doubled = j == count - 1 and name.startswith(('up', 'across'))
        x = block(f'{name}.block_{j + 1}', kind, x, width, halved, doubled)
      return x

    def long_skip(name, decoder, encoder, inner):
      if not self.long_skips:
        return decoder
      width = encoder.shape[-1]
      if decoder.shape[-1] != width:
        if self.long_skip_projection == 'both':
          width = inner
          if encoder.shape[-1] != width:
            encoder = conv(f'long_skip_{name}.encoder', encoder, width, 1)
        decoder = conv(f'long_skip_{name}.decoder', decoder, width, 1)
      return decoder + encoder

    base = self.base_width
    down_1 = conv('down_1', image, base, 3)
    down_2 = stage('down_2', down_1)
    down_3 = stage('down_3', down_2)
    down_4 = stage('down_4', down_3)
    down_5 = stage('down_5', down_4)
    x = stage('across', down_5)
    x = stage('up_1', long_skip('up_1', x, down_5, 4 * base))
    x = stage('up_2', long_skip('up_2', x, down_4, 2 * base))
    x = stage('up_3', long_skip('up_3', x, down_3, base))
    x = stage('up_4', long_skip('up_4', x, down_2, base))
    x = long_skip('up_5', conv('up_5', x, base, 3), down_1, base)
    return conv('classifier', bn_relu('norm', x), 1, 1)


def _race(side: int, rounds: int) -> None:
  """Prints the seconds of a step of both, taken in turn, and their ratio."""
  import statistics
  import time

  import optax

  from skipnet_jax import models

  image = jax.random.normal(jax.random.key(0), (1, side, side, 1))
  label = (image > 0).astype(jnp.float32)
  optimizer = optax.chain(
    optax.add_decayed_weights(2e-4), optax.rmsprop(1e-3, 0.9, 1e-8)
  )
  network = models.build_model(models.model_config('fc_resnet'))
  contestants = {
    'plain': (PlainFCResNet(), lambda outputs: outputs),
    'package': (network, lambda outputs: outputs['logits']),
  }
  steps, states = {}, {}
  for name, (model, logits_of) in contestants.items():
    variables = jax.jit(lambda x, m=model: m.init(jax.random.key(0), x, False))(
      image
    )

    def step(state, key, model=model, logits_of=logits_of):
      params, stats, opt_state = state

      def objective(params):
        outputs, updated = model.apply(
          {'params': params, 'batch_stats': stats},
          image,
          True,
          mutable=['batch_stats'],
          rngs={'dropout': key},
        )
        losses = optax.sigmoid_binary_cross_entropy(logits_of(outputs), label)
        return losses.mean(), updated['batch_stats']

      (_, stats), grads = jax.value_and_grad(objective, has_aux=True)(params)
      updates, opt_state = optimizer.update(grads, opt_state, params)
      return optax.apply_updates(params, updates), stats, opt_state

    params = variables['params']
    states[name] = (params, variables['batch_stats'], optimizer.init(params))
    steps[name] = jax.jit(step, donate_argnums=0)

  seconds = {name: [] for name in steps}
  for turn in range(rounds + 1):
    for name, step in steps.items():
      begin = time.perf_counter()
      states[name] = jax.block_until_ready(
        step(states[name], jax.random.key(turn))
      )
      if turn:  # The first round compiles.
        seconds[name].append(time.perf_counter() - begin)
  middle = {name: statistics.median(s) for name, s in seconds.items()}
  for name, value in middle.items():
    print(
      f'{name:8} {value:.3f} s a step ({min(seconds[name]):.3f} to '
      f'{max(seconds[name]):.3f} in {rounds} rounds)'
    )
  print(f'package / plain: {middle["package"] / middle["plain"]:.3f}')


if __name__ == '__main__':
  import argparse

  parser = argparse.ArgumentParser(description='Times one training step.')
  parser.add_argument('--side', type=int, default=512, help='pixels')
  parser.add_argument('--rounds', type=int, default=10)
  given = parser.parse_args()
  _race(given.side, given.rounds)
