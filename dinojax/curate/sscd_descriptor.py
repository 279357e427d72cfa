"""Descriptors of images by SSCD's published weights, on all devices."""

from collections.abc import Sequence
import hashlib
import pathlib

from flax import nnx
import jax
import numpy as np

from dinojax.curate import onnx_descriptor
from dinojax.curate import resizing
from dinojax.interop import files
from dinojax.models import sscd
from dinojax.parallel import mesh as mesh_lib


class Descriptor:
  """Unit rows of SSCD.

  Attributes:
    facts: values that decide what it gives, as JSON.
  """

  def __init__(self, path: str, *, resize: str, batch_size: int):
    """Reads the weights.

    Args:
      path: *.torchvision.pt, or the same arrays as safetensors.
      resize: see resizing.Resize. Every size of images is another program,
        so that square:320 compiles one, and short:288 one for each shape.
      batch_size: images at a time over all devices, rounded up to a multiple
        of them.

    Raises:
      UserError: the file cannot be read, or is no SSCD network.
    """
    self._resize = resizing.Resize(resize)
    network = sscd.load(files.read(path), path)
    self._mesh = mesh_lib.of_process()
    self._size = -(-batch_size // self._mesh.size) * self._mesh.size
    definition, weights = nnx.split(network)
    self._weights = jax.device_put(
        weights, jax.NamedSharding(self._mesh, jax.P()))
    mean, std = (np.float32(values)[None, None, None]
                 for values in onnx_descriptor.IMAGENET)
    self._run = jax.jit(jax.shard_map(
        lambda weights, pixels: nnx.merge(definition, weights)(
            (pixels / np.float32(255) - mean) / std),
        mesh=self._mesh, in_specs=(jax.P(), mesh_lib.ROWS),
        out_specs=mesh_lib.ROWS))
    with open(pathlib.Path(path), 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
    self.facts = {'sscd': digest, 'resize': resize}

  def describe(self, images: Sequence[np.ndarray]) -> np.ndarray:
    """[n, d] float32 unit rows of images [y, x, 3] uint8 of any size."""
    seen = [self._resize(pixels) for pixels in images]
    rows: list = [None] * len(seen)
    split = jax.NamedSharding(self._mesh, mesh_lib.ROWS)
    with mesh_lib.activate(self._mesh):
      for index in resizing.batches([x.shape for x in seen], self._size):
        batch = np.zeros((self._size, *seen[index[0]].shape), np.uint8)
        batch[:len(index)] = [seen[i] for i in index]
        out = self._run(self._weights, jax.device_put(batch, split))
        for i, row in zip(index, np.asarray(out), strict=False):
          rows[i] = row
    return np.stack(rows)
