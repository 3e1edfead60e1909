"""Links and measures the cells of a volume whose slabs are all written."""

import os
import pathlib

import numpy as np

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.data import ome_zarr_writer
from skipnet_jax.data import volume
from skipnet_jax.prediction.cells import linking
from skipnet_jax.prediction.cells import measurements


def link(
  draft: ome_zarr_writer.VolumeWriter, linked: ome_zarr_writer.VolumeWriter
) -> None:
  """Writes labels whose cells have one number in all slices.

  A slab needs the last slice of the one before. Slabs that are on the disk are
  not written again.

  Args:
    draft: has the labels of each slice.
    linked: takes the others.

  Raises:
    InputError: labels that cannot be read or written.
  """
  linker = linking.Linker()
  for slab in range(linked.slabs):
    (block,) = linked.blocks()
    if linked.is_written(slab, block):
      for page in linked.read(slab):
        linker.skip(page)
    else:
      pages = draft.read(slab)
      for z, page in enumerate(pages):
        pages[z] = linker(page)
      linked.write(slab, block, pages)
    linked.write_coarser(slab)
  linked.remove_draft()


def measure(
  cells: ome_zarr_writer.VolumeWriter,
  path: str | os.PathLike,
  measured: measurements.Measurements,
) -> None:
  """Writes a table of the cells, unless the same is there.

  Args:
    cells: their labels.
    path: CSV.
    measured: takes the slices.

  Raises:
    InputError: labels that cannot be read; another file is there.
  """
  for slab in range(cells.slabs):
    for page in cells.read(slab):
      measured.add(page.astype(np.int64))
  text = files.to_csv(measured.columns, measured.rows()).encode()
  path = pathlib.Path(path)
  if path.is_file() and path.read_bytes() == text:
    return
  check_table(path)
  with volume.replacing(path, ('.csv',), overwrite=False) as file:
    file.write(text)


def check_table(path: str | os.PathLike) -> None:
  """Refuses a table that exists before the cells are measured."""
  if os.path.lexists(path):
    raise errors.InputError(
      f'{path} exists and has other measurements: choose another name, or '
      'remove it.'
    )
