"""Open-vocabulary segmentation: patches named by the nearest of some texts.

Source: DINOv3's notebook of dino.txt; sliding windows, or the image whole.
Differs: its patches are the backbone's where its text speaks of the head's;
  here the head's are compared unless `tokens` says backbone.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

from einops import rearrange
import numpy as np
from PIL import Image

from dinojax.core import fields
from dinojax.evals import aligned
from dinojax.evals import aligned_heads
from dinojax.evals import class_texts
from dinojax.evals import dense_pictures
from dinojax.evals import items
from dinojax.evals import open_vocabulary
from dinojax.evals import protocol
from dinojax.evals.protocols import segmentation
from dinojax.evals.protocols import zero_shot
from dinojax.evals.sets import masks
from dinojax.metrics import segmentation as metrics

TITLE = 'open-vocabulary segmentation, mIoU'
COST = 'test images by windows'
PIXELS = lambda settings: settings.short_px
ROLES = {'test': protocol.Role(
    opens=masks.test, what='a set of masks whose classes have names, such as '
    'masks:DIR with classes.txt, or ade20k:DIR')}
NEEDS = zero_shot.NEEDS


@dataclasses.dataclass(frozen=True)
class Settings:
  """Open-vocabulary segmentation with a head of text alignment."""

  # Head of text alignment: the folder of one that was trained, or published
  # files.
  head: str | None = None
  # Vocabulary of published heads, clip:FILE; None: that of the head's folder.
  tokenizer: str | None = None
  test: tuple[str, ...] = ()  # Sets of masks, each alone.
  templates: str | None = None  # File of sentences with {}; None: ours.
  names: str | None = None  # File of the names of the classes; None: theirs.
  # Patches that are compared: after the head, or of the backbone.
  tokens: Literal['head', 'backbone'] = 'head'
  mode: Literal['slide', 'whole'] = 'slide'  # By windows, or at once.
  short_px: fields.Positive = open_vocabulary.SHORT_PX  # Of an image.
  window_px: fields.Positive = open_vocabulary.WINDOW_PX  # Side of a window.
  stride_px: fields.Positive = open_vocabulary.STRIDE_PX  # To the next window.
  windows_at_once: fields.Positive = fields.free(8)  # Windows at a time.
  pictures: fields.Natural = fields.free(6)  # Test images that are drawn.


def check(settings: Settings, config: Any):
  """Every ViT has patches; others are refused by the head."""
  del settings, config


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Images that go through the backbone."""
  del settings
  return sizes['test']


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """mIoU of every test set.

  Raises:
    UserError: a head that does not fit, or whose patches are not compared with
      texts; names that are not as many as classes.
  """
  sentences = class_texts.sentences(settings.templates)
  names = [class_texts.names(settings.names, test.classes, test.spec)
           for test in job.sets['test']]
  model = aligned_heads.read(
      settings.head, items.on_own_devices(job.model), settings.tokenizer)
  aligned.compares_patches(model, settings.head, settings.tokens)
  return [_measured(job, settings, model, *each, sentences) for each in zip(
      job.sets['test'], names, strict=True)]


def _measured(job: protocol.Job, settings: Settings, model: aligned.Aligned,
              test: Any, names: tuple[str, ...], sentences: tuple[str, ...]
              ) -> protocol.Measured:
  """Rows and pictures of a test set."""
  classes = aligned.class_vectors(model, names, sentences, of_patches=True)
  shown = {int(i) for i in np.linspace(
      0, len(test) - 1, min(settings.pictures, len(test))).round()}

  def measure(index: int):
    picture, truth = test[index].decoded()
    predicted = _predicted(model, picture, truth.shape, classes, settings)
    areas = metrics.areas(predicted, truth, len(test.classes))
    job.progress(1)
    columns = {name: areas[i][None] for i, name in enumerate(
        segmentation.COLUMNS)} | {'index': np.array([index])}
    return columns, {} if index not in shown else {
        f'test{index}': dense_pictures.panel(
            picture, truth, predicted, test.classes, None)}

  rows, pictures = items.rows(
      len(test), measure, folder=items.place(job, test.spec),
      passed=lambda item: job.progress(1))
  return protocol.Measured(
      test.spec, rows, segmentation.score, {
          'tokens': settings.tokens, 'mode': settings.mode,
          'sentences': len(sentences), 'head': settings.head},
      classes=test.classes, pictures=pictures)


def _predicted(model: aligned.Aligned, picture: Image.Image,
               size: tuple[int, int], classes: np.ndarray, settings: Settings
               ) -> np.ndarray:
  """[y, x] classes of an image."""
  side = model.config.side_px
  rows, columns = open_vocabulary.view_size(
      picture.size[::-1], settings.short_px)
  image = np.asarray(picture.resize(
      (columns, rows), Image.Resampling.BICUBIC))
  views = open_vocabulary.whole(image, side) if settings.mode == 'whole' else (
      open_vocabulary.slid(image, side, window_px=settings.window_px,
                           stride_px=settings.stride_px))
  unit = model.mesh.size
  each = -(-(settings.windows_at_once if settings.mode == 'slide' else 1)
           // unit) * unit
  name = 'patches' if settings.tokens == 'head' else 'backbone'
  parts = []
  for start in range(0, len(views.images), each):
    some = views.images[start:start + each]
    full = np.zeros((each, *some.shape[1:]), some.dtype)
    full[:len(some)] = some
    parts.append(np.asarray(model.run(full, patches=True)[name], np.float32)[
        :len(some)])
  patches = rearrange(np.concatenate(parts), 'r (y x) d -> r y x d',
                      y=views.images.shape[1] // side)
  return open_vocabulary.labels(open_vocabulary.scores(
      views, patches, classes), size)
