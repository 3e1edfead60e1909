"""Folders of arrays in chunks, local or in a bucket, by tensorstore."""

from collections.abc import Callable, Iterator
import contextlib
import errno
import json
import os
import pathlib
import re
from typing import Any, TypeVar

import tensorstore as ts

from skipnet_jax import errors

Place = pathlib.Path | str  # A path, or a URL.

_Found = TypeVar('_Found')

_URL = re.compile(r'(s3|gs|https?)://.')
# Seconds; a bucket that does not answer is given up after that many retries.
_TIMEOUT = 120
_RETRIES = {'max_retries': 6, 'max_delay': '4s'}
_CONTEXT = {
  f'{kind}_request_retries': _RETRIES for kind in ('http', 's3', 'gcs')
}
# S3's own library reports credentials that it does not find at length.
_ANONYMOUS = {'aws_credentials': {'type': 'anonymous'}}
_DENIED = ('PERMISSION_DENIED', 'UNAUTHENTICATED')
_SILENT = ('ABORTED', 'UNAVAILABLE', 'DEADLINE_EXCEEDED')
_FULL = {
  os.strerror(number): number
  for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
}


def is_url(place: str | os.PathLike) -> bool:
  """Whether a place is a URL that can be read."""
  return bool(_URL.match(os.fspath(place)))


@contextlib.contextmanager
def refusing(
  place: Place, what: str, remedy: str = 'copy or export it again'
) -> Iterator[None]:
  """Turns an error of tensorstore into an `InputError` of one sentence.

  Except for a full disk: the commands treat it alike for all files.
  """
  try:
    yield
  except errors.InputError:
    raise
  except (ValueError, TimeoutError, OSError, NotImplementedError) as e:
    # What follows is for the authors of tensorstore.
    text = re.split(
      r' \[(?:tensorstore_spec|source locations)=', ' '.join(str(e).split())
    )[0]
    for message, number in _FULL.items():
      if message in text:
        raise OSError(number, message, str(place)) from e
    code, _, reason = text.partition(': ')
    if is_url(place) and code in _DENIED:
      reason = 'the bucket refuses it'
      remedy = (
        'set AWS_PROFILE (s3://) or GOOGLE_APPLICATION_CREDENTIALS (gs://) to '
        'credentials that may read it'
      )
    elif code in _SILENT or isinstance(e, TimeoutError):
      reason = reason or 'it does not answer'
      remedy = 'check the address and the network'
    elif code in _DENIED:
      remedy = 'change its permissions'
    raise errors.InputError(
      f'{place} {what}: {(reason or text)[:400].rstrip(".")}; {remedy}'
    ) from e


class Folder:
  """A folder, or the prefix of a bucket.

  Args:
    place: a path, or a URL: s3://, gs://, http://, https://.

  Raises:
    InputError: a bucket that cannot be read.
  """

  def __init__(self, place: Place):
    self.place = place
    self._contexts = [ts.Context(_CONTEXT)]
    if str(place).startswith('s3://'):
      # Public buckets need no credentials, and may refuse others'.
      self._contexts.insert(0, ts.Context(_CONTEXT | _ANONYMOUS))

  def at(self, path: str) -> Any:
    """The specification of a folder below this one; '': of this one."""
    end = f'{path.strip("/")}/' if path.strip('/') else ''
    if is_url(self.place):
      return f'{str(self.place).rstrip("/")}/{end}'
    root = os.path.abspath(self.place)
    return {'driver': 'file', 'path': os.path.normpath(f'{root}/{end}') + '/'}

  def read_json(self, name: str) -> dict[str, Any] | None:
    """The object in a JSON file of the folder; None if there is no such file.

    Raises:
      InputError: it cannot be read, or holds no object.
    """
    path, _, name = name.rpartition('/')
    with refusing(self.place, f'cannot be read at {name}'):
      found = self._first(
        lambda context: (
          ts.KvStore.open(self.at(path), context=context)
          .result(timeout=_TIMEOUT)
          .read(name)
          .result(timeout=_TIMEOUT)
        )
      )
    if found.state == 'missing':
      return None
    try:
      value = json.loads(found.value)
    except (ValueError, RecursionError):
      value = None
    if not isinstance(value, dict):
      raise errors.InputError(
        f'{self.place} has a damaged {name}; copy or export it again'
      )
    return value

  def open_array(
    self, driver: str, path: str, **options: Any
  ) -> ts.TensorStore:
    """Opens an array to read it, where missing chunks are an error.

    Args:
      driver: tensorstore's name of the format.
      path: of the array, within the folder.
      **options: more members of its specification.

    Raises:
      InputError: there is none, or it cannot be read.
    """
    spec = {
      'driver': driver,
      'kvstore': self.at(path),
      'fill_missing_data_reads': False,
      **options,
    }
    with refusing(self.place, f'cannot be opened at {path or driver}'):
      return self._first(
        lambda context: ts.open(
          spec, open=True, read=True, context=context
        ).result(timeout=_TIMEOUT)
      )

  def filling(self, array: ts.TensorStore) -> ts.TensorStore:
    """The same array, where missing chunks have the fill value."""
    spec = array.spec().to_json()
    del spec['fill_missing_data_reads']
    return ts.open(spec, context=self._contexts[0]).result(timeout=_TIMEOUT)

  def _first(self, call: Callable[[ts.Context], _Found]) -> _Found:
    """What a call gives with the first context that is not refused."""
    while True:
      try:
        return call(self._contexts[0])
      except ValueError as e:
        if len(self._contexts) == 1 or not str(e).startswith(_DENIED):
          raise
        del self._contexts[0]


def is_missing(error: ValueError) -> bool:
  """Whether a read failed as a chunk is not there."""
  return str(error).startswith('NOT_FOUND')
