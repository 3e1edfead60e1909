"""Sharpness: how curved the training loss is, by its Hessian or along a step.

Gradient descent at the rate r is stable along a direction of curvature h if
h < 2 / r. RMSprop divides the gradient by P = sqrt(nu) + eps, so that for it
the curvature of P^(-1/2) H P^(-1/2) counts (Cohen et al. 2022, arXiv
2207.14484). A product of the Hessian with a vector costs about two gradients.

The critical sharpness is 2 / the smallest learning rate at which the next step
would raise the loss (Kalra and Barkeshli 2024, arXiv 2406.09405). It costs some
eight losses. On a quadratic loss, it is the curvature along the step, and at
most the largest eigenvalue.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
from jax import flatten_util
import jax.numpy as jnp
import numpy as np
from scipy import linalg

from skipnet_jax.step import optim

Array = jax.Array
Params = Any
Objective = Callable[[Params], Array]
# Of the search for a critical step: at most so many doublings or halvings, and
# then so many bisections, which leave an error of a twentieth.
_DOUBLINGS, _BISECTIONS = 20, 3


@dataclasses.dataclass(frozen=True)
class Sharpness:
  """An eigenvalue, and how far it may be from the next true one.

  Attributes:
    value: the largest eigenvalue of the Hessian, preconditioned or not.
    error: of the value, at most: the residual's norm.
  """

  value: float
  error: float


class Hessian:
  """The Hessian of a function of parameters, by its products with vectors.

  They are compiled once, for parameters of one shape.

  Args:
    objective: maps a tree of float arrays, `n` numbers in all, to a scalar.
  """

  def __init__(self, objective: Objective):
    @jax.jit
    def multiply(params: Params, scale: Array, vector: Array) -> Array:
      flat, unravel = flatten_util.ravel_pytree(params)
      gradient = jax.grad(lambda x: objective(unravel(x)))
      _, product = jax.jvp(gradient, (flat,), (scale * vector,))
      return scale * product

    self._multiply = multiply

  def largest(
    self,
    params: Params,
    scale: Array | None = None,
    *,
    products: int = 20,
    seed: int = 0,
  ) -> Sharpness:
    """Finds the largest eigenvalue by Lanczos' method.

    Args:
      params: where the Hessian H is taken.
      scale: `[n]`, in the order of `flatten_util.ravel_pytree`: the eigenvalue
        is that of S H S, S the diagonal matrix of it; None: of H.
      products: with a vector, at most; with `n`, the value is exact.
      seed: of the first vector.
    """
    flat, _ = flatten_util.ravel_pytree(params)
    scale = jnp.ones_like(flat) if scale is None else scale
    vector = np.random.default_rng(seed).standard_normal(flat.size)
    basis = [vector / np.linalg.norm(vector)]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(products, flat.size)):
      last = jnp.asarray(basis[-1], flat.dtype)
      product = np.asarray(self._multiply(params, scale, last), np.float64)
      diagonal.append(float(basis[-1] @ product))
      # Against all earlier vectors, twice: rounding would bring them back.
      for _ in range(2):
        for earlier in basis:
          product = product - (earlier @ product) * earlier
      norm = float(np.linalg.norm(product))
      beside.append(norm)
      if norm <= 1e-7 * max(map(abs, diagonal)):
        break
      basis.append(product / norm)
    values, vectors = linalg.eigh_tridiagonal(diagonal, beside[:-1])
    return Sharpness(float(values[-1]), abs(beside[-1] * vectors[-1, -1]))


def rmsprop_scale(average: Params, eps: float) -> Array | None:
  """P^(-1/2) of RMSprop, `[n]`; None before its first step.

  Args:
    average: of the squared gradients, `nu` of optax's state.
    eps: `optim.eps` of the config.
  """
  flat, _ = flatten_util.ravel_pytree(average)
  if not float(jnp.max(flat)) > 0:
    return None
  return 1 / jnp.sqrt(jnp.sqrt(flat) + eps)


def training_objective(value: Objective, l2: float) -> Objective:
  """A loss with the L2 term that training adds to it."""
  return lambda params: (
    value(params) + optim.l2_penalty(optim.squares(params), l2)
  )


def critical_factor(loss: Callable[[float], float]) -> float | None:
  """By which factor a step can grow until it raises the loss.

  Args:
    loss: after a step of so many times its length; one that is not finite
      counts as raised.

  Returns:
    The smallest such factor, to a twentieth; None if there is none between
    2^-20 and 2^20.
  """
  first = loss(0.0)

  def raised(factor: float) -> bool:
    return not loss(factor) <= first

  low = high = 1.0
  if raised(1.0):
    for _ in range(_DOUBLINGS):
      low = high / 2
      if not raised(low):
        break
      high = low
    else:
      return None
  else:
    for _ in range(_DOUBLINGS):
      high = low * 2
      if raised(high):
        break
      low = high
    else:
      return None
  for _ in range(_BISECTIONS):
    middle = math.sqrt(low * high)
    low, high = (low, middle) if raised(middle) else (middle, high)
  return math.sqrt(low * high)
