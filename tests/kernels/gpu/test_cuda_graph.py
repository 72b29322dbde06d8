"""What is replayed, how often a step runs as it is, and what happens to one that cannot be captured. The graph itself
needs a GPU; here another stands for it."""

from __future__ import annotations

import pytest
import torch

from stylepairs.kernels.gpu.cuda_graph import WARM_UP_STEPS, GraphedStep, graphed


class Log:
    """A graph that writes down what it is asked, and fails to capture where told to."""

    def __init__(self, failure: str | None = None):
        self.asked: list[str] = []
        self.failure = failure

    def warm_up(self, step):
        self.asked.append("warm up")
        step()

    def capture(self, step):
        self.asked.append("capture")
        if self.failure:
            raise RuntimeError(self.failure)

    def replay(self):
        self.asked.append("replay")


def test_a_step_is_warmed_up_captured_once_and_replayed():
    graph, done = Log(), []
    step = GraphedStep(lambda: done.append(1), graph)
    for _ in range(WARM_UP_STEPS + 3):
        step()
    assert graph.asked == ["warm up"] * WARM_UP_STEPS + ["capture"] + ["replay"] * 3
    assert len(done) == WARM_UP_STEPS


def test_a_step_that_cannot_be_captured_runs_as_it_is_and_says_so():
    graph, done = Log("operation not permitted when stream is capturing\nmore"), []
    step = GraphedStep(lambda: done.append(1), graph)
    for _ in range(WARM_UP_STEPS):
        step()
    with pytest.warns(UserWarning, match="no CUDA graph: operation not permitted when stream is capturing;"):
        step()
    step()
    step()
    assert graph.asked.count("capture") == 1
    assert len(done) == WARM_UP_STEPS + 3


def test_another_error_is_not_hidden():
    def broken():
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        GraphedStep(broken, Log())()


def test_a_cpu_needs_no_graph(monkeypatch):
    def step():
        pass

    assert graphed(step, torch.device("cpu")) is step
    monkeypatch.setenv("STYLEPAIRS_CUDA_GRAPH", "0")
    assert graphed(step, torch.device("cuda")) is step


@pytest.mark.gpu
def test_a_captured_step_equals_the_same_step():
    def buffers():
        x = torch.arange(6.0, device="cuda")
        return x, torch.ones((), device="cuda")

    def step_on(x, scale):
        def step():
            x.copy_((x * scale).sin() + x.mean())
            scale.mul_(1.1)

        return step

    plain, captured = buffers(), buffers()
    run = graphed(step_on(*captured), torch.device("cuda"))
    assert isinstance(run, GraphedStep)
    for _ in range(10):
        step_on(*plain)()
        run()
    assert run.run == run.graph.replay
    assert torch.equal(plain[0], captured[0])
