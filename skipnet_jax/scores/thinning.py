"""Border thinning: regions grown over the membrane until one-pixel dams remain.

The challenge thins the borders of a proposal before it scores it, so that a
membrane's width costs nothing and only what it keeps apart counts. The flood
is the immersion algorithm of Vincent and Soille 1991 on an image of two levels
(inside 0, membrane 255), 4-connected. Ties are broken as the challenge's own
program breaks them, which no library's watershed does: the queue's first order,
column by column, is part of the metric's definition. The order of a pixel's
neighbours is not: it only reorders pixels of equal parity, never adjacent.
"""

import numba
import numpy as np

from skipnet_jax import errors

# What a pixel is before it has a region; regions count from 1 up.
_DAM = 0
_MEMBRANE = -1
_QUEUED = -2
_INSIDE = -3
_FRAME = -4

# Positions in a slice with a frame around it are int32.
_MAX_POSITIONS = 2**31 - 1


@numba.njit(nogil=True, cache=True)
def _grow_regions(inside, state, queue):
  """Numbers the components of the inside in `state`; returns their count."""
  height, width = inside.shape
  # A frame around the image spares the loops every test for its edge. The
  # layout is column by column, as the numbering and the queue go that way.
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
  """Numbers the regions and, where `thin`, floods the membrane with them."""
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
            if state[position + offset] > _DAM:
              state[position] = _QUEUED
              queue[queued] = position
              queued += 1
              break
    # A membrane pixel enters the queue once, so it never wraps around.
    flag = False
    head = 0
    while head < queued:
      position = queue[head]
      head += 1
      here = _QUEUED
      for offset in offsets:
        there = state[position + offset]
        if there > _DAM:
          if here == _QUEUED or (here == _DAM and flag):
            here = there
          elif here != _DAM and here != there:
            here = _DAM
            flag = False
        elif there == _DAM:
          if here == _QUEUED:
            here = _DAM
            flag = True
        elif there == _MEMBRANE:
          state[position + offset] = _QUEUED
          queue[queued] = position + offset
          queued += 1
      state[position] = here

  # The flood passes dams, so it reaches every membrane pixel as soon as there
  # is any inside; without any, the membrane is one region.
  unreached = 1 if thin else 0
  labels = np.empty((height, width), np.int32)
  for y in range(height):
    for x in range(width):
      here = state[(x + 1) * column + y + 1]
      labels[y, x] = here if here >= _DAM else unreached
  return labels


def label_regions(inside: np.ndarray) -> np.ndarray:
  """Numbers the 4-connected components of the inside of one slice.

  Args:
    inside: [y, x] bool, True where there is no membrane.

  Returns:
    [y, x] int32: components from 1 up, in the order in which a scan column by
    column meets them; 0 on the membrane.

  Raises:
    InputError: `inside` is not a two-dimensional bool array, or has no pixels
      or too many.
  """
  return _label(_checked(inside), False)


def thin_borders(inside: np.ndarray) -> np.ndarray:
  """Grows the regions of one slice until one-pixel dams part them.

  A slice without any inside is one region. Memory is linear in the pixels.
  Arganda-Carreras et al. 2015, the border thinning of both scores.

  Args:
    inside: [y, x] bool, True where there is no membrane.

  Returns:
    [y, x] int32: regions numbered as by `label_regions`, 0 on the dams.

  Raises:
    InputError: `inside` is not a two-dimensional bool array, or has no pixels
      or too many.
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
  # One layout and no read-only arrays, so that one compilation serves all.
  return np.array(inside, order='C')
