"""The gradient-flow page: what it holds, and how a browser shows it."""

import csv
import html.parser
import json
import subprocess

import conftest
import made_runs
import numpy as np
from PIL import Image
import pytest

from skipnet_jax import errors
from skipnet_jax.analysis import routes
from skipnet_jax.analysis.page import comparison
from skipnet_jax.analysis.page import figures
from skipnet_jax.analysis.page import findings
from skipnet_jax.analysis.page import page_tables
from skipnet_jax.analysis.page import recorded_figures
from skipnet_jax.analysis.page import report
from skipnet_jax.runs import recorded

FIGURES = {
  *('heat_map_net_change', 'heat_map_grad_l2', 'profiles', 'curves'),
  *('gradient_norms', 'split', 'path_lengths', 'propagation', 'lesions'),
  *('first_steps', 'critical_sharpness', 'network'),
}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Two runs, their page, and the folder of the report."""
  folder = tmp_path_factory.mktemp('report')
  runs = recorded.open_runs(made_runs.make_pair(folder))
  page = comparison.of_runs('Skips <compared>', runs)
  out = report.check(folder / 'out', overwrite=False)
  report.write(out, page)
  return runs, page, out


def read(folder, name):
  with (folder / f'{name}.csv').open() as file:
    return list(csv.DictReader(file))


class Outline(html.parser.HTMLParser):
  """Counts what matters of a page."""

  def __init__(self, text):
    super().__init__()
    self.images, self.links, self.text, self.open = [], [], [], []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    if tag == 'img':
      self.images.append(attrs)
    self.links += [attrs[k] for k in ('src', 'href') if k in attrs]
    if tag not in ('img', 'meta', 'link', 'br'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def test_the_page_is_whole_and_needs_nothing_else(made):
  runs, page, out = made
  outline = Outline((out / report.PAGE).read_text())
  text = ' '.join(outline.text)
  assert outline.open == []
  assert len(outline.images) == len(page.figures) == len(FIGURES)
  for image in outline.images:
    assert image['src'].startswith('data:image/png;base64,')
    assert len(image['alt']) > 50
  for link in outline.links:
    assert link.startswith(('data:', '#')) or (out / link).exists(), link
  assert 'Skips <compared>' in text
  assert 'SYNTHETIC DATA' in text
  for run in runs:
    assert run.name in text
    assert run.dataset['name'] in text
  # What differs, and what made it.
  for words in ('model.short_skips', 'jax', 'python', 'git'):
    assert words in text
  assert '"optim.learning_rate": 0.001' in text


def test_each_figure_is_a_picture_and_a_table(made):
  _, page, out = made
  assert {figure.name for figure in page.figures} == FIGURES
  # `report.check_files` looks for their files.
  assert set(figures.NAMES) >= FIGURES
  for name in FIGURES:
    picture = np.asarray(Image.open(out / f'{name}.png').convert('L'))
    assert picture.shape[1] == 1500
    assert picture.std() > 10
    assert read(out, name)
  assert not list(out.glob('*.tmp'))


def test_the_tables_hold_what_was_recorded(made):
  runs, _, out = made
  for run in runs:
    rows = [r for r in read(out, 'heat_map_net_change') if r['run'] == run.name]
    table = [[float(r[str(e + 1)]) for r in rows] for e in range(run.epochs)]
    np.testing.assert_allclose(table, run.flow['net_change'], rtol=1e-5)
    assert [r['layer'] for r in rows] == list(run.layers)
    curves = [r for r in read(out, 'curves') if r['run'] == run.name]
    losses = [float(r['valid_loss']) for r in curves]
    np.testing.assert_allclose(losses, run.curve('valid_loss'), rtol=1e-5)


def test_tables_are_files_too(made):
  runs, page, out = made
  names = [table.name for table in page.tables if table.name]
  assert sorted(names) == sorted(report.TABLES)
  for table in page.tables:
    if table.name:
      first = read(out, table.name)[0]
      assert list(first) == list(table.columns)
  rows = {row['run']: row for row in read(out, 'scores')}
  for run in runs:
    least = min(run.curve('valid_loss'))
    assert float(rows[run.name]['valid loss']) == pytest.approx(least)
  differing = {row['run'] for row in read(out, 'differences')}
  assert differing == {run.name for run in runs}


def test_the_shares_add_up_in_the_tables(made):
  _, _, out = made
  for row in read(out, 'split'):
    total = sum(float(row[route]) for route in routes.ROUTES)
    assert total == pytest.approx(1, abs=1e-3)
  lengths = {}
  for row in read(out, 'path_lengths'):
    key = row['run'], row['at'], row['layer']
    lengths[key] = lengths.get(key, 0.0) + float(row['share'])
  assert {key[0] for key in lengths} == {'both'}
  np.testing.assert_allclose(list(lengths.values()), 1, atol=1e-3)


def test_the_least_trained_stage_by_hand(made):
  (run, _), _, _ = made
  across = [layer.startswith('across/') for layer in run.layers]
  table = np.full((4, len(across)), 2.0, np.float32)
  table[:, across] = 0.5
  # The first half of the epochs does not count.
  table[:2, 0] = 1e-9
  flow = run.flow | {'net_change': table}
  starved = recorded.RecordedRun(**(vars(run) | {'flow': flow}))
  least = findings.least_stage(starved, 'net_change')
  assert least.stage == 'across'
  share = 0.25 / 0.25 ** np.mean(across)
  assert least.ratio == pytest.approx(share)
  assert least.low == pytest.approx(least.high) == pytest.approx(share)
  assert (least.wins, least.epochs) == (2, 2)


def test_the_page_says_first_what_was_found(made):
  (run, other), page, out = made
  flow = run.flow | {'net_change': np.ones_like(run.flow['net_change'])}
  across = [layer.startswith('across/') for layer in run.layers]
  flow['net_change'][:, across] = 0.1
  starved = recorded.RecordedRun(**(vars(run) | {'flow': flow}))
  config = run.config.copy_and_resolve_references()
  config.optim.learning_rate = 1e-4
  flow = {q: np.ones_like(rows) for q, rows in other.flow.items()}
  even = recorded.RecordedRun(
    **(vars(other) | {'flow': flow, 'config': config})
  )
  first, second, third = findings.sentences([even, starved])
  ratio = 0.1 / 0.1 ** np.mean(across)
  assert f'In {run.name} the stage across is starved' in first
  assert f'change by {ratio:.2f} of the mean' in first
  assert 'in 2 of them it changes least' in first
  assert f'The most even is {other.name}' in second
  assert 'changes by 1.00 of the mean' in second
  assert 'optim.learning_rate is 0.0001 in' in third
  text = (out / report.PAGE).read_text()
  assert page.findings[0].split(':')[0] in text
  assert text.index('What was found') < text.index('<nav')
  for table in page.tables:
    anchor = report._anchor(table.title)
    assert f'href="#{anchor}"' in text
    assert f'id="{anchor}"' in text


def test_a_run_that_squashes_the_others_is_cut_off():
  near = {'a': np.array([1.0, 9.0]), 'b': np.array([2.0, np.nan, 0.0])}

  def limits(**more):
    _, (ax,) = figures.make_grid(1, 3.0)
    ax.set_yscale('log')
    for y in (near | more).values():
      ax.plot(y)
    return figures.clip_log_axis(ax, near | more), ax.get_ylim()

  said, (low, high) = limits(far=np.array([1e-4, 1e7]))
  assert said == ' The axis is cut off: far reaches 1e-04 and 1e+07.'
  assert 0.7 < low < 1
  assert 9 < high < 13
  said, (_, high) = limits(c=np.array([3.0, 50.0]))
  assert said == ''
  assert high > 50


def test_lost_epochs_are_gaps_not_zeros(made):
  (run, other), _, _ = made
  table = run.flow['net_change'].copy()
  table[1:3] = np.nan
  flow = run.flow | {'net_change': table}
  gaps = recorded.RecordedRun(**(vars(run) | {'flow': flow}))
  early, late = recorded_figures.early_and_late(gaps)
  np.testing.assert_allclose(early, table[0])
  np.testing.assert_allclose(late, table[3])
  shown = recorded_figures.heat_map([gaps, other], 'made', 'net_change')
  image = shown.figure.axes[0].images[0].get_array()
  assert np.ma.getmaskarray(image)[:, 1:3].all()
  assert not np.ma.getmaskarray(image)[:, [0, 3]].any()


def test_runs_without_late_records_have_no_least_stage(made):
  (run, other), _, _ = made
  table = run.flow['net_change'].copy()
  table[2:] = np.nan
  flow = run.flow | {'net_change': table}
  lost = recorded.RecordedRun(**(vars(run) | {'flow': flow}))
  assert findings.least_stage(lost, 'net_change') is None
  row = page_tables.least_trained([lost, other]).rows[0]
  assert row[:3] == (run.name, None, None)
  said = ' '.join(findings.sentences([lost, other]))
  assert run.name not in said
  assert other.name in said
  (said,) = findings.sentences([lost])
  assert said == 'No record of the last half of the epochs is left.'


def test_the_best_epoch_is_the_checkpoint_s_even_without_its_record(made):
  (run, other), _, _ = made
  columns = page_tables.scores([run, other]).columns
  at = columns.index('best epoch')
  assert page_tables.scores([run, other]).rows[0][at] == 4
  summary = {'best_epoch': 4, 'v_rand': 0.9}
  lost = recorded.RecordedRun(
    **(vars(run) | {'records': run.records[:3], 'summary': summary})
  )
  row = page_tables.scores([lost, other]).rows[0]
  assert row[at] == 4
  assert row[at + 1] is None
  assert row[columns.index('V_rand')] == 0.9


def test_curves_begin_at_the_first_record_that_is_left(made):
  (run, other), _, _ = made
  rest = recorded.RecordedRun(**(vars(run) | {'records': run.records[2:]}))
  for draw in (recorded_figures.curves, recorded_figures.critical_sharpness):
    shown = draw([rest, other], 'made')
    for ax in shown.figure.axes:
      line = ax.get_lines()[0]
      epochs = np.asarray(line.get_xdata())[np.isfinite(line.get_ydata())]
      assert epochs.tolist() == [3, 4]


def test_negative_losses_are_drawn_and_ranked(made):
  (run, _), _, _ = made
  # As of Dice: the higher the ratio, the more the loss rises next.
  records = [
    record | {'valid_loss': loss, 'critical_sharpness_ratio': ratio}
    for record, loss, ratio in zip(
      run.records, (-0.9, -0.8, -0.85, -0.6), (2.0, 1.0, 3.0, 1.0), strict=True
    )
  ]
  dice = recorded.RecordedRun(**(vars(run) | {'records': records}))
  shown = recorded_figures.critical_sharpness([dice], 'made')
  assert shown.text.endswith(f'{run.name} 1.00.')
  ax = shown.figure.axes[1]
  assert ax.get_yscale() == 'linear'
  low, high = ax.get_ylim()
  assert low < -0.9
  assert high > -0.6


def test_a_report_that_is_there_is_kept(made, tmp_path):
  _, _, out = made
  with pytest.raises(errors.InputError, match='--overwrite'):
    report.check(out, overwrite=False)
  assert report.check(out, overwrite=True) == out
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.InputError, match='cannot be created'):
    report.check(tmp_path / 'file/out', overwrite=False)


# Run in the page: whether its figures are there and nothing sticks out.
PROBE = """<script>
window.addEventListener('load', () => {
  const page = document.documentElement;
  document.title = JSON.stringify({
    images: [...document.images].map(i => [i.complete, i.naturalWidth,
                                           i.clientWidth]),
    width: page.scrollWidth, window: window.innerWidth,
    requests: performance.getEntriesByType('resource').map(e => e.name)
      .filter(name => !name.startsWith('data:')),
  });
});
</script></body>"""


@pytest.mark.browser
@pytest.mark.parametrize('width', [1280, 800])
def test_a_browser_shows_it(made, tmp_path, width):
  _, page, out = made
  text = (out / report.PAGE).read_text()
  assert '</body>' in text
  file = tmp_path / 'probed.html'
  file.write_text(text.replace('</body>', PROBE))
  done = subprocess.run(
    [
      conftest.BROWSER,
      *('--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars'),
      *('--enable-logging=stderr', '--virtual-time-budget=10000'),
      *(f'--window-size={width},1000', f'--user-data-dir={tmp_path}/profile'),
      *('--dump-dom', file.as_uri()),
    ],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  assert 'CONSOLE' not in done.stderr, done.stderr
  title = done.stdout.split('<title>')[1].split('</title>')[0]
  found = json.loads(title)
  assert len(found['images']) == len(page.figures)
  for complete, natural, shown in found['images']:
    assert complete
    assert natural == 1500
    assert 0 < shown <= width
  assert found['window'] == width
  assert found['width'] <= width
  assert found['requests'] == []


def test_seeds_of_a_network_are_one_line_with_a_band(made):
  (run, other), _, _ = made
  seeds = []
  # In one of three, the values jump.
  for seed, factor in enumerate((1.0, 2.0, 1e8)):
    config = run.config.copy_and_resolve_references()
    config.seed = seed
    flow = {q: rows * factor for q, rows in run.flow.items()}
    fields = {'config': config, 'flow': flow, 'name': f'both_{seed}'}
    seeds.append(recorded.RecordedRun(**(vars(run) | fields)))
  groups = recorded.by_network([other, *seeds])
  assert {k: len(v) for k, v in groups.items()} == {other.name: 1, 'both_0': 3}
  shown = recorded_figures.profiles([other, *seeds], 'made')
  assert 'the median of 3 seeds' in shown.text
  (late,) = [ax for ax in shown.figure.axes if 'last' in ax.get_title()]
  (line,) = [each for each in late.lines if each.get_label() == 'both_0']
  _, expected = recorded_figures.early_and_late(run)
  main = [not figures.is_projection(layer) for layer in run.layers]
  np.testing.assert_allclose(line.get_ydata(), 2 * expected[main], rtol=1e-5)
  (band,) = late.collections
  edges = band.get_paths()[0].vertices[:, 1]
  assert edges.min() == pytest.approx(expected[main].min())
  assert edges.max() == pytest.approx(1e8 * expected[main].max())
  text = ' '.join(findings.sentences([other, *seeds]))
  assert 'in 3 seeds' in text or 'both_0' not in text.split('The most even')[0]
