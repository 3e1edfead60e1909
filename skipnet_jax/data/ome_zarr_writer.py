"""Writes the blocks of an OME-Zarr image, by several processes.

Version 0.5 has a file for each block (a shard), and 0.4 one for each chunk. A
file is renamed when it is whole, so that one that exists is whole.
"""

from collections.abc import Iterator, Sequence
import contextlib
import fcntl
import os
import pathlib
import shutil
from typing import Any

import numpy as np
import tensorstore as ts

from skipnet_jax.data import chunk_store
from skipnet_jax.data import ome_zarr_metadata

# Sides y and x of a chunk; those of a block are multiples of it.
CHUNK = 256
_STATISTICS = 'normalisation'
_DRAFT = 'unlinked'
_REMEDY = 'remove the folder, and give the command again'


class VolumeWriter:
  """Writes the blocks of a volume that was begun.

  Args:
    path: of the folder.
    dtype: float32, uint32 of labels, or uint8 of colours.
    statistics: whether it also keeps the statistics of the input's slices.
    draft: whether labels are written that are linked later. They have an array
      of their own, without coarser levels; what is linked counts as written.

  Attributes:
    path: the argument.
    dtype: the argument.
    shape: (z, y, x).
    block: the same of a block.
    slabs: number of blocks along z. One process at a time writes a slab.

  Raises:
    InputError: a damaged volume.
  """

  def __init__(
    self,
    path: pathlib.Path,
    dtype: Any,
    *,
    statistics: bool = False,
    draft: bool = False,
  ):
    settings = ome_zarr_metadata.read_settings(path) or {}
    self.path, self.dtype = path, np.dtype(dtype)
    z, y, x = settings['shape']
    self.shape = z, y, x
    z, y, x = settings['block']
    self.block = z, y, x
    self.slabs = -(-self.shape[0] // z)
    self._axes = settings['axes']
    self._channel = ome_zarr_metadata.channel_axis(self._axes)
    self._colours = self.dtype == np.uint8
    self._sharded = (path / 'zarr.json').exists()
    self._linked = VolumeWriter(path, dtype) if draft else None
    shapes = ome_zarr_metadata.level_shapes(self.shape)[: 1 if draft else None]
    self._names = [_DRAFT] if draft else [str(n) for n in range(len(shapes))]
    self._levels = [
      self._open(name, shape, (z, CHUNK, CHUNK), self.dtype, self.block)
      for name, shape in zip(self._names, shapes, strict=True)
    ]
    self._statistics = None
    if statistics:
      chunk = z, 2
      self._statistics = self._open(
        _STATISTICS, (self.shape[0], 2), chunk, np.dtype(np.float32), chunk
      )

  def _open(
    self,
    name: str,
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: np.dtype,
    block: tuple[int, ...],
  ) -> ts.TensorStore:
    """Opens an array, and makes it where it is missing."""
    fill = 'NaN' if name == _STATISTICS else 0
    axes = ['z', 'statistic'] if name == _STATISTICS else [*self._axes.lower()]
    if self._colours:
      at = self._channel
      axes.insert(at, 'c')
      shape, chunk, block = (
        (*n[:at], 3, *n[at:]) for n in (shape, chunk, block)
      )
    # Level 5 saves another sixteenth of probabilities, in four times the time.
    blosc = {'cname': 'zstd', 'clevel': 1}
    metadata: dict[str, Any] = {'shape': shape, 'fill_value': fill}
    if self._sharded:
      little = {'name': 'bytes', 'configuration': {'endian': 'little'}}
      blosc |= {'shuffle': 'shuffle', 'typesize': dtype.itemsize}
      codecs = [little, {'name': 'blosc', 'configuration': blosc}]
      if block != chunk:
        inner = {'chunk_shape': chunk, 'codecs': codecs}
        inner['index_codecs'] = [little, {'name': 'crc32c'}]
        codecs = [{'name': 'sharding_indexed', 'configuration': inner}]
      grid = {'name': 'regular', 'configuration': {'chunk_shape': block}}
      metadata |= {'chunk_grid': grid, 'codecs': codecs}
      metadata['data_type'] = dtype.name
      metadata['dimension_names'] = axes
    else:
      metadata |= {'chunks': chunk, 'dtype': dtype.newbyteorder('<').str}
      metadata['compressor'] = {'id': 'blosc', **blosc, 'shuffle': 1}
      metadata |= {'dimension_separator': '/', 'filters': None, 'order': 'C'}
    what = f'cannot be opened at {name}'
    with chunk_store.refusing(self.path, what, _REMEDY):
      return ts.open(
        {
          'driver': 'zarr3' if self._sharded else 'zarr',
          'kvstore': {'driver': 'file', 'path': f'{self.path}/{name}/'},
          'metadata': metadata,
          # Else a block of zeros has no file.
          'store_data_equal_to_fill_value': True,
        },
        open=True,
        create=True,
      ).result()

  def blocks(self, level: int = 0) -> list[tuple[range, range]]:
    """Rows and columns of the blocks of a slab."""
    y, x = self._levels[level].shape[-2:]
    return [
      (range(top, min(top + self.block[1], y)), range(left, min(left + w, x)))
      for w in self.block[2:]
      for top in range(0, y, self.block[1])
      for left in range(0, x, w)
    ]

  def slices(self, slab: int) -> range:
    """Those of a slab."""
    first = slab * self.block[0]
    return range(first, min(first + self.block[0], self.shape[0]))

  def is_written(
    self, slab: int, block: tuple[range, range], level: int = 0
  ) -> bool:
    """Whether a block is on the disk."""
    if self._linked and self._linked.is_finished(slab):
      return True
    folder = self._folder(slab, level)
    sides = self.block[1:] if self._sharded else (CHUNK, CHUNK)
    rows, columns = (
      range(span.start // side, -(-span.stop // side))
      for span, side in zip(block, sides, strict=True)
    )
    return all((folder / f'{y}/{x}').exists() for y in rows for x in columns)

  def is_finished(self, slab: int) -> bool:
    """Whether all blocks of a slab are on the disk, at all levels."""
    return all(
      self.is_written(slab, block, level)
      for level in range(len(self._levels))
      for block in self.blocks(level)
    )

  def missing_bytes(self) -> int:
    """Bytes, before compression, of all blocks that are not on the disk."""
    pixels = sum(
      len(self.slices(slab)) * len(block[0]) * len(block[1])
      for slab in range(self.slabs)
      for level in range(len(self._levels))
      for block in self.blocks(level)
      if not self.is_written(slab, block, level)
    )
    return pixels * self.dtype.itemsize * (3 if self._colours else 1)

  def _folder(self, slab: int, level: int = 0) -> pathlib.Path:
    """Where the files of a slab are."""
    axes = [str(slab)]
    if self._colours:
      axes.insert(self._channel, '0')
    parts = (self._names[level], *('c' * self._sharded), *axes)
    return self.path.joinpath(*parts)

  @contextlib.contextmanager
  def claim(self, slab: int | None) -> Iterator[bool]:
    """Yields whether this process may write a slab: no other one does.

    None: what comes when all slabs are written. The operating system removes
    the lock when the process ends in any way.
    """
    folder = self.path if slab is None else self._folder(slab)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        yield False
        return
      except OSError:
        pass  # Some file systems of clusters have no locks.
      yield True
    finally:
      os.close(descriptor)

  def write(
    self,
    slab: int,
    block: tuple[range, range],
    values: np.ndarray,
    level: int = 0,
  ) -> None:
    """Writes a block, `[z, y, x]`, or `[z, y, x, 3]` of colours.

    Raises:
      InputError: it cannot be written.
      OSError: the disk is full.
    """
    spans = [self.slices(slab), *block]
    if self._colours:
      spans.insert(self._channel, range(3))
      values = np.moveaxis(values, -1, self._channel)
    self._write(self._levels[level], spans, np.ascontiguousarray(values))

  def read(self, slab: int) -> np.ndarray:
    """A slab of the finest level, `[z, y, x]`.

    Raises:
      InputError: it is damaged.
    """
    slices = self.slices(slab)
    return self._read(self._levels[0], (slices, *map(range, self.shape[1:])))

  def _read(self, array: ts.TensorStore, spans: Sequence[range]) -> np.ndarray:
    box = tuple(slice(span.start, span.stop) for span in spans)
    with chunk_store.refusing(self.path, 'cannot be read', _REMEDY):
      return array[box].read().result()

  def _write(
    self, array: ts.TensorStore, spans: Sequence[range], values: np.ndarray
  ) -> None:
    box = tuple(slice(span.start, span.stop) for span in spans)
    with chunk_store.refusing(self.path, 'cannot be written'):
      # Each file is written once.
      transaction = ts.Transaction()
      array.with_transaction(transaction)[box].write(
        values, can_reference_source_data_indefinitely=True
      ).result()
      transaction.commit_async().result()

  def write_coarser(self, slab: int) -> None:
    """Writes the other levels of a slab whose finest one is written.

    A pixel is the mean of those in its place one level finer; of labels, it is
    the first one.
    """
    for level in range(1, len(self._levels)):
      for block in self.blocks(level):
        if not self.is_written(slab, block, level):
          self.write(slab, block, self._coarser(slab, block, level), level)

  def _coarser(
    self, slab: int, block: tuple[range, range], level: int
  ) -> np.ndarray:
    rows, columns = block
    slices, finer = self.slices(slab), self._levels[level - 1]
    shape = (len(slices), len(rows), len(columns), *(3,) * self._colours)
    found = np.empty(shape, self.dtype)
    bottom, right = (
      min(2 * span.stop, side)
      for span, side in zip(block, finer.shape[-2:], strict=True)
    )
    for first in range(rows.start, rows.stop, CHUNK):
      last = min(first + CHUNK, rows.stop)
      spans = [
        slices,
        range(2 * first, min(2 * last, bottom)),
        range(2 * columns.start, right),
      ]
      if self._colours:
        spans.insert(self._channel, range(3))
      fine = self._read(finer, spans)
      if self._colours:
        fine = np.moveaxis(fine, self._channel, -1)
      where = slice(first - rows.start, last - rows.start)
      if self.dtype == np.uint32:
        found[:, where] = fine[:, ::2, ::2]
        continue
      odd = [(0, 0), *((0, n % 2) for n in fine.shape[1:3]), (0, 0)]
      fine = np.pad(fine.astype(np.float32), odd[: fine.ndim], 'edge')
      upper = fine[:, ::2, ::2] + fine[:, ::2, 1::2]
      lower = fine[:, 1::2, ::2] + fine[:, 1::2, 1::2]
      mean = (upper + lower) / np.float32(4)
      found[:, where] = np.rint(mean) if self._colours else mean
    return found

  def remove_draft(self) -> None:
    """Removes the labels that are linked now."""
    shutil.rmtree(self.path / _DRAFT, ignore_errors=True)

  def read_statistics(self, slices: range) -> np.ndarray:
    """Those that are kept, `[slices, 2]` float32; NaN: not yet."""
    assert self._statistics is not None
    what = f'cannot be read at {_STATISTICS}'
    with chunk_store.refusing(self.path, what, _REMEDY):
      part = self._statistics[slices.start : slices.stop]
      return part.read().result()

  def write_statistics(self, slab: int, values: np.ndarray) -> None:
    """Keeps those of a slab, `[slices, 2]` float32."""
    assert self._statistics is not None
    self._write(self._statistics, (self.slices(slab), range(2)), values)
