"""Masks of Pascal VOC 2007 and 2012, and of 2012 with those of SBD.

Source: VOCdevkit, masks are palette PNG; the augmented list is that of the
  mirrors that hold SegmentationClassAug.
"""

from etils import epath

from dinojax.core import errors
from dinojax.core import lists
from dinojax.evals.sets import dense

CLASSES = (
    'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus',
    'car', 'cat', 'chair', 'cow', 'diningtable', 'dog', 'horse', 'motorbike',
    'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor')
_SOURCE = ('unpack the archives of http://host.robots.ox.ac.uk/pascal/VOC and '
           'give the folder VOCdevkit')
_AUGMENTED = ('trainaug needs SegmentationClassAug and ImageSets/Segmentation/'
              'trainaug.txt, the masks of SBD as PNG')


def opened(spec: str, split: str) -> dense.Set:
  """`voc2012:VOCdevkit?split=train`, val, trainval, test or trainaug.

  Raises:
    UserError: files that are missing.
  """
  scheme = spec.partition(':')[0]
  folder, given = dense.options(spec, scheme, split=split)
  year, part = scheme.removeprefix('voc'), given['split']
  if (epath.Path(folder) / f'VOC{year}').exists():
    folder = f'{folder}/VOC{year}'
  masks = 'SegmentationClassAug' if part == 'trainaug' else 'SegmentationClass'
  source = _AUGMENTED if part == 'trainaug' else _SOURCE
  names = f'{folder}/ImageSets/Segmentation/{part}.txt'
  for path in (f'{folder}/JPEGImages', names, f'{folder}/{masks}'):
    dense.need(spec, path, source)
  files = []
  for name in sorted(lists.lines(epath.Path(names))):
    # Lists of SBD in some copies have paths: the name alone counts.
    name = name.split()[0].rpartition('/')[2].rpartition('.')[0] or (
        name.split()[0])
    files.append((f'{folder}/JPEGImages/{name}.jpg',
                  f'{folder}/{masks}/{name}.png', name))
  if not files:
    raise errors.UserError(f'{names} is empty: unpack it again')
  for path in files[0][:2]:
    dense.need(spec, path, source)
  return dense.Set(f'{scheme}:{folder}?split={part}', files,
                   dense.Classes(len(CLASSES)), classes=CLASSES)
