"""Slices that are done and time that is left, without a terminal."""

from skipnet_jax.prediction import progress


def test_lines_without_a_terminal(capsys):
  with progress.progress(3, 6, pause=0) as advance:
    for _ in range(6):
      advance()
  lines = capsys.readouterr().err.splitlines()
  assert [line.partition(' of 3 slices, ')[0] for line in lines] == [
    *('0', '1', '1', '2', '2', '3')
  ]
  assert lines[-1].endswith(', 00:00 left')


def test_no_line_in_the_first_minute(capsys):
  with progress.progress(1, 2) as advance:
    advance()
  assert capsys.readouterr().err == ''
