"""Pictures of segments: each in the colour of its class, outlined in white."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from dinojax.evals import dense_pictures
from dinojax.evals import segments
from dinojax.evals.sets import segments as sets

LEAST = 0.5  # score of an object that is drawn
_SHARE = 0.45  # of the image that is seen through segments
_SHADES = (1.0, 0.75, 1.25)  # of segments of one class, in turn
_WHITE = 255.0
Predicted = np.ndarray | list[segments.Instance]


def panel(picture: Image.Image, truth: sets.Segments | None,
          predicted: Predicted, classes: Sequence[str]) -> np.ndarray:
  """[y, x, 3] uint8: image, truth if there is one, prediction, legend.

  Args:
    picture: the image.
    truth: its segments.
    predicted: [y, x, 2] class and segment of every pixel, or objects, of which
      those with a score of LEAST or more are drawn.
    classes: names of the classes.
  """
  size = picture.size[::-1]
  layers = [[] if truth is None else list(zip(
      truth.masks, truth.kinds, strict=True)), _drawn(predicted)]
  cells = [('image', np.asarray(picture))]
  if truth is not None:
    cells.append(('ground truth', paint(picture, layers[0], len(classes))))
  cells.append(('prediction', paint(picture, layers[1], len(classes))))
  seen = sorted({int(kind) for layer in layers for _, kind in layer})
  colors = dense_pictures.palette(len(classes))
  return dense_pictures.sheet(
      cells, size, [(classes[i], colors[i]) for i in seen])


def _drawn(predicted: Predicted) -> list[tuple[np.ndarray, int]]:
  """Masks and classes, those on top last."""
  if isinstance(predicted, list):
    return [(each.mask, each.label) for each in reversed(predicted)
            if each.score >= LEAST]
  numbers = np.unique(predicted[..., 1])
  out = []
  for number in numbers[numbers >= 0]:
    mask = predicted[..., 1] == number
    out.append((mask, int(predicted[mask][0, 0])))
  return out


def paint(picture: Image.Image, layers: Sequence[tuple[np.ndarray, int]],
          num_classes: int) -> np.ndarray:
  """[y, x, 3] uint8: masks over the image, in grey where there is none.

  Args:
    picture: the image.
    layers: masks [y, x] and their classes, those on top last.
    num_classes: classes.
  """
  colors = dense_pictures.palette(num_classes).astype(float)
  out = np.asarray(picture.convert('L').convert('RGB')).astype(float)
  grey, count = out.copy(), dict.fromkeys(range(num_classes), 0)
  for mask, kind in layers:
    shade = _SHADES[count[int(kind)] % len(_SHADES)]
    count[int(kind)] += 1
    color = np.minimum(colors[int(kind)] * shade, _WHITE)
    out[mask] = _SHARE * grey[mask] + (1 - _SHARE) * color
    out[_edge(mask)] = _WHITE
  return np.round(out).astype(np.uint8)


def _edge(mask: np.ndarray) -> np.ndarray:
  """[y, x] bool: pixels of a mask beside others."""
  padded = np.pad(mask, 1)
  inside = (padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2]
            & padded[1:-1, 2:])
  return mask & ~inside
