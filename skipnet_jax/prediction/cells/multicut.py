"""Multicut of a graph: nodes are grouped so that the cut edges cost least.

An edge of cost c adds c where its two nodes are in different groups: a positive
cost attracts, a negative one repels. The number of groups is a result. To find
the optimum is NP-hard; greedy contraction of edges (Keuper et al. 2015), then
the moves of Kernighan and Lin 1970 between every two groups, come close. There
is no random choice: equal input gives equal output.

Lifted edges (Keuper et al. 2015) cost alike, but do not connect: a group is
always connected by the other edges.
"""

import numba
import numpy as np
from scipy import sparse

# Gains below it are rounding errors.
_LEAST_GAIN = 1e-9
# A sequence of moves ends after so many in a row that did not help.
_FRUITLESS_MOVES = 100
_MAX_ROUNDS = 100


def solve(
  nodes: int,
  edges: np.ndarray,
  costs: np.ndarray,
  lifted_edges: np.ndarray | None = None,
  lifted_costs: np.ndarray | None = None,
) -> np.ndarray:
  """Groups the nodes of a graph, by greedy contraction and Kernighan-Lin.

  Args:
    nodes: their number.
    edges: `[e, 2]` integers, two different nodes each, no pair twice.
    costs: `[e]` float64, finite.
    lifted_edges: `[l, 2]` of pairs that are not in `edges`; None: no such.
    lifted_costs: `[l]` float64.

  Returns:
    `[nodes]` int32: the group of each node, from 0 up in the order of their
    first nodes. Each group is connected by `edges`.
  """
  local = np.asarray(edges, np.int64).reshape(-1, 2)
  weights = np.asarray(costs, np.float64)
  pairs = local
  if lifted_edges is not None and lifted_costs is not None:
    pairs = np.concatenate([local, np.asarray(lifted_edges, np.int64)])
    weights = np.concatenate([weights, np.asarray(lifted_costs, np.float64)])
  connects = np.arange(len(pairs)) < len(local)
  ends = pairs.ravel()
  order = np.argsort(ends, kind='stable')
  starts = np.searchsorted(ends[order], np.arange(nodes + 1))
  edge, other = order // 2, pairs[:, ::-1].ravel()[order]

  groups = _contract(nodes, pairs, weights.copy(), connects.copy())
  groups = _connected(groups, local)
  least = energy(groups, pairs, weights)
  for _ in range(_MAX_ROUNDS):
    moved = groups.astype(np.int64)
    _move(starts, other, weights[edge], connects[edge], moved)
    moved = _connected(moved, local)
    reached = energy(moved, pairs, weights)
    # A group that fell apart was cut for nothing, or at lifted edges' cost.
    if reached > least - _LEAST_GAIN:
      break
    groups, least = moved, reached
  return groups


def energy(groups: np.ndarray, edges: np.ndarray, costs: np.ndarray) -> float:
  """The sum of the costs of the edges between two groups."""
  return float(costs[groups[edges[:, 0]] != groups[edges[:, 1]]].sum())


def _connected(groups: np.ndarray, edges: np.ndarray) -> np.ndarray:
  """Numbers the connected parts of all groups, by their first nodes."""
  inner = edges[groups[edges[:, 0]] == groups[edges[:, 1]]]
  nodes = len(groups)
  graph = sparse.coo_array(
    (np.ones(len(inner), bool), (inner[:, 0], inner[:, 1])), (nodes, nodes)
  )
  _, found = sparse.csgraph.connected_components(graph, directed=False)
  _, first, place = np.unique(found, return_index=True, return_inverse=True)
  return np.argsort(np.argsort(first)).astype(np.int32)[place]


@numba.njit(nogil=True, cache=True)
def _contract(nodes, edges, costs, connects):
  """Joins the two groups that attract each other most, until none do.

  `costs` and `connects` are changed: what joins two groups becomes one edge.
  """
  count = len(edges)
  # Groups are trees of nodes; the root stands for the group.
  parent = np.arange(nodes)
  # The edges of a root are a list of their ends; end 2e + i is edges[e, i].
  first = np.full(nodes, -1)
  following = np.full(2 * count, -1)
  for end in range(2 * count):
    node = edges[end >> 1, end & 1]
    following[end] = first[node]
    first[node] = end
  alive = np.ones(count, np.bool_)
  between = np.full(nodes, -1)  # Edge of the one root to each other root.
  # A binary heap of edges. An entry whose cost is no longer its edge's counts
  # for nothing. An edge is entered again only where another one vanished.
  heap = np.empty(2 * count, np.int64)
  keys = np.empty(2 * count)
  size = 0
  pushed = np.arange(count)  # Edges to enter.
  waiting = count
  while True:
    for index in range(waiting):
      edge = pushed[index]
      if not connects[edge] or costs[edge] <= 0:
        continue
      place = size
      size += 1
      while place > 0:
        above = (place - 1) >> 1
        if keys[above] > costs[edge] or (
          keys[above] == costs[edge] and heap[above] <= edge
        ):
          break
        keys[place], heap[place] = keys[above], heap[above]
        place = above
      keys[place], heap[place] = costs[edge], edge
    waiting = 0
    if size == 0:
      break
    cost, top = keys[0], heap[0]
    size -= 1
    key, last = keys[size], heap[size]
    place = 0
    while True:
      below = 2 * place + 1
      if below >= size:
        break
      right = below + 1
      if right < size and (
        keys[right] > keys[below]
        or (keys[right] == keys[below] and heap[right] < heap[below])
      ):
        below = right
      if key > keys[below] or (key == keys[below] and last < heap[below]):
        break
      keys[place], heap[place] = keys[below], heap[below]
      place = below
    keys[place], heap[place] = key, last
    if not alive[top] or costs[top] != cost:
      continue

    roots = np.empty(2, np.int64)
    for index in range(2):
      node = edges[top, index]
      while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
      roots[index] = node
    kept, gone = min(roots[0], roots[1]), max(roots[0], roots[1])
    parent[gone] = kept
    alive[top] = False
    joined = -1
    for root in (kept, gone):
      end = first[root]
      while end >= 0:
        after = following[end]
        edge = end >> 1
        if alive[edge]:
          node = edges[edge, 1 - (end & 1)]
          while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
          same = between[node]
          if same < 0:
            between[node] = edge
            following[end] = joined
            joined = end
          else:
            costs[same] += costs[edge]
            connects[same] |= connects[edge]
            alive[edge] = False
            pushed[waiting] = same
            waiting += 1
        end = after
    first[kept] = joined
    end = joined
    while end >= 0:
      node = edges[end >> 1, 1 - (end & 1)]
      while parent[node] != node:
        node = parent[node]
      between[node] = -1
      end = following[end]
  for node in range(nodes):
    root = node
    while parent[root] != root:
      root = parent[root]
    parent[node] = root
  return parent


@numba.njit(nogil=True, cache=True)
def _move(starts, other, costs, connects, groups):
  """Moves nodes between groups, joins and splits groups, while it helps.

  `other`, `costs` and `connects` are of the edges of each node, from `starts`.
  `groups` is changed; its numbers stay below that of the nodes.
  """
  nodes = len(groups)
  # The members of a group are a list.
  first = np.full(nodes, -1)
  following = np.full(nodes, -1)
  for node in range(nodes - 1, -1, -1):
    following[node] = first[groups[node]]
    first[groups[node]] = node
  members = np.empty(nodes, np.int64)
  gains = np.empty(nodes)
  states = np.zeros(nodes, np.int8)  # 1: may move, 2: has moved.
  moves = np.empty(nodes, np.int64)
  changed = np.ones(nodes, np.bool_)
  for _ in range(_MAX_ROUNDS):
    # Two groups that touch, as one number; a group alone is to be split.
    pairs = np.empty(len(other) + nodes, np.int64)
    count = 0
    for node in range(nodes):
      here = groups[node]
      pairs[count] = here * nodes + here
      count += 1
      for place in range(starts[node], starts[node + 1]):
        there = groups[other[place]]
        if connects[place] and here < there:
          pairs[count] = here * nodes + there
          count += 1
    pairs = np.sort(pairs[:count])
    before, changed = changed, np.zeros(nodes, np.bool_)
    previous = -1
    for pair in pairs:
      if pair == previous:
        continue
      previous = pair
      a, b = pair // nodes, pair % nodes
      if first[a] < 0 or first[b] < 0:
        continue
      if not (before[a] or before[b] or changed[a] or changed[b]):
        continue
      split = a == b
      if split:
        b = 0
        while b < nodes and first[b] >= 0:
          b += 1
        if b == nodes:
          continue
      size = 0
      for group in (a, b):
        node = first[group]
        while node >= 0:
          members[size] = node
          size += 1
          node = following[node]
      cut = 0.0
      touch = False
      for index in range(size):
        node = members[index]
        gains[node] = 0.0
        states[node] = split
        for place in range(starts[node], starts[node + 1]):
          there = groups[other[place]]
          if there == groups[node]:
            gains[node] -= costs[place]
          elif there in (a, b):
            gains[node] += costs[place]
            if groups[node] == a:
              cut += costs[place]
            if connects[place]:
              states[node] = 1
              touch = True
      done = kept = 0
      gain = best = 0.0
      while done - kept < _FRUITLESS_MOVES:
        chosen = -1
        for index in range(size):
          node = members[index]
          if states[node] == 1 and (chosen < 0 or gains[node] > gains[chosen]):
            chosen = node
        if chosen < 0:
          break
        gain += gains[chosen]
        states[chosen] = 2
        moves[done] = chosen
        done += 1
        groups[chosen] = a + b - groups[chosen]
        for place in range(starts[chosen], starts[chosen + 1]):
          node = other[place]
          there = groups[node]
          if there == groups[chosen]:
            gains[node] -= 2 * costs[place]
          elif there in (a, b):
            gains[node] += 2 * costs[place]
            if connects[place] and states[node] == 0:
              states[node] = 1
        if gain > best + _LEAST_GAIN:
          best = gain
          kept = done
      join = touch and cut > best + _LEAST_GAIN
      for index in range(0 if join else kept, done):
        node = moves[index]
        groups[node] = a + b - groups[node]
      if not (join or kept):
        continue
      changed[a] = changed[b] = True
      first[a] = first[b] = -1
      for index in range(size - 1, -1, -1):
        node = members[index]
        if join:
          groups[node] = a
        following[node] = first[groups[node]]
        first[groups[node]] = node
    if not changed.any():
      break
