"""Panoptic quality against answers that are counted by hand."""

import numpy as np
import pytest

from dinojax.metrics import panoptic

NONE = (3, -1)


def drawn(*rows):
  """A map of rows of (class, segment, pixels) on a line of ten pixels."""
  out = np.full((len(rows), 10, 2), NONE)
  for y, row in enumerate(rows):
    x = 0
    for kind, segment, pixels in row:
      out[y, x:x + pixels] = kind, segment
      x += pixels
  return out


def counted(predicted, truth, crowds=()):
  return panoptic.counts(predicted, truth, 3, crowds)


def test_segments_of_one_class_and_more_than_half():
  truth = drawn([(0, 5, 6), (1, 7, 4)])
  got = counted(drawn([(0, 1, 4), (1, 2, 6)]), truth)
  # 4 of 6 are one, and 4 of 6 of the other.
  np.testing.assert_allclose(got, [
      [4 / 6, 4 / 6, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]])
  assert panoptic.scores(got) == pytest.approx(
      {'PQ': 100 * 4 / 6, 'SQ': 100 * 4 / 6, 'RQ': 100})
  # Just half is no match: each side counts once.
  got = counted(drawn([(0, 1, 3), (3, -1, 7)]), drawn([(0, 5, 6), (3, -1, 4)]))
  np.testing.assert_allclose(got[:, 0], [0, 0, 1, 1])
  # Another class is no match either.
  got = counted(drawn([(2, 1, 6), (3, -1, 4)]), drawn([(0, 5, 6), (3, -1, 4)]))
  np.testing.assert_allclose(got, [[0] * 3, [0] * 3, [0, 0, 1], [1, 0, 0]])


def test_what_is_not_known_counts_nowhere():
  truth = drawn([(0, 5, 4), (3, -1, 6)])
  # Six of the ten predicted pixels are not known: IoU is 4 of 4.
  np.testing.assert_allclose(
      counted(drawn([(0, 1, 10)]), truth)[:, 0], [1, 1, 0, 0])
  # A segment that lies there by more than half is no error; at half it is.
  np.testing.assert_allclose(
      counted(drawn([(3, -1, 3), (1, 1, 7)]), truth)[:, 1], [0, 0, 0, 0])
  np.testing.assert_allclose(counted(
      drawn([(3, -1, 2), (1, 1, 4), (3, -1, 4)]), truth)[:, 1], [0, 0, 1, 0])


def test_crowds_are_not_missed_and_absorb_their_class():
  truth = drawn([(0, 5, 8), (1, 6, 2)])
  got = counted(drawn([(0, 1, 3), (0, 2, 3), (1, 3, 4)]), truth, crowds=(5,))
  # Two inside of the crowd are no errors; of class 1, 2 of 4 is no match.
  np.testing.assert_allclose(got[:, 0], [0, 0, 0, 0])
  np.testing.assert_allclose(got[:, 1], [0, 0, 1, 1])
  assert counted(drawn([(1, 1, 8), (1, 2, 2)]), truth, (5,))[2, 1] == 1


def test_segments_of_one_number_in_two_classes_are_two():
  both = drawn([(0, 0, 5), (1, 0, 5)])
  np.testing.assert_allclose(counted(both, both)[:2], [[1, 1, 0], [1, 1, 0]])
  nothing = drawn([])
  assert np.isnan(panoptic.scores(counted(nothing, nothing))['PQ'])


def test_classes_that_do_not_occur_are_left_out():
  total = np.array([[0.8, 0, 0], [1, 0, 0], [0, 2, 0], [1, 0, 0.0]])
  assert panoptic.scores(total)['PQ'] == pytest.approx(
      100 * (0.8 * (1 / 1.5) + 0) / 2)
