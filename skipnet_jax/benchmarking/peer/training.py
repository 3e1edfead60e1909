"""The training step of a PyTorch network, and the ways in which it runs.

It imports torch, as the networks do. The optimizers are PyTorch's own with
the config's numbers. For rmsprop (epsilon outside the root), sgd, adam and
adamw they make the same updates as optax's at a constant learning rate, L2 on
kernels included.
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
    compiled: whether forward and backward pass go through `torch.compile`.
    mode: of `torch.compile`.
    gpu_only: whether it means nothing on a CPU.
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
  """Sets PyTorch's switches for the process, and says them.

  All usable cores; cuDNN tries its algorithms; float32 means float32, no TF32.
  """
  torch.set_num_threads(environment.usable_cores())
  torch.backends.cudnn.benchmark = True
  # The older of two sets of names: torch.compile reads these.
  torch.backends.cudnn.allow_tf32 = False
  torch.backends.cuda.matmul.allow_tf32 = False
  return {
    'torch_threads': torch.get_num_threads(),
    'cudnn_benchmark': True,
    'torch_allow_tf32': False,
  }


def versions() -> dict[str, Any]:
  """Of PyTorch and what it brings; None where it brings none."""
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
    config: `optim`; schedule, warm-up, accumulate and ema are not read.
    network: its convolutions' weights are decayed, nothing else is; a
      discriminator has its own learning rate.
  """
  decay = config.l2 if config.name == 'adamw' else 2 * config.l2
  groups: dict[tuple[bool, bool], dict[str, Any]] = {}
  for name, parameter in network.named_parameters():
    kernel, judge = parameter.ndim == 4, name.startswith('discriminator.')
    group = groups.setdefault((kernel, judge), {'params': []})
    group['params'].append(parameter)
    group['weight_decay'] = decay if kernel else 0.0
    if judge:
      group['lr'] = config.discriminator_learning_rate
  made = list(groups.values())
  rate, b1, b2, eps = (
    config.learning_rate,
    config.momentum,
    config.decay,
    config.eps,
  )
  # Each the fastest that PyTorch has: rmsprop is not fused.
  make = {
    'rmsprop': lambda: torch.optim.RMSprop(
      made, rate, b2, eps, momentum=b1, foreach=True
    ),
    'sgd': lambda: torch.optim.SGD(made, rate, b1, fused=True),
    'adam': lambda: torch.optim.Adam(made, rate, (b1, b2), eps, fused=True),
    'adamw': lambda: torch.optim.AdamW(made, rate, (b1, b2), eps, fused=True),
  }
  return make[config.name]()


def make_step(
  config: ml_collections.ConfigDict,
  network: torch.nn.Module,
  batch: dict[str, torch.Tensor],
  form: Form,
) -> Callable[[], torch.Tensor]:
  """A call that trains the network by one step on one batch.

  Args:
    config: `optim`, `train` (its loss and the first weights of other terms),
      and `model.dtype`: autocast with bfloat16.
    network: on its device; changed in place.
    batch: on the device, as `torch_weights.batch` makes it.
    form: how to run.

  Returns:
    A call that returns the loss, a scalar on the device. It does not wait for
    the device.
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
