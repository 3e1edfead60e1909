"""The base class of all networks: fields, image sizes and the call contract."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
from typing import Any, ClassVar, Required, TypedDict

import flax.linen as nn
import jax

from skipnet_jax import errors
from skipnet_jax.models import norms


class Outputs(TypedDict, total=False):
  """The outputs of a network, see `Network.__call__`."""

  logits: Required[jax.Array]
  auxiliary: dict[str, jax.Array]
  normalised: jax.Array
  judged: dict[str, jax.Array]


class Network(nn.Module, kw_only=True):
  """Maps an image to a prediction for each of its pixels; abstract.

  A subclass has a compact `__call__`. Its dataclass fields become the fields of
  config.model, so each needs a default. A subclass may override the following
  with a class attribute or, to make it configurable, with a field:

  - `size_multiple`: both sides of an image must be multiples of it.
  - `slices`: number of neighbouring slices in an image, as channels; odd. The
    network predicts the middle slice.
  - `dropout`: dropout rate; 0 means no dropout.
  - `scan`: whether repeated blocks run as one `nn.scan`, see `unrolled`.
  - `use_running_average`: whether a prediction uses the running statistics of
    BatchNorm, or those of each image alone; for calls with `normalising`.
  - `adversarial`: whether a training step also passes the labels to the call.
  - `normalises`: whether the outputs include `normalised`.
  - `minimum`: smallest allowed value of a field, by name.
  - `maximum`: largest allowed value of a field, by name; by default 65,535.
  - `choices`: allowed values of a field, by name.

  Attributes:
    dtype: compute dtype, 'float32' or 'bfloat16'; the outputs are float32.
    axis_name: mapped axis of a pmapped call, or None.
  """

  dtype: str = 'float32'
  axis_name: str | None = None
  size_multiple = 1
  slices = 1
  dropout = 0.0
  scan = False
  use_running_average = True
  adversarial = False
  normalises = False
  minimum: ClassVar[Mapping[str, float]] = {}
  maximum: ClassVar[Mapping[str, float]] = {}
  choices: ClassVar[Mapping[str, Sequence[Any]]] = {}

  def __call__(
    self, image: jax.Array, train: bool, sample: bool = False
  ) -> Outputs:
    """Predicts the logits of the probability that a pixel is inside a cell.

    Args:
      image: `[b, y, x, slices]` float32, normalised; y and x must pass
        `check_size`. No parameter's shape depends on them.
      train: whether to use batch statistics and dropout.
      sample: whether to use dropout with running statistics, as the paper does
        at test time.

    The call of an adversarial network has a last argument `label`,
    `[b, y, x, 1]` float32, 1 inside a cell; None for a prediction alone.

    Returns:
      `logits`, `[b, y, x, 1]` float32, of the middle slice. Optional outputs:
      `auxiliary`, a dict of more logits of this shape, whose losses are added
      in training; `normalised`, the image after a learned normalisation, of
      this shape; with labels `judged`, see `addn.ADDN`.

    Raises:
      InputError: y or x is not allowed.
    """
    raise NotImplementedError('Network is abstract: subclass it.')

  def check(self) -> None:
    """Raises InputError for a field value that the network does not allow."""
    choices = {'dtype': ('float32', 'bfloat16'), **self.choices}
    for name, allowed in choices.items():
      if getattr(self, name) not in allowed:
        *others, last = map(str, allowed)
        raise errors.InputError(
          f'model.{name} is {getattr(self, name)!r}; it must be '
          f'{", ".join(others)} or {last}.'
        )
    if not 0 <= self.dropout < 1:
      raise errors.InputError(
        f'model.dropout is {self.dropout}; it must be at least 0 and below 1.'
      )
    if self.slices < 1 or self.slices % 2 == 0:
      raise errors.InputError(
        f'model.slices is {self.slices}; it must be odd, so that there is a '
        'middle slice.'
      )
    for name, minimum in self.minimum.items():
      if getattr(self, name) < minimum:
        raise errors.InputError(
          f'model.{name} is {getattr(self, name)}; it must be at least '
          f'{minimum}.'
        )

    for field in fields(type(self)):
      value = getattr(self, field.name)
      maximum = self.maximum.get(field.name, 2**16 - 1)
      if isinstance(value, int) and value > maximum:
        raise errors.InputError(
          f'model.{field.name} is {value}; it must be at most {maximum}.'
        )

  def check_size(self, size: Sequence[int]) -> None:
    """Raises InputError unless y and x are multiples of `size_multiple`."""
    multiple = self.size_multiple
    if any(side % multiple or side < multiple for side in size):
      near = [max(1, round(side / multiple)) * multiple for side in size]
      raise errors.InputError(
        f'The image is {size[0]}x{size[1]}; both sides must be multiples of '
        f'{multiple}, the nearest is {near[0]}x{near[1]}: set data.crop '
        'or data.size to such a side.'
      )

  def init_size(self) -> tuple[int, int]:
    """Sides of the image used for initialisation: 64, or the next multiple."""
    return (-(-64 // self.size_multiple) * self.size_multiple,) * 2

  def input_shape(
    self, window: Sequence[int], batch: int = 1
  ) -> tuple[int, ...]:
    """The shape `(batch, y, x, slices)` of an image with the sides `window`."""
    return (batch, *window, self.slices)

  def unrolled(self) -> 'Network':
    """The network without scans, whose layers have the names in reports.

    `fc_resnet.unroll` converts the variables.
    """
    return self.clone(scan=False) if self.scan else self


def normalising(call: Callable[..., Outputs]) -> Callable[..., Outputs]:
  """Makes the `__call__` of a network obey its field `use_running_average`."""

  @functools.wraps(call)
  def obeying(
    self: Network, image: jax.Array, train: bool, *args: Any, **kwargs: Any
  ) -> Outputs:
    own = not (train or self.use_running_average)
    with norms.own_statistics() if own else contextlib.nullcontext():
      return call(self, image, train, *args, **kwargs)

  return obeying


def fields(kind: type[Network]) -> list[dataclasses.Field]:
  """The dataclass fields of a network that are fields of config.model."""
  no_settings = ('parent', 'name', 'axis_name')
  return [f for f in dataclasses.fields(kind) if f.name not in no_settings]
