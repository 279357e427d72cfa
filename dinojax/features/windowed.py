"""Maps of images that are cut into windows, beside those of the whole image.

Every window goes through the backbone alone, at its full size; the whole image
does at the size of one window, and its map is brought to the grid of theirs.
"""

from collections.abc import Callable, Sequence
import itertools

import jax
import jax.numpy as jnp

Array = jax.Array
Read = Callable[[Array], Sequence[Array]]


def edges(length: int, count: int, patch_px: int) -> list[int]:
  """Where windows of a side begin, and where the last one ends, in pixels.

  All but the last are of one length, in whole patches.

  Raises:
    ValueError: the side is too short for so many windows.
  """
  step = -(-(length // count) // patch_px) * patch_px
  out = [i * step for i in range(count)] + [length]
  if out[-1] <= out[-2] or step == 0:
    raise ValueError(
        f'{length} pixels are too few for {count} windows of whole patches of '
        f'{patch_px}: give larger images, or fewer windows')
  return out


def maps(read: Read, images: Array, count: int,
         patch_px: int) -> list[Array]:
  """[b, y, x, 2 d] maps of layers: of the whole image, then of the windows.

  Args:
    read: images to maps [b, y, x, d] of layers.
    images: [b, y, x, c], sides of whole patches.
    count: windows along a side.
    patch_px: side of a patch.

  Raises:
    ValueError: see `edges`.

  Source: DINOv3's detector.
  """
  by_axis = [edges(n, count, patch_px) for n in images.shape[1:3]]
  parts = _parts(read, images, by_axis)
  rows = [jax.tree.map(lambda *x: jnp.concatenate(x, axis=2), *(
      parts[i, j] for j in range(count))) for i in range(count)]
  windows = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *rows)
  small = _resized(images, [each[1] for each in by_axis])
  whole = [_resized(layer, stitched.shape[1:3]) for layer, stitched in zip(
      read(small), windows, strict=True)]
  return [jnp.concatenate([ours.astype(theirs.dtype), theirs], axis=-1)
          for ours, theirs in zip(whole, windows, strict=True)]


def _parts(read: Read, images: Array, by_axis: Sequence[Sequence[int]]
           ) -> dict[tuple[int, int], list[Array]]:
  """Maps of each window; those of one size go through the backbone at once."""
  places: dict[tuple[int, int], list[tuple[int, int]]] = {}
  sides = [[end - start for start, end in itertools.pairwise(each)]
           for each in by_axis]
  for i, height in enumerate(sides[0]):
    for j, width in enumerate(sides[1]):
      places.setdefault((height, width), []).append((i, j))
  out = {}
  for (height, width), some in places.items():
    cut = jnp.concatenate([
        images[:, by_axis[0][i]:by_axis[0][i] + height,
               by_axis[1][j]:by_axis[1][j] + width] for i, j in some])
    layers = [jnp.split(x, len(some)) for x in read(cut)]
    out |= {place: [x[k] for x in layers] for k, place in enumerate(some)}
  return out


def _resized(x: Array, size: Sequence[int]) -> Array:
  """[b, y, x, d] resized linearly, with antialias where a side shrinks."""
  if tuple(size) == x.shape[1:3]:
    return x
  return jax.image.resize(x.astype(jnp.float32), (
      x.shape[0], *size, x.shape[3]), 'linear', antialias=True,
                          precision='highest')
