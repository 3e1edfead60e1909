"""PyTorch's losses are those of the package."""

import numpy as np
import pytest

from skipnet_jax.step import losses

pytestmark = pytest.mark.peer


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('name', sorted(losses.LOSSES))
def test_a_loss_is_that_of_the_package(name, weighted):
  import torch

  from skipnet_jax.benchmarking.peer import losses as torch_losses

  rng = np.random.default_rng(0)
  shape = (2, 3, 5, 1)
  # Large ones too: a difference of tanh beyond one is where it is linear.
  logits = rng.normal(scale=4, size=shape).astype(np.float32)
  batch = {'label': (rng.random(shape) < 0.5).astype(np.float32)}
  if weighted:
    batch['weight'] = rng.uniform(0.1, 5, shape).astype(np.float32)
  ours = losses.LOSSES[name]
  expected = ours.value(
    ours.sums({'logits': logits}, batch | {'mask': np.ones_like(logits)})
  )
  given = {k: torch.from_numpy(v) for k, v in batch.items()}
  found = torch_losses.mean(name, torch.from_numpy(logits), **given)
  assert float(found) == pytest.approx(float(expected), rel=1e-6)
