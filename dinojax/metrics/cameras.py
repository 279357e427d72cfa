"""Errors of cameras, between all pairs of the frames of a scene; numpy."""

import numpy as np


def angles(turn: np.ndarray, shift: np.ndarray, true_turn: np.ndarray,
           true_shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Errors of rotation and of the direction of translation, in degrees.

  Args:
    turn: [s, 3, 3] world-to-camera.
    shift: [s, 3].
    true_turn: [s, 3, 3].
    true_shift: [s, 3].

  Returns:
    [r] each, of the pairs of frames.

  Source: relative angles as VGGT and those before it measure them.
  """
  first, second = np.triu_indices(len(turn), 1)
  (ours, moved), (theirs, wanted) = (
      _relative(np.asarray(r, np.float64), np.asarray(t, np.float64), first,
                second) for r, t in ((turn, shift), (true_turn, true_shift)))
  trace = np.einsum('rij,rij->r', ours, theirs)
  rotation = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
  length = np.linalg.norm(moved, axis=1) * np.linalg.norm(wanted, axis=1)
  cosine = np.sum(moved * wanted, axis=1) / np.maximum(length, 1e-12)
  return rotation, np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def area(rotation: np.ndarray, direction: np.ndarray,
         most: int = 30) -> float:
  """Mean share of pairs right within 1, 2, … degrees, in per cent (AUC).

  Args:
    rotation: [r] degrees.
    direction: [r] degrees.
    most: greatest number of degrees.
  """
  worst = np.maximum(rotation, direction)
  return 100 * float(np.mean([
      (worst < limit).mean() for limit in range(1, most + 1)]))


def _relative(turn: np.ndarray, shift: np.ndarray, first: np.ndarray,
              second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Second cameras as seen from first ones."""
  between = turn[second] @ turn[first].transpose(0, 2, 1)
  return between, shift[second] - np.einsum(
      'rij,rj->ri', between, shift[first])
