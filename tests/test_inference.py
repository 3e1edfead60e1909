"""Tiles, orientations, samples and checkpoints of a prediction."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import made_runs
import numpy as np
import pytest

from skipnet_jax import errors
from skipnet_jax.models import network
from skipnet_jax.prediction import inference
from skipnet_jax.prediction import tiling as tiling_lib

Tiling = tiling_lib.Tiling


TRACES = []
NAMES = itertools.count()


class Pooled(network.Network):
  """Sees little beyond blocks of 4 pixels; tells when it is traced.

  Its number makes every test's one a network of its own.
  """

  number: int
  dropout: float = 0.0
  everywhere: bool = False

  @nn.compact
  def __call__(self, image, train, sample=False):
    TRACES.append(image.shape)
    x = nn.Conv(3, (3, 3), name='first')(image)
    low = nn.max_pool(x, (4, 4), (4, 4)).repeat(4, 1).repeat(4, 2)
    if self.everywhere:
      low = low + low.mean((1, 2), keepdims=True)
    x = nn.Conv(4, (3, 3), name='second')(jnp.concatenate([x, low], -1))
    x = nn.Dropout(self.dropout, deterministic=not sample)(nn.relu(x))
    return {'logits': nn.Conv(1, (1, 1), name='last')(x)}


class Triple(network.Network):
  """Looks at three slices."""

  inner: nn.Module
  slices: int = 3

  def __call__(self, image, train, sample=False):
    weighted = image * jnp.array([[[[1.0, 2.0, -4.0]]]])
    return self.inner(weighted.sum(-1, keepdims=True), train, sample)


def pooled(**fields):
  model = Pooled(next(NAMES), **fields)
  variables = [
    model.init(jax.random.key(seed), jnp.zeros((1, 32, 32, 1)), train=False)
    for seed in (0, 1)
  ]
  TRACES.clear()
  return model, variables


@pytest.fixture(scope='module')
def made():
  """FC-ResNet and its variables."""
  model, state = made_runs.small_state(made_runs.small_config())
  return model, state.variables()


def noise(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)


@pytest.mark.parametrize(
  ('tiling', 'size'),
  [
    (Tiling((64, 64), 32, 8), (333, 517)),
    (Tiling((64, 64), 0, 0), (64, 65)),
    (Tiling((96, 96), 50, 20), (1024, 1000)),
    (Tiling((64, 96), 31, 15), (50, 200)),
    (Tiling((64, 64)), (17, 33)),
    (Tiling((8, 8), 4, 1, multiple=4), (21, 9)),
  ],
)
def test_tiles_cover_a_slice_from_aligned_corners(tiling, size):
  padded = tiling.padded(size)
  total = np.zeros(padded)
  for y, x in tiling.starts(size):
    assert y % tiling.multiple == x % tiling.multiple == 0
    weight = tiling.weight((y, x), size)
    part = total[y : y + tiling.tile[0], x : x + tiling.tile[1]]
    assert part.shape == weight.shape == tiling.tile
    part += weight
    for axis, first in enumerate((y, x)):
      edges = np.moveaxis(weight, axis, 0)
      if first > 0:
        assert not edges[: tiling.margin].any()
      if first + tiling.tile[axis] < padded[axis]:
        assert not edges[len(edges) - tiling.margin :].any()
  assert total.min() > 1e-3
  assert all(a >= b for a, b in zip(padded, size, strict=True))


def test_weights_change_smoothly_from_tile_to_tile():
  tiling, size = Tiling((128, 128), 96, 16), (128, 512)
  shares = np.zeros((len(tiling.starts(size)), 512))
  for place, (y, x) in enumerate(tiling.starts(size)):
    shares[place, x : x + 128] = tiling.weight((y, x), size)[0]
  shares /= shares.sum(0)
  assert np.abs(np.diff(shares)).max() < 0.05


@pytest.mark.parametrize('size', [(384, 576), (400, 500)])
def test_tiled_and_whole_predictions_agree(made, size):
  predictor = inference.Predictor(made[0], [made[1]])
  image, said = noise(*size), []
  whole, std = predictor(image, predictor.tiling(size))
  tiling = predictor.tiling(size, 384, 288, said.append)
  assert len(tiling.starts(size)) >= 3
  tiled, _ = predictor(image, tiling)
  assert whole.shape == tiled.shape == std.shape == size
  assert whole.dtype == np.float32
  assert whole.std() > 0.01
  assert not std.any()
  assert np.abs(tiled - whole).max() < 1e-4
  assert not said


def test_whole_slices_match_the_network_itself(made):
  model, variables = made
  predictor = inference.Predictor(model, [variables])
  image = noise(64, 96).astype(np.uint16) * 200
  mean, _ = predictor(image, predictor.tiling((64, 96)))
  # In float32 throughout: the network makes of its last bits up to 1e-4.
  mean_grey, std_grey = np.float32(image.mean()), np.float32(image.std())
  normal = (image.astype(np.float32) - mean_grey) / std_grey
  outputs = jax.jit(lambda v, x: model.apply(v, x, train=False))(
    variables, normal[None, ..., None]
  )
  expected = jax.nn.sigmoid(outputs['logits'])[0, ..., 0]
  np.testing.assert_allclose(mean, expected, atol=1e-5)


def test_receptive_field_is_measured():
  model, variables = pooled()
  predictor = inference.Predictor(model, variables[:1], multiple=4)
  # One into the next pooled block, the 4 pixels of that, and one beyond.
  assert predictor.receptive_field() == 5
  model, variables = pooled(everywhere=True)
  predictor = inference.Predictor(model, variables[:1], multiple=4)
  assert predictor.receptive_field() is None


def test_says_where_tiles_overlap_too_little():
  model, variables = pooled()
  predictor = inference.Predictor(model, variables[:1], multiple=4)
  said = []
  tiling = predictor.tiling((64, 64), 32, log=said.append)
  assert not said
  assert (tiling.overlap, tiling.margin) == (14, 5)
  whole, _ = predictor(noise(64, 64), predictor.tiling((64, 64)))
  tiled, _ = predictor(noise(64, 64), tiling)
  np.testing.assert_allclose(tiled, whole, atol=1e-6)

  tiling = predictor.tiling((64, 64), 32, 3, log=said.append)
  assert tiling.overlap == 3
  assert 'reaches 5 pixels' in said[0]
  assert '--tile=32 --overlap=14' in said[0]
  tiled, _ = predictor(noise(64, 64), tiling)
  assert 1e-4 < np.abs(tiled - whole).max() < 0.5

  model, variables = pooled(everywhere=True)
  predictor = inference.Predictor(model, variables[:1], multiple=4)
  predictor.tiling((64, 64), 32, log=said.append)
  assert 'is the whole slice' in said[1]
  assert '--tile=64' in said[1]


def test_whole_slices_up_to_a_size():
  model, variables = pooled()
  predictor = inference.Predictor(model, variables[:1])
  assert predictor.tiling((1000, 1536)) == Tiling((1024, 1536))
  assert predictor.tiling((1000, 1537)).tile == (1024, 1024)
  assert predictor.tiling((333, 1537)).tile == (352, 1024)
  assert predictor.tiling((333, 517), 1024).tile == (352, 544)


@pytest.mark.parametrize(
  ('tile', 'overlap', 'words'),
  [
    (100, None, ('--tile is 100', '32', '96')),
    (-32, None, ('--tile is -32',)),
    (64, 33, ('--overlap is 33', '0 to 32')),
    (64, -1, ('--overlap is -1',)),
    (0, 2000, ('--overlap is 2000', '0 to 96')),
  ],
)
def test_refuses_tiles_that_do_not_fit(tile, overlap, words):
  model, variables = pooled()
  predictor = inference.Predictor(model, variables[:1])
  with pytest.raises(errors.InputError) as caught:
    predictor.tiling((128, 128), tile, overlap)
  assert all(word in str(caught.value) for word in words)
  assert not TRACES


def test_one_compilation_for_all_tiles_orientations_and_checkpoints():
  model, variables = pooled(dropout=0.5)
  predictor = inference.Predictor(
    model, variables, tta=True, mc_samples=3, multiple=4
  )
  tiling, steps = Tiling((16, 16), 8, 2, 4), []
  predictor(noise(50, 70), tiling, lambda: steps.append(0))
  predictor(noise(33, 40), tiling)
  assert TRACES == [(1, 16, 16, 1)]
  assert predictor.count == 2 * 3 * 8
  assert len(steps) == len(tiling.starts((50, 70))) * predictor.count
  # Nor does another predictor of the same network compile it again.
  inference.Predictor(model, variables[:1], mc_samples=1, multiple=4)(
    noise(20, 20), tiling
  )
  assert len(TRACES) == 1
  # Turned slices that are not square are of a second shape.
  TRACES.clear()
  predictor(noise(40, 60), predictor.tiling((40, 60)))
  assert sorted(TRACES) == [(1, 40, 60, 1), (1, 60, 40, 1)]


@pytest.mark.parametrize('size', [(40, 40), (38, 61)])
def test_orientations_are_turned_back(size):
  model, variables = pooled()
  predictor = inference.Predictor(model, variables[:1], tta=True, multiple=4)
  image = noise(*size)
  mean, std = predictor(image, predictor.tiling(size))
  assert mean.shape == std.shape == size
  assert std.max() > 1e-4

  plain = inference.Predictor(model, variables[:1], multiple=4)
  if size == (40, 40):
    turned = []
    for k, flip in itertools.product(range(4), (False, True)):
      seen = np.rot90(image[:, ::-1] if flip else image, k)
      value, _ = plain(seen, plain.tiling(size))
      value = np.rot90(value, -k)
      turned.append(value[:, ::-1] if flip else value)
    np.testing.assert_allclose(mean, np.mean(turned, 0), atol=1e-5)
    np.testing.assert_allclose(std, np.std(turned, 0), atol=1e-5)
  # The average does not know which way up its slice lies.
  again, _ = predictor(np.rot90(image).copy(), predictor.tiling(size[::-1]))
  inner = slice(8, 30), slice(8, 30)
  np.testing.assert_allclose(np.rot90(again, -1)[inner], mean[inner], atol=0.1)


def test_tiles_fit_a_network_of_any_multiple():
  class Fives(network.Network):
    size_multiple = 5

    @nn.compact
    def __call__(self, image, train, sample=False):
      self.check_size(image.shape[1:3])
      return {'logits': image * self.param('one', nn.initializers.ones, ())}

  predictor = inference.Predictor(Fives(), [{'params': {'one': np.float32(1)}}])
  image = noise(45, 70).astype(np.float32)
  found, _ = predictor(image, predictor.tiling(image.shape))
  assert found.shape == image.shape
  assert predictor.tiling(image.shape).multiple == 160
  assert predictor.tiling((2000, 2000)).tile == (1120, 1120)


def test_an_identity_comes_back_in_place():
  class Identity(network.Network):
    @nn.compact
    def __call__(self, image, train, sample=False):
      return {'logits': image * self.param('one', nn.initializers.ones, ())}

  predictor = inference.Predictor(
    Identity(), [{'params': {'one': jnp.float32(1)}}], tta=True
  )
  image = noise(45, 70).astype(np.uint16)
  for normalise, expected in {
    'slice': (image - image.mean()) / image.std(),
    'range': image / 32767.5 - 1,
  }.items():
    predictor.normalise = normalise
    for tiling in (Tiling((64, 96)), Tiling((64, 32), 0, 0)):
      mean, std = predictor(image, tiling)
      np.testing.assert_allclose(mean, jax.nn.sigmoid(expected), atol=1e-4)
      assert std.max() < 1e-5


def test_all_devices_together_give_the_bits_of_one():
  model, variables = pooled(dropout=0.5)
  images, tiling = noise(3, 32, 28)[:, None], Tiling((16, 16), 8, 2, 4)
  assert 3 * len(tiling.starts((32, 28))) % 8
  found = []
  for devices in (None, jax.local_devices()):
    predictor = inference.Predictor(
      *(model, variables),
      tta=True,
      mc_samples=2,
      multiple=4,
      devices=devices,
    )
    predictor.compile(tiling)
    found.append([*predictor.predict_slices(images, (32, 28), tiling)])
  np.testing.assert_array_equal(found[0], found[1])


def test_dropout_samples_and_checkpoints_are_averaged():
  model, variables = pooled(dropout=0.5)
  image = noise(16, 24)
  tiling = Tiling((16, 24), multiple=4)

  def predict(*chosen, **options):
    return inference.Predictor(model, chosen, multiple=4, **options)(
      image, tiling
    )

  first, second = (predict(v)[0] for v in variables)
  both, std = predict(*variables)
  np.testing.assert_allclose(both, (first + second) / 2, atol=1e-6)
  np.testing.assert_allclose(std, np.abs(first - second) / 2, atol=1e-5)

  few, spread = predict(variables[0], mc_samples=8)
  assert spread.max() > 0.01
  assert np.array_equal(few, predict(variables[0], mc_samples=8)[0])
  assert not np.array_equal(few, predict(variables[0], mc_samples=8, seed=1)[0])
  many, _ = predict(variables[0], mc_samples=200)
  other, _ = predict(variables[0], mc_samples=200, seed=1)
  assert np.abs(many - other).mean() < 0.3 * np.abs(few - other).mean() + 0.01


@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'float32'])
def test_constant_and_not_finite_slices(dtype):
  model, variables = pooled()
  predictor = inference.Predictor(model, variables[:1])
  image = np.full((20, 20), 7, dtype)
  mean, _ = predictor(image, predictor.tiling((20, 20)))
  assert np.isfinite(mean).all()
  if dtype == 'float32':
    image[3, 3] = np.nan
    with pytest.raises(errors.InputError, match='not finite'):
      predictor(image, predictor.tiling((20, 20)))


def test_a_slice_is_predicted_from_its_neighbours():
  model, variables = pooled()
  three = Triple(model)
  params = {'params': {'inner': variables[0]['params']}}
  predictor = inference.Predictor(three, [params], multiple=4)
  pages = noise(3, 40, 60).astype(np.uint16) * np.array([[[1]], [[3]], [[9]]])
  mean, _ = predictor(pages, predictor.tiling((40, 60)))
  normal = [(page - page.mean()) / page.std() for page in pages.astype(float)]
  image = np.float32(normal[0] + 2 * normal[1] - 4 * normal[2])
  expected = model.apply(variables[0], image[None, ..., None], train=False)
  expected = jax.nn.sigmoid(expected['logits'])[0, ..., 0]
  np.testing.assert_allclose(mean, expected, atol=1e-5)
