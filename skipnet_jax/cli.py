"""What the mains share: reading flags, and one clear sentence for bad input."""

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

# A disk, a quota or a limit on file sizes is exhausted.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# In what JAX raises, by backend.
_NETWORK = r'(?m)^--?config\.model\.name[=\n](.*)$'
_OUT_OF_MEMORY = ('RESOURCE_EXHAUSTED', 'Out of memory')


class _ExperimentParser(config_flags.ConfigFileFlagParser):
  """Reads an experiment file, and gives config.model its network's fields.

  The network is that of `--config.model.name` where it is given: its fields are
  then its own defaults, for other flags to override.
  """

  def parse(self, path: str) -> config_dict.ConfigDict:
    """The config, locked; of a file that cannot be read, what says so."""
    config = super().parse(path)
    if isinstance(config, config_dict.ConfigDict) and 'model' in config:
      from skipnet_jax import models

      asked = re.findall(_NETWORK, '\n'.join(sys.argv))
      fields = config.model.to_dict()
      if asked and asked[-1] != fields.get('name'):
        fields = {'name': asked[-1]}
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
    return flags.FLAGS(spread(several, argv) if several else argv)
  except flags.Error as e:
    # A config file's own error comes wrapped in its traceback.
    message = str(e).strip()
    if 'InputError: ' in message:
      message = message.rsplit('InputError: ', 1)[1]
    refuse(message)
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


def spread(name: str, argv: list[str]) -> list[str]:
  """`--name A B` as `--name=A --name=B`: how absl reads several values."""
  found, taking = [], False
  for word in argv:
    if word.startswith('-'):
      taking = word == f'--{name}' or word.startswith(f'--{name}=')
      if word == f'--{name}':
        continue
      found.append(word)
    else:
      found.append(f'--{name}={word}' if taking else word)
  return found


def _fail(message: str) -> NoReturn:
  print(f'error: {message}', file=sys.stderr)
  sys.exit(1)


def refuse(message: str) -> NoReturn:
  """Prints the sentence and exits with code 2."""
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)


def _use_large_pages() -> None:
  """Starts this command over with large memory pages, on Linux with glibc.

  XLA's CPU backend asks for gigabytes at every step and gives them back; with
  pages of 2 MB a step takes 0.70 to 0.84 of the time (docs/results.md).
  glibc reads the setting at the start of a process only. One that the user made
  is left alone.
  """
  if sys.platform != 'linux' or 'GLIBC_TUNABLES' in os.environ:
    return
  os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _keep_compiled() -> None:
  """Has JAX keep what it compiles, for the next command to load.

  In `compiled` of the cache; `$JAX_COMPILATION_CACHE_DIR` names another place,
  and turns it off where it is empty.
  """
  os.environ.setdefault(
    'JAX_COMPILATION_CACHE_DIR', str(environment.cache_dir() / 'compiled')
  )


def _pass_over(hook: Callable, unraisable) -> None:
  """A hook without what tensorstore's threads say of a failed write."""
  if str(unraisable.exc_value) != 'Event loop is closed':
    hook(unraisable)


def run(
  main: Callable[[], None],
  interrupted: str = 'the same command goes on from the last checkpoint.',
  several: str = '',
) -> None:
  """Parses the flags, calls `main`, and turns bad input into exit code 2.

  Any other exception keeps its traceback and exits with code 1.

  Args:
    main: the command.
    interrupted: what a person who pressed Ctrl-C should know.
    several: a multi_string flag that takes all words after it, up to the next
      flag.
  """
  _use_large_pages()
  _keep_compiled()
  # A tool's folder is no place to import from: tools/profile.py would stand for
  # Python's own `profile`.
  if sys.path[0] == os.path.dirname(os.path.abspath(sys.argv[0])):
    del sys.path[0]
  # XLA's start-up notes are not for the reader of a training log.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '1')

  def call(argv: list[str]) -> None:
    if len(argv) > 1:
      refuse(f'Unknown argument {argv[1]!r}: every option starts with --.')
    try:
      main()
    except errors.InputError as e:
      refuse(str(e))
    except errors.RunError as e:
      _fail(str(e))
    except errors.Stopped as e:
      print(e)
    except OSError as e:
      if e.errno not in _FULL:
        raise
      name = e.filename or 'A file'
      _fail(
        f'{name} could not be written ({e.strerror}): make space and give '
        'the same command again.'
      )
    except RuntimeError as e:
      # JAX's error, without importing JAX for its name.
      if not any(word in str(e) for word in _OUT_OF_MEMORY):
        raise
      _fail(
        f'The device is out of memory ({str(e).splitlines()[0][:160]}): a '
        'smaller train.batch_size, data.crop or --tile needs less, and so does '
        'model.dtype=bfloat16.'
      )
    except KeyboardInterrupt:
      print(f'\nInterrupted; {interrupted}')
      sys.exit(130)

  # What orbax and its event loop log of a failed write, the RunError says.
  logging.set_verbosity(logging.FATAL)
  python_logging.getLogger('asyncio').setLevel(python_logging.CRITICAL)
  sys.unraisablehook = functools.partial(_pass_over, sys.unraisablehook)
  app.run(call, flags_parser=functools.partial(_parse, several))


def require(*wanted: flags.FlagHolder) -> None:
  """Refuses missing flags, and says what they are."""
  for flag in wanted:
    required(flag)


def required(flag: flags.FlagHolder[Value | None]) -> Value:
  """The value of a flag; refuses a missing one, and says what it is."""
  if not flag.value:
    refuse(f'No --{flag.name} given: {flags.FLAGS[flag.name].help}')
  return flag.value


def require_config(value) -> None:
  """Refuses a missing --config, or a file that could not be read."""
  if value is None:
    raise errors.InputError(
      'No experiment given: --config=experiments/long_short.py, say.'
    )
  try:
    value.keys()
  except (AttributeError, OSError) as e:
    raise errors.InputError(_unreadable(e)) from e


def _unreadable(e: Exception) -> str:
  # ml_collections lists what it tried; the reason comes last.
  reason = str(e).strip().splitlines()[-1].strip()
  return (
    f'The experiment file could not be read ({reason}): give one that is '
    'there, such as experiments/long_short.py.'
  )
