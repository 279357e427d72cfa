"""Classification of videos by an attentive probe over their frames.

Source: DINOv3's video classification, after V-JEPA 2: 16 frames four apart,
  rates and weight decays side by side, two parts of a video times three
  squares of a frame at test.
Differs: views are averaged as probabilities, which neither paper settles.
"""

from collections.abc import Mapping
import dataclasses
import functools
import itertools
import logging
from typing import Any

import jax
import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.core import fields
from dinojax.core import text
from dinojax.data import crops
from dinojax.data import examples
from dinojax.data import images
from dinojax.data import parts
from dinojax.engine import optimizer
from dinojax.engine import schedules
from dinojax.evals import items
from dinojax.evals import protocol
from dinojax.evals import training
from dinojax.evals.sets import clips
from dinojax.metrics import classification
from dinojax.probes import fit as fit_lib
from dinojax.probes.tasks import attend

TITLE = 'classes of videos, by attention over the tokens of their frames'
COST = '16 frames of a clip twenty times, and six views of a test clip'
_CLIPS = f'videos with classes, {clips.EXAMPLE}'
TRAINS = True  # heads
ROLES = {'train': protocol.Role(opens=clips.open_set, what=_CLIPS),
         'validation': protocol.Role(
             needed=False, opens=clips.open_set, what=_CLIPS),
         'test': protocol.Role(opens=clips.open_set, what=_CLIPS)}


@dataclasses.dataclass(frozen=True)
class Settings:
  """Attentive probe of videos."""

  train: str | None = None  # Set that the probe learns from.
  # Set by which a rate is chosen; None: every tenth clip of `train`.
  validation: str | None = None
  test: tuple[str, ...] = ()  # Sets that are measured.
  frames: fields.Positive = 16  # Frames of a clip.
  frame_step: fields.Positive = 4  # Frames of the video from one to the next.
  depth: fields.Positive = 4  # Blocks, the last of which is the query's.
  num_heads: fields.Positive = 16  # Heads of attention; they divide the width.
  learning_rates: tuple[fields.Above0, ...] = (1e-4, 5e-4, 1e-3, 5e-3)  # Rates.
  weight_decays: tuple[fields.NonNegative, ...] = (1e-3, 1e-2, 1e-1)  # Decays.
  heads_at_once: fields.Positive = 1  # Probes that are trained side by side.
  batch_size: fields.Positive = 64  # Clips of a step.
  epochs: fields.Above0 = 20.0  # Passes over the clips, …
  min_steps: fields.Positive = 200  # … but at least so many steps.
  warmup: fields.Unit = 0.1  # Part of the steps until the rate is highest.
  # Least and greatest area of a random crop, as parts of a frame.
  crop_scale: tuple[fields.Part, fields.Part] = (0.3, 1.0)
  # Probability of a mirrored clip; 0 where left and right have a meaning.
  flip_probability: fields.Unit = 0.5
  segments: fields.Positive = 2  # Parts of a test video that are seen.
  views: fields.Positive = 3  # Squares of a test frame, along its long side.

  def steps(self, count: int) -> int:
    """Length of training on so many clips."""
    return max(round(self.epochs * count / min(self.batch_size, count)),
               self.min_steps)


@dataclasses.dataclass(frozen=True)
class Cropped:
  """Makes a training clip: some frames, all cut alike, and its class."""

  frames: int
  step: int
  crop_px: int
  scale: tuple[float, float]
  flip: float

  def __call__(self, clip: clips.Clip,
               rng: np.random.Generator) -> dict[str, np.ndarray]:
    span = (self.frames - 1) * self.step + 1
    pictures = clip.read(lambda total: numbers(
        int(rng.integers(0, max(total - span, 0) + 1)), total, self.frames,
        self.step))
    spec = crops.Crops(
        global_px=self.crop_px, global_scale=self.scale, num_global=1,
        num_local=0, flip_probability=self.flip)
    cut, = crops.draw(pictures[0].size, rng, spec)['global']
    return {'image': np.stack([cut.of_image(picture) for picture in pictures]),
            'target': np.int32(clip.label)}


def numbers(start: int, total: int, count: int, step: int) -> list[int]:
  """Frames from a start; the last one is repeated where the video ends."""
  return [min(start + i * step, total - 1) for i in range(count)]


def seen(clip: clips.Clip, settings: Settings, crop_px: int) -> np.ndarray:
  """[w, v, y, x, 3] uint8 views of a test clip: parts times squares.

  Raises:
    BadImage: it cannot be read.
  """
  count, step = settings.frames, settings.frame_step
  span = (count - 1) * step + 1

  def pick(total: int) -> list[int]:
    part = total / settings.segments
    starts = [max(int((i + 0.5) * part - span / 2), 0)
              for i in range(settings.segments)]
    return [n for start in starts for n in numbers(
        min(start, max(total - span, 0)), total, count, step)]

  out = []
  for picture in clip.read(pick):
    short = crop_px / min(picture.size)
    size = tuple(max(round(n * short), crop_px) for n in picture.size)
    pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    places = [(np.linspace(0, n - crop_px, settings.views).round().astype(int)
               if settings.views > 1 else np.array([(n - crop_px) // 2]))
              for n in size]
    out.append([pixels[y:y + crop_px, x:x + crop_px]
                for x, y in zip(*places, strict=True)])
  whole = np.array(out).reshape(  # [segments, frames, views, …]
      settings.segments, count, settings.views, crop_px, crop_px, 3)
  return whole.swapaxes(1, 2).reshape(-1, count, crop_px, crop_px, 3)


def check(settings: Settings, config: Any):
  """Refuses heads that do not divide the width.

  Raises:
    UserError: they do not.
  """
  width = config.layer_dims[-1]
  if width % settings.num_heads:
    fits = [n for n in range(1, settings.num_heads + 1) if not width % n]
    raise errors.UserError(
        f'video.num_heads={settings.num_heads} does not divide the width of '
        f'this model, {width}: set it to {fits[-1]}')


def passes(settings: Settings, sizes: Mapping[str, int]) -> int:
  """Frames that go through the backbone."""
  train = sizes['train']
  held_out = sizes['validation'] or train // 10
  views = settings.segments * settings.views
  return settings.frames * (
      settings.steps(train) * min(settings.batch_size, train)
      + views * (held_out + sizes['test']))


def run(job: protocol.Job, settings: Settings) -> list[protocol.Measured]:
  """Accuracy of the probe that is best on validation clips.

  Raises:
    UserError: sets of other classes, or of which no clip can be read.
    Stopped: a signal ended the training, whose step is saved.
  """
  train, = job.sets['train']
  classes = train.classes
  tests = [(test, protocol.matched(job, train, test))
           for test in job.sets['test']]
  if job.sets['validation']:
    held_out, = job.sets['validation']
  else:
    train, held_out = (parts.Part(part, train) for part in parts.PARTS)
  task = attend.Attend(len(classes), settings.num_heads, settings.depth)
  grid = list(itertools.product(
      settings.learning_rates, settings.weight_decays))
  heads, diverged = _trained(job, settings, task, grid, train)
  model = items.on_own_devices(job.model)
  answer = _Answer(job, model, settings, task, heads)
  rows = _known(answer(held_out), protocol.matched(job, train, held_out),
                held_out.spec)
  right = (rows['scores'].argmax(-1) == rows['label'][:, None]).mean(0)
  best = int((right - 2.0 * diverged).argmax())
  facts = {'lr': grid[best][0], 'weight decay': grid[best][1],
           'heads': len(grid), 'validation top-1': 100 * float(right[best])}
  answer = dataclasses.replace(
      answer, heads=jax.tree.map(lambda x: x[best:best + 1], heads))
  out = []
  for test, matching in tests:
    rows = _known(answer(test), matching, test.spec)
    out.append(protocol.classified(
        test, rows['index'], classification.best(rows['scores'][:, 0], 5),
        rows['label'], classes, facts | {
            'unreadable': len(test) - len(rows['index'])}))
  return out


def _known(rows: protocol.Rows, matching: Any, name: str) -> protocol.Rows:
  """Rows of clips that could be read, whose class training knows.

  Raises:
    UserError: there is none.
  """
  rows = {key: column[rows['readable']] for key, column in rows.items()}
  if not len(rows['index']):
    raise errors.UserError(f'none of the clips of {name} can be read')
  return protocol.in_common(rows, matching.of_test(rows['label']), name)


def _trained(job: protocol.Job, settings: Settings, task: attend.Attend,
             grid: list[tuple[float, float]], train: examples.Items
             ) -> tuple[dict, np.ndarray]:
  """Parameters of all probes on the host, and which of them diverged."""
  batches = training.from_images(job, train, Cropped(
      settings.frames, settings.frame_step, job.sizes.crop_px,
      settings.crop_scale, settings.flip_probability), settings.batch_size)
  steps = settings.steps(len(train))
  curve = schedules.cosine(
      1.0, 0.0, total_steps=steps, warmup_steps=round(settings.warmup * steps))
  rates, decays = zip(*grid, strict=True)
  fit = fit_lib.Fit(
      task, job.model, batches.shapes, sweep=fit_lib.Sweep(rates, decays),
      rule=optimizer.adamw(), schedule=lambda step: {'lr': curve(step)},
      heads_at_once=settings.heads_at_once)
  head = training.train(job, fit, batches, steps)['heads'][attend.CHOICE]
  return (jax.device_get(head['params']),
          np.asarray(head['counters']['in_row']) > 0)


@dataclasses.dataclass(frozen=True)
class _Answer:
  """Answers of a stack of probes to whole sets.

  Attributes:
    job: how clips are read.
    model: the backbone, on devices of this process.
    settings: settings of the protocol.
    task: the task of the probes.
    heads: their parameters.
  """

  job: protocol.Job
  model: Any
  settings: Settings
  task: attend.Attend
  heads: dict

  def __call__(self, source: clips.Clips) -> protocol.Rows:
    """scores [r, s, k], label, index and readable of every clip."""
    rows, _ = items.rows(
        len(source), lambda i: (self._row(source, i), {}),
        folder=items.place(self.job, source.spec), passed=self._count)
    return rows

  def _row(self, source: clips.Clips, index: int) -> protocol.Rows:
    clip = source[index]
    heads = len(jax.tree.leaves(self.heads)[0])
    scores = np.zeros((heads, self.task.num_classes), np.float32)
    try:
      scores = self._scores(
          seen(clip, self.settings, self.job.sizes.crop_px))
      readable = True
    except (images.BadImage, OSError) as error:
      logging.warning('%s: %s is left out: %s', *map(
          text.printable, (source.spec, clip.name, error)))
      readable = False
    self._count(index)
    return {'scores': scores[None], 'label': np.array([clip.label]),
            'index': np.array([index]), 'readable': np.array([readable])}

  def _count(self, index: int):
    del index  # all have as many
    self.job.progress(self.settings.frames * self.settings.segments
                      * self.settings.views)

  def _scores(self, views: np.ndarray) -> np.ndarray:
    """[s, k] mean probabilities of the views [w, v, y, x, 3]."""
    size, out = self.model.mesh.size, []
    for start in range(0, len(views), size):
      some = views[start:start + size]
      rows = np.zeros((size, *views.shape[1:]), np.uint8)
      rows[:len(some)] = some
      features = self.model.run(rows, dict(self.task.choices), pixels=True)
      tokens = np.asarray(features[attend.CHOICE][0]['patches'])[:len(some)]
      out.append(np.asarray(_logits(self.task, self.heads, tokens)))
    return np.asarray(attend.averaged(np.concatenate(out, axis=1)))


@functools.partial(jax.jit, static_argnums=0)
def _logits(task: attend.Attend, heads: dict, tokens: jax.Array) -> jax.Array:
  """[s, b, k] of a stack of probes, one after the other."""
  return jax.lax.map(lambda params: task.outputs(
      {'params': params, 'stats': {}}, [{'patches': tokens}], {}, None)[0],
                     heads)
