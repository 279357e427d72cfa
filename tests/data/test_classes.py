"""Classes of two sources are compared by their names."""

import types

import numpy as np
import pytest

from dinojax.core import errors
from dinojax.data import classes
from dinojax.doctor import report
from dinojax.evals import knn


def test_doctor_says_it_before_training():
  several = report._classes(source('ant bee'), source('bee cat'))
  assert [finding.level for finding in several] == ['warn', 'warn']
  none, = report._classes(source('ant'), source('cat'))
  assert none.level == 'error' and 'no class in common' in none.text


def source(names, counts=None):
  return types.SimpleNamespace(
      spec='folder:x', classes=tuple(names.split()),
      class_counts=lambda: counts)


def test_numbers_follow_names():
  got = classes.match(source('ant bee cat'), source('bee cat'))
  assert got.of_test(np.array([0, 1, -1, 0])).tolist() == [1, 2, -1, 1]
  same = classes.match(source('a b'), source('a b'))
  assert same.notes == () and same.of_test([1, -1, 0]).tolist() == [1, -1, 0]


def test_classes_that_one_side_has_are_said_with_their_images():
  got = classes.match(
      source('ant bee cat', [20, 5, 7]), source('cat dog eel', [3, 4, 6]),
      train_key='knn.train', test_key='knn.validation')
  assert got.of_test(np.arange(3)).tolist() == [2, -1, -1]
  first, second = got.notes
  assert 'knn.train has 2 classes with 25 images (ant: 20 images, bee: 5' in (
      first)
  assert 'knn.validation has 2 classes with 10 images (dog: 4' in second
  # Tables and old records do not know how many.
  assert 'dog' in classes.match(source('a'), source('a dog')).notes[0]


def test_no_class_in_common_is_an_error():
  with pytest.raises(errors.UserError, match='a, b against c'):
    classes.match(source('a b'), source('c'))


def test_knn_of_a_source_that_lacks_a_class_is_right():
  rng = np.random.default_rng(0)
  centres = np.eye(3) * 9
  make = lambda which: centres[which] + rng.normal(0, 0.1, (len(which), 3))
  train, test = np.repeat([0, 1, 2], 9), np.repeat([1, 2], 9)
  stored = test - 1  # as a folder of bee and cat counts
  matching = classes.match(source('ant bee cat'), source('bee cat'))
  assert knn.top1(make(train), train, make(test), stored, k=3) == 0
  assert knn.top1(make(train), train, make(test), matching.of_test(stored),
                  k=3) == 100


def test_a_name_that_stands_twice_is_no_reason_to_merge():
  got = classes.match(source('crane maillot crane'),
                      source('crane maillot crane'))
  assert got.numbers.tolist() == [0, 1, 2]
