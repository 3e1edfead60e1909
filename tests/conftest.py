"""What every test runs under, set before JAX is imported.

Eight CPU devices, strict dtype and rank promotion, a cache of its own for the
synthetic stacks, and no start over for large memory pages.
"""

import atexit
import contextlib
import dataclasses
import gc
import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import runpy
import shutil
import signal
import sys
import tempfile

# Devices to divide a batch among. Level 0 leaves out LLVM's optimisation: the
# tests compile dozens of networks and run each for a few steps only. One module
# for LLVM: to cut it into several costs a tenth more.
os.environ['XLA_FLAGS'] = (
  '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 '
  '--xla_cpu_parallel_codegen_split_count=1'
)
# Emitting kernels by MLIR takes twice as long as the older way, which jaxlib
# 0.11.0 was the last to have.
if importlib.metadata.version('jaxlib') <= '0.11.0':
  os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'
# JAX_PLATFORMS=cuda,cpu asks for the tests marked gpu too.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# The mains start themselves over where this is missing (skipnet_jax.cli).
os.environ.setdefault('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=0')
# torch 2.13.0+cpu with two threads corrupted its heap in some processes that
# trained a small network, and ended them; with one it was never seen to.
os.environ['OMP_NUM_THREADS'] = '1'
# A shell lets a command in the background ignore Ctrl-C, and what it starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
_CACHE = tempfile.TemporaryDirectory(prefix='skipnet_jax_test_')
atexit.register(_CACHE.cleanup)
os.environ['SKIPNET_CACHE_DIR'] = _CACHE.name
# What one process that a test starts has compiled, the next one need not.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = f'{_CACHE.name}/compiled'
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.5'

from absl import flags  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]
# Of the documentation.
PAGES = [*sorted(ROOT.glob('*.md')), ROOT / 'experiments' / 'README.md']
PAGES += sorted((ROOT / 'docs').glob('*.md'))
BROWSER = shutil.which('chromium') or shutil.which('google-chrome')
# The files that take longest, these first: where several processes share
# the tests, none is left with one of them at the end.
LONG = (
  *('test_systems', 'test_processes', 'test_torch_agreement', 'test_chaos'),
  *('test_benchmark', 'test_preemption', 'test_fc_resnet', 'test_gradflow'),
  *('test_build', 'test_scan', 'test_parallel', 'test_documented_commands'),
  *('test_torch_peer', 'test_depth', 'test_cli', 'test_own_model'),
  *('test_report', 'test_loop', 'test_step', 'test_torch_training'),
  *('test_clmser', 'test_api', 'test_evaluate', 'test_fused_block'),
  *('test_routes', 'test_workload', 'test_sharded_step', 'test_rows'),
)
# Added to the smoke preset: quick to compile, and quiet.
SHORT = {
  'model.blocks': 'simple',
  'log.progress': False,
  'log.tensorboard': False,
}

# Tracing makes and drops objects by the million: the usual thresholds spend a
# tenth of the time looking for cycles among them.
gc.freeze()
gc.set_threshold(100_000, 20, 100)

# To write what a test compiles itself costs more than others save by it.
jax.config.update('jax_compilation_cache_dir', None)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_collection_modifyitems(items):
  rank = {name: place for place, name in enumerate(LONG)}
  items.sort(key=lambda item: rank.get(item.path.stem, len(LONG)))
  absent = {
    'gpu': all(device.platform == 'cpu' for device in jax.devices())
    and 'needs a GPU',
    'real_data': 'SKIPNET_DATA_DIR' not in os.environ
    and 'needs the ISBI 2012 stacks: set SKIPNET_DATA_DIR',
    'golden': 'SKIPNET_GOLDEN_DIR' not in os.environ
    and "needs the challenge's answers: set SKIPNET_GOLDEN_DIR",
    'tpu_compiler': importlib.util.find_spec('libtpu') is None
    and "needs libtpu: pip install '.[tpu]'",
    'gpu_compiler': importlib.util.find_spec('jax_cuda13_plugin') is None
    and "needs JAX's plugin for CUDA: pip install '.[gpu_compiler]'",
    'browser': not BROWSER and 'needs chromium, such as that of Debian',
    'peer': importlib.util.find_spec('torch') is None
    and "needs PyTorch: pip install '.[peer]'",
    'exporter': importlib.util.find_spec('flatbuffers') is None
    and "needs flatbuffers: pip install '.[export]'",
    'onnx': importlib.util.find_spec('jax2onnx') is None
    and "needs jax2onnx and bioimageio.core: pip install '.[onnx]'",
    'zarr_peer': importlib.util.find_spec('ome_zarr_models') is None
    and "needs other libraries for OME-Zarr: pip install '.[zarr_peer]'",
  }
  for item in items:
    for marker, reason in absent.items():
      if reason and item.get_closest_marker(marker):
        item.add_marker(pytest.mark.skip(reason=reason))


# A compiled network takes a thousand memory mappings, two a kernel. Linux gives
# a process 65,530, and the compiler crashes where there is none left.
MAPPINGS = pathlib.Path('/proc/self/maps')
MOST_MAPPINGS = 40_000
# To count them takes up to 0.03 s, so they are counted after so many programs.
PROGRAMS = 8
_compiled = []


def _note_program(event, duration, **_):
  if event == '/jax/core/compile/backend_compile_duration':
    _compiled.append(duration)


jax.monitoring.register_event_duration_secs_listener(_note_program)


@pytest.fixture(autouse=True)
def _few_programs():
  """Drops what was compiled once it is too much."""
  yield
  if len(_compiled) < PROGRAMS or not MAPPINGS.exists():
    return
  _compiled.clear()
  with MAPPINGS.open('rb') as file:
    many = sum(1 for _ in file) > MOST_MAPPINGS
  if many:
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True, scope='module')
def _temporary_files(tmp_path_factory):
  """Each file of tests has a temporary folder of its own.

  A command removes what a killed one left in it, and says so: of those that
  were killed elsewhere, a test must see nothing.
  """
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('TMPDIR', str(tmp_path_factory.mktemp('temporary')))
    patch.setattr(tempfile, 'tempdir', None)
    yield


@dataclasses.dataclass
class Outcome:
  """How a command ended: exit code and what it printed."""

  code: int
  out: str
  err: str


@contextlib.contextmanager
def signals_restored():
  """Takes back how an interrupted command, which ends a process, left it."""
  ending = (signal.SIGINT, signal.SIGTERM)
  before = [signal.getsignal(number) for number in ending]
  hooks = sys.excepthook, sys.unraisablehook
  wakeup = signal.set_wakeup_fd(-1)
  signal.set_wakeup_fd(wakeup)
  try:
    yield
  finally:
    for number, handler in zip(ending, before, strict=True):
      signal.signal(number, handler)
    sys.excepthook, sys.unraisablehook = hooks
    signal.set_wakeup_fd(wakeup)


@pytest.fixture
def command(capsys, monkeypatch):
  """Runs a command in this process.

  `main` is that of `python -m skipnet_jax.<main>`, `__main__` for `skipnet`, or
  a file such as tools/reproduce.py.
  """

  def call(main: str, *arguments: str) -> Outcome:
    known = flags.FLAGS
    # A process defines its flags once; here every command is a new one.
    for name in list(known):
      home = known.find_module_defining_flag(name) or ''
      ours = home.startswith(('skipnet', 'python -m', str(ROOT)))
      if ours or name.split('.')[0] == 'config':
        known.__delattr__(name)
    known.unparse_flags()
    file = ROOT / main if main.endswith('.py') else None
    # absl names the module that defines a flag after the first argument.
    program = str(file or f'skipnet_jax.{main}')
    run = runpy.run_path if file else runpy.run_module
    if main == '__main__':
      # As the script `skipnet` does.
      def run(name, **_):
        importlib.import_module(name).main()

    monkeypatch.setattr(sys, 'argv', [program, *arguments])
    # As Python does; `cli.run` takes it away again.
    own = [str(file.parent)] if file else []
    monkeypatch.setattr(sys, 'path', [*own, *sys.path])
    monkeypatch.setattr(sys, 'orig_argv', [sys.executable, '-m', main])
    capsys.readouterr()
    with signals_restored(), pytest.raises(SystemExit) as left:
      run(program, run_name='__main__')
    captured = capsys.readouterr()
    return Outcome(left.value.code or 0, captured.out, captured.err)

  return call


def experiment(name: str):
  """The module of an experiment file."""
  path = ROOT / 'experiments' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def explained_fields(page: str) -> list[str]:
  """Fields in the tables of a page in docs, sorted.

  A heading such as "## `rows`" names the field that has those below it.
  """
  section, found = '', []
  for line in (ROOT / 'docs' / page).read_text().splitlines():
    if heading := re.match(r'## `([\w.]+)(\[\])?`', line):
      section = f'{heading[1]}.'
    elif line.startswith('## '):
      section = ''
    elif cell := re.match(r'\| (`[^|]+`) \|', line):
      found += [section + name for name in re.findall(r'`([\w.]+)`', cell[1])]
  return sorted(found)


def tool(name: str):
  """The module of a file of tools/, imported as when the file is run."""
  sys.path.insert(0, str(ROOT / 'tools'))
  try:
    return importlib.import_module(name)
  finally:
    # Or tools/profile.py stands for Python's own `profile`.
    sys.path.remove(str(ROOT / 'tools'))


@contextlib.contextmanager
def numpy_draws():
  """First states of values that NumPy draws: no initialisation is compiled.

  For tests in which any first values do.
  """
  import small_networks

  from skipnet_jax.step import build
  from skipnet_jax.step import state as state_lib

  def create(self, seed):
    variables = small_networks.fill(self.abstract_state.variables(), seed)
    return state_lib.begin_at(self.optimizer, variables, seed)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(build.Training, 'create_state', create)
    yield


@pytest.fixture(scope='module')
def drawn():
  """See `numpy_draws`."""
  with numpy_draws():
    yield


@pytest.fixture(scope='session')
def smoke():
  """Makes the config of a run of seconds, with changes by dotted name."""

  def make(changes=None):
    config = experiment('long_short').get_config('smoke')
    config.update_from_flattened_dict(SHORT | dict(changes or {}))
    return config

  return make


@pytest.fixture(scope='session')
def finished(smoke, tmp_path_factory):
  """A run left alone: (its folder, its config, its summary)."""
  from skipnet_jax.training import loop

  config = smoke({'train.epochs': 6, 'log.tensorboard': True})
  folder = tmp_path_factory.mktemp('finished') / 'run'
  return folder, config, loop.train_and_evaluate(config, folder)


@pytest.fixture
def small_blocks(monkeypatch):
  """Volumes of small chunks and blocks; chooses those of the next volume."""
  from skipnet_jax.data import ome_zarr_metadata
  from skipnet_jax.data import ome_zarr_writer
  from skipnet_jax.prediction import blocks

  monkeypatch.setattr(ome_zarr_writer, 'CHUNK', 32)
  monkeypatch.setattr(ome_zarr_metadata, 'COARSEST', 40)
  monkeypatch.setattr(blocks, 'peak_memory', lambda: 0)

  def choose(*block):
    monkeypatch.setattr(blocks, 'choose', lambda *_: list(block))

  choose(2, 128, 160)
  return choose


@pytest.fixture
def zarr_source(tmp_path):
  """A volume of 5 slices of 100x150 pixels, its folder."""
  import made_volumes

  pixels = made_volumes.make_pixels(5, 100, 150, dtype='uint16')
  return made_volumes.write_ome(
    *(tmp_path / 'in.zarr', pixels),
    scale=(40, 4, 4.6),
    unit='nanometer',
    chunk=(2, 40, 50),
  )
