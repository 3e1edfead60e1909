"""Compares the files of two runs, for tools/chaos.py."""

import json
import pathlib


def differences(a: pathlib.Path, b: pathlib.Path) -> list[str]:
  """Names of the parts in which two runs differ, times excluded."""
  # Imported late, so that --help does not wait for JAX.
  import jax
  import numpy as np

  from skipnet_jax.runs import checkpoint
  from skipnet_jax.runs import flow_file
  from skipnet_jax.runs import run_log
  from skipnet_jax.runs import trained
  from skipnet_jax.runs import workdir

  clock = ('seconds', 'images_per_second', 'goodput')

  def read(folder):
    records = run_log.read_records(folder / 'metrics.jsonl')
    summary = json.loads((folder / 'summary.json').read_text())
    for row in (*records, summary):
      for name in clock:
        row.pop(name, None)  # A record has no goodput.
    like = trained.build(workdir.read_config(folder)).abstract_state
    reader = checkpoint.Checkpoints(folder, create=False)
    warnings: list[str] = []
    latest, *_ = reader.restore_latest(like, warnings.append)
    best, _ = reader.restore_best(like, warnings.append)
    reader.close()
    latest, best = (
      s.replace(key=jax.random.key_data(s.key)) for s in (latest, best)
    )
    return {
      'warnings': warnings,
      'records': records,
      'summary': summary,
      'flow': flow_file.read(folder / 'gradient_flow.npz')[1],
      'best': best,
      'latest': latest,
    }

  def same(x, y):
    if jax.tree.structure(x) != jax.tree.structure(y):
      return False
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return all(np.array_equal(u, v) for u, v in pairs)

  x, y = read(a), read(b)
  return [name for name in x if not same(x[name], y[name])]
