"""What the package uses of Ray Train's insides is still there, and says what it is taken for; without a Ray session."""

from __future__ import annotations

from unittest import mock

from ray.train.v2._internal.execution import context
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ResizingState, RunningState
from ray.train.v2._internal.execution.preemption import PreemptionContext
from ray.train.v2.api.preemption import PreemptionInfo

from boxsup_dist.distributed import ray_internals


def test_the_callback_acts_before_a_resize_and_only_then():
    calls: list[None] = []
    callback = ray_internals.before_resize(lambda: calls.append(None))
    assert isinstance(callback, ControllerCallback)
    resizing = ResizingState(scaling_decision=mock.Mock())
    callback.after_controller_state_update(RunningState(), RunningState())
    assert not calls
    callback.after_controller_state_update(RunningState(), resizing)
    assert len(calls) == 1
    callback.after_controller_state_update(resizing, RunningState())
    assert len(calls) == 1


def test_a_worker_knows_of_a_notice(monkeypatch):
    worker = mock.Mock(preemption_context=PreemptionContext())
    monkeypatch.setattr(context, "get_train_context", lambda: worker)
    assert not ray_internals.is_preempted()
    worker.preemption_context.preemption_info = PreemptionInfo(None, {"node": [1]})
    assert ray_internals.is_preempted()
