"""Sharpness: the largest eigenvalue of the Hessian of the training loss.

Gradient descent at the rate r is stable along a direction of curvature h if
h < 2 / r. RMSprop divides the gradient by P = sqrt(nu) + eps, so that for it
the curvature of P^(-1/2) H P^(-1/2) counts (Cohen et al. 2022, arXiv
2207.14484). A product of the Hessian with a vector costs about two gradients.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax import flatten_util
import jax.numpy as jnp
import numpy as np
import optax
from scipy import linalg

from skipnet_jax.step import optim

Array = jax.Array
Params = Any
Objective = Callable[[Params], Array]


@dataclasses.dataclass(frozen=True)
class Sharpness:
  """An eigenvalue, and how far it may be from the next true one.

  Attributes:
    value: the largest eigenvalue of the Hessian, preconditioned or not.
    error: of the value, at most: the residual's norm.
  """

  value: float
  error: float


def largest_eigenvalue(
  objective: Objective,
  params: Params,
  scale: Array | None = None,
  *,
  products: int = 20,
  seed: int = 0,
) -> Sharpness:
  """Finds the largest eigenvalue of a function's Hessian by Lanczos' method.

  Args:
    objective: maps parameters to a scalar.
    params: a tree of float arrays, `n` numbers in all.
    scale: `[n]`, in the order of `flatten_util.ravel_pytree`: the Hessian H is
      replaced by S H S, S the diagonal matrix of it; None: H itself.
    products: of the Hessian with a vector, at most; `n` are exact.
    seed: of the first vector.
  """
  flat, unravel = flatten_util.ravel_pytree(params)
  weights = jnp.ones_like(flat) if scale is None else scale

  @jax.jit
  def multiply(vector: Array) -> Array:
    gradient = jax.grad(lambda x: objective(unravel(x)))
    _, product = jax.jvp(gradient, (flat,), (weights * vector,))
    return weights * product

  rng = np.random.default_rng(seed)
  vector = rng.standard_normal(flat.size)
  basis = [vector / np.linalg.norm(vector)]
  diagonal: list[float] = []
  beside: list[float] = []
  for _ in range(min(products, flat.size)):
    product = np.asarray(
      multiply(jnp.asarray(basis[-1], flat.dtype)), np.float64
    )
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


def rmsprop_scale(opt_state: Any, eps: float) -> Array | None:
  """P^(-1/2) of RMSprop, `[n]`; None before its first step, or without it.

  Args:
    opt_state: optax's state, on trees such as the parameters.
    eps: `optim.eps` of the config.
  """
  average = optax.tree.get(opt_state, 'nu', None)
  if average is None:
    return None
  flat, _ = flatten_util.ravel_pytree(average)
  if not float(jnp.max(flat)) > 0:
    return None
  return 1 / jnp.sqrt(jnp.sqrt(flat) + eps)


def training_objective(value: Objective, l2: float) -> Objective:
  """A loss with the L2 term that training adds to it."""
  return lambda params: value(params) + optim.l2_penalty(params, l2)
