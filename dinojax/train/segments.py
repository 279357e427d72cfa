"""The segments of a run: steps of one program, and of one set of state.

Gram anchoring begins at a step, and every step may draw another size of
crops. All programs of a run are known, and compiled, before its first step.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from dinojax.data import pipeline
from dinojax.train import recipe as recipe_lib
from dinojax.train import state as state_lib


@dataclasses.dataclass(frozen=True, order=True)
class Segment:
  """What tells one program of a run from another."""

  is_anchored: bool
  size: int  # of crops.sizes

  def describe(self, recipe: recipe_lib.Recipe) -> str:
    """In words."""
    crops = recipe.settings.crops.of_size(self.size)
    text = f'{crops.global_px} and {crops.local_px} px'
    return text + (' with Gram anchoring' if self.is_anchored else '')


def at(recipe: recipe_lib.Recipe, step: int) -> Segment:
  """The segment of a step."""
  s = recipe.settings
  return Segment(s.gram.loss_weight > 0 and step >= recipe.gram_start,
                 pipeline.size_at(s.crops, s.seed, step))


def between(recipe: recipe_lib.Recipe, start: int,
            end: int) -> list[Segment]:
  """Every segment that steps from `start` to before `end` may be of."""
  entries = recipe.settings.crops.sizes
  sizes = [i for i, entry in enumerate(entries) if entry[3] > 0] or [0]
  anchored = sorted({at(recipe, step).is_anchored
                     for step in (start, max(end - 1, start))})
  return [Segment(a, size) for a in anchored for size in sizes]


def heaviest(recipe: recipe_lib.Recipe) -> Segment:
  """The segment that needs most: the largest crops, and all losses."""
  entries = recipe.settings.crops.sizes
  size = max(range(len(entries)), default=0,
             key=lambda i: (entries[i][0], entries[i][1]))
  return Segment(recipe.settings.gram.loss_weight > 0, size)


def recipe_of(recipe: recipe_lib.Recipe,
              segment: Segment) -> recipe_lib.Recipe:
  """What is trained in a segment."""
  if not recipe.settings.crops.sizes and (
      segment.is_anchored or not recipe.settings.gram.loss_weight):
    return recipe  # the same one, so that its step is traced once
  settings = recipe.settings.of_size(segment.size)
  students = {name: dataclasses.replace(
      one, settings=one.settings.of_size(segment.size))
              for name, one in recipe.students.items()}
  recipe = dataclasses.replace(
      recipe, settings=settings, students=students)
  if segment.is_anchored or not settings.gram.loss_weight:
    return recipe
  without = dataclasses.replace(settings.gram, loss_weight=0.0)
  return dataclasses.replace(
      recipe, gram=None, gram_refresh=None,
      settings=dataclasses.replace(settings, gram=without))


def enter(state: dict, recipe: recipe_lib.Recipe,
          anchor: Callable[[dict], dict] | None) -> dict:
  """The state as the segment of its next step needs it.

  Args:
    state: of the segment before, or of this one.
    recipe: of the segment.
    anchor: fills a Gram teacher of this shape; None: it is the EMA of now.
  """
  if recipe.gram is None or 'gram' in state:
    return state
  ema = state[state_lib.ema_part(state)]['backbone']
  return state | {
      'gram': anchor(ema) if anchor else jax.tree.map(jnp.copy, ema),
      'counters': state['counters'] | {
          'gram_refreshes': jax.tree.map(
              jnp.zeros_like, state['counters']['bad_images'])}}
