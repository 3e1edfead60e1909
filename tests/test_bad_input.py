"""Input that cannot be used ends in one sentence, before anything is done."""

import os
import pathlib
import shutil
import subprocess
import sys

from conftest import ROOT
import numpy as np
import pytest
import tifffile

SMOKE = f'--config={ROOT}/experiments/long_short.py:smoke'
IMAGE = np.random.default_rng(0).integers(0, 256, (4, 64, 64), np.uint8)
LABEL = np.where(IMAGE > 100, 255, 0).astype(np.uint8)


@pytest.fixture
def refused(command, tmp_path):
  """Trains with bad arguments and checks how that ends."""

  def call(*arguments, workdir=None, config=SMOKE):
    folder = pathlib.Path(workdir or tmp_path / 'run')
    given = [config] if config else []
    outcome = command('train', *given, f'--workdir={folder}', *arguments)
    assert outcome.code == 2, outcome
    assert outcome.err.startswith('error: ')
    assert outcome.err.count('\n') == 1, outcome.err
    assert 'Traceback' not in outcome.out + outcome.err
    if workdir is None:
      assert not folder.exists()
    return outcome.err

  return call


@pytest.fixture
def stack(refused, tmp_path):
  """Trains on stacks of one's own."""

  def call(image=IMAGE, label=LABEL, *arguments, cut=None):
    paths = tmp_path / 'image.tif', tmp_path / 'label.tif'
    for path, array in zip(paths, (image, label), strict=True):
      if array is not None:
        rgb = array.ndim == 4
        tifffile.imwrite(
          path, array, photometric='rgb' if rgb else 'minisblack'
        )
    if cut:
      paths[0].write_bytes(paths[0].read_bytes()[:cut])
    return refused(
      '--config.data.source=stack',
      '--config.data.size=0',
      f'--config.data.image={paths[0]}',
      f'--config.data.label={paths[1]}',
      '--config.data.valid=3',
      *arguments,
    )

  return call


def test_a_missing_stack(stack):
  assert 'there is no stack at' in stack(None)


def test_missing_labels(stack):
  assert 'label.tif' in stack(IMAGE, None)


@pytest.mark.parametrize('cut', [5, 200, 9000])
def test_a_truncated_stack(stack, cut):
  assert 'image.tif' in stack(cut=cut)


@pytest.mark.parametrize(
  ('image', 'word'),
  [
    (np.zeros((4, 64, 64, 3), np.uint8), 'one grey value'),
    (np.zeros((4, 64, 64), np.complex64), 'complex64'),
    (np.zeros((4, 64, 64), bool), 'bool'),
    (np.zeros((4, 64, 64), np.float64), 'float64'),
  ],
)
def test_a_stack_of_other_pixels(stack, image, word):
  sentence = stack(image)
  assert word in sentence
  assert 'image.tif' in sentence


def test_pixels_that_are_not_finite(stack):
  image = IMAGE.astype(np.float32)
  image[2, 5, 5] = np.nan
  assert 'has 1 pixels in slice 3 that are not finite' in stack(image)


def test_labels_of_another_shape(stack):
  assert '4x64x64' in stack(IMAGE, LABEL[:3]).replace(', ', 'x')


def test_labels_with_more_than_two_values(stack):
  label = LABEL.copy()
  label[0, :9] = 128
  assert 'has 3 values (0, 128, 255)' in stack(IMAGE, label)


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['--config.data.train=,'], 'data.train selects no slice'),
    (['--config.data.train=0-8'], 'Slices [8] are in data.train and in'),
    (['--config.data.valid=8-12'], 'the stack has 10 slices, 0 to 9'),
    ([f'--config.train.batch_size={2**31}'], 'must be below 2147483648'),
    (['--config.data.size=72'], 'multiples of 32, the nearest is 64x64'),
    (
      ['--config.data.crop=96'],
      'the slices have 64x64 pixels: give at most 64',
    ),
    (
      ['--config.parallel.mode=pmap', '--config.parallel.devices=64'],
      'give at most 8',
    ),
    (['--config.parallel.mode=pmap'], 'among the 8 devices: give 8.'),
    (['--config.optim.learning_rat=1'], 'learning_rate'),
    (['--config.optimizer.name=sgd'], 'optim'),
    (
      ['--config.train.epochs=many'],
      "error: --config.train.epochs is 'many'; give a whole number.\n",
    ),
    (
      ['--config.optim.learning_rate='],
      "error: --config.optim.learning_rate is ''; give a number.\n",
    ),
    (
      ['--config.optim.learning_rate'],
      '--config.optim.learning_rate is given without a value: give one',
    ),
    (
      ['--config.log.progress=maybe: no'],
      "--config.log.progress is 'maybe: no'; give true or false.",
    ),
    (
      ['--config.train.auxiliary=(1, x'],
      "--config.train.auxiliary is '(1, x'; give a list of values, such as",
    ),
    (['--config.train=3'], 'one by one, as --config.train.FIELD=VALUE.'),
    (['--describe=perhaps'], "--describe is 'perhaps'; give true or false."),
    (
      ['--config.optim.learning_rat=1'],
      'Unknown config field optim.learning_rat: did you mean '
      'optim.learning_rate?',
    ),
    (
      ['--config.optim.nothing', '1'],
      'Unknown config field optim.nothing: skipnet_jax/config.py has all',
    ),
    (['--noconfig.train.nothing'], 'Unknown config field train.nothing: '),
    (
      ['--config.nothing.at_all=1'],
      'Unknown config field nothing: skipnet_jax/config.py has all fields.',
    ),
    (
      ['--config.benchmark.warmup=1'],
      'field benchmark: this experiment has none; --config=benchmark has one.',
    ),
    (
      ['--config.model.nothing=1'],
      'Unknown config field model.nothing: this network has base_width, ',
    ),
    (
      ['--config.optim.learning_rate.x=1'],
      'field optim.learning_rate has no parts: give it as a whole',
    ),
    (
      ['--config.model.repetitions[0]=1'],
      'as a whole, --config.model.repetitions=VALUE.',
    ),
    (['--config.=1'], 'Unknown config field : skipnet_jax/config.py has all'),
    (['--config.train-epochs=1'], 'Unknown config field train-epochs: '),
    (['--config.model.name=fcresnet'], "did you mean 'fc_resnet'"),
    (['--config.model.blocks=bottle'], "did you mean 'bottleneck'"),
    (['--config.model.repetitions='], "repetitions is ('',)"),
    (['--config.model.repetitions=text'], "repetitions is ('text',)"),
    (['--config.model.repetitions=(nan,)'], "repetitions is ('(nan,)',)"),
    (['--config.model.repetitions=1,2'], 'give 7 numbers'),
    (['--config.train.auxiliary='], "train.auxiliary is ('',)"),
    (['--config.train.auxiliary=None'], 'train.auxiliary is (None,)'),
    (['--config.train.auxiliary=((1,),)'], 'train.auxiliary is ((1,),)'),
    (['--config.train.auxiliary=(1e999,)'], 'train.auxiliary is (inf,)'),
    (['--config.optim.step_at=text'], "optim.step_at is ('text',)"),
    (['--config.optim.step_at=a,b'], "optim.step_at is ('a,b',)"),
    (['--config.train.auxiliary_at=(3, 2)'], 'auxiliary_at is (3, 2)'),
    (['--config.optim.name=rmsprob'], 'one of rmsprop, sgd, adam'),
    (['--config.data.source=nowhere'], 'one of auto, isbi2012'),
    (
      ['--config.model.base_width=60000'],
      'parameters, which take at least',
    ),
    (
      ['--config.train.batch_size=1000000000'],
      'is 1,000,000,000, and the largest layer then takes at least',
    ),
    (['--epochs=3'], 'Unknown flag --epochs: --help lists all flags.'),
    (['--describ'], 'Unknown flag --describ: did you mean --describe?'),
    (['now'], "Unknown argument 'now'"),
  ],
  ids=lambda x: x[0] if isinstance(x, list) else '',
)
def test_arguments_that_cannot_be_used(refused, arguments, words):
  assert words in refused(*arguments)


def test_a_platform_that_is_not_there(tmp_path):
  # JAX reads the variable when it starts, so this is a process of its own.
  ended = subprocess.run(
    [
      *(sys.executable, '-m', 'skipnet_jax.train', SMOKE),
      f'--workdir={tmp_path / "run"}',
    ],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cdua'},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert ended.returncode == 2, ended.stderr
  assert ended.stderr.startswith("error: JAX_PLATFORMS is 'cdua', but JAX")
  assert ended.stderr.count('\n') == 1
  assert not (tmp_path / 'run').exists()


def test_an_unknown_preset(refused):
  sentence = refused(config=f'--config={ROOT}/experiments/long_short.py:fast')
  assert "'fast' is unknown; this experiment has paper, quick" in sentence


def test_no_experiment(refused):
  assert 'No experiment given' in refused(config=None)
  sentence = refused('--config.train.epochs=3', config=None)
  assert 'epochs is given without an experiment: give one with' in sentence


@pytest.mark.parametrize('arguments', [[], ['--config.train.epochs=3']])
def test_an_experiment_that_is_not_there(refused, arguments):
  sentence = refused(*arguments, config='--config=nowhere.py:smoke')
  assert 'nowhere.py cannot be used (No such file or' in sentence


def test_no_workdir(command):
  outcome = command('train', SMOKE)
  assert outcome.code == 2
  assert 'No --workdir given' in outcome.err


def test_a_workdir_below_a_file(refused, tmp_path):
  (tmp_path / 'file').write_text('')
  sentence = refused(workdir=tmp_path / 'file' / 'run')
  assert 'cannot be written' in sentence


def test_a_workdir_in_a_place_without_files(refused):
  assert 'cannot be written' in refused(workdir='/proc/skipnet_jax')


def test_the_workdir_of_another_config(refused, finished):
  folder, *_ = finished
  before = {p: p.stat().st_mtime_ns for p in folder.rglob('*')}
  sentence = refused(
    '--config.model.blocks=simple',
    '--config.optim.learning_rate=0.25',
    '--config.model.base_width=2',
    workdir=folder,
  )
  assert 'model.base_width (4, now 2), ' in sentence
  assert 'optim.learning_rate (0.001, now 0.25)' in sentence
  assert {p: p.stat().st_mtime_ns for p in folder.rglob('*')} == before


def test_no_space_for_a_checkpoint(command, monkeypatch, tmp_path):
  usage = shutil.disk_usage('/')
  monkeypatch.setattr(
    shutil, 'disk_usage', lambda _: usage._replace(free=100_000)
  )
  outcome = command(
    'train',
    SMOKE,
    f'--workdir={tmp_path / "run"}',
    '--config.model.blocks=simple',
    '--config.log.tensorboard=False',
  )
  assert outcome.code == 1
  assert outcome.err.startswith('error: A checkpoint of 0.2 MB needs twice')
  assert '0.1 MB are left: free some space and run the' in outcome.err
  assert outcome.err.count('\n') == 1


def test_a_checkpoint_that_fails_while_it_is_written(tmp_path):
  # A limit on the size of files: the first checkpoint is larger, all else is
  # smaller. The writer fails in the background, as on a full disk.
  ended = subprocess.run(
    [
      'bash',
      '-c',
      'ulimit -f 1300; exec "$0" "$@"',
      sys.executable,
      '-m',
      'skipnet_jax.train',
      f'--config={ROOT}/experiments/cumedvision.py:smoke',
      f'--workdir={tmp_path / "run"}',
      '--config.model.base_width=16',
      '--config.log.tensorboard=False',
    ],
    cwd=ROOT,
    env=os.environ | {'JAX_ENABLE_COMPILATION_CACHE': 'false'},
    capture_output=True,
    text=True,
    timeout=240,
  )
  assert ended.returncode == 1, ended.stderr
  assert 'Traceback' not in ended.stderr
  (sentence,) = [
    line
    for line in ended.stderr.splitlines()
    if line.startswith('error: A checkpoint could not be written to')
  ]
  assert 'free some space and run the same command again' in sentence
