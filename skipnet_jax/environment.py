"""Versions, git state, CPU cores and cache folder; without importing JAX."""

from collections.abc import Iterable
import datetime
import importlib.metadata
import os
import pathlib
import subprocess
import sys

# Makes XLA's results on a GPU bit-identical every time.
DETERMINISTIC = '--xla_gpu_deterministic_ops=true'


def versions(packages: Iterable[str]) -> dict[str, str | None]:
  """Installed version of each package; None if it is not installed."""
  installed: dict[str, str | None] = {}
  for name in packages:
    try:
      installed[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      installed[name] = None
  return installed


def command() -> str:
  """The command of this process, without the folder of its program."""
  return ' '.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])


def now() -> str:
  """The date and time in UTC, ISO 8601, to the second."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def cache_dir() -> pathlib.Path:
  """`$SKIPNET_CACHE_DIR`, or `~/.cache/skipnet_jax`; may not exist yet."""
  given = os.environ.get('SKIPNET_CACHE_DIR')
  return pathlib.Path(given or os.path.expanduser('~/.cache/skipnet_jax'))


def usable_cores() -> int:
  """Logical CPU cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def git_state() -> str:
  """`git describe --always --dirty` of the package, if it is a checkout."""
  root = pathlib.Path(__file__).parents[1]
  if not (root / '.git').exists():
    return 'not a checkout'
  try:
    return subprocess.run(
      ['git', '-C', str(root), 'describe', '--always', '--dirty'],
      capture_output=True,
      text=True,
      check=True,
      timeout=10,
    ).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return 'unknown'


def set_deterministic() -> None:
  """Adds DETERMINISTIC to $XLA_FLAGS, before JAX first touches a device."""
  flags = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = f'{flags} {DETERMINISTIC}'
