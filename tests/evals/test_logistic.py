"""Logistic regression against scikit-learn, and where answers are known."""

import numpy as np
import pytest
from sklearn import linear_model

from dinojax.core import errors
from dinojax.evals import logistic
from dinojax.evals import selection


def drawn(count, classes, seed=0, width=12, overlap=1.0):
  rng = np.random.default_rng(seed)
  labels = np.arange(count) % classes
  centers = rng.normal(size=(classes, width))
  # Directions of very different lengths, far from the origin.
  features = 5 + (centers[labels] + overlap * rng.normal(
      size=(count, width))) * np.geomspace(10, 0.1, width)
  return features.astype(np.float32), labels



@pytest.mark.parametrize('classes', [2, 3, 7])
def test_scikit_learn_agrees(classes):
  """Loss 1e-3, every probability 2e-3; two classes are one problem there."""
  features, labels = drawn(300, classes, overlap=2.0)
  asked, _ = drawn(100, classes, seed=1, overlap=2.0)
  strengths = (1e-6, 1e-3, 1.0, 1e3)
  ours = logistic.fit(features, labels, classes, strengths)
  assert ours.converged.all() and ours.num_steps.max() < 200
  for i, strength in enumerate(strengths):
    peer = linear_model.LogisticRegression(
        C=strength, solver='newton-cholesky', max_iter=1000, tol=1e-10).fit(
            features.astype(np.float64), labels)
    got = ours.probabilities(features, i)
    loss = lambda p: -np.log(np.maximum(
        p[np.arange(300), labels], 1e-30)).mean()
    assert loss(got) == pytest.approx(
        loss(peer.predict_proba(features)), abs=1e-3)
    assert loss(got) == pytest.approx(ours.loss[i], abs=1e-4)
    np.testing.assert_allclose(ours.probabilities(asked, i),
                               peer.predict_proba(asked), atol=2e-3)


def test_strengths_alone_and_together_are_the_same():
  """Programs get smaller as problems are solved: no answer may move."""
  features, labels = drawn(120, 3, overlap=2.0)
  together = logistic.fit(features, labels, 3)
  for i in (0, 17, 30, 44):
    alone = logistic.fit(features, labels, 3, logistic.STRENGTHS[i:i + 1])
    np.testing.assert_allclose(together.probabilities(features, i),
                               alone.probabilities(features), atol=1e-3)


def test_classes_that_can_be_told_apart_end_too():
  features = np.repeat([[0.0], [1.0], [2.0]], 5, 0).astype(np.float32)
  features = np.concatenate([features, features ** 2], axis=1)
  labels = np.repeat([0, 1, 2], 5)
  result = logistic.fit(features, labels, 3, (1e5,))
  assert np.isfinite(result.weight).all() and result.loss[0] < 1e-3
  assert (result.probabilities(features).argmax(1) == labels).all()


def test_a_class_that_training_lacks_is_never_an_answer():
  features, labels = drawn(60, 3)
  whole = logistic.fit(features, labels, 3, (1.0,)).probabilities(features)
  got = logistic.fit(features, labels * 2, 6, (1.0,)).probabilities(features)
  np.testing.assert_allclose(got[:, ::2], whole, atol=1e-5)
  assert not got[:, 1::2].any()


def test_labels_that_never_change_are_constant():
  features, labels = drawn(60, 2)
  several = np.stack([labels, 0 * labels, 1 + 0 * labels], 1)
  got = logistic.fit(features, several, 3, (1.0,)).probabilities(features)
  assert (got[:, 1] == 0).all() and (got[:, 2] == 1).all()
  np.testing.assert_allclose(
      got[:, 0], logistic.fit(features, labels, 2, (1.0,)).probabilities(
          features)[:, 1], atol=1e-4)


def test_fewer_images_than_features():
  features, labels = drawn(8, 2, width=30)
  got = logistic.fit(features, labels, 2, (1.0,)).probabilities(features)
  peer = linear_model.LogisticRegression(max_iter=5000).fit(features, labels)
  np.testing.assert_allclose(got, peer.predict_proba(features), atol=2e-3)


def test_what_cannot_be_fitted_is_a_sentence():
  features, labels = drawn(20, 2)
  with pytest.raises(errors.UserError, match='all 20 training images are of'):
    logistic.fit(features, 0 * labels, 2)
  features[3, 3] = np.nan
  with pytest.raises(errors.UserError, match='not finite'):
    logistic.fit(features, labels, 2)
  with pytest.raises(errors.UserError, match='are too few to hold a tenth'):
    selection.held_out(selection.Labelled(features[:2], labels[:2]))


def test_the_first_of_equal_strengths_is_fitted_to_all():
  features, labels = drawn(90, 3, overlap=0.1)
  train = selection.Labelled(features[:60], labels[:60])
  held = selection.Labelled(features[60:], labels[60:])
  sweep = selection.choose(train, held, 3)
  assert sweep.accuracy[sweep.best] == sweep.accuracy.max()
  assert (sweep.accuracy[:sweep.best] < sweep.accuracy.max()).all()
  again = logistic.fit(features, labels, 3, logistic.STRENGTHS[
      sweep.best:sweep.best + 1])
  np.testing.assert_array_equal(sweep.final.weight, again.weight)
  kept = selection.choose(train, held, 3, refit=False)
  np.testing.assert_array_equal(
      kept.final.weight[0], kept.candidates.weight[kept.best])


def test_a_problem_that_fits_no_memory_is_a_sentence():
  logistic.check_memory(5000, 384, 10, 1.0)
  with pytest.raises(errors.UserError, match=(
      r'1,281,167 images of 1,000 classes takes about \d\d\.\d GiB .*16 free')):
    logistic.check_memory(1_281_167, 1024, 1000, 16.0)
