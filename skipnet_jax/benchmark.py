"""Measures how fast a network trains, evaluates and predicts; compares reports.

`python -m skipnet_jax.benchmark --config=experiments/benchmark.py
--output=bench.json`, or `--compare old.json new.json`.
"""

import pathlib
import sys

from absl import flags
from ml_collections.config_flags import config_flags

from skipnet_jax import cli

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Experiment file; --config=FILE:preset picks a preset.'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'JSON file of the report; the raw times go beside it as CSV.'
)
_PEER = flags.DEFINE_enum(
  'peer', None, ['torch'], 'Then race the same network in PyTorch.'
)
_AOT = flags.DEFINE_string(
  'aot',
  None,
  'Measure nothing: compile for a TPU slice such as v5e:2x2, and predict.',
)
_COMPARE = flags.DEFINE_multi_string(
  'compare', None, 'Two reports, the older one first; exits 1 on a slowdown.'
)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace a report.')
_CHILD = flags.DEFINE_string(
  'child', None, 'Journal of a process that this command starts itself.'
)


def main() -> None:
  """Checks the flags, then compares, predicts or measures."""
  if _CHILD.value:
    _measure_alone(pathlib.Path(_CHILD.value))
    return
  _check_flags()
  # Only now: --help need not wait for JAX.
  from skipnet_jax import config as config_lib
  from skipnet_jax import files
  from skipnet_jax.benchmarking import plan
  from skipnet_jax.benchmarking import sweep
  from skipnet_jax.benchmarking.reporting import compare
  from skipnet_jax.benchmarking.reporting import report as report_lib

  if _COMPARE.value:
    found = compare.compare(*map(report_lib.read, _COMPARE.value))
    print(compare.format(found))
    if found.slower:
      sys.exit(1)
    return
  cli.require_config(_CONFIG.value)
  output = cli.required(_OUTPUT)
  path = report_lib.check_output(output, overwrite=_OVERWRITE.value)
  config = _CONFIG.value
  if _AOT.value:
    from skipnet_jax.benchmarking.aot import aot

    # Of any experiment: what is to be measured is of no matter here.
    if 'benchmark' in config:
      bare, _ = plan.split(config)
    else:
      bare = config
      config_lib.validate(bare)
    predicted = aot.predict(bare, _AOT.value, say=_say)
    files.write_json(path, predicted)
    print(aot.format_table(predicted))
    print(f'predictions: {path}')
    return
  bare, section = plan.split(config)
  if _PEER.value:
    # Only now: torch is an extra.
    from skipnet_jax.benchmarking.peer import race

    if bare.parallel.coordinator:
      cli.refuse('--peer runs in one process: leave out parallel.coordinator.')
    race.check_config(bare)
  measured = sweep.run(config, _say)
  if measured is None:
    return
  report, raw = measured
  report_lib.write(path, report, raw)
  print(report_lib.format_table(report))
  if _PEER.value:
    # After the report is written: what was measured outlives the race.
    report['peer'] = race.race(bare, rounds=section.repetitions, say=_say)
    report_lib.write(path, report, raw)
    print(race.format_table(report['peer']))
  print(f'report: {path}, raw times: {path.with_suffix(".csv")}')


def _say(text: str) -> None:
  print(text, flush=True)


def _measure_alone(path: pathlib.Path) -> None:
  from skipnet_jax.benchmarking import journal
  from skipnet_jax.benchmarking import rows

  rows.measure_all(journal.Journal.read(path), _say)


def _check_flags() -> None:
  if _COMPARE.value:
    if _CONFIG.value is not None or _OUTPUT.value:
      cli.refuse('Give either --compare or --config and --output.')
    if len(_COMPARE.value) != 2:
      cli.refuse(
        f'--compare names {len(_COMPARE.value)} report(s); give two, the older '
        'one first.'
      )
  if _AOT.value and _PEER.value:
    cli.refuse('Give either --aot, which measures nothing, or --peer.')


if __name__ == '__main__':
  cli.run(main, 'nothing was written.', several='compare')
