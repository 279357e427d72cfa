"""ADE20K, as the scene parsing challenge gives it out: 150 classes.

Source: ADEChallengeData2016.zip of the SceneParsing benchmark, whose README
  has the layout; label 0 is other things and ignored, 1 to 150 are classes.
"""

from etils import epath

from dinojax.core import errors
from dinojax.core import lists
from dinojax.evals.sets import dense

NUM_CLASSES = 150
_PARTS = {'train': 'training', 'val': 'validation'}
_SOURCE = ('unpack ADEChallengeData2016.zip of '
           'http://sceneparsing.csail.mit.edu and give its folder')


def opened(spec: str, split: str) -> dense.Set:
  """`ade20k:DIR?split=train`, or val.

  Raises:
    UserError: files that are missing, or the full set of 2021.
  """
  folder, given = dense.options(spec, 'ade20k', split=split)
  part = _PARTS.get(given['split'])
  if part is None:
    raise errors.UserError(
        f'{spec}: split={given["split"]} is not known: use train or val')
  if epath.Path(f'{folder}/images/ADE').exists():
    raise errors.UserError(
        f'{spec} is the full ADE20K, which has thousands of classes: {_SOURCE}')
  for path in (f'images/{part}', f'annotations/{part}', 'objectInfo150.txt'):
    dense.need(spec, f'{folder}/{path}', _SOURCE)
  files = dense.pairs_by_stem(
      spec, f'{folder}/images/{part}', f'{folder}/annotations/{part}')
  # 0 is ignored, the others move down, and 255 stays.
  table = (dense.IGNORED, *range(254), dense.IGNORED)
  return dense.Set(
      f'ade20k:{folder}?split={given["split"]}', files,
      dense.Classes(NUM_CLASSES, table),
      classes=_names(f'{folder}/objectInfo150.txt'))


def _names(path: str) -> list[str]:
  """Names of the classes: the first of each line's last column.

  Raises:
    UserError: not 150.
  """
  rows = [line.split('\t') for line in lists.lines(epath.Path(path))[1:]]
  names = [row[-1].partition(',')[0].strip() for row in rows]
  if len(names) != NUM_CLASSES:
    raise errors.UserError(
        f'{path} has {len(names)} classes and not {NUM_CLASSES}: unpack it '
        'again')
  return names
