"""Batches as a pure function of (seed, step), made on the device.

The data set lies on the device in its own integer type and a step moves no
image from the host. One that is too large stays on the host: the same plan then
says what `HostFeed` reads ahead in the background.
"""

from collections.abc import Callable, Iterator
import dataclasses
import queue
import threading
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import ml_collections
import numpy as np

from skipnet_jax import errors
from skipnet_jax import streams
from skipnet_jax.data import augment
from skipnet_jax.data import sources
from skipnet_jax.data import volume

Array = jax.Array
Arrays = dict[str, Any]

# What a batch may have beside image, label and mask.
_WEIGHT = ('weight',)


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
    slices: slices that an example's image consists of.
    widen: pixels by which the membranes of training labels grow.
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

  @property
  def steps_per_epoch(self) -> int:
    """Batches in an epoch; every slice is seen once."""
    return len(self.train) // self.batch_size

  def plan(self, key: Array, step: Array | int) -> Arrays:
    """What the batch of a step holds: a pure function of (key, step).

    Returns:
      index `[b]` int32 (slice), offset `[b, 2]` int32 (corner of the window, in
      pixels), key `[b]` (of each example's augmentation).
    """
    per_epoch = self.steps_per_epoch
    order = jax.random.permutation(
      streams.key_at(key, 'order', step // per_epoch),
      jnp.asarray(self.train, jnp.int32),
    )
    first = (step % per_epoch) * self.batch_size
    index = lax.dynamic_slice(order, (first,), (self.batch_size,))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
      streams.key_at(key, 'augment', step), jnp.arange(self.batch_size)
    )
    keys = jax.vmap(jax.random.split)(keys)
    room = jnp.asarray(self.size, jnp.int32) - jnp.asarray(
      self.window, jnp.int32
    )
    offset = jax.vmap(lambda k: jax.random.randint(k, (2,), 0, room + 1))(
      keys[:, 0]
    )
    return {'index': index, 'offset': offset, 'key': keys[:, 1]}

  def read(self, data: Arrays, plan: Arrays) -> Arrays:
    """Cuts a plan's windows out of the data set on the device.

    Returns:
      image `[b, slices, y, x]` and label `[b, y, x]` in the data set's dtype,
      mean and std `[b, slices]`; weight `[b, y, x]` where the data set has one.
    """

    def one(stack, i, offset):
      return lax.dynamic_slice(stack, (i, *offset), (1, *self.window))[0]

    cut = jax.vmap(one, (None, 0, 0))
    several = jax.vmap(cut, (None, 1, None), 1)
    index, around = plan['index'], self._around(plan)

    def read(name, stack):
      if name in ('mean', 'std'):
        return stack[around]
      if name == 'image':
        return several(stack, around, plan['offset'])
      return cut(stack, index, plan['offset'])

    return {name: read(name, stack) for name, stack in data.items()}

  def read_host(self, arrays: Arrays, plan: Arrays) -> Arrays:
    """`read` in numpy: touches only the pixels it returns."""
    index, around = np.asarray(plan['index']), self._around(plan)
    height, width = self.window
    windows = [
      (slice(y, y + height), slice(x, x + width))
      for y, x in np.asarray(plan['offset'])
    ]

    def read(name, stack):
      if name in ('mean', 'std'):
        return stack[around]
      if name == 'image':
        # One slice after the other: of a file, no others are read.
        pairs = zip(around, windows, strict=True)
        return np.stack([np.stack([stack[i, *w] for i in r]) for r, w in pairs])
      pairs = zip(index, windows, strict=True)
      return np.stack([stack[i, *where] for i, where in pairs])

    return {name: read(name, stack) for name, stack in arrays.items()}

  def _around(self, plan: Arrays) -> Array:
    index = plan['index']
    return sources.neighbours(index, self.count, self.slices)

  def train_batch(self, raw: Arrays, keys: Array) -> Arrays:
    """Normalises and augments: a `Batch` with a mask of ones."""
    weight = [raw[name] for name in _WEIGHT if name in raw]
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
    return {
      'image': jnp.moveaxis(image, 1, -1),
      'label': label[..., None],
      'mask': jnp.ones((*label.shape, 1), jnp.float32),
      **{name: w[..., None] for name, w in zip(_WEIGHT, weight, strict=False)},
    }

  def eval_plans(self, batch_size: int) -> list[Arrays]:
    """Windows that cover the validation slices once, as plans of equal size.

    Returns:
      Plans with index, offset and `seen` `[b, 2]` int32: pixels above or left
      of it were counted before (padding examples have seen nothing left).
    """
    corners = []
    for i in self.valid:
      for y, seen_y in _cover(self.size[0], self.window[0]):
        for x, seen_x in _cover(self.size[1], self.window[1]):
          corners.append((i, y, x, seen_y, seen_x))
    padding = -len(corners) % batch_size
    corners += [(*corners[0][:3], *self.window)] * padding
    table = np.asarray(corners, np.int32).reshape(-1, batch_size, 5)
    return [
      {'index': t[:, 0], 'offset': t[:, 1:3], 'seen': t[:, 3:]} for t in table
    ]

  def eval_batch(self, raw: Arrays, seen: Array) -> Arrays:
    """Normalises, no augmentation: a `Batch` whose mask is 0 where seen."""
    y, x = (jnp.arange(s) for s in self.window)
    mask = (y[None, :, None] >= seen[:, :1, None]) & (
      x[None, None, :] >= seen[:, 1:, None]
    )
    return {
      'image': jnp.moveaxis(_normalise(raw), 1, -1),
      'label': raw['label'][..., None].astype(jnp.float32),
      'mask': mask[..., None].astype(jnp.float32),
      **{name: raw[name][..., None] for name in _WEIGHT if name in raw},
    }


def _normalise(raw: Arrays) -> Array:
  image = raw['image'].astype(jnp.float32)
  return (image - raw['mean'][..., None, None]) / raw['std'][..., None, None]


def _cover(size: int, window: int) -> list[tuple[int, int]]:
  starts = [*range(0, size - window, window), size - window]
  ends = [0, *(s + window for s in starts[:-1])]
  return [(s, max(0, e - s)) for s, e in zip(starts, ends, strict=True)]


def make_pipeline(
  config: ml_collections.ConfigDict, data: sources.DataSet, num_shards: int
) -> Pipeline:
  """Checks that sizes and counts fit, and makes the pipeline.

  Args:
    config: a whole config.
    data: the data set.
    num_shards: devices that a batch is divided among.

  Raises:
    InputError: a crop larger than the slices, a batch size that does not divide
      the training slices or is not divided by the devices, more slices of an
      example than the stack has.
  """
  size, crop = data.image.shape[1:], config.data.crop
  if crop > min(size):
    raise errors.InputError(
      f'data.crop is {crop}, but the slices are {size[0]}x{size[1]}: give at '
      f'most {min(size)}.'
    )
  slices = config.model.get('slices', 1)
  if slices > len(data.image):
    raise errors.InputError(
      f'model.slices is {slices}, but the stack has {len(data.image)} slices: '
      'give an odd number of at most that, or a larger stack.'
    )
  count, batch = len(data.train), config.train.batch_size
  fitting = [
    b for b in range(1, count + 1) if count % b == 0 and b % num_shards == 0
  ]
  if batch not in fitting:
    remedy = (
      f'give one of {", ".join(map(str, fitting))}.'
      if fitting
      else 'no batch size does both: use fewer devices (parallel.devices), or '
      f'a number of slices that {num_shards} divides (data.train).'
    )
    raise errors.InputError(
      f'train.batch_size is {batch}; it must divide the {count} training '
      f'slices and be divisible by the {num_shards} device(s): {remedy}'
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
  )


def batch_shapes(
  config: ml_collections.ConfigDict, window: tuple[int, int], size: int
) -> dict[str, tuple[int, ...]]:
  """Shape of each float32 array of `Pipeline.train_batch`, without any data.

  Args:
    config: a whole config.
    window: sides y and x of an example, in pixels.
    size: examples in the batch.
  """
  slices = config.model.get('slices', 1)
  names = ('label', 'mask', *(_WEIGHT if config.data.border_weight else ()))
  return {
    'image': (size, *window, slices),
    **dict.fromkeys(names, (size, *window, 1)),
  }


def statistics(image: np.ndarray) -> Arrays:
  """Mean and standard deviation of each slice, `[z]` float32.

  They make uint8, uint16 and float32 stacks the same input up to rounding.

  Raises:
    InputError: NaN or infinite pixels.
  """
  table = []
  for z, page in enumerate(image):
    volume.check_finite(page, 'the image stack', z)
    mean, std = page.mean(dtype=np.float64), page.std(dtype=np.float64)
    # An empty slice has nothing to scale: it becomes zeros.
    table.append((mean, std or 1.0))
  mean, std = np.asarray(table, np.float32).T
  return {'mean': mean, 'std': std}


def host_arrays(data: sources.DataSet) -> Arrays:
  """The data set as `Pipeline.read` takes it, still on the host."""
  arrays = {
    'image': data.image,
    'label': data.label.view(np.uint8),
    **statistics(data.image),
  }
  return arrays if data.weight is None else arrays | {'weight': data.weight}


class HostFeed:
  """Reads the windows of coming steps in a background thread.

  Args:
    read: makes what the compiled call takes for a step, off the device.
    first: the first step.
    ahead: how many steps are read in advance.
  """

  def __init__(self, read: Callable[[int], Any], first: int, ahead: int = 2):
    self._queue: queue.Queue = queue.Queue(ahead)
    self._stop = threading.Event()
    self._thread = threading.Thread(
      target=self._work, args=(read, first), daemon=True
    )
    self._thread.start()

  def _work(self, read: Callable[[int], Any], step: int) -> None:
    while not self._stop.is_set():
      item: tuple[Any, Exception | None]
      try:
        item = (read(step), None)
      except Exception as e:  # Handed to the reader's thread, raised there.
        item = (None, e)
      while not self._stop.is_set():
        try:
          self._queue.put(item, timeout=0.1)
          break
        except queue.Full:
          continue
      step += 1

  def __iter__(self) -> Iterator[Any]:
    while True:
      item, error = self._queue.get()
      if error is not None:
        raise error
      yield item

  def close(self) -> None:
    """Stops the thread."""
    self._stop.set()
    self._thread.join()
