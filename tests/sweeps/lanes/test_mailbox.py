"""Messages between a lane's driver and its workers."""

import pytest
from ray import cloudpickle

from core.memory.memory_reports import MicroBatchSpeed
from core.memory.out_of_memory import OomFacts
from core.training.run_end import RunEnd
from sweeps.lanes.mailbox import EndMessage, ErrorMessage, Message, ReportMessage, SpeedsMessage

OOM = OomFacts("device", "torch.OutOfMemoryError", "CUDA out of memory", 1024, "optimizer", 1)
END = RunEnd("infeasible", "out of memory", {}, 4096, 8, 1_000_000, OOM)


@pytest.mark.parametrize(
    "message",
    [
        ReportMessage(1, {"tokens": 1.0}),
        SpeedsMessage(1, (MicroBatchSpeed(8, None, 1_000_000),)),
        EndMessage(1, END, is_last=True),
        ErrorMessage(1, "Traceback ...", OOM),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_is_the_same_in_another_process(message: Message) -> None:
    assert cloudpickle.loads(cloudpickle.dumps(message)) == message
