"""A way out, added to messages of Lightning that do not know of ragged ids."""

from __future__ import annotations

_ADVICE = {
    "Expected to have finished reduction in the prior iteration": (
        "Your LightningModule has dense parameters that did not take part in the loss of training_step, on this "
        "rank at least. If that is meant, use TorchRecStrategy(find_unused_parameters=True)."
    ),
    "can only change requires_grad flags of leaf variables": (
        "Is it a sharded table? Freeze it before Trainer.fit, by requires_grad_(False) on the unsharded module; during "
        "a run give it a learning-rate schedule that is 0, as a group of its own in configure_optimizers."
    ),
    "could not infer the batch_size from the batch": (
        "A KeyedJaggedTensor does not tell Lightning how many examples it has: "
        "self.log(..., batch_size=batch.stride())."
    ),
    "frozen dataclass was passed to `apply_to_collection`": (
        "Give the dataclass a method `to(self, device, **kwargs)` that returns a copy with its tensors there "
        "(dataclasses.replace makes one), or drop frozen=True."
    ),
}


def advise(exception: BaseException) -> None:
    """Put advice behind the message of an exception that is known to need it."""
    for words, advice in _ADVICE.items():
        exception.args = tuple(
            f"{arg}\n{advice}" if isinstance(arg, str) and words in arg and advice not in arg else arg
            for arg in exception.args
        )
