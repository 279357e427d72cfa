"""All sets that are searched, by the scheme of their spec."""

from collections.abc import Callable
import functools
from typing import Any

from dinojax.data import sources
from dinojax.evals.sets import amstertime
from dinojax.evals.sets import met
from dinojax.evals.sets import ranking
from dinojax.evals.sets import revisited

OPENERS: dict[str, Callable[[str], Any]] = {
    'roxford5k': functools.partial(revisited.Revisited, 'roxford5k'),
    'rparis6k': functools.partial(revisited.Revisited, 'rparis6k'),
    'met': functools.partial(met.Met, 'met'),
    'met_mini': functools.partial(met.Met, 'met_mini'),
    'amstertime': amstertime.AmsterTime,
    'relevance': ranking.Relevance}
WORDS = ('a source whose sub-folders are groups, such as folder:DIR, or one of '
         + ', '.join(f'{scheme}:DIR' for scheme in OPENERS))


def open_set(spec: str) -> Any:
  """Opens a set that is searched: one of OPENERS, or a source of groups.

  Raises:
    UserError: nothing there, or another layout.
  """
  scheme, _, rest = spec.partition(':')
  if scheme in OPENERS:
    return OPENERS[scheme](rest)
  return sources.open_source(spec)
