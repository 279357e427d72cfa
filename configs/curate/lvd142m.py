"""The corpus of DINOv2: images of the web that resemble those of chosen sets.

  dinojax curate --config=lvd142m --workdir=/shared/lvd --engine=ray
  dinojax curate --config=lvd142m --plan=1.3e9 --machine=v5e:8x8

Copies go by a hash and by SSCD, whole components above 0.60; then whatever a
component above 0.45 joins to a benchmark; what is left is searched with the
images of chosen sets. Give your own pool, sets and weights: the names here are
places where they would be. `:smoke` is all of it on the embedded photographs.

Source: DINOv2, section 3 and appendix A, with table 15.
Differs: the paper does not publish its lists of addresses, the length of its
hash, its judges, nor the embedding model, a ViT-H/16 of ImageNet-22k.
"""

from ml_collections import config_dict

from dinojax.configs import common
from dinojax.core import errors
from dinojax.curate import recipe

STAGES = ('ingest', 'filter', 'hash', 'describe', 'dedup', 'decontaminate',
          'embed', 'retrieve', 'materialize')


def get_config(arg: str = ''):
  """`:smoke`, small and with what is embedded."""
  c = config_dict.ConfigDict(common.section(recipe.Settings))
  c.stages = STAGES
  c.ingest.pools = ('img2dataset:/shared/crawl',)
  c.ingest.rows_per_shard = 1_000_000
  c.hash.bits = 256
  c.describe.descriptor = 'sscd:/shared/sscd_disc_mixup.torchvision.pt'
  c.dedup.threshold, c.dedup.floor, c.dedup.k = 0.6, 0.45, 64
  c.decontaminate.references = (
      'tfds:imagenet2012/validation', 'folder:/shared/benchmarks')
  c.decontaminate.threshold, c.decontaminate.transitive = 0.45, True
  c.embed.descriptor = 'model:facebook/dinov2-large'
  c.retrieve.samples = (
      ('folder:/shared/imagenet22k', 4), ('tfds:imagenet2012/train', 32),
      ('folder:/shared/landmarks', 4))
  c.retrieve.on_collision = 'unique'
  c.retrieve.clusters = (
      ('folder:/shared/fine_grained', 10_000),
      ('folder:/shared/scenes', 10_000))
  c.retrieve.num_clusters, c.retrieve.more_than = 100_000, 3
  c.retrieve.cap = 1_000_000
  c.materialize.others = (('folder:/shared/imagenet22k', 14_197_086.0),
                          ('folder:/shared/landmarks', 1_580_470.0))
  if arg not in ('', 'smoke'):
    raise errors.UserError(
        f'lvd142m:{arg} is not known: give lvd142m or lvd142m:smoke')
  if arg == 'smoke':
    _small(c)
  return c


def _small(c: config_dict.ConfigDict):
  """The same stages for some thousand photographs, without weights."""
  c.ingest.pools, c.ingest.rows_per_shard = ('photos:train',), 500
  c.hash.bits = 64
  c.describe.descriptor = c.embed.descriptor = 'pixels:8'
  c.dedup.threshold, c.dedup.floor = 0.98, 0.95  # of mean colours
  c.decontaminate.references = ('photos:validation',)
  c.decontaminate.threshold = 0.95
  c.retrieve.samples = (('held_out:photos:validation', 4),)
  c.retrieve.clusters = (('photos:validation', 20),)
  c.retrieve.num_clusters, c.retrieve.more_than = 20, 1
  c.retrieve.iterations = 10
  c.materialize.others = (('photos:validation', 1.0),)
  c.materialize.images_per_shard = 200
