"""Copy detection: `copydays:DIR`, and the plain layout, `copies:DIR`.

`copydays:DIR` holds `original/`, and any of `strong/`, `jpegqual/QUALITY/` and
`crops/PERCENT/`. A copy has the name of its original; of a strong one the
first four characters.

`copies:DIR` has a sub-folder a group, with one image called `original` (of any
ending); all others in it are copies.

Source: INRIA's Copydays in the folders of facebookresearch/dino,
  eval_copy_detection.py.
"""

import os

from etils import epath
import numpy as np

from dinojax.core import errors
from dinojax.core import text
from dinojax.data import listing
from dinojax.evals.sets import image_files

_HAD = ('the INRIA Copydays archives are unpacked into original/, strong/, '
        'jpegqual/QUALITY/ and crops/PERCENT/')
_BLOCK = 4  # characters of a strong copy's name that are its original's
_ORIGINAL = 'original'
_SEEN = {'original': 157, 'strong': 229}  # images of the published set


class Copies:
  """Originals, and copies of them in named subsets.

  Attributes:
    spec: name of the set.
    digest: a text that differs where its lists do.
    images: originals, then the copies of each subset.
    subsets: places of the copies among the images, by name.
    original_of: [n] place of each image's original, which is the image itself
      for originals.
  """

  def __init__(self, spec: str, root: epath.Path, originals: list[str],
               copies: dict[str, list[tuple[str, int]]]):
    """Puts lists together.

    Args:
      spec: name of the set.
      root: folder of all names.
      originals: names of the originals.
      copies: names, and numbers of their originals, by subset.
    """
    self.spec = spec
    names, self.subsets = list(originals), {}
    original_of = list(range(len(originals)))
    for subset, some in copies.items():
      self.subsets[subset] = len(names) + np.arange(len(some))
      names += [name for name, _ in some]
      original_of += [number for _, number in some]
    self.original_of = np.array(original_of)
    self.num_originals = len(originals)
    self.images = image_files.Files(spec, str(root), names)
    self.digest = image_files.digest(names, original_of)

  def __len__(self) -> int:
    return len(self.images)

  def counts(self) -> dict[str, str]:
    """A note where the counts are not those of the published set."""
    have = {'original': self.num_originals} | {
        name: len(places) for name, places in self.subsets.items()}
    odd = [f'{have[name]} {name} images, where the published set has {count}'
           for name, count in _SEEN.items() if have.get(name, count) != count]
    return {'counts': '; '.join(odd)} if odd and (
        self.spec.startswith('copydays:')) else {}


def copydays(folder: str) -> Copies:
  """Opens the published layout.

  Raises:
    UserError: a folder that is missing, or a copy without an original.
  """
  root = image_files.need(folder, (_ORIGINAL,), _HAD)
  originals = _inside(root, _ORIGINAL)
  by_name = {_stem(name): i for i, name in enumerate(originals)}
  by_block = {_stem(name)[:_BLOCK]: i for i, name in enumerate(originals)}
  copies: dict[str, list[tuple[str, int]]] = {}
  for kind in ('strong', 'jpegqual', 'crops'):
    if not (root / kind).is_dir():
      continue
    for name in _inside(root, kind):
      subset = kind if kind == 'strong' else name.rpartition('/')[0]
      number = (by_block.get(_stem(name)[:_BLOCK]) if kind == 'strong'
                else by_name.get(_stem(name)))
      if number is None:
        raise errors.UserError(
            f'{root / name} has no original in {root / _ORIGINAL}: a copy has '
            'the name of its original, and a strong one its first four '
            f'characters; {_HAD}')
      copies.setdefault(subset, []).append((name, number))
  if not copies:
    raise errors.UserError(
        f'{root} has originals and no copies: strong/, jpegqual/ or crops/ is '
        f'missing; {_HAD}')
  return Copies(f'copydays:{folder}', root, originals, copies)


def plain(folder: str) -> Copies:
  """Opens the plain layout.

  Raises:
    UserError: a group without an original, or no copies.
  """
  root = image_files.need(
      folder, (), 'a set of your own has a sub-folder a group, with one image '
      'called original and its copies')
  groups: dict[str, list[str]] = {}
  for name in listing.look(str(root)).paths:
    groups.setdefault(name.rpartition('/')[0], []).append(name)
  originals, copies = [], []
  for group, names in sorted(groups.items()):
    first = [name for name in names if _stem(name) == _ORIGINAL]
    if len(first) != 1:
      raise errors.UserError(
          f'{root / group} has {len(first)} images called original, such as '
          f'original.jpg, and {len(names) - len(first)} others '
          f'({text.listed(names)}): a group has one')
    copies += [(name, len(originals)) for name in names if name != first[0]]
    originals += first
  if not copies:
    raise errors.UserError(f'{root} has no copies: put them beside the image '
                           'called original of their group')
  return Copies(f'copies:{folder}', root, originals, {'copies': copies})


OPENERS = {'copydays': copydays, 'copies': plain}


def open_set(spec: str) -> Copies:
  """Opens a set of copies.

  Raises:
    UserError: nothing there, or another layout.
  """
  scheme, _, rest = spec.partition(':')
  if scheme not in OPENERS:
    raise errors.UserError(
        f'{spec} is no set of copies: use copydays:DIR, or copies:DIR with a '
        'sub-folder a group')
  return OPENERS[scheme](rest)


def _inside(root: epath.Path, kind: str) -> list[str]:
  """Names of the images of a sub-folder, relative to the root, sorted.

  Raises:
    UserError: there are none.
  """
  names = [f'{kind}/{name}' for name in listing.look(str(root / kind)).paths]
  if not names:
    raise errors.UserError(f'{root / kind} holds no images: {_HAD}')
  return names


def _stem(name: str) -> str:
  return os.path.splitext(os.path.basename(name))[0]
