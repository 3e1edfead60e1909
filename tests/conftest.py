"""What every test runs under, set before JAX is imported.

Eight CPU devices, strict dtype and rank promotion, a cache of its own for the
synthetic stacks, and no start over for large memory pages.
"""

import dataclasses
import os
import runpy
import sys
import tempfile

# Devices to divide a batch among. Level 0 leaves out LLVM's optimisation: the
# tests compile dozens of networks and run each for a few steps only.
os.environ['XLA_FLAGS'] = (
  '--xla_force_host_platform_device_count=8 '
  '--xla_backend_optimization_level=0'
)
# JAX_PLATFORMS=cuda,cpu asks for the tests marked gpu too.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# The mains start themselves over where this is missing (skipnet_jax.cli).
os.environ.setdefault('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=0')
_CACHE = tempfile.TemporaryDirectory(prefix='skipnet_jax_test_')
os.environ['SKIPNET_CACHE_DIR'] = _CACHE.name

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
