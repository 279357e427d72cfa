"""Logistic regression of 45 strengths against scikit-learn, on the CPU.

  python -m bench.logistic [--repeats=3]

Drawn features, 5,000 × 384 of ten classes whose variances fall as those of
features do, and 1,000 each to choose and to test on. Ours solves all values
of C side by side; the peer's lbfgs solves one after the other with its own
stopping (max_iter 1000, tol 1e-12), as the references call it, in float64.
`ratio` is our least time over the peer's, with programs compiled; `first_s`
has the compiling too. `loss_off` is how far our training loss is above the
peer's at worst, `images_off` by how many of the test images the classifiers
chosen on the validation images differ.
"""

import argparse
import json
import os
import time
import warnings

import numpy as np

from dinojax.evals import logistic

ROWS, DIM, CLASSES, OTHERS = 5000, 384, 10, 1000


def drawn(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
  """Features and labels that train, choose and test."""
  rng = np.random.default_rng(seed)
  centers = rng.normal(size=(CLASSES, DIM)) * 0.08
  spread = 5 / np.sqrt(np.arange(1, DIM + 1))
  parts = []
  for count in (ROWS, OTHERS, OTHERS):
    labels = rng.integers(0, CLASSES, count)
    noise = rng.normal(size=(count, DIM)) * spread
    parts.append(((centers[labels] + noise).astype(np.float32), labels))
  return parts


def loss(chance: np.ndarray, labels: np.ndarray) -> float:
  """Mean log-loss in nats."""
  right = chance[np.arange(len(labels)), labels].astype(np.float64)
  return float(-np.log(np.maximum(right, 1e-300)).mean())


def chosen(chances, labels: np.ndarray) -> int:
  """The strength that is best on validation images, the first of equals."""
  return int(np.argmax([(p.argmax(1) == labels).mean() for p in chances]))


def peer(parts) -> dict:
  """Time, losses and hits of scikit-learn."""
  from sklearn import linear_model
  (x, y), (vx, vy), (tx, ty) = parts
  start = time.perf_counter()
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    models = [linear_model.LogisticRegression(
        C=c, max_iter=1000, tol=1e-12).fit(x.astype(np.float64), y)
              for c in logistic.STRENGTHS]
  seconds = time.perf_counter() - start
  best = chosen([m.predict_proba(vx) for m in models], vy)
  return {'s': seconds, 'best': best,
          'loss': [loss(m.predict_proba(x), y) for m in models],
          'hits': int((models[best].predict(tx) == ty).sum())}


def ours(parts) -> dict:
  """Time, losses and hits of the package."""
  (x, y), (vx, vy), (tx, ty) = parts
  start = time.perf_counter()
  result = logistic.fit(x, y, CLASSES)
  seconds = time.perf_counter() - start
  every = range(len(logistic.STRENGTHS))
  best = chosen([result.probabilities(vx, i) for i in every], vy)
  return {'s': seconds, 'best': best, 'steps': int(result.num_steps.max()),
          'loss': [loss(result.probabilities(x, i), y) for i in every],
          'hits': int((result.probabilities(tx, best).argmax(1) == ty).sum())}


def main():
  """Measures in turns and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--repeats', type=int, default=3)
  args = parser.parse_args()
  parts = drawn()
  first = ours(parts)['s']
  mine, theirs = [], []
  for _ in range(args.repeats):
    mine.append(ours(parts))
    theirs.append(peer(parts))
  least = [min(each['s'] for each in some) for some in (mine, theirs)]
  print(json.dumps({
      'bench': 'logistic', 'peer': 'scikit-learn lbfgs', 'unit': 's',
      'ratio': round(least[0] / least[1], 3), 's': round(least[0], 2),
      'peer_s': round(least[1], 2), 'first_s': round(first, 2),
      'loss_off': float(np.max(np.subtract(
          mine[0]['loss'], theirs[0]['loss']))),
      'images_off': abs(mine[0]['hits'] - theirs[0]['hits']),
      'hits': mine[0]['hits'], 'peer_hits': theirs[0]['hits'],
      'best': mine[0]['best'], 'peer_best': theirs[0]['best'],
      'steps': mine[0]['steps'], 'repeats': args.repeats,
      'cpus': os.cpu_count()}))


if __name__ == '__main__':
  main()
