"""Published figures of released weights, to be shown beside measured ones.

A figure belongs to a protocol on its own set; a difference of a few tenths may
come from decoding and resizing alone.

Source: model cards and tables of DINOv2 and DINOv3.
"""

from collections.abc import Mapping
import re

# Weights by what is in their names: files of Meta's, and names of the Hub.
_MODELS = {
    'v2-s': r'dinov2[-_](vits14|small)', 'v2-b': r'dinov2[-_](vitb14|base)',
    'v2-l': r'dinov2[-_](vitl14|large)', 'v2-g': r'dinov2[-_](vitg14|giant)',
    'v3-s': r'dinov3[-_]vits16(?!plus)', 'v3-s+': r'dinov3[-_]vits16plus',
    'v3-b': r'dinov3[-_]vitb16', 'v3-l': r'dinov3[-_]vitl16(?!plus)',
    'v3-h+': r'dinov3[-_]vith16plus', 'v3-7b': r'dinov3[-_]vit7b16'}
# Weights of other images or with registers have figures of their own.
_OTHERS = re.compile('reg4|registers|sat493m')
# By protocol, scheme of the set, and metric as a pattern.
_FIGURES: Mapping[tuple[str, str, str], Mapping[str, float]] = {
    ('knn', 'imagenet', r'top-1, k \d+'): {
        'v2-s': 79.0, 'v2-b': 82.1, 'v2-l': 83.5, 'v2-g': 83.5},
    ('linear', 'imagenet', 'top-1'): {
        'v2-s': 81.1, 'v2-b': 84.5, 'v2-l': 86.3, 'v2-g': 86.5},
    ('segmentation', 'ade20k', 'mIoU'): {
        'v2-s': 44.3, 'v2-b': 47.3, 'v2-l': 47.7, 'v2-g': 49.0, 'v3-s': 47.0,
        'v3-s+': 48.8, 'v3-b': 51.8, 'v3-l': 54.9, 'v3-h+': 54.8,
        'v3-7b': 55.9},
    ('depth', 'nyu', 'rmse'): {
        'v3-s': 0.403, 'v3-s+': 0.399, 'v3-b': 0.373, 'v3-l': 0.352,
        'v3-h+': 0.352, 'v3-7b': 0.309},
    ('retrieval', 'roxford5k', 'mAP hard'): {
        'v2-s': 43.2, 'v2-b': 49.5, 'v2-l': 54.0, 'v2-g': 52.3, 'v3-s': 49.5,
        'v3-b': 58.5, 'v3-l': 63.1, 'v3-h+': 64.5},
    ('correspondence', 'spair', r'PCK@0\.1'): {
        'v3-s': 50.4, 'v3-s+': 55.2, 'v3-b': 57.2, 'v3-l': 61.3, 'v3-h+': 56.3,
        'v3-7b': 58.7}}


def figure(model: str, protocol: str, test: str, metric: str) -> float | None:
  """The published figure of a measured one; None: there is none.

  Args:
    model: place or name of the weights, as they were asked for.
    protocol: name of the protocol.
    test: spec of the set.
    metric: name of the score.
  """
  name = model.lower()
  if _OTHERS.search(name):
    return None
  known = next((size for size, pattern in _MODELS.items()
                if re.search(pattern, name)), '')
  scheme = test.partition(':')[0]
  for (its_protocol, its_scheme, pattern), values in _FIGURES.items():
    if (protocol, scheme) == (its_protocol, its_scheme) and re.fullmatch(
        pattern, metric):
      return values.get(known)
  return None
