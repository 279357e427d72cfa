"""Sets of images with maps by the scheme of their spec."""

from collections.abc import Callable, Mapping
import os

from dinojax.core import errors
from dinojax.core import paths
from dinojax.evals.sets import dense


def opened(spec: str, split: str, openers: Mapping[
    str, Callable[[str, str], dense.Set]], plain: str) -> dense.Set:
  """The set of a spec, by what stands before its colon.

  Args:
    spec: 'SCHEME:DIR', '?split=' may follow for an official layout; or DIR
      alone.
    split: part of an official layout that is read if the spec names none.
    openers: functions of a spec and a part to a set, by scheme.
    plain: scheme of a folder alone.

  Raises:
    UserError: no such scheme, or files that are missing.
  """
  scheme, colon, _ = spec.partition(':')
  if scheme in openers and colon:
    return openers[scheme](spec, split)
  if os.path.isdir(paths.expand(spec.partition('?')[0])):
    return openers[plain](f'{plain}:{spec}', split)
  raise errors.UserError(
      f'{spec!r} is no set of {plain}, and no folder of that name is here: use '
      f'one of {", ".join(f"{name}:DIR" for name in openers)}')
