"""What a study found: tables with spread, paired tests, curves with bands."""

from collections.abc import Sequence
import json
import pathlib
import statistics
from typing import Any

import numpy as np
import scipy.stats

from skipnet_jax import environment
from skipnet_jax import files
from skipnet_jax import plots
from skipnet_jax.analysis.page import report
from skipnet_jax.analysis.page import shown
from skipnet_jax.runs import run_log
from skipnet_jax.studies import plan

# In this order in every table: what decides comes first.
SCORES = {
  'best_val_loss': 'validation loss',
  'v_rand': 'V_rand',
  'v_info': 'V_info',
  'best_val_bce': 'validation BCE',
  'best_val_loss_with_l2': 'validation with L2',
  'train_loss_at_best': 'training loss there',
  'train_loss_with_l2_at_best': 'training with L2',
}
Summaries = dict[str, dict[str, Any]]


def read(study: plan.Study, folder: pathlib.Path) -> Summaries:
  """Summaries of the finished runs, by run."""
  found = {
    name: files.read_json(folder / name / 'summary.json') for name in study.runs
  }
  return {name: summary for name, summary in found.items() if summary}


def spread(values: Sequence[float]) -> str:
  """Mean, and the least and the most of several."""
  mean = statistics.mean(values)
  if len(values) == 1:
    return f'{mean:.4f}'
  return f'{mean:.4f} ({min(values):.4f} to {max(values):.4f})'


def score_table(study: plan.Study, summaries: Summaries) -> report.Table:
  """A line a row: what was published, and what was found."""
  published = list(
    dict.fromkeys(name for row in study.rows.values() for name in row.published)
  )
  lines = []
  for label, row in study.rows.items():
    found = [s for name, s in summaries.items() if study.row_of[name] == label]
    if not found:
      continue
    lines.append(
      [
        label,
        *(row.published.get(name, '-') for name in published),
        found[0]['parameters'],
        len(found),
        *(spread([s[key] for s in found]) for key in SCORES),
      ]
    )
  return report.Table(
    'Scores',
    'Mean, least and most over the runs; each of the epoch with the best '
    'validation loss, V_rand and V_info by thresholding alone. Published: as '
    'printed, on other slices.',
    [
      'row',
      *(f'published {name}' for name in published),
      'parameters',
      'runs',
      *SCORES.values(),
    ],
    lines,
  )


def paired(
  better: Sequence[float], worse: Sequence[float], lower: bool
) -> dict[str, float]:
  """Whether one row beats another, seed by seed.

  Args:
    better: of the row that is claimed to be, `[n]`.
    worse: of the other, the same seeds, `[n]`.
    lower: whether less is better.

  Returns:
    difference: mean of (better - worse); wins: of how many seeds; p: of a
    one-sided paired t-test, NaN for fewer than two pairs.
  """
  a, b = np.asarray(better, float), np.asarray(worse, float)
  sign = -1 if lower else 1
  wins = int(np.sum(sign * (a - b) > 0))
  p = float('nan')
  if len(a) > 1 and np.ptp(a - b) > 0:
    side = 'less' if lower else 'greater'
    p = float(scipy.stats.ttest_rel(a, b, alternative=side).pvalue)
  return {'difference': float(np.mean(a - b)), 'wins': wins, 'p': p}


def ordering_table(study: plan.Study, summaries: Summaries) -> report.Table:
  """A line a claim of the paper: does it hold?"""

  def values(label):
    # By what follows the row's name: its seed, or its fold.
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
    found = paired([a[k] for k in both], [b[k] for k in both], study.lower)
    p = found['p']
    lines.append(
      [
        f'{first} beats {second}',
        f'{found["wins"]} of {len(both)}',
        f'{found["difference"]:+.4f}',
        '-' if np.isnan(p) else '<0.001' if p < 0.001 else f'{p:.3f}',
      ]
    )
  return report.Table(
    'Orderings',
    f'Of {SCORES[study.compared]}, run by run with the same seed or fold; p of '
    'a one-sided paired t-test, which so few runs can hardly bring below '
    'one in twenty.',
    ['claim', 'holds in', 'mean difference', 'p'],
    lines,
  )


def _grouped(rows: Sequence[str]) -> list[list[str]]:
  """As many as there are colours; with the first row in each, to compare."""
  most = len(plots.CYCLE)
  if len(rows) <= most:
    return [list(rows)]
  first, *others = rows
  return [
    [first, *others[at : at + most - 1]]
    for at in range(0, len(others), most - 1)
  ]


def curves(study: plan.Study, folder: pathlib.Path) -> shown.Shown:
  """Loss and accuracy by epoch: median and range over the finished runs."""
  # Of different losses, none can be compared.
  losses = {config.train.loss for config in study.runs.values()}
  loss = 'loss' if len(losses) == 1 else 'bce'
  quantities = [
    f'{part}_{kind}'
    for kind in (loss, 'accuracy')
    for part in ('train', 'valid')
  ]
  # Row, quantity: [runs, epochs].
  found: dict[str, dict[str, np.ndarray]] = {}
  tables: dict[str, list] = {}
  for name in read(study, folder):
    records = run_log.read_records(folder / name / 'metrics.jsonl')
    tables.setdefault(study.row_of[name], []).append(records)
  for label in filter(tables.get, study.rows):
    length = min(map(len, tables[label]))
    found[label] = {
      name: np.array([[r[name] for r in t[:length]] for t in tables[label]])
      for name in quantities
    }
  groups = _grouped(list(found))
  figure, axes = shown.make_grid(2 * len(groups), 4.0)
  for group, (left, right) in zip(groups, axes.reshape(-1, 2), strict=True):
    for label, colour in zip(group, plots.CYCLE, strict=False):
      for name, values in found[label].items():
        valid = name.startswith('valid')
        ax = right if name.endswith('accuracy') else left
        epochs = np.arange(1, values.shape[1] + 1)
        ax.plot(
          epochs,
          np.median(values, axis=0),
          '-' if valid else ':',
          color=colour,
          lw=1.2,
          label=label if valid else None,
        )
        if valid:
          low, high = values.min(axis=0), values.max(axis=0)
          ax.fill_between(epochs, low, high, color=colour, alpha=0.2, lw=0)
    right.legend(fontsize=8, title='solid: validation, dotted: training')
  ends = [
    np.median(values[name], axis=0)[values[name].shape[1] // 10 :]
    for values in found.values()
    for name in quantities[:2]
  ]
  low, high = np.percentile(np.concatenate(ends), (0, 95))
  margin = 0.05 * (high - low) + 1e-6
  name = 'BCE' if 'bce' in (loss, *losses) else losses.pop()
  for ax in axes[::2]:
    ax.set_ylim(low - margin, high + margin)
    ax.set_ylabel(name if loss == 'bce' else f'{name}, without L2')
  for ax in axes[1::2]:
    ax.set_ylabel('share of pixels right at threshold 1/2')
  for ax in axes:
    ax.set_xlabel('epoch')
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.3)
  figure.suptitle('Median, and the range of the validation over runs')
  lines = [
    (label, name, epoch, *map(float, np.sort(column)))
    for label, by_name in found.items()
    for name, values in by_name.items()
    for epoch, column in enumerate(values.T, 1)
  ]
  width = max(len(line) for line in lines) - 3
  return shown.Shown(
    'curves',
    'Loss and accuracy',
    'Median of the runs of each row; shaded, the range of their validation.'
    + (f' {groups[0][0]} is in each figure.' if len(groups) > 1 else ''),
    figure,
    ('row', 'quantity', 'epoch', *(f'run_{i}' for i in range(width))),
    lines,
  )


def _trained_by(path: pathlib.Path) -> dict[str, Any]:
  kept = ('date', 'git', 'packages', 'devices', 'cpu_cores')
  found = json.loads((path / 'environment.json').read_text())
  return {name: found[name] for name in kept if name in found}


def markdown(table: report.Table) -> str:
  """A table of a page as Markdown."""
  lines = [
    f'| {" | ".join(table.columns)} |',
    '|' + '---|' * len(table.columns),
  ]
  for row in table.rows:
    cells = [f'{x:,}' if isinstance(x, int) else str(x) for x in row]
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def write(
  study: plan.Study,
  folder: pathlib.Path,
  output: pathlib.Path,
  more: Sequence[report.Table] = (),
) -> str:
  """Writes report.html, table.md, table.csv, runs.json and the figures.

  Args:
    study: of which at least one run is finished.
    folder: of its runs.
    output: of the results; what an earlier call wrote is replaced.
    more: tables after the scores.

  Returns:
    The tables as Markdown.
  """
  summaries = read(study, folder)
  tables = [score_table(study, summaries), *more]
  orderings = ordering_table(study, summaries)
  tables += [orderings] if orderings.rows else []
  datasets = dict.fromkeys(s['dataset'] for s in summaries.values())
  warnings = {s['warning'] for s in summaries.values() if 'warning' in s}
  page = report.Page(
    title=study.title,
    subtitle=f'{len(summaries)} of {len(study.runs)} runs, on '
    f'{" and ".join(datasets)}.',
    figures=[curves(study, folder)],
    tables=tables,
    warnings=sorted(warnings),
  )
  target = report.check(output, overwrite=True)
  report.write(target, page)
  text = '\n'.join(f'{t.title}: {t.text}\n\n{markdown(t)}' for t in tables)
  text = '\n'.join([*page.warnings, page.subtitle, '', text])
  files.write_whole(target / 'table.md', text)
  keys = (*SCORES, 'seconds')
  files.write_csv(
    target / 'table.csv',
    ['run', 'row', *keys],
    [
      [name, study.row_of[name], *(s[key] for key in keys)]
      for name, s in summaries.items()
    ],
  )
  files.write_json(
    target / 'runs.json',
    {
      'command': environment.command(),
      'date': environment.now(),
      'git': environment.git_state(),
      'versions': environment.versions(('jax', 'jaxlib', 'flax', 'optax')),
      'configs': {n: json.loads(c.to_json()) for n, c in study.runs.items()},
      'summaries': summaries,
      # Of the process that last went on with each run.
      'trained_by': {n: _trained_by(folder / n) for n in summaries},
    },
  )
  return text
