import contextlib
import hashlib
import http.server
import io
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest
import tifffile

from skipnet_jax import errors
from skipnet_jax.data import isbi2012

NAMES = ('train-volume.tif', 'train-labels.tif', 'test-volume.tif')


def _stacks() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  return {name: rng.integers(0, 255, (3, 8, 9)).astype('u1') for name in NAMES}


def _hashes() -> dict[str, str]:
  # Written out plainly, so that the package's own hashing is checked.
  return {
    name: hashlib.sha256(array.tobytes()).hexdigest()
    for name, array in _stacks().items()
  }


def _bytes(array, **options) -> bytes:
  buffer = io.BytesIO()
  tifffile.imwrite(buffer, array, photometric='minisblack', **options)
  return buffer.getvalue()


def _zip(members: dict[str, bytes]) -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as file:
    for name, data in members.items():
      file.writestr(name, data)
  return buffer.getvalue()


def _good(prefix='') -> dict[str, bytes]:
  files = {prefix + name: _bytes(array) for name, array in _stacks().items()}
  return files | {f'{prefix}test-labels.tif': _bytes(np.zeros((3, 8, 9), 'u1'))}


@contextlib.contextmanager
def _server(body: bytes, length: int | None = None, status: int = 200):
  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      self.send_response(status)
      self.send_header('Content-Length', str(length or len(body)))
      self.end_headers()
      self.wfile.write(body)

    def log_message(self, *args):
      pass

  server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
  thread = threading.Thread(target=server.serve_forever, args=(0.02,))
  thread.start()
  try:
    yield f'http://127.0.0.1:{server.server_port}/archive.zip'
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


def _download(folder, url, **options) -> pathlib.Path:
  options = {'timeout': 2.0, 'progress': False} | options
  return isbi2012.download(folder, url=url, sha256=_hashes(), **options)


@pytest.mark.parametrize('prefix', ['', 'ISBI-2012-challenge/', 'a\\b\\'])
def test_good_archive(tmp_path, capsys, prefix):
  members = _good(prefix) | {'__MACOSX/._train-volume.tif': b'x', 'a.exe': b'y'}
  folder = tmp_path / 'new' / 'folder'
  with _server(_zip(members)) as url:
    assert _download(folder, url, progress=True) == folder
  assert sorted(os.listdir(folder)) == sorted([*NAMES, 'test-labels.tif'])
  captured = capsys.readouterr()
  assert captured.out == ''
  assert 'ISBI 2012: 100%' in captured.err
  image, label = isbi2012.load(folder, sha256=_hashes())
  np.testing.assert_array_equal(image, _stacks()['train-volume.tif'])
  np.testing.assert_array_equal(label, _stacks()['train-labels.tif'])
  image, label = isbi2012.load(folder, 'test', sha256=_hashes())
  np.testing.assert_array_equal(image, _stacks()['test-volume.tif'])
  assert label is None


def _bad_archives():
  good = _good()
  wrong = good | {NAMES[1]: _bytes(np.zeros((3, 8, 9), 'u1'))}
  lacking = {name: good[name] for name in NAMES[:2]}
  climbing = {f'../../{name}': data for name, data in good.items()}
  whole = _zip(good)
  damaged = bytearray(whole)
  damaged[60:100] = bytes(40)
  return [
    ('wrong pixels', _zip(wrong), ['train-labels.tif', 'SHA-256', 'expected']),
    ('lacking', _zip(lacking), ['lacks test-volume.tif']),
    ('climbing', _zip(climbing), ['lacks train-volume.tif']),
    ('broken stack', _zip(good | {NAMES[0]: b'II*\0'}), ['train-volume.tif']),
    ('damaged', bytes(damaged), ['damaged']),
    ('cut zip', whole[: len(whole) // 2], ['damaged']),
    ('no zip', b'<html>login please</html>', ['damaged']),
    ('empty', b'', ['damaged']),
  ]


@pytest.mark.parametrize(
  ('body', 'words'),
  [case[1:] for case in _bad_archives()],
  ids=[case[0] for case in _bad_archives()],
)
def test_bad_archives_leave_nothing(tmp_path, body, words):
  folder = tmp_path / 'a' / 'b'
  with (
    _server(body) as url,
    pytest.raises(isbi2012.DownloadError) as caught,
  ):
    _download(folder, url)
  message = str(caught.value)
  for word in words:
    assert word in message
  assert '\n' not in message
  files = [path for path in tmp_path.rglob('*') if not path.is_dir()]
  assert files == []
  assert os.listdir(folder) == []


def test_only_the_known_names_are_written(tmp_path):
  members = _good('x/') | {
    '/etc/train-volume.tif': b'absolute',
    '../evil.tif': b'climbing',
    'x/../train-labels.tif': b'climbing',
    'C:\\train-volume.tif': b'drive',
  }
  folder = tmp_path / 'a' / 'b'
  with _server(_zip(members)) as url:
    _download(folder, url)
  found = {path.name for path in tmp_path.rglob('*') if path.is_file()}
  assert found == {*NAMES, 'test-labels.tif'}
  isbi2012.load(folder, sha256=_hashes())


def test_sizes_are_limited(tmp_path, monkeypatch):
  bomb = _good() | {NAMES[2]: bytes(2**20)}
  monkeypatch.setattr(isbi2012, '_MAX_MEMBER', 2**19)
  with (
    _server(_zip(bomb)) as url,
    pytest.raises(isbi2012.DownloadError, match='larger than 524288'),
  ):
    _download(tmp_path, url)
  monkeypatch.setattr(isbi2012, '_MAX_ARCHIVE', 100)
  with (
    _server(_zip(_good())) as url,
    pytest.raises(isbi2012.DownloadError, match='at most 100 are'),
  ):
    _download(tmp_path, url)
  assert os.listdir(tmp_path) == []


def test_cut_off_and_refused_transfers(tmp_path):
  body = _zip(_good())
  with (
    _server(body[:500], length=len(body)) as url,
    pytest.raises(isbi2012.DownloadError, match='broke off after 500'),
  ):
    _download(tmp_path, url)
  with (
    _server(b'', status=404) as url,
    pytest.raises(isbi2012.DownloadError, match=r'404.*SKIPNET_DATA_DIR'),
  ):
    _download(tmp_path, url)
  # Nobody listens there any more.
  with pytest.raises(isbi2012.DownloadError, match='refused') as caught:
    _download(tmp_path, url)
  assert str(tmp_path) in str(caught.value)
  assert os.listdir(tmp_path) == []


def test_existing_stacks_are_kept(tmp_path):
  mine = tmp_path / NAMES[0]
  mine.write_bytes(b'mine')
  with pytest.raises(errors.InputError, match=r'volume.*exists'):
    # Refused before anything is fetched.
    _download(tmp_path, 'http://127.0.0.1:9/a.zip')
  assert mine.read_bytes() == b'mine'
  mine.write_bytes(_bytes(_stacks()[NAMES[0]], compression='zlib'))
  (tmp_path / 'test-labels.tif').write_bytes(b'mine')
  before = mine.read_bytes()
  with (
    _server(b'nonsense') as url,
    pytest.raises(isbi2012.DownloadError),
  ):
    _download(tmp_path, url)
  assert sorted(os.listdir(tmp_path)) == ['test-labels.tif', NAMES[0]]
  with _server(_zip(_good())) as url:
    _download(tmp_path, url)
  assert sorted(os.listdir(tmp_path)) == sorted([*NAMES, 'test-labels.tif'])
  assert mine.read_bytes() == before
  assert (tmp_path / 'test-labels.tif').read_bytes() == b'mine'


@pytest.mark.parametrize('stage', ['accept', 'headers', 'body'])
def test_hanging_servers_are_left(tmp_path, stage):
  with socket.create_server(('127.0.0.1', 0)) as listener:
    done = threading.Event()

    def hang() -> None:
      connection, _ = listener.accept()
      with connection:
        if stage != 'accept':
          connection.recv(4096)
          connection.sendall(b'HTTP/1.0 200 OK\r\n')
        if stage == 'body':
          connection.sendall(b'Content-Length: 99\r\n\r\nabc')
        done.wait(10)

    thread = threading.Thread(target=hang)
    thread.start()
    start = time.monotonic()
    try:
      with pytest.raises(isbi2012.DownloadError):
        _download(
          tmp_path,
          f'http://127.0.0.1:{listener.getsockname()[1]}/a.zip',
          timeout=0.4,
        )
      assert time.monotonic() - start < 5
    finally:
      done.set()
      thread.join()
  assert os.listdir(tmp_path) == []


def test_hanging_name_resolution_is_left(tmp_path, monkeypatch):
  release = threading.Event()

  def slow(*args, **kwargs):
    release.wait(10)
    raise socket.gaierror('too late')

  monkeypatch.setattr(socket, 'getaddrinfo', slow)
  start = time.monotonic()
  with pytest.raises(isbi2012.DownloadError, match=r'within 0\.3 s; get http'):
    _download(tmp_path, 'http://nowhere.invalid/a.zip', timeout=0.3)
  assert time.monotonic() - start < 5
  release.set()


def test_unwritable_folder(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.InputError, match='choose another folder'):
    _download(tmp_path / 'file' / 'below', 'http://127.0.0.1:9/')


def test_find(tmp_path, monkeypatch):
  for name in ('SKIPNET_DATA_DIR', 'SKIPNET_CACHE_DIR'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  places = [
    tmp_path / 'home' / '.cache' / 'skipnet_jax' / 'isbi2012',
    tmp_path / 'cache',
    tmp_path / 'env' / 'isbi2012',
    tmp_path / 'env',
    tmp_path / 'given' / 'isbi2012',
  ]
  assert isbi2012.find() is None
  assert isbi2012.find(tmp_path / 'given') is None
  variables = [{}, {'SKIPNET_CACHE_DIR': 'cache'}, {'SKIPNET_DATA_DIR': 'env'}]
  # Each place found so far gives way to the next one.
  for place, environment in zip(places, [*variables, {}, {}], strict=True):
    for key, value in environment.items():
      monkeypatch.setenv(key, str(tmp_path / value))
    place.mkdir(parents=True, exist_ok=True)
    (place / NAMES[0]).write_bytes(b'')
    assert isbi2012.find(tmp_path / 'given') != place
    (place / NAMES[1]).write_bytes(b'')
    assert isbi2012.find(str(tmp_path / 'given')) == place
  assert isbi2012.find('\0') == tmp_path / 'env'


def test_load_refuses_what_is_not_the_challenge(tmp_path):
  with pytest.raises(errors.InputError, match=r'no stack at .*train-volume'):
    isbi2012.load(tmp_path)
  (tmp_path / NAMES[0]).write_bytes(_bytes(np.zeros((3, 8, 9), 'u1')))
  with pytest.raises(errors.InputError) as caught:
    isbi2012.load(tmp_path)
  for word in (str(tmp_path / NAMES[0]), '(3, 8, 9)', '200da3d452d7', 'http'):
    assert word in str(caught.value)
  with pytest.raises(errors.InputError, match="'valid' is not one of"):
    isbi2012.load(tmp_path, 'valid')


def test_resaved_pixels_are_still_the_challenge(tmp_path):
  for name, array in _stacks().items():
    data = _bytes(array, compression='zlib', tile=(16, 16))
    (tmp_path / name).write_bytes(data)
  image, _ = isbi2012.load(tmp_path, sha256=_hashes())
  np.testing.assert_array_equal(image, _stacks()[NAMES[0]])


def test_tool_says_what_to_do(tmp_path):
  tool = pathlib.Path(__file__).parents[1] / 'tools' / 'fetch_isbi.py'
  run = [sys.executable, tool, '--folder', tmp_path / 'x', '--url']
  done = subprocess.run(
    [*run, 'http://127.0.0.1:9/a.zip'],
    capture_output=True,
    text=True,
    env=os.environ | {'PYTHONPATH': str(tool.parents[1])},
    timeout=60,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr.startswith('error: http://127.0.0.1:9/a.zip cannot be')
  assert 'SKIPNET_DATA_DIR' in done.stderr
  assert len(done.stderr.splitlines()) == 1


@pytest.mark.real_data
def test_the_real_stacks():
  folder = isbi2012.find(None)
  image, label = isbi2012.load(folder)
  assert image.shape == label.shape == isbi2012.SHAPE
  assert image.dtype == label.dtype == np.uint8
  assert sorted(np.unique(label)) == [0, 255]
  image, label = isbi2012.load(folder, 'test')
  assert (image.shape, label) == (isbi2012.SHAPE, None)
