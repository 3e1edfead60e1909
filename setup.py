"""Packaging of skipnet_jax."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
  r"__version__ = '(.+)'", (ROOT / 'skipnet_jax/__init__.py').read_text()
)[1]
REQUIREMENTS = [
  line
  for line in (ROOT / 'requirements.txt').read_text().splitlines()
  if line and not line.startswith('#')
]

setuptools.setup(
  name='skipnet_jax',
  version=VERSION,
  description=(
    'Very deep residual FCNs with long and short skips for biomedical '
    'segmentation, in JAX and Flax, for TPU and GPU benchmarking'
  ),
  long_description=(ROOT / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  packages=[
    *setuptools.find_packages(include=['skipnet_jax', 'skipnet_jax.*']),
    # Beside the package in the repository, within it once installed.
    'skipnet_jax.experiments',
  ],
  package_dir={'skipnet_jax.experiments': 'experiments'},
  package_data={
    'skipnet_jax': ['pretrained/*/*'],
    'skipnet_jax.analysis.page': ['report.html'],
  },
  entry_points={'console_scripts': ['skipnet = skipnet_jax.__main__:main']},
  project_urls={'Paper': 'https://arxiv.org/abs/1608.04117'},
  python_requires='>=3.11',
  install_requires=REQUIREMENTS,
  extras_require={
    'cuda12': ['jax[cuda12]', 'nvidia-ml-py'],
    'cuda13': ['jax[cuda13]', 'nvidia-ml-py'],
    'tpu': ['jax[tpu]'],
    # JAX's plugin of its own version, which compiles for a GPU, without the
    # libraries of CUDA, which programs need to run.
    'gpu_compiler': ['jax[cuda13-local]'],
    # Files that JAX reads without this package.
    'export': ['flatbuffers>=25.1'],
    'onnx': [
      'bioimageio.core>=0.11',
      'jax2onnx>=0.17',
      'onnxruntime>=1.24',
      'pydantic<2.13',  # 2.14 breaks bioimageio.spec 0.5.12.
    ],
    'test': [
      'flatbuffers>=25.1',
      'hypothesis>=6.100',
      'mypy>=2.4',
      'pytest>=9.0',
      'pytest-xdist>=3.7',
      'ruff>=0.9',
    ],
    # tools/docs.sh, and tools/notebooks.py --execute.
    'docs': [
      'ipykernel>=6.29',
      'myst-parser>=4.0',
      'nbclient>=0.10',
      'sphinx>=8.1',
      'sphinx-book-theme>=1.1.4',
    ],
    # Read what is written, and check it.
    'zarr_peer': ['ome-zarr>=0.12', 'ome-zarr-models>=1.5', 'zarr>=3.1'],
    'peer': [
      'torch>=2.6',
      # No wheels for Linux on Arm.
      'bioimage-cpp>=0.10; platform_machine != "aarch64"',
    ],
  },
  classifiers=[
    'Programming Language :: Python :: 3.11',
    'Programming Language :: Python :: 3.12',
    'Programming Language :: Python :: 3.13',
    'Topic :: Scientific/Engineering :: Image Recognition',
  ],
)
