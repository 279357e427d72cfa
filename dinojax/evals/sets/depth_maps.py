"""Depth of NYU, KITTI and SUN RGB-D, by the lists that papers use.

Source: folders and lists of BTS for NYU and KITTI (Eigen's split), whose boxes
  and units DINOv2 and DINOv3 take over; SUN RGB-D in the form of ZoeDepth, or
  its official folders.
"""

from etils import epath

from dinojax.core import errors
from dinojax.core import lists
from dinojax.data import listing
from dinojax.evals.sets import dense

_NYU = ('prepare it as BTS does, https://github.com/cleinc/bts: sync/ and '
        'official_splits/test/, with its lists of files beside them')
_KITTI = ('unpack the raw drives and data_depth_annotated.zip of '
          'https://www.cvlibs.net/datasets/kitti, with the lists of BTS '
          '(eigen_train_files_with_gt.txt) beside them')
_SUN = ('unpack SUNRGBD.zip of https://rgbd.cs.princeton.edu, or arrange '
        'test/rgb/rgb and gt/gt as ZoeDepth reads it')
_LISTS = {
    'nyu': {'train': ('nyu_train.txt', 'nyudepthv2_train_files_with_gt.txt'),
            'test': ('nyu_test.txt', 'nyudepthv2_test_files_with_gt.txt')},
    'kitti': {'train': ('eigen_train_files_with_gt.txt',),
              'test': ('eigen_test_files_with_gt.txt',)}}
_KB = (1216, 352)


def nyu_frame(size: tuple[int, int]) -> tuple[int, int, int, int]:
  """The part of a training frame inside of its white border."""
  del size
  return 43, 45, 608, 472


def kb_crop(size: tuple[int, int]) -> tuple[int, int, int, int]:
  """The lower middle of a KITTI frame.

  Raises:
    UserError: a smaller frame.
  """
  (width, height), (columns, rows) = size, _KB
  if width < columns or height < rows:
    raise errors.UserError(
        f'a frame of {width} × {height} pixels is no KITTI frame, which has '
        f'{columns} × {rows} or more: unpack the raw drives')
  left = (width - columns) // 2
  return left, height - rows, left + columns, height


def nyu(spec: str, split: str) -> dense.Set:
  """`nyu:DIR?split=train`, or test: millimetres, 640 × 480.

  Training frames are cut inside of their white border.

  Raises:
    UserError: files that are missing.
  """
  folder, given = dense.options(spec, 'nyu', split=split)
  rows, _ = _listed(spec, folder, 'nyu', given['split'], _NYU)
  below = {'train': 'sync', 'test': 'official_splits/test'}[given['split']]
  roots = _roots(spec, folder, ('', below, f'nyu_depth_v2/{below}'),
                 rows[0][0], _NYU)
  files = sorted((f'{roots}/{image}', f'{roots}/{depth}', image)
                 for image, depth in rows)
  return dense.Set(
      f'nyu:{folder}?split={given["split"]}', files, dense.Metres(0.001),
      cut=nyu_frame if given['split'] == 'train' else None)


def kitti(spec: str, split: str) -> dense.Set:
  """`kitti:DIR?split=train`, or test: Eigen's, 1/256 metres, sparse.

  Frames without ground truth are left out: 45 of the 697 for testing.

  Raises:
    UserError: files that are missing.
  """
  folder, given = dense.options(spec, 'kitti', split=split)
  rows, missing = _listed(spec, folder, 'kitti', given['split'], _KITTI)
  images = _roots(spec, folder, ('', 'raw', 'input', 'raw_data'), rows[0][0],
                  _KITTI)
  files = []
  for image, depth in rows:
    path = next((f'{folder}/{part}{depth}' for part in (
        'gt_depth/', '', 'data_depth_annotated/', 'train/', 'val/',
        'data_depth_annotated/train/', 'data_depth_annotated/val/')
                 if epath.Path(f'{folder}/{part}{depth}').exists()), None)
    if path is None:
      raise errors.UserError(
          f'{spec} is not complete: {depth} is missing; {_KITTI}')
    files.append((f'{images}/{image}', path, image))
  return dense.Set(f'kitti:{folder}?split={given["split"]}', sorted(files),
                   dense.Metres(1 / 256), cut=kb_crop, left_out=missing)


def sunrgbd(spec: str, split: str) -> dense.Set:
  """`sunrgbd:DIR`: ZoeDepth's test/rgb/rgb and gt/gt, or official frames.

  Official depths have their bits rotated, ZoeDepth's are plain millimetres;
  depths beyond 8 metres are unknown.

  Raises:
    UserError: files that are missing.
  """
  del split  # it is for tests alone
  folder, _ = dense.options(spec, 'sunrgbd')
  if epath.Path(f'{folder}/test/rgb/rgb').exists():
    dense.need(spec, f'{folder}/gt/gt', _SUN)
    return dense.Set(
        spec, dense.pairs_by_stem(
            spec, f'{folder}/test/rgb/rgb', f'{folder}/gt/gt'),
        dense.Metres(0.001, limit=8.0))
  files = []
  dense.need(spec, folder, _SUN)
  for name in listing.look(folder).paths:
    frame, kind, _ = ['', *name.rsplit('/', 2)][-3:]
    if kind == 'image':
      depths = listing.look(f'{folder}/{frame}/depth').paths
      if len(depths) != 1:
        raise errors.UserError(
            f'{spec} is not complete: {folder}/{frame}/depth holds '
            f'{len(depths)} maps and not one; {_SUN}')
      files.append((f'{folder}/{name}', f'{folder}/{frame}/depth/{depths[0]}',
                    name))
  if not files:
    raise errors.UserError(
        f'{spec} is not complete: {folder}/test/rgb/rgb is missing; {_SUN}')
  return dense.Set(spec, files, dense.Metres(0.001, rotated=True, limit=8.0))


def _listed(spec: str, folder: str, kind: str, split: str, source: str
            ) -> tuple[list[tuple[str, str]], int]:
  """(image, depth) of a list's rows, and how many rows have no depth."""
  if split not in _LISTS[kind]:
    raise errors.UserError(
        f'{spec}: split={split} is not known: use train or test')
  names = _LISTS[kind][split]
  path = next((f'{folder}/{name}' for name in names
               if epath.Path(f'{folder}/{name}').exists()), None)
  dense.need(spec, path or f'{folder}/{names[-1]}', source)
  rows = [line.split()[:2] for line in lists.lines(epath.Path(path))]
  wrong = [row for row in rows if len(row) < 2]
  if wrong or not rows:
    raise errors.UserError(
        f'{path} has no rows of an image and its depth: {source}')
  # Rows of training begin with a slash, which would lead away from the folder.
  kept = [(image.lstrip('/'), depth.lstrip('/')) for image, depth in rows
          if depth != 'None']
  return kept, len(rows) - len(kept)


def _roots(spec: str, folder: str, below: tuple[str, ...], first: str,
           source: str) -> str:
  """The folder that the paths of a list begin at."""
  for part in below:
    root = f'{folder}/{part}'.rstrip('/')
    if epath.Path(f'{root}/{first}').exists():
      return root
  raise errors.UserError(
      f'{spec} is not complete: {folder}/{below[0]}{first} is missing; '
      f'{source}')
