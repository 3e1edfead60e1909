"""The one exception for input that cannot be used."""


class InputError(ValueError):
  """What the user gave cannot be used.

  `str(error)` is the whole message: one sentence with the value, the limit and
  the remedy. Mains print it without a traceback and exit with code 2.
  """


class RunError(RuntimeError):
  """A run that broke on the way, with what was seen and where to look.

  Mains print it without a traceback and exit with code 1.
  """


class Stopped(Exception):
  """A run that was told to stop, and has kept all it did.

  Mains print it and exit with code 0.
  """
