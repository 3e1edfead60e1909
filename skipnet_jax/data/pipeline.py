"""Makes batches on the device, as a pure function of (seed, step).

The data set is on the device in its own integer type, so that a step copies no
image from the host. If it is too large, it stays on the host, and `read_ahead`
reads the windows of the same plan in the background.
"""

import collections
from collections.abc import Callable, Generator
from concurrent import futures
import dataclasses
import itertools
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import ml_collections
import numpy as np

from skipnet_jax import errors
from skipnet_jax import streams
from skipnet_jax.data import augment
from skipnet_jax.data import data_set
from skipnet_jax.data import normalisation

Array = jax.Array
Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """How the batches of a data set are made.

  Attributes:
    train: slices for training.
    valid: slices for validation.
    size: sides y and x of a slice.
    window: sides y and x of an example.
    batch_size: examples in a batch, over all devices.
    settings: strength of the augmentation.
    count: slices of the stack.
    slices: slices in the image of an example.
    widen: pixels by which membranes are widened in training labels.
    epoch_steps: batches in an epoch; 0: as many as the training slices fill.
  """

  train: tuple[int, ...]
  valid: tuple[int, ...]
  size: tuple[int, int]
  window: tuple[int, int]
  batch_size: int
  settings: augment.Settings
  count: int
  slices: int = 1
  widen: int = 0
  epoch_steps: int = 0

  @property
  def steps_per_epoch(self) -> int:
    """Number of batches in an epoch."""
    return self.epoch_steps or one_pass(len(self.train), self.batch_size)

  def plan(self, key: Array, step: Array | int) -> Arrays:
    """Draws the contents of a step's batch: a pure function of (key, step).

    Returns:
      index `[b]` int32 (slice), offset `[b, 2]` int32 (corner of the window, in
      pixels), key `[b]` (of each example's augmentation).
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
      streams.key_at(key, 'augment', step), jnp.arange(self.batch_size)
    )
    keys = jax.vmap(jax.random.split)(keys)
    size, window = (jnp.asarray(s, jnp.int32) for s in (self.size, self.window))
    room = size - window
    offset = jax.vmap(lambda k: jax.random.randint(k, (2,), 0, room + 1))(
      keys[:, 0]
    )
    index = self._index(key, step)
    return {'index': index, 'offset': offset, 'key': keys[:, 1]}

  def _index(self, key: Array, step: Array | int) -> Array:
    """The slices of a step's batch, `[b]` int32.

    A run goes through one random permutation of the training slices after the
    other. The batch has those from position `step * batch_size` on; it may
    contain the end of a permutation and the start of the next, or more.
    """
    count, size = len(self.train), self.batch_size
    common = math.gcd(count, size)
    # After so many steps, a batch starts with a permutation again. Their
    # positions are divided here, as `step * batch_size` may overflow int32.
    period = count // common
    numbers, starts = np.divmod(np.arange(period, dtype=np.int64) * size, count)
    at = step % period
    number = step // period * (size // common)
    number += jnp.asarray(numbers, jnp.int32)[at]
    start = jnp.asarray(starts, jnp.int32)[at]
    # Of the batch that starts latest; 1 if the batch size divides the slices.
    needed = -(-(count - common + size) // count)
    train = jnp.asarray(self.train, jnp.int32)
    orders = jax.vmap(
      lambda n: jax.random.permutation(streams.key_at(key, 'order', n), train)
    )(number + jnp.arange(needed, dtype=jnp.int32))
    return lax.dynamic_slice(orders.ravel(), (start,), (size,))

  def read(self, data: Arrays, plan: Arrays) -> Arrays:
    """Cuts a plan's windows out of the data set on the device.

    Returns:
      image `[b, slices, y, x]` and label `[b, y, x]` in the data set's dtype,
      mean and std `[b, slices]`; weight `[b, y, x]` where the data set has one.
    """

    def one(stack, i, offset):
      return lax.dynamic_slice(stack, (i, *offset), (1, *self.window))[0]

    cut = jax.vmap(one, (None, 0, 0))
    return self._read(data, plan, cut, jax.vmap(cut, (None, 1, None), 1))

  def read_host(self, arrays: Arrays, plan: Arrays) -> Arrays:
    """`read` in numpy; reads only the pixels that it returns."""
    plan = {name: np.asarray(plan[name]) for name in ('index', 'offset')}
    height, width = self.window

    def cut(stack, index, offsets):
      # A window at a time: a stack on the disk is read nowhere else.
      return np.stack(
        [
          stack[i, y : y + height, x : x + width]
          for i, (y, x) in zip(index, offsets, strict=True)
        ]
      )

    def cut_several(stack, around, offsets):
      return np.stack([cut(stack, index, offsets) for index in around.T], 1)

    return self._read(arrays, plan, cut, cut_several)

  def _read(self, arrays: Arrays, plan: Arrays, cut, cut_several) -> Arrays:
    index, offset = plan['index'], plan['offset']
    around = data_set.neighbours(index, self.count, self.slices)

    def read(name, stack):
      if name in ('mean', 'std'):
        return stack[around]
      if name == 'image':
        return cut_several(stack, around, offset)
      return cut(stack, index, offset)

    return {name: read(name, stack) for name, stack in arrays.items()}

  def train_batch(self, raw: Arrays, keys: Array) -> Arrays:
    """Normalises and augments: a `Batch` with a mask of ones."""
    weight = [raw['weight']] if 'weight' in raw else []
    image, label, *weight = jax.vmap(
      lambda key, image, label, *weight: augment.transform(
        key, image, label, self.settings, *weight
      )
    )(keys, _normalise(raw), raw['label'].astype(jnp.float32), *weight)
    if self.widen:
      side = 2 * self.widen + 1
      label = lax.reduce_window(
        label, jnp.inf, lax.min, (1, side, side), (1, 1, 1), 'SAME'
      )
    batch = {
      'image': jnp.moveaxis(image, 1, -1),
      'label': label[..., None],
      'mask': jnp.ones((*label.shape, 1), jnp.float32),
    }
    if weight:
      batch['weight'] = weight[0][..., None]
    return batch

  def eval_plans(self, batch_size: int) -> list[Arrays]:
    """Windows that cover the validation slices once, as plans of equal size.

    Returns:
      Plans with index, offset and `seen` `[b, 2]` int32: pixels of a window
      above or left of it are in an earlier window. In the examples that fill
      the last plan, these are all pixels.
    """
    rows, columns = map(_cover, self.size, self.window)
    windows = [
      (i, y, x, seen_y, seen_x)
      for i in self.valid
      for y, seen_y in rows
      for x, seen_x in columns
    ]
    padding = -len(windows) % batch_size
    windows += [(*windows[0][:3], *self.window)] * padding
    table = np.asarray(windows, np.int32).reshape(-1, batch_size, 5)
    return [
      {'index': t[:, 0], 'offset': t[:, 1:3], 'seen': t[:, 3:]} for t in table
    ]

  def eval_batch(self, raw: Arrays, seen: Array) -> Arrays:
    """Normalises without augmentation: a `Batch` whose mask is 0 where seen."""
    y, x = (jnp.arange(s) for s in self.window)
    mask = (y[None, :, None] >= seen[:, :1, None]) & (
      x[None, None, :] >= seen[:, 1:, None]
    )
    batch = {
      'image': jnp.moveaxis(_normalise(raw), 1, -1),
      'label': raw['label'][..., None].astype(jnp.float32),
      'mask': mask[..., None].astype(jnp.float32),
    }
    if 'weight' in raw:
      batch['weight'] = raw['weight'][..., None]
    return batch


def _normalise(raw: Arrays) -> Array:
  image = raw['image'].astype(jnp.float32)
  return (image - raw['mean'][..., None, None]) / raw['std'][..., None, None]


def _cover(size: int, window: int) -> list[tuple[int, int]]:
  """First pixel of each window along an axis, and of how many are covered."""
  starts = [*range(0, size - window, window), size - window]
  ends = [0, *(s + window for s in starts[:-1])]
  return [(s, max(0, e - s)) for s, e in zip(starts, ends, strict=True)]


def one_pass(slices: int, batch_size: int) -> int:
  """Number of batches that the slices fill, at least one.

  Slices that are left over come first in the next pass.
  """
  return max(1, slices // batch_size)


def make_pipeline(
  config: ml_collections.ConfigDict, data: data_set.DataSet, num_shards: int
) -> Pipeline:
  """Makes the pipeline, after checking sizes and counts for the devices.

  Raises:
    InputError: a crop larger than the slices, a batch that the devices do not
      divide, an example of more slices than the stack has, quarter turns of
      windows that are not square.
  """
  size, crop = data.image.shape[1:], config.data.crop
  if crop > min(size):
    raise errors.InputError(
      f'data.crop is {crop}, but the slices have {size[0]}x{size[1]} pixels: '
      f'give at most {min(size)}.'
    )
  slices = config.model.get('slices', 1)
  if slices > len(data.image):
    raise errors.InputError(
      f'model.slices is {slices}, but the stack has {len(data.image)} slices: '
      'give a smaller odd number, or a larger stack.'
    )
  batch = config.train.batch_size
  if over := batch % num_shards:
    nearest = [n for n in (batch - over, batch - over + num_shards) if n]
    raise errors.InputError(
      f'train.batch_size is {batch}, but it must be divided equally among the '
      f'{num_shards} devices: give {" or ".join(map(str, nearest))}.'
    )
  if config.data.augment.rot90 and not crop and size[0] != size[1]:
    raise errors.InputError(
      f'data.augment.rot90 is True, but the slices are {size[0]}x{size[1]}: '
      f'set data.crop to at most {min(size)}, or rot90 to False.'
    )
  return Pipeline(
    train=data.train,
    valid=data.valid,
    size=size,
    window=(crop, crop) if crop else size,
    batch_size=batch,
    settings=augment.Settings(**config.data.augment),
    count=len(data.image),
    slices=slices,
    widen=config.data.widen,
    epoch_steps=config.train.steps_per_epoch,
  )


def batch_shapes(
  config: ml_collections.ConfigDict, window: tuple[int, int], size: int
) -> dict[str, tuple[int, ...]]:
  """Shape of each float32 array of a `Pipeline.train_batch` of `size` examples.

  The window is an example's sides y and x, in pixels.
  """
  names = ['image', 'label', 'mask']
  if config.data.border_weight:
    names.append('weight')
  shapes: dict[str, tuple[int, ...]] = dict.fromkeys(names, (size, *window, 1))
  shapes['image'] = (size, *window, config.model.get('slices', 1))
  return shapes


def host_arrays(data: data_set.DataSet) -> Arrays:
  """The data set as `Pipeline.read` takes it, on the host.

  Raises:
    InputError: NaN or infinite pixels.
  """
  image, statistics = normalisation.prepare(data.image, data.normalise)
  label = data.label.view(np.uint8)
  arrays = {'image': image, 'label': label, **statistics}
  return arrays if data.weight is None else arrays | {'weight': data.weight}


def in_memory(arrays: Arrays) -> Arrays:
  """Reads from the disk what `host_arrays` left there."""
  return {name: np.asarray(array) for name, array in arrays.items()}


def read_ahead(
  read: Callable[[int], Any], first: int
) -> Generator[Any, None, None]:
  """Yields `read(step)` of each step from `first`, read in a background thread.

  The thread is three steps ahead. `close` of the generator stops it.
  """
  steps = itertools.count(first)
  with futures.ThreadPoolExecutor(1) as pool:
    pending = collections.deque(
      pool.submit(read, next(steps)) for _ in range(3)
    )
    try:
      while True:
        item = pending.popleft().result()
        pending.append(pool.submit(read, next(steps)))
        yield item
    finally:
      pool.shutdown(cancel_futures=True)
