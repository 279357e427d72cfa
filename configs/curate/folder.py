"""A folder of images, without blanks and copies, drawn evenly.

  dinojax curate --config=folder:./DIR --workdir=curated/mine

Copies are told by hashes and by the descriptor, clusters are made of the
embedding. Without weights of one's own both are mean colours, which is enough
for copies in place; --config.describe.descriptor=onnx:sscd.onnx and
--config.embed.descriptor=model:facebook/dinov2-small are those of the papers.
`:smoke` draws from the embedded photographs.
"""

from ml_collections import config_dict

from dinojax.configs import common
from dinojax.curate import recipe


def get_config(arg: str = 'DIR'):
  """`:DIR`, the folder, or `:smoke`."""
  c = config_dict.ConfigDict(common.section(recipe.Settings))
  c.ingest.pools = (f'folder:{arg}',)
  c.describe.descriptor = c.embed.descriptor = 'pixels:8'
  c.dedup.threshold = 0.98  # of mean colours; 0.6 is for SSCD
  c.dedup.floor = 0.95
  if arg == 'smoke':
    c.ingest.pools = ('photos:train',)
    c.ingest.rows_per_shard = 500
    c.cluster.levels = (100, 20)
    c.cluster.iterations = 10
    c.sample.images = 500
    c.materialize.images_per_shard = 200
  return c
