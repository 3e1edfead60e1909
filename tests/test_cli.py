"""What the commands print and how they end."""

import errno
import io
import os
import subprocess
import sys

from conftest import ROOT
import jax
import pytest
import systems

from skipnet_jax import cli
from skipnet_jax import errors
from skipnet_jax.training import loop

CONFIG = f'--config={ROOT}/experiments'


@pytest.mark.parametrize(
  ('name', 'parameters'),
  [
    ('long_short', '11,451,745'),
    ('short_only', '11,567,393'),
    ('long_only', '10,757,601'),
    ('no_skips', '10,180,097'),
  ],
)
def test_describe_prints_the_layers_and_trains_nothing(
  command, name, parameters
):
  outcome = command('train', f'{CONFIG}/{name}.py', '--describe')
  assert outcome.code == 0
  lines = outcome.out.splitlines()
  assert f'{parameters} parameters' in lines[-1]
  (row,) = [line for line in lines if line.startswith('up_1/block_3/conv_2 ')]
  # 3x3, 128 to 128 channels with a bias, at 32x32.
  assert row.split()[1:4] == ['BottleneckBlock', '32x32x128', '147,584']
  assert row.split()[4] == f'{2 * 9 * 128 * 128 * 32 * 32 / 1e6:.1f}'


@pytest.mark.parametrize('name', systems.SYSTEMS)
def test_describe_counts_the_parameters_of_every_system(command, name):
  outcome = command(
    'train', f'{CONFIG}/{systems.EXPERIMENTS[name]}.py', '--describe'
  )
  assert outcome.code == 0
  assert systems.SYSTEMS[name].sentence() in outcome.out.splitlines()[-1]


@pytest.mark.parametrize('name', ['gradient_flow', 'depth_sweep', 'benchmark'])
def test_describe_has_a_table_for_each_network_compared(command, name):
  outcome = command('train', f'{CONFIG}/{name}.py:smoke', '--describe')
  assert outcome.code == 0
  tables = outcome.out.count('GFLOPs forward')
  assert tables == (1 if name == 'benchmark' else 4)


def test_the_command_restarts_with_large_pages():
  environment = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}
  code = (
    'import os, sys; from skipnet_jax import cli\n'
    'cli.run(lambda: print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:]))'
  )
  ended = subprocess.run(
    [sys.executable, '-c', code, '--v=1'],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert ended.returncode == 0, ended.stderr
  want = 'glibc.malloc.hugetlb=1' if sys.platform == 'linux' else 'None'
  assert ended.stdout == f"{want} ['--v=1']\n"


def test_a_name_that_the_terminal_cannot_show_is_escaped(monkeypatch):
  output = io.BytesIO()
  monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(output, 'ascii'))
  cli._print_any_name()
  print('é', os.fsdecode(b'\xff'), flush=True)
  assert output.getvalue() == b'\\xe9 \\udcff\n'


def test_variables_that_change_results_are_ignored(monkeypatch, capsys):
  monkeypatch.setenv('JAX_ENABLE_X64', 'True')
  monkeypatch.setenv('JAX_DEFAULT_PRNG_IMPL', 'rbg')
  cli._fix_arithmetic()
  assert os.environ['JAX_ENABLE_X64'] == '0'
  assert os.environ['JAX_DEFAULT_PRNG_IMPL'] == 'threefry2x32'
  first, second = capsys.readouterr().err.splitlines()
  assert first.startswith('warning: JAX_ENABLE_X64=True is ignored')
  assert second.startswith('warning: JAX_DEFAULT_PRNG_IMPL=rbg is ignored')
  cli._fix_arithmetic()
  assert not capsys.readouterr().err


@pytest.mark.parametrize(
  ('words', 'said'),
  [
    ('benchmark --compare a.json b.json --peer=torch', 'peer does nothing'),
    ('benchmark --compare a.json b.json --nooverwrite', 'overwrite does'),
    (f'benchmark {CONFIG}/benchmark.py --describe --aot=h100:1', 'aot is no'),
    (
      'evaluate --prediction=a --labels=b --image=c',
      'image goes with --panels',
    ),
    (
      'predict --workdir=a --input=b --output=c --threshold=0.5',
      'threshold goes with --segmentation',
    ),
    (
      f'tools/profile.py {CONFIG}/unet.py --output=a --aot=h100:1 --steps=5',
      'steps does nothing with --aot',
    ),
    ('tools/reproduce.py --study=gates --rounds=1 --status', 'status does'),
    (
      'tools/reproduce.py --study=gates --scale=smoke --source=auto',
      'source does nothing with --scale=smoke',
    ),
    ('tools/hostile.py --output=a --fuzz=9', 'fuzz goes with --stack'),
  ],
)
def test_a_flag_that_would_do_nothing_is_refused(
  command, monkeypatch, tmp_path, words, said
):
  monkeypatch.chdir(tmp_path)
  outcome = command(*words.split())
  assert outcome.code == 2
  assert outcome.err.startswith(f'error: --{said}')
  assert not os.listdir()


@pytest.mark.parametrize(
  'words',
  [
    f'tools/recording_cost.py {CONFIG}/long_short.py:smoke --rounds=0',
    'tools/large_volume.py --workdir=a --output=b --rounds=0',
    f'tools/torch_peer.py {CONFIG}/long_short.py:smoke --rounds=0',
    'tools/hostile.py --output=a --stack=b --fuzz=0',
  ],
)
def test_a_tool_refuses_to_measure_nothing(
  command, monkeypatch, tmp_path, words
):
  monkeypatch.chdir(tmp_path)
  outcome = command(*words.split())
  flag = words.rpartition('--')[2].removesuffix('=0')
  assert outcome.code == 2
  assert outcome.err.startswith(f"error: --{flag} is '0'; give a whole number")
  assert outcome.err.count('\n') == 1
  assert not os.listdir()


@pytest.mark.parametrize('flag', ['--help', '--helpshort', '--helpfull', '-?'])
@pytest.mark.parametrize('before', [[], [f'{CONFIG}/long_short.py:smoke']])
def test_help_exits_with_0(command, flag, before):
  for arguments in ([*before, flag], [flag, *before]):
    outcome = command('train', *arguments)
    assert (outcome.code, outcome.err) == (0, '')
    assert '--workdir: Folder of the run' in outcome.out


@pytest.mark.parametrize(
  'main',
  [
    *('predict', 'export', 'evaluate', 'gradflow', 'benchmark'),
    *(
      f'tools/{path.name}'
      for path in (ROOT / 'tools').glob('*.py')
      if "__name__ == '__main__'" in path.read_text()
    ),
  ],
)
def test_every_command_and_tool_has_help(command, main):
  outcome = command(main, '--help')
  assert (outcome.code, outcome.err) == (0, '')
  assert '--help' in outcome.out


@pytest.fixture
def train(command, monkeypatch, tmp_path):
  """Runs train where the training raises an error."""

  def call(error):
    def broken(*_):
      raise error

    monkeypatch.setattr(loop, 'train_and_evaluate', broken)
    return command(
      'train', f'{CONFIG}/long_short.py:smoke', f'--workdir={tmp_path}'
    )

  return call


def test_an_interrupted_run_prints_how_to_resume(train):
  outcome = train(KeyboardInterrupt())
  assert outcome.code == 130
  assert 'run the same command again to resume' in outcome.out


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_reported_in_a_sentence(train, code):
  outcome = train(OSError(code, os.strerror(code), 'runs/metrics.jsonl'))
  assert outcome.code == 1
  assert outcome.err.startswith(
    'error: runs/metrics.jsonl could not be written'
  )
  assert 'free some space' in outcome.err


# As GPUs and CPUs say it.
@pytest.mark.parametrize('words', ['RESOURCE_EXHAUSTED: ', 'INTERNAL: Error: '])
def test_a_device_out_of_memory_is_reported_in_a_sentence(train, words):
  outcome = train(
    jax.errors.JaxRuntimeError(
      f'{words}Out of memory allocating 5 bytes.\nMore'
    )
  )
  assert outcome.code == 1
  assert 'allocating 5 bytes.): give a smaller train.batch_size' in outcome.err
  assert 'Traceback' not in outcome.err
  with pytest.raises(RuntimeError, match='INTERNAL'):
    train(jax.errors.JaxRuntimeError('INTERNAL: something else'))


def test_a_number_that_is_not_finite_is_reported_in_a_sentence(train):
  outcome = train(FloatingPointError('invalid value (nan) in jit(step).\nMore'))
  assert outcome.code == 1
  assert outcome.err.startswith('error: JAX_DEBUG_NANS is set, and a number')
  assert 'jit(step).): unset it' in outcome.err


def test_platforms_without_a_device_are_refused(train, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  with pytest.raises(AssertionError):
    train(AssertionError())

  def devices():
    raise AssertionError

  monkeypatch.setattr(jax, 'devices', devices)
  outcome = train(AssertionError())
  assert outcome.code == 2
  assert outcome.err.startswith(
    "error: JAX_PLATFORMS is 'cuda', but JAX cannot use that (there is no such"
  )


def test_devices_that_no_variable_names_are_refused(train, monkeypatch):
  monkeypatch.delenv('JAX_PLATFORMS')
  outcome = train(RuntimeError("Unable to initialize backend 'cpu': none."))
  assert outcome.code == 2
  assert outcome.err.startswith(
    "error: JAX cannot use any device (Unable to initialize backend 'cpu': "
  )
  assert 'unset XLA_FLAGS and JAX_NUM_CPU_DEVICES' in outcome.err


@pytest.mark.parametrize('value', ['0', '-3', '1.5', 'many', ''])
def test_a_number_of_threads_that_numba_cannot_use(train, monkeypatch, value):
  monkeypatch.setenv('NUMBA_NUM_THREADS', value)
  outcome = train(ZeroDivisionError())
  assert (outcome.code, outcome.err.count('\n')) == (2, 1)
  assert outcome.err.startswith(f'error: NUMBA_NUM_THREADS is {value!r}, but')


@pytest.mark.parametrize(
  ('name', 'error'),
  [
    # As JAX, Flax and Numba put it.
    ('JAX_LOG_A', ValueError('Invalid value "so" for JAX flag jax_log_a')),
    ('FLAX_A', ValueError("invalid truth value 'so' for environment 'FLAX_A'")),
    ('NUMBA_OPT', RuntimeWarning("Environment variable 'NUMBA_OPT' is 'so'")),
    ('NUMBA_A', RuntimeError("Unknown class: 'so' specified via NUMBA_A")),
  ],
)
def test_a_variable_that_a_library_cannot_use(train, monkeypatch, name, error):
  monkeypatch.setenv(name, 'so')
  outcome = train(error)
  assert (outcome.code, outcome.err.count('\n')) == (2, 1)
  assert outcome.err.startswith(f"error: {name} is 'so', which cannot be used")
  # An error that has nothing to do with it.
  monkeypatch.setenv(name, 'another')
  with pytest.raises(type(error)):
    train(error)


def test_the_backend_of_figures_is_ignored(train, monkeypatch):
  monkeypatch.setenv('MPLBACKEND', 'nonsense')
  train(errors.Stopped(''))
  assert os.environ['MPLBACKEND'] == 'agg'


def test_a_stopped_run_ends_well(train):
  outcome = train(errors.Stopped('Stopped by SIGTERM after epoch 3.'))
  assert (outcome.code, outcome.err) == (0, '')
  assert outcome.out == 'Stopped by SIGTERM after epoch 3.\n'


def test_unexpected_errors_keep_their_traceback(train):
  with pytest.raises(PermissionError):
    train(PermissionError(errno.EACCES, 'no', 'file'))
  with pytest.raises(ZeroDivisionError):
    train(ZeroDivisionError())
