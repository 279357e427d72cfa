"""Pictures of maps: image, truth and prediction side by side."""

from collections.abc import Callable, Mapping, Sequence
import colorsys
from typing import Any

import jax
import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont
from PIL import ImageOps

from dinojax.data import images
from dinojax.data import parts
from dinojax.evals import dense
from dinojax.evals.sets import dense as sets

_GAP, _LINE, _SHORT_PX = 6, 20, 240
_INK, _PAPER, _UNKNOWN = (40, 40, 40), (250, 250, 248), (120, 120, 120)
_SHARE = 0.45  # of the image that is seen through classes
# Points of a perceptually even ramp, near (yellow) to far (dark blue).
_RAMP = np.array([
    (245, 240, 110), (250, 170, 40), (235, 110, 60), (200, 60, 100),
    (140, 20, 140), (70, 3, 130), (13, 8, 60)], float)
Pictures = dict[str, np.ndarray]


def palette(count: int) -> np.ndarray:
  """[count, 3] uint8 colours, neighbours far apart."""
  colors = [colorsys.hsv_to_rgb(i * 0.618034 % 1, (0.85, 0.5, 0.95)[i % 3],
                                (0.95, 0.9, 0.65)[i % 3])
            for i in range(count)]
  return np.round(255 * np.array(colors)).astype(np.uint8)


def of_test(maps: dense.Maps, source: Any, sizes: Sequence,
            heads: Mapping[str, Any], count: int,
            classes: Sequence[str] = (), *, limit: float | None = None,
            relative: bool = False) -> Pictures:
  """Pictures of a few images of a test set, evenly over it.

  All processes take part, and the first one needs the pictures.

  Args:
    maps: makes the maps.
    source: the set.
    sizes: sizes of its images.
    heads: stack of the head.
    count: pictures.
    classes: names of the classes; (): maps are depths.
    limit: greatest depth of the scale, metres.
    relative: True: predictions are inverse depths without a unit.
  """
  known = [i for i, size in enumerate(sizes) if size]
  if not count or not known:
    return {}
  chosen = everywhere(sorted({known[i] for i in np.linspace(
      0, len(known) - 1, min(count, len(known))).round().astype(int)}))
  some = parts.Chosen(source, np.array(chosen))
  out = {}
  for row, predicted in _all(maps, some, [sizes[i] for i in chosen], heads):
    picture, truth = some[row['index']].decoded()
    out[f'test{chosen[row["index"]]}'] = panel(
        picture, truth, predicted, classes, limit, relative)
  return out


def of_others(maps: dense.Maps, source: Any, heads: Mapping[str, Any],
              count: int, classes: Sequence[str] = (), *,
              limit: float | None = None, relative: bool = False) -> Pictures:
  """Pictures of images without truth; see `of_test`."""
  count = min(count, len(source))
  chosen = everywhere(sorted(set(np.linspace(
      0, len(source) - 1, count).round().astype(int)))) if count else []
  whole = maps.views.windows.crop_px is None
  unlabelled = Unlabelled(
      source, chosen, maps.shapes.canvas,
      maps.shapes.windows[0] if whole else None)
  sizes = unlabelled.sizes()
  out = {}
  for row, predicted in _all(maps, unlabelled, sizes, heads):
    out[f'show{chosen[row["index"]]}'] = panel(
        unlabelled[row['index']].decoded()[0], None, predicted, classes, limit,
        relative)
  return out


def everywhere(indices: Sequence[int]) -> list[int]:
  """Indices of which every process gets all, where items are dealt out."""
  return [int(i) for i in indices for _ in range(jax.process_count())]


class Unlabelled:
  """Images without maps as a set, of sizes that are compiled already."""

  def __init__(self, source: Any, chosen: Sequence[int], canvas: dense.Size,
               whole: dense.Size | None):
    """Chooses images.

    Args:
      source: images.
      chosen: their numbers.
      canvas: rows and columns that no image exceeds.
      whole: rows and columns that all images get; None: their own.
    """
    self.spec, self.classes = source.spec, ()
    self._source, self._chosen = source, list(chosen)
    self._canvas, self._whole = canvas, whole

  def __len__(self) -> int:
    return len(self._chosen)

  def __getitem__(self, index: int) -> 'Alone':
    record = self._source[int(self._chosen[index])]
    return Alone(record.image, record.name, self._canvas, self._whole)

  def sizes(self) -> list[dense.Size | None]:
    """Rows and columns of the images; None: unreadable."""
    out: list[dense.Size | None] = []
    for index in range(len(self)):
      try:
        out.append(self[index].decoded()[0].size[::-1])
      except (images.BadImage, OSError):
        out.append(None)
    return out


class Alone:
  """An image without a map, see sets.Pair."""

  def __init__(self, image: bytes, name: str, canvas: dense.Size,
               whole: dense.Size | None):
    self.name, self._image = name, image
    self._canvas, self._whole = canvas, whole

  def decoded(self) -> tuple[Image.Image, None]:
    """The image, made smaller, or cut and resized, to a size that is used."""
    picture = images.open_image(self._image).decode()
    if self._whole is None:
      picture.thumbnail(self._canvas[::-1])
      return picture, None
    return ImageOps.fit(picture, self._whole[::-1]), None


def _all(maps: dense.Maps, source: Any, sizes: Sequence,
         heads: Mapping[str, Any]):
  """Items of this process with the map of the only head."""
  before = maps.shapes
  stack = dense.replicated({name: heads[name] for name in (
      'params', 'stats')}, maps.job.model.mesh)
  maps.plan_more([size for size in sizes if size])
  try:
    for row, predicted in maps.of(source, sizes, stack, counts=False):
      yield row, predicted[0]
  finally:
    maps.shapes = before


def panel(picture: Image.Image, truth: np.ndarray | None,
          predicted: np.ndarray, classes: Sequence[str],
          limit: float | None, relative: bool = False) -> np.ndarray:
  """[y, x, 3] uint8: image, truth if there is one, prediction, legend.

  Args:
    picture: the image.
    truth: [y, x] map.
    predicted: [y, x] classes, or [y, x, 1] metres.
    classes: names; (): depths.
    limit: greatest depth of the scale.
    relative: True: `predicted` is inverse depth without a unit.
  """
  if classes:
    draw, legend = _classes(picture, truth, predicted, classes)
  else:
    draw, legend = (_nearness(truth) if relative else _depths(
        truth, predicted[..., 0], limit))
  cells = [('image', np.asarray(picture))]
  if truth is not None:
    cells.append(('ground truth', draw(truth)))
  cells.append(('prediction', draw(predicted)))
  out = side_by_side(cells, picture.size[::-1])
  return np.concatenate([out, legend(out.shape[1])])


def sheet(cells: Sequence[tuple[str, np.ndarray]], size: tuple[int, int],
          entries: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
  """[y, x, 3] uint8: pictures side by side over a legend.

  Args:
    cells: title and pixels of each.
    size: rows and columns of the image.
    entries: name and colour of each class.
  """
  out = side_by_side(cells, size)
  return np.concatenate([out, _legend(entries, out.shape[1])])


def side_by_side(cells: Sequence[tuple[str, np.ndarray]],
                 size: tuple[int, int]) -> np.ndarray:
  """[y, x, 3] uint8: pictures with their titles, the first one a photograph."""
  height = min(max(_SHORT_PX, 1), 2 * size[0])
  width = max(round(size[1] * height / size[0]), 1)
  whole = Image.new('RGB', (
      len(cells) * (width + _GAP) + _GAP, height + 2 * _GAP + _LINE), _PAPER)
  pen, font = ImageDraw.Draw(whole), ImageFont.load_default(12)
  for i, (title, pixels) in enumerate(cells):
    left = _GAP + i * (width + _GAP)
    pen.text((left, 3), title, _INK, font)
    whole.paste(Image.fromarray(pixels).resize(
        (width, height), Image.Resampling.BILINEAR if not i else
        Image.Resampling.NEAREST), (left, _LINE))
  return np.asarray(whole)


def _classes(picture: Image.Image, truth: np.ndarray | None,
             predicted: np.ndarray, classes: Sequence[str]
             ) -> tuple[Callable, Callable]:
  """Draws classes over the image, and their legend."""
  colors = np.concatenate([palette(len(classes)), [_UNKNOWN]])
  grey = np.asarray(picture.convert('L').convert('RGB')).astype(float)
  seen = set(np.unique(predicted)) | (
      set() if truth is None else set(np.unique(truth)))

  def draw(values):
    index = np.where(values == sets.IGNORED, len(classes), values)
    mixed = _SHARE * grey + (1 - _SHARE) * colors[index]
    return np.round(mixed).astype(np.uint8)

  entries = [(classes[i], colors[i]) for i in sorted(seen - {sets.IGNORED})]
  if sets.IGNORED in seen:
    entries.append(('ignored', colors[-1]))
  return draw, lambda width: _legend(entries, width)


def _legend(entries: Sequence[tuple[str, np.ndarray]],
            width: int) -> np.ndarray:
  """Squares of colour with names, as many lines as they need."""
  font = ImageFont.load_default(12)
  places, x, y = [], _GAP, 2
  for name, _ in entries:
    needs = 18 + round(font.getlength(name)) + 12
    if x + needs > width and x > _GAP:
      x, y = _GAP, y + _LINE
    places.append((x, y))
    x += needs
  sheet = Image.new('RGB', (width, y + _LINE + 2), _PAPER)
  pen = ImageDraw.Draw(sheet)
  for (name, color), (x, y) in zip(entries, places, strict=True):
    pen.rectangle((x, y + 2, x + 12, y + 14), tuple(int(c) for c in color))
    pen.text((x + 17, y), name, _INK, font)
  return np.asarray(sheet)


def _nearness(truth: np.ndarray | None) -> tuple[Callable, Callable]:
  """Draws inverse depths, each map on a scale of its own, near in yellow."""
  def draw(values):
    known = np.ones(values.shape[:2], bool)
    if values is truth:
      known, values = truth > 0, 1 / np.where(truth > 0, truth, 1)
    values = values.reshape(values.shape[:2])
    low, high = np.percentile(values[known], (1, 99)) if known.any() else (0, 1)
    return np.where(known[..., None], _ramp(
        1 - (values - low) / max(high - low, 1e-9)), np.uint8(_UNKNOWN))

  def scale(width):
    return _bar(width, ('near', '', 'far'))[0]

  return draw, scale


def _ramp(share: np.ndarray) -> np.ndarray:
  """[…, 3] uint8 colours of shares of the scale."""
  place = np.clip(share, 0, 1) * (len(_RAMP) - 1)
  return np.stack([np.interp(place, np.arange(len(_RAMP)), _RAMP[:, c])
                   for c in range(3)], axis=-1).astype(np.uint8)


def _bar(width: int, labels: Sequence[str]) -> tuple[np.ndarray, int]:
  """The scale with labels at its start, middle and end, and its length."""
  sheet = Image.new('RGB', (width, 2 * _LINE + 4), _PAPER)
  pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
  length = min(width - 2 * _GAP, 320)
  bar = np.repeat(_ramp(np.linspace(0, 1, length))[None], 12, axis=0)
  sheet.paste(Image.fromarray(bar), (_GAP, 4))
  for share, label in zip((0, 0.5, 1), labels, strict=True):
    x = _GAP + share * length - share * font.getlength(label)
    pen.text((x, 18), label, _INK, font)
  return np.asarray(sheet), length


def _depths(truth: np.ndarray | None, predicted: np.ndarray,
            limit: float | None) -> tuple[Callable, Callable]:
  """Draws depths on one scale, and the scale."""
  both = [predicted.ravel()] + ([] if truth is None else [
      truth[truth > 0].ravel()])
  low, high = np.percentile(np.concatenate(both), (1, 99))
  high = max(min(high, limit or high), low + 1e-3)

  def draw(values):
    values = values.reshape(values.shape[:2])
    return np.where((values > 0)[..., None], _ramp(
        (values - low) / (high - low)), np.uint8(_UNKNOWN))

  def scale(width):
    bar, length = _bar(width, [f'{low + share * (high - low):.2f} m'
                               for share in (0, 0.5, 1)])
    if truth is None or (truth > 0).all():
      return bar
    sheet = Image.fromarray(bar)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    pen.rectangle((_GAP + length + 14, 4, _GAP + length + 26, 16), _UNKNOWN)
    pen.text((_GAP + length + 31, 2), 'unknown', _INK, font)
    return np.asarray(sheet)

  return draw, scale
