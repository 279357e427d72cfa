"""Descriptors of images by an ONNX file that the user has, such as SSCD's.

A descriptor tells copies from other images. Files are programs: they are run
by onnxruntime, which opens no others and needs no pickle.
"""

from collections.abc import Iterator, Sequence
import hashlib
import pathlib

import numpy as np
from PIL import Image

from dinojax.core import errors
from dinojax.curate import resizing

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_BATCH = 16  # images, where the file leaves it open
_UNIT = 1e-4  # of a cosine of an image with itself
# Processors with these sum products of int8 in other ways.
_INT8 = ('avx512_vnni', 'avx_vnni', 'amx_int8', 'asimddp', 'i8mm')


class Descriptor:
  """Unit rows that are near each other for copies of an image."""

  def __init__(self, path: str, *, resize: str = 'short:288',
               mean: Sequence[float] = IMAGENET[0],
               std: Sequence[float] = IMAGENET[1], num_threads: int = 1):
    """Opens a file and tries it on two images.

    Args:
      path: ONNX file with one input, images [b, y, x, 3] or [b, 3, y, x], and
        the descriptors [b, d] as its first output. Images of uint8 are given
        as they are, others divided by 255, less the mean, by the deviation.
      resize: see resizing.Resize; part of what a descriptor is.
      mean, std: three colours each, from 0 to 1.
      num_threads: threads of onnxruntime.

    Raises:
      UserError: onnxruntime is missing, the file cannot be run, or does not
        give descriptors.
    """
    self._resize, self._mean, self._std = (
        resizing.Resize(resize), mean, std)
    data = read(path)
    self._session, version = session(path, data, num_threads)
    entry, *others = self._session.get_inputs()
    self._path, self._name, shape = path, entry.name, list(entry.shape)
    self._output = self._session.get_outputs()[0].name
    uint8, last = entry.type == 'tensor(uint8)', shape[3:] == [3]
    first = len(shape) == 4 and shape[1] == 3
    if others or not (last or first) or entry.type not in (
        'tensor(uint8)', 'tensor(float)'):
      raise errors.UserError(
          f'{path} takes {", ".join(x.name for x in (entry, *others))} '
          f'({entry.type} {shape}): a descriptor takes one batch of images, '
          'uint8 or float32, [b, y, x, 3] or [b, 3, y, x]')
    self._uint8, self._last = uint8, last
    fixed = lambda size: size if isinstance(size, int) and size > 0 else None
    self._batch = fixed(shape[0])
    self._fixed = tuple(map(fixed, shape[1:3] if last else shape[2:]))
    self.facts = {
        'sha256': hashlib.sha256(data).hexdigest(),
        'input': f'{entry.name} {entry.type} {shape}', 'resize': resize,
        'mean': None if uint8 else list(map(float, mean)),
        'std': None if uint8 else list(map(float, std)),
        'onnxruntime': version, 'int8 instructions': _instructions()}
    self._try()

  def describe(self, images: Sequence[np.ndarray]) -> np.ndarray:
    """[n, d] float32 unit rows of images [y, x, 3] uint8 of any size."""
    seen = [self._resize(pixels) for pixels in images]
    rows: list = [None] * len(seen)
    for index in self._batches([pixels.shape for pixels in seen]):
      for i, row in zip(index, self._run(
          np.stack([seen[i] for i in index])), strict=True):
        rows[i] = row
    return np.stack(rows)

  def _batches(self, shapes: Sequence[tuple]) -> Iterator[list[int]]:
    """Indices of images of one size, at most a batch of them."""
    for shape in set(shapes):
      for want, is_ in zip(self._fixed, shape, strict=False):
        if want not in (None, is_):
          raise errors.UserError(
              f'{self._path} takes images of {self._fixed[1]} × '
              f'{self._fixed[0]} pixels, and resize={self._resize.text} gives '
              f'{shape[1]} × {shape[0]}: set resize=square:{want}')
    return resizing.batches(shapes, self._batch or _BATCH)

  def _run(self, pixels: np.ndarray) -> np.ndarray:
    """Unit rows [n, d] of images of one size [n, y, x, 3] uint8."""
    count = len(pixels)
    if self._batch and count < self._batch:
      pixels = np.concatenate(
          [pixels, np.zeros((self._batch - count, *pixels.shape[1:]),
                            np.uint8)])
    if not self._uint8:
      pixels = ((pixels / np.float32(255) - np.float32(self._mean))
                / np.float32(self._std))
    if not self._last:
      pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    out, = self._session.run([self._output], {self._name: pixels})
    out = np.asarray(out, np.float32)[:count]
    norm = np.linalg.norm(out, axis=-1, keepdims=True)
    return out / np.maximum(norm, np.finfo(np.float32).tiny)

  def _try(self):
    """Checks what comes out for two images."""
    pictures = [_picture(0), _picture(1)]
    try:
      rows = np.concatenate([self.describe([x]) for x in pictures * 2])
    except errors.UserError:
      raise
    except Exception as error:  # onnxruntime has many kinds
      raise errors.UserError(
          f'{self._path} does not run on images: {error}') from error
    if rows.ndim != 2 or not np.isfinite(rows).all():
      raise errors.UserError(
          f'{self._path} gives {list(rows.shape)} with values that are not '
          'finite: a descriptor is one row of numbers for an image'
          if rows.ndim == 2 else f'{self._path} gives '
          f'{list(rows.shape[1:])} for an image, and a descriptor is one row '
          'of numbers: name the file whose first output is the descriptor')
    again = (rows[:2] * rows[2:]).sum(1)
    if np.abs(again - 1).max() > _UNIT:
      raise errors.UserError(
          f'{self._path} gives the same image twice a cosine of '
          f'{again.min():.4f}: it is no function of the image alone')


def read(path: str) -> bytes:
  """Bytes of a file.

  Raises:
    UserError: it cannot be read.
  """
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as error:
    raise errors.UserError(f'{path} cannot be read: {error}') from error


def session(path: str, data: bytes, num_threads: int):
  """The opened file, and the version of onnxruntime."""
  try:
    import onnxruntime
  except ImportError as error:
    raise errors.UserError(
        f'{path} needs onnxruntime: pip install onnxruntime') from error
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = num_threads
  options.log_severity_level = 3
  try:
    session = onnxruntime.InferenceSession(
        data, options, providers=['CPUExecutionProvider'])
  except Exception as error:  # a damaged file has many kinds
    raise errors.UserError(
        f'{path} is not an ONNX file that onnxruntime '
        f'{onnxruntime.__version__} can run: {error}') from error
  return session, onnxruntime.__version__


def _instructions() -> list[str]:
  """Instructions of this processor that round int8 in their own way."""
  try:
    words = set(pathlib.Path('/proc/cpuinfo').read_text().split())
  except OSError:  # not Linux
    return []
  return [name for name in _INT8 if name in words]


def _picture(number: int) -> np.ndarray:
  """A picture of soft spots, [96, 128, 3] uint8."""
  low = np.random.default_rng(number).integers(
      0, 256, (6, 8, 3), dtype=np.uint8)
  return np.asarray(Image.fromarray(low).resize((128, 96)))
