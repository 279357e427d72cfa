"""The engine of the fuzz tests finds what it is there to find."""

import os
import time

import numpy as np
import pytest

from tests.fuzz import mutate

DATA = b'whole' + bytes(range(100))


def good(data):
  return 'whole' if data == DATA else 'damaged'


def bad(data):
  """A reader with every fault, each at one mutant."""
  number = next((i for i in range(6) if data == mutate.mutant(DATA, 1, i)), 5)
  if number == 0:
    raise KeyError('length')
  if number == 1:
    os._exit(3)
  if number == 2:
    time.sleep(60)
  if number == 3:
    np.ones(2**26, np.uint8)
  if number == 4:
    raise KeyboardInterrupt
  return 'read'


def test_mutants_are_a_function_of_seed_and_number():
  again = [[mutate.mutant(DATA, 1, i) for i in range(300)] for _ in range(2)]
  assert again[0] == again[1]
  assert len(set(again[0])) > 280
  assert again[0] != [mutate.mutant(DATA, 2, i) for i in range(300)]
  assert {len(m) < len(DATA) for m in again[0]} == {True, False}
  mutate.mutant(b'', 1, 1)  # nothing to change is no error


def test_every_kind_of_fault_is_found_and_the_tries_go_on():
  outcomes = mutate.outcomes(DATA, 'tests.fuzz.test_mutate:bad', 9, 1,
                             max_s=0.5, max_bytes=2**25)
  assert [(fault.number, fault.what.split(':')[0])
          for fault in outcomes.faults] == [
      (0, 'KeyError'), (1, 'died'), (2, 'time'), (3, 'memory'),
      (4, 'KeyboardInterrupt')], outcomes.report()
  assert outcomes.counts == {'fault': 5, 'read': 4}
  for fault in outcomes.faults:
    assert fault.data == mutate.mutant(DATA, 1, fault.number)


def test_a_reader_that_cannot_start_is_said():
  with pytest.raises(RuntimeError, match='nothing_here'):
    mutate.outcomes(DATA, 'tests.fuzz.test_mutate:nothing_here', 9, 1)


def test_a_reader_without_faults_has_none():
  outcomes = mutate.outcomes([DATA, DATA[:50]], 'tests.fuzz.test_mutate:good',
                             20, 1)
  assert not outcomes.faults and outcomes.counts['damaged'] > 15
