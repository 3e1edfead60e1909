"""What a data set says of its labels and of its pixel size."""

import numpy as np
import pytest

from skipnet_jax.data import data_set


@pytest.mark.parametrize(
  ('name', 'kept', 'expected'),
  [
    ('isbi2012', {}, 4),
    ('tfds:isbi2012_em', {}, 4),
    ('isbi2012, centre 256x256', {'pixel_size': 0.0}, 4),
    ('isbi2012', {'pixel_size': 5.0}, 5),
    ('stack isbi2012.tif', {}, 0),
  ],
)
def test_the_pixel_size_of_a_run(name, kept, expected):
  kept = {'name': name, 'fingerprint': '0-0', **kept}
  assert data_set.trained_pixel_size(kept) == expected


@pytest.mark.parametrize(('share', 'nats'), [(0, 0), (0.25, 0.562335), (1, 0)])
def test_a_constant_prediction_costs_the_entropy_of_the_share(share, nats):
  label = np.zeros((3, 4, 4), bool)
  label[1:, :, : int(4 * share)] = True
  data = data_set.DataSet('made', label, label, train=(0,), valid=(1, 2))
  assert data.constant_bce(data.valid) == pytest.approx(nats, abs=1e-6)
  assert data.constant_bce(data.train) == 0
