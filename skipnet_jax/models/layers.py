"""Convolution, normalisation, dropout and resampling for all networks.

Activations are `[b, y, x, c]` in the compute dtype, parameters are float32, a
kernel is `[k, k, c_in, c_out]`. Modules share three attributes: `features` is
the number of output channels, `dtype` the compute dtype, and `axis_name` the
mapped axis of a pmapped call, or None.
"""

from collections.abc import Callable, Sequence
from typing import Any
import zlib

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

Dtype = Any


class Conv(nn.Module):
  """A convolution, by default with he_normal kernel and zero bias.

  A 1x1 convolution is a matrix product over the decimated input: the same
  numbers as a strided convolution, and faster on every backend.

  Attributes:
    kernel_size: side of the square kernel, in pixels.
    strides: decimation in y and x.
    upsampled: whether to convolve `upsample(x)`; only for 3x3 kernels, which
      then cost 4 products a pixel instead of 9.
    padding: 'SAME'; 'VALID': k - 1 pixels fewer in y and x; or the pixels
      before and after, in y and x.
    dilation: distance in pixels between the kernel's taps.
    normalised: see `make_bias`.
  """

  features: int
  kernel_size: int = 3
  strides: int = 1
  use_bias: bool = True
  kernel_init: Any = nn.initializers.he_normal()
  dtype: Dtype = jnp.float32
  upsampled: bool = False
  padding: str | Sequence[tuple[int, int]] = 'SAME'
  dilation: int = 1
  normalised: bool = False
  bias_init: Any = nn.initializers.zeros_init()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[b, y, x, c_in]` to `[b, y / strides, x / strides, features]`.

    With `upsampled`, to `[b, 2y, 2x, features]`.
    """
    k, s = self.kernel_size, self.strides
    kernel = self.param(
      'kernel', self.kernel_init, (k, k, x.shape[-1], self.features)
    )
    x = x.astype(self.dtype)
    if self.upsampled:
      x = _conv_of_upsampled(x, kernel)
    elif k == 1:
      x = lax.dot_general(
        x[:, ::s, ::s],
        kernel[0, 0].astype(self.dtype),
        (((3,), (0,)), ((), ())),
      )
    else:
      x = conv(
        x, kernel.astype(self.dtype), s, self.padding, dilation=self.dilation
      )
    if self.use_bias:
      bias = make_bias(self, self.features, self.normalised, self.bias_init)
      x = x + spread(bias, x)
    return x


def make_bias(
  module: nn.Module,
  features: int,
  normalised: bool,
  init: Any = nn.initializers.zeros_init(),  # noqa: B008
) -> jax.Array:
  """The parameter `bias`, `[features]`, at first zero or drawn by `init`.

  `normalised` says whether a BatchNorm by batch statistics follows at once. It
  takes the bias away again, so that its gradient is zero and not computed.
  """
  bias = module.param('bias', init, (features,))
  return lax.stop_gradient(bias) if normalised else bias


def spread(values: jax.Array, x: jax.Array) -> jax.Array:
  """Broadcasts values to the shape of x, in its dtype.

  The gradient of the values is summed in float32. In bfloat16, which has eight
  bits, a sum of a few hundred equal numbers stops growing.
  """
  return jnp.broadcast_to(at_least_float32(values), x.shape).astype(x.dtype)


def at_least_float32(x: jax.Array) -> jax.Array:
  """Casts to float32, or keeps float64."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def conv(
  x: jax.Array,
  kernel: jax.Array,
  stride: int = 1,
  padding: Any = 'SAME',
  input_dilation: int = 1,
  dilation: int = 1,
) -> jax.Array:
  """Convolves `[b, y, x, c]` with `[k, k, c, features]` of the same dtype.

  `padding` is 'SAME', 'VALID', or the pixels before and after, in y and x.
  """
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    padding,
    lhs_dilation=(input_dilation, input_dilation),
    rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def split_by_parity(kernel: jax.Array, axis: int) -> jax.Array:
  """Rewrites a kernel for an upsampled image as one for the small image.

  Along `axis`, of size 3, an even pixel reads the small pixels before and at
  its position, an odd pixel those at its position and after. Weights of the
  same small pixel are added.

  Returns:
    `[parity, small pixel, ...]`, without `axis`.
  """
  first, middle, last = jnp.moveaxis(kernel, axis, 0)
  return jnp.stack(
    [jnp.stack([first, middle + last]), jnp.stack([first + middle, last])]
  )


def _conv_of_upsampled(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A 3x3 'SAME' convolution of `upsample(x)`, computed on x.

  A pixel of the upsampled image reads 2x2 pixels of x, see `split_by_parity`.
  The four parities of y and x are channels of one matrix product.
  """
  b, h, w, c = x.shape
  # [parity of x, small pixel, parity of y, small pixel, c_in, c_out]
  split = split_by_parity(split_by_parity(kernel, 0), 2)
  # The sums are float32: round to the compute dtype only now.
  split = split.transpose(3, 1, 4, 2, 0, 5).reshape(4 * c, -1).astype(x.dtype)
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  read = [x[:, r : r + h + 1, s : s + w + 1] for r in (0, 1) for s in (0, 1)]
  y = jnp.concatenate(read, -1) @ split
  y = y.reshape(b, h + 1, w + 1, 2, 2, -1)
  rows = [
    jnp.stack([y[:, p : p + h, q : q + w, p, q] for q in (0, 1)], 3)
    for p in (0, 1)
  ]
  return jnp.stack(rows, 2).reshape(b, 2 * h, 2 * w, -1)


class ConvTranspose(nn.Module):
  """A transposed convolution, which multiplies both sides by its stride.

  An input pixel (i, j) adds `kernel[p, q]` of itself to the output pixel
  (s i + p - c, s j + q - c), where c is half of k - s, rounded up.

  Attributes:
    kernel_size: k, at least the stride.
    strides: s.
    normalised: see `make_bias`.
  """

  features: int
  kernel_size: int = 2
  strides: int = 2
  use_bias: bool = True
  kernel_init: Any = nn.initializers.he_normal()
  dtype: Dtype = jnp.float32
  normalised: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[b, y, x, c_in]` to `[b, s y, s x, features]`."""
    b, h, w, c = x.shape
    k, s = self.kernel_size, self.strides
    kernel = self.param('kernel', self.kernel_init, (k, k, c, self.features))
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    if k == s:
      # Each output pixel depends on one input pixel: a matrix product.
      x = x @ kernel.transpose(2, 0, 1, 3).reshape(c, -1)
      x = x.reshape(b, h, w, s, s, -1).transpose(0, 1, 3, 2, 4, 5)
      x = x.reshape(b, s * h, s * w, -1)
    else:
      pad = (s + k - 2) // 2, (s + k - 1) // 2
      x = conv(x, kernel[::-1, ::-1], 1, (pad, pad), input_dilation=s)
    if self.use_bias:
      bias = make_bias(self, self.features, self.normalised)
      x = x + spread(bias, x)
    return x


class Dropout(nn.Module):
  """Dropout whose mask depends on an example's index in the global batch.

  A hash of the key `dropout`, the layer's path and the unit's position in the
  batch of all devices selects the units: `jit`, `pmap` and `sharded` drop the
  same. It is cheaper than a key for each layer and random bits for each unit.
  It sets a share `rate` of them to zero, 0 <= rate < 1.
  """

  rate: float
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, drop: bool) -> jax.Array:
    """Maps `[b, ...]` to the same shape; the identity unless `drop`."""
    if not drop or self.rate == 0:
      return x
    unit = jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape)
    if self.axis_name is not None and not self.is_initializing():
      unit = unit + self.first(x.size)
    return dropped(x, unit, dropout_layer(self.path), self.words(), self.rate)

  def first(self, size: int) -> jax.Array:
    """The first unit's number, of `size` units on each device; uint32."""
    if self.axis_name is None:
      return jnp.uint32(0)
    return (lax.axis_index(self.axis_name) * size).astype(jnp.uint32)

  def words(self) -> jax.Array:
    """The words of the key `dropout`, the same for all layers."""
    if self.scope is None or not self.has_rng('dropout'):
      # Flax says what is missing.
      return jax.random.key_data(self.make_rng('dropout'))
    # `make_rng` would draw a key for each layer: on a GPU, a kernel for each.
    return jax.random.key_data(self.scope.rngs['dropout'].rng)


def dropout_layer(path: Sequence[str]) -> int:
  """A number of the dropout layer at this path, for `dropped`."""
  # Odd, so that no two units of a layer are one.
  return zlib.crc32('/'.join(path).encode()) | 1


def dropped(
  x: jax.Array,
  unit: jax.Array,
  layer: Any,
  words: Sequence[Any] | jax.Array,
  rate: float,
) -> jax.Array:
  """Dropout of units by their number in the batch, uint32, of x's shape.

  `layer` is a `dropout_layer`, `words` are from `Dropout.words`.
  """
  mixed = _mix(_mix((unit * jnp.uint32(layer)) ^ words[0]) + words[1])
  keep = mixed >= jnp.uint32(rate * 2**32)
  scale = jnp.asarray(1 / (1 - rate), x.dtype)
  return jnp.where(keep, x * scale, jnp.zeros_like(x))


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of uint32 whose every output bit depends on all bits of x.

  The finaliser of MurmurHash3 with constants of less bias ('lowbias32').
  """
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


def batch_norm(
  name: str,
  train: bool,
  dtype: Dtype,
  axis_name: str | None,
  scale_init: Any = nn.initializers.ones,
  make: Callable[..., nn.BatchNorm] = nn.BatchNorm,
) -> nn.BatchNorm:
  """BatchNorm as in the paper: scale, bias, momentum 0.9; float32 statistics.

  It uses batch statistics, averaged over `axis_name`, if `train`, and running
  statistics otherwise. `make` is the class, perhaps with fields of its own.
  """
  return make(
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-5,
    dtype=dtype,
    axis_name=axis_name,
    scale_init=scale_init,
    name=name,
  )


def max_pool(x: jax.Array) -> jax.Array:
  """2x2 max pooling with stride 2: `[b, y, x, c]` to `[b, y/2, x/2, c]`.

  Maxima of pairs take half the time of a maximum over two axes, and their
  gradient need not search for the elements that equal the result.
  """
  b, h, w, c = x.shape
  x = x.reshape(b, h // 2, 2, w, c)
  x = jnp.maximum(x[:, :, 0], x[:, :, 1]).reshape(b, h // 2, w // 2, 2, c)
  return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def upsample(x: jax.Array) -> jax.Array:
  """Nearest upsampling by two: `[b, y, x, c]` to `[b, 2y, 2x, c]`."""
  b, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
  return x.reshape(b, 2 * h, 2 * w, c)


def joined_pixels(x: jax.Array) -> jax.Array:
  """`[b, y, x, 4, c]`, of the four pixels of 2x2, as `[b, 2y, 2x, c]`."""
  b, h, w, _, c = x.shape
  x = x.reshape(b, h, w, 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, 2 * h, 2 * w, c)


def split_pixels(x: jax.Array) -> jax.Array:
  """The inverse of `joined_pixels`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h // 2, w // 2, 4, c)


def split_units(
  shape: Sequence[int],
  pixel: jax.Array,
  image: jax.Array,
  y: jax.Array,
  x: jax.Array,
  channel: jax.Array,
) -> jax.Array:
  """The numbers of units, see `Dropout`, of an image whose pixels are split.

  Args:
    shape: of the image, `[b, 2y, 2x, c]`.
    pixel: which of 2x2, uint32 as all that follow.
    image: index in the batch.
    y: row of the 2x2 pixels.
    x: column of the 2x2 pixels.
    channel: of the unit.
  """
  _, h, w, c = shape
  row = image * h + 2 * y + pixel // 2
  return (row * w + 2 * x + pixel % 2) * c + channel


def centre_crop(x: jax.Array, size: Sequence[int]) -> jax.Array:
  """The central `size` of `[b, y, x, c]`; the odd pixel is cut at the end."""
  top, left = ((a - b) // 2 for a, b in zip(x.shape[1:3], size, strict=True))
  return x[:, top : top + size[0], left : left + size[1]]


def reflect_pad(x: jax.Array, pad: Sequence[tuple[int, int]]) -> jax.Array:
  """Pads `[b, y, x, c]` by reflection, `pad` before and after in y and x."""
  return jnp.pad(x, ((0, 0), *pad, (0, 0)), 'reflect')
