"""Shared by the commands: reads flags, and turns errors into messages."""

from collections.abc import Callable
import difflib
import functools
import io
import itertools
import logging as python_logging
import os
import re
import signal
import sys
from typing import Any, NoReturn, TypeVar
import warnings

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_dict
from ml_collections.config_flags import config_flags
from ml_collections.config_flags import tuple_parser

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
_MODEL_NAME = r'(?m)^--?config\.model\.name[=\n](.*)$'
# Sections of a config that not every experiment has: an experiment that does,
# and where their fields are.
_SECTIONS = {
  'benchmark': ('benchmark', 'skipnet_jax/benchmarking/plan.py'),
  'variants': ('gradient_flow', 'the experiment file'),
}


class _ExperimentParser(config_flags.ConfigFileFlagParser):
  """Reads an experiment file, and completes config.model.

  With `--config.model.name`, config.model becomes the defaults of that network,
  which other flags then override.

  Attributes:
    config: what was read last.
  """

  config: config_dict.ConfigDict | None = None

  def parse(self, path: str) -> config_dict.ConfigDict:
    """The locked config of `FILE`, `NAME` or either with `:preset`."""
    # Imported late, so that --help does not wait for JAX.
    from skipnet_jax import config as config_lib
    from skipnet_jax import config_checks
    from skipnet_jax import models

    file, *preset = path.rsplit(':', 1)
    # A folder may have a colon in its name.
    if preset and ('/' in preset[0] or os.path.isfile(path)):
      file, preset = path, []
    try:
      config = config_lib.load_experiment(
        environment.expand_home(file), *preset
      )
      config_checks.check_whole(config)
      names = re.findall(_MODEL_NAME, _given())
      fields = config.model.to_dict()
      if names and names[-1] != fields.get('name'):
        fields = {'name': names[-1]}
      if 'name' in fields:
        config.model = models.model_config(**fields)
    except errors.InputError as e:
      refuse(str(e))
    self.config = config
    return config.lock()


def _parse(several: str, argv: list[str]) -> list[str]:
  parser = _ExperimentParser('config')
  if 'config' in flags.FLAGS:
    flags.FLAGS['config'].parser = parser
  try:
    argv = repeat_flag(several, argv) if several else argv
    rest = flags.FLAGS(last_of_each(argv))
    _expand_home()
    _refuse_empty()
    return rest
  except errors.InputError as e:
    refuse(str(e))
  except flags.Error as e:
    _refuse_variable(e)
    refuse(_explain(e))
  except SystemExit as e:
    # absl exits with 1 after --help.
    sys.exit(0 if e.code == 1 else e.code)
  except (AttributeError, LookupError, TypeError, ValueError):
    # ml_collections has an error for each way in which a field can be wrong.
    if parser.config is not None:
      _refuse_unknown_field(parser.config)
    raise


def _explain(e: flags.Error) -> str:
  """An error of absl as a sentence with the flag, its value and the remedy."""
  text, cause = str(e), e.__context__
  found = re.match('flag --([^=]+)=(.*)', text, re.DOTALL)
  if found and cause is not None and found[1] in flags.FLAGS:
    name, value = found[1], found[2].removesuffix(f': {cause}')
    need = _need(flags.FLAGS[name])
    if not need:
      reason = ' '.join(str(cause).split()).rstrip('.')
      return f'--{name} is {value!r}, which cannot be read ({reason}).'
    return f'--{name} is {value!r}; give {need}.'
  found = re.fullmatch('Missing value for flag --?(.*)', text)
  if found:
    return f'--{found[1]} is given without a value: give one, or leave it out.'
  if isinstance(e, flags.UnrecognizedFlagError):
    if e.flagname.startswith('config.') and 'config' in flags.FLAGS:
      return (
        f'--{e.flagname} is given without an experiment: give one with '
        '--config=NAME.'
      )
    near = re.search(r'Did you mean: ([^\s,]+)', text)
    return f'Unknown flag --{e.flagname}: ' + (
      f'did you mean --{near[1]}?' if near else '--help lists all flags.'
    )
  return ' '.join(text.split())


def _need(flag: flags.Flag) -> str:
  """What the value of a flag must be, in words; '' if it is not known."""
  parser = flag.parser
  if isinstance(parser, flags.BooleanParser):
    return 'true or false'
  if isinstance(parser, flags.EnumParser):
    choices = ', '.join(parser.enum_values)
    return f'one of {choices}' if len(parser.enum_values) > 1 else choices
  if isinstance(parser, flags.IntegerParser | flags.FloatParser):
    low, high = parser.lower_bound, parser.upper_bound
    limits = [f'at least {low}'] if low is not None else []
    limits += [f'at most {high}'] if high is not None else []
    kind = 'a whole number' if parser.flag_type() == 'int' else 'a number'
    return f'{kind}{" of " if limits else ""}{" and ".join(limits)}'
  if isinstance(parser, tuple_parser.TupleParser):
    return '''a list of values, such as "(1, 2)" or "('a', 'b')"'''
  if flag.name.startswith('config.'):
    return f'its fields one by one, as --{flag.name}.FIELD=VALUE'
  return ''


def _refuse_unknown_field(config: config_dict.ConfigDict) -> None:
  """Refuses the first `--config.FIELD` that a config does not have."""
  for path in re.findall(r'(?m)^--?(?:no)?config\.([^=\n]*)', _given()):
    found: Any = config
    known: list[str] = []
    for name in re.findall(r'[^.\[\]\'"]+', path) or ['']:
      section, field = '.'.join(known), '.'.join([*known, name])
      if not isinstance(found, config_dict.ConfigDict):
        refuse(
          f'The config field {section} has no parts: give it as a whole, '
          f'--config.{section}=VALUE.'
        )
      if name not in found:
        refuse(f'Unknown config field {field}: {_where(found, known, name)}')
      known.append(name)
      found = found[name]


def _given() -> str:
  """The words of the command, one in a line."""
  return '\n'.join(sys.argv)


def _where(section: config_dict.ConfigDict, path: list[str], name: str) -> str:
  """The end of a message on a field that a section of a config lacks."""
  close = difflib.get_close_matches(name, list(section), 1)
  if close:
    return f'did you mean {".".join([*path, close[0]])}?'
  if not path:
    if name in _SECTIONS:
      return f'this experiment has none; --config={_SECTIONS[name][0]} has one.'
    return 'skipnet_jax/config.py has all fields.'
  if path[0] == 'model':
    return f'this network has {", ".join(section)}.'
  _, place = _SECTIONS.get(path[0], ('', 'skipnet_jax/config.py'))
  return f'{place} has all fields of {path[0]}.'


def _expand_home() -> None:
  """Expands `~` in all flags; a shell does not do so after `--flag=`.

  A comma too many gives an empty name, which is left out of its list.
  """
  for name in flags.FLAGS:
    flag = flags.FLAGS[name]
    if isinstance(flag.value, str):
      flag.value = environment.expand_home(flag.value)
    elif isinstance(flag.value, list):
      flag.value = [
        environment.expand_home(value) if isinstance(value, str) else value
        for value in flag.value
        if value != ''
      ]


def _refuse_empty() -> None:
  """Refuses flags that are given as `--flag=`; fields of a config may be."""
  for name in flags.FLAGS:
    given = flags.FLAGS[name].present and not name.startswith('config.')
    if given and flags.FLAGS[name].value in ('', []):
      refuse(f'--{name} is given without a value: give one, or leave it out.')


def last_of_each(argv: list[str]) -> list[str]:
  """Leaves out all but the last `--config.FIELD=VALUE` of each field.

  ml_collections would join tuples that are given twice.
  """
  last = {_field(word): at for at, word in enumerate(argv)}
  return [
    word
    for at, word in enumerate(argv)
    if not _field(word) or last[_field(word)] == at
  ]


def _field(word: str) -> str:
  found = re.match(r'--?(config\.[^=]*)=', word)
  return found[1] if found else ''


def repeat_flag(name: str, argv: list[str]) -> list[str]:
  """Turns `--name A B` into `--name=A --name=B`, as absl reads a list."""
  result, inside = [], False
  for word, after in itertools.zip_longest(argv, argv[1:], fillvalue='-'):
    if word.startswith('-'):
      inside = word == f'--{name}' or word.startswith(f'--{name}=')
      if word != f'--{name}':
        result.append(word)
      elif after.startswith('-'):
        # Without a value; refused later.
        result.append(f'--{name}=')
    else:
      result.append(f'--{name}={word}' if inside else word)
  return result


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
