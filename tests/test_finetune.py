"""Fine-tuning with the Hugging Face Trainer while pruning is on."""

from __future__ import annotations

from tango.examples import finetune


def test_the_loss_falls_and_unseen_clips_are_named(capsys):
    losses, right = finetune.run(steps=12)
    assert len(losses) == 12
    assert max(losses[-2:]) < 0.25 * losses[0]
    assert right >= 0.75  # a guess is right in a quarter of the cases
    assert "64 -> 16 visual tokens" in capsys.readouterr().out
