"""A trained network as one file that JAX runs without this package."""

from collections.abc import Mapping
import dataclasses
import hashlib
import importlib.util
import os
import pathlib
from typing import Any

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.data import normalisation
from skipnet_jax.prediction import calibration
from skipnet_jax.runs import trained
from skipnet_jax.step import losses

PLATFORMS = ('cpu', 'cuda', 'tpu')
# Without it, JAX cannot write the file.
_LIBRARIES = ('flatbuffers',)
# The largest padding by reflection has 1024 pixels, 32 times the multiple.
_MOST_MULTIPLES = 33
# https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees
_PROMISE = (
  'JAX promises to read it with a jaxlib that was released up to six months '
  'after jaxlib {jaxlib}, or up to three weeks before it.'
)


# Without equality it has a hash, which JAX needs.
@dataclasses.dataclass(frozen=True, eq=False)
class TrainedFunction:
  """What is exported: a run's network and the calibration of its output.

  Attributes:
    run: whose best checkpoint is exported.
    calibrated: of the probabilities; None: none.
  """

  run: trained.TrainedRun
  calibrated: calibration.Calibration | None

  def __call__(self, image: jax.Array) -> jax.Array:
    """The probability that a pixel is inside a cell, `[b, y, x, 1]` float32.

    It is that of `predict`, which calibrates in float64, up to rounding.

    Args:
      image: `[b, y, x, slices]` float32, normalised.
    """
    run = self.run
    outputs = run.model.apply(run.variables, image, train=False)
    assert not isinstance(outputs, tuple)  # It is, only with `mutable`.
    logits = outputs['logits']
    if self.calibrated is not None:
      logits = self.calibrated.scale * (logits - self.calibrated.log_odds)
    return losses.prediction({'logits': logits})


def require(extra: str, *libraries: str) -> None:
  """Refuses to go on without libraries.

  Args:
    extra: of the package, that installs them.
    *libraries: as they are imported.

  Raises:
    InputError: one is missing.
  """
  for name in libraries:
    if importlib.util.find_spec(name.partition('.')[0]) is None:
      raise errors.InputError(
        f'This export needs {name}, which is not installed: pip install '
        f"'.[{extra}]' in a clone of this project."
      )


def check_output(output: pathlib.Path, *, overwrite: bool) -> None:
  """Checks that an export loses nothing.

  Raises:
    InputError: its folder is missing or not writable; one of its files exists,
      or cannot have its name.
  """
  outputs = [output]
  if output.suffix != '.zip':
    outputs.append(card_path(output))
  parent = output.parent
  if not (parent.is_dir() and os.access(parent, os.W_OK)):
    raise errors.InputError(
      f'The folder {parent} of --output is missing or not writable: create '
      'it, or choose another.'
    )
  files.check_outputs(outputs, overwrite=overwrite)


def card_path(output: pathlib.Path) -> pathlib.Path:
  """The file beside an export that says what goes in and out."""
  return output.with_name(f'{output.name}.json')


def write(network: TrainedFunction, output: pathlib.Path) -> list[str]:
  """Writes NAME.jax and NAME.jax.json.

  Returns:
    Lines that say so.

  Raises:
    InputError: flatbuffers is missing, or a network of one's own whose sides
      must be known.
  """
  require('export', *_LIBRARIES)
  program, least = serialise(network)
  multiple = network.run.model.size_multiple
  files.write_whole(output, program)
  versions = environment.versions(('jax', 'jaxlib', 'skipnet_jax'))
  details = {
    'format': 'jax.export',
    'platforms': PLATFORMS,
    'versions': versions,
    'readable': _PROMISE.format(**versions),
  }
  sides = {'size_multiple': multiple, 'least_side': least}
  files.write_json(
    card_path(output), card(network, program, ['b', 'y', 'x'], sides | details)
  )
  return [
    f'{output}: for {", ".join(PLATFORMS)}, {len(program) / 1e6:.1f} MB; any '
    f'batch, sides that are multiples of {multiple} from {least} on',
    f'{card_path(output)}: what goes in and out. {details["readable"]}',
  ]


def serialise(network: TrainedFunction) -> tuple[bytes, int]:
  """Exports a network for all platforms, any batch and any sides.

  Returns:
    What `jax.export.deserialize` reads, and the least side of an image: those
    that pad by reflection take no smaller ones.

  Raises:
    InputError: a network of one's own whose sides must be known.
  """
  model = network.run.model
  multiple = model.size_multiple
  for least in range(1, _MOST_MULTIPLES + 1):
    shape = export.symbolic_shape(
      f'b, {multiple}*m, {multiple}*n, {model.slices}',
      constraints=[f'm >= {least}', f'n >= {least}'],
    )
    try:
      exported = export.export(jax.jit(network), platforms=PLATFORMS)(
        jax.ShapeDtypeStruct(shape, jnp.float32)
      )
      return bytes(exported.serialize()), least * multiple
    # JAX has several classes of errors for what depends on the sides.
    except Exception as e:
      reason = str(e)
  raise errors.InputError(
    f'model.name is {network.run.config.model.name}, whose code needs to know '
    f'the sides of an image ({" ".join(reason.split())[:300]}): let no '
    'decision depend on image.shape.'
  )


def card(
  network: TrainedFunction,
  content: bytes,
  shape: list[Any],
  details: Mapping[str, Any],
) -> dict[str, Any]:
  """What goes into an exported file and comes out, for JSON.

  Args:
    network: the exported one.
    content: of the file.
    shape: batch, y and x of an image: numbers, or the letters b, y, x for any.
    details: more entries.
  """
  run = network.run
  return {
    'sha256': hashlib.sha256(content).hexdigest(),
    'network': run.config.model.name,
    'trained_on': run.dataset['name'],
    'best_epoch': run.best_epoch,
    'input': {
      'shape': [*shape, run.model.slices],
      'dtype': 'float32',
      'pixel_size_nm': run.pixel_size or None,
      'normalise': run.config.data.normalise,
      'how': normalisation.DESCRIPTIONS[run.config.data.normalise],
    },
    'output': {
      'shape': [*shape, 1],
      'dtype': 'float32',
      'meaning': 'probability that a pixel of the middle slice is inside a '
      'cell; 0 on membranes',
      'calibration': network.calibrated and network.calibrated.for_json(),
    },
    **details,
  }


def sample(shape: tuple[int, ...]) -> np.ndarray:
  """A normalised image by which an export is checked; float32."""
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)
