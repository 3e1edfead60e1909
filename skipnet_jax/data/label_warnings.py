"""What looks wrong in labels that can be used, in sentences for the user."""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.ndimage

from skipnet_jax.data import labels
from skipnet_jax.data import volume

# Sides of the part of a slice in which `looks_inverted` counts regions.
_PART = 512


def undrawn_sentence(
  inside: volume.Stack, groups: Mapping[str, Sequence[int]], name: str
) -> str:
  """Names the slices without a membrane, or without a cell; '' for none.

  Args:
    inside: `[z, y, x]` bool, True inside a cell.
    groups: what a group of slices is called to its slices.
    name: of the labels.
  """
  parts = []
  for what, empty in (
    ('membrane', lambda page: page.all()),
    ('cell', lambda page: not page.any()),
  ):
    found = {
      group: [z for z in slices if empty(inside[z])]
      for group, slices in groups.items()
    }
    places = ' and '.join(
      f'{group} {labels.ranges(slices)}'
      for group, slices in found.items()
      if slices
    )
    if places:
      parts.append(f'no {what} in {places}')
  if not parts:
    return ''
  return (
    f'{name} has {" and ".join(parts)} (counted from 0), so scores leave '
    'these slices out'
  )


def single_sentence(
  inside: volume.Stack, slices: Sequence[int], name: str
) -> str:
  """Names the slices with one cell, whose V_info is always 0; '' for none.

  Args:
    inside: `[z, y, x]` bool, True inside a cell.
    slices: to look at; each is drawn.
    name: of the labels.
  """
  found = [z for z in slices if scipy.ndimage.label(inside[z])[1] == 1]
  if not found:
    return ''
  return (
    f'{name} has a single cell in slices {labels.ranges(found)} (counted from '
    '0), whose V_info is 0 whatever the prediction'
  )


def looks_inverted(inside: np.ndarray) -> bool:
  """Whether cells and membranes seem to be mistaken for each other.

  That is, if less than half of a slice is inside, and that part is in far fewer
  pieces than the rest: lines around cells, not cells on a background.

  Args:
    inside: `[y, x]` bool, True inside a cell.
  """
  if 2 * np.count_nonzero(inside) >= inside.size:
    return False
  top, left = (max(0, (side - _PART) // 2) for side in inside.shape)
  part = inside[top : top + _PART, left : left + _PART]
  # Lines one pixel wide are connected over corners, and what they part is not.
  _, lines = scipy.ndimage.label(part, np.ones((3, 3)))
  _, rest = scipy.ndimage.label(~part)
  return lines > 0 and rest > 2 * lines


def inverted_sentence(
  inside: volume.Stack,
  slices: Sequence[int],
  name: str,
  meaning: labels.Meaning,
) -> str:
  """Warns of labels, or of some slices, that look inverted; '' for none.

  Args:
    inside: `[z, y, x]` bool, True inside a cell.
    slices: to look at.
    name: of the labels.
    meaning: by which they were read.
  """
  if meaning.kind == 'instances':
    return ''
  drawn = [z for z in slices if labels.is_drawn(inside[z])]
  odd = [z for z in drawn if looks_inverted(inside[z])]
  if not odd:
    return ''
  share = np.mean([inside[z].mean() for z in odd])
  if 2 * len(odd) < len(drawn):
    return (
      f'{name} looks inverted in slices {labels.ranges(odd)} (counted from 0), '
      f'unlike the others: only {share:.0%} of their pixels are inside cells, '
      'in lines around the rest; correct these slices'
    )
  smaller = 'smaller' if meaning.inverted else 'larger'
  return (
    f'{name} looks inverted: only {share:.0%} of its pixels have the {smaller} '
    'value, which means inside cells, and these are lines around the rest; if '
    'that value is the membrane, set '
    f'{meaning.inverted_option}={not meaning.inverted}'
  )
