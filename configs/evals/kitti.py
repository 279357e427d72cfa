"""Depth on the Eigen split of KITTI, with the crop of Garg.

  dinojax evaluate --model=runs/mine --config=kitti:DIR --protocols=depth

DIR has the images, the depths and both lists, see docs/evaluate.md.
"""

from dinojax.configs.evals import defaults


def get_config(arg: str = 'DIR'):
  """`:DIR`, the folder of the set; it may hold other colons."""
  c = defaults.get_config()
  c.depth.train, c.depth.test = f'kitti:{arg}', (f'kitti:{arg}',)
  c.depth.crop = (352, 704)
  c.depth.max_depth, c.depth.box = 80.0, 'kitti_garg'
  return c
