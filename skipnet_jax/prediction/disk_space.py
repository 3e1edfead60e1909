"""Compares what a prediction will write with the free space of its disk."""

from collections.abc import Callable, Iterator, Mapping
import os
import pathlib
import shutil

from skipnet_jax import errors

_GB = 10**9
# What blosc leaves of the probabilities of a network; of empty tissue, less.
_USUAL_SHARE = 0.7
# No volume with some tissue is compressed to less.
_LEAST_SHARE = 0.01


def check_files(sizes: Mapping[pathlib.Path, int]) -> None:
  """Refuses files, of so many bytes, that cannot all fit their disks.

  Raises:
    InputError: a disk has less space.
  """
  # A missing folder is refused when its file is opened.
  known = {p: size for p, size in sizes.items() if p.absolute().parent.is_dir()}
  for folder, size, free in _on_disks(known):
    if size > free:
      raise errors.InputError(
        f'the disk of {folder} has {free / _GB:.3g} GB free, but the outputs '
        f'need {size / _GB:.3g} GB: free some space, choose another folder, or '
        'name the outputs NAME.zarr, which are compressed.'
      )


def _on_disks(
  sizes: Mapping[pathlib.Path, int],
) -> Iterator[tuple[pathlib.Path, int, int]]:
  """A folder of each disk, the bytes wanted there, and those that are free."""
  disks: dict[int, tuple[pathlib.Path, int]] = {}
  for path, size in sizes.items():
    folder = path.absolute().parent
    device = os.stat(folder).st_dev
    first, before = disks.get(device, (folder, 0))
    disks[device] = first, before + size
  for folder, size in disks.values():
    yield folder, size, shutil.disk_usage(folder).free


def check(
  missing: Mapping[pathlib.Path, int], log: Callable[[str], None]
) -> None:
  """Refuses what cannot fit the disk, and warns where it may not fit.

  Args:
    missing: bytes before compression that each output will still have.
    log: called with a warning.

  Raises:
    InputError: not even a hundredth of it fits.
  """
  for folder, size, free in _on_disks(missing):
    if size * _USUAL_SHARE <= free:
      continue
    text = (
      f'the disk of {folder} has {free / _GB:.3g} GB free, but the outputs '
      f'need about {size * _USUAL_SHARE / _GB:.3g} GB ({size / _GB:.3g} GB '
      'before compression)'
    )
    if size * _LEAST_SHARE > free:
      raise errors.InputError(
        f'{text}: free some space, or choose another folder.'
      )
    log(
      f'Warning: {text}. If it becomes full, free some space and give the '
      'command again.'
    )
