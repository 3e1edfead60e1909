"""Which slices of a stack train, and which validate."""

from collections.abc import Sequence
import re

import numpy as np

from skipnet_jax import errors


def _parse_list(text: str, field: str, count: int) -> tuple[int, ...]:
  indices: list[int] = []
  for part in filter(None, (p.strip() for p in text.split(','))):
    match = re.fullmatch(r'(\d{1,9})(?:-(\d{1,9}))?', part)
    if not match:
      raise errors.InputError(
        f'{field} has {part!r}; give slices such as 0-11,14'
        + (', random:5 or fold:0/6.' if field == 'data.valid' else ' or rest.')
      )
    low, high = int(match[1]), int(match[2] or match[1])
    if high < low:
      raise errors.InputError(
        f'{field} has {part!r}: write the smaller number first, {high}-{low}.'
      )
    if high >= count:
      raise errors.InputError(
        f'{field} has {part!r}, but the stack has {count} slices, 0 to '
        f'{count - 1}.'
      )
    indices += range(low, high + 1)
  return tuple(dict.fromkeys(indices))


def split(
  train: str, valid: str, count: int, seed: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Slices for training and validation.

  Args:
    train: 'rest' or a list such as '0-11,14'.
    valid: a list, 'random:N' (by seed) or 'fold:K/N' (contiguous, K from 0).
    count: number of slices.
    seed: decides over 'random:N'.

  Raises:
    InputError: unreadable, empty or overlapping.
  """
  train, valid = train.strip(), valid.strip()
  drawn = re.fullmatch(r'random:(\d{1,9})', valid)
  fold = re.fullmatch(r'fold:(\d{1,9})/(\d{1,9})', valid)
  if drawn:
    if int(drawn[1]) >= count:
      raise errors.InputError(
        f'data.valid is {valid!r}, but the stack has {count} slices: leave '
        'some for training.'
      )
    order = np.random.default_rng(seed).permutation(count)
    held = tuple(sorted(int(i) for i in order[: int(drawn[1])]))
  elif fold:
    k, folds = int(fold[1]), int(fold[2])
    if not (k < folds and 2 <= folds <= count):
      raise errors.InputError(
        f'data.valid is {valid!r}; give fold:K/N with N from 2 to {count} (the '
        'slices) and K below N.'
      )
    held = tuple(int(i) for i in np.array_split(np.arange(count), folds)[k])
  else:
    held = _parse_list(valid, 'data.valid', count)
  if train == 'rest':
    rest: Sequence[int] = [i for i in range(count) if i not in held]
  else:
    rest = _parse_list(train, 'data.train', count)
  for field, slices in (('data.train', rest), ('data.valid', held)):
    if not slices:
      raise errors.InputError(
        f'{field} selects no slice of the {count}: name at least one.'
      )
  both = sorted(set(rest) & set(held))
  if both:
    raise errors.InputError(
      f'Slices {both} are in data.train and in data.valid: take them out of '
      'one.'
    )
  return tuple(rest), held
