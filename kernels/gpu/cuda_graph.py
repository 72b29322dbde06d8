"""An optimisation's step replayed as one CUDA graph, so that a GPU does not wait for Python to launch its kernels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

import torch

# Steps as they are before the one that is captured: they compile kernels, choose convolutions, fill caches.
WARM_UP_STEPS = 3
Step = Callable[[], None]


def graphed(step: Step, device: torch.device) -> Step:
    """What does the same as step when called, on a CUDA device as a graph (GraphedStep says what that asks of step).

    The environment's STYLEPAIRS_CUDA_GRAPH=0 leaves graphs out.
    """
    wanted = device.type == "cuda" and os.environ.get("STYLEPAIRS_CUDA_GRAPH") != "0"
    return GraphedStep(step, CudaGraph(device)) if wanted else step


class GraphedStep:
    """A call of it does what `step()` does: as it is for WARM_UP_STEPS calls, from then on as one graph, captured once.

    step must be a pure function of tensors that stay where they are: it reads them, writes its results back in place,
    does the same operations each time, and asks no value on the host. One that cannot be captured runs as it is, with a
    warning that says why.
    """

    def __init__(self, step: Step, graph: CudaGraph):
        self.step, self.graph = step, graph
        self.run: Step = self._warm_up
        self.warm_ups = 0

    def __call__(self) -> None:
        self.run()

    def _warm_up(self) -> None:
        self.graph.warm_up(self.step)
        self.warm_ups += 1
        if self.warm_ups == WARM_UP_STEPS:
            self.run = self._capture

    def _capture(self) -> None:
        try:
            self.graph.capture(self.step)
            self.run = self.graph.replay
        except RuntimeError as error:
            warnings.warn(f"no CUDA graph: {str(error).splitlines()[0]}; steps are launched as they are", stacklevel=3)
            self.run = self.step
        self.run()


class CudaGraph:
    """A graph on one CUDA device. It keeps the memory of its intermediate results to itself."""

    def __init__(self, device: torch.device):
        self.device = device
        with torch.cuda.device(device):
            self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()

    def warm_up(self, step: Step) -> None:
        """Run it as it is."""
        before = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(before)
        with torch.cuda.stream(self.stream):
            step()
        before.wait_stream(self.stream)

    def capture(self, step: Step) -> None:
        """Record its operations without doing them; RuntimeError if one cannot be recorded."""
        with torch.cuda.device(self.device):
            before = torch.cuda.current_stream()
            try:
                with torch.cuda.graph(self.graph, stream=self.stream):
                    step()
            finally:
                torch.cuda.set_stream(before)  # a capture that fails may leave its own

    def replay(self) -> None:
        """Do what was recorded."""
        with torch.cuda.device(self.device):
            self.graph.replay()
