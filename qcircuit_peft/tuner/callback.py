"""Adaptive rank in the ``Trainer`` of transformers."""

import base64
from dataclasses import asdict
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from qcircuit_peft.tuner.adaptive import AdaptiveRank, Allocator


class AdaptiveRankCallback(TrainerCallback, ExportableState):
    """Keeps the active circuit adapter of a ``Trainer`` to a budget: ``Trainer(..., callbacks=[this])``.

    ``settings`` is an ``AdaptiveRank`` or its fields. The schedule is that of the whole training, ``state.max_steps``;
    ``allocator`` says what is kept. What has been smoothed is saved in trainer_state.json with every checkpoint, so
    that a resumed training goes on exactly. Raises ValueError as ``Allocator`` does, when training begins, and for a
    checkpoint that was written without this callback, for another training or budget, or that is damaged.

    >>> AdaptiveRankCallback(AdaptiveRank(budget=9228)).settings.every
    10
    """

    def __init__(self, settings: AdaptiveRank | dict[str, Any]) -> None:
        self.settings = AdaptiveRank(**settings) if isinstance(settings, dict) else settings
        self.allocator: Allocator | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Start to allocate, or go on where the checkpoint stopped."""
        self.allocator = Allocator(model, self.settings, state.max_steps)
        if state.global_step:
            self.allocator.load_state_dict(_opened(state.stateful_callbacks.get(type(self).__name__)))
            if self.allocator.steps != state.global_step:
                raise ValueError(
                    f"the checkpoint is of step {state.global_step}, but its state of adaptive rank is of step "
                    f"{self.allocator.steps}"
                )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step: gradients are still there."""
        assert self.allocator is not None
        self.allocator.step()

    def state(self) -> dict[str, Any]:
        """What transformers writes into trainer_state.json: the settings, and what has been smoothed, in base64."""
        saved = save(self.allocator.state_dict()) if self.allocator else b""
        return {
            "args": {"settings": asdict(self.settings)},
            "attributes": {"stored": base64.b64encode(saved).decode("ascii")},
        }


def _opened(stored: Any) -> dict[str, Any]:
    """The state of an allocator in that of a callback."""
    try:
        return load(base64.b64decode(stored["attributes"]["stored"], validate=True))
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"the checkpoint has no whole state of adaptive rank ({type(error).__name__}); resume one that was "
            "written with AdaptiveRankCallback, or start the training anew"
        ) from None
