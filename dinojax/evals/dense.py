"""Maps of images by heads on a frozen backbone, of segmentation and depth.

Worker threads cut views of an image into windows; windows of all images of a
group are lists of fixed length, by their shape, that go through backbone and
heads on all devices; a device of each process makes maps of their predictions,
see windows. Images are dealt out to processes, whose lists are as many.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.augment import photometric
from dinojax.core import errors
from dinojax.core import tree
from dinojax.data import pipeline
from dinojax.evals import protocol
from dinojax.evals import views as views_lib
from dinojax.evals import windows as windows_lib
from dinojax.evals.sets import dense as sets
from dinojax.features import spec as spec_lib
from dinojax.features import stream
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes
from dinojax.probes.tasks import dense as task_lib

MAX_SHAPES = 8  # that a protocol compiles
_UNIT_PX = 32  # of the canvas that maps are made on
_CHECKED = 3  # items whose values are looked at before work begins

Size = tuple[int, int]  # rows and columns


def sizes(source: Any, job: protocol.Job) -> list[Size | None]:
  """Rows and columns of all images, from their headers; None: unreadable.

  Values of the first few maps are looked at as well.

  Raises:
    UserError: a map of another size than its image, or of wrong values.
  """
  out: list[Size | None] = [None] * len(source)
  for row in pipeline.items_in_order(
      source, _size, num_threads=job.reading.num_threads):
    if not row['problem']:
      out[row['index']] = row['size']
  if not any(out):
    raise errors.UserError(
        f'none of the {len(source)} images of {source.spec} can be read')
  for index in [i for i, size in enumerate(out) if size][:_CHECKED]:
    source[index].map()
  return out


def _size(pair: sets.Pair) -> dict:
  size, of_map = pair.sizes()
  sets.check_sizes(pair, size, of_map)
  if pair.cut is not None:
    left, top, right, bottom = pair.cut(size)
    size = right - left, bottom - top
  return {'size': size[::-1]}


@dataclasses.dataclass(frozen=True)
class Shapes:
  """Shapes of what is compiled for the views of some images.

  Attributes:
    windows: shapes of windows.
    canvas: rows and columns of maps, the largest of all.
    grids: rows and columns of patches of each view, the most of all.
  """

  windows: tuple[Size, ...]
  canvas: Size
  grids: tuple[Size, ...]

  @classmethod
  def of(cls, views: views_lib.Views, images: Sequence[Size],
         tokens: Callable[[Size], Size], name: str,
         fix: str = '') -> 'Shapes':
    """The shapes for images of these sizes.

    Args:
      views: views that are averaged.
      images: rows and columns of every image.
      tokens: rows and columns of the predictions of a window of a shape.
      name: the protocol.
      fix: how all images get one size, for messages; '': by its `size`.

    Raises:
      UserError: more than are compiled for a protocol.
    """
    images = sorted(set(images))
    shapes = sorted({shape for size in images for shape in views.counts(size)})
    if len(shapes) + 1 > MAX_SHAPES:
      raise errors.UserError(
          f'{name}: images and views have windows of {len(shapes)} shapes, '
          f'and at most {MAX_SHAPES - 1} are compiled: give all images one '
          f'size, {fix or f"such as --config.{name}.size=(480,640)"}, or '
          'fewer ratios')
    grids = []
    for i in range(len(views.kinds)):
      each = [tuple(
          len(first) * count for first, count in zip(
              views.windows.starts(views.sizes(size)[i]),
              tokens(views.windows.shape(views.sizes(size)[i])), strict=True))
              for size in images]
      grids.append(tuple(max(grid[axis] for grid in each)
                         for axis in range(2)))
    canvas = tuple(
        -(-max(size[axis] for size in images) // _UNIT_PX) * _UNIT_PX
        for axis in range(2))
    return cls(tuple(shapes), canvas, tuple(grids))


class Maps:
  """Heads that make maps, on all devices."""

  def __init__(self, job: protocol.Job, task: Any, views: views_lib.Views, *,
               is_class: bool, at_once: int):
    """Plans nothing yet: shapes follow from the images.

    Args:
      job: the backbone, and how images are read.
      task: the task of the heads.
      views: views that are averaged.
      is_class: True: maps are of classes, else of values.
      at_once: windows that go through the backbone at a time.
    """
    self.job, self.task, self.views, self.is_class = job, task, views, is_class
    devices = job.model.mesh.size
    self._at_once = -(-at_once // devices) * devices
    self._program = jax.jit(
        functools.partial(_predict, job.model.net, task),
        compiler_options=mesh_lib.compiler_options(job.model.mesh))
    if job.nested:  # evaluations within a run compile once
      self._program = job.nested.programs.setdefault(
          f'maps of {task}', self._program)
    self._grids: dict[Size, Size] = {}
    self.shapes: Shapes | None = None

  @property
  def num_compiled(self) -> int:
    """Programs that were compiled for the backbone with heads."""
    return self._program._cache_size()

  def plan(self, images: Sequence[Size | None], name: str, fix: str = ''):
    """Fixes the shapes for images of these sizes; see Shapes.of.

    Raises:
      UserError: see Shapes.of.
    """
    self.shapes = Shapes.of(
        self.views, [size for size in images if size], self.grid,
        name, fix)

  def plan_more(self, images: Sequence[Size]):
    """Makes the grids wide enough for other images, such as some to show."""
    more = Shapes.of(self.views, images, self.grid, 'show') if images else None
    if more is not None and self.shapes is not None:
      self.shapes = Shapes(
          tuple(sorted({*self.shapes.windows, *more.windows})),
          tuple(map(max, self.shapes.canvas, more.canvas)),
          tuple(tuple(map(max, *both)) for both in zip(
              self.shapes.grids, more.grids, strict=True)))

  def grid(self, shape: Size) -> Size:
    """Rows and columns of the predictions of a window of a shape."""
    if shape not in self._grids:
      mesh = self.job.model.mesh
      with mesh_lib.activate(mesh):
        head = jax.eval_shape(lambda: self.task.init(
            jax.random.key(0), self.task.choices[task_lib.CHOICE].widths(
                self.job.model.config), task_lib.CHOICE))
        stack = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
            (1, *x.shape), x.dtype), head)
        images = jax.ShapeDtypeStruct(
            (mesh.size, *shape, 3), jnp.uint8,
            sharding=jax.NamedSharding(mesh, mesh_lib.ROWS))
        out = jax.eval_shape(
            functools.partial(_predict, self.job.model.net, self.task),
            self.job.model.params, stack, images)
      self._grids[shape] = out.shape[2:4]
    return self._grids[shape]

  def of(self, source: Any, images: Sequence[Size | None], heads: tree.Tree,
         *, counts: bool = True) -> Iterator[tuple[dict, np.ndarray]]:
    """(item, maps [s, y, x, …]) of this process's readable items, in order.

    Args:
      source: the set.
      images: sizes of its images, see `sizes`.
      heads: stack of parameters and statistics.
      counts: False: the images do not move the bar.
    """
    mesh = self.job.model.mesh
    count, place = jax.process_count(), jax.process_index()
    each = self._at_once // count
    known = [i for i, size in enumerate(images) if size]
    rows = pipeline.items_in_order(
        source, views_lib.Prepare(self.views), indices=known[place::count],
        ahead=2 * self.job.reading.num_threads,
        num_threads=self.job.reading.num_threads,
        num_workers=self.job.reading.num_workers)
    for start in range(0, len(known), each * count):
      group = known[start:start + each * count]
      items = list(itertools.islice(rows, len(group[place::count])))
      values = self._group(
          items, [[images[i] for i in group[p::count]] for p in range(count)],
          heads, mesh)
      bad = [row for row in items if row['problem']]
      stream.warn(bad, source)
      for row in items:
        if not row['problem']:
          yield row, self._map(row, values[row['index']])
      if counts:
        self.job.progress(len(group) * len(self.views.kinds))

  def _group(self, items: list[dict], shares: list[list[Size]],
             heads: tree.Tree, mesh: Any) -> Mapping[int, list[np.ndarray]]:
    """Predictions [r, s, y, x, k] of every view of some items, by index."""
    each = self._at_once // len(shares)
    out: dict[int, list] = {row['index']: [None] * len(self.views.kinds)
                            for row in items}
    for shape in self.shapes.windows:
      waiting = [(row['index'], view, some) for row in items
                 if not row['problem']
                 for view, some in enumerate(row['windows'])
                 if some.shape[1:3] == shape]
      # As many lists on every process, whatever its images are like.
      most = max(sum(self.views.counts(size).get(shape, 0) for size in share)
                 for share in shares)
      pixels = np.concatenate([
          np.zeros((0, *shape, 3), np.uint8), *(w[2] for w in waiting)])
      results = []
      for start in range(0, most, each):
        some = pixels[start:start + each]
        # Rows that are no window are black, and not looked at again.
        full = np.zeros((each, *shape, 3), np.uint8)
        full[:len(some)] = some
        with mesh_lib.activate(mesh):
          results.append((len(some), self._program(
              self.job.model.params, heads,
              processes.to_devices(full, mesh))))
      values = [stream.own_rows(x)[:n] for n, x in results]
      if not waiting:
        continue
      values, place = np.concatenate(values), 0
      for index, view, some in waiting:
        out[index][view] = values[place:place + len(some)]
        place += len(some)
    return out

  def _map(self, row: dict, values: list[np.ndarray]) -> np.ndarray:
    """[s, y, x] classes, or [s, y, x, k] values, of an item."""
    size, shapes = row['size'], self.shapes
    views = []
    for (_, flip), view_px, (rows, columns), predicted in zip(
        self.views.kinds, self.views.sizes(size), shapes.grids, values,
        strict=True):
      starts = self.views.windows.starts(view_px)
      grid = windows_lib.side_by_side(predicted, len(starts[0]))
      whole = np.zeros((grid.shape[0], rows, columns, grid.shape[-1]),
                       np.float32)
      whole[:, :grid.shape[1], :grid.shape[2]] = grid
      axes = [np.zeros((canvas, n), np.float32) for canvas, n in zip(
          shapes.canvas, (rows, columns), strict=True)]
      for axis, first in enumerate(starts):
        part = self._matrix(
            view_px, axis, first, size[axis], flip and axis == 1,
            predicted.shape[2 + axis])
        axes[axis][:part.shape[0], :part.shape[1]] = part
      views.append((whole, *axes))
    at_once = windows_lib.rows_at_once(
        *shapes.canvas, views[0][0].shape[-1])
    return np.stack([np.asarray(windows_lib.assembled(
        tuple((grid[i], *axes) for grid, *axes in views),
        num_rows=at_once, is_class=self.is_class,
        softmax=self.is_class and self.views.softmax and len(views) > 1))[
            :size[0], :size[1]]
                     for i in range(len(views[0][0]))])

  def _matrix(self, view_px: Size, axis: int, first: Sequence[int],
              out_px: int, mirrored: bool, tokens: int) -> np.ndarray:
    """See windows.matrix; of whole views straight to the result, if asked."""
    window_px = self.views.windows.shape(view_px)[axis]
    if self.views.direct and len(first) == 1:
      out = self.task.pixels.matrix(tokens, window_px, out_px)
      return out[::-1] if mirrored else out
    return windows_lib.matrix(
        view_px[axis], window_px, first,
        self.task.pixels.matrix(tokens, window_px), out_px, mirrored)


def _predict(net: Any, task: Any, params: tree.Tree, heads: tree.Tree,
             images: jax.Array) -> jax.Array:
  """[r, s, y, x, k] predictions of windows by a stack of heads."""
  images = task.pixels.fit(photometric.normalize(
      images, task.pixels.mean, task.pixels.std))
  features = net.apply(params, images, functools.partial(
      spec_lib.compute, specs=dict(task.choices)))
  out = jax.lax.map(lambda head: task.predict(task.outputs(
      head, features[task_lib.CHOICE], {'image': images}, None)[0]), heads)
  return jnp.moveaxis(out, 0, 1)


def replicated(heads: tree.Tree, mesh: Any) -> tree.Tree:
  """A stack of heads on every device."""
  everywhere = jax.NamedSharding(mesh, jax.P())
  return jax.tree.map(lambda x: jax.make_array_from_callback(
      x.shape, everywhere, lambda index, x=x: x[index]),
                      jax.tree.map(np.asarray, heads))


def num_heads(heads: tree.Tree) -> int:
  """Number of the heads of a stack."""
  return len(jax.tree.leaves(heads['params'])[0])


def columns(maps: Maps, parts: Sequence[dict]) -> protocol.Rows:
  """Rows of all processes, in data order.

  Args:
    maps: gave the rows.
    parts: columns with `index`, of this process's items.
  """
  return stream.together(maps.job.model.mesh, parts)
