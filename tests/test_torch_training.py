"""PyTorch's optimizers against optax's, its step against the package's."""

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_networks import make_batch
import systems

from skipnet_jax import environment
from skipnet_jax import models
from skipnet_jax.step import losses
from skipnet_jax.step import optim
from skipnet_jax.step import state as state_lib
from skipnet_jax.step import step as step_lib

pytestmark = pytest.mark.peer


@pytest.fixture(scope='module')
def torch():
  import torch

  return torch


@pytest.fixture(scope='module')
def torch_training():
  from skipnet_jax.benchmarking.peer import training as torch_training

  return torch_training


@pytest.mark.parametrize(
  'changes',
  [
    {'name': 'rmsprop', 'eps': 1e-2},
    {'name': 'rmsprop', 'momentum': 0.5},
    {'name': 'sgd', 'momentum': 0.9},
    {'name': 'adam', 'momentum': 0.9, 'decay': 0.99, 'eps': 1e-2},
    {'name': 'adamw', 'momentum': 0.9, 'decay': 0.99},
  ],
)
def test_an_optimizer_makes_the_updates_of_optax(
  changes, smoke, torch, torch_training
):
  config = smoke().optim
  config.update({'learning_rate': 0.05, 'l2': 0.1, **changes})
  network = torch.nn.Sequential(
    torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3)
  ).double()
  optimizer = torch_training.make_optimizer(config, network)
  parameters = dict(network.named_parameters())
  with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):
    params = {
      layer: {
        leaf: jnp.asarray(parameters[f'{index}.{name}'].detach().numpy().copy())
        for leaf, name in ((kind, 'weight'), ('bias', 'bias'))
      }
      for layer, index, kind in (('conv', 0, 'kernel'), ('norm', 1, 'scale'))
    }
    theirs = optim.make_optimizer(
      config, optax.constant_schedule(config.learning_rate)
    )
    state = theirs.init(params)
    rng = np.random.default_rng(0)
    for _ in range(4):
      grads = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
      updates, state = theirs.update(grads, state, params)
      params = optax.apply_updates(params, updates)
      for layer, index, kind in (('conv', 0, 'kernel'), ('norm', 1, 'scale')):
        for leaf, name in ((kind, 'weight'), ('bias', 'bias')):
          value = torch.from_numpy(grads[layer][leaf])
          parameters[f'{index}.{name}'].grad = value
      optimizer.step()
    for layer, index, kind in (('conv', 0, 'kernel'), ('norm', 1, 'scale')):
      for leaf, name in ((kind, 'weight'), ('bias', 'bias')):
        np.testing.assert_allclose(
          parameters[f'{index}.{name}'].detach(), params[layer][leaf], rtol=1e-6
        )


def test_transposed_kernels_are_decayed_too(smoke, torch, torch_training):
  network = torch.nn.Sequential(torch.nn.ConvTranspose2d(2, 3, 2))
  optimizer = torch_training.make_optimizer(smoke().optim, network)
  decayed, others = (group['params'] for group in optimizer.param_groups)
  assert decayed == [network[0].weight]
  assert others == [network[0].bias]


def make_network(config):
  from skipnet_jax.benchmarking.peer import networks as torch_networks
  from skipnet_jax.benchmarking.peer import weights as torch_weights

  model = models.build_model(config.model)
  optimizer = optim.make_optimizer(
    config.optim,
    optax.constant_schedule(config.optim.learning_rate),
    model.adversarial,
  )
  state = state_lib.create_state(model, optimizer, 0)
  network = torch_networks.build(model)
  variables = state.variables()
  torch_weights.load(network, variables)
  return model, optimizer, state, network


# A bias before a BatchNorm has no gradient but rounding, which rmsprop would
# make a step of: its network is one without BatchNorm.
RMSPROP = {
  'model.batch_norm': False,
  'model.dropout': 0.0,
  'optim.eps': 1e-3,
  'optim.l2': 0.01,
}
# Two players, each with a learning rate of its own.
TWO_RATES = {
  'optim.name': 'sgd',
  'optim.learning_rate': 0.1,
  'optim.discriminator_learning_rate': 0.03,
  'train.adversarial': 0.2,
}


def small(name):
  return {f'model.{k}': v for k, v in systems.SYSTEMS[name].small.items()}


@pytest.mark.parametrize(
  ('name', 'changes'),
  [
    ('long_short', RMSPROP),
    ('addn', TWO_RATES | small('addn')),
    ('m2fcn', small('m2fcn')),
  ],
)
def test_a_step_leaves_the_parameters_of_the_package(
  name, changes, smoke, torch_training
):
  from skipnet_jax.benchmarking.peer import weights as torch_weights

  config = conftest.experiment(name).get_config('smoke')
  if name == 'long_short':
    config = smoke()
  config.update_from_flattened_dict(changes)
  with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):
    model, optimizer, state, network = make_network(config)
    # Rounded to float32, as PyTorch got them.
    rounded = lambda x: np.float64(np.float32(x))  # noqa: E731
    params = jax.tree.map(rounded, state.params)
    state = state.replace(params=params, opt_state=optimizer.init(params))
    batch = make_batch(64, np.float64, count=1)
    step = step_lib.make_train_step(
      model.clone(dtype='float64'),
      optimizer,
      losses.LOSSES[config.train.loss],
      terms=losses.make_terms(config.train, 1),
    )
    new, metrics = jax.jit(step)(state, batch)
    expected = torch_weights.to_torch({'params': new.params.tree()})
  loss = torch_training.make_step(
    config,
    network.double(),
    torch_weights.batch(batch, 'cpu'),
    torch_training.FORMS['channels_last eager'],
  )()
  assert float(loss) == pytest.approx(float(metrics['loss']), rel=1e-9)
  for name, value in network.named_parameters():
    np.testing.assert_allclose(
      value.detach(), expected[name], rtol=1e-9, atol=1e-9
    )


@pytest.mark.gpu
@pytest.mark.parametrize(
  'name', ['channels_last eager', 'default format eager']
)
def test_a_step_in_bfloat16_trains_too(name, smoke, torch, torch_training):
  from skipnet_jax.benchmarking.peer import weights as torch_weights

  config = smoke({'model.dtype': 'bfloat16', 'model.blocks': 'bottleneck'})
  # Flax's BatchNorm mixes dtypes for any compute dtype but float32.
  with jax.numpy_dtype_promotion('standard'):
    network = make_network(config)[-1].to('cuda')
  seen = []
  network.up_3.register_forward_hook(
    lambda module, inputs, output: seen.append(output.dtype)
  )
  batch = make_batch(64, count=1)
  step = torch_training.make_step(
    config,
    network,
    torch_weights.batch(batch, 'cuda'),
    torch_training.FORMS[name],
  )
  curve = [float(step()) for _ in range(12)]
  assert curve[-1] < curve[0]
  assert set(seen) == {torch.bfloat16}


def test_only_a_gpu_has_cuda_graphs(torch_training):
  alone = [name for name, form in torch_training.FORMS.items() if form.gpu_only]
  assert alone == ['channels_last CUDA graphs']


def test_the_options_are_set_and_returned(torch, torch_training, monkeypatch):
  monkeypatch.setattr(environment, 'usable_cores', lambda: 1)
  options = torch_training.configure()
  assert options['torch_threads'] == torch.get_num_threads() == 1
  assert not torch.backends.cudnn.allow_tf32
  assert not torch.backends.cuda.matmul.allow_tf32
