"""Rates that NVIDIA published for its U-Net, quoted as published.

Training throughput on one GPU, 572x572 pixels, TensorFlow 2 in the container
20.06, 800 iterations after 200, from the README at URL. Its code averages
batch / time over the iterations, a mean of rates, which is higher than batch
over the mean time; its latencies are means of times. The two columns agree only
where all iterations took the same time.
"""

import dataclasses

URL = (
  'https://github.com/NVIDIA/DeepLearningExamples/blob/master/TensorFlow2/'
  'Segmentation/UNet_Medical/README.md'
)


@dataclasses.dataclass(frozen=True)
class Rate:
  """A published rate.

  Attributes:
    device: as published.
    precision: as published.
    batch: images of a step.
    images_per_second: as published.
  """

  device: str
  precision: str
  batch: int
  images_per_second: float


RATES = (
  Rate('A100 40GB', 'TF32', 1, 29.56),
  Rate('A100 40GB', 'TF32', 8, 46.26),
  Rate('A100 40GB', 'mixed precision', 1, 62.50),
  Rate('A100 40GB', 'mixed precision', 8, 118.98),
  Rate('V100 16GB', 'FP32', 1, 14.65),
  Rate('V100 16GB', 'FP32', 8, 17.91),
  Rate('V100 16GB', 'mixed precision', 1, 40.36),
  Rate('V100 16GB', 'mixed precision', 8, 59.58),
)


def lines() -> list[str]:
  """The rates as text, and where they are from."""
  return [
    'published by NVIDIA in 2020, means of rates, not measured here:',
    *(
      f'  {one.device}, {one.precision}, batch {one.batch}: '
      f'{one.images_per_second:.2f} images/s'
      for one in RATES
    ),
    f'  {URL}',
  ]
