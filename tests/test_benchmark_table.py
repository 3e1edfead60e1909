"""The tables of docs/benchmarks.md are those of the committed reports."""

import importlib.util

from conftest import ROOT
from made_benchmarks import report
from made_benchmarks import row
import pytest

from skipnet_jax import errors
from skipnet_jax import files


@pytest.fixture(scope='module')
def tool():
  path = ROOT / 'tools' / 'benchmark_table.py'
  spec = importlib.util.spec_from_file_location('benchmark_table', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_page_is_what_the_tool_makes(tool):
  page = tool.PAGE.read_text()
  assert tool.fill(page, tool.REPORTS) == page


def test_a_row_is_shown_with_its_report(tool, tmp_path):
  slow = row()['device_state'] | {'slow': True}
  made = report(row(device_state=slow), row(batch=9, error='Out of memory.'))
  (tmp_path / 'h200').mkdir()
  files.write_json(tmp_path / 'h200' / 'one.json', made)
  # A piece of the suite has several; another version's report is left out.
  piece = {'result': {'reports': [report(row(batch=32))]}}
  files.write_json(tmp_path / 'throughput.json', piece)
  files.write_json(tmp_path / 'old.json', {'schema': 1})
  first, second = tool.rows(tmp_path)
  assert first[:5] == [
    '1 x Some GPU',
    'fc_resnet, 512x512',
    'train compute jit',
    'bfloat16',
    '8',
  ]
  assert first[5:13] == [
    '80',
    '80',
    '80',
    '4.0%',
    '20.0%',
    '5',
    '1755 SLOW',
    '0.5000 at 60',
  ]
  assert first[13:15] == ['3, 1', '0.5 of 16']
  assert 'h200/one.json' in first[15]
  assert second[4] == '32'
  text = tool.fill(f'a\n{tool.BEGIN}\nold\n{tool.END}\nz', tmp_path)
  assert text.startswith('a\n')
  assert text.endswith(f'{tool.END}\nz')
  assert 'old' not in text
  assert '| A100 40GB | TF32 | 8 | 46.26 |' in text


def test_a_damaged_report_is_named(tool, tmp_path):
  files.write_json(tmp_path / 'one.json', report(row(loss=3)))
  with pytest.raises(errors.InputError, match=r'one\.json .*loss is 3; it'):
    tool.rows(tmp_path)


@pytest.mark.parametrize(
  'text',
  [
    *('[1, 2]', '3', '{"result": [1]}', '{"result": {"reports": 1}}'),
    *('{"result": {"reports": [1]}}', '{', '\xff'),
  ],
)
def test_a_file_of_something_else_is_named(tool, tmp_path, text):
  (tmp_path / 'one.json').write_text(text, encoding='latin-1')
  with pytest.raises(errors.InputError, match=r'one\.json (is|cannot be read)'):
    tool.rows(tmp_path)


def test_a_piece_without_a_result_has_no_rows(tool, tmp_path):
  files.write_json(tmp_path / 'one.json', {'piece': 'scan', 'result': None})
  assert tool.rows(tmp_path) == []


def test_rows_without_a_peak_say_their_precision(tool, tmp_path):
  unknown = {'mfu': None, 'mfu_peak': None, 'dtype': 'float32'}
  exact = row(matmul_precision='highest', **unknown)
  files.write_json(tmp_path / 'one.json', report(row(**unknown), exact))
  assert [cells[3] for cells in tool.rows(tmp_path)] == ['f32', 'f32 highest']
