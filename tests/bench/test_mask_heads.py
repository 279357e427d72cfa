"""The benchmark compares equal things, and Mask2Former is that of transformers.
"""

import argparse

import numpy as np
import pytest

# Networks of full width; golden cases hold them against DINOv3's.
pytestmark = [pytest.mark.torch, pytest.mark.slow]


@pytest.mark.parametrize('part', ['attention', 'mask2former'])
def test_both_sides_give_the_same(part):
  from bench import mask_heads
  options = argparse.Namespace(image_px=64, batch=2, threads=2)
  ours, theirs = mask_heads.PARTS[part]
  program = ours(options)
  peer = theirs(options, program.weights)
  for got, want in zip(program(), peer(), strict=True):
    np.testing.assert_allclose(got, want, rtol=0,
                               atol=1e-5 * np.abs(want).max())
