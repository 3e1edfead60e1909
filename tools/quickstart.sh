#!/usr/bin/env bash
# From nothing to a trained network: bash tools/quickstart.sh [more flags]
source "$(dirname "$0")/venv.sh"
workdir=runs/quick
.venv/bin/python -m skipnet_jax.train \
  --config=experiments/long_short.py:quick --workdir="$workdir" "$@"
cat <<END

The results lie in $workdir:
  samples/       image, label and prediction of validation slices, as PNG
  summary.json   losses and scores;  metrics.jsonl: one line an epoch
  tensorboard/   for: tensorboard --logdir=$workdir
  checkpoints/   the latest, to go on from, and the best

Segment a stack of yours with it:
  .venv/bin/python -m skipnet_jax.predict --workdir=$workdir \\
    --input=stack.tif --output=probabilities.tif
END
