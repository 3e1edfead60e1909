"""The networks that ship: their files, and pictures of what they find."""

from collections.abc import Sequence
import pathlib

import numpy as np

from skipnet_jax import files
from skipnet_jax import plots
from skipnet_jax.prediction import calibration
from skipnet_jax.prediction import edge_fit
from skipnet_jax.prediction import fitted
from skipnet_jax.prediction import run_predictor
from skipnet_jax.prediction.cells import cells
from skipnet_jax.prediction.cells import overlay
from skipnet_jax.runs import pretrained
from skipnet_jax.runs import trained
from skipnet_jax.scores import thinning
from skipnet_jax.studies import em_membranes
from skipnet_jax.studies import tissues as tissues_lib

# Name, row of the study, what the training data are called.
SHIPPED = (
  ('em_membranes', 'both', 'isbi2012 and FIB-SEM sample 2'),
  ('em_membranes_cc_by', 'fibsem', 'FIB-SEM sample 2'),
)


def ship(
  folder: pathlib.Path, fold: int, package: pathlib.Path, say: em_membranes.Say
) -> None:
  """Writes the networks of a fold as those that ship."""
  for name, row, dataset in SHIPPED:
    path = folder / f'{row}_{fold}'
    for averaging in (fitted.Averaging(), fitted.Averaging(tta=True)):
      em_membranes.fit(path, averaging, say)
    run = trained.open_run(path)
    environment_ = files.read_json(path / 'environment.json')
    kept = ('date', 'python', 'packages', 'devices', 'git')
    card = {
      'trained_on': dataset,
      'held_out': f'fold {fold} of {tissues_lib.FOLDS}, counted from 0',
      'seed': run.config.seed,
      **{key: environment_[key] for key in kept if key in environment_},
    }
    pretrained.export(run, package / name, dataset, card)
    for kind in (calibration.KIND, edge_fit.KIND):
      content = (path / kind.file).read_text()
      files.write_whole(package / name / kind.file, content)
    weights = package / name / pretrained.WEIGHTS
    say(f'{weights}: {weights.stat().st_size} bytes')


def pictures(
  folder: pathlib.Path,
  fold: int,
  tissues: Sequence[tissues_lib.Tissue],
  output: pathlib.Path,
) -> None:
  """Draws one held-out slice of each tissue: image, labels, cells of each row.

  Borders are yellow. Writes TISSUE.png into `output`.
  """
  for tissue in tissues:
    z = tissue.fold(fold)[1][0]
    page, grid = tissue.image[z], tissue.grid
    moved = grid.to_network(page)
    drawn = {
      'image': overlay.draw(page, np.ones_like(page)),
      'labels': overlay.draw(page, thinning.thin_borders(tissue.inside[z])),
    }
    for row in em_membranes.ROWS:
      run = trained.open_run(folder / f'{row}_{fold}')
      predictor = run_predictor.make_predictor([run])
      inside, _ = predictor(moved, predictor.tiling(grid.network))
      regressions, _ = edge_fit.of_run(run, fitted.Averaging(), 'multicut')
      found = grid.labels_from_network(
        cells.segment(cells.measure(inside, moved), regressions, 'multicut')
      )
      borders = np.where(cells.draw(found), found, 0)
      drawn[f'trained on {row}'] = overlay.draw(page, borders)
    figure = plots.make_figure(3.2 * len(drawn), 3.6)
    for axes, (title, picture) in zip(
      figure.subplots(1, len(drawn)), drawn.items(), strict=True
    ):
      axes.imshow(picture, interpolation='nearest')
      axes.set_title(title, fontsize=10)
      axes.set_axis_off()
    files.write_whole(output / f'{tissue.name}.png', plots.to_png(figure))
