"""The training step of a PyTorch network, in several forms.

PyTorch's optimizers with the config's numbers make the same updates as optax's
at a constant learning rate, L2 on kernels included (rmsprop: with epsilon
outside the root).
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import ml_collections
import torch

from skipnet_jax import environment
from skipnet_jax.benchmarking.peer import losses as torch_losses


@dataclasses.dataclass(frozen=True)
class Form:
  """A way to run the step.

  Attributes:
    channels_last: whether activations lie as `[b, y, x, c]` in memory.
    compiled: whether `torch.compile` compiles forward and backward pass.
    mode: the mode of `torch.compile`.
    gpu_only: whether a CPU lacks this form.
  """

  channels_last: bool
  compiled: bool = False
  mode: str | None = None
  gpu_only: bool = False


FORMS = {
  'channels_last eager': Form(channels_last=True),
  'channels_last compiled': Form(channels_last=True, compiled=True),
  'channels_last CUDA graphs': Form(
    channels_last=True, compiled=True, mode='reduce-overhead', gpu_only=True
  ),
  'default format eager': Form(channels_last=False),
}


def configure() -> dict[str, Any]:
  """Sets PyTorch's options for this process and returns them.

  It uses all usable cores, cuDNN's autotuner and no TF32.
  """
  torch.set_num_threads(environment.usable_cores())
  torch.backends.cudnn.benchmark = True
  # PyTorch has newer names too, but torch.compile reads these.
  torch.backends.cudnn.allow_tf32 = False
  torch.backends.cuda.matmul.allow_tf32 = False
  return {
    'torch_threads': torch.get_num_threads(),
    'cudnn_benchmark': True,
    'torch_allow_tf32': False,
  }


def versions() -> dict[str, Any]:
  """Versions of PyTorch, CUDA and cuDNN; None for what it lacks."""
  return {
    'torch': torch.__version__,
    'torch_cuda': torch.version.cuda,
    'torch_cudnn': torch.backends.cudnn.version(),
  }


def make_optimizer(
  config: ml_collections.ConfigDict, network: torch.nn.Module
) -> torch.optim.Optimizer:
  """The optimizer of the config's `optim` section, at a constant rate.

  Args:
    config: `optim`; schedule, warm-up, accumulate and ema are ignored.
    network: weight decay applies to its convolution kernels only; a
      discriminator has its own learning rate.
  """
  decay = config.l2 if config.name == 'adamw' else 2 * config.l2
  by_kind: dict[tuple[bool, bool], dict[str, Any]] = {}
  for name, parameter in network.named_parameters():
    kernel = parameter.ndim == 4
    discriminator = name.startswith('discriminator.')
    group = by_kind.setdefault((kernel, discriminator), {'params': []})
    group['params'].append(parameter)
    group['weight_decay'] = decay if kernel else 0.0
    if discriminator:
      group['lr'] = config.discriminator_learning_rate
  groups, rate = list(by_kind.values()), config.learning_rate
  b1, b2, eps = config.momentum, config.decay, config.eps
  # PyTorch's fastest implementations; it has no fused rmsprop.
  if config.name == 'rmsprop':
    return torch.optim.RMSprop(groups, rate, b2, eps, momentum=b1, foreach=True)
  if config.name == 'sgd':
    return torch.optim.SGD(groups, rate, b1, fused=True)
  adam = {'adam': torch.optim.Adam, 'adamw': torch.optim.AdamW}[config.name]
  return adam(groups, rate, (b1, b2), eps, fused=True)


def make_step(
  config: ml_collections.ConfigDict,
  network: torch.nn.Module,
  batch: dict[str, torch.Tensor],
  form: Form,
) -> Callable[[], torch.Tensor]:
  """A function that trains the network one step on one batch.

  Args:
    config: `optim`, `train` (the loss and the first weights of other terms)
      and `model.dtype`, where bfloat16 stands for autocast.
    network: on its device; changed in place.
    batch: on the device, from `weights.batch`.
    form: how to run.

  Returns:
    A function that returns the loss, a scalar on the device, without waiting
    for the device.
  """
  network.train()
  image, label = batch['image'], batch['label']
  weight = batch.get('weight')
  if form.channels_last:
    for tensor in (*network.parameters(), *network.buffers()):
      if tensor.ndim == 4:
        tensor.data = tensor.data.to(memory_format=torch.channels_last)
    image = image.to(memory_format=torch.channels_last)
  optimizer = make_optimizer(config.optim, network)
  half = config.model.dtype == 'bfloat16'
  loss_name = config.train.loss
  terms = config.train.auxiliary[0], config.train.adversarial

  def objective(
    image: torch.Tensor, label: torch.Tensor, weight: torch.Tensor | None
  ) -> torch.Tensor:
    with torch.autocast(image.device.type, torch.bfloat16, enabled=half):
      outputs = torch_losses.apply(network, image, label)
    return torch_losses.objective(loss_name, terms, outputs, label, weight)

  if form.compiled:
    objective = torch.compile(objective, mode=form.mode, dynamic=False)

  def step() -> torch.Tensor:
    optimizer.zero_grad(set_to_none=True)
    loss = objective(image, label, weight)
    loss.backward()
    optimizer.step()
    return loss.detach()

  return step
