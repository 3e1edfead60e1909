"""Volumes in chunks as others write them."""

import json

import numpy as np
import tensorstore as ts


def write_array(path, array, chunk=None, driver='zarr3'):
  """An array of Zarr 3, or of Zarr 2 by the driver zarr."""
  chunk = list(chunk or array.shape)
  if driver == 'zarr3':
    grid = {'name': 'regular', 'configuration': {'chunk_shape': chunk}}
    metadata = {'chunk_grid': grid}
  else:
    metadata = {'chunks': chunk, 'dimension_separator': '/'}
  store = ts.open(
    {
      'driver': driver,
      'kvstore': {'driver': 'file', 'path': f'{path}/'},
      'metadata': metadata,
    },
    create=True,
    delete_existing=True,
    shape=array.shape,
    dtype=array.dtype,
  ).result()
  store[...] = array


def write_group(path, attributes, driver='zarr3'):
  path.mkdir(parents=True, exist_ok=True)
  if driver == 'zarr3':
    group = {'zarr_format': 3, 'node_type': 'group', 'attributes': attributes}
    (path / 'zarr.json').write_text(json.dumps(group))
  else:
    (path / '.zgroup').write_text(json.dumps({'zarr_format': 2}))
    (path / '.zattrs').write_text(json.dumps(attributes))


def write_ome(
  path, *levels, axes='zyx', version='0.5', scale=None, unit=None, chunk=None
):
  """An OME-Zarr image of arrays, each half as fine in y and x as the last."""
  kinds = {'t': 'time', 'c': 'channel'}
  named = [{'name': a, 'type': kinds.get(a, 'space')} for a in axes]
  for axis in named if unit else ():
    if axis['type'] == 'space':
      axis['unit'] = unit
  datasets = []
  driver = 'zarr3' if version == '0.5' else 'zarr'
  for level, array in enumerate(levels):
    factors = [2**level if a in 'yx' else 1 for a in axes]
    steps = [
      {
        'type': 'scale',
        'scale': [
          float(s * f)
          for s, f in zip(scale or len(axes) * [1], factors, strict=True)
        ],
      }
    ]
    datasets.append(
      {
        'path': str(level),
        'coordinateTransformations': steps,
      }
    )
    write_array(path / str(level), array, chunk, driver)
  image = {'axes': named, 'datasets': datasets}
  if version == '0.5':
    attributes = {'ome': {'version': version, 'multiscales': [image]}}
  else:
    attributes = {'multiscales': [image | {'version': version}]}
  write_group(path, attributes, driver)
  return path


def make_pixels(*shape, dtype='uint8'):
  pixels = np.random.default_rng(0).integers(0, 255, shape)
  return pixels.astype(dtype)
