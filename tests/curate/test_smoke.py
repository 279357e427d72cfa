"""The recipes as they come, on the embedded photographs: whole, and twice."""

import time

import pytest

from dinojax.configs.curate import folder
from dinojax.configs.curate import lvd142m
from dinojax.configs.curate import lvd1689m
from dinojax.runs import curation
from tests.curate import test_recipe

pytestmark = pytest.mark.slow  # a minute each


@pytest.mark.parametrize('module', [folder, lvd142m, lvd1689m])
def test_smoke_takes_two_minutes_and_twice_gives_the_same(module, tmp_path):
  contents = []
  for workers in (1, 2):
    began = time.monotonic()
    line = curation.curate(curation.Request(
        module.get_config('smoke'), str(tmp_path / str(workers)),
        workers=workers))
    assert time.monotonic() - began < 120
    assert 'train on it: --config.data.train=curated:' in line
    contents.append(test_recipe.contents(tmp_path / str(workers)))
  assert contents[0] == contents[1]
