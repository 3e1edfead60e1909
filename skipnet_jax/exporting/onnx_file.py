"""A trained network as ONNX, by jax2onnx."""

from collections.abc import Callable
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.exporting import artefact

LIBRARIES = ('jax2onnx', 'onnxruntime')
OPSET = 21
# Largest difference of a probability between onnxruntime and JAX.
TOLERANCE = 1e-4


def write(
  network: artefact.TrainedFunction, output: pathlib.Path, tile: int
) -> list[str]:
  """Writes NAME.onnx and NAME.onnx.json.

  Args:
    network: the exported one.
    output: NAME.onnx.
    tile: side of the image.

  Returns:
    Lines that say so.

  Raises:
    InputError: see `convert`.
    RunError: onnxruntime gives other probabilities.
  """
  artefact.require('onnx', *LIBRARIES)
  shape = tile_shape(network, tile)
  content = convert(network, shape)
  image = artefact.sample(shape)
  difference = check(content, image, np.asarray(jax.jit(network)(image)))
  files.write_whole(output, content)
  details = {
    'format': 'ONNX',
    'opset': OPSET,
    'versions': environment.versions(('jax', 'skipnet_jax', *LIBRARIES)),
    'largest_difference': difference,
  }
  path = artefact.card_path(output)
  files.write_json(
    path, artefact.card(network, content, list(shape[:3]), details)
  )
  return [
    f'{output}: ONNX of images {shape} float32, {len(content) / 1e6:.1f} MB; '
    f'onnxruntime differs from JAX by at most {difference:.1e}',
    f'{path}: what goes in and out',
  ]


def tile_shape(
  network: artefact.TrainedFunction, tile: int
) -> tuple[int, int, int, int]:
  """The shape of an image, `(1, tile, tile, slices)`.

  Raises:
    InputError: the network does not take this side, or is not in float32.
  """
  model = network.run.model
  if model.dtype != 'float32':
    raise errors.InputError(
      f'model.dtype is {model.dtype}, in which ONNX has no convolutions: '
      'export NAME.jax instead.'
    )
  multiple = model.size_multiple
  if tile < multiple or tile % multiple:
    raise errors.InputError(
      f'--tile is {tile}, but it must be a multiple of {multiple}: give '
      f'{max(1, round(tile / multiple)) * multiple}, the nearest.'
    )
  return 1, tile, tile, model.slices


def convert(
  function: Callable[[jax.Array], jax.Array], shape: tuple[int, ...]
) -> bytes:
  """A function of an image of this shape, float32, as an ONNX file.

  Raises:
    InputError: jax2onnx cannot convert it.
  """
  # Imported late: an extra, and slow.
  import jax2onnx

  try:
    model = jax2onnx.to_onnx(
      function, [jax.ShapeDtypeStruct(shape, jnp.float32)], opset=OPSET
    )
  # Each operation that it does not know has an error of its own.
  except Exception as e:
    raise errors.InputError(
      f'jax2onnx cannot convert this network ({type(e).__name__}: '
      f'{" ".join(str(e).split())[:300]}): export NAME.jax instead.'
    ) from e
  # Its shapes of inner values are partly wrong; readers infer them again.
  del model.graph.value_info[:]
  return model.SerializeToString()


def check(content: bytes, image: np.ndarray, expected: np.ndarray) -> float:
  """The largest difference between what onnxruntime gives and `expected`.

  Raises:
    RunError: it is larger than TOLERANCE.
  """
  import onnxruntime

  session = onnxruntime.InferenceSession(
    content, providers=['CPUExecutionProvider']
  )
  (found,) = session.run(None, {session.get_inputs()[0].name: image})
  difference = float(np.abs(found - expected).max())
  if not difference <= TOLERANCE:
    raise errors.RunError(
      f'onnxruntime differs from JAX by {difference:.1e}, more than '
      f'{TOLERANCE}: nothing was written; export NAME.jax instead.'
    )
  return difference
