"""What every network has: fields, sides and one contract of its call."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import ClassVar, Required, TypedDict

import flax.linen as nn
import jax

from skipnet_jax import errors


class Outputs(TypedDict, total=False):
  """What a network makes of an image, see `Network.__call__`."""

  logits: Required[jax.Array]
  auxiliary: dict[str, jax.Array]
  normalised: jax.Array
  judged: dict[str, jax.Array]


class Network(nn.Module, kw_only=True):
  """Maps an image to the prediction of its pixels; abstract.

  A subclass has a compact `__call__`. Its dataclass fields are the fields of
  config.model, so that each has a default. It sets those of the following that
  differ, as a class attribute or, to be configured, as a field of that name:

    size_multiple: what both sides of an image must be multiples of.
    slices: neighbouring slices that an image consists of, as channels; odd, the
      one in the middle is predicted.
    dropout: rate; where it is 0, there is nothing to sample.
    scan: whether equal layers are one scan, see `unrolled`.
    adversarial: whether a training step gives the call the labels too.
    normalises: whether the outputs have an image of their own, `normalised`.
    least: the least value of fields, by name.

  Attributes:
    dtype: 'float32' or 'bfloat16', for compute; the outputs are float32.
    axis_name: mapped axis of a pmapped call, or None.
  """

  dtype: str = 'float32'
  axis_name: str | None = None
  size_multiple = 1
  slices = 1
  dropout = 0.0
  scan = False
  adversarial = False
  normalises = False
  least: ClassVar[Mapping[str, float]] = {}

  def __call__(
    self, image: jax.Array, train: bool, sample: bool = False
  ) -> Outputs:
    """Logits of the probability that a pixel is inside a cell.

    Args:
      image: `[b, y, x, slices]` float32, normalised; y and x as `check_size`
        wants them. No parameter's shape depends on them.
      train: batch statistics and dropout if True.
      sample: dropout without batch statistics, as at the paper's test time.

    An adversarial network's call has a last argument, `label`:
    `[b, y, x, 1]` float32, 1 inside a cell; None when it only predicts.

    Returns:
      `{'logits': [b, y, x, 1] float32}`, of the slice in the middle. There may
      be `auxiliary`, `{name: the same}`, whose losses are added in training;
      `normalised`, the same, of a network that normalises; and with labels
      `judged`, see `addn.ADDN`.

    Raises:
      InputError: sides that do not fit.
    """
    raise NotImplementedError('Network is abstract: subclass it.')

  def check(self) -> None:
    """Raises InputError for a setting that no network can be built from."""
    if self.dtype not in ('float32', 'bfloat16'):
      raise errors.InputError(
        f'model.dtype is {self.dtype!r}; it must be float32 or bfloat16.'
      )
    if not 0 <= self.dropout < 1:
      raise errors.InputError(
        f'model.dropout is {self.dropout}; it must be at least 0 and below 1.'
      )
    if self.slices < 1 or self.slices % 2 == 0:
      raise errors.InputError(
        f'model.slices is {self.slices}; it must be odd, for there to be a '
        'slice in the middle.'
      )
    for name, number in self.least.items():
      value = getattr(self, name)
      if value < number:
        raise errors.InputError(
          f'model.{name} is {value}; it must be at least {number}.'
        )

  def check_size(self, size: Sequence[int]) -> None:
    """Raises InputError unless both sides (y, x) fit `size_multiple`."""
    multiple = self.size_multiple
    if any(side % multiple or side < multiple for side in size):
      near = [max(1, round(side / multiple)) * multiple for side in size]
      raise errors.InputError(
        f'The image is {size[0]}x{size[1]}; both sides must be multiples of '
        f'{multiple}, the nearest is {near[0]}x{near[1]}: set data.crop '
        'or data.size to such a side.'
      )

  def least_sides(self) -> tuple[int, int]:
    """Sides of the image that the network is initialised with: 64, or more."""
    return (-(-64 // self.size_multiple) * self.size_multiple,) * 2

  def input_shape(
    self, window: Sequence[int], batch: int = 1
  ) -> tuple[int, ...]:
    """Shape of an image: the slices are its channels."""
    return (batch, *window, self.slices)

  def unrolled(self) -> 'Network':
    """The network without scans: the layers have the names that reports show.

    Its variables are those of `fc_resnet.unroll`.
    """
    return self.clone(scan=False) if self.scan else self


def fields(kind: type[Network]) -> list[dataclasses.Field]:
  """The fields of a network that config.model has."""
  no_settings = ('parent', 'name', 'axis_name')
  return [f for f in dataclasses.fields(kind) if f.name not in no_settings]
