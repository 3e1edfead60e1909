"""Rates, bandwidths and memory of accelerators, as the vendors publish them.

Peaks are upper bounds that no program reaches; no measured figure belongs here.
Devices without bfloat16 units, such as NVIDIA's V100 and T4, are left out. If a
data sheet has a rate with structured sparsity only, half of it is meant.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Peak:
  """The published figures of one device, a TPU chip or a GPU.

  Attributes:
    bf16_tflops: bfloat16 products accumulated in float32, without structured
      sparsity, in 1e12 operations per second.
    float32_tflops: float32 outside the matrix units; None if not published. A
      TPU multiplies float32 in bfloat16 passes.
    bandwidth_gb_s: of the device's memory, in 1e9 bytes per second.
    memory_gib: size of the device's memory. Vendors write GB and mean GiB. A
      part is reserved, so programs can use less.
    link_gb_s: what a device can send over all its links at once, in 1e9 bytes
      per second; if the published figure is the sum of both directions, half of
      it. None without links or without a published figure. Optional bridges
      between two cards do not count.
    source: where the figures are published.
    tf32_tflops: TF32 products, as `bf16_tflops`; None if not published.
  """

  bf16_tflops: float
  float32_tflops: float | None
  bandwidth_gb_s: float
  memory_gib: float
  link_gb_s: float | None
  source: str
  tf32_tflops: float | None = None


_CLOUD = 'Google Cloud documentation, https://docs.cloud.google.com/tpu/docs/'
_V5P = Peak(459, None, 2765, 95, 600, f'{_CLOUD}v5p')
_TPU7X = (
  f'{_CLOUD}tpu7x, half a chip; bandwidth: jax._src.pallas.mosaic.tpu_info'
)
_A100 = (
  'NVIDIA A100 datasheet, https://www.nvidia.com/content/dam/en-zz/Solutions/'
  'Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf'
)
_H100 = 'NVIDIA H100 Tensor Core GPU datasheet'
_H200 = 'NVIDIA H200 Tensor Core GPU datasheet'
_B200 = (
  'NVIDIA DGX B200 datasheet, an eighth of it; TF32: NVIDIA HGX B200 datasheet'
)
_GB200 = 'NVIDIA GB200 NVL72 datasheet, a 72nd of it'
_L4 = 'NVIDIA L4 Tensor Core GPU datasheet'
_L40S = 'NVIDIA L40S datasheet'
_ADA = 'NVIDIA Ada GPU Architecture whitepaper'
_MI300X = 'AMD Instinct MI300X datasheet'

# By the exact device_kind that JAX reports: a part of a GPU ('NVIDIA H200 MIG
# 1g.18gb') or a slower variant ('NVIDIA H200 NVL') has a similar name.
PEAKS: dict[str, Peak] = {
  # One device is a chip, with both of its TensorCores.
  'TPU v4': Peak(275, None, 1200, 32, None, f'{_CLOUD}v4'),
  'TPU v5 lite': Peak(197, None, 819, 16, 200, f'{_CLOUD}v5e'),
  'TPU v5': _V5P,
  'TPU v5p': _V5P,
  'TPU v6 lite': Peak(918, None, 1638, 32, 400, f'{_CLOUD}v6e'),
  # One device is one of the chip's two TensorCores, with half of its memory.
  'TPU7x': Peak(2307 / 2, None, 7400 / 2, 192 / 2, None, _TPU7X),
  'NVIDIA A100-SXM4-40GB': Peak(312, 19.5, 1555, 40, 300, _A100, 156),
  'NVIDIA A100-SXM4-80GB': Peak(312, 19.5, 2039, 80, 300, _A100, 156),
  'NVIDIA A100 80GB PCIe': Peak(312, 19.5, 1935, 80, None, _A100, 156),
  'NVIDIA H100 80GB HBM3': Peak(989.5, 67, 3350, 80, 450, _H100, 494.5),
  'NVIDIA H100 PCIe': Peak(756.5, 51, 2000, 80, None, _H100, 378),
  'NVIDIA H200': Peak(989.5, 67, 4800, 141, 450, _H200, 494.5),
  'NVIDIA B200': Peak(2250, 75, 8000, 180, 900, _B200, 1100),
  'NVIDIA GB200': Peak(2500, 80, 8000, 186, 900, _GB200, 1250),
  'NVIDIA L4': Peak(121, 30.3, 300, 24, None, _L4, 60),
  'NVIDIA L40S': Peak(362.05, 91.6, 864, 48, None, _L40S, 183),
  'NVIDIA GeForce RTX 4090': Peak(165.2, 82.6, 1008, 24, None, _ADA, 82.6),
  # In which arithmetic XLA multiplies float32 here is not documented.
  'AMD Instinct MI300X': Peak(1307.4, None, 5300, 192, None, _MI300X),
}

# bfloat16 passes in which a TPU multiplies float32.
_PASSES = {'default': 1, 'high': 3, 'highest': 6}


def product_rate(
  kind: str, dtype: str, matmul_precision: str
) -> tuple[str, float | None]:
  """The arithmetic of matrix products on a device, and its published peak.

  Args:
    kind: of the device, as JAX names it; a key of PEAKS.
    dtype: of the network.
    matmul_precision: JAX's name; it changes products of float32 only.

  Returns:
    Its name, such as tf32; 1e12 FLOPs per second, None if not published.
  """
  peak = PEAKS[kind]
  if dtype == 'bfloat16':
    return 'bfloat16', peak.bf16_tflops
  if kind.startswith('TPU'):
    passes = _PASSES[matmul_precision]
    name = f'bfloat16 in {passes} passes' if passes > 1 else 'bfloat16'
    return name, peak.bf16_tflops / passes
  if matmul_precision == 'highest':
    return 'float32', peak.float32_tflops
  return 'tf32', peak.tf32_tflops
