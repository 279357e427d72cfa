"""Plans: what they count is what stages write; machines; wrong words."""

import dataclasses

import pytest

from dinojax.configs.curate import lvd142m
from dinojax.configs.curate import lvd1689m
from dinojax.core import errors
from dinojax.curate import costs
from dinojax.curate import machines
from dinojax.curate import recipe
from dinojax.runs import curation
from tests.curate import test_recipe

pile, finished = test_recipe.pile, test_recipe.finished


def plan(config, count, machine='v5e:8x8'):
  settings = recipe.read(config)
  where = machines.parse(machine, settings.plan)
  return settings, where, costs.of_recipe(settings, settings.plan, count)


def test_papers_are_within_reach_and_the_slowest_part_is_told():
  settings, where, made = plan(lvd142m.get_config(), 1.3e9)
  hours = sum(cost.hours(where, settings.plan) for cost in made)
  assert 24 < hours < 24 * 30
  names = [cost.stage for cost in made]
  assert list(dict.fromkeys(names)) == list(lvd142m.STAGES)
  embed = next(cost for cost in made if cost.stage == 'embed')
  # ViT-L of 224 pixels: 0.162 TFLOP an image; 1024 numbers of two bytes.
  assert embed.flops / embed.images == pytest.approx(0.162e12, rel=0.02)
  assert embed.written / embed.images == 2 * 1024 + 8
  lines = costs.table(made, where, settings.plan)
  most = max(cost.hours(where, settings.plan) for cost in made)
  assert lines[-1].startswith(f'{100 * most / hours:.0f} % of the hours')


def test_seventeen_billion_are_planned():
  settings, where, made = plan(lvd1689m.get_config(), 17e9, 'H100-SXM:512')
  coarse = next(cost for cost in made if 'level 1' in cost.what)
  assert coarse.alone and '1,000,000' in coarse.what
  assert coarse.hours(where, settings.plan) > 1000  # and it says so
  assert 'one machine' in costs.table(made, where, settings.plan)[-1]
  assert made[-1].images == 1_689_000_000


def test_twice_the_machine_is_half_the_time_but_for_one_machines_work():
  config = lvd142m.get_config()
  settings, small, made = plan(config, 1e8, 'v5e:4x4')
  _, large, _ = plan(config, 1e8, 'v5e:8x4')
  assert large.chips == 2 * small.chips and large.hosts == 2 * small.hosts
  described = next(cost for cost in made if cost.stage == 'describe')
  fast = dataclasses.replace(settings.plan, disk_gb_s=1e6)
  assert described.hours(small, fast) == pytest.approx(
      2 * described.hours(large, fast))
  join = next(cost for cost in made if cost.what == 'join')
  assert join.hours(small, fast) == pytest.approx(join.hours(large, fast))


def test_bytes_are_those_that_stages_write(finished, pile):
  workdir, _ = finished
  c = test_recipe.config(pile)
  made = costs.of_recipe(recipe.read(c), recipe.read(c).plan, 142)
  size = lambda stage, pattern: sum(
      path.stat().st_size for path in (workdir / stage).rglob(pattern))
  described, = (cost for cost in made if cost.stage == 'embed')
  vectors = size('embed', '*.vectors.npy') / test_recipe.NUM
  assert vectors == pytest.approx(described.written / described.images - 8,
                                  rel=0.2)
  ingested = made[0]
  thumbnails = size('ingest', '*.thumbnails.npy') / 160
  assert thumbnails == pytest.approx(
      ingested.written / ingested.images - 200, rel=0.1)


@pytest.mark.parametrize('text', [
    'v9:2x2', 'v5e', 'v5e:0x2', 'cpu:', 'cpu:two', 'H100:8'])
def test_machines_that_are_not_known_are_named(text):
  with pytest.raises(errors.UserError, match=f'--machine={text} is not under'):
    machines.parse(text, recipe.Settings().plan)


@pytest.mark.parametrize('count', ['many', '0', '-3', 'nan', '1e15'])
def test_numbers_that_are_none_are_named(count):
  with pytest.raises(errors.UserError, match='is no number of images'):
    curation.plan(lvd142m.get_config(), count, 'cpu:4')
