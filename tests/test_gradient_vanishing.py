"""Without short skips the gradient fades towards a deep network's centre."""

import jax
import jax.numpy as jnp
import numpy as np
import small_networks

from skipnet_jax.analysis import gradient_flow
from skipnet_jax.models import fc_resnet
from skipnet_jax.step import telemetry

# 96 convolutions on the main path, as many as the paper's deepest of simple
# blocks needs and more (its Figure 4 shows r=7 and r=9).
DEEP = dict(
  blocks='simple', repetitions=(13,) * 7, base_width=8, dropout=0.0, scan=True
)


def centre_over_ends(short_skips):
  """For three seeds, the gradient of `across` over that of the outer stages.

  Of each stage the median over its convolutions of the root mean square of the
  kernel's gradient at initialisation; of down_3 and up_3, in which the network
  begins and ends, the geometric mean.
  """
  model = fc_resnet.FCResNet(**DEEP, short_skips=short_skips, batch_norm=False)
  batch = small_networks.make_batch(64)
  last = DEEP['repetitions'][0] + 1

  def measure(params):
    grads = jax.grad(
      lambda params: gradient_flow.loss_at(
        model, {'params': params}, batch, small_networks.bce, train=True
      )
    )(params)

    def size(stage):
      names = [f'{stage}/block_{i}/conv_1' for i in range(1, last)]
      kernels = [telemetry.kernel(grads, name) for name in names]
      return jnp.median(
        jnp.stack([jnp.sqrt(jnp.mean(jnp.square(k))) for k in kernels])
      )

    return size('across') / jnp.sqrt(size('down_3') * size('up_3'))

  measure = jax.jit(measure)
  return np.array(
    [
      measure(small_networks.draw(model, (1, 64, 64, 1), seed)['params'])
      for seed in range(3)
    ]
  )


def test_long_skips_alone_starve_the_centre_without_batch_norm():
  # Measured: 6e-6 to 3e-4 without short skips, .20 to .29 with them. At each
  # convolution of the centre, where 64x64 pixels have become 2x2, zero padding
  # takes away more than half of the signal: the sum of a short skip keeps it.
  without, with_skips = centre_over_ends(False), centre_over_ends(True)
  assert np.all(without < 1e-2)
  assert np.all(with_skips > 0.05)
  assert np.all(without < 0.02 * with_skips)
