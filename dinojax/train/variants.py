"""The variants of a run: steps of one program, and of one set of state.

Gram anchoring begins at a step, and every step may draw another size of
crops. All programs of a run are known, and compiled, before its first step.
"""

import dataclasses

from dinojax.data import pipeline
from dinojax.train import method as method_lib


@dataclasses.dataclass(frozen=True, order=True)
class Variant:
  """Key of one program of a run: Gram anchoring or not, and sizes of crops."""

  is_anchored: bool
  size: int  # of crops.sizes
  # For its words alone: they follow from `size`.
  global_px: int = dataclasses.field(default=0, compare=False)
  local_px: int = dataclasses.field(default=0, compare=False)

  def __str__(self) -> str:
    return f'{self.global_px} and {self.local_px} px' + (
        ' with Gram anchoring' if self.is_anchored else '')


def at(method: method_lib.Method, step: int) -> Variant:
  """The variant of a step."""
  s = method.settings
  return _variant(method, is_anchored(method, step),
                  pipeline.size_at(s.crops, s.seed, step))


def is_anchored(method: method_lib.Method, step: int) -> bool:
  """Tells whether a step has the Gram loss."""
  return method.settings.gram.loss_weight > 0 and step >= method.gram_start


def _variant(method: method_lib.Method, anchored: bool, size: int) -> Variant:
  crops = method.settings.crops.of_size(size)
  return Variant(anchored, size, crops.global_px, crops.local_px)


def between(method: method_lib.Method, start: int,
            end: int) -> list[Variant]:
  """Every variant that steps from `start` to before `end` may be of."""
  entries = method.settings.crops.sizes
  sizes = [i for i, entry in enumerate(entries) if entry[3] > 0] or [0]
  anchored = sorted({is_anchored(method, step)
                     for step in (start, max(end - 1, start))})
  return [_variant(method, a, size) for a in anchored for size in sizes]


def heaviest(method: method_lib.Method) -> Variant:
  """The variant that needs most: the largest crops, and all losses."""
  entries = method.settings.crops.sizes
  size = max(range(len(entries)), default=0,
             key=lambda i: (entries[i][0], entries[i][1]))
  return _variant(method, method.settings.gram.loss_weight > 0, size)


def method_of(method: method_lib.Method,
              variant: Variant) -> method_lib.Method:
  """The method of a variant: with its crops, and its Gram loss or none."""
  if not method.settings.crops.sizes and (
      variant.is_anchored or not method.settings.gram.loss_weight):
    return method  # the same one, so that its step is traced once
  settings = method.settings.of_size(variant.size)
  students = {name: dataclasses.replace(
      student, settings=student.settings.of_size(variant.size))
              for name, student in method.students.items()}
  method = dataclasses.replace(
      method, settings=settings, students=students)
  if variant.is_anchored or not settings.gram.loss_weight:
    return method
  without = dataclasses.replace(settings.gram, loss_weight=0.0)
  return dataclasses.replace(
      method, gram=None, gram_refresh=None,
      settings=dataclasses.replace(settings, gram=without))
