"""Cosines within images: how alike patches are, and CLS with its patches."""

import numpy as np


def unit(features: np.ndarray) -> np.ndarray:
  """[..., d] vectors of length one, float32."""
  features = np.asarray(features, np.float32)
  norm = np.linalg.norm(features, axis=-1, keepdims=True)
  return features / np.maximum(norm, 1e-12)


def cls_with_patches(cls: np.ndarray, patches: np.ndarray) -> np.ndarray:
  """[b] mean cosine of CLS [b, d] with the patches [b, p, d] of its image."""
  return np.einsum('bd,bpd->b', unit(cls), unit(patches)) / patches.shape[1]


def between_patches(patches: np.ndarray) -> np.ndarray:
  """[b] mean cosine of two different patches of an image, from [b, p, d]."""
  count = patches.shape[1]
  whole = unit(patches).sum(1)  # its length is the sum of all p² cosines
  return ((whole * whole).sum(-1) - count) / max(count * (count - 1), 1)
