"""Times a training step against a step of the same network in PyTorch.

Both have the same weights, batch, dropout rate, loss and optimizer, at the
config's learning rate without schedule. `parity` first checks that both compute
the same function. In each round every contestant trains one step, the next
round reverses the order, and the clock is read when the step is finished. Use
an idle machine: PyTorch's threads spin while they wait, so other processes slow
PyTorch down more than JAX. Our step is the package's compiled training step on
one device, metrics included; PyTorch's is the forward pass, `loss.backward()`
and an optimizer of its own, in every form that may be its fastest.

float32 uses no TF32: JAX traces with the matmul precision 'highest', and
PyTorch's TF32 is off. bfloat16 is the dtype of the Flax network and autocast in
PyTorch, on a GPU only.

Both share the GPU's memory. JAX would take 75 % of it when it starts; here it
gets MEMORY_SHARE, unless the environment sets another share or JAX has already
used the device.
"""

from collections.abc import Callable, Sequence
import importlib.util
import os
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from skipnet_jax import config_checks
from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax import tables
from skipnet_jax.benchmarking.timing import hardware
from skipnet_jax.benchmarking.timing import turns
from skipnet_jax.data import data_set
from skipnet_jax.data import pipeline as pipeline_lib
from skipnet_jax.data import sources
from skipnet_jax.step import build as build_lib
from skipnet_jax.step import losses
from skipnet_jax.step import state as state_lib

OURS = 'skipnet_jax'
MEMORY_SHARE = '0.45'
_MEMORY = 'XLA_PYTHON_CLIENT_MEM_FRACTION'


def check_config(config: ml_collections.ConfigDict) -> None:
  """Checks that a config can be raced; computes nothing.

  Raises:
    InputError: PyTorch is missing, or the PyTorch side lacks a feature that
      the config uses.
  """
  if importlib.util.find_spec('torch') is None:
    raise errors.InputError(
      'The race against PyTorch needs PyTorch, which is not installed: '
      "pip install '.[peer]'."
    )
  config_checks.validate(config)
  for field, value, only in (
    ('model.scan', config.model.get('scan', False), False),
    ('optim.accumulate', config.optim.accumulate, 1),
    ('optim.ema', config.optim.ema, 0),
  ):
    if value != only:
      raise errors.InputError(
        f'{field} is {value!r}; the race against PyTorch supports only '
        f'{only!r}: set --config.{field}={only}.'
      )
  import torch

  # JAX is not asked: it would take the GPU's memory from who measures first.
  if not torch.cuda.is_available():
    _check_on_cpu(config.model.dtype)


def _check_on_cpu(dtype: str) -> None:
  if dtype != 'float32':
    # torch 2.13.0+cpu with channels_last and two threads: most processes that
    # trained a small network had a segmentation fault within a dozen steps. It
    # also happens in float32, more rarely, but never with one thread.
    raise errors.InputError(
      f'model.dtype is {dtype!r}; on a CPU the race runs in float32 only, as '
      'PyTorch crashes in other dtypes: set --config.model.dtype=float32, or '
      'use a GPU.'
    )


def _torch_device(dtype: str) -> str:
  import torch

  platform = jax.default_backend()
  if platform == 'cpu':
    _check_on_cpu(dtype)
    return 'cpu'

  if platform == 'gpu' and torch.cuda.is_available():
    return 'cuda'
  raise errors.InputError(
    f'JAX runs on {platform}, which PyTorch {torch.__version__} does not '
    'support: install a PyTorch build that does, or set JAX_PLATFORMS=cpu to '
    'race on the CPU.'
  )


def _make_batch(
  config: ml_collections.ConfigDict, data: data_set.DataSet
) -> losses.Batch:
  """The first augmented examples; `batch_size` may be any number."""
  one = config.copy_and_resolve_references()
  one.train.batch_size = 1
  pipeline = pipeline_lib.make_pipeline(one, data, 1)
  models.build_model(config.model).check_size(pipeline.window)
  key = jax.random.key(config.seed)
  plans = [pipeline.plan(key, i) for i in range(config.train.batch_size)]
  plan = jax.tree.map(lambda *parts: jnp.concatenate(parts), *plans)
  arrays = pipeline_lib.host_arrays(data)
  raw = pipeline.read_host(arrays, plan)
  return jax.jit(pipeline.train_batch)(raw, plan['key'])


def _training(
  config: ml_collections.ConfigDict, window: tuple[int, int]
) -> build_lib.Training:
  """Our training, with the learning rate and weights of the first epoch."""
  first = config.copy_and_resolve_references()
  first.optim.update(schedule='constant', warmup_epochs=0)
  first.train.update(auxiliary=first.train.auxiliary[:1], auxiliary_at=())
  return build_lib.build(first, window, 1, record=False)


def _make_ours(
  config: ml_collections.ConfigDict,
  training: build_lib.Training,
  batch: losses.Batch,
) -> tuple[state_lib.TrainState, Callable[[], Any]]:
  """First state, and a function that trains one step and waits for it."""
  first = training.create_state(config.seed)
  precision = 'highest' if config.model.dtype == 'float32' else None
  with jax.default_matmul_precision(precision):
    step = jax.jit(training.train_step, donate_argnums=0)
    lowered = step.lower(first, batch)
  compiled = None
  # A copy: the step donates its state, and PyTorch needs the first weights.
  state = jax.tree.map(jnp.copy, first)

  def call():
    nonlocal compiled, state
    compiled = compiled or lowered.compile()
    state, metrics = compiled(state, batch)
    jax.block_until_ready((state, metrics))

  return first, call


def _make_theirs(
  config: ml_collections.ConfigDict,
  network: Any,
  batch: losses.Batch,
  names: Sequence[str] | None,
) -> dict[str, Callable[[], Any]]:
  """For each of PyTorch's forms a function like that of `_make_ours`."""
  import copy

  import torch

  from skipnet_jax.benchmarking.peer import training as torch_training
  from skipnet_jax.benchmarking.peer import weights as torch_weights

  device = next(network.parameters()).device
  tensors = torch_weights.batch(batch, device)

  def waiting(step):
    def call():
      step()
      if device.type == 'cuda':
        torch.cuda.synchronize()

    return call

  return {
    name: waiting(
      torch_training.make_step(config, copy.deepcopy(network), tensors, form)
    )
    for name, form in torch_training.FORMS.items()
    if (names is None or name in names)
    and (device.type == 'cuda' or not form.gpu_only)
  }


def race(
  config: ml_collections.ConfigDict,
  *,
  rounds: int,
  say: Callable[[str], None],
  forms: Sequence[str] | None = None,
) -> dict[str, Any]:
  """Checks that both networks agree, then times their training steps in turn.

  Args:
    config: a whole config; `train.batch_size` is the batch, on one device.
    rounds: timed steps of each contestant.
    say: called with each progress message.
    forms: keys of `training.FORMS`; None for all that the device supports.

  Returns:
    JSON values. `contestants`: name (OURS, or a form) to seconds, summary (of
    `measure.Timing`), first_call_s (with compilation), error (None, or why it
    did not run; then the rest is None) and, for PyTorch's, ratio. `best`: the
    PyTorch form with the smallest median. `agreement`: see `parity.check`.
    date, rounds, warmup, dtype, batch, image_size `[y, x]`, dataset,
    parameters, dropout, optimizer, device, settings, software, hardware (with
    the load average before the race).

  Raises:
    InputError: no round, no PyTorch, no device that both support, or a config
      that fails `check_config`.
    RunError: the networks do not agree, or one side cannot run.
  """
  if rounds < 1:
    raise errors.InputError(f'rounds is {rounds}; it must be at least 1.')
  check_config(config)
  os.environ.setdefault(_MEMORY, MEMORY_SHARE)
  from skipnet_jax.benchmarking.peer import networks as torch_networks
  from skipnet_jax.benchmarking.peer import parity
  from skipnet_jax.benchmarking.peer import training as torch_training
  from skipnet_jax.benchmarking.peer import weights as torch_weights

  machine = hardware.hardware()
  device = _torch_device(config.model.dtype)
  settings = torch_training.configure()
  data = sources.load(config)
  batch = _make_batch(config, data)
  y, x = batch['image'].shape[1:3]
  training = _training(config, (y, x))
  state, ours = _make_ours(config, training, batch)
  import torch

  torch.manual_seed(config.seed)
  network = torch_networks.build(training.model)
  variables = state.variables()
  torch_weights.load(network, variables)
  network.to(device)
  say('comparing outputs and gradients of the two networks')
  agreement = parity.check(
    training.model,
    variables,
    network,
    batch,
    config.train.loss,
    training.terms,
  )
  calls = {OURS: ours, **_make_theirs(config, network, batch, forms)}
  contestants = turns.first_calls(calls, say=say)
  failed = {n: row['error'] for n, row in contestants.items() if row['error']}
  if OURS in failed or len(failed) == len(contestants) - 1:
    reasons = '; '.join(f'{name}: {error}' for name, error in failed.items())
    raise errors.RunError(
      f'There is no race: the step fails on one of the sides ({reasons}).'
    )
  running = {name: calls[name] for name in calls if name not in failed}
  say(f'{turns.WARMUP} + {rounds} rounds of {len(running)} contestants')
  timings = turns.take_turns(running, rounds=rounds)
  for name, row in contestants.items():
    timing = timings.get(name)
    row['seconds'] = list(timing.seconds) if timing else None
    row['summary'] = timing.summary() if timing else None
    if name != OURS:
      row['ratio'] = (
        turns.ratio(timings[OURS].seconds, timing.seconds) if timing else None
      )
  return {
    'date': environment.now(),
    'rounds': rounds,
    'warmup': turns.WARMUP,
    'dtype': config.model.dtype,
    'batch': config.train.batch_size,
    'image_size': list(batch['image'].shape[1:3]),
    'dataset': data.name,
    'parameters': training.parameters,
    'dropout': config.model.get('dropout', 0),
    'optimizer': config.optim.name,
    'device': jax.devices()[0].device_kind,
    'settings': settings
    | {
      'jax_matmul_precision': 'highest'
      if config.model.dtype == 'float32'
      else 'default',
      'jax_memory_fraction': os.environ[_MEMORY] if device == 'cuda' else None,
    },
    'software': hardware.software() | torch_training.versions(),
    'hardware': machine,
    'agreement': agreement,
    'best': min(
      (name for name in timings if name != OURS),
      key=lambda name: contestants[name]['summary']['p50'],
    ),
    'contestants': contestants,
  }


def format_table(result: dict[str, Any]) -> str:
  """The result of `race` as text of at most 100 columns."""
  y, x = result['image_size']
  exact, close = (result['agreement'][d] for d in ('float64', 'float32'))
  lines = [
    f'A training step beside PyTorch {result["software"]["torch"]}: '
    f'{y}x{x}, batch {result["batch"]}, {result["dtype"]}, {result["device"]}',
    f'gradients differ by {exact["gradient"]:.1e} of their norm in float64, '
    f'{close["gradient"]:.1e} in float32',
    f'load average before the race (should be near 0): '
    f'{result["hardware"]["load_average"][0]:.1f} on '
    f'{result["hardware"]["cores"]} cores',
    '',
  ]
  heads = ('', 'first s', 'p50 s', 'MAD s', 'ours / theirs', '')
  widths = (-26, 8, 9, 9, 15, 2, -13, -1)
  lines.append(tables.line((*heads, 'quartiles', 'range'), widths, ''))
  for name, row in result['contestants'].items():
    if row['error']:
      lines.append(f'{name:26}did not run: {row["error"]}'[:100])
      continue
    cells = [name, f'{row["first_call_s"]:.2f}']
    cells += [f'{row["summary"][key]:.4f}' for key in ('p50', 'mad')]
    if name != OURS:
      r = row['ratio']
      cells += [f'{r["median"]:.3f}', '', f'{r["q25"]:.3f}-{r["q75"]:.3f}']
      cells.append(f'{r["min"]:.3f}-{r["max"]:.3f}')
    lines.append(tables.line(cells, widths[: len(cells)], ''))
  best = result['contestants'][result['best']]['ratio']['median']
  lines += [
    '',
    f'ours / best of PyTorch ({result["best"]}), {result["rounds"]} pairs: '
    f'{best:.3f} (below 1: ours is faster)',
  ]
  return '\n'.join(lines)
