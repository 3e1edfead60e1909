"""Records of a run, and their end where a crash cut them."""

import json

import numpy as np
import pytest

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
  return {'epoch': epoch, 'step': 2 * epoch, 'train_loss': 0.5 / epoch}


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


@pytest.mark.parametrize('tail', ['', '{"epoch": 4, "st', '\n\n', '\x00\x00'])
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
