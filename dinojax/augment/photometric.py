"""Colour jitter, greyscale, blur and solarisation, on the device.

Draws are made per crop from (seed, step, row, view), so a crop looks the same
whatever the batch, the mesh and the number of processes.
"""

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from dinojax.augment import color
from dinojax.core import fields

# Both references invert the probability of blur by mistake, and the released
# models were trained so; the papers give the other values.
BLUR_PROBABILITIES = {
    'released': (0.0, 0.9, 0.5),
    'paper': (1.0, 0.1, 0.5),
}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Photometric:
  """Ranges and probabilities; tuples are (global 1, global 2, local)."""

  jitter_probability: fields.Unit = 0.8  # Probability of colour jitter.
  brightness: fields.NonNegative = 0.4  # Greatest change, as a part of 1.
  contrast: fields.NonNegative = 0.4  # Greatest change, as a part of 1.
  saturation: fields.NonNegative = 0.2  # Greatest change, as a part of 1.
  # Greatest shift of hue, in turns of the colour circle.
  hue: Annotated[float, fields.Range(0.0, 0.5)] = 0.1
  grayscale_probability: fields.Unit = 0.2  # Probability of no colour.
  # Probabilities of blur for the first and second global crop and local
  # ones: as the released models were trained, or as the papers say.
  blur: Literal['released', 'paper'] = 'released'
  # Least and greatest deviation of the blur, in pixels of a crop.
  blur_sigma: tuple[fields.Above0, fields.Above0] = (0.1, 2.0)
  blur_taps: fields.Positive = 9  # Pixels that the blur adds up, an odd number.
  # Probabilities of solarisation: first and second global crop, local ones.
  solarize_probability: tuple[
      fields.Unit, fields.Unit, fields.Unit] = (0.0, 0.2, 0.0)
  # Grey level from which solarisation inverts.
  solarize_threshold: Annotated[int, fields.Range(0, 256)] = 128
  # Mean of red, green and blue that is taken off, in parts of 1.
  mean: tuple[float, float, float] = IMAGENET_MEAN
  # Deviation of red, green and blue that is divided by, in parts of 1.
  std: tuple[fields.Above0, fields.Above0, fields.Above0] = IMAGENET_STD


def view_probabilities(spec: Photometric, kind: str,
                       views: int) -> tuple[tuple, tuple]:
  """(blur, solarize) probabilities of the views of 'global' or 'local'."""
  if kind not in ('global', 'local'):
    raise ValueError(f'crops are global or local, not {kind!r}')
  tables = BLUR_PROBABILITIES[spec.blur], spec.solarize_probability
  if kind == 'local':
    return tuple((table[2],) * views for table in tables)
  # Global crops beyond the second are treated like the second.
  return tuple(
      tuple(table[min(i, 1)] for i in range(views)) for table in tables)


def augment(images: jax.Array, key: jax.Array, step: jax.Array,
            row: jax.Array, *, kind: str, spec: Photometric,
            dtype=jnp.float32) -> jax.Array:
  """Augments and normalises crops.

  Args:
    images: [b, v, y, x, c] uint8.
    key: PRNG key of the run.
    step: number of the training step.
    row: [b] int32 place in the global batch.
    kind: 'global' or 'local'.
    spec: ranges and probabilities.
    dtype: dtype of the result.

  Returns:
    [b, v, y, x, c] normalised.
  """
  key = jax.random.fold_in(jax.random.fold_in(key, step), kind == 'local')
  probabilities = view_probabilities(spec, kind, images.shape[1])
  draws = draw(key, row, images.shape[1], spec, *probabilities)
  x = apply(images, draws, spec, *map(any, probabilities))
  return normalize(x, spec.mean, spec.std, dtype)


def draw(key: jax.Array, row: jax.Array, views: int, spec: Photometric,
         blur_probability: tuple, solarize_probability: tuple) -> dict:
  """Draws how each crop is changed; leaves are [b, v, …].

  Args:
    key: PRNG key of the step and the kind of crops.
    row: [b] place in the global batch.
    views: v, crops of an image.
    spec: ranges, and probabilities of jitter and greyscale.
    blur_probability: probability of blur, for each view.
    solarize_probability: probability of solarisation, for each view.
  """
  def uniforms(row, view):
    return jax.random.uniform(
        jax.random.fold_in(jax.random.fold_in(key, row), view), (13,))

  u = jax.vmap(lambda r: jax.vmap(lambda v: uniforms(r, v))(
      jnp.arange(views)))(row)  # [b, v, 13]
  jitter = u[..., 0] < spec.jitter_probability
  ranges = (spec.brightness, spec.contrast, spec.saturation)
  factors = jnp.stack(
      [1 + width * (2 * u[..., 1 + i] - 1)
       for i, width in enumerate(ranges)], axis=-1)
  per_view = lambda values: jnp.asarray(values, jnp.float32)[None]
  low, high = spec.blur_sigma
  return {
      'factors': jnp.where(jitter[..., None], factors, 1.0),
      'hue': jnp.where(jitter, spec.hue * (2 * u[..., 4] - 1), 0.0),
      # Brightness, contrast, saturation, hue in a random order.
      'order': jnp.argsort(u[..., 5:9], axis=-1).astype(jnp.int32),
      'grey': u[..., 9] < spec.grayscale_probability,
      'blur': u[..., 10] < per_view(blur_probability),
      'sigma': low + (high - low) * u[..., 11],
      'solarize': u[..., 12] < per_view(solarize_probability)}


def apply(images: jax.Array, draws: dict, spec: Photometric,
          may_blur: bool = True, may_solarize: bool = True) -> jax.Array:
  """Applies draws to [b, v, y, x, c]; whole values 0..255, float32.

  Source: the references' Pillow chain: jitter, grey, blur, solarize.
  """
  image = lambda flags: flags[..., None, None, None]
  x = _jitter(images.astype(jnp.float32), draws)
  x = jnp.where(image(draws['grey']), color.grey(x), x)
  if may_blur:
    soft = color.blur(x, draws['sigma'], spec.blur_taps)
    x = jnp.where(image(draws['blur']), soft, x)
  if may_solarize:
    inverted = jnp.where(x >= spec.solarize_threshold, 255 - x, x)
    x = jnp.where(image(draws['solarize']), inverted, x)
  return x


def _jitter(x: jax.Array, draws: dict) -> jax.Array:
  """The four jitter operations in each crop's own order.

  Hue is dear, so it is computed once: the three blends that come before it,
  then hue, then those after. A blend out of turn has factor 1.
  """
  order, factors = draws['order'], draws['factors']
  hue_place = jnp.argmax(order == 3, axis=-1)
  for after in (False, True):
    for place in range(1, 4) if after else range(3):
      active = (place > hue_place) if after else (place < hue_place)
      operation = order[..., place]
      chosen = operation[..., None] == jnp.arange(3)[None, None]
      factor = jnp.sum(jnp.where(chosen, factors, 0.0), axis=-1)
      factor = jnp.where(active, factor, 1.0)
      image = lambda values: values[..., None, None, None]
      reference = jnp.where(
          image(operation == 2), color.grey(x),
          jnp.where(image(operation == 1), color.mean_grey(x), 0.0))
      x = color.blend(reference, x, image(factor))
    if not after:
      turned = color.shift_hue(x, draws['hue'][..., None, None])
      x = jnp.where(image(draws['hue'] != 0), turned, x)
  return x


def normalize(images: jax.Array, mean=IMAGENET_MEAN, std=IMAGENET_STD,
              dtype=jnp.float32) -> jax.Array:
  """0..255 values of [..., c] to (x/255 − mean)/std."""
  lead = (1,) * (images.ndim - 1)
  mean = jnp.asarray(mean, jnp.float32).reshape(*lead, -1)
  std = jnp.asarray(std, jnp.float32).reshape(*lead, -1)
  x = images.astype(jnp.float32) / 255
  return ((x - mean) / std).astype(dtype)
