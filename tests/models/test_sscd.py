"""Weights of SSCD, and weights that are not."""

import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.core import errors
from dinojax.models import sscd


def state(block='basic'):
  """Random weights by the names of torchvision, two stages."""
  rng, out = np.random.default_rng(0), {}

  def conv(name, norm, *shape):
    out[f'backbone.{name}.weight'] = rng.normal(0, 0.2, shape)
    for key in ('weight', 'running_var'):
      out[f'backbone.{norm}.{key}'] = rng.uniform(0.5, 1.5, shape[0])
    for key in ('bias', 'running_mean'):
      out[f'backbone.{norm}.{key}'] = rng.normal(0, 0.2, shape[0])
    out[f'backbone.{norm}.num_batches_tracked'] = np.array(3)

  conv('conv1', 'bn1', 8, 3, 7, 7)
  for stage, (inputs, width) in enumerate(((8, 8), (8, 12)), 1):
    for i, start in enumerate((inputs, width)):
      at = f'layer{stage}.{i}'
      conv(f'{at}.conv1', f'{at}.bn1', width, start, 3, 3)
      conv(f'{at}.conv2', f'{at}.bn2', width, width, 3, 3)
    if inputs != width:
      at = f'layer{stage}.0.downsample'
      conv(f'{at}.0', f'{at}.1', width, inputs, 1, 1)
  out['backbone.fc.weight'] = rng.normal(size=(5, 12))
  out['backbone.fc.bias'] = rng.normal(size=5)
  return {name: value.astype(np.float32) for name, value in out.items()}


def test_networks_of_small_blocks_give_unit_rows():
  network = sscd.load(state(), 'it')
  rows = network(jnp.ones((2, 32, 40, 3)))
  assert rows.shape == (2, 5)
  np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize('change, message', [
    (lambda x: x.pop('backbone.layer2.0.bn1.bias'),
     "file is no SSCD network: 'layer2.0.bn1.bias' is missing"),
    (lambda x: x.clear(), 'is no SSCD network'),
    (lambda x: x.update({'other.weight': np.zeros(3)}),
     'holds 1 arrays that an SSCD network has not, such as other.weight'),
    (lambda x: x.update({'backbone.fc.weight': np.zeros((5, 13))}),
     'has shape')])
def test_other_weights_are_sentences(change, message):
  weights = state()
  change(weights)
  with pytest.raises(errors.UserError, match=message):
    sscd.load(weights, 'file')
