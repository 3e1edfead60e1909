"""Standard output and error whose loss does not end a command."""

import contextlib
import io
import os
import select
import sys


class _Output(io.FileIO):
  """A standard stream; after a failed write it discards everything.

  The reader of the pipe or the terminal may be gone, or the disk full.

  Attributes:
    failure: of the first write that failed.
  """

  failure: OSError | None = None

  def write(self, data) -> int:
    """Returns the number of bytes that are written or discarded."""
    while True:
      try:
        written = super().write(data)
      except OSError as e:
        self.failure = e
        # Libraries write there too, without this object.
        _discard(self.fileno())
        continue
      if written is not None:
        return written
      # It does not block, and is full.
      select.select([], [self], [])


def _discard(number: int) -> None:
  null = os.open(os.devnull, os.O_RDWR)
  if null != number:
    os.dup2(null, number)
    os.close(null)


def protect() -> None:
  """Makes this process independent of its standard streams.

  A closed one is replaced by /dev/null: otherwise the next file that is opened
  would get its number, and the messages that libraries write to it.
  """
  for number, name in enumerate(('stdin', 'stdout', 'stderr')):
    stream = getattr(sys, name)
    try:
      os.fstat(number)
    except OSError:
      _discard(number)
    if number and stream is None:
      setattr(sys, name, open(os.devnull, 'w'))  # noqa: SIM115
    elif number and stream is getattr(sys, f'__{name}__'):
      with contextlib.suppress(OSError):
        stream.flush()
      raw = _Output(number, 'w', closefd=False)
      through = stream.write_through
      output = io.TextIOWrapper(
        raw if through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=through,
      )
      setattr(sys, name, output)


def failure() -> OSError | None:
  """Why standard output was not written; None if it was."""
  sys.stdout.flush()
  buffer = getattr(sys.stdout, 'buffer', None)
  return getattr(getattr(buffer, 'raw', buffer), 'failure', None)
