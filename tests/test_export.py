"""Exports: any sides and batch, the probabilities of predict, and refusals.

docs/export.md has the commands and the code that are run here.
"""

import dataclasses
import hashlib
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

from conftest import ROOT
import flax.linen as nn
import jax
import made_runs
import numpy as np
import pytest
import small_networks
from systems import SYSTEMS

from skipnet_jax import config as config_lib
from skipnet_jax import errors
from skipnet_jax import files
from skipnet_jax import models
from skipnet_jax.data import normalisation
from skipnet_jax.exporting import artefact
from skipnet_jax.exporting import bioimage
from skipnet_jax.exporting import onnx_file
from skipnet_jax.models import network as network_lib
from skipnet_jax.prediction import calibration
from skipnet_jax.prediction import fitted
from skipnet_jax.prediction import inference
from skipnet_jax.runs import trained

PAGE = (ROOT / 'docs/export.md').read_text()
BLOCKS = re.findall(r'^```(\w+)\n(.*?)^```', PAGE, re.M | re.S)
CODE = [text for kind, text in BLOCKS if kind == 'python']
FIT = calibration.Calibration(1.5, 0.8)


def make(name, calibrated=None, normalise='slice', **fields):
  """A small network of a system, as if it had been trained."""
  config = config_lib.get_default()
  config.model = models.model_config(name, **SYSTEMS[name].small | fields)
  config.data.normalise = normalise
  model = models.build_model(config.model)
  run = trained.TrainedRun(
    pathlib.Path('runs/made'),
    config,
    {'name': 'made', 'fingerprint': 'a-b', 'pixel_size': 4.0},
    model,
    small_networks.draw(model, model.input_shape(model.init_size())),
    1,
  )
  return artefact.TrainedFunction(run, calibrated)


def of_predict(network, image):
  """The probabilities of `predict`, calibrated, of `[b, y, x, slices]`."""
  run = network.run
  key = jax.random.key(0)
  found = np.stack(
    [
      inference.predict_tile(run.model, False, run.variables, one, key)
      for one in image
    ]
  )
  return found if network.calibrated is None else network.calibrated(found)


@pytest.mark.exporter
@pytest.mark.parametrize('name', SYSTEMS)
def test_every_system_is_exported_for_any_batch_and_sides(name):
  network = make(name, FIT)
  program, least = artefact.serialise(network)
  multiple = network.run.model.size_multiple
  assert least == multiple
  read = jax.export.deserialize(program)
  assert read.platforms == artefact.PLATFORMS
  (given,), (made,) = read.in_avals, read.out_avals
  m, n = f'{multiple}*m', f'{multiple}*n'
  slices = str(network.run.model.slices)
  assert [str(side) for side in given.shape] == ['b', m, n, slices]
  assert [str(side) for side in made.shape] == ['b', m, n, '1']
  if name == 'cumedvision':  # Compiled in a tenth of a second.
    image = artefact.sample((2, 3 * multiple, 2 * multiple, 1))
    found = np.asarray(read.call(image))[..., 0]
    np.testing.assert_allclose(found, of_predict(network, image), atol=1e-6)


@pytest.mark.exporter
@pytest.mark.parametrize(
  ('name', 'fields', 'least'),
  [('f_clmser_s', {'pad': 32}, 64), ('unet', {'padding': 'VALID'}, 96)],
)
def test_a_network_that_pads_by_reflection_has_a_least_side(
  name, fields, least
):
  assert artefact.serialise(make(name, **fields))[1] == least


class Deciding(network_lib.Network):
  @nn.compact
  def __call__(self, image, train, sample=False):
    x = nn.Conv(1, (1, 1))(image)
    return {'logits': 2 * x if image.shape[1] > 64 else x}


@pytest.mark.exporter
def test_a_network_that_decides_by_the_sides_is_refused():
  model = Deciding()
  run = dataclasses.replace(
    make('cumedvision').run,
    model=model,
    variables=small_networks.draw(model, (1, 8, 8, 1)),
  )
  with pytest.raises(errors.InputError, match='needs to know the sides'):
    artefact.serialise(artefact.TrainedFunction(run, None))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run with a calibration."""
  path = made_runs.make_run(tmp_path_factory.mktemp('export') / 'run')
  opened = trained.open_run(path)
  fitted.write(opened, calibration.KIND, fitted.Averaging(), FIT.for_json())
  return path


@pytest.mark.exporter
def test_the_command_writes_the_prediction_and_what_it_takes(
  run, command, tmp_path
):
  output = tmp_path / 'a.jax'
  done = command('export', f'--workdir={run}', f'--output={output}')
  assert done.code == 0, done
  assert 'multiples of 32 from 32 on' in done.out
  assert '0.818 is 0.5 now' in done.out
  card = json.loads((tmp_path / 'a.jax.json').read_text())
  assert card['sha256'] == hashlib.sha256(output.read_bytes()).hexdigest()
  assert card['input']['shape'] == ['b', 'y', 'x', 1]
  assert card['input']['normalise'] == 'slice'
  assert card['size_multiple'] == card['least_side'] == 32
  assert card['output']['calibration']['log_odds'] == FIT.log_odds
  assert card['versions']['jax'] == jax.__version__
  assert 'six months' in card['readable']
  network = artefact.TrainedFunction(trained.open_run(run), FIT)
  image = artefact.sample((1, 64, 32, 1))
  exported = jax.export.deserialize(output.read_bytes())
  # The made network's logits are up to 100, of which this is a rounding.
  np.testing.assert_allclose(
    exported.call(image)[..., 0], of_predict(network, image), atol=2e-4
  )


@pytest.mark.exporter
def test_the_page_s_loader_needs_jax_alone(command, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  first = PAGE.split('```bash\n')[1].split('```')[0].split()
  assert first[:2] == ['skipnet', 'export']
  assert command('__main__', *first[1:]).code == 0
  loader, local = CODE
  np.save('image.npy', artefact.sample((1, 64, 96, 1)))
  code = (
    'import sys\n'
    f'{loader}\n'
    "assert not any(m.startswith('skipnet') for m in sys.modules)\n"
    "numpy.save('out.npy', probability)\n"
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path)
  out = np.load('out.npy')
  assert out.shape == (1, 64, 96, 1)
  assert 0 < out.min() < out.max() < 1
  # The page's normalisation is that of training.
  names = {'grey': np.random.default_rng(0).integers(0, 256, (90, 150))}
  exec(local, names)
  pages, _ = normalisation.prepare(names['grey'][None], 'local')
  np.testing.assert_allclose(names['image'], pages[0], atol=1e-5)


@pytest.mark.parametrize(
  ('words', 'said'),
  [
    ('--output=a.jax', 'Give either --workdir'),
    ('--workdir=r --pretrained=em_membranes --output=a.jax', 'either'),
    ('--pretrained=em_membranes', 'No --output'),
    ('--pretrained=em_membranes --output=a.pt', r'end in \.jax, \.onnx or'),
    ('--pretrained=em_membranes --output=a.jax --tile=64', '--tile goes with'),
    ('--pretrained=em_membranes --output=no/a.jax', 'folder no of --output is'),
    ('--pretrained=em_membrane --output=a.jax', "did you mean 'em_membranes'"),
    ('--workdir=nowhere --output=a.jax', 'nowhere'),
  ],
)
def test_bad_input_is_one_sentence(words, said, command, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  done = command('export', *words.split())
  assert done.code == 2
  assert re.search(said, done.err), done.err
  assert done.err.count('\n') == 1
  assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused_first(
  command, tmp_path, monkeypatch
):
  monkeypatch.setattr(artefact.os, 'access', lambda *_: False)
  done = command('export', '--workdir=nowhere', f'--output={tmp_path}/a.jax')
  assert done.code == 2
  assert f'The folder {tmp_path} of --output is missing or not' in done.err


@pytest.mark.parametrize(
  ('name', 'said'),
  [
    ('a.jax', r"needs flatbuffers.*'\.\[export\]'"),
    ('a.onnx', r"needs jax2onnx.*'\.\[onnx\]'"),
    ('a.zip', r"needs jax2onnx.*'\.\[onnx\]'"),
  ],
)
def test_a_missing_library_is_named(name, said, command, tmp_path, monkeypatch):
  find = importlib.util.find_spec
  absent = 'flatbuffers', 'jax2onnx'
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name, *rest: None if name in absent else find(name, *rest),
  )
  output = tmp_path / name
  done = command('export', '--pretrained=em_membranes', f'--output={output}')
  assert done.code == 2
  assert re.search(said, done.err), done.err
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('tile', [100, 0, -32])
def test_a_tile_that_does_not_fit_is_refused_with_the_nearest(tile):
  with pytest.raises(errors.InputError, match=f'--tile is {tile}.*of 32: give'):
    onnx_file.tile_shape(make('fc_resnet'), tile)


@pytest.mark.exporter
@pytest.mark.onnx
@pytest.mark.parametrize('name', SYSTEMS)
def test_every_system_gives_its_probabilities(name, tmp_path, capsys):
  # It prints the rows of docs/export.md.
  network = make(name, FIT)
  model = network.run.model
  onnx_file.write(network, tmp_path / 'a.onnx', 64)
  card = files.read_json(tmp_path / 'a.onnx.json')
  assert card['input']['shape'] == [1, 64, 64, model.slices]
  assert card['largest_difference'] <= onnx_file.TOLERANCE
  image = artefact.sample((1, 64, 64, model.slices))
  read = jax.export.deserialize(artefact.serialise(network)[0])
  difference = abs(read.call(image) - jax.jit(network)(image)).max()
  assert difference < 1e-6
  found = f'{difference:.1e} | {card["largest_difference"]:.1e}'
  with capsys.disabled():
    print(f'\n| `{name}` | {model.size_multiple} | {found} |')


@pytest.mark.onnx
def test_other_probabilities_are_not_written(tmp_path):
  network = make('cumedvision')
  content = onnx_file.convert(network, (1, 16, 16, 1))
  image = artefact.sample((1, 16, 16, 1))
  expected = np.asarray(jax.jit(network)(image))
  assert onnx_file.check(content, image, expected) <= onnx_file.TOLERANCE
  with pytest.raises(errors.RunError, match='differs from JAX by 2'):
    onnx_file.check(content, image, expected + 2e-4)


@pytest.mark.onnx
def test_what_jax2onnx_does_not_know_is_refused():
  with pytest.raises(errors.InputError, match='jax2onnx cannot convert'):
    onnx_file.convert(
      lambda x: jax.pure_callback(lambda y: y, x, x), (1, 16, 16, 1)
    )


def test_bfloat16_is_no_type_of_onnx():
  run = make('cumedvision').run
  run = dataclasses.replace(run, model=run.model.clone(dtype='bfloat16'))
  network = artefact.TrainedFunction(run, None)
  with pytest.raises(errors.InputError, match=r'dtype is bfloat16.*NAME\.jax'):
    onnx_file.tile_shape(network, 32)


@pytest.mark.onnx
@pytest.mark.filterwarnings('ignore')  # Of files that bioimageio leaves open.
@pytest.mark.parametrize('normalise', config_lib.NORMALISATIONS)
def test_a_package_for_bioimage_io_passes_its_tests(normalise, tmp_path):
  from bioimageio import core

  network = make('cumedvision', FIT, normalise)
  bioimage.write(network, tmp_path / 'a.zip', 32)
  summary = core.test_model(tmp_path / 'a.zip')
  assert summary.status == 'passed'
