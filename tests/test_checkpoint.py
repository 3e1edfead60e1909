"""Checkpoints: bit-exact, the newest that can be read, the best."""

import os
import pathlib
import shutil

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from skipnet_jax import errors
from skipnet_jax.runs import checkpoint
from skipnet_jax.runs import progress as progress_lib
from skipnet_jax.step import flat
from skipnet_jax.step import state as state_lib

OPTIMIZER = optax.rmsprop(1e-3, momentum=0.9)


def make(step, width=3):
  """A state whose every number tells the step."""
  rng = np.random.default_rng(step)

  def array(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  params = flat.join(
    {'conv': {'kernel': array(3, 3, 1, width), 'bias': array(width)}}
  )
  # The gaps between kernels are no part of a checkpoint.
  opt_state = jax.tree.map(
    lambda x: flat.join(
      jax.tree.map(
        lambda y: jnp.asarray(rng.normal(size=y.shape), y.dtype), x.tree()
      )
    ),
    OPTIMIZER.init(params),
    is_leaf=lambda x: isinstance(x, flat.Flat),
  )
  return state_lib.TrainState(
    step=jnp.asarray(step, jnp.int32),
    params=params,
    batch_stats=flat.join({'norm': {'mean': array(width)}}),
    averaged_stats=flat.join({}),
    opt_state=opt_state,
    key=jax.random.key(step + 7),
  )


def save(folder, steps, best=()):
  writer = checkpoint.Checkpoints(folder)
  for step in steps:
    writer.save(make(step), {'step': step, 'epoch': step}, best=step in best)
  writer.close()


def read(folder, method, *arguments, like=None):
  reader = checkpoint.Checkpoints(folder, create=False)
  try:
    return getattr(reader, method)(like or make(0), *arguments)
  finally:
    reader.close()


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  a, b = (s.replace(key=jax.random.key_data(s.key)) for s in (a, b))
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


def damage(folder):
  for path in folder.rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def test_a_state_comes_back_bit_for_bit(tmp_path):
  save(tmp_path, [5])
  warnings = []
  state, meta, kernels = read(tmp_path, 'restore_latest', warnings.append)
  assert_same(state, make(5))
  assert meta.pop('crc32') > 0
  assert meta == {'step': 5, 'epoch': 5}
  assert kernels is None
  assert not warnings
  # The key goes on drawing as it did.
  assert float(jax.random.uniform(state.key)) == float(
    jax.random.uniform(make(5).key)
  )


def test_two_latest_and_two_best_are_kept(tmp_path):
  save(tmp_path, [2, 4, 6, 8], best=[2, 4, 6])
  kept = {
    kind: sorted(
      int(p.name) for p in (tmp_path / 'checkpoints' / kind).iterdir()
    )
    for kind in ('latest', 'best')
  }
  assert kept == {'latest': [6, 8], 'best': [4, 6]}
  assert_same(read(tmp_path, 'restore_best', print)[0], make(6))
  assert_same(read(tmp_path, 'restore_latest', print)[0], make(8))


def test_the_same_step_may_come_again(tmp_path):
  save(tmp_path, [2], best=[2])
  writer = checkpoint.Checkpoints(tmp_path)
  again = make(2).replace(params=make(3).params)
  writer.save(again, {'step': 2, 'epoch': 9}, best=True)
  writer.close()
  for state, meta in (
    read(tmp_path, 'restore_best', print),
    read(tmp_path, 'restore_latest', print)[:2],
  ):
    assert_same(state, again)
    assert meta['epoch'] == 9
  assert {path.name for path in (tmp_path / 'checkpoints').iterdir()} == {
    'latest',
    'best',
  }


def test_a_run_killed_while_it_saves_a_step_again_keeps_it(
  tmp_path, monkeypatch
):
  save(tmp_path, [2, 4])
  writer = checkpoint.Checkpoints(tmp_path)

  def killed(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(ocp.CheckpointManager, 'save', killed)
  with pytest.raises(KeyboardInterrupt):
    writer.save(make(4), {'step': 4, 'epoch': 4})
  monkeypatch.undo()
  writer.close()
  writer = checkpoint.Checkpoints(tmp_path)
  assert_same(writer.restore_latest(make(0), print)[0], make(4))
  writer.close()


def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path):
  save(tmp_path, [2, 4])
  damage(tmp_path / 'checkpoints' / 'latest' / '4' / 'state')
  warnings = []
  state, meta, _ = read(tmp_path, 'restore_latest', warnings.append)
  assert_same(state, make(2))
  assert meta['epoch'] == 2
  (warning,) = warnings
  assert warning.startswith('The checkpoint latest/4 is damaged (state/ cannot')
  assert warning.endswith(': latest/2 is used instead.')
  # A reader moves nothing.
  assert (tmp_path / 'checkpoints' / 'latest' / '4').exists()
  assert not (tmp_path / 'damaged').exists()


def test_a_run_moves_what_is_damaged_and_saves_again(tmp_path):
  save(tmp_path, [2, 4, 400], best=[400])
  kept = tmp_path / 'damaged' / 'latest_400'
  for kind in ('latest', 'best'):
    damage(tmp_path / 'checkpoints' / kind / '400' / 'state')
  kept.mkdir(parents=True)
  writer = checkpoint.Checkpoints(tmp_path)
  warnings = []
  state, *_ = writer.restore_latest(make(0), warnings.append)
  assert_same(state, make(4))
  (warning,) = warnings
  assert 'latest/400 is damaged (state/ cannot be read: ' in warning
  assert ') and best/400 is damaged (state/ cannot be read: ' in warning
  assert f'is moved to {tmp_path / "damaged"}.' in warning
  writer.save(make(6), {'step': 6, 'epoch': 6}, best=True)
  writer.close()
  assert_same(read(tmp_path, 'restore_latest', print)[0], make(6))
  assert_same(read(tmp_path, 'restore_best', print)[0], make(6))
  # Nothing that lay there is replaced.
  assert not list(kept.iterdir())
  names = {path.name for path in kept.parent.iterdir()}
  assert names == {'latest_400', 'latest_400_2', 'best_400'}


def test_the_best_checkpoint_may_be_the_newest(tmp_path):
  save(tmp_path, [2, 4], best=[4])
  damage(tmp_path / 'checkpoints' / 'latest' / '4')
  warnings = []
  state, *_ = read(tmp_path, 'restore_latest', warnings.append)
  assert_same(state, make(4))
  assert 'best/4 is used instead' in warnings[0]
  shutil.rmtree(tmp_path / 'checkpoints' / 'latest')
  assert_same(read(tmp_path, 'restore_latest', print)[0], make(4))


@pytest.mark.parametrize(
  ('step', 'words'),
  [
    (6, r'step 6, .* back \(latest/6 is a copy\), or'),
    (8, 'step 8, .* back, or'),
  ],
)
def test_a_run_that_lost_its_best_checkpoint_is_refused(tmp_path, step, words):
  writer = checkpoint.Checkpoints(tmp_path)
  for each in (4, 6, 10):
    meta = {'step': each, 'epoch': each, 'best_record': {'step': step}}
    writer.save(make(each), meta, best=each == 4)
  damage(tmp_path / 'checkpoints/latest/10')
  with pytest.raises(errors.InputError, match=words):
    writer.restore_latest(make(0), print)
  writer.close()
  # Before anything is moved.
  assert (tmp_path / 'checkpoints/latest/10').exists()


@pytest.mark.parametrize('best', [False, True])
def test_a_save_that_does_not_save_is_an_error(tmp_path, best):
  save(tmp_path, [400], best=[400] if best else [])
  writer = checkpoint.Checkpoints(tmp_path)
  kind = 'best' if best else 'latest'
  words = rf'step 6 was not saved: .*{kind} has one of step 400\. Move'
  with pytest.raises(errors.RunError, match=words):
    writer.save(make(6), {'step': 6, 'epoch': 6}, best=best)
  writer.close()


def test_a_file_system_that_keeps_nothing_is_noticed_at_once(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(
    checkpoint.Checkpoints,
    '_read_bytes',
    lambda self, manager, step, size: np.zeros(size, np.uint8),
  )
  writer = checkpoint.Checkpoints(tmp_path)
  words = r'latest/2 in .* cannot be read back \(its checksum is wrong\)'
  with pytest.raises(errors.RunError, match=words):
    writer.save(make(2), {'step': 2, 'epoch': 2})
  writer.close()


@pytest.mark.skipif(
  not pathlib.Path('/proc/self/fd').exists(), reason='needs Linux with /proc'
)
@pytest.mark.parametrize(
  'name', ['a[b]', '*?', 'a\\b', 'gs:', os.fsdecode(b'\xff')]
)
def test_a_folder_may_have_any_name(tmp_path, monkeypatch, name):
  folder = tmp_path / name / 'run'
  folder.mkdir(parents=True)
  monkeypatch.chdir(folder.parent)
  save('run', [2], best=[2])
  # Only this folder was written to.
  assert [path.name for path in tmp_path.iterdir()] == [name]
  assert_same(read(folder, 'restore_latest', print)[0], make(2))
  assert_same(read(folder, 'restore_best', print)[0], make(2))


def flip(path, byte):
  content = bytearray(path.read_bytes())
  content[byte % len(content)] ^= 1 << (byte % 8)
  path.write_bytes(bytes(content))


# Orbax leaves the other arrays' coroutines behind when one cannot be read.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_flipped_bit_is_never_trained_on(tmp_path):
  """In every file, at places all over it: noticed, or without any effect."""
  save(tmp_path / 'whole', [2, 4])
  noticed = set()
  newest = tmp_path / 'whole' / 'checkpoints' / 'latest' / '4'
  files = [p for p in newest.rglob('*') if p.is_file()]
  for file in files:
    for byte in range(0, file.stat().st_size, file.stat().st_size // 6 + 1):
      folder = shutil.copytree(tmp_path / 'whole', tmp_path / 'copy')
      flip(folder / file.relative_to(tmp_path / 'whole'), byte)
      warnings = []
      state, meta, _ = read(folder, 'restore_latest', warnings.append)
      assert_same(state, make(2 if warnings else 4))
      assert meta['epoch'] == (2 if warnings else 4)
      if warnings:
        noticed.add(str(file.relative_to(newest)))
      shutil.rmtree(folder)
  # Of the state's files some are left over from how it was written.
  assert any(name.startswith('state/') for name in noticed), noticed
  assert any(name.startswith('meta/') for name in noticed), noticed


def test_the_checksum_finds_the_arrays_of_another_checkpoint(tmp_path):
  # Every file of step 4 is sound, but what they say is of step 6.
  save(tmp_path / 'a', [2, 4])
  save(tmp_path / 'b', [6])
  state = tmp_path / 'a/checkpoints/latest/4/state'
  shutil.rmtree(state)
  shutil.copytree(tmp_path / 'b/checkpoints/latest/6/state', state)
  warnings = []
  found, *_ = read(tmp_path / 'a', 'restore_latest', warnings.append)
  assert_same(found, make(2))
  assert 'checksum' in warnings[0]


def test_a_damaged_best_checkpoint_is_replaced_by_its_copy_or_an_older_one(
  tmp_path,
):
  save(tmp_path, [2, 4, 6], best=[2, 4])
  damage(tmp_path / 'checkpoints' / 'best' / '4' / 'state')
  warnings = []
  assert_same(read(tmp_path, 'restore_best', warnings.append)[0], make(4))
  damage(tmp_path / 'checkpoints' / 'latest' / '4' / 'state')
  assert_same(read(tmp_path, 'restore_best', warnings.append)[0], make(2))
  assert 'best/4 is damaged' in warnings[0]
  assert 'latest/4 is used instead' in warnings[0]
  assert 'best/2 is used instead' in warnings[1]


def test_an_interrupted_epoch_keeps_the_kernels_before_it(tmp_path):
  kernels = [jnp.arange(6.0).reshape(2, 3), jnp.ones((1, 2))]
  writer = checkpoint.Checkpoints(tmp_path)
  meta = {'step': 3, 'epoch': 1, 'cut_short': {'steps': 1}}
  writer.save(make(3), meta, kernels=kernels)
  writer.close()
  like = jax.tree.map(jnp.zeros_like, kernels)
  state, found, first = read(tmp_path, 'restore_latest', print, like)
  assert_same(state, make(3))
  assert found['cut_short'] == {'steps': 1}
  for a, b in zip(first, kernels, strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_run_without_readable_checkpoints_does_not_start_again(tmp_path):
  save(tmp_path, [2, 4])
  damage(tmp_path / 'checkpoints' / 'latest')
  words = r'No checkpoint in .* can be read \(latest/4: .*; latest/2: .*\): res'
  with pytest.raises(errors.RunError, match=words):
    read(tmp_path, 'restore_latest', print)


def test_an_unfinished_write_is_no_checkpoint(tmp_path):
  save(tmp_path, [2])
  unfinished = tmp_path / 'checkpoints' / 'latest' / '4.orbax-checkpoint-tmp'
  unfinished.mkdir()
  (unfinished / 'state').write_text('half')
  state, *_ = read(tmp_path, 'restore_latest', print)
  assert_same(state, make(2))


def test_a_new_run_has_none(tmp_path):
  writer = checkpoint.Checkpoints(tmp_path)
  assert writer.restore_latest(make(0), print) is None
  with pytest.raises(errors.InputError, match='no best checkpoint: train'):
    writer.restore_best(make(0), print)
  writer.close()


def test_another_network_is_named(tmp_path):
  save(tmp_path, [2], best=[2])
  with pytest.raises(errors.InputError, match='is of another model') as e:
    read(tmp_path, 'restore_best', print, like=make(0, width=4))
  assert 'params.conv.bias is float32 (3,), and float32 (4,) is needed' in str(
    e.value
  )


def test_a_reader_makes_no_folders(tmp_path):
  reader = checkpoint.Checkpoints(tmp_path / 'run', create=False)
  with pytest.raises(errors.InputError, match='no best checkpoint'):
    reader.restore_best(make(0), print)
  reader.close()
  assert not (tmp_path / 'run').exists()


def test_orbax_takes_no_part_in_the_agreement_on_sigterm(tmp_path, monkeypatch):
  # With the step as its count of calls, a resumed run of several processes
  # would stop only after as many calls as it had steps before.
  def reached(step):
    raise AssertionError(step)

  name = 'reached_preemption_sync_point'
  monkeypatch.setattr(multihost_utils, name, reached)
  save(tmp_path, [2, 4], best=[2])
  assert int(read(tmp_path, 'restore_latest', print)[0].step) == 4


def test_progress_of_an_earlier_version_does_not_tell_the_whole_time():
  value = progress_lib.Progress(seconds=3.0, wall_seconds=4.0).to_json()
  assert progress_lib.Progress.from_json(value).wall_seconds == 4.0
  del value['wall_seconds']
  assert progress_lib.Progress.from_json(value).wall_seconds is None
