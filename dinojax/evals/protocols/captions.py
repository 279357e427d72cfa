"""Retrieval between images and captions, both ways.

Source: retrieval on COCO and Flickr30k, as CLIP and dino.txt measure it.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from dinojax.core import fields
from dinojax.data import captions
from dinojax.evals import aligned
from dinojax.evals import aligned_heads
from dinojax.evals import protocol
from dinojax.evals.protocols import zero_shot
from dinojax.features import preprocessing

TITLE = 'retrieval between images and captions, R@1, R@5, R@10'
COST = 'test once'
PIXELS = lambda settings: settings.crop_px
ROLES = {'test': protocol.Role(
    opens=captions.open_captions, what='images with captions, such as '
    'csv:FILE, coco:FILE.json?images=DIR, tar:GLOB or img2dataset:DIR')}
NEEDS = zero_shot.NEEDS


@dataclasses.dataclass(frozen=True)
class Settings:
  """Retrieval between images and captions with a head of text alignment."""

  # Head of text alignment: the folder of one that was trained, or published
  # files.
  head: str | None = None
  # Vocabulary of published heads, clip:FILE; None: that of the head's folder.
  tokenizer: str | None = None
  test: tuple[str, ...] = ()  # Images with captions, each set alone.
  resize_px: fields.Positive = 256  # Length of the short side.
  crop_px: fields.Positive = 224  # Side of the square in the centre.


def check(settings: Settings, config: Any):
  """Refuses squares that are no whole patches.

  Raises:
    UserError: such squares.
  """
  zero_shot.check_squares('captions', settings, config)


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Images that go through the backbone."""
  del settings
  return sizes['test']


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """Recalls of every test set.

  Raises:
    UserError: a head that does not fit.
  """
  model = aligned_heads.read(settings.head, job.model, settings.tokenizer)
  sizes = preprocessing.Preprocessing(settings.resize_px, settings.crop_px)
  out = []
  for test in job.sets['test']:
    rows = aligned.recalls(model, test, sizes, job.reading, job.progress)
    out.append(protocol.Measured(
        test.spec, rows, aligned.recall_scores, {
            'captions': int((rows['text_rank'] >= 0).sum()),
            'head': settings.head}))
  return out
