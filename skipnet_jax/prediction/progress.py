"""Shows how many slices are done, and the time that is left."""

from collections.abc import Callable, Iterator
import contextlib
import sys
import time

import tqdm

# Seconds between two lines where there is no terminal.
_PAUSE = 60
_BAR = '{percentage:3.0f}%|{bar}| {n:.0f} of {total} slices, {remaining} left'


@contextlib.contextmanager
def progress(
  slices: int, parts: int, pause: float = _PAUSE
) -> Iterator[Callable[[], None]]:
  """Yields a function to call after each part of the work.

  On standard error: a bar if that is a terminal, else a line a minute.

  Args:
    slices: their number.
    parts: of all slices together, each about the same work.
    pause: seconds between two lines.
  """
  with tqdm.tqdm(
    total=slices,
    bar_format=_BAR,
    dynamic_ncols=True,
    disable=not sys.stderr.isatty(),
  ) as bar:
    begin = shown = time.monotonic()
    done = 0

    def advance() -> None:
      nonlocal done, shown
      done += 1
      bar.update(slices / parts)
      now = time.monotonic()
      if bar.disable and now - shown >= pause:
        shown = now
        left = tqdm.tqdm.format_interval((now - begin) * (parts / done - 1))
        finished = slices * done // parts
        text = f'{finished} of {slices} slices, {left} left'
        print(text, file=sys.stderr, flush=True)

    yield advance
