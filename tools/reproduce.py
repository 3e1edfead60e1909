"""Reproduces a table or figure of the papers, with spread, by one command.

python tools/reproduce.py --study=table_3 --scale=small --seeds=3

Trains what the study lacks, goes on where it was cut off, repeats nothing, and
writes what was found so far: report.html, table.md, table.csv, runs.json and
figures into --output. --status says what is done and how long the rest takes;
--rounds=8 times a training step of every row instead, for the next results.
"""

import functools
import pathlib

from absl import flags

from skipnet_jax import cli

_STUDY = flags.DEFINE_string('study', None, 'table_3, table_2, recipe, ...')
_SCALE = flags.DEFINE_string('scale', 'small', 'small, paper or smoke.')
_SEEDS = flags.DEFINE_integer(
  'seeds',
  3,
  'Runs of each row: seeds, or folds (table_2, recipe).',
  lower_bound=1,
)
_BUDGET = flags.DEFINE_float('budget_minutes', None, 'Then stop, resumably.')
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the runs; default runs/STUDY_SCALE.'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Folder of the results; default WORKDIR/results.'
)
_SOURCE = flags.DEFINE_string('source', 'auto', 'data.source of all runs.')
_STATUS = flags.DEFINE_bool('status', False, 'Only say what is done.')
_ROUNDS = flags.DEFINE_integer(
  'rounds',
  None,
  'Train nothing: time a step of every row, in turns, this many times.',
  lower_bound=1,
)
_LABELS = flags.DEFINE_string(
  'test_labels', None, 'table_2: the official test labels, to score on them.'
)
EXPERIMENTS = pathlib.Path(__file__).resolve().parents[1] / 'experiments'


def main() -> None:
  """Plans, trains, tabulates."""
  from skipnet_jax import config as config_lib
  from skipnet_jax.studies import plan

  cli.require(_STUDY)
  for flag, known in ((_STUDY, plan.NAMES), (_SCALE, plan.SCALES)):
    if flag.value not in known:
      cli.refuse(
        f'--{flag.name} is {flag.value!r}: '
        f'{config_lib.nearest(flag.value, known)}'
      )
  if _LABELS.value and _STUDY.value != 'table_2':
    cli.refuse('--test_labels goes with --study=table_2.')
  if _BUDGET.value is not None and _BUDGET.value <= 0:
    cli.refuse(f'--budget_minutes is {_BUDGET.value}; it must be above 0.')
  say = functools.partial(print, flush=True)
  # Only now: bad flags need not wait for JAX.
  from skipnet_jax.studies import averaging
  from skipnet_jax.studies import results
  from skipnet_jax.studies import runner
  from skipnet_jax.studies import speed

  def change(config):
    if _SCALE.value != 'smoke':
      config.data.source = _SOURCE.value

  study = plan.make(
    _STUDY.value, _SCALE.value, _SEEDS.value, EXPERIMENTS, change
  )
  folder = pathlib.Path(_WORKDIR.value or f'runs/{_STUDY.value}_{_SCALE.value}')
  if _STATUS.value:
    print(runner.format_status(study, folder))
    return
  if _ROUNDS.value:
    speed.keep(folder, speed.measure(study, _ROUNDS.value, say))
    say(results.markdown(speed.table(speed.kept(folder))))
    return
  budget = 60 * _BUDGET.value if _BUDGET.value else None
  finished = runner.train(study, folder, budget=budget, say=say)
  if not results.read(study, folder):
    say(runner.format_status(study, folder))
    return
  more = []
  if ways := averaging.WAYS.get(study.name):
    averaging.measure(study, folder, ways, say)
    more.append(averaging.table(study, folder, ways))
  if study.name == 'recipe':
    more.append(averaging.together(study, folder, ways, say))
  if measured := speed.kept(folder):
    more.append(speed.table(measured))
  if _LABELS.value:
    more.append(averaging.official(study, folder, _LABELS.value, say))
  output = pathlib.Path(_OUTPUT.value or folder / 'results')
  print(results.write(study, folder, output, more))
  if measured:
    speed.keep(output, measured)
  print(f'results: {output}/report.html, table.md, table.csv, runs.json')
  if not finished:
    print(runner.format_status(study, folder))


if __name__ == '__main__':
  cli.run(main, 'the same command goes on from the latest checkpoints.')
