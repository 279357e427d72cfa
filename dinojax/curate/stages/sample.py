"""Sample: equally many images of every cluster, from the top down."""

from collections.abc import Sequence
import dataclasses
from typing import Literal

import numpy as np

from dinojax.core import fields
from dinojax.curate import balance
from dinojax.curate import selections
from dinojax.curate.engines import work
from dinojax.curate.stages import base
from dinojax.curate.stages import cluster


@dataclasses.dataclass(frozen=True)
class Settings:
  """A balanced draw from a hierarchy of clusters."""

  images: fields.Natural = 0  # Images to draw in all; 0: half of the clustered.
  multiplicity: fields.Positive = 1  # How often an image may be drawn.
  # Images of a cluster: by chance, or those closest to its centroid.
  strategy: Literal['random', 'closest'] = 'random'
  seed: fields.Natural = 0  # Number of the draw.


class Sample(base.Stage):
  """A balanced draw from a hierarchy."""

  def phases(self) -> Sequence[work.Phase]:
    """Draws."""
    return (work.Phase(selections.SELECTED, base.once, self._draw),)

  def _draw(self, place: work.Place, index: int) -> work.Counts:
    """Shares the budget, and draws from every cluster."""
    c, clusters = self.config, self.input(place, 'clusters')
    table, above = cluster.assigned(clusters), cluster.above(clusters)
    finest = table['level_1']
    sizes = np.bincount(finest, minlength=len(cluster.centroids(clusters)))
    budgets = balance.cluster_budgets(
        sizes, above, c.images or len(finest) // 2,
        multiplicity=c.multiplicity, seed=c.seed)
    counts = balance.point_counts(
        finest, budgets[0], multiplicity=c.multiplicity,
        rank=table['distance'] if c.strategy == 'closest' else None,
        rows=table['row'], seed=c.seed)
    taken = np.flatnonzero(counts)
    return selections.write(
        place, index, table['row'][taken], counts[taken],
        {'cluster': finest[taken].astype(np.int64)})
