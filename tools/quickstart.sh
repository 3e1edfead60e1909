#!/usr/bin/env bash
# Installs the package, trains a network and segments a slice:
# bash tools/quickstart.sh [flags]
# The empty word: without one, the flags would be extras of the package.
source "$(dirname "$0")/venv.sh" ''
workdir=runs/quick
.venv/bin/python -m skipnet_jax.train \
  --config=experiments/long_short.py:quick --workdir="$workdir" "$@"
# A validation slice, and its cells by the network that ships.
mkdir -p runs/quick/cells
.venv/bin/python - "$workdir" runs/quick/cells/slice.tif <<'END'
import sys

from skipnet_jax.data import volume
from skipnet_jax.runs import trained

run = trained.open_run(sys.argv[1])
data = trained.load_data(run)
z = data.valid[0]
with volume.StackWriter(
  sys.argv[2], (1, *data.image.shape[1:]), data.image.dtype, overwrite=True
) as stack:
  stack.write(data.image[z])
print(f'\n{sys.argv[2]}: slice {z} of {data.name}')
END
.venv/bin/python -m skipnet_jax.predict --pretrained=em_membranes --pixel_size=4 \
  --input=runs/quick/cells/slice.tif --output=runs/quick/cells/probabilities.tif \
  --overwrite --method=multicut --segmentation=runs/quick/cells/cells.tif \
  --overlay=runs/quick/cells/cells.png
cat <<END

Look at runs/quick/cells/cells.png: the cells of a slice, drawn over the image. They are
found by a network that ships with the package, which had seen other slices of
that stack (or, of a synthetic stack, none). The same with your own stack:
  .venv/bin/python -m skipnet_jax.predict --pretrained=em_membranes \\
    --input=stack.tif --pixel_size=NANOMETRES --method=multicut \\
    --output=probabilities.tif --segmentation=cells.tif --overlay=cells_over_image.tif

Your own network is in $workdir:
  samples/       image, label and prediction of validation slices, as PNG
  summary.json   losses and scores;  metrics.jsonl: one line per epoch
  tensorboard/   for: tensorboard --logdir=$workdir
  checkpoints/   the latest, to resume from, and the best
It segments too: predict --workdir=$workdir instead of --pretrained=em_membranes.
END
