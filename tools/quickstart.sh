#!/usr/bin/env bash
# Installs the package and trains a network: bash tools/quickstart.sh [flags]
source "$(dirname "$0")/venv.sh"
workdir=runs/quick
.venv/bin/python -m skipnet_jax.train \
  --config=experiments/long_short.py:quick --workdir="$workdir" "$@"
cat <<END

The results are in $workdir:
  samples/       image, label and prediction of validation slices, as PNG
  summary.json   losses and scores;  metrics.jsonl: one line per epoch
  tensorboard/   for: tensorboard --logdir=$workdir
  checkpoints/   the latest, to resume from, and the best

Segment your own stack with it:
  .venv/bin/python -m skipnet_jax.predict --workdir=$workdir \\
    --input=stack.tif --output=probabilities.tif
END
