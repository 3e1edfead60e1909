"""Shared by the commands: reads flags, and turns errors into messages."""

from collections.abc import Callable
import errno
import functools
import logging as python_logging
import os
import re
import sys
from typing import NoReturn, TypeVar

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_dict
from ml_collections.config_flags import config_flags

from skipnet_jax import environment
from skipnet_jax import errors

Value = TypeVar('Value')

# Full disk, exceeded quota, exceeded limit on file sizes.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# In JAX's messages, by backend.
_OUT_OF_MEMORY = ('RESOURCE_EXHAUSTED', 'Out of memory')
_MODEL_NAME = r'(?m)^--?config\.model\.name[=\n](.*)$'


class _ExperimentParser(config_flags.ConfigFileFlagParser):
  """Reads an experiment file, and completes config.model.

  With `--config.model.name`, config.model becomes the defaults of that network,
  which other flags then override.
  """

  def parse(self, path: str) -> config_dict.ConfigDict:
    """The locked config, or an object with the error of an unreadable file."""
    config = super().parse(path)
    if isinstance(config, config_dict.ConfigDict) and 'model' in config:
      from skipnet_jax import models

      names = re.findall(_MODEL_NAME, '\n'.join(sys.argv))
      fields = config.model.to_dict()
      if names and names[-1] != fields.get('name'):
        fields = {'name': names[-1]}
      if 'name' in fields:
        try:
          config.model = models.model_config(**fields)
        except errors.InputError as e:
          refuse(str(e))
        config.lock()
    return config


def _parse(several: str, argv: list[str]) -> list[str]:
  if 'config' in flags.FLAGS:
    flags.FLAGS['config'].parser = _ExperimentParser('config')
  try:
    return flags.FLAGS(repeat_flag(several, argv) if several else argv)
  except flags.Error as e:
    # ml_collections adds the traceback to an error inside a config file.
    refuse(str(e).strip().rsplit('InputError: ', 1)[-1])
  except OSError as e:
    refuse(_unreadable(e))
  except (AttributeError, KeyError) as e:
    # An unknown config field; ml_collections names the nearest.
    field = re.search(r'\w+', str(e))
    near = re.search(r'Did you mean \W*(\w+)', str(e))
    refuse(
      f'Unknown config field {field[0] if field else e}: '
      + (
        f'did you mean {near[1]}?'
        if near
        else 'neither this model nor skipnet_jax/config.py has it.'
      )
    )


def repeat_flag(name: str, argv: list[str]) -> list[str]:
  """Turns `--name A B` into `--name=A --name=B`, as absl reads a list."""
  result, inside = [], False
  for word in argv:
    if word.startswith('-'):
      inside = word == f'--{name}' or word.startswith(f'--{name}=')
      if word != f'--{name}':
        result.append(word)
    else:
      result.append(f'--{name}={word}' if inside else word)
  return result


def refuse(message: str, code: int = 2) -> NoReturn:
  """Prints an error message and exits."""
  print(f'error: {message}', file=sys.stderr)
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
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _without_tensorstore(hook: Callable, unraisable) -> None:
  """Ignores errors of tensorstore's threads after a failed write."""
  if str(unraisable.exc_value) != 'Event loop is closed':
    hook(unraisable)


def run(
  main: Callable[[], None],
  interrupted: str = 'run the same command again to resume.',
  several: str = '',
) -> None:
  """Parses the flags, calls `main`, and turns bad input into exit code 2.

  Any other exception keeps its traceback and exits with code 1.

  Args:
    main: the command.
    interrupted: printed after Ctrl-C.
    several: a multi_string flag that takes all words up to the next flag.
  """
  _use_large_pages()
  # JAX keeps compiled programs for later commands. An empty value turns it off.
  os.environ.setdefault(
    'JAX_COMPILATION_CACHE_DIR', str(environment.cache_dir() / 'compiled')
  )
  # Modules in a tool's folder must not hide others, as tools/profile.py would
  # hide Python's `profile`.
  if sys.path[0] == os.path.dirname(os.path.abspath(sys.argv[0])):
    del sys.path[0]
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
      if e.errno not in _FULL:
        raise
      name = e.filename or 'A file'
      refuse(
        f'{name} could not be written ({e.strerror}): free some space and run '
        'the same command again.',
        1,
      )
    except RuntimeError as e:
      # JAX's own error class is not named, so that JAX is not imported here.
      if not any(word in str(e) for word in _OUT_OF_MEMORY):
        raise
      refuse(
        f'The device is out of memory ({str(e).splitlines()[0][:160]}): give a '
        'smaller train.batch_size, data.crop or --tile, or '
        'model.dtype=bfloat16.',
        1,
      )
    except KeyboardInterrupt:
      print(f'\nInterrupted; {interrupted}')
      sys.exit(130)

  # Orbax and its event loop log a failed write; the RunError reports it.
  logging.set_verbosity(logging.FATAL)
  python_logging.getLogger('asyncio').setLevel(python_logging.CRITICAL)
  sys.unraisablehook = functools.partial(
    _without_tensorstore, sys.unraisablehook
  )
  app.run(call, flags_parser=functools.partial(_parse, several))


def require(flag: flags.FlagHolder[Value | None]) -> Value:
  """The value of a flag; refuses a missing one with its help text."""
  if not flag.value:
    refuse(f'No --{flag.name} given: {flags.FLAGS[flag.name].help}')
  return flag.value


def require_config(value) -> None:
  """Refuses a missing --config, or a file that could not be read."""
  if value is None:
    raise errors.InputError(
      'No experiment given: use, for example, '
      '--config=experiments/long_short.py.'
    )
  try:
    value.keys()
  except (AttributeError, OSError) as e:
    raise errors.InputError(_unreadable(e)) from e


def _unreadable(e: Exception) -> str:
  # ml_collections lists its attempts; the reason is in the last line.
  reason = str(e).strip().splitlines()[-1].strip()
  return (
    f'The experiment file could not be read ({reason}): give an existing one, '
    'such as experiments/long_short.py.'
  )
