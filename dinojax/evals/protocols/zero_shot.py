"""Zero-shot classification: the class whose texts are nearest to an image.

Source: the evaluation of dino.txt, with the prompt ensembles of CLIP.
Differs: sentences are ours unless a file gives others; the published list is
  part of open_clip (MIT).
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from dinojax.core import errors
from dinojax.core import fields
from dinojax.evals import aligned
from dinojax.evals import aligned_heads
from dinojax.evals import class_texts
from dinojax.evals import protocol
from dinojax.evals import zero_shot
from dinojax.features import preprocessing
from dinojax.metrics import classification

TITLE = 'zero-shot accuracy, classes as texts'
COST = 'test once'
PIXELS = lambda settings: settings.crop_px
ROLES = {'test': protocol.Role('test')}
NEEDS = {'head': aligned_heads.EXAMPLE}


@dataclasses.dataclass(frozen=True)
class Settings:
  """Zero-shot classification with a head of text alignment."""

  # Head of text alignment: the folder of one that was trained, or published
  # files.
  head: str | None = None
  # Vocabulary of published heads, clip:FILE; None: that of the head's folder.
  tokenizer: str | None = None
  templates: str | None = None  # File of sentences with {}; None: ours.
  names: str | None = None  # File of the names of the classes; None: theirs.
  resize_px: fields.Positive = 512  # Length of the short side.
  crop_px: fields.Positive = 512  # Side of the square in the centre.


def check(settings: Settings, config: Any):
  """Refuses squares that are no whole patches.

  Raises:
    UserError: such squares.
  """
  check_squares('zero_shot', settings, config)


def check_squares(name: str, settings: Any, config: Any):
  """Refuses squares that are no whole patches, or larger than images.

  Args:
    name: name of the section.
    settings: its values, resize_px and crop_px.
    config: the backbone's.

  Raises:
    UserError: such squares.
  """
  side, crop = config.side_px, settings.crop_px
  if crop % side:
    raise errors.UserError(
        f'{name}.crop_px={crop} is no whole number of patches of {side} '
        f'pixels: set {name}.crop_px={max(round(crop / side), 1) * side}')
  if crop > settings.resize_px:
    raise errors.UserError(
        f'{name}.crop_px={crop} is larger than {name}.resize_px='
        f'{settings.resize_px}: set that to {crop} or more')


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Images that go through the backbone."""
  del settings
  return sizes['test']


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """Accuracies of every test set.

  Raises:
    UserError: a head that does not fit, sets without labels, names that are
      not as many as classes.
  """
  sentences = class_texts.sentences(settings.templates)
  tests = [protocol.labelled(test, 'data.test') for test in job.sets['test']]
  names = [class_texts.names(settings.names, test.classes, test.spec)
           for test in tests]
  model = aligned_heads.read(settings.head, job.model, settings.tokenizer)
  return [_measured(job, settings, model, *each, sentences)
          for each in zip(tests, names, strict=True)]


def _measured(job: protocol.Job, settings: Settings, model: aligned.Aligned,
              test: Any, names: tuple[str, ...], sentences: tuple[str, ...]
              ) -> protocol.Measured:
  """Rows of a test set."""
  classes = aligned.class_vectors(model, names, sentences)
  table = model.table(test, preprocessing.Preprocessing(
      settings.resize_px, settings.crop_px), job.reading, job.progress)
  logits = np.asarray(zero_shot.logits(table['image'], classes))
  return protocol.classified(
      test, table['index'], classification.best(logits, 5), table['label'],
      test.classes, {'sentences': len(sentences), 'head': settings.head})
