"""Exports a network for programs that do not have this package.

`python -m skipnet_jax.export --workdir=RUN --output=network.jax`

With a pretrained network: `python -m skipnet_jax.export
--pretrained=em_membranes --output=network.jax`
"""

import pathlib

from absl import flags

from skipnet_jax import cli

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a run.')
_PRETRAINED = flags.DEFINE_string(
  'pretrained',
  None,
  'Instead of --workdir: the name of a pretrained network, such as '
  'em_membranes (docs/pretrained.md).',
)
_OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'NAME.jax: a program for JAX on CPU, CUDA and TPU; NAME.onnx; or NAME.zip: a '
  'package for bioimage.io. NAME.jax.json or NAME.onnx.json says what goes in '
  'and out (docs/export.md).',
)
_CALIBRATION = flags.DEFINE_enum(
  'calibration',
  'auto',
  ['auto', 'off'],
  "auto: include the run's calibration.json, if it has one, as predict does; "
  'off: leave it out.',
)
_TILE = flags.DEFINE_integer(
  'tile', 512, 'With NAME.onnx or NAME.zip: side of the image, in pixels.'
)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace existing files.')


def main() -> None:
  """Exports a network."""
  if bool(_WORKDIR.value) == bool(_PRETRAINED.value):
    cli.refuse(
      'Give either --workdir, a run of your own, or --pretrained, the name of '
      'a network of the package, such as --pretrained=em_membranes.'
    )
  output = pathlib.Path(cli.require(_OUTPUT))
  if output.suffix not in ('.jax', '.onnx', '.zip'):
    cli.refuse(
      f'--output is {output}, but its name must end in .jax, .onnx or .zip, '
      'which says what is written.'
    )
  if output.suffix == '.jax':
    cli.refuse_given(
      'goes with NAME.onnx or NAME.zip: NAME.jax takes any sides.', _TILE
    )
  # Imported late, so that --help does not wait for JAX.
  from skipnet_jax.exporting import artefact
  from skipnet_jax.exporting import bioimage
  from skipnet_jax.exporting import onnx_file
  from skipnet_jax.prediction import calibration
  from skipnet_jax.prediction import fitted
  from skipnet_jax.runs import pretrained
  from skipnet_jax.runs import trained

  artefact.check_output(output, overwrite=_OVERWRITE.value)
  if _PRETRAINED.value:
    run = pretrained.open_pretrained(_PRETRAINED.value)
  else:
    run = trained.open_run(_WORKDIR.value or '')
  calibrated = None
  if _CALIBRATION.value != 'off':
    calibrated = calibration.of_run(run, fitted.Averaging())
  network = artefact.TrainedFunction(run, calibrated)
  if output.suffix == '.jax':
    lines = artefact.write(network, output)
  elif output.suffix == '.onnx':
    lines = onnx_file.write(network, output, _TILE.value)
  else:
    lines = bioimage.write(network, output, _TILE.value)
  for line in lines:
    print(line)
  if calibrated is not None:
    print(calibration.describe(run, fitted.Averaging(), calibrated))
  print(
    f'by {run.path}, trained on {run.dataset["name"]}, best after epoch '
    f'{run.best_epoch}'
  )
  if run.warning:
    print(run.warning)


if __name__ == '__main__':
  cli.run(main, 'unfinished files are removed.')
