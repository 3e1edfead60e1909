"""Reproduces a table or figure of the papers, with several runs of each row.

python tools/reproduce.py --study=table_3 --scale=small --seeds=3

Trains the runs that are missing and writes the results so far into --output:
report.html, table.md, table.csv, runs.json and figures. The same command
resumes after any interruption. --status shows finished runs and the time left.
--rounds=8 measures the training speed of every row instead of training; later
results include it.
"""

import functools
import pathlib

from absl import flags

from skipnet_jax import cli

_STUDY = flags.DEFINE_string(
  'study',
  None,
  'table_3, table_2, figure_4, gates, systems, recipe, segmentation or '
  'fine_tuning.',
)
_SCALE = flags.DEFINE_string('scale', 'small', 'small, paper or smoke.')
_SEEDS = flags.DEFINE_integer(
  'seeds',
  3,
  'Runs of each row: seeds, or folds in table_2, recipe and segmentation.',
  lower_bound=1,
)
_BUDGET = flags.DEFINE_float('budget_minutes', None, 'Stop after this time.')
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the runs; default runs/STUDY_SCALE.'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Folder of the results; default WORKDIR/results.'
)
_SOURCE = flags.DEFINE_string('source', 'auto', 'data.source of all runs.')
_STATUS = flags.DEFINE_bool('status', False, 'Only show progress.')
_ROUNDS = flags.DEFINE_integer(
  'rounds',
  None,
  'Measure training speed in this many rounds instead of training.',
  lower_bound=1,
)
_LABELS = flags.DEFINE_string(
  'test_labels', None, 'For table_2: the official test labels, for scores.'
)
_IMAGE = flags.DEFINE_string(
  'image', None, 'For fine_tuning: the stack to train on, of 250 slices.'
)
_INSTANCES = flags.DEFINE_string(
  'labels', None, 'For fine_tuning: its labels, a number for each cell.'
)
_INIT_FROM = flags.DEFINE_string(
  'init_from', None, 'For fine_tuning: the run whose weights are tuned.'
)
EXPERIMENTS = pathlib.Path(__file__).resolve().parents[1] / 'experiments'


def main() -> None:
  """Trains the study and writes its results."""
  from skipnet_jax import config as config_lib
  from skipnet_jax import files
  from skipnet_jax.studies import plan

  cli.require(_STUDY)
  for flag, known in ((_STUDY, plan.NAMES), (_SCALE, plan.SCALES)):
    if flag.value not in known:
      cli.refuse(
        f'--{flag.name} is {flag.value!r}: '
        f'{config_lib.nearest(flag.value, known)}'
      )
  if _LABELS.value and _STUDY.value != 'table_2':
    cli.refuse(
      f'--test_labels is for --study=table_2, not {_STUDY.value}: leave it out.'
    )
  own = _IMAGE, _INSTANCES, _INIT_FROM
  if _STUDY.value == 'fine_tuning':
    image, labels, init_from = map(cli.require, own)
    cli.refuse_given('is not for --study=fine_tuning: leave it out.', _SOURCE)
  else:
    cli.refuse_given('is for --study=fine_tuning: leave it out.', *own)
  if _ROUNDS.value:
    cli.refuse_given(
      'does nothing with --rounds, which only measures speed: leave it out.',
      *(_OUTPUT, _LABELS, _BUDGET, _STATUS),
    )
  if _SCALE.value == 'smoke':
    cli.refuse_given(
      'does nothing with --scale=smoke, which has data of its own: leave it '
      'out.',
      _SOURCE,
    )
  if _BUDGET.value is not None and not 0 < _BUDGET.value < float('inf'):
    cli.refuse(f'--budget_minutes is {_BUDGET.value}; it must be above 0.')
  say = functools.partial(print, flush=True)
  # Imported late: JAX takes seconds, which wrong flags need not wait for.
  from skipnet_jax.studies import averaging
  from skipnet_jax.studies import results
  from skipnet_jax.studies import runner
  from skipnet_jax.studies import segmentation
  from skipnet_jax.studies import speed

  def change(config):
    if _STUDY.value == 'fine_tuning':
      plan.use_few_slices(config, image, labels, init_from)
    elif _SCALE.value != 'smoke':
      config.data.source = _SOURCE.value

  study = plan.make(
    _STUDY.value, _SCALE.value, _SEEDS.value, EXPERIMENTS, change
  )
  folder = pathlib.Path(_WORKDIR.value or f'runs/{_STUDY.value}_{_SCALE.value}')
  if _STATUS.value:
    print(runner.format_status(study, folder))
    return
  speed.check(folder)
  if _ROUNDS.value:
    measured = speed.measure(study, _ROUNDS.value, say)
    speed.write(folder, measured)
    say(results.markdown(speed.table(measured)))
    return
  output = pathlib.Path(_OUTPUT.value or folder / 'results')
  results.check(study, _SCALE.value, output)
  if (folder / speed.FILE).exists():
    speed.check(output)
  if _LABELS.value:
    # Before days of training.
    averaging.load_test_set(_LABELS.value)
  budget = 60 * _BUDGET.value if _BUDGET.value else None
  finished = runner.train(study, folder, budget=budget, say=say)
  if not results.read(study, folder):
    say(runner.format_status(study, folder))
    return
  more = []
  if study.name == 'table_2':
    averaging.measure(study, folder, averaging.WAYS, say)
    more.append(averaging.table(study, folder, averaging.WAYS))
  if study.name in segmentation.STUDIES:
    segmentation.measure(study, folder, say)
    more.append(segmentation.table(study, folder))
  if measured := files.read_json(folder / speed.FILE):
    more.append(speed.table(measured))
  if _LABELS.value:
    more.append(averaging.test_set_table(study, folder, _LABELS.value, say))
  print(results.write(study, folder, output, more))
  if measured:
    speed.write(output, measured)
  print(f'results: {output}/report.html, table.md, table.csv, runs.json')
  if not finished:
    print(runner.format_status(study, folder))


if __name__ == '__main__':
  cli.run(main, 'run the same command again to resume.')
