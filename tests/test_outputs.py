"""No command replaces a file unasked, nor any that it reads."""

import os
import pathlib
import shutil

from conftest import ROOT
import made_runs
import numpy as np
import pytest
import tifffile

from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax.analysis import depth
from skipnet_jax.analysis.page import report
from skipnet_jax.benchmarking.suite import suite
from skipnet_jax.studies import plan
from skipnet_jax.studies import results
from skipnet_jax.studies import speed

EXPERIMENTS = ROOT / 'experiments'
PREDICT = 'predict --workdir=both --input=in.tif --output=out.tif --tta '
RUN = 'evaluate --workdir=both --output=s.json --panels=panels'
FILES = 'evaluate --prediction=p.tif --labels=in.tif --output=s.json'
RUNS = 'gradflow --runs=both,long --output=report'
INIT = f'gradflow --config={EXPERIMENTS}/long_short.py:smoke --at-init '
SEVERAL = f'gradflow --config={EXPERIMENTS}/gradient_flow.py:small --workdir=w'
DEPTHS = f'gradflow --config={EXPERIMENTS}/depth_sweep.py:small --workdir=w'
BENCHMARK = f'benchmark --config={EXPERIMENTS}/benchmark.py:smoke '
EXPORT = 'export --workdir=both --output='
STUDY = 'tools/reproduce.py --study=table_3 --scale=smoke --workdir=w '
SUITE = 'tools/accelerator_suite.py --smoke --output=out'
PROFILE = f'tools/profile.py --config={EXPERIMENTS}/benchmark.py:smoke '
PAIRED = (
  f'tools/paired_steps.py --config={EXPERIMENTS}/long_short.py:smoke '
  f'--before={ROOT} '
)
PEER = f'tools/torch_peer.py --config={EXPERIMENTS}/long_short.py:smoke '


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A folder of two runs, a stack as a file and as slices, and a prediction."""
  folder = tmp_path_factory.mktemp('outputs')
  made_runs.make_pair(folder)
  pixels = np.random.default_rng(0).integers(0, 2, (2, 64, 64), np.uint8)
  tifffile.imwrite(folder / 'in.tif', pixels, photometric='minisblack')
  tifffile.imwrite(folder / 'p.tif', pixels.astype(np.float32))
  (folder / 'slices').mkdir()
  for z, page in enumerate(pixels):
    tifffile.imwrite(folder / 'slices' / f's{z}.tif', page)
  return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
  """A copy of `made`, in which commands run."""
  shutil.copytree(made, tmp_path, dirs_exist_ok=True)
  # tools/accelerator_suite.py sets them.
  for name in ('JAX_PLATFORMS', 'PYTHONPATH'):
    monkeypatch.setenv(name, os.environ.get(name, ''))
  monkeypatch.chdir(tmp_path)
  return tmp_path


def content(folder):
  """All paths below a folder, with what the files hold."""
  return {
    path: path.is_file() and path.read_bytes() for path in folder.rglob('*')
  }


def refused(command, folder, words, *said):
  """Runs a command that must name a file and leave all as it is."""
  before = content(folder)
  program, *arguments = words.split()
  done = command(program, *arguments)
  assert done.code == 2, done
  assert done.err.count('\n') == 1
  for word in said:
    assert word in done.err
  assert content(folder) == before


@pytest.mark.parametrize(
  ('words', 'mine'),
  [
    (PREDICT, 'out.tif'),
    (PREDICT + '--std_output=std.tif', 'std.tif'),
    (PREDICT + '--segmentation=cells.tif', 'cells.tif'),
    *((RUN, name) for name in ('s.json', 's.png', 'panels/slice_004.png')),
    *((FILES, name) for name in ('s.json', 's.png')),
    *((EXPORT + 'n.jax', name) for name in ('n.jax', 'n.jax.json')),
    (EXPORT + 'n.zip', 'n.zip'),
    (RUNS, 'report/report.html'),
    (RUNS, 'report/curves.png'),
    (RUNS, 'report/split.csv'),
    (INIT + '--output=report', 'report/propagation.png'),
    (SEVERAL, 'w/report/profiles.csv'),
    (SEVERAL, 'w/report/report.html'),
    (DEPTHS, 'w/report/depth.png'),
    (BENCHMARK + '--output=bench.json', 'bench.json'),
    (BENCHMARK + '--output=bench.json', 'bench.csv'),
    (BENCHMARK + '--output=aot.json --aot=v5e:2x2', 'aot.json'),
    (STUDY, 'w/results/runs.json'),
    (STUDY + '--output=out', 'out/table.md'),
    (STUDY + '--output=out', 'out/table.csv'),
    (STUDY + '--output=out', 'out/curves.png'),
    (STUDY + '--output=out', 'out/report.html'),
    (STUDY + '--rounds=1', 'w/speed.json'),
    *(
      (SUITE, f'out/{n}')
      for n in ('summary.json', 'table.txt', 'determinism.json')
    ),
    (PROFILE + '--output=out', 'out/any'),
    (PROFILE + '--output=out', 'out'),
    ('tools/large_volume.py --workdir=run --output=out', 'out'),
    ('tools/soak.py --output=out', 'out'),
    ('tools/hostile.py --output=out', 'out'),
    ('tools/chaos.py --workdir=out', 'out'),
    (PAIRED + '--output=steps.json', 'steps.json'),
    pytest.param(
      PEER + '--output=peer.json', 'peer.json', marks=pytest.mark.peer
    ),
  ],
)
def test_a_file_is_not_replaced_unasked(command, here, words, mine):
  path = here / mine
  path.parent.mkdir(parents=True, exist_ok=True)
  # A link to nothing is the user's as well.
  path.symlink_to(here / 'nowhere')
  name = 'out' if mine == 'out/any' else mine
  refused(command, here, words, name)
  assert path.is_symlink()
  path.unlink()
  path.write_bytes(b'mine')
  refused(command, here, words, name)


@pytest.mark.parametrize(
  ('words', 'name'),
  [
    ('predict --workdir=both --input=in.tif --output=other.tif', 'other.tif'),
    ('predict --workdir=both --input=in.tif --output=link.tif', 'link.tif'),
    *(
      (f'predict --workdir=both --input=slices --output={name}', name)
      for name in (
        'slices/s1.tif',
        'slices/new.tif',
        'slice.tif',
        'again/n.tif',
      )
    ),
    (PREDICT + '--segmentation=./in.tif', 'in.tif'),
    (FILES + ' --panels=slices --image=slices', 'slices/slice_000.png'),
    ('evaluate --workdir=both --output=both/config.json', 'config.json'),
    (DEPTHS + ' --output=w', 'w/depth.csv'),
  ],
)
def test_an_input_is_never_replaced(command, here, words, name):
  (here / 'other.tif').hardlink_to(here / 'in.tif')
  (here / 'link.tif').symlink_to('in.tif')
  (here / 'slice.tif').symlink_to('slices/s1.tif')
  (here / 'again').symlink_to('slices')
  refused(command, here, words + ' --overwrite', name, 'choose another')


def test_a_command_replaces_its_own_results(tmp_path, monkeypatch):
  def refused(call, *arguments, **options):
    with pytest.raises(errors.InputError) as error:
      call(*arguments, **options)
    return str(error.value)

  page = report.Page('Gradient flow: a', '', ())
  report.write(tmp_path, page)
  report.check_files(tmp_path, own='Gradient flow: a')
  assert 'report.html exists' in refused(
    report.check_files, tmp_path, own='Gradient flow: b'
  )
  (tmp_path / 'curves.csv').write_text('mine')
  assert 'curves.csv exists' in refused(
    report.check_files, tmp_path, own='Gradient flow: a'
  )
  # As older versions wrote them.
  committed = EXPERIMENTS / 'results'
  report.check_files(committed / 'figure_4', own='Gradient flow: gradient_flow')
  for name in ('table_3', 'table_2', 'recipe', 'systems'):
    study = plan.Study(name, '', {}, {}, {}, '', ())
    results.check(study, 'small', committed / name)
    message = refused(results.check, study, 'paper', committed / name)
    assert f'no result of {name} paper; choose another --output' in message
  assert 'gates' in refused(
    results.check,
    plan.Study('gates', '', {}, {}, {}, '', ()),
    'small',
    committed / 'table_3',
  )
  speed.check(committed / 'systems')
  monkeypatch.setattr(suite, '_run', lambda *_: suite._read(tmp_path, one))
  one = suite.Piece('one', ())
  for _ in range(2):
    suite.run(
      [one], tmp_path / 'suite', budget=9, identity={}, say=lambda _: None
    )
  files.write_json(tmp_path / 'suite' / 'one.json', {'v_rand': 1})
  assert 'one.json exists' in refused(
    suite.run,
    [one],
    tmp_path / 'suite',
    budget=9,
    identity={},
    say=lambda _: None,
  )
  assert depth.FILES.keys() == {'depth.csv', 'depth_layers.csv'}


def test_all_figures_are_known():
  """`report.check_files` looks for their files."""
  found = set()
  for path in (EXPERIMENTS / 'results').glob('*/report.html'):
    found |= {p.stem for p in path.parent.glob('*.png')}
  assert found <= set(report.figures.NAMES)
  assert pathlib.Path(report.PAGE).suffix == '.html'
