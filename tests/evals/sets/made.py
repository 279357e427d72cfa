"""Miniatures of the sets that protocols without training read."""

import csv
import json
import pathlib

import numpy as np
from PIL import Image


def scene(shift: int = 0, size: tuple[int, int] = (64, 48),
          seed: int = 0) -> Image.Image:
  """A bright square on noise, moved to the right."""
  rng = np.random.default_rng(seed)
  out = rng.integers(0, 90, (size[1], size[0], 3)).astype(np.uint8)
  out[16:32, 16 + shift:32 + shift] = (250, 240, 40)
  return Image.fromarray(out)


def square(shift: int = 0, size: tuple[int, int] = (64, 48),
           value: int = 1) -> np.ndarray:
  """[y, x] uint8: the square of `scene`."""
  out = np.zeros(size[::-1], np.uint8)
  out[16:32, 16 + shift:32 + shift] = value
  return out


def palette(mask: np.ndarray, path: pathlib.Path):
  """A palette PNG whose colours are unlike its numbers."""
  out = Image.frombytes('P', mask.shape[::-1], mask.tobytes())
  out.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [7] * 759)
  path.parent.mkdir(parents=True, exist_ok=True)
  out.save(path)


def table(path: pathlib.Path, rows: list[dict], encoding: str = 'utf-8',
          end: str = '\n') -> str:
  """A CSV file; returns its path as text."""
  with open(path, 'w', encoding=encoding, newline='') as file:
    writer = csv.DictWriter(file, rows[0].keys(), lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
  return str(path)


def videos(root: pathlib.Path, num_frames: int = 5, inner: str = '',
           names: tuple[str, ...] = ('a', 'b')) -> pathlib.Path:
  """Videos of a square that moves by a patch of 8 a frame."""
  for name in names:
    for t in range(num_frames):
      folder = root / 'JPEGImages' / inner / name
      folder.mkdir(parents=True, exist_ok=True)
      scene(4 * t, seed=t).save(folder / f'{t:05d}.jpg', quality=95)
      palette(square(4 * t), root / 'Annotations' / inner / name
              / f'{t:05d}.png')
  return root


def davis(root: pathlib.Path) -> pathlib.Path:
  """DAVIS-2017, its list without a last newline and with CRLF."""
  videos(root, inner='480p', names=('bear', 'dog', 'extra'))
  (root / 'ImageSets/2017').mkdir(parents=True)
  (root / 'ImageSets/2017/val.txt').write_bytes(b'dog\r\nbear')
  return root


def keypoints(root: pathlib.Path, **table_options) -> str:
  """Corners of the square in three images."""
  rows = []
  for i in range(3):
    scene(8 * i).save(root / f'{i}.png')
    for part, (x, y) in {'a': (16, 16), 'b': (31, 31)}.items():
      rows.append({'image': f'{i}.png', 'part': part, 'x': x + 8 * i, 'y': y})
  return 'keypoints:' + table(root / 'points.csv', rows, **table_options)


def homographies(root: pathlib.Path) -> str:
  """An image and itself moved by 8 pixels."""
  scene(0).save(root / 'h0.png')
  scene(8).save(root / 'h1.png')
  (root / 'H.txt').write_text('1 0 8\n0 1 0\n0 0 1\n')
  return 'homographies:' + table(root / 'pairs.csv', [
      {'image1': 'h0.png', 'image2': 'h1.png', 'homography': 'H.txt'}])


def boxes(root: pathlib.Path, **table_options) -> str:
  """Two images with the box of the square, and a second box in one."""
  rows = []
  for i in range(2):
    scene(8 * i).save(root / f'b{i}.png')
    rows.append({'image': f'b{i}.png', 'x0': 16 + 8 * i, 'y0': 16,
                 'x1': 32 + 8 * i, 'y1': 32})
  rows.append({'image': 'b1.png', 'x0': 0, 'y0': 0, 'x1': 4, 'y1': 4})
  return 'boxes:' + table(root / 'boxes.csv', rows, **table_options)


def voc(root: pathlib.Path, year: str = '2007') -> pathlib.Path:
  """VOC: a box of a part, which is no object, and a list with CRLF."""
  inner = root / f'VOCdevkit/VOC{year}'
  for name in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
    (inner / name).mkdir(parents=True)
  for i in range(2):
    scene(8 * i).save(inner / f'JPEGImages/00000{i}.jpg')
    box = (f'<bndbox><ymax>32</ymax><xmin>{17 + 8 * i}</xmin>'
           f'<ymin>17.0</ymin><xmax>{32 + 8 * i}</xmax></bndbox>')
    part = ('<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin>'
            '<xmax>3</xmax><ymax>3</ymax></bndbox></part>')
    (inner / f'Annotations/00000{i}.xml').write_text(
        f'<annotation><object><name>dog</name>{part}<difficult>1</difficult>'
        f'{box}</object></annotation>')
  (inner / 'ImageSets/Main/trainval.txt').write_bytes(b'000001\r\n000000\r\n')
  return root


def coco(root: pathlib.Path) -> pathlib.Path:
  """Train2014 with the list of LOST, a crowd, and an image without boxes."""
  (root / 'train2014').mkdir(parents=True)
  (root / 'annotations').mkdir()
  names = [f'COCO_train2014_{i:012d}.jpg' for i in range(3)]
  for i, name in enumerate(names):
    scene(8 * i).save(root / 'train2014' / name)
  notes = [{'image_id': i, 'bbox': [16.4 + 8 * i, 16, 15.8, 16], 'iscrowd': 0}
           for i in range(2)]
  notes.append({'image_id': 0, 'bbox': [0, 0, 60, 40], 'iscrowd': 1})
  (root / 'annotations/instances_train2014.json').write_text(json.dumps({
      'images': [{'id': i, 'file_name': name}
                 for i, name in enumerate(names)], 'annotations': notes}))
  (root / 'coco_20k_filenames.txt').write_text('\n'.join(
      f'train2014/{name}' for name in reversed(names)))
  return root


def spair(root: pathlib.Path) -> pathlib.Path:
  """SPair-71k of two categories."""
  folder = root / 'PairAnnotation/test'
  folder.mkdir(parents=True)
  for number, category in enumerate(('dog', 'cat')):
    (root / 'JPEGImages' / category).mkdir(parents=True)
    for i in range(2):
      scene(8 * i).save(root / 'JPEGImages' / category / f'{i}.jpg')
    (folder / f'00000{number}-0-1:{category}.json').write_text(json.dumps({
        'src_imname': '0.jpg', 'trg_imname': '1.jpg', 'category': category,
        'src_kps': [[16, 16], [31, 31]], 'trg_kps': [[24, 16], [39, 31]],
        'trg_bndbox': [24, 16, 40, 32], 'viewpoint_variation': number}))
  return root


def navi(root: pathlib.Path) -> pathlib.Path:
  """NAVI: a flat square a metre away, before two cameras 0.1 m apart.

  Scenes have underscores where the list has hyphens.
  """
  scenes = root / 'cup/wild_set'
  for name in ('images', 'depth'):
    (scenes / name).mkdir(parents=True)
  notes = []
  for i, shift in enumerate((0, 8)):
    scene(shift).save(scenes / f'images/00{i}.jpg', quality=95)
    depth = np.where(square(shift), 655.35, 0).round().astype(np.uint16)
    Image.fromarray(depth).save(scenes / f'depth/00{i}.png')
    notes.append({'filename': f'00{i}.jpg', 'camera': {
        'q': [1, 0, 0, 0], 't': [100.0 * i, 0, 0], 'focal_length': 80.0}})
  (scenes / 'annotations.json').write_text(json.dumps(notes))
  lists = root / 'custom_splits/pairwise_pixel_correspondences'
  lists.mkdir(parents=True)
  (lists / 'pairs-wild_set.txt').write_bytes(
      b'cup/wild-set/images/000.jpg cup/wild-set/images/001.jpg 0.0')
  return root
