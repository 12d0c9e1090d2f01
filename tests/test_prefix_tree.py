"""Which ids are known, by which marks they can be gone on from, and what goes first."""

from collections.abc import Sequence
from itertools import pairwise

import pytest

from dflash_mlx.prefix.tree import Entry, Tree, common, key_of, longest, thinned


def enter(tree: Tree, ids: Sequence[int]) -> Entry:
    """Add a text as the cache does."""
    match = tree.match(ids)
    if match.length == len(ids):
        return match.path[-1]
    return tree.add(match.path[-1], match.length, ids[match.length :])


def mark(tree: Tree, ids: Sequence[int], reach: int | None = None) -> Entry:
    match = tree.match(ids)
    assert match.length == len(ids)
    made = tree.add(match.path[-1], len(ids), ())
    made.reach = len(ids) if reach is None else reach
    return made


def test_texts_share_what_they_begin_with() -> None:
    tree = Tree()
    first = enter(tree, [1, 2, 3, 4])
    second = enter(tree, [1, 2, 5, 6])
    third = enter(tree, [1, 2, 5, 6, 7])
    assert (second.start, second.ids, second.parent) == (2, (5, 6), first)
    assert (third.start, third.ids, third.parent) == (4, (7,), second)
    assert tree.size == len(list(tree)) == 3
    assert tree.match([1, 2, 5, 6, 7, 8])[1] == 5
    assert tree.match([1, 2, 3, 9]) == ([tree.root, first], 3)
    assert tree.match([2]) == ([tree.root], 0)


def test_keys_name_all_ids_up_to_the_end() -> None:
    tree = Tree()
    enter(tree, [1, 2, 3])
    branch, other = enter(tree, [1, 2, 4]), Tree()
    enter(other, [1, 3, 3])
    assert branch.key != enter(other, [1, 3, 4]).key
    assert branch.key == key_of(tree.match([1, 2, 3])[0][1].key, 2, [4])
    assert len({branch.key, mark(tree, [1, 2, 4]).key, mark(tree, [1, 2]).key}) == 3


def test_without_marks_any_length_will_do() -> None:
    tree = Tree()
    enter(tree, range(10))
    assert longest(tree.match(range(7)), 6, marked=False) == (6, None)
    assert longest(tree.match([0, 1, 9]), 2, marked=False) == (2, None)


def test_marks_say_where_to_go_on_from() -> None:
    tree = Tree()
    enter(tree, range(10))
    at = {end: mark(tree, range(end)) for end in (4, 8)}
    assert longest(tree.match(range(10)), 9, marked=True) == (8, at[8])
    assert longest(tree.match(range(8)), 7, marked=True) == (4, at[4])
    assert longest(tree.match(range(3)), 2, marked=True) == (0, None)


def test_a_mark_beyond_the_place_where_a_text_leaves_is_another_texts() -> None:
    tree = Tree()
    enter(tree, range(10))
    mark(tree, range(8))
    other = [0, 1, 2, 3, 20, 21, 22, 23, 24]
    enter(tree, other)
    assert longest(tree.match(other), 9, marked=True) == (0, None)
    whole = mark(tree, range(10), reach=0)
    assert longest(tree.match(other), 9, marked=True) == (4, whole)


@pytest.mark.parametrize("step", [1, 7, 64])
def test_marks_that_stay_are_few_and_close_to_the_end(step: int) -> None:
    tree, length = Tree(), 200 * step
    for end in range(step, length + 1, step):
        enter(tree, range(end))
        mark(tree, range(end))
        for old in thinned(tree.match(range(end))):
            tree.remove(old)
    places = [0, *sorted(e.start for e in tree if not e.ids)]
    assert len(places) < 20 and places[-1] == length
    for before, after in pairwise(places):
        assert after - before <= max(step, length - after)


def test_marks_that_were_found_stay() -> None:
    tree = Tree()
    enter(tree, range(100))
    marks = [mark(tree, range(end)) for end in range(10, 101, 10)]
    marks[2].found = True
    dropped = thinned(tree.match(range(100)))
    assert marks[2] not in dropped and marks[1] in dropped and marks[-1] not in dropped


def test_what_goes_first() -> None:
    tree = Tree()
    trunk, leaf, twig = (enter(tree, ids) for ids in ([1, 2], [1, 2, 3], [1, 2, 4]))
    for used, entry in enumerate((trunk, leaf, twig)):
        entry.arrays, entry.used = {}, used
    assert tree.oldest() is leaf
    leaf.arrays = None
    assert tree.oldest() is twig
    assert tree.remove(trunk)[-1] is trunk
    assert tree.size == 0 and tree.oldest() is None


def test_common() -> None:
    assert common([1, 2, 3], (1, 2, 3)) == 3
    assert common([1, 2], [1, 2, 3]) == 2
    assert common([1, 5], [1, 2, 3]) == 1
    assert common([], [1]) == 0
