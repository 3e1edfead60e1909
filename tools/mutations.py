"""Faults that the tests must detect, for tools/mutate.py.

Each replaces a text that occurs exactly once in its file. The listed tests are
the fastest ones known to fail because of it.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutation:
  """One fault.

  Attributes:
    name: the argument for tools/mutate.py.
    path: the file, relative to the root of the checkout.
    old: the text that is replaced.
    new: what replaces it.
    why: the effect of the fault, in a sentence.
    tests: test files, or tests as FILE::NAME.
  """

  name: str
  path: str
  old: str
  new: str
  why: str
  tests: tuple[str, ...]


TRAINING = (
  Mutation(
    'dropout-key-without-step',
    'skipnet_jax/step/step.py',
    "streams.key_at(state.key, 'dropout', state.step)",
    "streams.key_at(state.key, 'dropout')",
    'Every step drops the same units.',
    ('tests/test_step.py::test_each_step_drops_other_units',),
  ),
  Mutation(
    'benchmark-without-terms',
    'skipnet_jax/step/build.py',
    'terms=losses.make_terms(c.train, steps_per_epoch),',
    'terms=losses.NO_TERMS,',
    'Auxiliary losses keep their first weight; no adversarial loss is used.',
    ('tests/test_build.py::test_the_parts_are_those_of_the_config',),
  ),
  Mutation(
    'psum-for-pmean',
    'skipnet_jax/step/step.py',
    'grads = lax.pmean(grads, axis_name)',
    'grads = lax.psum(grads, axis_name)',
    'Under pmap the gradient is multiplied by the number of devices.',
    ('tests/test_parallel.py::test_modes_agree_with_a_loss_that_is_no_mean',),
  ),
  Mutation(
    'no-pmean',
    'skipnet_jax/step/step.py',
    'grads = lax.pmean(grads, axis_name)',
    'pass',
    'Under pmap each device updates its parameters by its own gradient.',
    ('tests/test_parallel.py::test_modes_agree_with_a_loss_that_is_no_mean',),
  ),
  Mutation(
    'loss-of-one-device',
    'skipnet_jax/step/step.py',
    'sums = lax.psum(sums, axis_name)\n      value,',
    'pass\n      value,',
    'Under pmap each device minimises the loss of its part of the batch.',
    ('tests/test_parallel.py::test_modes_agree_with_a_loss_that_is_no_mean',),
  ),
  Mutation(
    'nonfinite-step-taken',
    'skipnet_jax/step/step.py',
    'jnp.where(finite, n, o), new, old)',
    'n, new, old)',
    'A step whose gradient is not finite changes the parameters.',
    ('tests/test_step.py::test_a_step_that_is_not_finite_changes_nothing',),
  ),
  Mutation(
    'epoch-starts-over',
    'skipnet_jax/training/epoch.py',
    'range(part.steps, per_epoch, self.steps_per_call)',
    'range(0, per_epoch, self.steps_per_call)',
    'An epoch that was cut short trains its first steps again.',
    (
      'tests/test_preemption.py::test_an_interrupted_epoch_resumes_bit_for_bit',
    ),
  ),
  Mutation(
    'auxiliary-term-left-out',
    'skipnet_jax/step/losses.py',
    "value = value + terms.auxiliary(step) * parts['auxiliary']",
    'pass',
    'The losses of auxiliary outputs are reported but not minimised.',
    (
      'tests/test_side_outputs.py'
      '::test_every_auxiliary_output_counts_by_its_weight',
    ),
  ),
  Mutation(
    'mask-ignored',
    'skipnet_jax/step/losses.py',
    "return batch['mask'] * batch.get('weight', 1.0)",
    "return jnp.ones_like(batch['mask']) * batch.get('weight', 1.0)",
    'Pixels that are masked out count in the loss.',
    ('tests/test_losses.py::test_pixels_outside_the_mask_do_not_matter',),
  ),
  Mutation(
    'l2-on-biases',
    'skipnet_jax/step/optim.py',
    "return path[-1].key == 'kernel'",
    "return path[-1].key in ('kernel', 'bias')",
    'L2 is applied to biases too.',
    ('tests/test_optim.py::test_rmsprop_with_l2_on_kernels_only',),
  ),
  Mutation(
    'resume-from-step-before',
    'skipnet_jax/runs/checkpoint.py',
    "for step in sorted({*steps['latest'], *steps['best']}, reverse=True)",
    "for step in sorted({*steps['latest'], *steps['best']})",
    'A run resumes from the checkpoint before the newest.',
    ('tests/test_checkpoint.py::test_two_latest_and_two_best_are_kept',),
  ),
  Mutation(
    'net-change-cancels',
    'skipnet_jax/step/telemetry.py',
    'self.sums(jnp.abs(vector(params) - before))',
    'self.sums(vector(params) - before)',
    "Changes of opposite sign cancel out in a kernel's net change.",
    ('tests/test_telemetry.py::test_net_change_is_not_the_sum_of_steps',),
  ),
)

MODELS = (
  Mutation(
    'one-dropout-mask-for-a-stage',
    'skipnet_jax/models/fc_resnet.py',
    "split_rngs={'params': True, 'dropout': True}",
    "split_rngs={'params': True, 'dropout': False}",
    'All blocks of a scanned stage drop the same units.',
    ('tests/test_scan.py::test_each_block_draws_its_own_kernel_and_dropout',),
  ),
  Mutation(
    'short-skip-halved',
    'skipnet_jax/models/skips.py',
    'return residual + self.shortcut(x, residual.shape[-1])',
    'return residual + self.shortcut(x, residual.shape[-1]) / 2',
    'Short skips add half of what they should.',
    ('tests/test_fc_resnet.py::test_equals_the_plain_transcription',),
  ),
  Mutation(
    'batch-norm-momentum',
    'skipnet_jax/models/layers.py',
    'momentum=0.9,',
    'momentum=0.99,',
    "BatchNorm's running statistics change ten times more slowly.",
    ('tests/test_fc_resnet.py::test_equals_the_plain_transcription',),
  ),
  Mutation(
    'dropout-index-local',
    'skipnet_jax/models/layers.py',
    'unit = unit + self.first(x.size)',
    'pass',
    "An example's dropout depends on the number of devices.",
    (
      'tests/test_layers.py'
      '::test_an_example_drops_the_same_units_on_any_device',
    ),
  ),
  Mutation(
    'upsampling-off-by-one',
    'skipnet_jax/models/layers.py',
    'jnp.stack([first, middle + last])',
    'jnp.stack([first + middle, last])',
    'The upsampling convolution weights the wrong neighbours.',
    (
      'tests/test_layers.py::test_a_convolution_of_the_repeated_image'
      '_is_computed_on_the_small_one',
    ),
  ),
  Mutation(
    'long-skip-stops-gradient',
    'skipnet_jax/models/skips.py',
    'return decoder + encoder',
    'return decoder + jax.lax.stop_gradient(encoder)',
    'Long skips pass no gradient.',
    ('tests/test_routes.py::test_routes_add_up_to_the_gradient',),
  ),
  Mutation(
    'gamma-left-out',
    'skipnet_jax/models/gates.py',
    'mask = (1 - jnp.square(t)) ** self.gamma',
    'mask = 1 - jnp.square(t)',
    'The confidence masks of F-CLmser-S ignore the exponent gamma.',
    ('tests/test_gates.py::test_gamma_is_the_exponent',),
  ),
  Mutation(
    'fake-gradient-to-generator',
    'skipnet_jax/models/addn.py',
    'lax.stop_gradient(inside)',
    'inside',
    "The discriminator's loss has a gradient for the generator.",
    ('tests/test_addn.py::test_a_gradient_reaches_one_of_the_two',),
  ),
  Mutation(
    'orientations-not-relative',
    'skipnet_jax/models/sfcnn.py',
    'weights[:, (by - to) % orientations]',
    'weights[:, (by + to) % orientations]',
    'Filters are not turned relative to their output orientation.',
    (
      'tests/test_steerable.py'
      '::test_a_quarter_turn_of_the_image_turns_maps_and_orientations',
    ),
  ),
  Mutation(
    'tpu-head-without-kernel',
    'skipnet_jax/models/split_head.py',
    'dy, x, scale * kernel, mean',
    'dy, x, scale, mean',
    "On a TPU, the features' gradient lacks the classifier's kernel.",
    ('tests/test_split_head.py::test_it_is_the_layers_to_rounding',),
  ),
  Mutation(
    'tpu-pixels-in-another-order',
    'skipnet_jax/models/tpu_layers.py',
    '.swapaxes(3, 4)',
    '',
    'On a TPU, the pixels that up_5 gives change places.',
    ('tests/test_accelerator_layers.py::test_a_mapped_network_is_the_same',),
  ),
  Mutation(
    'tpu-dropout-of-one-device',
    'skipnet_jax/models/tpu_layers.py',
    'unit + module.first(x.size)',
    'unit',
    'On several TPUs, all drop the units of the first one.',
    ('tests/test_accelerator_layers.py::test_a_mapped_network_is_the_same',),
  ),
)

DATA = (
  Mutation(
    'labels-interpolated',
    'skipnet_jax/data/augment.py',
    'sample(label, 0)',
    'sample(label, 1)',
    'Augmented labels have values between 0 and 1.',
    ('tests/test_augment.py::test_interpolation_is_that_of_scipy',),
  ),
  Mutation(
    'order-by-step',
    'skipnet_jax/data/pipeline.py',
    'number = step // period * (size // common)',
    'number = step',
    'An epoch shows some slices twice and others not at all.',
    ('tests/test_pipeline.py::test_an_epoch_sees_each_training_slice_once',),
  ),
  Mutation(
    'order-without-offset',
    'skipnet_jax/data/pipeline.py',
    'start = jnp.asarray(starts, jnp.int32)[at]',
    'start = 0',
    'Every batch begins at the start of a permutation.',
    (
      'tests/test_pipeline.py'
      '::test_batches_go_through_permutations_of_the_slices',
    ),
  ),
  Mutation(
    'order-within-one-permutation',
    'skipnet_jax/data/pipeline.py',
    'number + jnp.arange(needed, dtype=jnp.int32)',
    'number + jnp.zeros(needed, jnp.int32)',
    'A batch of two permutations has the same permutation twice.',
    (
      'tests/test_pipeline.py'
      '::test_batches_go_through_permutations_of_the_slices',
    ),
  ),
  Mutation(
    'rate-of-the-slices',
    'skipnet_jax/training/validation.py',
    'round(images / part.seconds, 4)',
    'round(len(pipeline.train) / part.seconds, 4)',
    'images/s counts the training slices, not the images of the epoch.',
    (
      'tests/test_preemption.py'
      '::test_a_run_on_eight_then_four_then_one_device_equals_one_on_one',
    ),
  ),
  Mutation(
    'evaluation-counts-twice',
    'skipnet_jax/data/pipeline.py',
    '(s, max(0, e - s))',
    '(s, 0)',
    'Where evaluation windows overlap, pixels count twice.',
    ('tests/test_pipeline.py::test_evaluation_counts_every_pixel_once',),
  ),
  Mutation(
    'planes-in-the-order-of-the-file',
    'skipnet_jax/data/tiff_images.py',
    'pages = [page.index for page in one if page is not None]',
    'pages = sorted(page.index for page in one if page is not None)',
    'Slices come in the order of the pages, whatever OME-XML says.',
    ('tests/test_meanings.py',),
  ),
  Mutation(
    'stack-not-watched',
    'skipnet_jax/data/stack_reader.py',
    'if stamp(path) != before:',
    'if False:',
    'A stack that is exported again while it is read gives a mixture.',
    ('tests/test_stack_reader.py',),
  ),
  Mutation(
    'slices-paired-by-order',
    'skipnet_jax/data/sources.py',
    'volume.check_same_slices(images, labelled)',
    'pass',
    'Images train with the labels of other slices.',
    ('tests/test_sources.py::test_folders_of_other_slices_are_refused',),
  ),
  Mutation(
    'neighbours-not-reflected',
    'skipnet_jax/data/data_set.py',
    'at = abs(z[..., None] + offsets)',
    'at = (z[..., None] + offsets).clip(0)',
    "The first slice's missing neighbour is itself, not its reflection.",
    ('tests/test_pipeline.py::test_an_example_of_several_slices',),
  ),
  Mutation(
    'split-off-by-one',
    'skipnet_jax/data/slice_split.py',
    'range(low, high + 1)',
    'range(low, max(low + 1, high))',
    'The last slice of a range such as 25-29 is left out.',
    ('tests/test_slice_split.py::test_splits',),
  ),
)

EVALUATION = (
  Mutation(
    'threshold-not-strict',
    'skipnet_jax/scores/scores.py',
    'proposal = prediction > limit',
    'proposal = prediction >= limit',
    'A pixel whose value equals the threshold counts as inside.',
    ('tests/test_scores.py::test_compares_strictly_and_in_float64',),
  ),
  Mutation(
    'membrane-scored',
    'skipnet_jax/scores/scores.py',
    'thinning.label_regions(inside).ravel()',
    'thinning.label_regions(inside).ravel() + 1',
    'The scores are not restricted to the foreground.',
    ('tests/test_scores.py::test_a_perfect_prediction_scores_one',),
  ),
  Mutation(
    'thinning-order',
    'skipnet_jax/scores/thinning.py',
    '    for x in range(width):\n      for position in',
    '    for x in range(width - 1, -1, -1):\n      for position in',
    'Thinning starts from the last column instead of the first.',
    ('tests/test_thinning.py::test_equals_the_text',),
  ),
  Mutation(
    'tiles-off-by-one',
    'skipnet_jax/prediction/tiling.py',
    '[*range(0, side - tile, step), side - tile]',
    '[*range(0, side - tile, step), max(0, side - tile - 1)]',
    'The last tile starts a pixel too early.',
    ('tests/test_inference.py::test_tiles_cover_a_slice_from_aligned_corners',),
  ),
  Mutation(
    'turned-back-wrongly',
    'skipnet_jax/prediction/inference.py',
    '-(turn % 4))',
    'turn % 4)',
    'Predictions of rotated images are rotated further, not back.',
    ('tests/test_inference.py::test_an_identity_comes_back_in_place',),
  ),
  Mutation(
    'one-dropout-sample',
    'skipnet_jax/prediction/inference.py',
    'jax.random.split(jax.random.key(seed), max(1, mc_samples))',
    '[jax.random.key(seed)] * max(1, mc_samples)',
    'All dropout samples of a prediction are equal.',
    (
      'tests/test_inference.py'
      '::test_dropout_samples_and_checkpoints_are_averaged',
    ),
  ),
  Mutation(
    'calibration-divides-the-wrong-way',
    'skipnet_jax/prediction/calibration.py',
    '(odds - self.log_odds)',
    '(odds + self.log_odds)',
    'Calibration moves the best threshold away from 0.5.',
    ('tests/test_calibration.py::test_the_best_threshold_becomes_a_half',),
  ),
  Mutation(
    'cuts-cost-the-opposite',
    'skipnet_jax/prediction/cells/cells.py',
    'return -np.clip(log_odds, -limit, limit)',
    'return np.clip(log_odds, -limit, limit)',
    'Superpixels are joined where a membrane is likely.',
    ('tests/test_cells.py::test_cells_are_found_and_drawn',),
  ),
  Mutation(
    'edges-of-any-network',
    'skipnet_jax/prediction/fitted.py',
    'if network != trained.network_of(run):',
    'if not network:',
    'Edges and calibrations of another network are used.',
    (
      'tests/test_edge_fit.py::test_evaluate_fits_edges_and_predict_uses_them',
      'tests/test_calibration.py'
      '::test_evaluate_fits_it_and_both_commands_use_it',
    ),
  ),
)

OTHERS = (
  Mutation(
    'streams-share-key',
    'skipnet_jax/streams.py',
    '_STREAMS.index(name)',
    '0',
    'Order, augmentation and dropout draw from one stream.',
    ('tests/test_streams.py::test_no_two_streams_or_steps_share_a_key',),
  ),
  Mutation(
    'routes-swapped',
    'skipnet_jax/analysis/routes.py',
    "{'long': np.float32(long), 'short': np.float32(short)}",
    "{'long': np.float32(short), 'short': np.float32(long)}",
    'The routes through long and short skips are exchanged.',
    ('tests/test_routes.py::test_linear_chain_in_closed_form',),
  ),
  Mutation(
    'layers-by-name',
    'skipnet_jax/models/layer_table.py',
    'return list(rows.values())',
    'return [rows[name] for name in sorted(rows)]',
    'Layers are listed by name instead of in the order of their calls.',
    ('tests/test_gradient_flow.py::test_layers_come_in_call_order',),
  ),
  Mutation(
    'flops-of-two-passes',
    'skipnet_jax/benchmarking/timing/flops.py',
    'flops = 3 * forward(table)',
    'flops = 2 * forward(table)',
    'The FLOPs of a training step are those of two passes, not three.',
    (
      'tests/test_flops.py'
      '::test_training_is_three_passes_less_the_gradient_of_the_image',
    ),
  ),
  Mutation(
    'rate-not-in-identity',
    'skipnet_jax/config_identity.py',
    "'train.epochs',\n  'train",
    "'train.epochs',\n  'optim.learning_rate',\n  'train",
    'A run may be continued with another learning rate.',
    (
      'tests/test_config.py'
      '::test_identity_leaves_out_what_a_run_may_continue_with',
    ),
  ),
)

BENCHMARKS = (
  Mutation(
    'peak-of-plain-float32',
    'skipnet_jax/benchmarking/timing/peaks.py',
    "return 'tf32', peak.tf32_tflops",
    "return 'float32', peak.float32_tflops",
    'MFU of float32 on a GPU divides TF32 by the peak of plain float32.',
    (
      'tests/test_sweep.py'
      '::test_float32_is_held_against_the_arithmetic_that_is_used',
    ),
  ),
  Mutation(
    'energy-in-millijoules',
    'skipnet_jax/benchmarking/timing/nvml.py',
    'else sum(counts) / 1e3',
    'else sum(counts)',
    'The energy counter, which counts millijoules, is taken for joules.',
    ('tests/test_nvml.py::test_the_energy_is_what_the_counter_advanced',),
  ),
  Mutation(
    'energy-of-a-batch',
    'skipnet_jax/benchmarking/sweep.py',
    'sum(joules) / (batches * batch)',
    'sum(joules) / batches',
    'Joules of an image are those of a batch.',
    ('tests/test_sweep.py::test_the_counter_gives_joules_of_an_image',),
  ),
  Mutation(
    'slow-clock-not-flagged',
    'skipnet_jax/benchmarking/timing/nvml.py',
    'rate < SLOW * highest',
    'rate < SLOW * rate',
    'A throttled GPU is not marked as slow.',
    ('tests/test_nvml.py::test_the_slowest_device_counts_and_is_flagged',),
  ),
  Mutation(
    'blocked-calls-wait',
    'skipnet_jax/benchmarking/timing/measure.py',
    '    result = call()\n',
    '    result = jax.block_until_ready(call())\n',
    'Blocked calls are waited for one by one.',
    ('tests/test_timing.py::test_blocked_calls_are_waited_for_once',),
  ),
  Mutation(
    'host-share-of-the-wait',
    'skipnet_jax/benchmarking/timing/measure.py',
    '  dispatched = clock()\n  jax.block_until_ready(result)\n',
    '  jax.block_until_ready(result)\n  dispatched = clock()\n',
    'The host seems to set the pace of every device.',
    ('tests/test_timing.py::test_blocked_calls_are_waited_for_once',),
  ),
  Mutation(
    'hash-with-places',
    'skipnet_jax/benchmarking/timing/measure.py',
    "_METADATA.sub('', '\\n\\n'.join(parts))",
    "'\\n\\n'.join(parts)",
    'A line moved in the source makes another hash of the same program.',
    ('tests/test_timing.py::test_a_program_is_known_by_its_instructions',),
  ),
  Mutation(
    'one-draw-of-kernels',
    'skipnet_jax/benchmarking/children.py',
    "journal.cache = ''",
    'pass',
    'The processes after the first load its programs, asked or not.',
    ('tests/test_children.py::test_later_processes_may_compile_anew',),
  ),
  Mutation(
    'gpu-reuses-programs',
    'skipnet_jax/benchmarking/plan.py',
    "return platform == 'gpu'",
    'return False',
    'By default all processes on a GPU run one draw of the autotuner.',
    ('tests/test_plan.py::test_programs_are_compiled_anew_on_a_gpu',),
  ),
  Mutation(
    'busy-machine-decides',
    'skipnet_jax/benchmarking/reporting/compare.py',
    'processes < PROCESSES or busy',
    'processes < PROCESSES',
    'Two reports are compared although the machine was busy.',
    (
      'tests/test_compare.py'
      '::test_a_machine_with_more_processes_than_cores_decides_nothing',
    ),
  ),
  Mutation(
    'median-of-who-reached-it',
    'skipnet_jax/benchmarking/quality.py',
    "missed if run['seconds'] is None else run['seconds'] for run in runs",
    "run['seconds'] for run in runs if run['seconds'] is not None",
    'Seeds that did not reach the BCE make the median time shorter.',
    (
      'tests/test_quality.py'
      '::test_a_seed_that_does_not_reach_it_is_the_longest',
    ),
  ),
  Mutation(
    'goodput-of-this-process',
    'skipnet_jax/training/loop.py',
    'before_it + spent',
    'spent',
    'After a resumption, goodput forgets the time of earlier processes.',
    ('tests/test_resume.py::test_a_finished_run_resumes_for_more_epochs',),
  ),
  Mutation(
    'interrupted-suite-goes-on',
    'skipnet_jax/benchmarking/suite/suite.py',
    '      raise KeyboardInterrupt\n',
    '      pass\n',
    'After Ctrl-C the suite runs the next piece.',
    (
      'tests/test_accelerator_suite.py'
      '::test_an_interrupted_piece_keeps_what_it_found',
    ),
  ),
)

PREDICTIONS = (
  Mutation(
    'collective-in-three-fusions',
    'skipnet_jax/benchmarking/hlo/program.py',
    'return self._begun.get(one.channel, one.name) != one.name',
    'return False',
    'An asynchronous collective of a TPU counts three times.',
    (
      'tests/test_collectives.py'
      '::test_a_collective_begun_in_one_fusion_and_ended_in_another_counts_once',
    ),
  ),
  Mutation(
    'places-are-kernels',
    'skipnet_jax/benchmarking/hlo/program.py',
    "_NO_WORK = {'ConcatBitcast', 'AllocateBuffer', _END}",
    '_NO_WORK = {_END}',
    'What only says where an array lies counts as a kernel.',
    (
      'tests/test_program.py'
      '::test_what_only_names_a_place_or_ends_is_no_kernel',
    ),
  ),
  Mutation(
    'every-update-in-place',
    'skipnet_jax/benchmarking/hlo/program.py',
    'elif user.name not in updates or not first:',
    "elif user.opcode != 'dynamic-update-slice' or not first:",
    'An array that is written elsewhere after an update seems not to be read.',
    (
      'tests/test_program.py'
      '::test_an_update_is_in_place_only_where_nothing_follows',
    ),
  ),
  Mutation(
    'gathered-as-compiled',
    'skipnet_jax/benchmarking/hlo/collectives.py',
    "'all-gather': lambda n, m: (n - 1) / m,",
    "'all-gather': lambda n, m: (n - 1) / n,",
    'Weak scaling gathers as much on 256 devices as on four.',
    ('tests/test_bounds.py::test_what_is_gathered_grows_with_the_devices',),
  ),
  Mutation(
    'nvlink-between-hosts',
    'skipnet_jax/benchmarking/aot/gpus.py',
    'return gpu.linked if hosts == 1 or gpu.linked > gpu.per_host else 0',
    'return gpu.linked',
    'GPUs of several hosts seem to be joined by NVLink.',
    ('tests/test_slices.py::test_nvlink_ends_at_the_host_or_at_the_rack',),
  ),
  Mutation(
    'classifier-in-reverse',
    'skipnet_jax/models/accelerator_layers.py',
    'layers.at_least_float32(x) * kernel.reshape(',
    'layers.at_least_float32(x) * kernel[..., ::-1, :].reshape(',
    'On GPUs a classifier has the weights of its channels in reverse.',
    ('tests/test_accelerator_layers.py::test_it_is_the_layer_to_rounding',),
  ),
)

MUTATIONS = (
  TRAINING + MODELS + DATA + EVALUATION + OTHERS + BENCHMARKS + PREDICTIONS
)
