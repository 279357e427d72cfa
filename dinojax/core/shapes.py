"""The alphabet of array axes: the only list, used in comments and einsums.

  b images        v views (crops)   n tokens         p patches
  m masked tokens h heads           d width          k prototypes
  y x rows, cols  c channels        l layers         r rows (any flattened set)
  g groups of images: what one process's batch was to the references
  i j rows and columns inside a patch

Images are `[b, v, y, x, c]`, batch-major, flattened only as `(b v)`: the
crop-major order of the references would gather the batch on every device.
"""

ALPHABET = 'bvnpmhdkyxclrgij'
