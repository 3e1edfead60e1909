"""Trains every system of the papers' tables under one budget, and tabulates.

python tools/systems.py --workdir=runs/systems --seeds=3

Each system is the `budget` preset of its experiment (256x256 crops, the same
number of steps), with each seed. The same command goes on where it was cut off,
and at its end writes table.md, table.csv and runs.json into --output.
"""

import csv
import json
import pathlib
import statistics

from absl import flags

from skipnet_jax import cli

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the runs.')
_OUTPUT = flags.DEFINE_string('output', None, "Default: the runs' folder.")
_SEEDS = flags.DEFINE_integer('seeds', 3, 'Runs of each system.', lower_bound=1)
_PRESET = flags.DEFINE_string('preset', 'budget', 'Of the experiments.')
_DATA = flags.DEFINE_string('source', 'auto', 'data.source of all runs.')
EXPERIMENTS = pathlib.Path(__file__).resolve().parents[1] / 'experiments'

# Name: experiment, gates, published V_rand, V_info and parameters (PAPERS; of
# FC-ResNet those of BCE).
SYSTEMS = {
  'FC-ResNet': ('long_short', None, '.957', '.980', '11 M'),
  'U-Net': ('unet', None, '.97276', '.98662', '33 M'),
  'FusionNet': ('fusionnet', None, '.97804', '.98893', '31 M'),
  'CLmser-w': ('f_clmser_s', 'none', '.97310', '.98712', '8.3 M'),
  '+CG': ('f_clmser_s', 'cg', '.97359', '.98726', '8.3 M'),
  '+CG+PG': ('f_clmser_s', 'cg+pg', '.97438', '.98868', '8.3 M'),
  '+CG+FullPG': ('f_clmser_s', 'cg+full_pg', '.97709', '.98710', '8.3 M'),
  '+CG+PG+GM': ('f_clmser_s', 'cg+pg+gm', '.98223', '.98919', '8.3 M'),
}
SCORES = ('v_rand', 'v_info', 'best_val_bce')


def _configs():
  """Whole configs by the runs' names, seeds in the outer order."""
  from skipnet_jax import config as config_lib

  configs = {}
  for seed in range(_SEEDS.value):
    for name, (experiment, gates, *_) in SYSTEMS.items():
      config = config_lib.load_experiment(
        EXPERIMENTS / f'{experiment}.py', _PRESET.value
      )
      config.experiment, config.seed = name, seed
      config.data.source = _DATA.value
      if _PRESET.value == 'smoke':
        config.data.source = 'synthetic'
      if gates:
        config.model.gates = gates
      config_lib.validate(config)
      configs[f'{name}_{seed}'] = config
  return configs


def _parameters(config) -> int:
  from skipnet_jax import models
  from skipnet_jax.analysis import layers

  model = models.build_model(config.model)
  return sum(r.parameters for r in layers.layer_table(model, (1, 64, 64, 1)))


def _rows(runs):
  """One row a system, of its runs' summaries."""
  from skipnet_jax import config as config_lib

  for name, (experiment, gates, v_rand, v_info, quoted) in SYSTEMS.items():
    found = [s for s in runs.values() if s['experiment'] == name]
    whole = config_lib.load_experiment(
      EXPERIMENTS / f'{experiment}.py', 'paper'
    )
    if gates:
      whole.model.gates = gates
    row = {
      'system': name,
      'published V_rand': v_rand,
      'published V_info': v_info,
      'published parameters': quoted,
      'parameters': _parameters(whole),
      'trained parameters': found[0]['parameters'],
      'seeds': len(found),
    }
    for key in SCORES:
      values = [summary[key] for summary in found]
      row[f'{key} mean'] = statistics.mean(values)
      row[f'{key} least'], row[f'{key} most'] = min(values), max(values)
    yield row


def _markdown(rows) -> str:
  lines = [
    '| system | published V_rand / V_info, parameters | parameters | trained '
    '| V_rand | V_info | validation BCE |',
    '|---|---|---|---|---|---|---|',
  ]
  for row in rows:
    scores = [
      f'{row[f"{key} mean"]:.4f} ({row[f"{key} least"]:.4f} to '
      f'{row[f"{key} most"]:.4f})'
      for key in SCORES
    ]
    lines.append(
      f'| {row["system"]} | {row["published V_rand"]} / '
      f'{row["published V_info"]}, {row["published parameters"]} | '
      f'{row["parameters"]:,} | {row["trained parameters"]:,} | '
      f'{" | ".join(scores)} |'
    )
  return '\n'.join(lines) + '\n'


def main() -> None:
  """Trains what is missing, then writes the tables."""
  from skipnet_jax import environment
  from skipnet_jax.training import study
  from skipnet_jax.training import workdir

  cli.require(_WORKDIR)
  configs = _configs()
  folder = pathlib.Path(_WORKDIR.value)
  paths = study.train(configs, folder, lambda text: print(text, flush=True))
  runs = {p.name: json.loads((p / 'summary.json').read_text()) for p in paths}
  output = pathlib.Path(_OUTPUT.value or folder)
  output.mkdir(parents=True, exist_ok=True)
  rows = list(_rows(runs))
  with (output / 'table.csv').open('w', newline='') as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
  (output / 'table.md').write_text(_markdown(rows))
  workdir.write_json(
    output / 'runs.json',
    {
      'command': environment.command(),
      'date': environment.now(),
      'git': environment.git_state(),
      'versions': environment.versions(('jax', 'jaxlib', 'flax', 'optax')),
      'configs': {name: json.loads(c.to_json()) for name, c in configs.items()},
      'summaries': runs,
    },
  )
  print(_markdown(rows))


if __name__ == '__main__':
  cli.run(main, 'the same command goes on from the latest checkpoints.')
