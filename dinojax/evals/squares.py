"""Images in squares, through backbone and head: what queries predict.

Worker threads bring every image to a square, its long side whole, black below
or to the right of it; squares go through the devices of all processes in lists
of one length, and each process makes answers for its own images.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.core import tree
from dinojax.data import pipeline
from dinojax.evals import letterbox
from dinojax.evals import protocol
from dinojax.evals import segments
from dinojax.features import spec as spec_lib
from dinojax.features import stream
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes

_BLACK = (0.0, 0.0, 0.0)


class Answer(NamedTuple):
  """Predictions for an image.

  Attributes:
    classes: [q, k + 1] logits, the last one of no object.
    masks: [q, y, x] logits of the square.
    square: where the image lies in it.
  """

  classes: np.ndarray
  masks: np.ndarray
  square: letterbox.Letterbox

  def at_image(self, chosen: np.ndarray) -> np.ndarray:
    """[r, y, x] logits of some queries at the size of the image."""
    return segments.at_image(
        self.masks[chosen], self.square.side, self.square.inner[::-1],
        self.square.size[::-1])

  def panoptic(self, stuff: Sequence[int], threshold: float,
               overlap: float) -> np.ndarray:
    """[y, x, 2] class and segment, see segments.panoptic."""
    some = segments.kept(self.classes, threshold)
    return segments.panoptic(
        self.classes[some], self.at_image(some), stuff, threshold=threshold,
        overlap=overlap)

  def instances(self, top: int = segments.TOP) -> list[segments.Instance]:
    """Objects, the best first, see segments.instances."""
    some = segments.likeliest(self.classes, top)
    return segments.instances(
        self.classes[some], self.at_image(some), top=top)


@dataclasses.dataclass(frozen=True)
class Prepare:
  """Makes an item ready: its square, its size, and what is true of it.

  Attributes:
    side: side of the square, in pixels.
    flip: True mirrors the image.
  """

  side: int
  flip: bool = False

  def __call__(self, pair: Any) -> dict:
    picture, truth = pair.decoded()
    square = letterbox.Letterbox(picture.size, self.side)
    if self.flip:
      picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return {'size': picture.size, 'truth': truth, 'square': square.pixels(
        picture, _BLACK, Image.Resampling.BILINEAR)}


class Squares:
  """A head of queries, on all devices."""

  def __init__(self, job: protocol.Job, task: Any, side: int, at_once: int,
               *, flip: bool = False):
    """Compiles nothing yet.

    Args:
      job: the backbone, and how images are read.
      task: the task of the head: what it makes of images in squares is its
        `framed`, and what it answers its `inferred`.
      side: side of the squares, in pixels.
      at_once: images that go through the backbone at a time.
      flip: True mirrors the images.
    """
    self.job, self.task, self.side, self.flip = job, task, side, flip
    mesh = job.model.mesh
    self._at_once = -(-at_once // mesh.size) * mesh.size
    self._program = jax.jit(
        functools.partial(_predict, job.model.net, task),
        compiler_options=mesh_lib.compiler_options(mesh))
    if job.nested:  # evaluations within a run compile once
      self._program = job.nested.programs.setdefault(
          f'squares of {task}', self._program)

  def of(self, source: Any, head: tree.Tree, *,
         indices: Sequence[int] | None = None,
         counts: bool = True
         ) -> Iterator[tuple[dict, Any, letterbox.Letterbox]]:
    """Item, predictions and square of this process's readable items, in order.

    Args:
      source: items whose `decoded` gives an image and what is true of it.
      head: parameters and statistics.
      indices: items; None: all.
      counts: False: the images do not move the bar.
    """
    mesh = self.job.model.mesh
    indices = range(len(source)) if indices is None else indices
    count, place = jax.process_count(), jax.process_index()
    each = self._at_once // count
    rows = pipeline.items_in_order(
        source, Prepare(self.side, self.flip), indices=indices[place::count],
        ahead=2 * self.job.reading.num_threads,
        num_threads=self.job.reading.num_threads,
        num_workers=self.job.reading.num_workers)
    on_mesh = jax.device_put(head, jax.NamedSharding(mesh, jax.P()))
    for start in range(0, len(indices), each * count):
      group = indices[start:start + each * count]
      items = list(itertools.islice(rows, len(group[place::count])))
      stream.warn([row for row in items if row['problem']], source)
      pixels = np.zeros((each, self.side, self.side, 3), np.uint8)
      extent = np.full((each, 2), self.side, np.int32)
      for i, row in enumerate(items):
        if not row['problem']:
          pixels[i] = row['square']
          extent[i] = letterbox.Letterbox(row['size'], self.side).inner[::-1]
      with mesh_lib.activate(mesh):
        out = self._program(self.job.model.params, on_mesh, *(
            processes.to_devices(x, mesh) for x in (pixels, extent)))
      out = jax.tree.map(stream.own_rows, out)
      for i, row in enumerate(items):
        if not row['problem']:
          yield row, jax.tree.map(
              lambda leaf, i=i: leaf[i], out), letterbox.Letterbox(
                  row['size'], self.side)
      if counts:
        self.job.progress(len(group))


def _predict(net: Any, task: Any, params: tree.Tree, head: tree.Tree,
             levels: jax.Array, extent: jax.Array) -> tree.Tree:
  """Answers of a task for squares, of which rows and columns are image."""
  batch = task.framed(levels, extent)
  features = net.apply(params, batch['image'], functools.partial(
      spec_lib.compute, specs=dict(task.choices)))
  choice, = task.choices
  outputs, _ = task.outputs(head, features[choice], batch, None)
  return task.inferred(outputs, batch)


def shown(count: int, pictures: int) -> set[int]:
  """Images that are drawn, evenly over those of the first process."""
  ours = range(0, count, jax.process_count())
  return {ours[int(i)] for i in np.linspace(
      0, len(ours) - 1, min(pictures, len(ours))).round()}


def looked_at(source: Any, job: protocol.Job, first: int = 3) -> int:
  """Number of readable images, by their headers; the first are decoded.

  Raises:
    UserError: none can be read, or segments that do not fit their images.
  """
  good = [row['index'] for row in pipeline.items_in_order(
      source, _header, num_threads=job.reading.num_threads)
          if not row['problem']]
  if not good:
    raise errors.UserError(
        f'none of the {len(source)} images of {source.spec} can be read')
  for index in good[:first]:
    source[index].decoded()
  return len(good)


def _header(pair: Any) -> dict:
  return {'size': pair.header()}
