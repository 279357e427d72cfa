"""Which record a row reads: exact shares, whole epochs, no history."""

import collections

import pytest

from dinojax.data import mixture

# Shuffling short sources takes a hundred times as long: most places that are
# drawn lie behind their end.
LONG = 60_000


def make(lengths, weights, homogeneous=(), seed=0, batch_size=16):
  return mixture.Mixture(lengths, weights, homogeneous=homogeneous, seed=seed,
                         batch_size=batch_size)


def streams(mixed, rows):
  """Records by source, in the order of rows."""
  records = collections.defaultdict(list)
  for row in rows:
    source, record = mixed.locate(row)
    records[source].append(record)
  return records


def assert_whole_epochs(records, length):
  for start in range(0, len(records) - length + 1, length):
    assert sorted(records[start:start + length]) == list(range(length))


def test_every_source_is_read_once_an_epoch():
  mixed = make([60, 14, 8], [5.0, 2.0], [(2, 0.2)])
  records = streams(mixed, range(16 * 40))
  for source, length in enumerate([60, 14, 8]):
    assert len(records[source]) > 2 * length
    assert_whole_epochs(records[source], length)


def test_epochs_have_different_orders():
  records = streams(make([64], [1.0]), range(128))[0]
  assert records[:64] != records[64:]


def test_shares_are_exact_over_a_block():
  records = streams(make([LONG, LONG, LONG], [5.0, 2.0, 1.0]), range(4096))
  assert [len(records[i]) for i in range(3)] == [2560, 1024, 512]


def test_blocks_are_shuffled_each_in_its_own_way():
  mixed = make([LONG, LONG], [1.0, 1.0])
  first, second = ([mixed.locate(row)[0] for row in range(start, start + 4096)]
                   for start in (0, 4096))
  assert first != second and sum(first) == sum(second) == 2048


def test_rare_sources_get_their_share_too():
  # 0.41 rows of a block of 4096: a rounded count would be none at all.
  weight = 1e-4
  dealer = mixture._Dealer([1 - weight, weight], (0,))
  cycle = 4096 * 256
  _, before = max(dealer.deal(n) for n in range(cycle - 4096, cycle))
  # Within one of 104.9; the cycle rounds to whole numbers.
  assert abs(before + 1 - cycle * weight) < 1


def test_a_share_too_small_to_be_drawn_is_an_error():
  for weights in ([1.0, 1e-9], [1e-9, 1.0]):
    with pytest.raises(ValueError, match='too small to be drawn'):
      make([10, 10], weights)
  make([10, 10], [1.0, 0.0])  # none is wanted


def test_ranks_continue_over_blocks_and_cycles():
  dealer = mixture._Dealer([0.3, 0.6999, 0.0001], (7,))
  last = {}
  for start in (0, 4096 * 255, 4096 * 256 * 3):
    last.clear()
    for number in range(start, start + 3 * 4096):
      component, rank = dealer.deal(number)
      assert rank == last.get(component, rank - 1) + 1
      last[component] = rank
  assert dealer.deal(0)[1] == 0


def test_location_does_not_depend_on_history():
  mixed, other = (make([50, 60], [1.0, 2.0], [(1, 0.1)]) for _ in range(2))
  rows = [10**12 + 5, 3, 40_000, 17]
  assert [mixed.locate(r) for r in rows] == [
      other.locate(r) for r in reversed(rows)][::-1]


def test_whole_batches_come_from_their_source_alone():
  mixed = make([LONG, LONG, LONG], [1.0, 1.0], [(2, 0.25)], batch_size=8)
  first = [mixed.locate(8 * step)[0] for step in range(4096)]
  assert first.count(2) == 1024  # exact over 4096 steps
  for step in range(0, 4096, 16):
    whole = {mixed.locate(8 * step + i)[0] for i in range(8)}
    assert whole == {2} or 2 not in whole


def test_seeds_change_the_order():
  rows = range(64)
  a, b = (streams(make([64], [1.0], seed=s), rows)[0] for s in (0, 1))
  assert a != b


def test_the_same_source_mixed_and_whole_has_two_orders():
  mixed = make([64, 64], [1.0], [(1, 0.5)])
  records = streams(mixed, range(16 * 40))
  assert records[0][:64] != records[1][:64]


def test_billions_of_records_cost_nothing():
  mixed = make([2**31, 10**9], [1.0, 1.0], seed=2**32 - 1)
  locations = [mixed.locate(row) for row in range(10**12, 10**12 + 200)]
  assert len(set(locations)) == 200
  assert max(record for _, record in locations) > 2**30


@pytest.mark.parametrize('weights', [[], [0.0], [1.0, -1.0]])
def test_weights_that_mix_nothing_are_refused(weights):
  with pytest.raises(ValueError, match='must be positive'):
    make([10] * len(weights), weights)


def test_homogeneous_probabilities_sum_to_at_most_one():
  with pytest.raises(ValueError, match='at most 1'):
    make([10, 10, 10], [1.0], [(1, 0.7), (2, 0.7)])
  make([10, 10], [1.0], [(1, 1.0)]).locate(5)


def test_generators_are_functions_of_their_key():
  keys = [(seed, tag, number) for seed in (0, 1) for tag in (1, 2)
          for number in (0, 1, 2**32, 2**40 + 1)]
  draws = {mixture.generator(*key).random() for key in keys}
  assert len(draws) == len(keys)
  assert (mixture.generator(3, 4, 5).random()
          == mixture.generator(3, 4, 5).random())
