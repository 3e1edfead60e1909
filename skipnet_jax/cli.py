"""Shared by the commands: runs them, and turns errors into messages."""

from collections.abc import Callable
import functools
import io
import logging as python_logging
import os
import re
import signal
import sys
from typing import NoReturn, TypeVar
import warnings

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_dict

from skipnet_jax import command_line
from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax import programs
from skipnet_jax import signals
from skipnet_jax import stdio

Value = TypeVar('Value')

# In JAX's messages, by backend.
_NO_BACKEND = ('Unable to initialize backend', 'Unknown backend')
_OUT_OF_MEMORY = ('RESOURCE_EXHAUSTED', 'Out of memory')
# Variables of JAX that change results, and what they may be set to.
_ARITHMETIC = {
  'JAX_ENABLE_X64': ('0', 'false', 'f', 'no', 'n', 'off'),
  'JAX_DEFAULT_PRNG_IMPL': ('threefry2x32',),
}
# Variables that libraries read when they are imported.
_VARIABLE = r'(?:JAX|FLAX|NUMBA|PROTOCOL_BUFFERS)_\w+'


def _parse(several: str, argv: list[str]) -> list[str]:
  try:
    return command_line.parse(several, argv)
  except errors.InputError as e:
    if isinstance(e.__cause__, flags.Error):
      _refuse_variable(e.__cause__)
    refuse(str(e))


def refuse(message: str, code: int = 2) -> NoReturn:
  """Prints an error message and exits."""
  print(f'error: {environment.as_called(message)}', file=sys.stderr)
  sys.exit(code)


def _use_large_pages() -> None:
  """Restarts this command with large memory pages, on Linux with glibc.

  XLA's CPU backend allocates and frees gigabytes at every step; with pages of
  2 MB a step takes 0.70 to 0.84 of the time (docs/results.md). glibc reads the
  setting only when a process starts. A setting of the user is kept.
  """
  if sys.platform != 'linux' or 'GLIBC_TUNABLES' in os.environ:
    return
  os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
  # They wait until the new process can handle them.
  signal.pthread_sigmask(signal.SIG_BLOCK, signals.ENDING)
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _print_any_name() -> None:
  """Lets print() escape what standard output's encoding does not have."""
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors='backslashreplace')


def _fix_arithmetic() -> None:
  """Sets JAX's number of bits and random generator as all results need them."""
  for name, fitting in _ARITHMETIC.items():
    given = os.environ.get(name)
    if given and given.lower() not in fitting:
      print(
        f'warning: {name}={given} is ignored: with it the results of a config '
        'would be others.',
        file=sys.stderr,
      )
      os.environ[name] = fitting[0]


def _check_threads() -> None:
  """Refuses a number of threads that Numba cannot use."""
  given = os.environ.get('NUMBA_NUM_THREADS', '1')
  if not given.strip().isdecimal() or not int(given):
    refuse(
      f'NUMBA_NUM_THREADS is {given!r}, but must be an integer of at least 1: '
      'unset or correct it.'
    )


def _refuse_variable(e: Exception) -> None:
  """Refuses an environment variable that the message of an error quotes."""
  reason = ' '.join(str(e).partition('\n')[0].split()).rstrip('.')
  for name in re.findall(_VARIABLE, reason.replace('.', '_').upper()):
    value = os.environ.get(name)
    if value is not None and value in reason:
      refuse(
        f'{name} is {value!r}, which cannot be used ({reason}): unset or '
        'correct it.'
      )


def _refuse_platforms(e: Exception) -> None:
  """Refuses the variables that name JAX's devices, if they cause an error."""
  reason = ' '.join(str(e).split()).partition(' (set JAX')[0].rstrip('.')
  if isinstance(e, AssertionError):
    # JAX's error where it skips all that is named, such as cuda without a GPU.
    import jax

    try:
      jax.devices()
      return
    except AssertionError:
      reason = 'there is no such device'
  elif not any(word in reason for word in _NO_BACKEND):
    return
  platforms = os.environ.get('JAX_PLATFORMS')
  if not platforms:
    refuse(
      f'JAX cannot use any device ({reason}): unset XLA_FLAGS and '
      'JAX_NUM_CPU_DEVICES if they are set.'
    )
  refuse(
    f'JAX_PLATFORMS is {platforms!r}, but JAX cannot use that ({reason}): '
    'unset it, or set it to what this machine has, such as cpu.'
  )


def _without_tensorstore(hook: Callable, unraisable) -> None:
  """Ignores errors of tensorstore's threads after a failed write."""
  if str(unraisable.exc_value) != 'Event loop is closed':
    hook(unraisable)


def _end_of_output() -> None:
  """Exits with 1 if standard output was lost on a full disk."""
  failure = stdio.failure()
  if failure and failure.errno in files.FULL:
    refuse(
      f'Standard output could not be written ({failure.strerror}), and '
      'everything else is done: free some space.',
      1,
    )


def run(
  main: Callable[[], None],
  interrupted: str = 'run the same command again to resume.',
  several: str = '',
) -> None:
  """Parses the flags, calls `main`, and turns bad input into exit code 2.

  Any other exception keeps its traceback and exits with code 1. A command whose
  standard output is lost continues without printing.

  Args:
    main: the command.
    interrupted: printed after Ctrl-C or SIGTERM.
    several: a multi_string flag that takes all words up to the next flag.
  """
  _use_large_pages()
  stdio.protect()
  _print_any_name()
  try:
    programs.keep()
  except errors.InputError as e:
    refuse(str(e))
  _fix_arithmetic()
  _check_threads()
  # Otherwise Numba warns, with a traceback, and uses its default.
  warnings.filterwarnings('error', "Environment variable 'NUMBA_")
  # No figure is shown, so that a wrong name of a backend does no harm.
  os.environ['MPLBACKEND'] = 'agg'
  # Modules in a tool's folder must not hide others, as tools/profile.py would
  # hide Python's `profile`.
  program = os.path.abspath(sys.argv[0])
  if program.endswith('.py') and sys.path[0] == os.path.dirname(program):
    del sys.path[0]
  # absl's --help begins with it.
  sys.modules['__main__'].__doc__ = environment.as_called(
    main.__globals__['__doc__'] or ''
  )
  # Hides XLA's messages at start-up.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '1')

  def call(argv: list[str]) -> None:
    if len(argv) > 1:
      refuse(f'Unknown argument {argv[1]!r}: every option starts with --.')
    try:
      main()
    except errors.InputError as e:
      refuse(str(e))
    except errors.RunError as e:
      refuse(str(e), 1)
    except errors.Stopped as e:
      print(e)
    except OSError as e:
      if e.errno not in files.FULL:
        raise
      name = e.filename or 'A file'
      refuse(
        f'{name} could not be written ({e.strerror}): free some space and run '
        'the same command again.',
        1,
      )
    except (ValueError, RuntimeWarning) as e:
      _refuse_variable(e)
      raise
    except RuntimeError as e:
      _refuse_platforms(e)
      _refuse_variable(e)
      # JAX's own error class is not named, so that JAX is not imported here.
      if not any(word in str(e) for word in _OUT_OF_MEMORY):
        raise
      refuse(
        f'The device is out of memory ({str(e).splitlines()[0][:160]}): give a '
        'smaller train.batch_size, data.crop or --tile, or '
        'model.dtype=bfloat16.',
        1,
      )
    except AssertionError as e:
      _refuse_platforms(e)
      raise
    except FloatingPointError as e:
      refuse(
        f'JAX_DEBUG_NANS is set, and a number is not finite '
        f'({str(e).splitlines()[0][:160]}): unset it to train on, or to see '
        'the layer that causes it.',
        1,
      )
    _end_of_output()

  # Orbax and its event loop log a failed write; the RunError reports it.
  logging.set_verbosity(logging.FATAL)
  python_logging.getLogger('asyncio').setLevel(python_logging.CRITICAL)
  sys.unraisablehook = functools.partial(
    _without_tensorstore, sys.unraisablehook
  )
  with signals.Interruption(interrupted):
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.ENDING)
    app.run(call, flags_parser=functools.partial(_parse, several))


def refuse_given(why: str, *holders: flags.FlagHolder) -> None:
  """Refuses flags that are given although they would do nothing.

  Args:
    why: the rest of the sentence that begins with the flag.
    *holders: the flags.
  """
  for flag in holders:
    if flag.present:
      refuse(f'--{flag.name} {why}')


def require(flag: flags.FlagHolder[Value | None]) -> Value:
  """The value of a flag; refuses a missing one with its help text."""
  if not flag.value:
    refuse(f'No --{flag.name} given; give one: {flags.FLAGS[flag.name].help}')
  return flag.value


def require_config(
  value: config_dict.ConfigDict | None, example: str = 'long_short'
) -> None:
  """Refuses a missing --config.

  Args:
    value: of the flag.
    example: an experiment that the command can use.
  """
  if value is None:
    refuse(f'No experiment given: use, for example, --config={example}.')
