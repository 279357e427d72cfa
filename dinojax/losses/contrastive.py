"""Texts and images that belong together, against all others of the batch.

Arrays are global. Each side is brought to every device once, so that a device
meets its rows with all others, [b / devices, b], and nobody has [b, b].
"""

import math

import jax
import jax.numpy as jnp

from dinojax.losses import gram
from dinojax.losses import unit
from dinojax.parallel import sharding

Array = jax.Array
LOG_SCALE_START = math.log(1 / 0.07)
LOG_SCALE_MAX = math.log(100)
_EPSILON = 1e-12
_HIGHEST = jax.lax.Precision.HIGHEST


def contrastive(image: Array, text: Array, log_scale: Array,
                weight: Array | None = None) -> Array:
  """Mean of both cross-entropies, images to texts and back; nats.

  Args:
    image: [b, e] embeddings, not normalised.
    text: [b, e] embeddings of the texts that belong to them.
    log_scale: [1], logarithm of the factor of cosines; or [b], of each image.
    weight: [b] 0 for padding, which is nobody's opposite either; None: all
      count.

  Source: CLIP (arXiv 2103.00020); DINOv3's memory_efficient_clip_loss.
  """
  losses = per_pair(image, text, log_scale, weight)
  if weight is None:
    return jnp.mean(losses)
  weight = weight.astype(jnp.float32)
  return jnp.sum(losses * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def per_pair(image: Array, text: Array, log_scale: Array,
             weight: Array | None = None) -> Array:
  """[b] mean of the two cross-entropies of each pair, see `contrastive`."""
  image, text = (unit.normalize(x, _EPSILON) for x in (image, text))
  image = image * jnp.exp(log_scale.astype(jnp.float32))[:, None]
  return (_cross_entropy(image, text, weight)
          + _cross_entropy(text, image, weight)) / 2


def clamped(log_scale: Array) -> Array:
  """The learned logarithm of the scale, within its limits."""
  return jnp.clip(log_scale, 0.0, LOG_SCALE_MAX)


def patch_gram(patches: Array, backbone: Array, index: Array | None = None, *,
               normalize: bool = True, weight: Array | None = None) -> Array:
  """Mean squared difference of the patches' similarities from the backbone's.

  Args:
    patches: [b, p, d] of the head.
    backbone: [b, p, c] of the backbone, constants.
    index: [k] patches that are compared, see `sample`; None: all.
    normalize: tokens to length one.
    weight: [b] 0 for images that are padding; None: all count.

  Source: DINOv3's gram_loss_fn of text alignment.
  """
  backbone = jax.lax.stop_gradient(backbone)
  mine, other = (
      gram.similarities(_chosen(x, index), normalize=normalize, per_image=True)
      for x in (patches, backbone))
  losses = jnp.mean((mine - other) ** 2, axis=(1, 2))
  if weight is None:
    return jnp.mean(losses)
  weight = weight.astype(jnp.float32)
  return jnp.sum(losses * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def sample(key: Array, num_patches: int, share: float) -> Array:
  """[int(p · share)] patches of a step, the same ones in all images."""
  return jax.random.permutation(key, num_patches)[:int(num_patches * share)]


def _cross_entropy(rows: Array, others: Array, weight: Array | None) -> Array:
  """[b] of each row [e] with its own opposite among all."""
  logits = jnp.einsum('be,ce->bc', rows, sharding.everywhere(others),
                      precision=_HIGHEST)
  if weight is not None:
    counts = sharding.everywhere(weight) > 0
    logits = jnp.where(counts[None], logits, jnp.finfo(logits.dtype).min)
  return jax.nn.logsumexp(logits, axis=1) - jnp.sum(rows * others, axis=1)


def _chosen(patches: Array, index: Array | None) -> Array:
  """[b, k, d] of [b, p, d]; a product, which knows how rows lie on a mesh."""
  if index is None:
    return patches
  rows = jax.nn.one_hot(index, patches.shape[1])
  return jnp.einsum('kp,bpd->bkd', rows, patches.astype(jnp.float32),
                    precision=_HIGHEST)
