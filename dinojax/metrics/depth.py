"""Errors of predicted depths in metres; numpy."""

import numpy as np

# Rows and columns that count, as shares of the image's height and width.
CROPS = {
    'full': (0.0, 1.0, 0.0, 1.0),
    'nyu_eigen': (45 / 480, 471 / 480, 41 / 640, 601 / 640),
    'kitti_garg': (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}
METRICS = ('a1', 'a2', 'a3', 'abs_rel', 'rmse', 'log_10', 'rmse_log', 'silog',
           'sq_rel', 'mae')


def valid_pixels(target: np.ndarray, *, crop: str = 'full',
                 min_depth: float = 1e-3,
                 max_depth: float = 10.0) -> np.ndarray:
  """[..., y, x] bool: pixels that an evaluation counts.

  Args:
    target: [..., y, x] depths.
    crop: 'full', or the usual box of a benchmark, see CROPS.
    min_depth: metres, excluded.
    max_depth: metres, excluded.

  Raises: ValueError, another crop.
  """
  if crop not in CROPS:
    raise ValueError(
        f'crop={crop!r} is not known: use one of {", ".join(CROPS)}')
  height, width = target.shape[-2:]
  top, bottom, left, right = (
      int(share * size) for share, size in zip(
          CROPS[crop], (height, height, width, width), strict=True))
  box = np.zeros((height, width), bool)
  box[top:bottom, left:right] = True
  return (target > min_depth) & (target < max_depth) & box


def prepared(predicted: np.ndarray, target: np.ndarray, valid: np.ndarray, *,
             align: bool = False, inverse: bool = False,
             min_depth: float = 1e-3, max_depth: float = 10.0
             ) -> tuple[np.ndarray, np.ndarray]:
  """Predicted depths as they are measured, and the scale and shift, [2].

  Args:
    predicted: [y, x] metres; with `inverse`, one divided by them.
    target: [y, x] metres.
    valid: [y, x] bool.
    align: True applies the scale and shift that fit `target` best in the
      least squares, over valid pixels; it comes before the clamp.
    inverse: True: predictions are inverse depths, and fitted as such.
    min_depth: metres that smaller depths are set to.
    max_depth: metres that larger depths are set to.

  Source: DINOv3's align_depth_least_square and its evaluation.
  """
  scale_shift = np.array([1.0, 0.0])
  if align and valid.any():
    x = np.asarray(predicted, np.float64)[valid]
    columns = np.stack([x, np.ones_like(x)], axis=1)
    wanted = np.asarray(target, np.float64)[valid]
    scale_shift = np.linalg.lstsq(
        columns, 1 / wanted if inverse else wanted, rcond=None)[0]
  aligned = scale_shift[0] * predicted + scale_shift[1]
  if inverse:
    aligned = 1 / np.maximum(aligned, 1 / max_depth)
  return np.clip(aligned, min_depth, max_depth), scale_shift


def metrics(predicted: np.ndarray, target: np.ndarray,
            valid: np.ndarray) -> dict[str, float]:
  """The METRICS of one image; NaN where no pixel counts.

  Args:
    predicted: [y, x] depths > 0, metres.
    target: [y, x] metres.
    valid: [y, x] bool.

  Returns:
    a1, a2, a3: shares within factors of 1.25, 1.25² and 1.25³; silog in per
    cent; the others as named.

  Source: DINOv3; averaged over images afterwards.
  """
  if not valid.any():
    return dict.fromkeys(METRICS, float('nan'))
  predicted = np.asarray(predicted, np.float64)[valid]
  target = np.asarray(target, np.float64)[valid]
  factor = np.maximum(predicted / target, target / predicted)
  error, log_error = predicted - target, np.log(predicted) - np.log(target)
  values = {f'a{i}': (factor < 1.25 ** i).mean() for i in (1, 2, 3)} | {
      'abs_rel': (np.abs(error) / target).mean(),
      'sq_rel': (error ** 2 / target).mean(),
      'mae': np.abs(error).mean(), 'rmse': np.sqrt((error ** 2).mean()),
      'rmse_log': np.sqrt((log_error ** 2).mean()),
      'log_10': np.abs(log_error / np.log(10)).mean(),
      'silog': 100 * log_error.std()}
  return {name: float(values[name]) for name in METRICS}
