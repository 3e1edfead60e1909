"""`train_and_evaluate`: a run from its config to its summary."""

from collections.abc import Iterator
import contextlib
import os
from typing import Any

import jax
import ml_collections

from skipnet_jax import config as config_lib
from skipnet_jax import files
from skipnet_jax.runs import folder as folder_lib
from skipnet_jax.runs import progress as progress_lib
from skipnet_jax.runs import workdir as workdir_lib
from skipnet_jax.step import telemetry
from skipnet_jax.training import epoch as epoch_lib
from skipnet_jax.training import epochs as epochs_lib
from skipnet_jax.training import preemption
from skipnet_jax.training import prepare
from skipnet_jax.training import processes
from skipnet_jax.training import showing as showing_lib
from skipnet_jax.training import summary as summary_lib

Config = ml_collections.ConfigDict


def train_and_evaluate(
  config: Config,
  workdir: str | os.PathLike,
  told: preemption.Preemption | None = None,
) -> dict[str, Any]:
  """Trains, validates, checkpoints and scores; resumes what is there.

  It is `skipnet_jax.train`.

  Args:
    config: a whole config.
    workdir: the run's folder, see the README for what it holds.
    told: when to stop; at SIGTERM by default.

  Returns:
    What summary.json holds.

  Raises:
    InputError: a config, data set or folder that cannot be used; before
      anything is compiled or overwritten.
    RunError: a loss that is not finite, a checkpoint that cannot be written.
    Stopped: told so; a checkpoint of all that was trained is written.

  Example:
    >>> import pathlib
    >>> import skipnet_jax
    >>> from skipnet_jax import config as config_lib
    >>> file = pathlib.Path('experiments/long_short.py')
    >>> config = config_lib.load_experiment(file, 'smoke')
    >>> config.model.blocks = 'simple'  # Any field may be changed.
    >>> summary = skipnet_jax.train(config, 'runs/smoke')  # doctest: +ELLIPSIS
    long_short: fc_resnet, 19 convolutions, 20,677 parameters, float32
    ...
    >>> 0 <= summary['v_rand'] <= 1
    True
  """
  config_lib.validate(config)
  processes.start(config.parallel)
  with told or preemption.Preemption() as told, contextlib.ExitStack() as stack:
    with told.nothing_to_lose(), processes.breaking_off_together():
      run = stack.enter_context(open_run(config, workdir, told))
    with processes.breaking_off_together():
      run.epochs.train()
      with told.nothing_to_lose():
        return run.summarise()


class Run:
  """A run whose folder is open: what `open_run` gives.

  Attributes:
    prepared: what is trained.
    folder: where to.
    epochs: trains what is left.
    showing: draws and scores.
  """

  def __init__(
    self,
    prepared: prepare.Prepared,
    folder: folder_lib.Folder,
    told: preemption.Preemption,
  ):
    self.prepared, self.folder = prepared, folder
    config, training = prepared.config, prepared.training
    pipeline, parallel = prepared.pipeline, prepared.parallel
    state = parallel.replicate(training.create_state(config.seed))
    progress, part, kernels = progress_lib.Progress(), None, None
    messages: list[str] = []
    self._like = like = parallel.unreplicate(state)
    found = folder.restore(
      like,
      [telemetry.kernel(like.params, name) for name in training.kernels],
      messages.append,
    )
    if found is not None:
      place = parallel.replicate if parallel.axis_name else lambda x: x
      restored, meta, kernels = found
      state, progress = place(restored), progress_lib.Progress.from_json(meta)
      resuming = f'Resuming after epoch {progress.epoch}'
      if kernels is not None:
        part = epoch_lib.Part.from_json(meta['cut_short'])
        kernels = place(kernels)
        resuming += f' and {part.steps} steps'
      messages.append(f'{resuming}.')
    messages += folder.begin(
      config,
      prepared.dataset,
      training.kernels,
      progress,
      config.train.epochs * pipeline.steps_per_epoch,
    )
    self.showing = showing_lib.Showing(prepared, folder)
    self.epochs = epochs_lib.Epochs(
      prepared, folder, told, self.showing, state, progress, part, kernels
    )
    for message in (summary_lib.banner(prepared, folder.path), *messages):
      folder.log.say(message)

  def summarise(self) -> dict[str, Any]:
    """Scores the best checkpoint on the validation slices, writes the summary.

    Returns:
      What summary.json holds; but for the scores, in processes that write
      nothing.
    """
    folder, progress = self.folder, self.epochs.progress
    state, meta = folder.checkpoints.restore_best(self._like, folder.log.say)
    best = progress_lib.Progress.from_json(meta)
    summary = summary_lib.losses(self.prepared, progress.epoch, best)
    if not folder.writes:
      return summary
    scores = self.showing.score(state)
    self.showing.draw_samples('best', state, progress.step)
    summary |= summary_lib.scores(
      self.prepared, folder.path, progress.seconds, scores
    )
    files.write_json(folder.path / 'summary.json', summary)
    folder.log.say(summary_lib.format_summary(summary, folder.path))
    return summary


@contextlib.contextmanager
def open_run(
  config: Config,
  workdir: str | os.PathLike,
  told: preemption.Preemption | None = None,
) -> Iterator[Run]:
  """Everything checked, built and restored; nothing trained.

  Args:
    config: a validated config.
    workdir: the run's folder; it is this process's own within the context.
    told: when to stop; never by default.

  Raises:
    InputError: see `train_and_evaluate`.
  """
  with contextlib.ExitStack() as stack:
    with processes.refusing_together():
      prepared = prepare.prepare(config)
      path = workdir_lib.check(workdir, config, prepared.dataset)
      folder = folder_lib.Folder(path, writes=jax.process_index() == 0)
      stack.enter_context(folder)
    yield Run(prepared, folder, told or preemption.Preemption())
