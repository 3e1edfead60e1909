"""Compares how the gradient flows through networks; trains them if asked.

`python -m skipnet_jax.gradflow --config=gradient_flow --workdir=W`, or
`--runs=A,B --output=D`, or `--config=... --at-init --output=D`.
"""

import pathlib

from absl import flags
from ml_collections.config_flags import config_flags

from skipnet_jax import cli

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Experiment: a file, or a name such as long_short; --config=NAME:preset '
  'picks a preset.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'With --config: folder for the runs and the report.'
)
_RUNS = flags.DEFINE_list(
  'runs',
  None,
  'Folders of finished runs to compare, separated by commas; a name that has '
  """one stands in double quotes, and all in single ones: '--runs="A,1",B'.""",
)
_AT_INIT = flags.DEFINE_bool(
  'at_init', False, 'With --config: measure the networks without training.'
)
flags.DEFINE_alias('at-init', 'at_init')
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Folder of the report; by default WORKDIR/report.'
)
_ALLOW = flags.DEFINE_bool(
  'allow_differences',
  False,
  'With --runs: compare runs that differ in more than their networks.',
)
_SEEDS = flags.DEFINE_integer(
  'seeds',
  1,
  'With --workdir: train each network with so many seeds, from the one of its '
  'config on; lines are then the median of the seeds, bands their range.',
  lower_bound=1,
)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace a report.')


def main() -> None:
  """Checks the flags, then trains and compares."""
  _check_flags()
  # Imported late, so that --help does not wait for JAX.
  import jax

  from skipnet_jax import config_checks
  from skipnet_jax import plots
  from skipnet_jax.analysis import depth
  from skipnet_jax.analysis.page import comparison
  from skipnet_jax.analysis.page import report
  from skipnet_jax.data import sources
  from skipnet_jax.runs import recorded
  from skipnet_jax.training import processes
  from skipnet_jax.training import study

  def check_count(networks: int) -> None:
    if networks > len(plots.CYCLE):
      cli.refuse(
        f'{networks} networks are too many: the figures have colours for '
        f'{len(plots.CYCLE)}, so leave some out.'
      )

  config = _CONFIG.value
  if _RUNS.value is None:
    cli.require_config(config)
    check_count(len(config.get('variants', ())))
  if config is not None and config.parallel.coordinator:
    if _AT_INIT.value or 'depths' in config:
      cli.refuse(
        'Several processes can train the runs of a comparison, but --at-init '
        'and a sweep over depths run in one: leave out parallel.coordinator.'
      )
    # The first variant's check is made before the processes join.
    config_checks.variants(config)
    processes.start(config.parallel)
  jax.devices()  # Fails, before a folder is made, where JAX has no device.
  if _RUNS.value is not None:
    runs = recorded.open_runs(_RUNS.value, allow_differences=_ALLOW.value)
    check_count(len(recorded.by_network(runs)))
    folder = report.check(cli.require(_OUTPUT), overwrite=_OVERWRITE.value)
    page = comparison.of_runs('Gradient flow', runs, print)
  else:
    title = f'Gradient flow: {config.experiment}'
    output = _OUTPUT.value or pathlib.Path(cli.require(_WORKDIR), 'report')
    overwrite = _OVERWRITE.value
    # The report in a workdir is replaced, because its runs may have changed.
    own = None if _OUTPUT.value else title
    if 'depths' in config:
      cli.refuse_given('does nothing in a sweep over depths.', _SEEDS)
      if _AT_INIT.value:
        cli.refuse(
          '--at-init measures networks of one depth, and this experiment has '
          'several: give --workdir, which measures their initialisation too.'
        )
      folder_of_runs = cli.require(_WORKDIR)
      tables = [pathlib.Path(folder_of_runs, name) for name in depth.FILES]
      report.check_files(output, overwrite=overwrite, own=own, inputs=tables)
      folder = report.check(output, overwrite=overwrite, own=own)
      depth.sweep(config, folder_of_runs, print)
      page = comparison.of_depths(title, config, *depth.read(folder_of_runs))
    elif _AT_INIT.value:
      variants = config_checks.variants(config)
      folder = report.check(output, overwrite=overwrite)
      for name, one in variants.items():
        config_checks.require_same_data(config, name, one, '--at-init')
      data = sources.load(next(iter(variants.values())))
      page = comparison.at_init(title, variants, data, print)
    else:
      variants = config_checks.variants(config)
      writes = jax.process_index() == 0
      planned = study.with_seeds(variants, _SEEDS.value)
      study.require_several(planned)
      if writes:
        report.check(output, overwrite=overwrite, own=own)
      folders = study.train(
        planned,
        pathlib.Path(cli.require(_WORKDIR)),
        print if writes else lambda _: None,
      )
      if jax.process_count() > 1:
        if writes:
          print(
            'All runs are trained. For the report, run the same command in one '
            'process, without --config.parallel.'
          )
        return
      folder = report.check(output, overwrite=overwrite, own=own)
      runs = recorded.open_runs(folders, allow_differences=True)
      page = comparison.of_runs(title, runs, print)
  path = report.write(folder, page)
  print(report.format_tables(page))
  print(f'report: {path}, each figure beside it as PNG and CSV')


def _check_flags() -> None:
  if _RUNS.value is not None and _CONFIG.value is not None:
    cli.refuse('Give either --runs or --config.')
  if _RUNS.value is None and _CONFIG.value is None:
    cli.refuse(
      'Give --config and --workdir to train and compare, --config and '
      '--at-init, or --runs.'
    )
  training = _RUNS.value is None and not _AT_INIT.value
  cli.require(_WORKDIR if training else _OUTPUT)
  for flag, mode, fits in (
    (_WORKDIR, '--config', training),
    (_AT_INIT, '--config', _RUNS.value is None),
    (_SEEDS, '--workdir', training),
    (_ALLOW, '--runs', _RUNS.value is not None),
  ):
    if not fits:
      cli.refuse_given(f'goes with {mode}.', flag)


if __name__ == '__main__':
  cli.run(main)
