"""The segments of a run: steps of one program, and of one set of state.

Gram anchoring begins at a step, and every step may draw another size of
crops. All programs of a run are known, and compiled, before its first step.
"""

import dataclasses

from dinojax.data import pipeline
from dinojax.train import recipe as recipe_lib


@dataclasses.dataclass(frozen=True, order=True)
class Segment:
  """What tells one program of a run from another."""

  is_anchored: bool
  size: int  # of crops.sizes
  # For its words alone: they follow from `size`.
  global_px: int = dataclasses.field(default=0, compare=False)
  local_px: int = dataclasses.field(default=0, compare=False)

  def __str__(self) -> str:
    return f'{self.global_px} and {self.local_px} px' + (
        ' with Gram anchoring' if self.is_anchored else '')


def at(recipe: recipe_lib.Recipe, step: int) -> Segment:
  """The segment of a step."""
  s = recipe.settings
  return _segment(recipe, is_anchored(recipe, step),
                  pipeline.size_at(s.crops, s.seed, step))


def is_anchored(recipe: recipe_lib.Recipe, step: int) -> bool:
  """Whether a step has the Gram loss."""
  return recipe.settings.gram.loss_weight > 0 and step >= recipe.gram_start


def _segment(recipe: recipe_lib.Recipe, anchored: bool, size: int) -> Segment:
  crops = recipe.settings.crops.of_size(size)
  return Segment(anchored, size, crops.global_px, crops.local_px)


def between(recipe: recipe_lib.Recipe, start: int,
            end: int) -> list[Segment]:
  """Every segment that steps from `start` to before `end` may be of."""
  entries = recipe.settings.crops.sizes
  sizes = [i for i, entry in enumerate(entries) if entry[3] > 0] or [0]
  anchored = sorted({is_anchored(recipe, step)
                     for step in (start, max(end - 1, start))})
  return [_segment(recipe, a, size) for a in anchored for size in sizes]


def heaviest(recipe: recipe_lib.Recipe) -> Segment:
  """The segment that needs most: the largest crops, and all losses."""
  entries = recipe.settings.crops.sizes
  size = max(range(len(entries)), default=0,
             key=lambda i: (entries[i][0], entries[i][1]))
  return _segment(recipe, recipe.settings.gram.loss_weight > 0, size)


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
