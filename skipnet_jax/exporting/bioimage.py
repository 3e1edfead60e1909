"""A trained network as a package for bioimage.io, from its ONNX file.

It takes grey values, which the package normalises.
"""

from collections.abc import Callable
import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.data import normalisation
from skipnet_jax.exporting import artefact
from skipnet_jax.exporting import onnx_file

# The form that bioimage.io asks of a documentation.
_README = """\
# {name}

Cells in electron-microscopy slices. Each slice of a tile is normalised in here.

```json
{card}
```

# Validation

`skipnet evaluate --workdir=RUN` scores the run from which this was exported.
"""


def write(
  network: artefact.TrainedFunction, output: pathlib.Path, tile: int
) -> list[str]:
  """Writes NAME.zip of format 0.5, once bioimageio.core has tested it.

  Args:
    network: the exported one.
    output: NAME.zip.
    tile: side of the image.

  Returns:
    Lines that say so.

  Raises:
    InputError: see `onnx_file.convert`.
    RunError: bioimageio.core finds a fault.
  """
  artefact.require('onnx', *onnx_file.LIBRARIES, 'bioimageio')
  # Imported late: an extra, and slow.
  from bioimageio import core
  from bioimageio import spec

  shape = onnx_file.tile_shape(network, tile)
  prepare = _normalisation(network.run.config.data.normalise, tile)
  content = onnx_file.convert(lambda grey: network(prepare(grey)), shape)
  with files.temporary_folder('skipnet_jax-bioimage-') as folder:
    (folder / 'network.onnx').write_bytes(content)
    described = _describe(network, folder, shape)
    package = spec.save_bioimageio_package(
      described, output_path=folder / 'package.zip'
    )
    summary = core.test_model(package, weight_format='onnx', devices=['cpu'])
    if summary.status != 'passed':
      found = '; '.join(e.msg for d in summary.details for e in d.errors)
      raise errors.RunError(
        f'bioimageio.core finds faults in the package ({found[:300]}): nothing '
        'was written; export NAME.onnx instead.'
      )
    files.write_whole(output, pathlib.Path(str(package)).read_bytes())
  return [
    f'{output}: bioimage.io {described.format_version} of images {shape}, '
    f'{output.stat().st_size / 1e6:.1f} MB; bioimageio.core has tested it'
  ]


def _normalisation(method: str, side: int) -> Callable[[jax.Array], jax.Array]:
  """A `data.normalise` of `[1, side, side, slices]` grey values, by tile."""
  window = normalisation.window_matrix(side) if method == 'local' else None

  def average(x: jax.Array) -> jax.Array:
    return jnp.einsum('ij,bjkc,lk->bilc', window, x, window)

  def normalise(grey: jax.Array) -> jax.Array:
    if method == 'range':
      return grey / 127.5 - 1
    x = grey - jnp.mean(grey, (1, 2), keepdims=True)
    variance = jnp.mean(x * x, (1, 2), keepdims=True)
    if method == 'local':
      mean, least = average(x), normalisation.LEAST_SHARE**2 * variance
      variance = jnp.maximum(average(x * x) - mean * mean, least)
      x = x - mean
    return x / jnp.sqrt(jnp.where(variance > 0, variance, 1.0))

  return normalise


def _describe(
  network: artefact.TrainedFunction,
  folder: pathlib.Path,
  shape: tuple[int, int, int, int],
) -> Any:
  """The package's description; writes its test tensors and README.md."""
  from bioimageio.spec.model import v0_5

  run = network.run
  name = re.sub(r'\W', ' ', f'skipnet_jax {run.config.model.name}')
  grey = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
  np.save(folder / 'in.npy', grey.astype(np.float32))
  np.save(folder / 'out.npy', _expected(network, grey))
  path = folder / 'network.onnx'
  weights = {'source': path, 'opset_version': onnx_file.OPSET}
  card = artefact.card(network, path.read_bytes(), list(shape[:3]), {})
  (folder / 'README.md').write_text(
    _README.format(name=name, card=json.dumps(card, indent=2))
  )
  size = {'unit': 'nanometer', 'scale': run.pixel_size}
  sides = [
    {'type': 'space', 'id': axis, 'size': side}
    | (size if run.pixel_size else {})
    for axis, side in zip('yx', shape[1:3], strict=True)
  ]
  # `range` is that of uint8.
  values = (0, 255) if run.config.data.normalise == 'range' else (None, None)

  def axes(channels: list[str]) -> list[dict[str, Any]]:
    batch = {'type': 'batch', 'size': 1}
    return [batch, *sides, {'type': 'channel', 'channel_names': channels}]

  return v0_5.ModelDescr.model_validate(
    {
      'name': name,
      'description': 'Probability of the inside of cells in EM slices',
      'documentation': {'source': folder / 'README.md'},
      'inputs': [
        {
          'id': 'grey',
          'axes': axes([f'slice_{z}' for z in range(shape[-1])]),
          'data': {'type': 'float32', 'range': values},
          'test_tensor': {'source': folder / 'in.npy'},
        }
      ],
      'outputs': [
        {
          'id': 'probability',
          'axes': axes(['inside']),
          'data': {'type': 'float32', 'range': (0.0, 1.0)},
          'test_tensor': {'source': folder / 'out.npy'},
        }
      ],
      'weights': {'onnx': weights},
    }
  )


def _expected(
  network: artefact.TrainedFunction, grey: np.ndarray
) -> np.ndarray:
  """What `predict` makes of `[1, y, x, slices]` grey values."""
  stack = np.moveaxis(grey[0], -1, 0)
  pages, found = normalisation.prepare(stack, network.run.config.data.normalise)
  mean, std = (found[key][:, None, None] for key in ('mean', 'std'))
  image = np.moveaxis((np.asarray(pages, np.float32) - mean) / std, 0, -1)
  return np.asarray(jax.jit(network)(image[None]))
