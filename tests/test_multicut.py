"""The multicut against all partitions, a dynamic program and another solver."""

import itertools

import numpy as np
import pytest

from skipnet_jax.prediction.cells import multicut


def partitions(count):
  """Every way to group `count` nodes, `[p, count]`."""
  found = [(0,)]
  for _ in range(count - 1):
    found = [(*p, group) for p in found for group in range(max(p) + 2)]
  return np.array(found)


def random_graph(rng, nodes, share=0.6):
  pairs = np.array(list(itertools.combinations(range(nodes), 2)))
  edges = pairs[rng.random(len(pairs)) < share]
  return edges, rng.normal(size=len(edges))


def same_groups(a, b):
  return np.array_equal(a[:, None] == a, b[:, None] == b)


def test_against_all_partitions():
  every = {nodes: partitions(nodes) for nodes in range(2, 9)}
  assert len(every[8]) == 4140
  rng = np.random.default_rng(1)
  optimal = 0
  for index in range(300):
    nodes = 2 + index % 7
    edges, costs = random_graph(rng, nodes)
    cut = every[nodes][:, edges[:, 0]] != every[nodes][:, edges[:, 1]]
    least = (cut @ costs).min()
    groups = multicut.solve(nodes, edges, costs)
    reached = multicut.energy(groups, edges, costs)
    assert reached >= least - 1e-9
    optimal += reached <= least + 1e-9
  assert optimal >= 290


def test_lifted_edges_on_a_path_against_a_dynamic_program():
  rng = np.random.default_rng(0)
  nodes, optimal = 12, 0
  path = np.stack([np.arange(nodes - 1), np.arange(1, nodes)], 1)
  far = [
    (a, b) for a, b in itertools.combinations(range(nodes), 2) if b > a + 1
  ]
  far = np.array(far)
  for _ in range(40):
    costs = rng.normal(0, 2, len(path)), rng.normal(0, 0.5, len(far))
    pairs, every = np.concatenate([path, far]), np.concatenate(costs)
    # What the best groups of the first nodes keep together, at most.
    best = [0.0]
    for end in range(1, nodes + 1):
      kept = [
        best[first] + every[(pairs[:, 0] >= first) & (pairs[:, 1] < end)].sum()
        for first in range(end)
      ]
      best.append(max(kept))
    least = every.sum() - best[-1]
    groups = multicut.solve(nodes, path, costs[0], far, costs[1])
    # Groups are connected by the path.
    assert np.isin(np.diff(groups), (0, 1)).all()
    reached = multicut.energy(groups, pairs, every)
    assert reached >= least - 1e-9
    optimal += reached <= least + 1e-9
  assert optimal >= 30


def test_the_order_of_nodes_and_edges_does_not_matter():
  rng = np.random.default_rng(2)
  edges, costs = random_graph(rng, 60, 0.1)
  groups = multicut.solve(60, edges, costs)
  assert groups.dtype == np.int32
  _, first = np.unique(groups, return_index=True)
  assert (np.diff(first) > 0).all()
  assert 1 < groups.max() < 59
  for _ in range(3):
    place, order = rng.permutation(60), rng.permutation(len(edges))
    again = multicut.solve(60, place[edges][order, ::-1], costs[order])
    assert same_groups(again[place], groups)


def test_groups_are_connected_and_few_edges_are_enough():
  empty = np.zeros((0, 2), int)
  assert multicut.solve(1, empty, np.zeros(0)).tolist() == [0]
  assert multicut.solve(3, empty, np.zeros(0)).tolist() == [0, 1, 2]
  # Two pairs that lifted edges alone attract stay apart.
  edges, lifted = np.array([[0, 1], [2, 3]]), np.array([[0, 2], [1, 3]])
  ones = np.ones(2)
  groups = multicut.solve(4, edges, ones, lifted, 9 * ones)
  assert groups.tolist() == [0, 0, 1, 1]


@pytest.mark.peer
def test_as_good_as_bioimage_cpp():
  graph = pytest.importorskip('bioimage_cpp').graph
  peer = graph.multicut
  rng = np.random.default_rng(3)
  # Superpixels are a planar graph of six neighbours each, on average.
  side = 40
  place = np.arange(side**2).reshape(side, side)
  edges = np.concatenate(
    [
      np.stack([place[a].ravel(), place[b].ravel()], 1)
      for a, b in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1], np.s_[1:]),
        (np.s_[:-1, :-1], np.s_[1:, 1:]),
      )
    ]
  )
  for bias in (0.0, 0.5, 1.0):
    costs = rng.normal(bias, 2, len(edges))
    objective = peer.MulticutObjective(
      graph.UndirectedGraph.from_edges(side**2, edges.astype(np.uint64)), costs
    )
    theirs = peer.ChainedMulticutSolvers(
      [peer.GreedyAdditiveMulticut(), peer.KernighanLinMulticut()]
    ).optimize(objective)
    ours = multicut.solve(side**2, edges, costs)
    reached = [multicut.energy(each, edges, costs) for each in (ours, theirs)]
    assert reached[0] < 0
    assert reached[0] <= reached[1] + 0.01 * abs(reached[1])
