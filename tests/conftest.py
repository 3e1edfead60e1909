"""What every test runs under, set before JAX is imported.

Eight CPU devices, strict dtype and rank promotion, a cache of its own for the
synthetic stacks, and no start over for large memory pages.
"""

import dataclasses
import os
import runpy
import sys
import tempfile

# Devices to divide a batch among. The others spare compilation, which is where
# the tests' time goes: dozens of networks, each run for a few steps only.
os.environ['XLA_FLAGS'] = (
  '--xla_force_host_platform_device_count=8 '
  '--xla_backend_optimization_level=0 '
  '--xla_cpu_use_fusion_emitters=false'
)
# JAX_PLATFORMS=cuda,cpu asks for the tests marked gpu too.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# The mains start themselves over where this is missing (skipnet_jax.cli).
os.environ.setdefault('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=0')
_CACHE = tempfile.TemporaryDirectory(prefix='skipnet_jax_test_')
os.environ['SKIPNET_CACHE_DIR'] = _CACHE.name
# A network compiled once need not be compiled again by a run started over.
os.environ['JAX_COMPILATION_CACHE_DIR'] = f'{_CACHE.name}/compiled'
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.5'

from absl import flags  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_collection_modifyitems(items):
  marked = [item for item in items if item.get_closest_marker('gpu')]
  if marked and all(d.platform == 'cpu' for d in jax.devices()):
    for item in marked:
      item.add_marker(pytest.mark.skip(reason='needs a GPU'))


@dataclasses.dataclass
class Outcome:
  """How a command ended: exit code and what it printed."""

  code: int
  out: str
  err: str


@pytest.fixture
def command(capsys, monkeypatch):
  """Runs `python -m skipnet_jax.<main> arguments...` in this process."""

  def call(main: str, *arguments: str) -> Outcome:
    known = flags.FLAGS
    # A process defines its flags once; here every command is a new one.
    for name in list(known):
      home = known.find_module_defining_flag(name) or ''
      if home.startswith('skipnet_jax') or name.split('.')[0] == 'config':
        known.__delattr__(name)
    known.unparse_flags()
    monkeypatch.setattr(sys, 'argv', [main, *arguments])
    monkeypatch.setattr(sys, 'orig_argv', [sys.executable, '-m', main])
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
      runpy.run_module(f'skipnet_jax.{main}', run_name='__main__')
    captured = capsys.readouterr()
    return Outcome(left.value.code or 0, captured.out, captured.err)

  return call
