"""Judges of images that a user brings: scores of what is unfit, faces.

  onnx:FILE              a network in a file
  module:NAME:FUNCTION   a function of an installed module

A judge of unfit images takes a list of images, [y, x, 3] uint8, and gives a
number from 0 to 1 for each; one of faces gives an array [k, 4] for each, left,
top, right and bottom in pixels. None comes with dinojax.
"""

from collections.abc import Callable, Sequence
import functools
import hashlib
import importlib
from typing import Any

import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.core import paths
from dinojax.curate import onnx_descriptor

Images = Sequence[np.ndarray]
_STRIDES = (8, 16, 32)  # of YuNet's grids, in pixels
_FACE_SCORE, _OVERLAP = 0.6, 0.3


def facts(text: str) -> dict[str, Any]:
  """Values that tell a judge from another: the sum of its file, or its name.

  Raises:
    UserError: it is not there.
  """
  kind, rest = _words(text)
  if kind == 'onnx':
    return {'sha256': hashlib.sha256(onnx_descriptor.read(rest)).hexdigest()}
  _function(rest)
  return {'module': rest}


def scorer(text: str) -> Callable[[Images], np.ndarray]:
  """A judge that gives [n] numbers from 0 to 1.

  Args:
    text: see the top of this file. A file has one output: a probability, or
      logits of two or more classes, of which the last is the unfit one.

  Raises:
    UserError: it is not there, or is no judge.
  """
  kind, rest = _words(text)
  judge = _Network(rest).scores if kind == 'onnx' else _function(rest)

  def scores(images: Images) -> np.ndarray:
    out = np.asarray(judge(images), np.float64)
    if out.shape != (len(images),) or not (
        (out >= 0) & (out <= 1)).all():
      raise errors.UserError(
          f'{text} gives {list(out.shape)} for {len(images)} images, and a '
          'judge gives a number from 0 to 1 for each')
    return out

  return scores


def detector(text: str) -> Callable[[Images], list[np.ndarray]]:
  """A judge that gives boxes [k, 4] of each image.

  Args:
    text: see the top of this file. A file is YuNet's, of any input size.

  Raises:
    UserError: it is not there, or is no judge.
  """
  kind, rest = _words(text)
  judge = _YuNet(rest).boxes if kind == 'onnx' else _function(rest)

  def boxes(images: Images) -> list[np.ndarray]:
    out = [np.asarray(each, np.float64).reshape(-1, 4)
           if np.size(each) % 4 == 0 else None for each in judge(images)]
    if len(out) != len(images) or any(
        each is None or not np.isfinite(each).all() for each in out):
      raise errors.UserError(
          f'{text} does not give boxes: a judge of faces gives [k, 4] for '
          'each image, left, top, right and bottom in pixels')
    return out

  return boxes


def blurred(pixels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
  """An image with boxes that nobody can be told by.

  Args:
    pixels: [y, x, 3] uint8.
    boxes: [k, 4]; each is blurred with a margin of an eighth of its size, so
      much that nothing smaller than a sixth of it is left.
  """
  picture = Image.fromarray(pixels)
  for left, top, right, bottom in boxes.tolist():
    margin = max(right - left, bottom - top) / 8
    box = (max(int(left - margin), 0), max(int(top - margin), 0),
           min(int(np.ceil(right + margin)), picture.width),
           min(int(np.ceil(bottom + margin)), picture.height))
    if box[0] >= box[2] or box[1] >= box[3]:
      continue
    part = picture.crop(box)
    few = (max(part.width * 6 // max(part.size), 1),
           max(part.height * 6 // max(part.size), 1))
    picture.paste(part.resize(few, Image.Resampling.BOX).resize(
        part.size, Image.Resampling.BICUBIC), box[:2])
  return np.asarray(picture)


def _words(text: str) -> tuple[str, str]:
  kind, _, rest = text.partition(':')
  if kind not in ('onnx', 'module') or not rest:
    raise errors.UserError(
        f'{text!r} is no plug-in: give onnx:FILE or module:NAME:FUNCTION')
  return kind, paths.expand(rest) if kind == 'onnx' else rest


@functools.cache
def _function(name: str) -> Callable:
  module, _, function = name.partition(':')
  try:
    return getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError, ValueError) as error:
    raise errors.UserError(
        f'module:{name} cannot be imported ({error}): give '
        'module:NAME:FUNCTION of an installed module') from error


class _Network:
  """A file with one input, images of one size, and outputs."""

  def __init__(self, path: str):
    """Opens the file, and finds out what it takes."""
    self._session, _ = onnx_descriptor.session(
        path, onnx_descriptor.read(path), 1)
    entry, *others = self._session.get_inputs()
    shape = list(entry.shape)
    self._last = shape[3:] == [3]
    if others or len(shape) != 4 or not (self._last or shape[1] == 3):
      raise errors.UserError(
          f'{path} takes {shape}: a judge takes images [b, y, x, 3] or '
          '[b, 3, y, x]')
    sides = shape[1:3] if self._last else shape[2:]
    self.size = tuple(side if isinstance(side, int) else None
                      for side in sides)
    self._name, self._uint8 = entry.name, entry.type == 'tensor(uint8)'
    self.path = path

  def run(self, pixels: np.ndarray, *, scaled: bool) -> list[np.ndarray]:
    """Outputs for an image [y, x, 3] uint8 of the right size."""
    values = pixels if self._uint8 else pixels.astype(np.float32)
    if scaled and not self._uint8:
      values = ((values / 255 - np.float32(onnx_descriptor.IMAGENET[0]))
                / np.float32(onnx_descriptor.IMAGENET[1]))
    if not self._last:
      values = values.transpose(2, 0, 1)
    return self._session.run(
        None, {self._name: np.ascontiguousarray(values[None])})

  def names(self) -> list[str]:
    """Names of the outputs."""
    return [output.name for output in self._session.get_outputs()]

  def scores(self, images: Images) -> np.ndarray:
    """[n] probabilities of the last class, or of the only one."""
    out = []
    for pixels in images:
      height, width = (side or 224 for side in self.size)
      picture = Image.fromarray(pixels).resize(
          (width, height), Image.Resampling.BICUBIC)
      value = np.ravel(self.run(np.asarray(picture), scaled=True)[0])
      if len(value) > 1:
        value = np.exp(value - value.max())
        value = value / value.sum()
      out.append(float(value[-1]))
    return np.array(out)


class _YuNet:
  """YuNet, a detector of faces on three grids.

  Source: Wu et al., YuNet: A Tiny Millisecond-level Face Detector, 2023.
  """

  def __init__(self, path: str):
    """Opens the file.

    Raises:
      UserError: its outputs are not those of YuNet.
    """
    self._network = _Network(path)
    self._names = self._network.names()
    wanted = {f'{kind}_{stride}' for kind in ('cls', 'obj', 'bbox')
              for stride in _STRIDES}
    if missing := sorted(wanted - set(self._names)):
      raise errors.UserError(
          f'{path} has no output {missing[0]}: a file of faces is YuNet\'s '
          '(face_detection_yunet_2023mar.onnx of OpenCV\'s zoo)')

  def boxes(self, images: Images) -> list[np.ndarray]:
    """Boxes [k, 4] of the faces of each image, in its pixels."""
    return [self._of_one(pixels) for pixels in images]

  def _of_one(self, pixels: np.ndarray) -> np.ndarray:
    height, width = (side or 640 for side in self._network.size)
    factor = min(width / pixels.shape[1], height / pixels.shape[0])
    size = (max(round(pixels.shape[1] * factor), 1),
            max(round(pixels.shape[0] * factor), 1))
    canvas = Image.new('RGB', (width, height))
    canvas.paste(Image.fromarray(pixels).resize(
        size, Image.Resampling.BILINEAR))
    # It was trained on the order of OpenCV: blue first, 0 to 255.
    values = dict(zip(self._names, self._network.run(
        np.asarray(canvas)[:, :, ::-1], scaled=False), strict=True))
    boxes, scores = [], []
    for stride in _STRIDES:
      score = np.sqrt(np.clip(values[f'cls_{stride}'].ravel(), 0, 1)
                      * np.clip(values[f'obj_{stride}'].ravel(), 0, 1))
      cells = np.flatnonzero(score >= _FACE_SCORE)
      y, x = np.divmod(cells, width // stride)
      shift = values[f'bbox_{stride}'].reshape(-1, 4)[cells]
      center = (np.stack([x, y], 1) + shift[:, :2]) * stride
      half = np.exp(shift[:, 2:]) * stride / 2
      boxes.append(np.concatenate([center - half, center + half], 1))
      scores.append(score[cells])
    boxes, scores = np.concatenate(boxes), np.concatenate(scores)
    return boxes[_apart(boxes, scores)] / factor


def _apart(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
  """Boxes, the best first, that overlap no better one."""
  kept: list[int] = []
  area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
  for i in np.argsort(-scores, kind='stable').tolist():
    low = np.maximum(boxes[kept, :2], boxes[i, :2])
    high = np.minimum(boxes[kept, 2:], boxes[i, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    if not (common > _OVERLAP * (area[kept] + area[i] - common)).any():
      kept.append(i)
  return kept
