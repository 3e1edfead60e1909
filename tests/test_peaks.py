"""Published peaks: which devices, and that the figures belong together."""

import pytest

from skipnet_jax.benchmarking.timing import peaks


@pytest.mark.parametrize(
  ('kind', 'tflops', 'bandwidth'),
  [
    ('TPU v4', 275, 1200),
    ('TPU v5 lite', 197, 819),
    ('TPU v5', 459, 2765),
    ('TPU v6 lite', 918, 1638),
    ('NVIDIA A100-SXM4-40GB', 312, 1555),
    # Half of the 1,979 that are published with sparsity.
    ('NVIDIA H100 80GB HBM3', 989.5, 3350),
    ('NVIDIA H200', 989.5, 4800),
    ('NVIDIA B200', 2250, 8000),
    ('NVIDIA GB200', 2500, 8000),
    ('AMD Instinct MI300X', 1307.4, 5300),
    # A chip has 2,307 and is two devices.
    ('TPU7x', 1153.5, 3700),
  ],
)
def test_a_device_is_found_by_the_name_that_jax_reports(
  kind, tflops, bandwidth
):
  found = peaks.PEAKS[kind]
  assert (found.bf16_tflops, found.bandwidth_gb_s) == (tflops, bandwidth)


@pytest.mark.parametrize(
  'kind', ['cpu', '', 'NVIDIA H200 NVL', 'NVIDIA H200 MIG 1g.18gb', 'Tesla T4']
)
def test_a_device_that_only_resembles_a_known_one_has_no_peak(kind):
  assert kind not in peaks.PEAKS


def test_the_two_names_of_v5p_have_one_peak():
  assert peaks.PEAKS['TPU v5'] == peaks.PEAKS['TPU v5p']


@pytest.mark.parametrize('kind', sorted(peaks.PEAKS))
def test_every_peak_is_sourced_and_of_the_right_size(kind):
  peak = peaks.PEAKS[kind]
  maker = 'Google' if kind.startswith('TPU') else kind.split()[0]
  assert maker in ('Google', 'NVIDIA', 'AMD')
  assert peak.source.startswith(maker)
  assert 100 < peak.bf16_tflops < 3000
  assert 300 <= peak.bandwidth_gb_s < 10000
  assert 16 <= peak.memory_gib < 200
  # Links carry less than memory does, and float32 units less than matrix units.
  assert (peak.link_gb_s or 0) < peak.bandwidth_gb_s
  assert (peak.float32_tflops or 0) <= peak.bf16_tflops
  assert (peak.float32_tflops is not None) == kind.startswith('NVIDIA')
  assert (peak.tf32_tflops is not None) == kind.startswith('NVIDIA')
  # TF32 is no slower than float32, and half as fast as bfloat16 to rounding.
  if peak.tf32_tflops and peak.float32_tflops:
    assert peak.float32_tflops <= peak.tf32_tflops
    assert peak.tf32_tflops == pytest.approx(peak.bf16_tflops / 2, rel=0.03)
