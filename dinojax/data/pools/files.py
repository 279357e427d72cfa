"""Files of a pool, named from the folder that they share."""

from collections.abc import Iterable
import os

from dinojax.core import errors


class Files:
  """Sorted names, which are the same wherever the folder lies.

  Attributes:
    names: paths below the folder that all share.
  """

  def __init__(self, spec: str, matches: Iterable[str]):
    """Takes paths.

    Raises:
      UserError: there are none.
    """
    matches = sorted(set(matches))
    if not matches:
      raise errors.UserError(
          f'{spec} matches no file: check the path, and quote a pattern')
    self._root = os.path.commonpath(
        [os.path.dirname(path) or '.' for path in matches])
    self.names = [os.path.relpath(path, self._root) for path in matches]

  def path(self, name: str) -> str:
    """Path of a file."""
    return os.path.join(self._root, name)

  def sizes(self) -> list[str]:
    """Names with their sizes in bytes."""
    return [f'{name}\t{os.path.getsize(self.path(name))}'
            for name in self.names]
