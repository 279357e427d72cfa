"""The normalised cut of an image's patches, and the box of its object.

Source: TokenCut (Wang et al. 2022): the second smallest eigenvector of
  (D - A) x = λ D x parts patches into object and background.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.evals import matching

_HIGHEST = jax.lax.Precision.HIGHEST
# Vectors of the search space; how many of the best are kept when it is full;
# and how often it may be filled.
_SPACE, _KEPT, _MAX_ROUNDS = 32, 8, 200
_ROOM = 64  # patches are filled up to a multiple of this
_TOLERANCE = 2e-6  # of the residual; eigenvalues are at most 1


@dataclasses.dataclass(frozen=True)
class Cut:
  """Result of a cut.

  Attributes:
    box: [4] (left, top, right, bottom) of the object in pixels, within the
      image.
    mask: [y, x] bool, patches of the object: those of its side that are
      joined to the seed.
    seed: number of the patch with the largest entry.
    vector: [y, x] the eigenvector, x' D x = 1, positive at the seed.
    eigenvalues: [2] the vector's, the second smallest, and the third: a cut
      whose two are close is arbitrary.
    converged: False if the vector is less exact than it should be.
  """

  box: np.ndarray
  mask: np.ndarray
  seed: int
  vector: np.ndarray
  eigenvalues: np.ndarray
  converged: bool


def affinity(features: jax.Array, tau: float, eps: float,
             weighted: bool = False) -> jax.Array:
  """[p, p] 1 where the cosine of two patches is above tau, eps elsewhere.

  Args:
    features: [p, d].
    tau: least cosine of patches that belong together.
    eps: affinity of all others.
    weighted: cosines themselves from tau on, in place of 1.
  """
  unit = matching.unit(features)
  cosines = jnp.einsum('pd,qd->pq', unit, unit, precision=_HIGHEST)
  if weighted:
    return jnp.where(cosines >= tau, cosines, eps)
  return jnp.where(cosines > tau, 1.0, eps)


@functools.partial(jax.jit, static_argnames=('weighted',))
def second_vector(features: jax.Array, valid: jax.Array, tau: float,
                  eps: float, weighted: bool = False
                  ) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The second smallest eigenvector of the normalised cut.

  Lanczos with full orthogonalisation, restarted with its best vectors, on
  D^(-1/2) A D^(-1/2), whose largest eigenvector is known: D^(1/2) 1.

  Args:
    features: [p, d], p of 2 or more.
    valid: [p] bool, patches that there are; the others are 0 in x.
    tau: see `affinity`.
    eps: see `affinity`.
    weighted: see `affinity`.

  Returns:
    [p] x with x' D x = 1, the second and third eigenvalue, and whether x
    converged.
  """
  both = valid[:, None] & valid[None, :]
  matrix = jnp.where(both, affinity(features, tau, eps, weighted), 0)
  degree = matrix.sum(1)
  scale = jnp.where(valid, jax.lax.rsqrt(degree), 0)
  known = jnp.sqrt(degree / degree.sum())
  matrix = scale[:, None] * matrix * scale[None, :]
  # Never more vectors than there are directions beside the known one.
  space = min(_SPACE, len(matrix) - 1)
  values, vector, residual = _largest(
      matrix, known, valid, space, min(_KEPT, max(space - 2, 1)))
  return scale * vector, 1 - values, residual <= _TOLERANCE


def _largest(matrix: jax.Array, known: jax.Array, valid: jax.Array,
             space: int, kept: int):
  """The largest two eigenvalues, and the vector of the first; its residual.

  Vectors are orthogonal to `known`.
  """
  count, dot = len(known), functools.partial(jnp.dot, precision=_HIGHEST)

  def orthogonal(vector, basis):
    """The part orthogonal to `known` and the basis; twice is enough."""
    total = jnp.zeros(space)
    for _ in range(2):
      vector = vector - dot(known, vector) * known
      along = dot(basis, vector)
      vector, total = vector - dot(along, basis), total + along
    return vector, total

  def extend(j, state):
    """Appends what the matrix makes of vector j of the basis."""
    basis, small, rest, _ = state
    # Where nearly nothing is left, what is left is rounding: any direction.
    vector, _ = orthogonal(_unit(rest), basis)
    vector = _unit(vector)
    basis = basis.at[j].set(vector)
    rest, along = orthogonal(dot(matrix, vector), basis)
    small = small.at[j].set(along).at[:, j].set(along)
    return basis, small, rest, jnp.linalg.norm(rest)

  def fill(state):
    first, rounds, basis, small, rest, _, _ = state
    basis, small, rest, length = jax.lax.fori_loop(
        first, space, extend, (basis, small, rest, jnp.float32(0)))
    values, vectors = jnp.linalg.eigh(small)
    residual = length * jnp.abs(vectors[-1, -1])
    best = vectors[:, ::-1][:, :kept]  # the largest first
    zeros = jnp.zeros((space - kept, count))
    basis = jnp.concatenate([dot(best.T, basis), zeros])
    small = jnp.zeros((space, space)).at[
        jnp.arange(kept), jnp.arange(kept)].set(values[::-1][:kept])
    two = values[::-1][:2] if space > 1 else jnp.repeat(values, 2)
    return kept, rounds + 1, basis, small, rest, two, residual

  def goes_on(state):
    return (state[1] < _MAX_ROUNDS) & (state[-1] > _TOLERANCE) | (
        state[1] == 0)

  start = jax.random.normal(jax.random.key(0), (count,)) * valid
  basis = jnp.zeros((space, count))
  start, _ = orthogonal(start, basis)
  state = (0, 0, basis, jnp.zeros((space, space)), start,
           jnp.zeros(2), jnp.float32(jnp.inf))
  _, _, basis, _, _, values, residual = jax.lax.while_loop(
      goes_on, fill, state)
  return values, _unit(basis[0]), residual


def _unit(vector: jax.Array) -> jax.Array:
  return vector / jnp.maximum(jnp.linalg.norm(vector), 1e-30)


def component(mask: np.ndarray, seed: int) -> np.ndarray:
  """[y, x] bool: the patches of a mask that are joined to one, by sides."""
  rows, columns = mask.shape
  out, waiting = np.zeros_like(mask), [divmod(seed, columns)]
  while waiting:
    y, x = waiting.pop()
    if 0 <= y < rows and 0 <= x < columns and mask[y, x] and not out[y, x]:
      out[y, x] = True
      waiting += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
  return out


def discover(features: jax.Array, *, patch_px: int, image_px: tuple[int, int],
             tau: float, eps: float = 1e-5, weighted: bool = False) -> Cut:
  """The object of an image by TokenCut.

  Args:
    features: [y, x, d] patches.
    patch_px: side of a patch.
    image_px: rows and columns of the image, which may end within patches;
      patches beyond it are left out.
    tau: see `affinity`.
    eps: see `affinity`.
    weighted: see `affinity`.
  """
  rows, columns = (min(-(-n // patch_px), size) for n, size in zip(
      image_px, features.shape, strict=False))
  if rows * columns < 2:
    raise ValueError('an image of one patch cannot be cut: make it larger')
  flat = features[:rows, :columns].reshape(rows * columns, -1)
  # Images of nearly one size share a program.
  room = -len(flat) % _ROOM
  vector, values, converged = second_vector(
      jnp.pad(flat, ((0, room), (0, 0))),
      np.arange(len(flat) + room) < len(flat), tau, eps, weighted)
  vector = vector[:rows * columns]
  vector = np.asarray(vector, np.float64)
  seed = int(np.abs(vector).argmax())
  mask = vector > vector.mean()
  if not mask[seed]:
    vector, mask = -vector, ~mask
  mask = component(mask.reshape(rows, columns), seed)
  ys, xs = np.nonzero(mask)
  box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) * patch_px
  height, length = image_px
  return Cut(np.minimum(box, [length, height, length, height]), mask, seed,
             vector.reshape(rows, columns), np.asarray(values),
             bool(converged))
