"""Pictures of objects: each box in the colour of its class, with its score."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

from dinojax.evals import dense_pictures
from dinojax.evals import detections
from dinojax.evals.sets import objects as sets

LEAST = 0.3  # score of an object that is drawn
_SHORT_PX = 320
_FONT_PX = 12
_INK = (255, 255, 255)


def panel(picture: Image.Image, truth: sets.Truth | None,
          detected: detections.Detections, classes: Sequence[str],
          least: float = LEAST) -> np.ndarray:
  """[y, x, 3] uint8: truth if there is one, prediction, legend.

  Args:
    picture: the image.
    truth: its objects.
    detected: objects that were found.
    classes: names of the classes.
    least: score of an object that is drawn.
  """
  best, title = detected.scores.max(initial=0), f'scores from {least:g}'
  if best < least:
    title = f'no score of {least:g}, best {best:.2g}'
  detected = detected.some(detected.scores >= least)
  factor = _SHORT_PX / min(picture.size)  # lines and scores stay legible
  large = picture.resize([max(round(n * factor), 1)
                          for n in picture.size])
  cells = []
  if truth is not None:
    cells.append(('ground truth', _drawn(
        large, truth.boxes * factor, truth.kinds, None, len(classes))))
  cells.append((f'prediction, {title}', _drawn(
      large, detected.boxes * factor, detected.labels, detected.scores,
      len(classes))))
  seen = sorted({int(kind) for kind in detected.labels} | {
      int(kind) for kind in (() if truth is None else truth.kinds)})
  colors = dense_pictures.palette(len(classes))
  return dense_pictures.sheet(
      cells, large.size[::-1], [(classes[i], colors[i]) for i in seen])


def _drawn(picture: Image.Image, boxes: np.ndarray, kinds: np.ndarray,
           scores: np.ndarray | None, num_classes: int) -> np.ndarray:
  """[y, x, 3] uint8: boxes on an image, the best on top."""
  colors = dense_pictures.palette(num_classes)
  sheet = picture.convert('RGB')
  draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_PX)
  for i in range(len(boxes) - 1, -1, -1):
    ink = tuple(int(x) for x in colors[int(kinds[i])])
    left, top, right, bottom = boxes[i]
    draw.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)),
                   outline=ink, width=2)
    if scores is not None:
      text = f'{scores[i]:.2f}'
      place = draw.textbbox((left + 2, top), text, font=font)
      draw.rectangle(place, fill=ink)
      draw.text((left + 2, top), text, fill=_INK, font=font)
  return np.asarray(sheet)
