"""Columns for the terminal."""

import pytest

from skipnet_jax import tables
from skipnet_jax.benchmarking.reporting import schema


@pytest.mark.parametrize(
  ('value', 'scale', 'text'),
  [
    (None, 1, ''),
    (0, 1, '0'),
    (0.00012345, 1, '0.00012'),
    (0.012345, 1, '0.012'),
    (0.12345, 1, '0.1235'),
    (12.345, 1, '12.35'),
    (999.96, 1, '1000'),
    (12345.6, 1, '12346'),
    (1234567.0, 1, '1.23e+06'),
    (0.0125, 1e-3, '12.5'),
    (7e9, 1e9, '7'),
  ],
)
def test_figures_have_four_digits_and_small_ones_two(value, scale, text):
  assert tables.number(value, scale) == text


def test_figures_stand_to_the_right_and_words_to_the_left():
  lines = tables.layout(
    ('call', 'dev', 'ms'), [('train', '1', '12.5'), ('eval', '16', '3')]
  )
  assert lines == [
    'call   dev    ms',
    '----------------',
    'train    1  12.5',
    'eval    16     3',
  ]


def test_a_column_that_is_blank_everywhere_is_left_out():
  lines = tables.layout(('call', 'GB', 'ms'), [('train', '', '1')])
  assert lines[0].split() == ['call', 'ms']
  assert tables.layout(('call', 'ms'), []) == []


def test_columns_are_closer_if_the_line_is_too_wide():
  cells = ['x' * 9] * 10
  assert len(tables.layout(list('abcdefghij'), [cells])[0]) == 99
  assert '  x' not in tables.layout(list('abcdefghij'), [cells])[2]
  assert '  x' in tables.layout(list('abcdefghi'), [cells[:9]])[2]


def test_a_row_is_named_by_what_it_ran():
  row = {
    'call': 'train',
    'feed': 'end_to_end',
    'mode': 'sharded',
    'devices': 8,
    'hosts': 2,
    'dtype': 'float32',
    'batch': 64,
    'matmul_precision': 'default',
  }
  assert schema.key_cells(row) == [
    'train',
    'end_to_end',
    'sharded',
    '8/2',
    'f32',
    '64',
  ]
  other = {'hosts': 1, 'dtype': 'fp8', 'matmul_precision': 'highest'}
  assert schema.key_cells(row | other)[3:5] == ['8', 'fp8 highest']


def test_long_texts_are_wrapped():
  lines = tables.paragraph('word ' * 60, 4)
  assert all(len(line) <= 100 for line in lines)
  assert lines[1].startswith('    word')


def test_a_unit_fits_the_largest_value():
  assert tables.scale([6e7, None]) == ('M', 1e6)
  assert tables.scale([6e7, 2e9]) == ('G', 1e9)
  assert tables.scale([4e14, 1.0]) == ('T', 1e12)
  assert tables.scale([None]) == ('G', 1e9)


def test_a_long_name_loses_its_middle():
  assert tables.shorten('down_1/conv', 11) == 'down_1/conv'
  assert tables.shorten('encoder/block_12/conv', 11) == 'encod…/conv'
  assert len(tables.shorten('x' * 99, 48)) == 48
