"""Retrieval: what collides, what is chosen, and caps."""

import numpy as np
import pytest

from dinojax.core import errors
from dinojax.curate import retrieval


def test_policies_of_rows_that_two_queries_find():
  near = np.array([[1, 2], [1, 3], [1, -1]])
  unique = retrieval.of_samples(near)
  assert unique.rows.tolist() == [1, 2, 3] and unique.counts.tolist() == [1] * 3
  often = retrieval.of_samples(near, 'keep_multiplicity')
  assert often.counts.tolist() == [3, 1, 1] and often.collision_rate == 0.4
  with pytest.raises(errors.UserError, match="policy='all' is not known"):
    retrieval.of_samples(near, 'all')
  wide = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 3]])
  assert retrieval.next_nearest(wide, 2).tolist() == [
      [1, -1], [2, -1], [3, -1]]


def test_a_cluster_with_three_queries_is_not_taken():
  clusters = np.repeat([0, 1, 2], 5)
  distance = np.tile([4.0, 3, 2, 1, 0], 3)
  got = retrieval.of_clusters(
      np.array([3, 4, 9]), clusters, distance, per_cluster=2, cap=3)
  assert got.clusters.tolist() == [2, 1]
  assert got.rows.tolist() == [14, 13, 9] and got.taken.tolist() == [0, 2, 2]
