"""Whole items, such as pairs and videos, dealt to processes.

Items of a protocol that differ in length cannot go through the devices of all
processes in step. Each process measures a part of them on its own devices,
and everybody gets all rows. An image is alone on its device, so that its
features are the same on any number of them.
"""

import collections
from collections.abc import Callable, Sequence
import hashlib
import io
import json
import re
import time

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

from dinojax.core import atomic
from dinojax.core import errors
from dinojax.core import tree
from dinojax.evals import protocol
from dinojax.features import backbone as backbone_lib
from dinojax.features import spec as spec_lib
from dinojax.parallel import mesh as mesh_lib
from dinojax.parallel import processes

Rows, Pictures = protocol.Rows, dict[str, np.ndarray]
_KEPT_MAPS = 64  # of the last images, on the device
# Beside the columns: pictures, the item of every row, and the items.
_PICTURE, _ITEM, _DONE = 'picture/', '(item)', '(done)'
_SAVE_S = 30.0  # seconds between two files


def share(count: int) -> range:
  """The items that this process measures, one after the other."""
  index, total = jax.process_index(), jax.process_count()
  return range(count * index // total, count * (index + 1) // total)


def place(job: protocol.Job, spec: str) -> epath.Path | None:
  """Folder that keeps the items of a set for a later start; None: nowhere."""
  if job.folder is None:
    return None
  return job.folder / f'items-{hashlib.sha256(spec.encode()).hexdigest()[:8]}'


def rows(count: int, measure: Callable[[int], tuple[Rows, Pictures]], *,
         folder: epath.Path | None = None,
         passed: Callable[[int], None] = lambda item: None
         ) -> tuple[Rows, Pictures]:
  """Rows of all items, in order, and their pictures; on every process.

  Args:
    count: number of items.
    measure: columns [r, …] of an item, the same for every item, and pictures
      by name. An error of one process ends all of them.
    folder: keeps what was measured every half minute, see `place`; a later
      start, of any number of processes, goes on.
    passed: called with every item that an earlier start has measured.

  Raises:
    UserError: what a process raised.
  """
  names, held = _held(folder)
  todo = [item for item in range(count) if item not in held]
  for item in held:
    passed(item)
  fresh, error = _Part(folder), None
  try:
    try:
      for number in share(len(todo)):
        fresh.add(todo[number], *measure(todo[number]))
    finally:  # also of an interrupt
      fresh.save()
  except Exception as raised:  # all kinds: the others wait
    error = raised
  processes.meet()
  failures = [text.decode() for text in processes.of_all(
      _sentence(error).encode())]
  if error is not None:
    raise error
  for index, text in enumerate(failures):
    if text:
      raise errors.UserError(f'process {index} failed: {text}')
  every = [_unpacked((folder / name).read_bytes()) for name in names]
  every += [_unpacked(part) for part in processes.of_all(fresh.packed())]
  pictures = {name.removeprefix(_PICTURE): pixels for part in every
              for name, pixels in part.items() if name.startswith(_PICTURE)}
  table = _joined([
      {name: column for name, column in part.items()
       if name != _DONE and not name.startswith(_PICTURE)}
      for part in every])
  order = np.argsort(table.pop(_ITEM, np.arange(0)), kind='stable')
  return {name: column[order] for name, column in table.items()}, pictures


def _held(folder: epath.Path | None) -> tuple[list[str], set[int]]:
  """Files of earlier starts as the first process sees them, and their items."""
  names = sorted(path.name for path in folder.glob('*.npz')) if (
      folder is not None and folder.exists()) else []
  names = json.loads(processes.of_first(json.dumps(names)))
  return names, {int(item) for name in names for item in _unpacked(
      (folder / name).read_bytes())[_DONE]}


class _Part:
  """Items that this process measures, written to a folder in between."""

  def __init__(self, folder: epath.Path | None):
    """Begins with none."""
    self._folder, self._saved = folder, time.monotonic()
    self._parts: list[Rows] = []
    self._pictures: Pictures = {}
    self._done: list[int] = []
    self._whole: list[bytes] = []  # what is written already

  def add(self, item: int, columns: Rows, pictures: Pictures):
    """Takes the columns and pictures of an item."""
    length = len(next(iter(columns.values()))) if columns else 0
    self._parts.append(columns | {_ITEM: np.full(length, item)})
    self._pictures |= pictures
    self._done.append(item)
    if time.monotonic() - self._saved > _SAVE_S:
      self.save()

  def save(self):
    """Writes what is new, where there is a folder."""
    if self._folder is None or not self._done:
      return
    self._folder.mkdir(parents=True, exist_ok=True)
    data = self._pack()
    atomic.write_bytes(self._folder / (
        f'{self._done[0]:08d}-{self._done[-1]:08d}.npz'), data)
    self._whole.append(data)
    self._parts, self._pictures, self._done = [], {}, []
    self._saved = time.monotonic()

  def packed(self) -> bytes:
    """Everything that was added."""
    parts = [_unpacked(data) for data in (*self._whole, self._pack())]
    done = np.concatenate([part.pop(_DONE) for part in parts])
    pictures = {name: part.pop(name) for part in parts for name in list(part)
                if name.startswith(_PICTURE)}
    return _packed(_joined(parts) | pictures | {_DONE: done})

  def _pack(self) -> bytes:
    return _packed(_joined(self._parts) | {
        _PICTURE + name: pixels for name, pixels in self._pictures.items()
    } | {_DONE: np.array(self._done, np.int64)})


def _sentence(error: Exception | None) -> str:
  if error is None:
    return ''
  kind = '' if isinstance(error, errors.UserError) else (
      f'{type(error).__name__}: ')
  return f'{kind}{error}' or type(error).__name__


def _joined(parts: Sequence[Rows]) -> Rows:
  """Columns of parts, one after the other; parts may have no columns."""
  parts = [part for part in parts if part]
  return {name: np.concatenate([part[name] for part in parts])
          for name in (parts[0] if parts else ())}


def _packed(arrays: Rows) -> bytes:
  # Names of columns are texts for people, and files in an npz have rules.
  file = io.BytesIO()
  np.savez(file, names=np.array(json.dumps(list(arrays))), **{
      f'array{i}': array for i, array in enumerate(arrays.values())})
  return file.getvalue()


def _unpacked(data: bytes) -> Rows:
  with np.load(io.BytesIO(data), allow_pickle=False) as file:
    names = json.loads(str(file['names']))
    return {name: file[f'array{i}'] for i, name in enumerate(names)}


def on_own_devices(model: backbone_lib.Backbone) -> backbone_lib.Backbone:
  """The backbone on the devices of this process alone; all must ask."""
  if jax.process_count() == 1:
    return model
  whole = lambda x: np.asarray(
      x.addressable_data(0) if x.is_fully_replicated
      else multihost_utils.process_allgather(x, tiled=True))
  return backbone_lib.Backbone(
      model.config, jax.tree.map(whole, model.params), mesh_lib.of_process(),
      mean=model.mean, std=model.std, value_range=model.value_range,
      source=model.source, family=model.family)


def _first(outputs: dict) -> tree.Tree:
  """The arrays of the one layer that is read."""
  layer, = outputs['item']
  return layer


def read(model: backbone_lib.Backbone, images: Sequence[np.ndarray],
         spec: spec_lib.FeatureSpec) -> list[dict[str, jax.Array]]:
  """Features of images of one size, on the first device.

  Args:
    model: a backbone on devices of this process.
    images: [y, x, c] uint8, at most as many as there are devices.
    spec: outputs of a single layer.
  """
  batch = np.zeros((model.mesh.size, *images[0].shape), np.uint8)
  batch[:len(images)] = np.stack(images)
  out = model.run(batch, {'item': spec}, pixels=True, reduce=_first)
  device, = mesh_lib.one_device()
  # Through the host: what lay on a mesh keeps its axes in its type, even on
  # another device.
  host = {name: np.asarray(x, np.float32) for name, x in out.items()}
  return [jax.device_put({name: x[i] for name, x in host.items()}, device)
          for i in range(len(images))]


class Maps:
  """Patch maps of images of one size; the last few are kept."""

  def __init__(self, model: backbone_lib.Backbone,
               load: Callable[[int], np.ndarray],
               spec: spec_lib.FeatureSpec, order: Sequence[int],
               progress: Callable[[int], None]):
    """Maps of images that are asked for in a known order.

    Args:
      model: a backbone on devices of this process.
      load: [y, x, c] uint8 of an image by its number.
      spec: 'map' of a single layer.
      order: numbers of the images, as they will be asked for.
      progress: gets the number of images that were read.
    """
    self._model, self._load, self._spec = model, load, spec
    self._waiting = collections.deque(order)
    self._progress = progress
    self._known: collections.OrderedDict[int, jax.Array] = (
        collections.OrderedDict())

  def __getitem__(self, number: int) -> jax.Array:
    """[y, x, d] float32."""
    if self._waiting and self._waiting[0] == number:
      self._waiting.popleft()
    if number not in self._known:
      wanted = [number]
      for other in self._waiting:
        if len(wanted) == self._model.mesh.size:
          break
        if other not in self._known and other not in wanted:
          wanted.append(other)
      maps = read(self._model, [self._load(i) for i in wanted], self._spec)
      for i, features in zip(wanted, maps, strict=True):
        self._known[i] = features['map']
      self._progress(len(wanted))
      while len(self._known) > _KEPT_MAPS + self._model.mesh.size:
        self._known.popitem(last=False)
    self._known.move_to_end(number)
    return self._known[number]


def name_of(text: str) -> str:
  """A text as a part of a file's name."""
  return re.sub(r'[^\w.-]+', '-', text).strip('-') or 'item'
