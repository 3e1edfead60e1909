"""Compares configs: whether they are the same run, and their differences."""

from collections.abc import Sequence
import hashlib
import json
from typing import Any

import ml_collections

ConfigDict = ml_collections.ConfigDict

# Fields without effect on the parameters after a given epoch: a run may resume
# with other values.
_FREE = (
  'parallel',
  'log',
  'data.dir',
  # The fingerprint of the pixels holds, wherever they lie.
  'data.image',
  'data.label',
  'data.device_share',
  # Only predict uses it.
  'data.pixel_size',
  'train.epochs',
  'train.steps_per_call',
  'train.checkpoint_every',
  'train.deterministic',
  'train.kernels',
)


def to_flat(config: ConfigDict) -> dict[str, Any]:
  """Dotted field names to plain values; tuples become lists, as in JSON."""
  flat = {}
  for section, value in json.loads(config.to_json()).items():
    todo = [(section, value)]
    while todo:
      name, value = todo.pop(0)
      if isinstance(value, dict):
        todo += [(f'{name}.{key}', v) for key, v in value.items()]
      else:
        flat[name] = value
  return flat


def identity(config: ConfigDict) -> dict[str, Any]:
  """The flat fields that affect the parameters after a given epoch.

  These are all but the fields that may change when a run resumes. A cosine
  schedule and a cooldown depend on the number of epochs.
  """
  free: tuple[str, ...] = _FREE
  if config.optim.schedule == 'cosine' or config.optim.cooldown_epochs:
    free = tuple(name for name in free if name != 'train.epochs')
  return {
    name: value
    for name, value in to_flat(config).items()
    if not any(name == f or name.startswith(f + '.') for f in free)
  }


def hash_of(config: ConfigDict) -> str:
  """Twelve hex digits of the SHA-256 of the config's identity."""
  text = json.dumps(identity(config), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
  """Differences between two flat dicts, as 'name (old, now new)'."""
  return [
    f'{name} ({a.get(name)!r}, now {b.get(name)!r})'
    for name in sorted(a.keys() | b.keys())
    if a.get(name) != b.get(name)
  ]


def varied(configs: Sequence[ConfigDict]) -> dict[str, list[Any]]:
  """The values in each config of the fields that are not equal in all."""
  flat = [to_flat(config) for config in configs]
  names = sorted({name for one in flat for name in one} - {'experiment'})
  values = {name: [one.get(name) for one in flat] for name in names}
  return {
    name: row for name, row in values.items() if any(v != row[0] for v in row)
  }
