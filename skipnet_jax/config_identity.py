"""What makes a config the same run as another, and what they differ in."""

from collections.abc import Sequence
import hashlib
import json
from typing import Any

import ml_collections

ConfigDict = ml_collections.ConfigDict

# Fields that leave the trained parameters of a given epoch unchanged, so that a
# run may be continued with other values.
_FREE = (
  'parallel',
  'log',
  'data.dir',
  'data.device_share',
  'train.epochs',
  'train.steps_per_call',
  'train.checkpoint_every',
  'train.deterministic',
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
  """The flat fields that decide over the parameters of a given epoch.

  Left out is what a run may be continued with: devices, log, places, and the
  number of epochs unless the learning rate follows it.
  """
  free: tuple[str, ...] = _FREE
  if config.optim.schedule == 'cosine':
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
  """Fields that differ between two flat dicts, as 'name (old, now new)'."""
  return [
    f'{name} ({a.get(name)!r}, now {b.get(name)!r})'
    for name in sorted(a.keys() | b.keys())
    if a.get(name) != b.get(name)
  ]


def varied(configs: Sequence[ConfigDict]) -> dict[str, list[Any]]:
  """Fields that are not equal in all configs, to the value in each."""
  flat = [to_flat(config) for config in configs]
  names = sorted({name for one in flat for name in one} - {'experiment'})
  values = {name: [one.get(name) for one in flat] for name in names}
  return {
    name: row for name, row in values.items() if any(v != row[0] for v in row)
  }
