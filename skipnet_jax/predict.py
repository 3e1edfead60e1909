"""Predicts a stack.

`python -m skipnet_jax.predict --workdir=RUN --input=stack.tif --output=out.tif`

With a pretrained network: `python -m skipnet_jax.predict
--pretrained=em_membranes --input=stack.tif --output=out.tif`
"""

import pathlib
import time

from absl import flags

from skipnet_jax import cli

_WORKDIR = flags.DEFINE_list(
  'workdir',
  None,
  'Folder of a run, or of several to average: A,B,C; a name that has a comma '
  """stands in double quotes, and all in single ones: '--workdir="A,1",B'.""",
)
_PRETRAINED = flags.DEFINE_string(
  'pretrained',
  None,
  'Instead of --workdir: the name of a pretrained network, such as '
  'em_membranes (docs/pretrained.md).',
)
_INPUT = flags.DEFINE_string(
  'input',
  None,
  'TIFF, PNG, a folder of PNG or TIFF slices; OME-Zarr, N5 or a Neuroglancer '
  'volume, also by its URL (s3://, gs://, https://).',
)
_SERIES = flags.DEFINE_integer(
  'series', 0, 'Which image of --input, from 1; 0: the only one.'
)
_CHANNEL = flags.DEFINE_integer(
  'channel', 0, 'Which channel of --input, from 1; 0: the only one.'
)
_LEVEL = flags.DEFINE_integer(
  'level', 0, 'Which resolution of an OME-Zarr, from 0, the finest.'
)
_TIME = flags.DEFINE_integer(
  'time', 0, 'Which time of an OME-Zarr, from 1; 0: the only one.'
)
_OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'TIFF, or the folder NAME.zarr, of probabilities: 1 inside a cell, 0 on '
  'membranes. OME-Zarr is written block by block; the same command resumes.',
)
_STD = flags.DEFINE_string(
  'std_output',
  None,
  "The averaged predictions' standard deviations, in the format of --output.",
)
_SEGMENTATION = flags.DEFINE_string(
  'segmentation',
  None,
  'Labels, the cells of each slice, in the format of --output.',
)
_OVERLAY = flags.DEFINE_string(
  'overlay',
  None,
  'TIFF, or PNG for one slice, or NAME.zarr: the image with the borders of its '
  'cells. Needs no --segmentation; has the same cells.',
)
_MEASURE = flags.DEFINE_string(
  'measure',
  None,
  'CSV of the area and centroid of each cell in each slice; with --link, in '
  'all its slices. With NAME.zarr, it needs --segmentation too.',
)
_METHOD = flags.DEFINE_enum(
  'method',
  'threshold',
  ['threshold', 'multicut', 'lifted_multicut'],
  'To find cells: the regions above a threshold; or superpixels, joined by '
  "the fit of evaluate --segment=METHOD, or by a pretrained network's own.",
)
_LINK = flags.DEFINE_bool(
  'link',
  False,
  'Of cells: one number for a cell in all slices that it passes.',
)
_THRESHOLD = flags.DEFINE_float(
  'threshold',
  None,
  'To find cells: pixels above it are inside cells; by default the '
  "threshold with the best V_rand in the run's scores.json, else in its "
  'summary.json, else 0.5; of several runs 0.5. Scores of another calibration '
  'do not count.',
)
_PIXEL_SIZE = flags.DEFINE_float(
  'pixel_size',
  None,
  "Nanometres, of --input's pixels in y and x; by default what its file says. "
  'Slices are resampled to the pixel size of training, and the results back.',
)
_TTA = flags.DEFINE_bool('tta', False, 'Average the 8 flips and rotations.')
_SAMPLES = flags.DEFINE_integer(
  'mc_samples', 0, 'Number of dropout samples to average; 0: no dropout.'
)
_CALIBRATION = flags.DEFINE_enum(
  'calibration',
  'auto',
  ['auto', 'off'],
  "auto: use the run's calibration.json, if it has one; off: leave it out.",
)
_TILE = flags.DEFINE_integer(
  'tile', 0, 'Side of the tiles, a multiple of 32; 0: whole slices up to 1536.'
)
_OVERLAP = flags.DEFINE_integer(
  'overlap', None, 'Pixels that tiles share; by default the receptive field.'
)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace existing files.')
_VERSION = flags.DEFINE_enum(
  'ome_zarr', '0.5', ['0.5', '0.4'], 'With NAME.zarr: version of OME-Zarr.'
)
_MEMORY = flags.DEFINE_float(
  'memory_gb', 4.0, 'With NAME.zarr: memory that may be used, in 10^9 bytes.'
)
_SHARD_ID = flags.DEFINE_integer(
  'shard_id', None, 'With NAME.zarr: which part to predict, from 0.'
)
_NUM_SHARDS = flags.DEFINE_integer(
  'num_shards', None, 'With NAME.zarr: number of processes that share it.'
)


def main() -> None:
  """Predicts a stack."""
  if bool(_WORKDIR.value) == bool(_PRETRAINED.value):
    cli.refuse(
      'Give either --workdir, a run of your own, or --pretrained, the name of '
      'a network of the package, such as --pretrained=em_membranes.'
    )
  source_path, output = cli.require(_INPUT), cli.require(_OUTPUT)
  of_cells = _SEGMENTATION.value, _OVERLAY.value, _MEASURE.value
  if not any(of_cells):
    cli.refuse_given(
      'goes with --segmentation, --overlay or --measure: name a file too.',
      *(_METHOD, _LINK, _THRESHOLD),
    )
  in_blocks = pathlib.Path(output).name.lower().endswith('.zarr')
  if in_blocks:
    cli.refuse_given(
      'goes with a TIFF: --output is the folder of a volume, which is written '
      'in blocks and not replaced.',
      _OVERWRITE,
    )
  else:
    cli.refuse_given(
      'goes with --output=NAME.zarr, which is written in blocks.',
      *(_VERSION, _MEMORY, _SHARD_ID, _NUM_SHARDS),
    )
  if (_SHARD_ID.value is None) != (_NUM_SHARDS.value is None):
    cli.refuse('--shard_id and --num_shards go together: give both.')
  # Imported late, so that --help does not wait for JAX.
  from skipnet_jax.data import labels
  from skipnet_jax.data import volume
  from skipnet_jax.prediction import calibration
  from skipnet_jax.prediction import cell_files
  from skipnet_jax.prediction import fitted
  from skipnet_jax.prediction import inference
  from skipnet_jax.prediction import pixel_grid
  from skipnet_jax.prediction import run_predictor
  from skipnet_jax.prediction import segmenters
  from skipnet_jax.prediction import stacks
  from skipnet_jax.prediction import volume_outputs
  from skipnet_jax.prediction import volumes
  from skipnet_jax.runs import pretrained
  from skipnet_jax.runs import trained

  choice = volume.Choice(
    *(_SERIES.value, _CHANNEL.value, '--', _LEVEL.value, _TIME.value)
  )
  with volume.open_stack(source_path, choice=choice) as source:
    if _PRETRAINED.value:
      runs = [pretrained.open_pretrained(_PRETRAINED.value)]
    else:
      runs = [trained.open_run(path) for path in _WORKDIR.value or []]
    predictor = run_predictor.make_predictor(
      runs,
      tta=_TTA.value,
      mc_samples=_SAMPLES.value,
      devices=inference.devices(),
    )
    run_predictor.check_dtype(runs, source.dtype, str(source.path))
    if _STD.value and predictor.count == 1:
      cli.refuse(
        '--std_output needs several predictions to compare: add --mc_samples, '
        '--tta or another run to --workdir.'
      )
    averaging = fitted.Averaging(_TTA.value, _SAMPLES.value)
    calibrated = None
    if _CALIBRATION.value != 'off' and len(runs) == 1:
      calibrated = calibration.of_run(runs[0], averaging)
    segmenter = segmenters.choose(
      runs, averaging, _METHOD.value, _THRESHOLD.value, calibrated
    )
    grid, resampling = pixel_grid.choose(
      source, runs, _PIXEL_SIZE.value, predictor.multiple
    )
    cells = cell_files.CellFiles(
      *of_cells,
      segmenter=segmenter,
      link=_LINK.value,
      pixel_size=pixel_grid.input_pixel_size(source, _PIXEL_SIZE.value),
    )
    print(resampling)
    begin = time.perf_counter()
    finished = ''
    if in_blocks:
      finished = volumes.predict_volume(
        predictor,
        source,
        output,
        volume_outputs.settings_of(source, choice, runs, averaging, calibrated),
        std_output=_STD.value,
        cells=cells if any(of_cells) else None,
        grid=grid,
        calibration=calibrated,
        tile=_TILE.value,
        overlap=_OVERLAP.value,
        version=_VERSION.value,
        shards=volumes.Shards(
          *(_SHARD_ID.value or 0, _NUM_SHARDS.value or 1, _MEMORY.value)
        ),
        log=print,
      )
    else:
      stacks.predict_stack(
        predictor,
        source,
        output,
        std_output=_STD.value,
        cells=cells if any(of_cells) else None,
        grid=grid,
        calibration=calibrated,
        tile=_TILE.value,
        overlap=_OVERLAP.value,
        overwrite=_OVERWRITE.value,
        log=print,
      )
    seconds = time.perf_counter() - begin
    shape = ' x '.join(map(str, source.shape))
  print(f'{output}: {shape} float32, 1 inside a cell, 0 on membranes')
  if in_blocks:
    print(finished)
  if _CALIBRATION.value != 'off' and len(runs) == 1:
    line = calibration.describe(runs[0], averaging, calibrated)
    if line:
      print(line)
  if _CALIBRATION.value != 'off' and len(runs) > 1:
    for run in runs:
      path = run.path / calibration.KIND.file
      if path.exists():
        print(f'{path} is not used, as several runs are averaged')
  if _STD.value:
    print(f'{_STD.value}: standard deviations over {predictor.count}')
  for line in cells.describe():
    print(line)
  for run in runs:
    print(
      f'by {run.path}, trained on {run.dataset["name"]}, best after epoch '
      f'{run.best_epoch}'
    )
  if source.note:
    print(source.note)
  if source.filled:
    print(
      f'{source_path} lacks chunks, which count as its fill value, in slices '
      f'{labels.ranges([*source.filled])} (counted from 0)'
    )
  print(
    f'{predictor.count} prediction(s) averaged for each slice, {seconds:.1f} s'
  )
  for run in runs:
    if run.warning:
      print(run.warning)


if __name__ == '__main__':
  cli.run(
    main, 'unfinished files are removed; NAME.zarr resumes by the same command.'
  )
