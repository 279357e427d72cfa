"""Assignments of least cost, against scipy."""

import functools

import jax
import numpy as np
import pytest
from scipy import optimize

from dinojax.losses import assignment


@functools.cache
def program(copies):
  return jax.jit(jax.vmap(functools.partial(
      assignment.assign, copies=copies)))


def check(costs, present, copies=1):
  """Owners of columns, whose costs are as small as scipy's."""
  costs, present = np.float32(costs), np.asarray(present, bool)
  owner = np.asarray(program(copies)(costs, present))
  for table, there, got in zip(costs, present, owner, strict=True):
    expanded = np.repeat(table[there], copies, axis=0)
    rows, columns = optimize.linear_sum_assignment(expanded)
    taken = np.flatnonzero(got >= 0)
    assert there[got[taken]].all()
    assert len(taken) == min(len(expanded), table.shape[1])
    if len(expanded) <= table.shape[1]:
      assert (np.bincount(got[taken], minlength=len(there))
              == copies * there).all()
    np.testing.assert_allclose(
        table[got[taken], taken].astype(np.float64).sum(),
        expanded[rows, columns].astype(np.float64).sum(), rtol=1e-5, atol=1e-4)
  return owner


@pytest.mark.parametrize('copies, rows, columns', [
    (1, 5, 30), (1, 6, 6), (4, 5, 30), (3, 4, 12), (2, 4, 6)])
def test_the_sum_is_least(copies, rows, columns):
  rng = np.random.default_rng(0)
  for scale, kind in ((1, 'normal'), (100, 'normal'), (1, 'crowded')):
    costs = scale * rng.normal(size=(24, rows, columns))
    if kind == 'crowded':  # all want the same columns
      costs = 0.1 * costs + rng.normal(size=(24, 1, columns))
    check(costs, rng.random((24, rows)) < 0.7, copies)


def test_whole_numbers_have_ties_everywhere():
  rng = np.random.default_rng(1)
  check(rng.integers(0, 3, (40, 5, 20)), rng.random((40, 5)) < 0.8, 3)
  check(np.zeros((2, 4, 9)), np.ones((2, 4)), 2)


def test_nobody_gets_nothing():
  owner = check(np.ones((1, 3, 5)), np.zeros((1, 3)))
  assert (owner == -1).all()


def test_costs_far_apart_keep_their_order():
  rng = np.random.default_rng(2)
  costs = rng.normal(size=(8, 6, 40))
  costs[:, 0] += 1e4  # a row that is dear everywhere
  costs[:, :, :20] = 1e6  # and columns that are
  check(costs, np.ones((8, 6)), 3)
