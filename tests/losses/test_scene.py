"""Scenes: coordinates of the first frame, cameras as numbers, losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.losses import scene
from dinojax.metrics import cameras
from tests import scenes

confident = jax.jit(scene.confident, static_argnames='are_points')
of_cameras = jax.jit(scene.cameras)


def truth_of(rows):
  return jax.device_get(jax.jit(scene.truth)(*(
      rows[name][None] for name in ('depth', 'extrinsics', 'intrinsics'))))


@pytest.fixture(scope='module')
def rows():
  return scenes.drawn(np.random.default_rng(0), 3)


def test_rotations_become_numbers_and_come_back():
  rng = np.random.default_rng(0)
  turns = np.stack([scenes.turned(rng, 3.1) for _ in range(200)] + [
      np.diag(signs) for signs in ((1, 1, 1), (1, -1, -1), (-1, 1, -1),
                                   (-1, -1, 1))])
  numbers = scene.quaternions(jnp.float32(turns))
  assert (np.asarray(numbers[:, 3]) >= 0).all()
  np.testing.assert_allclose(np.linalg.norm(numbers, axis=1), 1, rtol=1e-6)
  np.testing.assert_allclose(scene.rotations(3 * numbers), turns, atol=2e-6)


def test_a_quarter_turn_around_the_vertical():
  quarter = np.float32([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
  np.testing.assert_allclose(
      scene.quaternions(quarter), [0, np.sqrt(0.5), 0, np.sqrt(0.5)],
      atol=1e-6)


def test_the_first_frame_is_the_world_and_points_are_one_away(rows):
  got = truth_of(rows)
  np.testing.assert_allclose(
      got.cameras[0, 0], [0, 0, 0, 0, 0, 0, 1, 2 * np.arctan(24 / 60),
                          2 * np.arctan(32 / 60)], atol=1e-6)
  away = np.linalg.norm(got.points, axis=-1)
  np.testing.assert_allclose(away.mean(), 1, rtol=1e-5)
  # The first camera is the world: points are those of its own rays.
  np.testing.assert_allclose(
      got.points[0, 0, ..., 2], got.depth[0, 0], rtol=1e-6)
  # Whatever the world was before.
  turn, shift = scenes.turned(np.random.default_rng(3)), np.float32([1, 2, 3])
  moved = rows['extrinsics'].copy()
  moved[..., :3] = rows['extrinsics'][..., :3] @ turn.T
  moved[..., 3] = rows['extrinsics'][..., 3] - moved[..., :3] @ shift
  again = truth_of(rows | {'extrinsics': np.float32(moved)})
  for name in ('cameras', 'depth', 'points'):
    np.testing.assert_allclose(
        getattr(again, name), getattr(got, name), atol=2e-5)


def test_points_of_all_frames_lie_on_one_wall(rows):
  got = truth_of(rows)
  first = got.points[0, 0].reshape(-1, 3)
  near = got.points[0, 1].reshape(-1, 3)[::37]
  away = np.linalg.norm(near[:, None] - first[None], axis=-1).min(1)
  # Where both frames see the wall, a point of one is beside one of the other.
  assert np.median(away) < 0.01


def test_what_is_perfect_costs_nothing_but_doubt(rows):
  got = truth_of(rows)
  one = np.ones((1,), np.float32)
  assert float(of_cameras(got.cameras[None], got.cameras, one)) == 0
  sure = np.ones_like(got.depth)
  values = [confident(
      got.depth[..., None], sure, got.depth[..., None], got.valid,
      are_points=False), confident(
          got.points, sure, got.points, got.valid, are_points=True)]
  assert max(abs(float(x)) for x in values) < 1e-5
  # What is right gains by being sure of it.
  assert float(confident(
      got.depth[..., None], 2 * sure, got.depth[..., None], got.valid,
      are_points=False)) == pytest.approx(-0.2 * np.log(2), rel=1e-5)


def test_later_rounds_weigh_more_and_a_far_shift_is_cut_off():
  target, one = np.zeros((1, 2, 9), np.float32), np.ones(1, np.float32)
  wrong = np.zeros((2, 1, 2, 9), np.float32)
  early, late = wrong.copy(), wrong.copy()
  early[0, ..., 3:7], late[1, ..., 3:7] = 1, 1
  early, late = (float(of_cameras(x, target, one)) for x in (early, late))
  assert early == pytest.approx(0.6 * late) and late == pytest.approx(0.5)
  wrong[1, ..., :3] = 1e6
  assert float(of_cameras(wrong, target, one)) == pytest.approx(50)
  assert float(of_cameras(wrong, target, 0 * one)) == 0


def test_the_largest_errors_are_left_out_of_large_scenes():
  target = np.zeros((1, 1, 40, 40, 1), np.float32)
  valid, sure = np.ones((1, 1, 40, 40), bool), np.ones((1, 1, 40, 40))
  wrong = target.copy()
  wrong[0, 0, 0, :10] = 50
  got = float(confident(
      wrong, np.float32(sure), target, valid, are_points=False))
  slopes = float(scene._slopes(wrong, target, valid))
  assert got == pytest.approx(slopes)
  valid[:, :, 20:] = False  # of a small one they count
  got = float(confident(
      wrong, np.float32(sure), target, valid, are_points=False))
  assert got > 1


def test_angles_between_cameras_are_those_of_their_pairs():
  rng = np.random.default_rng(0)
  turn = np.stack([scenes.turned(rng) for _ in range(4)])
  shift = rng.normal(size=(4, 3))
  same = cameras.angles(turn, 3 * shift, turn, shift)
  assert max(map(np.max, same)) < 1e-3  # a scale is no error
  assert cameras.area(*same) == 100
  tilt = np.radians(10)
  other = turn.copy()
  other[2] = [[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0],
              [0, 0, 1]] @ turn[2]
  rotation, _ = cameras.angles(other, shift, turn, shift)
  np.testing.assert_allclose(sorted(rotation), [0, 0, 0, 10, 10, 10],
                             atol=1e-4)
  assert cameras.area(np.full(3, 9.5), np.zeros(3)) == pytest.approx(70)
