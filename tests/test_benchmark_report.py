"""Reports of benchmarks as files and as text."""

import csv
import json
import os
import pathlib

from made_benchmarks import report
from made_benchmarks import row
import pytest
from test_schema import SCALING

from skipnet_jax import errors
from skipnet_jax.benchmarking.reporting import report as report_lib


def test_what_is_written_is_read(tmp_path):
  made = report(row(), row(error='Out of memory.'))
  raw = [(0, 0, 0, 0.125), (0, 1, 0, 0.1)]
  report_lib.write(tmp_path / 'bench.json', made, raw)
  assert report_lib.read(tmp_path / 'bench.json') == made
  with (tmp_path / 'bench.csv').open(newline='') as file:
    rows = list(csv.reader(file))
  assert rows[0] == ['row', 'process', 'repetition', 'seconds']
  assert [tuple(map(float, r)) for r in rows[1:]] == raw
  assert sorted(os.listdir(tmp_path)) == ['bench.csv', 'bench.json']


@pytest.mark.parametrize('taken', ['bench.csv', 'bench.json'])
def test_if_a_name_is_taken_meanwhile_both_files_are_written(tmp_path, taken):
  path, made = tmp_path / 'bench.json', report(row())
  report_lib.check_output(path, overwrite=False)
  (tmp_path / taken).write_text('mine')
  with pytest.raises(errors.InputError, match=f'{taken} has appeared'):
    report_lib.write(path, made, [(0, 0, 0, 0.125)])
  assert (tmp_path / taken).read_text() == 'mine'
  other = 'bench.json' if taken == 'bench.csv' else 'bench_2.json'
  assert report_lib.read(tmp_path / other) == made
  assert len(os.listdir(tmp_path)) == 3


def test_a_finished_report_replaces_what_was_kept_unfinished(tmp_path):
  path = tmp_path / 'bench.json'
  report_lib.write(report_lib.partial_path(path), report(row()), [])
  report_lib.write(path, report(row()), [])
  report_lib.remove_partial(path)
  assert sorted(os.listdir(tmp_path)) == ['bench.csv', 'bench.json']


def test_a_report_with_a_wrong_field_is_not_written(tmp_path):
  made = report(row())
  made['results'][0]['timing']['p50'] = float('nan')
  with pytest.raises(errors.InputError, match=r'results\[0\]\.timing\.p50 is'):
    report_lib.write(tmp_path / 'bench.json', made, [])
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, 'bench.json does not exist: give a report'),
    (pathlib.Path(), 'bench.json is a folder: give a report'),
    ('{\n"schema": ', 'bench.json is not JSON, or is damaged in line 2: give'),
    ('[' * 100_000, 'bench.json is not JSON, or is damaged: give'),
    ('[]', r'bench.json cannot be used: The report is \[\]'),
    ('{"schema": 2}', 'bench.json cannot be used: identity is missing'),
    ('{"schema": 1}', 'its schema is 1, of an earlier version, .* measure'),
    ('{"schema": 3}', 'its schema is 3, of a later .*: update skipnet_jax'),
    (b'\xff\xfe', 'bench.json is not JSON, or is damaged: give'),
  ],
)
def test_a_file_that_is_no_report_is_refused(tmp_path, content, message):
  path = tmp_path / 'bench.json'
  if isinstance(content, str):
    path.write_text(content)
  elif isinstance(content, pathlib.Path):
    path.mkdir()
  elif content:
    path.write_bytes(content)
  with pytest.raises(errors.InputError, match=message):
    report_lib.read(path)


def test_a_place_that_cannot_be_written_is_refused_beforehand(tmp_path):
  there = tmp_path / 'there.json'
  there.write_text('')
  for path, overwrite, message in (
    (tmp_path / 'bench.csv', False, 'must end in .json'),
    (tmp_path / 'no' / 'bench.json', False, 'no of the report is missing'),
    (there, False, 'there.json exists: choose another name or pass'),
  ):
    with pytest.raises(errors.InputError, match=message):
      report_lib.check_output(path, overwrite=overwrite)
  assert report_lib.check_output(there, overwrite=True) == there
  new = tmp_path / 'new.json'
  assert report_lib.check_output(str(new), overwrite=False) == new
  assert not new.exists()


def test_what_an_earlier_benchmark_kept_is_not_replaced(tmp_path):
  path = tmp_path / 'a.json'
  for name in ('a.partial.json', 'a.partial.csv'):
    (tmp_path / name).write_text('measured for hours')
    with pytest.raises(errors.InputError, match=f'{name} exists'):
      report_lib.check_output(path, overwrite=False)
    assert report_lib.check_output(path, overwrite=True) == path
    # A prediction has none.
    assert report_lib.check_output(path, overwrite=False, raw=False) == path
    (tmp_path / name).unlink()


def table(*rows, **changes):
  made = report(*rows)
  for section, fields in changes.items():
    made[section] |= fields
  text = report_lib.format_table(made)
  assert all(len(line) <= 100 for line in text.splitlines()), text
  return text


def squeezed(line):
  return ' '.join(line.split())


def cells(text, heading, line):
  """The cells of a table's line by heading; figures end under theirs."""
  lines = text.splitlines()
  start = next(i for i, one in enumerate(lines) if one.startswith(heading))
  found, end = {}, 0
  heads = lines[start]
  for head in heads.split():
    begin = heads.index(head, end)
    end = begin + len(head)
    found[head] = lines[start + line].ljust(end)[:end].rsplit(' ', 1)[-1]
  return found


def test_the_header_says_what_ran_on_what():
  text = table(
    row(), software={'environment': {'XLA_FLAGS': '--a=b ' + 'c ' * 99}}
  )
  head = ' '.join(text.split('\n\n')[0].split())
  for part in (
    'benchmark, config 0123456789ab, git dfc8d5b',
    'fc_resnet, 11,163,457 parameters, 140 convolutions, 512x512 pixels, bce,',
    'rmsprop; synthetic 30x512x512',
    '1 x Some GPU (gpu, 100 GB each for JAX)',
    'Some CPU, 16 cores, 128 GB, load 0.50 0.25 0.12',
    'python 3.12.3, jax 0.11.2, jaxlib 0.11.2, flax 0.12.8, optax 0.2.8, numpy',
    'jax-cuda13-plugin 0.11.2, driver 580.1, CUDA 13.0.96, cuDNN 9.19',
    'XLA_FLAGS --a=b c c',
    'benchmark.py --config=experiments/benchmark.py',
    '2025-11-21T13:00:00+00:00, 61.5 s',
  ):
    assert part in head
  # What is not set or not there takes no line.
  assert 'GLIBC_TUNABLES' not in head


def test_a_row_shows_its_figures_in_the_units_of_the_headings():
  text = table(
    row(median=0.1, deviation=0.02, processes=(1.0,), batch=8),
    row(mode='sharded', devices=4, batch=32),
  )
  lines = text.splitlines()
  start = next(i for i, one in enumerate(lines) if one.startswith('feed'))
  assert squeezed(lines[start]) == (
    'feed mode dev dtype batch ms p50 +-MAD block img/s /dev TFLOP/s '
    'MFU% roof% GB J/img'
  )
  assert lines[start + 2] == 'train:'
  assert squeezed(lines[start + 3]) == (
    'compute jit 1 bf16 8 100 1 80 80 40 4.04 20 7 5'
  )
  # The rate of one device only where there are several.
  assert squeezed(lines[start + 4]) == (
    'compute sharded 4 bf16 32 100 0 80 320 80 40 4.04 20 7 5'
  )
  assert 'MFU: of 989 TFLOP/s in bfloat16, a data sheet.' in text


def test_a_mean_far_from_the_median_is_said():
  # 19, 54 and 56 ms: the median absolute deviation is 2.
  steady, unsteady = row(), row(batch=1)
  unsteady |= {'images_per_second': 23.26, 'images_per_second_p50': 18.52}
  text = ' '.join(table(steady, unsteady).split())
  assert 'train compute jit 1 bf16 1: 23.26 img/s by the mean, 18.52' in text
  assert text.count('unsteady') == 1


def test_different_programs_are_said():
  two = row(batch=1, programs=['a', 'b', 'a'])
  text = ' '.join(table(row(), two).split())
  assert 'in 3 process(es), which compile their programs anew' in text
  assert 'jit 1 bf16 1: 2 different programs in 3 processes.' in text
  assert text.count('different programs') == 1


def test_a_slow_clock_is_flagged_with_its_reason():
  state = row()['device_state']
  slow = state | {'sm_mhz': 1500, 'slow': True}
  text = ' '.join(table(row(), row(batch=1, device_state=slow)).split())
  assert 'bf16 1: SLOW CLOCK, 1500 of 1980 MHz (software power cap).' in text
  assert text.count('SLOW CLOCK') == 1


def test_rows_stand_under_their_call():
  text = table(
    row(call='inference'), row(), row(call='eval'), row(feed='end_to_end')
  )
  body = text[text.index('\nfeed') :].splitlines()[3:]
  assert [line.split()[0] for line in body[:7]] == [
    'train:',
    'compute',
    'end_to_end',
    'eval:',
    'compute',
    'inference:',
    'compute',
  ]


def test_what_does_not_apply_is_blank_and_said():
  nothing = {
    name: None for name in ('mfu', 'mfu_peak', 'roofline', 'energy', 'compile')
  }
  memory = {'predicted_bytes': None, 'peak_bytes': None}
  reason = 'No published peak of the device kind cpu is known.'
  blank = row(**nothing, memory=memory, mfu_reason=reason)
  alone = table(blank)
  assert 'MFU%' not in alone
  assert 'roof' not in alone
  assert f'No MFU: {reason}' in alone
  assert 'warm' not in alone
  assert cells(table(blank, row(batch=9)), 'feed', 3)['MFU%'] == ''


def test_a_row_that_failed_shows_its_sentence_below():
  sentence = 'Batch 512 needs more memory than there is; the largest that fit'
  text = table(row(), row(batch=512, error=sentence + ' is 384.'))
  assert cells(text, 'feed', 4)['p50'] == 'failed'
  joined = ' '.join(text.split())
  assert f'failed: train compute jit 1 bf16 512: {sentence} is 384.' in joined
  # Nothing but failures.
  assert 'failed: train' in table(row(error='It broke.'))


def test_compile_times_have_a_table_of_their_own():
  found = cells(table(row()), 'feed', 3)
  text = table(row())
  second = text[text.index('\nfeed', text.index('\nfeed') + 1) + 1 :]
  assert squeezed(second.splitlines()[3]) == (
    'compute jit 1 bf16 8 1.5 2.25 30 0.75 12345 3.5 4 6 25 0.5'
  )
  assert squeezed(second.splitlines()[0]).endswith(
    'batch trace lower XLA warm HLO HLO TF model TF plan GB host loss'
  )
  assert found['img/s'] == '80'


def test_scaling_shows_the_efficiency():
  made = report(row())
  made['scaling'] = [SCALING | {'devices': 1, 'efficiency': 1.0}, SCALING]
  lines = report_lib.format_table(made).splitlines()[-4:]
  assert lines[0].split()[-1] == 'efficiency%'
  assert squeezed(lines[3]) == ('weak train compute sharded 2 f32 2 19 95')


def test_rows_of_pmap_say_what_it_is():
  assert 'jit(shard_map) inside' in table(row(mode='pmap'))
  assert 'shard_map' not in table(row())


def test_several_hosts_are_said():
  text = table(row(mode='sharded', devices=16, hosts=4))
  assert '4 processes)' in text
  assert ' 16/4 ' in text


def test_a_report_of_the_peer_alone_has_a_table_without_rows():
  assert 'fc_resnet' in table()


def test_the_widest_figures_fit_a_hundred_columns():
  wide = row(
    median=123.456,
    deviation=0.5,
    feed='end_to_end',
    mode='sharded',
    devices=256,
    hosts=64,
    batch=16384,
    tflops=12345.6,
    mfu=0.12345,
  )
  text = table(wide, row(median=1.2345e-5, deviation=0.5, call='inference'))
  assert json.dumps(wide)
  assert '16384' in text
