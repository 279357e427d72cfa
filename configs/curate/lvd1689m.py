"""The corpus of DINOv3: an even draw of clusters, beside it retrieval.

  dinojax curate --config=lvd1689m --workdir=/shared/lvd --engine=ray
  dinojax curate --config=lvd1689m --plan=17e9 --machine=H100-SXM:512

Hierarchical k-means of five levels on DINOv2's features and a balanced draw
from it; beside it, retrieval as in lvd142m; and chosen sets as they are. A
tenth of the batches are of ImageNet-1k alone. Give your own pool, sets and
weights. `:smoke` is all of it on the embedded photographs.

Source: DINOv3, section 3.1; Vo et al. 2024 for the levels.
Differs: the sets of retrieval and the shares of the mixture are not published;
those here are ours. The paper removes no copies, and neither does this.
"""

from ml_collections import config_dict

from dinojax.configs import common
from dinojax.core import errors
from dinojax.curate import recipe

STAGES = ('ingest', 'filter', 'embed', 'cluster', 'sample', 'retrieve',
          'materialize')
LEVELS = (200_000_000, 8_000_000, 800_000, 100_000, 25_000)


def get_config(arg: str = ''):
  """`:smoke`, small and with what is embedded."""
  c = config_dict.ConfigDict(common.section(recipe.Settings))
  c.stages = STAGES
  c.ingest.pools = ('parquet:/shared/pool/*.parquet',)
  c.ingest.rows_per_shard = 1_000_000
  c.embed.descriptor = 'model:facebook/dinov2-large'
  c.cluster.levels, c.cluster.split = LEVELS, 200
  c.cluster.start = 'random'
  c.sample.images = 1_689_000_000
  c.retrieve.samples = (('tfds:imagenet2012/train', 32),
                        ('folder:/shared/imagenet22k', 4))
  c.materialize.weights = (('sample', 0.7), ('retrieve', 0.2))
  c.materialize.others = (('folder:/shared/imagenet22k', 0.1),)
  c.materialize.homogeneous = (('tfds:imagenet2012/train', 0.1),)
  if arg not in ('', 'smoke'):
    raise errors.UserError(
        f'lvd1689m:{arg} is not known: give lvd1689m or lvd1689m:smoke')
  if arg == 'smoke':
    _small(c)
  return c


def _small(c: config_dict.ConfigDict):
  """The same stages for some thousand photographs, without weights."""
  c.ingest.pools, c.ingest.rows_per_shard = ('photos:train',), 500
  c.embed.descriptor = 'pixels:8'
  c.cluster.levels, c.cluster.split = (200, 60, 30, 12, 5), 5
  c.cluster.start, c.cluster.iterations = 'auto', 10
  c.sample.images = 400
  c.retrieve.samples = (('photos:validation', 4),)
  c.materialize.others = (('photos:validation', 0.1),)
  c.materialize.homogeneous = (('photos:validation', 0.1),)
  c.materialize.images_per_shard = 200
