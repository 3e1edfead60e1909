"""Reads the words of a command: flags, and fields of a config."""

import difflib
import itertools
import os
import re
import sys
from typing import Any

from absl import flags
from ml_collections import config_dict
from ml_collections.config_flags import config_flags
from ml_collections.config_flags import tuple_parser

from skipnet_jax import environment
from skipnet_jax import errors

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
    refused: why an experiment cannot be used. absl would take such an error
      for one of its own.
  """

  config: config_dict.ConfigDict | None = None
  refused: errors.InputError | None = None

  def parse(self, path: str) -> config_dict.ConfigDict:
    """The locked config of `FILE`, `NAME` or either with `:preset`."""
    try:
      self.config = self._load(path)
    except errors.InputError as e:
      self.refused = e
      raise
    return self.config.lock()

  def _load(self, path: str) -> config_dict.ConfigDict:
    # Imported late, so that --help does not wait for JAX.
    from skipnet_jax import config as config_lib
    from skipnet_jax import config_checks
    from skipnet_jax import models

    file, *preset = path.rsplit(':', 1)
    # A folder may have a colon in its name.
    if preset and ('/' in preset[0] or os.path.isfile(path)):
      file, preset = path, []
    config = config_lib.load_experiment(environment.expand_home(file), *preset)
    config_checks.check_whole(config)
    names = re.findall(_MODEL_NAME, _given())
    fields = config.model.to_dict()
    if names and names[-1] != fields.get('name'):
      fields = {'name': names[-1]}
    if 'name' in fields:
      config.model = models.model_config(**fields)
    return config


def parse(several: str, argv: list[str]) -> list[str]:
  """Parses the words of a command into `flags.FLAGS`.

  Args:
    several: a multi_string flag that takes all words up to the next flag, ''
      for none.
    argv: the program and its words.

  Returns:
    The program, and words that belong to no flag.

  Raises:
    InputError: a flag, a field of a config or an experiment that cannot be
      used; its cause is absl's error, if absl found it.
  """
  parser = _ExperimentParser('config')
  # absl makes one parser only, however often it is asked.
  parser.config = parser.refused = None
  if 'config' in flags.FLAGS:
    flags.FLAGS['config'].parser = parser
  try:
    argv = repeat_flag(several, argv) if several else argv
    rest = flags.FLAGS(last_of_each(argv))
    _expand_home()
    _refuse_empty()
    return rest
  except errors.InputError:
    raise
  except flags.Error as e:
    if parser.refused is not None:
      raise parser.refused from None
    raise errors.InputError(_explain(e)) from e
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
        raise errors.InputError(
          f'The config field {section} has no parts: give it as a whole, '
          f'--config.{section}=VALUE.'
        )
      if name not in found:
        raise errors.InputError(
          f'Unknown config field {field}: {_where(found, known, name)}'
        )
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
      raise errors.InputError(
        f'--{name} is given without a value: give one, or leave it out.'
      )


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
