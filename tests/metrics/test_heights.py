"""Errors of heights: known answers, blocks, and what is unknown."""

import numpy as np
import pytest

from dinojax.metrics import heights


def scores(*images, block_px=2):
  rows = [heights.sums(np.float32(p), np.float32(t), block_px)
          for p, t in images]
  return heights.scores({name: np.array([row[name] for row in rows])
                         for name in rows[0]})


def test_errors_are_of_all_pixels_together():
  truth = np.arange(16.0).reshape(4, 4)
  got = scores((truth + 1, truth), (truth[:2] - 3, truth[:2]))
  error = np.concatenate([np.ones(16), np.full(8, -3)])
  every = np.concatenate([truth.ravel(), truth[:2].ravel()])
  want = {'MAE': np.abs(error).mean(), 'RMSE': np.sqrt((error**2).mean()),
          'bias': error.mean(),
          'R2': 1 - (error**2).sum() / ((every - every.mean())**2).sum()}
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-6)


def test_blocks_forgive_what_is_right_on_their_mean():
  truth = np.kron([[0.0, 10], [20, 30]], np.ones((2, 2)))
  apart = np.tile([[1.0, -1], [-1, 1]], (2, 2))
  got = scores((truth + apart, truth))
  assert got['block R2'] == 1 and got['R2'] < 1
  assert scores((truth, truth))['R2'] == 1
  # A block that is mostly unknown does not count, nor one that is cut off.
  truth[:2, :2] = [[np.nan, np.nan], [np.nan, 5]]
  wrong = np.where(np.isnan(truth), 99.0, truth)
  wrong[1, 1] = 50.0
  got = scores((wrong, truth))
  assert got['block R2'] == 1 and got['MAE'] == 45 / 13


@pytest.mark.parametrize('truth', [np.full((2, 2), np.nan), np.full((2, 2), 3)])
def test_where_nothing_varies_nothing_is_explained(truth):
  got = scores((np.ones((2, 2)), truth), block_px=1)
  assert np.isnan(got['R2']) and np.isnan(got['block R2'])
  assert np.isnan(got['MAE']) == np.isnan(truth).all()
