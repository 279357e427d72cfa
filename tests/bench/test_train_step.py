"""The benchmark compares equal things."""

import numpy as np
import pytest

# The step itself is held against the references by the golden cases.
pytestmark = [pytest.mark.torch, pytest.mark.slow]


def test_both_sides_take_the_same_steps():
  from bench import train_step
  ours = train_step.Jax(batch=2, num_prototypes=256, depth=1)
  peer = train_step.Torch(ours.weights(), num_prototypes=256, threads=2)
  # The second loss and the third see the optimizer, clipping and the EMA.
  for step in range(3):
    rows = train_step.make_batch(2, step)
    np.testing.assert_allclose(ours.step(rows), peer.step(rows), rtol=1e-5)
