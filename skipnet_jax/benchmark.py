"""Measures how fast a network trains, evaluates and predicts; compares reports.

`python -m skipnet_jax.benchmark --config=benchmark --output=bench.json`, or
`--compare old.json new.json`.
"""

import functools
import pathlib
import sys

from absl import flags
from ml_collections.config_flags import config_flags

from skipnet_jax import cli

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Experiment: a file, or a name such as long_short; --config=NAME:preset '
  'picks a preset.',
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'JSON file of the report; the raw times go beside it as CSV.'
)
_PEER = flags.DEFINE_enum(
  'peer', None, ['torch'], 'Also race the same network in PyTorch, afterwards.'
)
_AOT = flags.DEFINE_string(
  'aot',
  None,
  'Measure nothing: compile for a TPU slice such as v5e:2x2, or for GPUs such '
  'as h100:1 or h100:8, and predict the speed. The machine needs neither a TPU '
  'nor a GPU.',
)
_UNTIL_BCE = flags.DEFINE_float(
  'until_bce',
  None,
  'Afterwards, also train three seeds until the validation BCE is this low.',
)
_COMPARE = flags.DEFINE_multi_string(
  'compare',
  None,
  'Two reports, the older one first: prints what became slower, and exits with '
  '1 if a row did',
)
_DESCRIBE = flags.DEFINE_bool(
  'describe', False, 'Print the layer table and what is measured, and exit.'
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Replace a report that exists.'
)
_CHILD = flags.DEFINE_string(
  'child', None, 'For internal use: journal of a process that measures.'
)


def main() -> None:
  """Checks the flags; then compares, predicts or measures."""
  if _COMPARE.value:
    if _CONFIG.value is not None or _OUTPUT.value:
      cli.refuse('Give either --compare or --config and --output.')
    cli.refuse_given(
      'does nothing with --compare, which only reads reports: leave it out.',
      *(_PEER, _AOT, _UNTIL_BCE, _DESCRIBE, _OVERWRITE),
    )
    if len(_COMPARE.value) != 2:
      cli.refuse(
        f'--compare names {len(_COMPARE.value)} report(s); give two, the older '
        'one first.'
      )
  if _DESCRIBE.value:
    cli.refuse_given(
      'is no part of what --describe prints, the rows: leave one of them out.',
      *(_PEER, _AOT, _UNTIL_BCE),
    )
  if _AOT.value and (_PEER.value or _UNTIL_BCE.value is not None):
    cli.refuse(
      'Give either --aot, which measures nothing, or --peer and --until_bce.'
    )
  bce = _UNTIL_BCE.value
  if bce is not None and not 0 < bce < float('inf'):
    cli.refuse(f'--until_bce is {bce:g}; give a number above 0, such as 0.3.')
  # Imported here, so that --help does not wait for JAX.
  import jax

  from skipnet_jax import config_checks
  from skipnet_jax import files
  from skipnet_jax.benchmarking import journal
  from skipnet_jax.benchmarking import plan
  from skipnet_jax.benchmarking import quality
  from skipnet_jax.benchmarking import rows
  from skipnet_jax.benchmarking import sweep
  from skipnet_jax.benchmarking.reporting import compare
  from skipnet_jax.benchmarking.reporting import report as report_lib

  say = functools.partial(print, flush=True)
  if _CHILD.value:
    rows.measure_all(journal.Journal.read(pathlib.Path(_CHILD.value)), say)
    return
  if _COMPARE.value:
    comparison = compare.compare(*map(report_lib.read, _COMPARE.value))
    print(compare.format(comparison))
    if comparison.slower:
      sys.exit(1)
    return
  config = _CONFIG.value
  cli.require_config(config, 'benchmark')
  if _DESCRIBE.value:
    from skipnet_jax.training import prepare

    planned = ''
    if 'benchmark' in config:
      whole = config
      config, section = plan.split(whole)
      plan.check_measured(whole, section)
      devices = jax.devices()
      planned = plan.describe(section, len(devices), devices[0].platform)
    print(prepare.describe(config))
    if planned:
      print(planned)
    return
  path = report_lib.check_output(
    cli.require(_OUTPUT), overwrite=_OVERWRITE.value, raw=not _AOT.value
  )
  if _AOT.value:
    from skipnet_jax.benchmarking.aot import aot

    # Any experiment can be compiled, with or without a benchmark section.
    plan.check_predicted(config)
    if 'benchmark' in config:
      config, _ = plan.split(config)
    config_checks.validate(config)
    predicted = aot.predict(config, _AOT.value, say=say)
    files.write_json(path, predicted)
    print(aot.format_table(predicted))
    print(f'predictions: {path}')
    return
  bare, section = plan.split(config)
  plan.check_measured(config, section)
  if _PEER.value:
    # Imported here, because torch is an extra.
    from skipnet_jax.benchmarking.peer import race

    if bare.parallel.coordinator:
      cli.refuse('--peer runs in one process: leave out parallel.coordinator.')
    race.check_config(bare)
  if _UNTIL_BCE.value is not None and bare.parallel.coordinator:
    cli.refuse(
      '--until_bce runs in one process: leave out parallel.coordinator.'
    )

  def keep(report, raw):
    unfinished = report_lib.partial_path(path)
    report_lib.write(unfinished, report, raw)
    say(f'What was measured so far: {unfinished}')

  measured = sweep.run(config, say, keep)
  if measured is None:
    return
  report, raw = measured
  # First, as the name of the report may be taken by now.
  print(report_lib.format_table(report))
  report_lib.write(path, report, raw)
  report_lib.remove_partial(path)
  print(f'report: {path}, raw times: {path.with_suffix(".csv")}', flush=True)
  if _PEER.value:
    # The report is already written: a failed race loses no measurement.
    report['peer'] = race.race(bare, rounds=section.repetitions, say=say)
    report_lib.write(path, report, raw)
    print(race.format_table(report['peer']))
  if _UNTIL_BCE.value is not None:
    with jax.default_matmul_precision(section.matmul_precision):
      found = quality.measure(bare, _UNTIL_BCE.value, say)
    report['quality'] = found
    report_lib.write(path, report, raw)
    print(quality.format_result(found))


if __name__ == '__main__':
  cli.run(main, 'only files that are named above are kept.', several='compare')
