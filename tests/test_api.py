"""The eight names of `import skipnet_jax`, and the examples they document."""

import ast
import dataclasses
import doctest
import subprocess
import sys

import conftest
import made_runs
import numpy as np
import pytest

import skipnet_jax
from skipnet_jax import errors
from skipnet_jax.prediction import run_predictor
from skipnet_jax.runs import trained


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Where the examples run: a run in runs/long_short, and the experiments."""
  path = tmp_path_factory.mktemp('notebook')
  (path / 'runs').mkdir()
  made_runs.make_run(path / 'runs/long_short')
  (path / 'experiments').symlink_to(conftest.ROOT / 'experiments')
  return path


@pytest.fixture(scope='module')
def run(folder):
  return skipnet_jax.load_run(folder / 'runs/long_short')


@pytest.fixture(scope='module')
def wide(tmp_path_factory):
  """A run whose network looks at three slices."""
  path = tmp_path_factory.mktemp('wide') / 'run'
  return skipnet_jax.load_run(
    made_runs.make_run(
      path, **{'model.slices': 3, 'model.repetitions': (1,) * 7}
    )
  )


def pixels(*shape, dtype=np.uint8):
  return np.random.default_rng(0).integers(0, 255, shape).astype(dtype)


@pytest.mark.parametrize('name', skipnet_jax.__all__)
def test_example(name, folder, monkeypatch):
  monkeypatch.chdir(folder)
  example = doctest.DocTestParser().get_doctest(
    getattr(skipnet_jax, name).__doc__, {}, name, None, None
  )
  written = []
  result = doctest.DocTestRunner().run(example, out=written.append)
  assert result.attempted > 0
  assert not result.failed, ''.join(written)


def test_type_checkers_see_the_names_that_notebooks_get():
  tree = ast.parse((conftest.ROOT / 'skipnet_jax/__init__.py').read_text())
  (block,) = (node for node in tree.body if isinstance(node, ast.If))
  seen = {}
  for line in block.body:
    (alias,) = line.names
    seen[alias.asname or alias.name] = (line.module, alias.name)
  assert sorted(seen) == skipnet_jax.__all__
  for name, (module, attribute) in seen.items():
    expected = getattr(sys.modules[module], attribute, None)
    assert getattr(skipnet_jax, name) is expected
  assert set(skipnet_jax.__all__) <= set(dir(skipnet_jax))
  assert '__version__' in dir(skipnet_jax)


def test_a_name_that_is_not_there_is_missed_as_in_any_module():
  with pytest.raises(AttributeError, match='no attribute'):
    skipnet_jax.no_such_name  # noqa: B018


@pytest.mark.parametrize('name', ['train', 'predict'])
def test_a_command_imported_leaves_the_function(name):
  # In a process of its own: the command defines absl flags.
  code = f"""if True:
    import skipnet_jax
    before = skipnet_jax.{name}
    import skipnet_jax.{name}
    assert skipnet_jax.{name} is before
    from skipnet_jax import {name}
    assert {name} is before
    from skipnet_jax.{name} import main
    assert main.__module__ == 'skipnet_jax.{name}'
    import runpy, sys, warnings
    sys.argv = ['skipnet_jax.{name}', '--helpshort']
    del sys.modules['skipnet_jax.{name}']
    from absl import flags
    for flag in list(flags.FLAGS):
      if 'skipnet' in (flags.FLAGS.find_module_defining_flag(flag) or ''):
        delattr(flags.FLAGS, flag)
    runpy.run_module('skipnet_jax.{name}', run_name='__main__')
  """
  done = subprocess.run(
    [sys.executable, '-W', 'error', '-c', code],
    capture_output=True,
    text=True,
    check=False,
    cwd=conftest.ROOT,
  )
  assert '--workdir' in done.stdout, done.stderr
  assert 'Error' not in done.stderr


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_predicts_every_slice_as_the_predictor_does(run, dtype):
  image = pixels(2, 50, 40, dtype=dtype)
  found = skipnet_jax.predict(run, image)
  predictor = run_predictor.make_predictor([run])
  tiling = predictor.tiling((50, 40))
  expected = np.stack([predictor(page, tiling)[0] for page in image])
  assert found.dtype == np.float32
  assert np.array_equal(found, expected)
  assert np.array_equal(skipnet_jax.predict(run, image[1]), expected[1])


def test_averages_runs_turns_and_samples(run):
  image = pixels(32, 32)
  plain = skipnet_jax.predict(run, image)
  twice = skipnet_jax.predict([run, run], image)
  assert np.allclose(twice, plain, atol=1e-6)
  turned = skipnet_jax.predict(run, image.T, tta=True).T
  averaged = skipnet_jax.predict(run, image, tta=True)
  assert np.allclose(turned, averaged, atol=1e-6)
  assert not np.allclose(averaged, plain, atol=1e-3)
  sampled = skipnet_jax.predict(run, image, mc_samples=2)
  assert not np.allclose(sampled, plain, atol=1e-3)


def test_slices_are_normalised_as_in_training(run):
  config = run.config.copy_and_resolve_references()
  config.data.normalise = 'range'
  other, image = dataclasses.replace(run, config=config), pixels(32, 32)
  # Half as bright, with half the contrast: only `slice` takes it away.
  dark = image // 2
  found = [
    skipnet_jax.predict(r, x) for r in (run, other) for x in (2 * dark, dark)
  ]
  assert np.allclose(*found[:2], atol=1e-3)
  assert not np.allclose(*found[2:], atol=1e-2)
  with pytest.raises(errors.InputError, match=r'differ in data\.normalise'):
    skipnet_jax.predict([run, other], image)
  with pytest.raises(errors.InputError, match='the image has dtype float32'):
    skipnet_jax.predict(other, image.astype(np.float32))


def test_tiles_cover_the_slice(run, capsys):
  found = skipnet_jax.predict(run, pixels(64, 96), tile=32, overlap=0)
  assert found.shape == (64, 96)
  assert '--tile' in capsys.readouterr().err


def test_a_network_of_several_slices_sees_the_neighbours(wide):
  image = pixels(3, 32, 32)
  found = skipnet_jax.predict(wide, image)
  predictor = run_predictor.make_predictor([wide])
  tiling = predictor.tiling((32, 32))
  for z, around in enumerate(([1, 0, 1], [0, 1, 2], [1, 2, 1])):
    assert np.array_equal(found[z], predictor(image[around], tiling)[0])


@pytest.mark.parametrize(
  ('image', 'words'),
  [
    (pixels(32), ('shape (32,)', '[z, y, x]')),
    (pixels(0, 32, 32), ('shape (0, 32, 32)',)),
    (pixels(32, 32, dtype=np.float64), ('float64', 'uint16', 'convert')),
    (np.full((2, 32, 32), np.nan, np.float32), ('not finite', 'slice 1')),
  ],
)
def test_an_image_that_does_not_fit_is_refused(run, image, words):
  with pytest.raises(errors.InputError) as refused:
    skipnet_jax.predict(run, image)
  assert all(word in str(refused.value) for word in words)


def test_no_run_and_too_few_slices_are_refused(wide):
  with pytest.raises(errors.InputError, match='0 runs'):
    skipnet_jax.predict([], pixels(32, 32))
  with pytest.raises(errors.InputError, match=r'2 slice.* needs 3'):
    skipnet_jax.predict(wide, pixels(2, 32, 32))


def test_builds_networks_by_name():
  model = skipnet_jax.build_model('unet', base_width=4)
  assert (type(model).__name__, model.base_width) == ('UNet', 4)
  with pytest.raises(errors.InputError, match="did you mean 'unet'"):
    skipnet_jax.build_model('unett')
  with pytest.raises(errors.InputError, match='base_width'):
    skipnet_jax.build_model('unet', base_wdith=4)


def test_a_run_is_opened_by_its_folder(run, tmp_path):
  assert isinstance(run, trained.TrainedRun)
  with pytest.raises(errors.InputError):
    skipnet_jax.load_run(tmp_path)
