"""Whose a workdir is."""

import dataclasses
import json
import os

import numpy as np
import pytest

from skipnet_jax import config as config_lib
from skipnet_jax import config_checks
from skipnet_jax import config_identity
from skipnet_jax import errors
from skipnet_jax import models
from skipnet_jax.data import data_set
from skipnet_jax.runs import flow_file
from skipnet_jax.runs import plain_path
from skipnet_jax.runs import workdir

PIXELS = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
DATA = data_set.DataSet('isbi2012', PIXELS, PIXELS > 9, (0,), (1,))
DATASET = DATA.identity()


def make():
  config = config_lib.get_default()
  config.model = models.model_config('fc_resnet')
  return config


def test_a_new_folder_is_made_and_described(tmp_path):
  path = workdir.check(tmp_path / 'a' / 'b', make(), DATA)
  assert not list(path.iterdir())
  workdir.describe(path, make(), DATASET)
  content = json.loads((path / 'config.json').read_text())
  assert content['hash'] == config_identity.hash_of(make())
  assert content['dataset'] == DATASET
  environment = json.loads((path / 'environment.json').read_text())
  assert environment['packages']['jax']
  assert environment['devices']
  read = workdir.read_config(path)
  assert config_identity.to_flat(read) == config_identity.to_flat(make())
  # JSON has no tuples; the network is the same all the same.
  assert models.build_model(read.model) == models.build_model(make().model)


def test_the_same_config_may_come_again(tmp_path):
  workdir.describe(workdir.check(tmp_path, make(), DATA), make(), DATASET)
  longer = make()
  longer.train.epochs += 1
  workdir.check(tmp_path, longer, DATA)


def test_another_config_is_refused_by_its_fields(tmp_path):
  workdir.describe(tmp_path, make(), DATASET)
  other = make()
  other.optim.learning_rate = 0.5
  other.model.base_width = 8
  with pytest.raises(errors.InputError) as error:
    workdir.check(tmp_path, other, DATA)
  message = str(error.value)
  assert 'model.base_width (32, now 8)' in message
  assert 'optim.learning_rate (0.001, now 0.5)' in message
  assert 'train.epochs' not in message


@pytest.mark.parametrize('what', ['pixels', 'labels'])
def test_data_that_changed_are_refused(tmp_path, what):
  workdir.describe(tmp_path, make(), DATASET)
  image, label = PIXELS.copy(), DATA.label.copy()
  # In the last slice alone.
  (image if what == 'pixels' else label)[1, 3, 3] ^= 1
  other = dataclasses.replace(DATA, name='other', image=image, label=label)
  words = rf"'isbi2012'.*'other' with other {what}:"
  with pytest.raises(errors.InputError, match=words):
    workdir.check(tmp_path, make(), other)


def test_data_that_moved_are_the_same(tmp_path):
  workdir.describe(tmp_path, make(), DATASET)
  moved = make()
  moved.data.image = '/elsewhere/stack.tif'
  workdir.check(tmp_path, moved, dataclasses.replace(DATA, name='stack there'))


def test_an_older_fingerprint_is_checked_and_replaced(tmp_path):
  # Of name, shape, dtype and the first slice, as older versions wrote it.
  old = {'name': 'isbi2012', 'fingerprint': '253984731406'}
  workdir.describe(tmp_path, make(), old)
  other = dataclasses.replace(DATA, label=~DATA.label)
  with pytest.raises(errors.InputError, match='other pixels or labels'):
    workdir.check(tmp_path, make(), other)
  assert workdir.read_dataset(tmp_path) == old
  workdir.check(tmp_path, make(), DATA)
  assert workdir.read_dataset(tmp_path) == DATASET


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    ('', 'is not JSON, or is damaged in line 1'),
    ('{"config": ', 'is not JSON, or is damaged in line 1'),
    ('{"config": {}}', r"is damaged \(it has no 'model'\)"),
    ('{"config": 3}', 'is damaged'),
  ],
)
def test_an_unreadable_config_is_refused(tmp_path, content, words):
  (tmp_path / 'config.json').write_text(content)
  words = rf'config\.json {words}: give the --workdir of a run\.$'
  with pytest.raises(errors.InputError, match=words):
    workdir.check(tmp_path, make(), DATA)


def test_a_folder_with_checkpoints_but_no_config_is_refused(tmp_path):
  # As a run leaves it that was killed while it started.
  latest = tmp_path / 'checkpoints' / 'latest'
  latest.mkdir(parents=True)
  workdir.check(tmp_path, make(), DATA)
  (latest / '2').mkdir()
  with pytest.raises(errors.InputError, match=r'no config\.json'):
    workdir.check(tmp_path, make(), DATA)


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    ('metrics.jsonl', b'{}\n{'),
    ('gradient_flow.npz', b'damaged'),
    ('summary.json', b'{}'),
  ],
)
def test_a_run_that_lost_its_checkpoints_is_refused(tmp_path, name, content):
  workdir.describe(tmp_path, make(), DATASET)
  (tmp_path / name).write_bytes(content)
  # What is left of the first save when a run is killed is no checkpoint.
  unfinished = tmp_path / 'checkpoints/latest/2.orbax-checkpoint-tmp'
  unfinished.mkdir(parents=True)
  words = rf'no checkpoint to resume from: put .* or remove {name} to train'
  with pytest.raises(errors.InputError, match=words):
    workdir.check(tmp_path, make(), DATA)
  assert (tmp_path / name).read_bytes() == content
  unfinished.with_name('2').mkdir()
  workdir.check(tmp_path, make(), DATA)


def test_a_run_killed_in_its_first_epoch_starts_again(tmp_path):
  workdir.describe(tmp_path, make(), DATASET)
  (tmp_path / 'metrics.jsonl').write_text('{}\n')
  flow = flow_file.FlowFile(tmp_path / 'gradient_flow.npz', ['a'], 0, 0, print)
  flow.append(np.zeros(1), np.zeros((4, 1)))
  workdir.check(tmp_path, make(), DATA)


@pytest.mark.parametrize('name', workdir._FILES)
def test_a_folder_instead_of_a_file_is_refused(tmp_path, name):
  workdir.describe(tmp_path, make(), DATASET)
  (tmp_path / name).unlink(missing_ok=True)
  (tmp_path / name).mkdir()
  with pytest.raises(errors.InputError, match=rf'{name} is not a file, as a'):
    workdir.check(tmp_path, make(), DATA)


@pytest.mark.parametrize('name', workdir._FOLDERS)
def test_a_file_instead_of_a_folder_is_refused(tmp_path, name):
  workdir.describe(tmp_path, make(), DATASET)
  (tmp_path / name).parent.mkdir(exist_ok=True)
  (tmp_path / name).symlink_to(tmp_path / 'nowhere')
  for _ in range(2):
    with pytest.raises(errors.InputError, match=rf'{name} is not a folder, as'):
      workdir.check(tmp_path, make(), DATA)
    (tmp_path / 'nowhere').touch()


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
  workdir.describe(tmp_path, make(), DATASET)
  latest = tmp_path / 'checkpoints' / 'latest'
  latest.mkdir(parents=True)

  def access(path, mode):
    # Also for root, to whom the permissions do not matter.
    return path != latest or not mode & os.W_OK

  monkeypatch.setattr(os, 'access', access)
  with pytest.raises(errors.InputError, match=f'{latest} cannot be read and'):
    workdir.check(tmp_path, make(), DATA)


@pytest.mark.parametrize('name', ['a[b]', '*', 'a\\b', os.fsdecode(b'\xff')])
def test_odd_names_need_proc(tmp_path, monkeypatch, name):
  monkeypatch.setattr(plain_path, '_OPEN', tmp_path / 'no proc')
  with pytest.raises(errors.InputError, match='needs Linux with /proc: choose'):
    workdir.check(tmp_path / name, make(), DATA)
  assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / 'file').write_text('not a folder')
  for folder in (tmp_path / 'file' / 'run', tmp_path / ('a' * 300)):
    with pytest.raises(errors.InputError, match='cannot be written'):
      workdir.check(folder, make(), DATA)


def test_a_config_without_a_field_has_its_default(tmp_path):
  workdir.describe(tmp_path, make(), DATASET)
  path = tmp_path / 'config.json'
  content = json.loads(path.read_text())
  del content['config']['model']['scan']
  del content['config']['data']['augment']['noise']
  path.write_text(json.dumps(content))
  workdir.check(tmp_path, make(), DATA)
  read = workdir.read_config(tmp_path)
  config_checks.validate(read)
  assert read.data.augment.noise == 0
  assert models.build_model(read.model) == models.build_model(make().model)
  other = make()
  other.model.scan = True
  with pytest.raises(errors.InputError, match=r'model.scan \(False, now True'):
    workdir.check(tmp_path, other, DATA)


@pytest.mark.parametrize('value', [None, 3, 'x', [1]])
def test_a_config_json_whose_section_is_no_object_is_refused(tmp_path, value):
  workdir.describe(tmp_path, make(), DATASET)
  file = tmp_path / 'config.json'
  content = json.loads(file.read_text())
  content['config']['optim'] = value
  file.write_text(json.dumps(content))
  with pytest.raises(errors.InputError, match='a section is not an object'):
    workdir.read_config(tmp_path)


@pytest.mark.parametrize(
  ('name', 'fields', 'was'),
  [
    ('unet', {}, 'no ReLU followed'),
    ('polymtl', {}, 'in the normaliser no ReLU'),
    ('fcn_lstm', {}, 'one ConvLSTM'),
    ('fc_resnet', {'blocks': 'basic'}, 'after the last pixel only'),
    ('fc_resnet', {'blocks': 'simple'}, ''),
    ('f_clmser_s', {}, ''),
  ],
)
def test_a_run_of_an_earlier_network_is_refused(tmp_path, name, fields, was):
  config = config_lib.get_default()
  config.model = models.model_config(name, **fields)
  content = {
    'config': json.loads(config.to_json()),
    'dataset': {'name': 'made', 'fingerprint': '0'},
  }
  file = tmp_path / 'config.json'
  file.write_text(json.dumps(content))
  assert workdir.read_config(tmp_path).model.name == name
  del content['config']['data']['normalise']
  file.write_text(json.dumps(content))
  if was:
    with pytest.raises(errors.InputError, match=f'earlier version.*{was}'):
      workdir.read_config(tmp_path)
  else:
    assert workdir.read_config(tmp_path).data.normalise == 'slice'


def test_no_run_is_kept_among_the_slices(tmp_path):
  config = make()
  config.data.source = 'stack'
  config.data.image, config.data.label = (
    str(tmp_path / name) for name in ('slices', 'labels.zarr')
  )
  (tmp_path / 'slices').mkdir()
  (tmp_path / 'labels.zarr').mkdir()
  (tmp_path / 'link').symlink_to(tmp_path / 'slices')
  for name, words in (
    ('slices', 'one more slice in the folder'),
    ('link', 'one more slice in the folder'),
    ('labels.zarr/run', 'would lie in the volume'),
  ):
    with pytest.raises(errors.InputError, match=words):
      workdir.check(tmp_path / name, config, DATA)
  assert not [*tmp_path.glob('slices/*'), *tmp_path.glob('labels.zarr/*')]
  workdir.check(tmp_path / 'run', config, DATA)


@pytest.mark.parametrize('name', ['samples/a.png', 'scores.json', 'edges.json'])
def test_results_that_are_not_the_run_s_are_not_adopted(tmp_path, name):
  (tmp_path / 'samples').mkdir()
  workdir.check(tmp_path, make(), DATA)
  (tmp_path / name).write_text('mine')
  first = name.partition('/')[0]
  with pytest.raises(errors.InputError, match=f'has {first} but no config'):
    workdir.check(tmp_path, make(), DATA)
  # A run that lost its checkpoints is not begun anew beside them either.
  workdir.describe(tmp_path, make(), DATASET)
  (tmp_path / 'summary.json').write_text('{}')
  with pytest.raises(errors.InputError, match=f'remove summary.json, {first}'):
    workdir.check(tmp_path, make(), DATA)
