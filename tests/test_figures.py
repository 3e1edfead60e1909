"""The depth axis of figures."""

import os

import numpy as np

from skipnet_jax import plots
from skipnet_jax.analysis.page import figures

SHORT = ('down_1', 'down_2/block_1/conv_1', 'classifier')
LONG = ('down_1', 'down_2/block_1/conv_1', 'down_2/block_2/conv_1')
LONG += ('long_skip_classifier/decoder', 'classifier')


def test_a_long_skip_belongs_to_the_stage_it_feeds():
  assert [figures.stage_of(layer) for layer in LONG[3:]] == ['classifier'] * 2
  assert figures.stages_of(LONG) == [
    ('down_1', 0, 1),
    ('down_2', 1, 3),
    ('classifier', 3, 5),
  ]


def test_networks_of_the_same_stages_are_aligned_by_stage():
  figure, axes = figures.make_grid(2, 1.0)
  assert len(axes) == 2
  places = figures.mark_depth(axes, [SHORT, LONG])
  np.testing.assert_allclose(places[0], [0.5, 1.5, 2.5])
  np.testing.assert_allclose(places[1], [0.5, 1.25, 1.75, 2.25, 2.75])
  labels = [label.get_text() for label in axes[0].get_xticklabels()]
  assert labels == ['down_1', 'down_2', 'classifier']
  assert plots.to_array(figure).shape[1] == 1500


def test_other_networks_are_aligned_by_relative_depth():
  _, axes = figures.make_grid(1, 1.0)
  places = figures.mark_depth(axes, [SHORT, ('conv_a', 'conv_b')])
  np.testing.assert_allclose(places[0], [1 / 6, 1 / 2, 5 / 6])
  np.testing.assert_allclose(places[1], [0.25, 0.75])
  assert 'relative depth' in axes[0].get_xlabel()


def test_names_of_runs_are_drawn_as_they_are():
  figure = plots.make_figure(2, 2, dpi=50)
  axes = figure.subplots()
  axes.plot([1, 1e4], [1, 2], label=plots.legend_label('_run'))
  axes.set(xscale='log', title=r'漢 $\frac{$ ' + os.fsdecode(b'\xff'))
  legend = axes.legend()
  plots.to_array(figure)
  assert axes.title.get_text() == r'漢 $\frac{$ \udcff'
  assert not axes.title.get_parse_math()
  assert all(label.get_parse_math() for label in axes.get_xticklabels())
  assert [text.get_text() for text in legend.get_texts()] == [' _run']
