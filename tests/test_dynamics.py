"""A hundred steps of DINOv2's own training code, followed."""

import dataclasses
import pathlib

import pytest

from tests import golden
from tests.kinds import dynamics

FOLDER = pathlib.Path(__file__).parent / 'goldens_dynamics'


@pytest.mark.slow  # make test follows three steps of each, test_goldens.py
@pytest.mark.parametrize('steps', [100])
@pytest.mark.parametrize('name', golden.catalogue(FOLDER))
def test_losses_and_gradients_follow_the_reference(name, steps):
  case = golden.load(name, FOLDER)
  got = dynamics.training_dynamics(case, steps)
  case.finish()
  rows = case.outputs['rows'][:steps]
  dataclasses.replace(case, outputs={'rows': rows}).compare(got)
