"""Results of a study: tables, paired tests and curves."""

from collections.abc import Iterable, Sequence
import json
import pathlib
import re
import statistics
from typing import Any

import numpy as np
import scipy.stats

from skipnet_jax import environment
from skipnet_jax import files
from skipnet_jax import plots
from skipnet_jax.analysis.page import figures
from skipnet_jax.analysis.page import report
from skipnet_jax.runs import run_log
from skipnet_jax.studies import plan

# Fields of summary.json and their columns, in the order of every table.
SCORES = {
  'best_val_loss': 'validation loss',
  'v_rand': 'V_rand',
  'v_info': 'V_info',
  'best_val_bce': 'validation BCE',
  'best_val_loss_with_l2': 'validation with L2',
  'train_loss_at_best': 'training loss there',
  'train_loss_with_l2_at_best': 'training with L2',
}
RUNS, TABLE, CELLS = 'runs.json', 'table.md', 'table.csv'
Summaries = dict[str, dict[str, Any]]


def read(study: plan.Study, folder: pathlib.Path) -> Summaries:
  """The summary of each finished run, by name."""
  paths = {name: folder / name / 'summary.json' for name in study.runs}
  return {n: s for n, path in paths.items() if (s := files.read_json(path))}


def mean_and_range(values: Sequence[float]) -> str:
  """The mean and, of several values, the smallest and the largest."""
  mean = statistics.mean(values)
  if len(values) == 1:
    return f'{mean:.4f}'
  return f'{mean:.4f} ({min(values):.4f} to {max(values):.4f})'


def score_table(study: plan.Study, summaries: Summaries) -> report.Table:
  """Published and measured scores of each row that has a finished run."""
  published = list(
    dict.fromkeys(name for row in study.rows.values() for name in row.published)
  )
  columns = ['row', *(f'published {name}' for name in published)]
  columns += ['parameters', 'runs', *SCORES.values()]
  lines = []
  for label, row in study.rows.items():
    runs = [s for name, s in summaries.items() if study.row_of[name] == label]
    if runs:
      scores = (mean_and_range([run[key] for run in runs]) for key in SCORES)
      printed = (row.published.get(name, '-') for name in published)
      lines.append([label, *printed, runs[0]['parameters'], len(runs), *scores])
  return report.Table(
    'Scores',
    'Mean, minimum and maximum over the runs, at the epoch with the best '
    'validation loss. V_rand and V_info are those of the thresholded '
    'prediction. Published: as printed in the paper, on other slices.',
    columns,
    lines,
  )


def paired(
  better: Sequence[float], worse: Sequence[float], lower: bool
) -> dict[str, float]:
  """Tests whether one row beats another, in pairs of runs.

  Args:
    better: values of the row that is claimed to be better, `[n]`.
    worse: values of the other row with the same seeds or folds, `[n]`.
    lower: whether lower values are better.

  Returns:
    difference: mean of (better - worse); wins: pairs in which the claim holds;
    p: of a one-sided paired t-test, NaN if it is undefined.
  """
  difference = np.asarray(better, float) - np.asarray(worse, float)
  wins = int(np.sum(difference < 0 if lower else difference > 0))
  p = float('nan')
  if len(difference) > 1 and np.ptp(difference) > 0:
    side = 'less' if lower else 'greater'
    p = float(scipy.stats.ttest_1samp(difference, 0, alternative=side).pvalue)
  return {'difference': float(np.mean(difference)), 'wins': wins, 'p': p}


def ordering_table(study: plan.Study, summaries: Summaries) -> report.Table:
  """Tests each ordering of the rows that the papers claim."""
  lower = study.compared not in ('v_rand', 'v_info')

  def values(label):
    # By seed or fold: the end of the run's name.
    return {
      name.rsplit('_', 1)[1]: s[study.compared]
      for name, s in summaries.items()
      if study.row_of[name] == label
    }

  lines = []
  for first, second in study.orderings:
    a, b = values(first), values(second)
    both = sorted(a.keys() & b.keys())
    if not both:
      continue
    test = paired([a[k] for k in both], [b[k] for k in both], lower)
    wins, difference, p = test['wins'], test['difference'], test['p']
    claim = [f'{first} beats {second}', f'{wins} of {len(both)}']
    p_text = '-' if np.isnan(p) else '<0.001' if p < 0.001 else f'{p:.3f}'
    lines.append([*claim, f'{difference:+.4f}', p_text])
  return report.Table(
    'Orderings',
    f'{SCORES[study.compared]} of runs with the same seed or fold. p: of a '
    'one-sided paired t-test; with so few runs it is rarely below 0.05.',
    ['claim', 'holds in', 'mean difference', 'p'],
    lines,
  )


def _grouped(rows: Sequence[str]) -> list[list[str]]:
  """Groups with as many rows as there are colours; each has the first row."""
  first, *others = rows
  size = len(plots.CYCLE) - 1
  starts = range(0, max(len(others), 1), size)
  return [[first, *others[start : start + size]] for start in starts]


def curves(study: plan.Study, folder: pathlib.Path) -> figures.FigureWithData:
  """Loss and accuracy by epoch: median and range over the finished runs."""
  losses = {config.train.loss for config in study.runs.values()}
  # Rows with different losses are compared by BCE.
  loss = 'loss' if len(losses) == 1 else 'bce'
  losses_of = [f'train_{loss}', f'valid_{loss}']
  quantities = [*losses_of, 'train_accuracy', 'valid_accuracy']
  runs: dict[str, list] = {label: [] for label in study.rows}
  for name in read(study, folder):
    records = run_log.read_records(folder / name / 'metrics.jsonl')
    runs[study.row_of[name]].append(records)
  # By row and quantity: [runs, epochs].
  by_row = {
    label: {
      name: np.array(
        # Only the epochs that all runs have.
        [[r[name] for r in epochs] for epochs in zip(*tables, strict=False)]
      ).T
      for name in quantities
    }
    for label, tables in runs.items()
    if tables
  }
  groups = _grouped(list(by_row))
  figure, axes = figures.make_grid(2 * len(groups), 4.0)
  for group, (left, right) in zip(groups, axes.reshape(-1, 2), strict=True):
    for label, colour in zip(group, plots.CYCLE, strict=False):
      for name, values in by_row[label].items():
        valid = name.startswith('valid')
        ax = right if name.endswith('accuracy') else left
        epochs = np.arange(1, values.shape[1] + 1)
        style = dict(ls='-', label=label) if valid else dict(ls=':')
        median = np.median(values, axis=0)
        ax.plot(epochs, median, color=colour, lw=1.2, **style)
        if valid:
          low, high = values.min(axis=0), values.max(axis=0)
          ax.fill_between(epochs, low, high, color=colour, alpha=0.2, lw=0)
    right.legend(fontsize=8, title='solid: validation, dotted: training')
  # The first tenth of the epochs may lie outside the axes.
  ends = [
    np.median(values[name], axis=0)[values[name].shape[1] // 10 :]
    for values in by_row.values()
    for name in losses_of
  ]
  low, high = np.percentile(np.concatenate(ends), (0, 95))
  margin = 0.05 * (high - low) + 1e-6
  name = 'BCE' if 'bce' in (loss, *losses) else losses.pop()
  for ax in axes[::2]:
    ax.set_ylim(low - margin, high + margin)
    ax.set_ylabel(name if loss == 'bce' else f'{name}, without L2')
  for ax in axes[1::2]:
    ax.set_ylabel('accuracy at threshold 1/2')
  for ax in axes:
    ax.set_xlabel('epoch')
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.3)
  figure.suptitle('Median over the runs, and range of the validation')
  lines = [
    (label, name, epoch, *map(float, np.sort(column)))
    for label, by_name in by_row.items()
    for name, values in by_name.items()
    for epoch, column in enumerate(values.T, 1)
  ]
  width = max(len(line) for line in lines) - 3
  return figures.FigureWithData(
    'curves',
    'Loss and accuracy',
    'Median over the runs of each row. Shaded: range of the validation.'
    + (f' Each panel shows {groups[0][0]}.' if len(groups) > 1 else ''),
    figure,
    ('row', 'quantity', 'epoch', *(f'run_{i}' for i in range(width))),
    lines,
  )


def _environment(path: pathlib.Path) -> dict[str, Any]:
  """The environment in which a run was last started or resumed."""
  names = ('date', 'git', 'packages', 'devices', 'cpu_cores')
  values = json.loads((path / 'environment.json').read_text())
  return {name: values[name] for name in names if name in values}


def markdown(table: report.Table) -> str:
  """Formats a table as Markdown."""
  columns = table.columns
  lines = [f'| {" | ".join(columns)} |', '|' + '---|' * len(columns)]
  for row in table.rows:
    cells = [f'{x:,}' if isinstance(x, int) else str(x) for x in row]
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def check(study: plan.Study, scale: str, output: pathlib.Path) -> None:
  """Checks that `write` replaces nothing but results of this study and scale.

  Call it before any training. It makes the folder.

  Args:
    study: from `plan.make`.
    scale: of the study.
    output: folder of the results; may be missing.

  Raises:
    InputError: `write` would replace a file, or the folder cannot be written.
  """
  remedy = f'it is no result of {study.name} {scale}; choose another --output'
  # `write` writes it first.
  found = files.read_json(output / RUNS)
  command = str(found.get('command'))
  asked = [
    (re.findall(rf'--?{flag}[= ](\S+)', command) or [default])[-1]
    for flag, default in (('study', None), ('scale', 'small'))
  ]
  own = asked == [study.name, scale]
  report.check_files(output, own='' if own else None, remedy=remedy)
  if not own:
    names = (RUNS, TABLE, CELLS)
    foreign = [output / name for name in names]
    files.check_outputs(foreign, overwrite=False, remedy=remedy)
  report.make_folder(output)


def _subtitle(study: plan.Study, done: int, datasets: Iterable[str]) -> str:
  text = (
    f'{done} of {len(study.runs)} runs of {study.budget()} each, on '
    f'{" and ".join(datasets)}.'
  )
  if not study.reduced:
    return text
  if set(study.reduced) == set(study.rows):
    return f'{text} All networks are smaller than the published ones.'
  others = ', '.join(study.reduced)
  return f'{text} Of other width or padding than published: {others}.'


def write(
  study: plan.Study,
  folder: pathlib.Path,
  output: pathlib.Path,
  more: Sequence[report.Table] = (),
) -> str:
  """Writes report.html, table.md, table.csv, runs.json and the figures.

  Args:
    study: at least one of its runs must be finished.
    folder: of its runs.
    output: folder of the results, see `check`; older results are replaced.
    more: tables to show after the scores.

  Returns:
    The tables as Markdown.
  """
  summaries = read(study, folder)
  tables = [score_table(study, summaries), *more]
  if (orderings := ordering_table(study, summaries)).rows:
    tables.append(orderings)
  datasets = dict.fromkeys(s['dataset'] for s in summaries.values())
  warnings = {s['warning'] for s in summaries.values() if 'warning' in s}
  page = report.Page(
    title=study.title,
    subtitle=_subtitle(study, len(summaries), datasets),
    figures=[curves(study, folder)],
    tables=tables,
    warnings=sorted(warnings),
  )
  target = report.check(output, overwrite=True)
  files.write_json(
    target / RUNS,
    {
      'command': environment.command(),
      'date': environment.now(),
      'git': environment.git_state(),
      'versions': environment.versions(('jax', 'jaxlib', 'flax', 'optax')),
      'configs': {n: json.loads(c.to_json()) for n, c in study.runs.items()},
      'summaries': summaries,
      'trained_by': {n: _environment(folder / n) for n in summaries},
    },
  )
  report.write(target, page)
  text = '\n'.join(f'{t.title}: {t.text}\n\n{markdown(t)}' for t in tables)
  text = '\n'.join([*page.warnings, page.subtitle, '', text])
  files.write_whole(target / TABLE, text)
  keys = (*SCORES, 'seconds')
  lines = [
    [name, study.row_of[name], *(summary[key] for key in keys)]
    for name, summary in summaries.items()
  ]
  files.write_csv(target / CELLS, ['run', 'row', *keys], lines)
  return text
