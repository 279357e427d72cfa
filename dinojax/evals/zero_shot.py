"""Classes as texts: images are of the class whose texts they are nearest to."""

import jax
import jax.numpy as jnp

from dinojax.losses import unit

Array = jax.Array
SCALE = 100.0  # of cosines; DINOv3 takes it whatever the model has learned
_EPSILON = 1e-12
_HIGHEST = jax.lax.Precision.HIGHEST


def class_vectors(text: Array) -> Array:
  """[…, e] unit vectors of classes.

  Args:
    text: [..., t, e] embeddings of a class's name in t sentences.

  Source: CLIP's prompt ensembles.
  """
  mean = jnp.mean(unit.normalize(text, _EPSILON), axis=-2)
  return unit.normalize(mean, _EPSILON)


def patch_class_vectors(text: Array) -> Array:
  """[…, e / 2] unit vectors of classes to compare patches with.

  The first half of an embedding goes with CLS, the second with patches.
  """
  return class_vectors(text[..., text.shape[-1] // 2:])


def logits(image: Array, classes: Array) -> Array:
  """[b, k] of embeddings [b, e] and classes [k, e]."""
  return SCALE * jnp.einsum(
      'be,ke->bk', unit.normalize(image, _EPSILON), classes,
      precision=_HIGHEST)
