"""What a soak looks at for minutes, once for every kind of adapter."""

import gc
import random

import pytest
import soak


@pytest.mark.parametrize("kind", soak.KINDS)
def test_a_model_that_was_trained_and_dropped_is_gone(kind: str) -> None:
    def run(times: int) -> int:
        for _ in range(times):
            net = soak.made(kind)
            soak.train(net, 2)  # what the last step made of its parameters is there when the model is dropped
            del net
        gc.collect()
        return len(gc.get_objects())

    before = run(2)
    assert run(4) - before < 40  # of each model several hundred objects would stay


@pytest.mark.parametrize("kind", ["frame circuit", "generated lora", "bottleneck"])
def test_the_checks_of_a_soak_find_nothing(kind: str) -> None:
    deviates = soak.Deviations()
    soak.check_threads(kind, deviates)
    soak.check_saved_and_merged(kind, deviates)
    if hasattr(soak.os, "fork"):
        soak.check_kill(kind, random.Random(0), deviates)
    assert not deviates
