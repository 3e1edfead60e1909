"""Downloads the ISBI 2012 challenge's stacks and verifies their pixels.

Usage: python tools/fetch_isbi.py [--folder FOLDER] [--timeout SECONDS]
"""

import argparse
import pathlib
import sys

from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax.data import isbi2012


def main() -> int:
  """Returns the exit code: 0, or 2 after an error message."""
  parser = argparse.ArgumentParser(description=isbi2012.__doc__)
  parser.add_argument(
    '--folder', type=pathlib.Path, default=environment.cache_dir() / 'isbi2012'
  )
  parser.add_argument('--timeout', type=float, default=5.0)
  parser.add_argument('--url', default=isbi2012.URL)
  args = parser.parse_args()
  try:
    folder = isbi2012.download(args.folder, args.timeout, url=args.url)
  except errors.InputError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(f'the ISBI 2012 stacks are in {folder}; their pixels are verified')
  return 0


if __name__ == '__main__':
  sys.exit(main())
