"""Records of a run, and their end where a crash cut them."""

import importlib
import json
import struct
import sys
import time
import tracemalloc

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from skipnet_jax import errors
from skipnet_jax.runs import run_log


def open_log(folder, **fields):
  return run_log.RunLog(
    folder,
    **dict(
      total_steps=4, first_step=0, tensorboard=False, progress=True, active=True
    )
    | fields,
  )


def record(epoch):
  losses = dict.fromkeys(run_log.FIELDS, 0.5 / epoch)
  return losses | {'epoch': epoch, 'step': 2 * epoch}


def test_records_are_lines_that_are_read_back(tmp_path):
  log = open_log(tmp_path)
  for epoch in (1, 2):
    log.write(record(epoch))
  log.close()
  found = run_log.read_records(tmp_path / 'metrics.jsonl')
  assert found == [record(1), record(2)]


def test_values_that_are_not_finite_are_refused(tmp_path):
  log = open_log(tmp_path)
  with pytest.raises(ValueError, match='JSON'):
    log.write({'epoch': 1, 'step': 1, 'train_loss': float('nan')})
  log.close()


def test_only_the_first_process_writes(tmp_path, capsys):
  log = open_log(tmp_path, active=False, tensorboard=True)
  log.print('nothing')
  log.write(record(1))
  log.picture('a', np.zeros((4, 4), np.uint8), 1)
  log.advance(1, 0.5, 3.0)
  log.close()
  assert not list(tmp_path.iterdir())
  assert capsys.readouterr() == ('', '')


def test_lines_are_printed_on_standard_output(tmp_path, capsys):
  log = open_log(tmp_path)
  log.print('epoch 1')
  log.close()
  assert capsys.readouterr().out == 'epoch 1\n'


def test_tensorboard_gets_numbers_and_pictures(tmp_path):
  log = open_log(tmp_path, tensorboard=True)
  log.write(record(1))
  log.picture('slice', np.zeros((8, 8, 3), np.uint8), 2)
  log.close()
  (events,) = (tmp_path / 'tensorboard').iterdir()
  content = events.read_bytes()
  assert b'train_loss' in content
  assert b'slice' in content


def shown_steps(folder):
  """The steps that TensorBoard shows, of all event files in their order."""
  shown = []
  for path in sorted(folder.iterdir()):
    content = path.read_bytes()
    while content:
      # Length and its checksum, the event, another checksum.
      (size,) = struct.unpack('<Q', content[:8])
      event = event_pb2.Event.FromString(content[12 : 12 + size])
      content = content[16 + size :]
      if event.session_log.status == event_pb2.SessionLog.START:
        # TensorBoard's rule for a run that was interrupted.
        shown = [step for step in shown if step < event.step]
      shown += [event.step] * len(event.summary.value)
  return shown


def test_torch_is_left_out_where_nothing_imported_it(monkeypatch):
  monkeypatch.delitem(sys.modules, 'torch', raising=False)
  with (
    run_log._torch_left_out(),
    pytest.raises(ImportError),
  ):
    importlib.import_module('torch')
  assert 'torch' not in sys.modules


def test_tensorboard_shows_each_step_once_after_a_crash(tmp_path):
  numbers = len(record(1)) - 2
  for start, epochs in ((0, (1, 2, 3)), (3, (2, 3))):
    log = open_log(tmp_path, tensorboard=True, first_step=start)
    for epoch in epochs:
      log.write(record(epoch))
    log.close()
    # An event file is named after the second it was made in.
    (events,) = (tmp_path / 'tensorboard').glob('events*')
    events.rename(events.with_name(f'{start}'))
  assert shown_steps(tmp_path / 'tensorboard') == sorted([2, 4, 6] * numbers)


@pytest.mark.parametrize('tail', ['', '{"epoch": 4, "st', '\n\n', '\0\0'])
def test_resuming_keeps_each_record_once(tmp_path, tail):
  path = tmp_path / 'metrics.jsonl'
  lines = [json.dumps(record(e)) + '\n' for e in (1, 2, 3)]
  path.write_text(''.join(lines) + tail)
  assert not run_log.keep_records(path, 2)
  assert path.read_text() == ''.join(lines[:2])
  assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']


def test_a_missing_file_has_no_records(tmp_path):
  assert run_log.keep_records(tmp_path / 'metrics.jsonl', 2) == (
    'metrics.jsonl is damaged: the records of 2 epochs are lost.'
  )
  assert not run_log.keep_records(tmp_path / 'metrics.jsonl', 0)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('cut', [1, 5, 30])
def test_the_records_in_the_checkpoint_replace_lost_ones(tmp_path, cut):
  path = tmp_path / 'metrics.jsonl'
  lines = [json.dumps(record(e)) + '\n' for e in (1, 2, 3)]
  path.write_text(''.join(lines)[:-cut])
  assert not run_log.keep_records(path, 3, [record(3)])
  assert path.read_text() == ''.join(lines)


def test_lines_without_records_and_duplicates_are_removed(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  lines = [json.dumps(record(e)).encode() + b'\n' for e in (1, 2, 2, 3)]
  path.write_bytes(b'\xff\xfe\n'.join([b'7\n', b'[]\n', b'{}\n', *lines]))
  assert not run_log.keep_records(path, 3)
  assert [row['epoch'] for row in run_log.read_records(path)] == [1, 2, 3]


DAMAGES = {
  'nested': '[' * 100_000 + ']' * 100_000,
  'nan': json.dumps(record(2) | {'train_bce': float('nan')}),
  'infinite': json.dumps(record(2)).replace('0.25', '1e999', 1),
  'digits': json.dumps(record(2)).replace('0.25', '1' * 5000, 1),
  'text': json.dumps(record(2) | {'seconds': 'long'}),
  'true': json.dumps(record(2) | {'epoch': True}),
  'fraction': json.dumps(record(2) | {'epoch': 1.5}),
  'negative': json.dumps(record(2) | {'epoch': -1}),
  'missing': '{"epoch": 2, "step": 4}',
  'list': '[1, 2]',
  'bytes': '\udcff\udcfe\0\v\x1c',
}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES)
def test_damaged_lines_are_no_records(tmp_path, damage):
  path = tmp_path / 'metrics.jsonl'
  lines = [json.dumps(record(epoch)) for epoch in (1, 2, 3)]
  text = '\r\n'.join([lines[0], damage, lines[2]]) + '\n'
  path.write_bytes(text.encode(errors='surrogateescape'))
  with pytest.raises(errors.InputError, match=r'damaged \(line 2 is not the'):
    run_log.read_records(path)
  assert run_log.readable_records(path) == {1: record(1), 3: record(3)}
  assert not run_log.keep_records(path, 3, [record(2)])
  assert path.read_text() == ''.join(f'{line}\n' for line in lines)


def test_a_line_is_read_to_a_limit(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  whole = json.dumps(record(1)) + '\n'
  with path.open('w') as file:
    # The last bytes of the long line alone would be a record.
    file.write(f'{whole}{" " * 64 * 2**20}{json.dumps(record(2))}\n')
    file.write(json.dumps(record(3)))
  tracemalloc.start()
  assert list(run_log.readable_records(path)) == [1, 3]
  assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
  tracemalloc.stop()


def test_the_records_of_the_checkpoint_replace_others(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  wrong = record(2) | {'valid_loss': 7.0}
  rows = [record(3), wrong, record(1), wrong, record(4)]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  with pytest.raises(errors.InputError, match=r'line 2 is not the record'):
    run_log.read_records(path)
  assert not run_log.keep_records(path, 3, [record(2), record(3)])
  assert run_log.read_records(path) == [record(1), record(2), record(3)]


@pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnhandledThreadExceptionWarning'
)
def test_a_tensorboard_that_cannot_write_is_left(tmp_path, capsys):
  log = open_log(tmp_path, tensorboard=True)

  def full(*_):
    raise OSError(28, 'No space left on device')

  log._board.file_writer.event_writer._ev_writer.write_event = full
  # More than its queue holds, which nobody empties any more.
  for epoch in range(1, 9):
    log.write(record(epoch))
    time.sleep(0.2)
  log.picture('a', np.zeros((4, 4), np.uint8), 1)
  log.close()
  assert capsys.readouterr().out.count('TensorBoard: its files cannot') == 1
  assert len(run_log.read_records(tmp_path / 'metrics.jsonl')) == 8
