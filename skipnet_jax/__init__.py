"""Very deep residual FCNs with long and short skips, in JAX and Flax Linen.

It has eight names for notebooks. Each imports its part of the package when it
is first used; `import skipnet_jax` alone imports neither JAX nor NumPy.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from skipnet_jax.analysis.gradient_flow import layer_gradients
  from skipnet_jax.analysis.routes import Routes
  from skipnet_jax.models import make_model as build_model
  from skipnet_jax.prediction.run_predictor import predict
  from skipnet_jax.runs.pretrained import open_pretrained as load_pretrained
  from skipnet_jax.runs.trained import open_run as load_run
  from skipnet_jax.scores.scores import score_stack as score
  from skipnet_jax.training.loop import train_and_evaluate as train

__version__ = '0.1.0'
__all__ = [
  'Routes',
  'build_model',
  'layer_gradients',
  'load_pretrained',
  'load_run',
  'predict',
  'score',
  'train',
]

# Module and name of each, as in the imports above.
_HOMES = {
  'Routes': ('analysis.routes', 'Routes'),
  'build_model': ('models', 'make_model'),
  'layer_gradients': ('analysis.gradient_flow', 'layer_gradients'),
  'load_pretrained': ('runs.pretrained', 'open_pretrained'),
  'load_run': ('runs.trained', 'open_run'),
  'predict': ('prediction.run_predictor', 'predict'),
  'score': ('scores.scores', 'score_stack'),
  'train': ('training.loop', 'train_and_evaluate'),
}


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module, attribute = _HOMES[name]
  return getattr(importlib.import_module(f'{__name__}.{module}'), attribute)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
  """The package; its `train` and `predict` stay functions.

  The commands are modules of the same names, and Python sets an imported module
  as an attribute of its package. This class prevents that for these two.
  """

  def __setattr__(self, name: str, value: Any) -> None:
    if not (name in _HOMES and isinstance(value, types.ModuleType)):
      super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
