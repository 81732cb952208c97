"""Tests of jaxmnist.networks.prng: a fixed stream, uniform bits, avalanche, distinct keys."""

from collections.abc import Callable

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats

from jaxmnist.networks import prng

SEEDS = [0, 1, 1234567, 2**32 - 1]


def derived_words(keys: jax.Array) -> np.ndarray:
    """The key data of an array of keys as uint64, one number a key."""
    data = np.asarray(jax.random.key_data(keys)).reshape(-1, 2).astype(np.uint64)
    return data[:, 0] << np.uint64(32) | data[:, 1]


def unpack(words: np.ndarray) -> np.ndarray:
    """The 32 bits of each word, (*words.shape, 32), as 0 and 1."""
    return words[..., None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)


def flip_rates(words: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """How often each of the 32 output bits differs, averaged over the first axis."""
    return unpack(words ^ flipped).mean(0)


# The stream. Published numbers can be reproduced only while these values stay as they are.


def test_golden_keys():
    root = prng.key(0)
    found = {
        "root": root,
        "fold_in": jax.random.fold_in(root, 1),
        "split": jax.random.split(root, 2),
        "other": jax.random.fold_in(jax.random.split(prng.key(2**32 - 1), 3)[2], 7),
    }
    found = {name: [f"{word:016x}" for word in derived_words(key)] for name, key in found.items()}
    assert found == {
        "root": ["d55326a698589f30"],
        "fold_in": ["3129b7308286bb3f"],
        "split": ["b1d25c009f93ed53", "347bd361844a5276"],
        "other": ["dd34a20f2ebc6a2c"],
    }


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (8, [0x3F, 0xF0, 0x18, 0xF2]),
        (16, [0x663F, 0x45F0, 0x4118, 0xD8F2]),
        (32, [0x4920663F, 0x56DC45F0, 0xA5A84118, 0x74F0D8F2]),
        (64, [0xF222BE994920663F, 0x6589811956DC45F0, 0x176C2C54A5A84118, 0xA7EB0F3174F0D8F2]),
    ],
)
def test_golden_bits(width, expected):
    with jax.enable_x64(width == 64):
        bits = jax.random.bits(prng.key(0), (4,), f"uint{width}")
    assert bits.dtype == f"uint{width}"
    assert bits.tolist() == expected


def test_shape_only_arranges_the_stream():
    key = prng.key(3)
    flat = jax.random.bits(key, (24,))
    chex.assert_trees_all_equal(jax.random.bits(key, (2, 3, 4)), flat.reshape(2, 3, 4))
    chex.assert_trees_all_equal(jax.random.bits(key, (5,)), flat[:5])
    chex.assert_trees_all_equal(jax.random.bits(key, ()), flat[0])
    nested = jax.random.key_data(jax.random.split(key, (2, 3)))
    chex.assert_trees_all_equal(nested.reshape(6, 2), jax.random.key_data(jax.random.split(key, 6)))


@st.composite
def slices(draw) -> tuple[tuple[int, ...], int, int]:
    """A shape and the start and size of a slice of its last axis."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    start = draw(st.integers(0, shape[-1] - 1))
    return tuple(shape), start, draw(st.integers(1, shape[-1] - start))


@hypothesis.given(seed=st.integers(0, 2**32 - 1), place=slices())
@hypothesis.settings(max_examples=20, deadline=None)
def test_bits_slice_is_a_slice_of_the_bits(seed, place):
    shape, start, size = place
    key = prng.key(jnp.uint32(seed))
    expected = jax.random.bits(key, shape)[..., start : start + size]
    found = prng.bits_slice(key, shape, start, size)
    assert found.dtype == jnp.uint32
    chex.assert_trees_all_equal(found, expected)


def test_bits_slice_with_a_traced_start():
    """As on devices, each of which asks for its part: together they have the whole."""
    key, shape = prng.key(5), (3, 2, 12)
    part = jax.jit(lambda start: prng.bits_slice(key, shape, start, 4))
    parts = [part(jnp.int32(start)) for start in (0, 4, 8)]
    chex.assert_trees_all_equal(jnp.concatenate(parts, -1), jax.random.bits(key, shape))
    at_once = jax.vmap(lambda start: prng.bits_slice(key, shape, start, 4))(jnp.arange(0, 12, 4))
    chex.assert_trees_all_equal(at_once, jnp.stack(parts))


def test_bits_slice_of_a_large_mask():
    """efficient's largest, the middle of the batch: 9 million words, of which 32 columns."""
    key, shape = prng.key(6), (32, 24, 24, 512)
    found = jax.jit(lambda: prng.bits_slice(key, shape, 240, 32))()
    expected = jax.jit(lambda: jax.random.bits(key, shape)[..., 240:272])()
    chex.assert_trees_all_equal(found, expected)


# Uniformity.


@pytest.mark.parametrize("seed", SEEDS)
def test_uniform_fills_the_unit_interval_evenly(seed):
    x = np.asarray(jax.random.uniform(prng.key(seed), (2**16,)))
    assert 0 <= x.min() < 1e-3
    assert 1 - 1e-3 < x.max() < 1
    for step in (1, 2, 28, 128):  # pairs of draws fill the unit square, neighbours or not
        cells, _, _ = np.histogram2d(x[:-step], x[step:], bins=16, range=[(0, 1)] * 2)
        assert 1e-4 < stats.chisquare(cells.ravel()).pvalue < 1 - 1e-4


@pytest.mark.parametrize("seed", SEEDS)
def test_each_bit_is_fair_and_independent_of_the_others(seed):
    count = 2**15
    bits = unpack(np.asarray(jax.random.bits(prng.key(seed), (count,))))
    signs = 2 * bits.astype(np.float32) - 1
    # Every sum of `count` fair signs has standard deviation √count.
    assert np.abs(signs.sum(0)).max() < 4.5 * count**0.5
    products = np.triu(signs.T @ signs, 1)
    assert np.abs(products).max() < 5 * count**0.5
    assert np.abs((signs[1:] * signs[:-1]).sum(0)).max() < 4.5 * count**0.5


def test_all_bytes_are_as_frequent_in_narrow_bits():
    for width in (8, 16):
        bits = np.asarray(jax.random.bits(prng.key(5), (2**16,), f"uint{width}"))
        counts = np.bincount(bits.view(np.uint8), minlength=256)
        assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4


# Avalanche: flipping one input bit flips each output bit half of the time.

AVALANCHE_COUNT = 2048
# Five standard deviations, over 32 or 16 × 32 bits each.
AVALANCHE_BOUND = 5 * 0.5 / AVALANCHE_COUNT**0.5


def test_avalanche_of_index():
    bits = np.asarray(jax.random.bits(prng.key(11), (2**16,)))
    index = np.random.default_rng(0).choice(2**16, AVALANCHE_COUNT, replace=False)
    for bit in range(16):
        rates = flip_rates(bits[index], bits[index ^ 1 << bit])
        assert np.abs(rates - 0.5).max() < AVALANCHE_BOUND, bit


@pytest.mark.parametrize("consumer", ["key", "bits"])
@pytest.mark.parametrize("source", ["seed", "fold_in"])
def test_avalanche_of_seed_and_datum(source, consumer):
    root = prng.key(7)

    def words(number: jax.Array) -> jax.Array:
        key = prng.key(number) if source == "seed" else jax.random.fold_in(root, number)
        return jax.random.key_data(key) if consumer == "key" else jax.random.bits(key, (2,))

    rng = np.random.default_rng(1)
    numbers = rng.integers(0, 2**32, AVALANCHE_COUNT, np.uint32)
    many = jax.jit(jax.vmap(words))
    before = np.asarray(many(numbers))
    for bit in range(32):
        rates = flip_rates(before, np.asarray(many(numbers ^ np.uint32(1 << bit))))
        assert np.abs(rates - 0.5).max() < AVALANCHE_BOUND, bit


# Keys.


def test_keys_do_not_collide():
    count = 25_000
    root = prng.key(0)
    numbers = jnp.arange(count)
    fold_in = jax.vmap(jax.random.fold_in, (None, 0))
    families = [
        jax.vmap(prng.key)(numbers),
        jax.random.split(root, count),
        fold_in(root, numbers),
        fold_in(jax.random.split(root, 2)[1], numbers),
        jax.vmap(fold_in, (0, None))(fold_in(root, numbers[:100]), numbers[:100]),
        jax.vmap(lambda key: jax.random.split(key, 100))(fold_in(root, numbers[:100])),
        jax.vmap(lambda key: jax.random.split(key, 100))(jax.random.split(root, 100)),
    ]
    words = np.concatenate([derived_words(keys) for keys in families])
    assert len(words) == 130_000
    assert len(np.unique(words)) == len(words)
    # 130,000 random words of 32 bits have 2 pairs in common on average, and seldom more than 8.
    for half in (words >> np.uint64(32), words & np.uint64(2**32 - 1)):
        assert len(words) - len(np.unique(half)) <= 8


def test_order_and_number_of_folds_matter():
    root = prng.key(0)
    fold_in = jax.random.fold_in
    keys = [
        root,
        fold_in(root, 0),
        fold_in(fold_in(root, 0), 0),
        fold_in(fold_in(root, 1), 2),
        fold_in(fold_in(root, 2), 1),
        fold_in(root, 3),
    ]
    assert len({int(derived_words(key)[0]) for key in keys}) == len(keys)


def one_seed_each(count: int) -> jax.Array:
    return jax.vmap(prng.key)(jnp.arange(count))


def one_fold_each(count: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(prng.key(0), jnp.arange(count))


def one_split_each(count: int) -> jax.Array:
    return jax.random.split(prng.key(0), count)


def generations(count: int) -> jax.Array:
    """A chain: each key is split from the one before it."""

    def descend(key: jax.Array, _) -> tuple[jax.Array, jax.Array]:
        return jax.random.split(key)[0], key

    return jax.lax.scan(descend, prng.key(0), length=count)[1]


@pytest.mark.parametrize("family", [one_seed_each, one_fold_each, one_split_each, generations])
def test_streams_of_different_keys_are_uncorrelated(family: Callable[[int], jax.Array]):
    length = 2048
    streams = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(family(256))
    z = np.abs(np.triu(np.corrcoef(np.asarray(streams)), 1)) * length**0.5
    pairs = len(z) * (len(z) - 1) // 2
    assert z.max() < 5.5
    # The mean of z² is 1, with standard deviation √(2/pairs).
    assert abs((z**2).sum() / pairs - 1) < 4 * (2 / pairs) ** 0.5


# Under jax's transformations and samplers.


@pytest.mark.parametrize(
    "sample",
    [
        lambda key: jax.random.bits(key, (3, 5)),
        lambda key: jax.random.bits(key, (7,), "uint8"),
        lambda key: jax.random.key_data(jax.random.split(key, 3)),
        lambda key: jax.random.key_data(jax.random.fold_in(key, 9)),
        lambda key: jax.random.permutation(key, 10),
    ],
    ids=["bits", "bytes", "split", "fold_in", "permutation"],
)
def test_vmap_and_jit_equal_single_calls(sample: Callable[[jax.Array], jax.Array]):
    keys = jax.random.split(prng.key(21), 4)
    singly = jnp.stack([sample(key) for key in keys])
    chex.assert_trees_all_equal(jax.jit(jax.vmap(sample))(keys), singly)


def test_bernoulli_has_its_rate():
    count, rate = 2**17, 0.05
    hits = int(jax.random.bernoulli(prng.key(1), rate, (count,)).sum())
    assert stats.binomtest(hits, count, rate).pvalue > 1e-3


def test_normal_is_normal():
    x = np.asarray(jax.random.normal(prng.key(2), (2**16,)))
    assert stats.kstest(x, "norm").pvalue > 1e-3


def test_randint_is_even_and_in_bounds():
    x = np.asarray(jax.random.randint(prng.key(3), (2**16,), -5, 8))
    counts = np.bincount(x + 5)
    assert len(counts) == 13
    assert stats.chisquare(counts).pvalue > 1e-3


def test_permutations_are_permutations_and_even():
    keys = jax.random.split(prng.key(4), 2**14)
    orders = np.asarray(jax.vmap(lambda key: jax.random.permutation(key, 4))(keys))
    chex.assert_trees_all_equal(
        np.sort(orders, 1), np.tile(np.arange(4, dtype=np.int32), (2**14, 1))
    )
    counts = np.bincount(orders @ 4 ** np.arange(4))
    assert np.count_nonzero(counts) == 24
    assert stats.chisquare(counts[counts > 0]).pvalue > 1e-3


def test_splits_are_used_as_independent_dice():
    """Two throws from the halves of a split are as a throw of two dice."""
    keys = jax.random.split(prng.key(5), 2**15)
    pairs = jax.vmap(jax.random.split)(keys)
    throws = np.asarray(jax.vmap(jax.vmap(lambda key: jax.random.randint(key, (), 0, 6)))(pairs))
    counts = np.bincount(throws @ np.array([6, 1]), minlength=36)
    assert stats.chisquare(counts).pvalue > 1e-3
