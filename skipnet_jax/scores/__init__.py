"""The scores of the ISBI 2012 challenge, with only NumPy and Numba."""

import os

import numba

from skipnet_jax import environment

# Numba keeps compiled functions in the folder that its user chose, or beside
# their source. If it can write neither, the modules of this folder could not be
# imported.
_PLACES = (
  os.environ.get('NUMBA_CACHE_DIR'),
  os.path.join(os.path.dirname(__file__), '__pycache__'),
)
if not any(place and environment.can_write(place) for place in _PLACES):
  os.environ['NUMBA_CACHE_DIR'] = str(
    environment.writable_cache_dir() / 'numba'
  )
  numba.config.reload_config()
