"""Frames of a room with cameras and depths: drawn, or of the sets beside."""

import pathlib

import numpy as np
from PIL import Image

ROOM = pathlib.Path(__file__).parents[2] / (
    'shared/data/rgbd_frames/sevenscenes')


def turned(rng, most=0.6):
  """A rotation by up to `most` around any axis."""
  axis = rng.normal(size=3)
  axis /= np.linalg.norm(axis)
  angle = rng.uniform(0.1, most)
  cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]],
                    [-axis[1], axis[0], 0]])
  return (np.eye(3) + np.sin(angle) * cross
          + (1 - np.cos(angle)) * cross @ cross)


def drawn(rng, frames=6, size=(48, 64), focal=60.0):
  """A wall of waves in three colours, from places in front of it.

  Rays meet the wall z = 4 + 0.3 sin(x) cos(y) of the world after a few steps.
  """
  rows, columns = size
  intrinsics = np.array([[focal, 0, columns / 2], [0, focal, rows / 2],
                         [0, 0, 1]])
  y, x = np.mgrid[:rows, :columns]
  rays = np.stack([(x - columns / 2) / focal, (y - rows / 2) / focal,
                   np.ones(size)], axis=-1)
  images, depths, extrinsics = [], [], []
  for i in range(frames):
    turn = np.eye(3) if i == 0 else turned(rng, 0.4)
    place = np.zeros(3) if i == 0 else rng.uniform(-0.6, 0.6, 3)
    ahead = rays @ turn  # of the camera in the world: Rᵀ d
    depth = np.full(size, 4.0)
    for _ in range(30):
      point = place + depth[..., None] * ahead
      wall = 4 + 0.3 * np.sin(point[..., 0]) * np.cos(point[..., 1])
      depth += 0.7 * (wall - point[..., 2]) / ahead[..., 2]
    point = place + depth[..., None] * ahead
    shade = np.stack([np.sin(3 * point[..., 0]), np.cos(4 * point[..., 1]),
                      np.sin(2 * point[..., 0] + 3 * point[..., 1])], axis=-1)
    images.append(np.uint8(127 + 120 * shade))
    depths.append(depth)
    extrinsics.append(np.concatenate(
        [turn, -turn @ place[:, None]], axis=1))
  return {'image': np.stack(images), 'depth': np.float32(depths),
          'extrinsics': np.float32(extrinsics),
          'intrinsics': np.float32(np.tile(intrinsics, (frames, 1, 1)))}


def room(frames=6, size=(96, 128), step=2):
  """Frames of the room of `rgbd_frames`, made smaller."""
  poses = sorted(ROOM.glob('*.pose.txt'))[::step][:frames]
  whole = np.loadtxt(ROOM / 'camera-intrinsics.txt') if (
      ROOM / 'camera-intrinsics.txt').exists() else np.loadtxt(
          ROOM.parent / 'camera-intrinsics.txt')
  scale = size[1] / 640
  intrinsics = whole.copy()
  intrinsics[:2] *= scale
  images, depths, extrinsics = [], [], []
  for path in poses:
    stem = path.name.removesuffix('.pose.txt')
    images.append(np.asarray(Image.open(ROOM / f'{stem}.jpg').resize(
        size[::-1], Image.Resampling.BILINEAR)))
    depths.append(np.asarray(Image.open(ROOM / f'{stem}.depth.png').resize(
        size[::-1], Image.Resampling.NEAREST)) / 1000)
    extrinsics.append(np.linalg.inv(np.loadtxt(path))[:3])
  return {'image': np.stack(images), 'depth': np.float32(depths),
          'extrinsics': np.float32(extrinsics),
          'intrinsics': np.float32(np.tile(intrinsics, (frames, 1, 1)))}
