"""Labels handed on: against a plain program, and motions that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.evals import propagation


def by_hand(features, labels, rule):
  """Shares of all frames but the first, a patch at a time."""
  unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
  shares, (rows, columns) = [labels], features.shape[1:3]
  for t in range(1, len(features)):
    known = [0, *range(max(t - rule.context, 1), t)]
    out = np.zeros_like(labels)
    for y in range(rows):
      for x in range(columns):
        pairs = []
        for f in known:
          for i in range(rows):
            for j in range(columns):
              gap = (abs(y - i), abs(x - j))
              far = (np.hypot(*gap) if rule.neighborhood == 'circle'
                     else max(gap))
              if rule.radius is None or far <= rule.radius:
                pairs.append((unit[t, y, x] @ unit[f, i, j],
                                 shares[f][i, j]))
        pairs.sort(key=lambda pair: -pair[0])
        least = pairs[min(rule.top_k, len(pairs)) - 1][0]
        kept = [(c, share) for c, share in pairs if c >= least - 1e-9]
        weights = np.exp(np.array([c for c, _ in kept]) / rule.temperature)
        out[y, x] = sum(w * share for w, (_, share) in zip(
            weights, kept, strict=True)) / weights.sum()
    shares.append(out)
  return np.stack(shares[1:])


def shares_of(features, labels, rule):
  state = propagation.start(jnp.asarray(features[0]), labels, rule)
  out = []
  for frame in features[1:]:
    state, shares = propagation.step(state, jnp.asarray(frame), rule)
    out.append(np.asarray(shares))
  return np.stack(out)


@pytest.mark.parametrize('rule', [
    propagation.Rule(2, 2, 'circle', 3, 0.2),
    propagation.Rule(3, 1, 'square', 12, 0.1),
    propagation.Rule(0, 3, 'square', 4, 0.2),
    propagation.Rule(1, None, 'circle', 5, 0.2)])
def test_tiles_give_what_a_plain_program_gives(rule, monkeypatch):
  """Tiles of three patches on a grid that they do not divide."""
  monkeypatch.setattr(propagation, '_TILE', 3)
  monkeypatch.setattr(propagation, '_GROUP', 2)
  jax.clear_caches()
  rng = np.random.default_rng(0)
  features = rng.normal(size=(6, 7, 8, 5)).astype(np.float32)
  labels = np.eye(3, dtype=np.float32)[rng.integers(0, 3, (7, 8))]
  np.testing.assert_allclose(
      shares_of(features, labels, rule), by_hand(features, labels, rule),
      atol=2e-5)
  jax.clear_caches()


def test_a_still_video_keeps_its_mask():
  rng = np.random.default_rng(0)
  features = np.repeat(rng.normal(size=(1, 6, 7, 16)), 5, 0)
  mask = rng.integers(0, 3, (6, 7))
  labels = propagation.one_hot(mask, 4, (6, 7))
  shares = shares_of(features, labels, propagation.Rule(top_k=1))
  for frame in shares:
    np.testing.assert_array_equal(frame.argmax(-1), mask)
    np.testing.assert_array_equal(
        propagation.hard(jnp.asarray(frame), (24, 28)),
        np.kron(mask, np.ones((4, 4), int)))


@pytest.mark.parametrize('radius, reached', [(1, True), (0, False)])
def test_a_motion_of_a_patch_a_frame_is_followed(radius, reached):
  rng = np.random.default_rng(1)
  wide = rng.normal(size=(8, 20, 16))
  features = np.stack([wide[:, 6 - t:16 - t] for t in range(5)])
  mask = np.zeros((8, 20), int)
  mask[2:5, 8:11] = 1
  labels = propagation.one_hot(mask[:, 6:16], 2, (8, 10))
  last = shares_of(features, labels, propagation.Rule(
      context=1, radius=radius, top_k=1))[-1].argmax(-1)
  assert (last == mask[:, 2:12]).all() == reached


def test_the_largest_are_those_of_a_sort():
  rng = np.random.default_rng(0)
  values = rng.integers(0, 50, (9, 333)).astype(np.float32)  # many are equal
  np.testing.assert_array_equal(
      propagation.largest(jnp.asarray(values), 5), -np.sort(-values)[:, :5])


def test_labels_that_nobody_has_win_nowhere():
  """A frame without any object, and room for objects that are not there."""
  shares = np.zeros((3, 3, 4), np.float32)
  shares[..., 0] = 1
  assert not np.any(propagation.hard(jnp.asarray(shares), (6, 6)))
  assert not np.any(propagation.hard_v1(jnp.asarray(shares), (6, 6), 2))


def test_frames_of_a_video_share_a_program():
  rule = propagation.Rule(context=2, radius=2)
  rng = np.random.default_rng(0)
  before = propagation.step._cache_size()
  shares_of(rng.normal(size=(6, 5, 5, 4)).astype(np.float32),
            np.eye(2, dtype=np.float32)[np.ones((5, 5), int)], rule)
  assert propagation.step._cache_size() == before + 1
