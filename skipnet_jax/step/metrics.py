"""Metrics of an epoch or an evaluation, from the sums that steps return."""

from skipnet_jax.step import losses
from skipnet_jax.step import telemetry


def _with_prefix(sums: dict[str, float], prefix: str) -> dict[str, float]:
  """The entries whose name starts with the prefix, without it."""
  return {
    k.removeprefix(prefix): v for k, v in sums.items() if k.startswith(prefix)
  }


def divide(sums: dict[str, float]) -> dict[str, float]:
  """Metrics of an epoch from its training sums."""
  steps, pixels = sums['steps'], sums['pixels']
  return {
    'loss': sums['loss'] / steps,
    'loss_with_l2': (sums['loss'] + sums['l2']) / steps,
    'bce': sums['bce'] / pixels,
    'accuracy': sums['correct'] / pixels,
    'grad_norm': sums['grad_norm'] / steps,
    **{k: v / steps for k, v in _with_prefix(sums, 'part/').items()},
  }


def divide_eval(sums: dict[str, float], loss: losses.Loss) -> dict[str, float]:
  """Metrics of an evaluation from its sums."""
  value = float(loss.value(_with_prefix(sums, 'loss/')))
  return {
    'loss': value,
    'loss_with_l2': value + sums['l2'] / sums['batches'],
    'bce': sums['bce'] / sums['pixels'],
    'accuracy': sums['correct'] / sums['pixels'],
    **telemetry.divide_gates(sums),
  }
