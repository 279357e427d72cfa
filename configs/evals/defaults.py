"""Every protocol as the papers have it.

  dinojax evaluate --model=runs/mine --suite=quick

A file of one's own begins with these values and changes some:

  from dinojax.configs.evals import defaults

  def get_config(arg=''):
    c = defaults.get_config()
    c.data.train, c.data.test = 'folder:DIR/train', 'folder:DIR/test'
    c.knn.k = (20,)
    return c
"""

from ml_collections import config_dict

from dinojax.configs import common
from dinojax.evals import registry


def get_config(arg: str = ''):
  """All sections with their defaults."""
  common.words(arg, ())
  return config_dict.ConfigDict(common.section(registry.Settings))
