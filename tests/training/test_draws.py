"""Which prompts a run will need next follows from when its tasks drew some."""

from itertools import islice

from bench.api.draws import FURTHEST, Draws


def foreseen(steps: dict[str, list[int]], now: int, count: int) -> list[tuple[str, int]]:
    draws = Draws()
    for step in range(now + 1):
        for task, when in steps.items():
            if step in when:
                draws.add(task, step, 7)
                draws.add(task, step, 7)  # twice in an update is one draw
    return [(task, step) for task, step, _ in islice(draws.upcoming(now), count)]


def test_tasks_that_always_draw_and_tasks_in_turn() -> None:
    assert foreseen({"a": [0, 1], "b": [0, 1]}, 1, 4) == [("a", 2), ("b", 2), ("a", 3), ("b", 3)]
    assert foreseen({"a": [0, 3], "b": [1, 4], "c": [2]}, 4, 3) == [("a", 6), ("b", 7), ("a", 9)]


def test_no_draw_is_foreseen_for_ever() -> None:
    draws = Draws()
    for step in range(3):
        draws.add("empty", step, 0)
        draws.add("a", step, 2)
    found = list(draws.upcoming(2))
    assert [step for _, step, _ in found] == list(range(3, 3 + FURTHEST))
    assert {task for task, _, _ in found} == {"a"}


def test_nothing_is_foreseen_of_a_first_draw_or_of_a_task_whose_stage_is_over() -> None:
    assert foreseen({"a": [0], "b": [0]}, 0, 3) == []
    assert foreseen({"a": [0, 1, 2], "b": [3, 4]}, 4, 2) == [("b", 5), ("b", 6)]
