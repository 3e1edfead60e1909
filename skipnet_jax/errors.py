"""The exceptions whose messages the commands print without a traceback."""


class InputError(ValueError):
  """Input that cannot be used; exit code 2.

  `str(error)` is the whole message: one sentence with the value, the limit and
  the remedy.
  """


class RunError(RuntimeError):
  """A run that failed, with the reason and the remedy; exit code 1."""


class Stopped(Exception):
  """A run that was stopped, with all its progress saved; exit code 0."""
