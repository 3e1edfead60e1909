"""Border thinning: regions grow until one-pixel borders separate them.

The challenge thins the borders of a segmentation before it scores it, so that
the width of a membrane does not matter. The algorithm is the immersion of
Vincent and Soille 1991 on an image of two levels (inside 0, membrane 255),
4-connected. It breaks ties like the challenge's own program, which no library's
watershed does: the first order of the queue, column by column, is part of the
metric's definition. The order of a pixel's neighbours is not: it only reorders
pixels of equal parity, which are never adjacent.
"""

import numba
import numpy as np

from skipnet_jax import errors

# States of a pixel without a region; regions are numbered from 1 up.
_BORDER = 0
_MEMBRANE = -1
_QUEUED = -2
_INSIDE = -3
_FRAME = -4

# Positions in a slice, with a frame around it, are int32.
_MAX_POSITIONS = 2**31 - 1


@numba.njit(nogil=True, cache=True)
def _grow_regions(inside, state, queue):
  """Numbers the components of the inside in `state`; returns their count."""
  height, width = inside.shape
  # With a frame around the image, the loops need no test for its edge. The
  # layout is column by column, like the numbering and the queue.
  column = height + 2
  state[:] = _FRAME
  for y in range(height):
    for x in range(width):
      position = (x + 1) * column + y + 1
      state[position] = _INSIDE if inside[y, x] else _MEMBRANE
  offsets = (-column, -1, column, 1)
  regions = 0
  for x in range(width):
    for seed in range((x + 1) * column + 1, (x + 2) * column - 1):
      if state[seed] != _INSIDE:
        continue
      regions += 1
      state[seed] = regions
      queue[0] = seed
      waiting = 1
      while waiting:
        waiting -= 1
        position = queue[waiting]
        for offset in offsets:
          if state[position + offset] == _INSIDE:
            state[position + offset] = regions
            queue[waiting] = position + offset
            waiting += 1
  return regions


@numba.njit(nogil=True, cache=True)
def _label(inside, thin):
  """Numbers the regions and, if `thin`, grows them over the membrane."""
  height, width = inside.shape
  column = height + 2
  state = np.empty(column * (width + 2), np.int32)
  queue = np.empty(height * width, np.int32)
  regions = _grow_regions(inside, state, queue)

  if thin and regions:
    offsets = (-column, -1, column, 1)  # left, up, right, down
    queued = 0
    for x in range(width):
      for position in range((x + 1) * column + 1, (x + 2) * column - 1):
        if state[position] == _MEMBRANE:
          for offset in offsets:
            if state[position + offset] > _BORDER:
              state[position] = _QUEUED
              queue[queued] = position
              queued += 1
              break
    # A membrane pixel enters the queue only once, so the queue is long enough.
    flag = False
    head = 0
    while head < queued:
      position = queue[head]
      head += 1
      here = _QUEUED
      for offset in offsets:
        there = state[position + offset]
        if there > _BORDER:
          if here == _QUEUED or (here == _BORDER and flag):
            here = there
          elif here != _BORDER and here != there:
            here = _BORDER
            flag = False
        elif there == _BORDER:
          if here == _QUEUED:
            here = _BORDER
            flag = True
        elif there == _MEMBRANE:
          state[position + offset] = _QUEUED
          queue[queued] = position + offset
          queued += 1
      state[position] = here

  # The growth passes borders, so it reaches every membrane pixel if there is
  # any inside; otherwise the membrane is one region.
  unreached = 1 if thin else 0
  labels = np.empty((height, width), np.int32)
  for y in range(height):
    for x in range(width):
      here = state[(x + 1) * column + y + 1]
      labels[y, x] = here if here >= _BORDER else unreached
  return labels


def label_regions(inside: np.ndarray) -> np.ndarray:
  """Numbers the 4-connected components of the inside of one slice.

  Args:
    inside: [y, x] bool, True where there is no membrane.

  Returns:
    [y, x] int32: components from 1 up, in the order of a scan column by column;
    0 on the membrane.

  Raises:
    InputError: `inside` is not a two-dimensional bool array, or has no pixels
      or too many.
  """
  return _label(_checked(inside), False)


def thin_borders(inside: np.ndarray) -> np.ndarray:
  """Grows the regions of one slice until one-pixel borders separate them.

  Arganda-Carreras et al. 2015, the border thinning of both scores. Argument and
  errors are those of `label_regions`. Memory is linear in the pixels.

  Returns:
    [y, x] int32: regions numbered as by `label_regions`, 0 on the borders. A
    slice without any inside is one region.
  """
  return _label(_checked(inside), True)


def _checked(inside: np.ndarray) -> np.ndarray:
  inside = np.asarray(inside)
  if inside.dtype != np.bool_:
    raise errors.InputError(
      f'a slice to label has dtype {inside.dtype}, but must be bool with True '
      'inside: compare it with a threshold first, as in prediction > 0.5.'
    )
  if inside.ndim != 2:
    raise errors.InputError(
      f'a slice to label has shape {inside.shape}, but must be [y, x]: give '
      'one slice of a stack at a time.'
    )
  height, width = inside.shape
  if inside.size == 0 or (height + 2) * (width + 2) > _MAX_POSITIONS:
    raise errors.InputError(
      f'a slice to label has shape {inside.shape}, but must have a pixel and '
      f'(y + 2) * (x + 2) of at most {_MAX_POSITIONS}: cut it into tiles.'
    )
  # One layout and a writable array, so that Numba compiles only once.
  return np.array(inside, order='C')
