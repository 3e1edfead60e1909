"""The ISBI 2012 EM challenge's stacks: find, verify, load, download.

Drosophila first instar larva ventral nerve cord, serial section TEM at
4 x 4 x 50 nm: 30 training slices of 512x512 with labels (255 inside a cell, 0
membrane) and 30 test slices. Free for generating or testing non-commercial
segmentation software; cite Cardona et al. 2010 (PLoS Biology 8(10): e1000502)
and Arganda-Carreras et al. 2015 (Frontiers in Neuroanatomy 9:142).
"""

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
import os
import pathlib
import threading
from typing import IO, Any
import urllib.error
import urllib.request
import zipfile

import numpy as np
import tqdm

from skipnet_jax import environment
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.data import volume

URL = 'https://downloads.imagej.net/ISBI-2012-challenge.zip'
SHAPE = (30, 512, 512)
PIXEL_SIZE = 4.0  # Nanometres, in y and x.
# Of the decoded pixels in C order, so that re-saving a stack does no harm.
SHA256 = {
  'train-volume.tif': (
    '200da3d452d726e6c9ca1ce04b869d4edb727320d23b516d01cce707dc8c4760'
  ),
  'train-labels.tif': (
    'a7cb64000a1a7e542682927e19c91339f58f9f178e0bcce4e207371116f0ca36'
  ),
  'test-volume.tif': (
    '1b58fa7ec1d0ff9d39a855622db3ff66a97863036339b0d04be51b2f5a99b0e9'
  ),
}
# In the archive too, but of no known hash: extracted, never loaded here.
_TEST_LABELS = 'test-labels.tif'
_MAX_ARCHIVE = 256 * 2**20
_MAX_MEMBER = 64 * 2**20
_CHUNK = 2**16


class DownloadError(errors.InputError):
  """The archive could not be fetched or is not the expected one."""


def given_folders(
  data_dir: str | os.PathLike[str] | None,
) -> list[pathlib.Path]:
  """`data_dir` and `$SKIPNET_DATA_DIR`, as far as they are set."""
  given = (data_dir, os.environ.get('SKIPNET_DATA_DIR'))
  return [
    pathlib.Path(environment.expand_home(os.fspath(p))) for p in given if p
  ]


def find(data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path | None:
  """The folder with the training stacks, or None.

  Looks in `data_dir`, `$SKIPNET_DATA_DIR` and the cache, each directly and in
  its subfolder `isbi2012`, for train-volume.tif and train-labels.tif.
  """
  for place in (*given_folders(data_dir), environment.cache_dir()):
    for folder in (place, place / 'isbi2012'):
      with contextlib.suppress(OSError):  # as good as not there
        names = ('train-volume.tif', 'train-labels.tif')
        if all((folder / name).is_file() for name in names):
          return folder
  return None


def load(
  folder: str | os.PathLike,
  split: str = 'train',
  *,
  sha256: Mapping[str, str] = SHA256,
) -> tuple[np.ndarray, np.ndarray | None]:
  """Image `[30, 512, 512] uint8`, label likewise (None for 'test').

  Raises:
    InputError: a stack is missing, broken, or not pixel for pixel the
      challenge's; a split other than 'train' and 'test'.
  """
  if split not in ('train', 'test'):
    raise errors.InputError(f"split {split!r} is not one of 'train' and 'test'")
  image = _load_verified(folder, f'{split}-volume.tif', sha256)
  if split == 'test':
    return image, None
  return image, _load_verified(folder, 'train-labels.tif', sha256)


def _load_verified(
  folder: str | os.PathLike, name: str, sha256: Mapping[str, str]
) -> np.ndarray:
  path = pathlib.Path(folder, name)
  with volume.open_stack(path) as stack:
    pixels = stack.read_all()
  found = hashlib.sha256(pixels.data).hexdigest()
  if found != sha256[name]:
    raise errors.InputError(
      f"{path} is not the challenge's: its pixels {pixels.shape} "
      f'{pixels.dtype} have SHA-256 {found[:12]}..., expected '
      f'{sha256[name][:12]}...; take {name} from {URL}'
    )
  return pixels


def download(
  folder: str | os.PathLike,
  timeout: float = 5.0,
  progress: bool = True,
  *,
  url: str = URL,
  sha256: Mapping[str, str] = SHA256,
) -> pathlib.Path:
  """Fetches the official archive into `folder` and verifies its stacks.

  Nothing but the archive's four stacks is written, only in `folder`, and only
  after all were verified. A stack that is there is kept.

  Args:
    folder: is made where missing.
    timeout: seconds until the server has to answer, and between two pieces
      of data.
    progress: whether to show a bar.
    url: of the archive.
    sha256: of the decoded pixels by file name.

  Returns:
    `folder`.

  Raises:
    DownloadError: no network, cut off, or not the expected archive.
    InputError: `folder` cannot be written, or has another file of such a name.
  """
  folder = pathlib.Path(folder)
  remedy = (
    f'get {url} by other means, put its .tif files into {folder}, or into any '
    'folder that SKIPNET_DATA_DIR names'
  )
  for name in sha256:
    path = folder / name
    if os.path.lexists(path):
      try:
        _load_verified(folder, name, sha256)
      except errors.InputError as error:
        raise errors.InputError(
          f"{path} exists and is not the challenge's: move it away, or choose "
          'another folder'
        ) from error
  undo = contextlib.ExitStack()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    part = undo.enter_context(files.temporary_folder('.isbi2012.', folder))
  except OSError as error:
    raise errors.InputError(
      f'cannot write into {folder}: {error.strerror}; choose another folder'
    ) from error
  try:
    _fetch(url, part / 'archive.zip', timeout, progress)
    names = _extract(part / 'archive.zip', part, tuple(sha256))
    for name in sha256:
      _load_verified(part, name, sha256)
    for name in names:
      # Also the test labels, of no known hash.
      if not os.path.lexists(folder / name):
        os.replace(part / name, folder / name)
  except DownloadError as error:
    raise DownloadError(f'{error}; {remedy}') from error
  except errors.InputError as error:
    message = str(error).replace(f'{part}{os.sep}', '')
    raise DownloadError(
      f'the archive from {url} is not the expected one: {message}'
    ) from error
  except OSError as error:
    raise errors.InputError(
      f'cannot write into {folder}: {error.strerror}; free some space or '
      'choose another folder'
    ) from error
  finally:
    undo.close()
  return folder


@contextlib.contextmanager
def _connected(url: str, timeout: float) -> Iterator[Any]:
  """The server's answer, or a DownloadError within `timeout` seconds.

  Name resolution heeds no timeout, hence the thread, which is left behind.
  """
  answer: dict[str, Any] = {}
  lock = threading.Lock()

  def ask() -> None:
    try:
      response = urllib.request.urlopen(url, timeout=timeout)
    except Exception as error:  # whatever http.client and ssl come up with
      response = error
      if isinstance(error, urllib.error.HTTPError):
        error.close()
    with lock:
      answer['response'] = response
      late = 'given_up' in answer
    if late and not isinstance(response, Exception):
      response.close()

  thread = threading.Thread(target=ask, daemon=True)
  thread.start()
  thread.join(timeout)
  with lock:
    answer['given_up'] = True
    response = answer.get('response')
  if response is None:
    raise DownloadError(f'{url} did not answer within {timeout:g} s')
  if isinstance(response, Exception):
    raise DownloadError(f'{url} cannot be reached ({response})')
  with response:
    yield response


def _fetch(
  url: str, path: pathlib.Path, timeout: float, progress: bool
) -> None:
  with _connected(url, timeout) as response, path.open('wb') as file:
    length = response.headers.get('Content-Length', '')
    total = int(length) if length.isdecimal() else None
    if total is not None and total > _MAX_ARCHIVE:
      raise DownloadError(
        f'{url} offers {total} bytes where at most {_MAX_ARCHIVE} are expected'
      )
    bar = tqdm.tqdm(
      total=total,
      desc='ISBI 2012',
      unit='B',
      unit_scale=True,
      disable=not progress,
    )
    got = 0
    with bar:
      while True:
        try:
          piece = response.read(_CHUNK)
        except Exception as error:
          raise DownloadError(
            f'{url} broke off after {got} bytes ({error})'
          ) from error
        if not piece:
          break
        got += len(piece)
        if got > _MAX_ARCHIVE:
          raise DownloadError(f'{url} sends more than {_MAX_ARCHIVE} bytes')
        file.write(piece)
        bar.update(len(piece))
  if total is not None and got < total:
    raise DownloadError(f'{url} broke off after {got} of {total} bytes')


def _extract(
  archive: pathlib.Path, folder: pathlib.Path, needed: tuple[str, ...]
) -> list[str]:
  """Extracts the known stacks into `folder`, whatever else is in there."""
  members: dict[str, zipfile.ZipInfo] = {}
  try:
    with zipfile.ZipFile(archive) as file:
      for info in file.infolist():
        parts = info.filename.replace('\\', '/').split('/')
        # A name that climbs out of its folder is nobody's stack.
        if parts[-1] in (*needed, _TEST_LABELS) and '..' not in parts:
          members.setdefault(parts[-1], info)
      missing = [name for name in needed if name not in members]
      if missing:
        raise DownloadError(f'the archive lacks {", ".join(missing)}')
      for name, info in members.items():
        with file.open(info) as source, (folder / name).open('wb') as target:
          _copy(source, target, name)
  except (errors.InputError, OSError):
    raise
  except Exception as error:  # zipfile raises many kinds on a broken archive
    raise DownloadError(f'the archive is damaged ({error})') from error
  return list(members)


def _copy(source: IO[bytes], target: IO[bytes], name: str) -> None:
  size = 0
  while piece := source.read(_CHUNK):
    size += len(piece)
    if size > _MAX_MEMBER:
      raise DownloadError(
        f'{name} in the archive is larger than {_MAX_MEMBER} bytes'
      )
    target.write(piece)
