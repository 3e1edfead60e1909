"""FLOPs by formula against counts by hand and against the traced program."""

import math

import jax
import jax.numpy as jnp
import pytest
from small_networks import equations_of

from skipnet_jax import models
from skipnet_jax.benchmarking.timing import flops
from skipnet_jax.models import layer_table


def row(name, count):
  return layer_table.Layer(name, 'Block', (1, 4, 4, 1), 5, count, 40)


def test_training_is_three_passes_less_the_gradient_of_the_image():
  table = [row('a', 10), row('norm', 0), row('b', 100), row('c', 1000)]
  assert flops.forward(table) == 1110
  # Forward, the weights' gradients, and those of the inputs of b and c.
  assert flops.training(table) == 1110 + 1110 + 1100


def test_the_fewest_bytes_by_hand():
  table = [row('a', 10), row('norm', 0), row('b', 100)]
  # Two kernels read 40 elements and write 16; three layers' 5 parameters.
  assert flops.forward_bytes(table, 2) == 2 * 2 * (40 + 16) + 4 * 15
  assert flops.forward_bytes(table, 2, 8) == 2 * 16 * (40 + 16) + 4 * 15
  # Backward: 16 and 40 read, 40 written, but not for the image.
  backward = 2 * (16 + 40 + 40) - 40
  assert flops.training_bytes(table, 2) == (
    2 * (2 * (40 + 16) + backward) + 8 * 4 * 15
  )
  assert flops.training_bytes(table, 2, images=3) == (
    3 * 2 * (2 * (40 + 16) + backward) + 8 * 4 * 15
  )


def count_traced(program):
  """Multiplications and additions of products and convolutions in a program."""
  total = 0
  for eqn in equations_of(program):
    if eqn.primitive.name == 'dot_general':
      ((left, _), _) = eqn.params['dimension_numbers']
      shape = eqn.invars[0].aval.shape
      contracted = math.prod(shape[i] for i in left)
      total += 2 * math.prod(eqn.outvars[0].aval.shape) * contracted
    elif eqn.primitive.name == 'conv_general_dilated':
      kernel = eqn.invars[1].aval.shape
      numbers = eqn.params['dimension_numbers']
      features = kernel[numbers.rhs_spec[0]]
      taps = math.prod(kernel) // features
      total += 2 * math.prod(eqn.outvars[0].aval.shape) * taps
  return total


@pytest.mark.parametrize('blocks', ['simple', 'bottleneck'])
def test_a_prediction_counts_what_the_traced_program_has(blocks):
  model = models.build_model(
    models.model_config('fc_resnet', blocks=blocks, repetitions=(1,) * 7)
  )
  image = jnp.zeros((2, 64, 32, 1))
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), image, train=False)
  )
  traced = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(
    variables, image
  )
  table = layer_table.layer_table(model, image.shape)
  # The last 3x3 convolution is computed on 33x17 pixels instead of 32x16.
  border = 2 * 2 * (33 * 17 - 32 * 16) * (4 * 32) * (4 * 32)
  assert flops.forward(table) + border == count_traced(traced)


def test_the_image_needs_no_gradient():
  model = models.build_model(
    models.model_config('fc_resnet', repetitions=(1,) * 7)
  )
  table = layer_table.layer_table(model, (1, 512, 512, 1))
  # Its first convolution: 3x3, 1 to 32 channels, at each pixel.
  first = 2 * 9 * 32 * 512 * 512
  assert flops.training(table) == 3 * flops.forward(table) - first
  assert table[0].flops == first
