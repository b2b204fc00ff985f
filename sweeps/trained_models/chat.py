"""What a causal LM says: what follows a text, its answer to a question, or its turns in a conversation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from core.models.generation import Sampling
from data_pipeline.schema.user_errors import InputFault
from data_pipeline.tokens.chat_template import Turn
from sweeps.trained_models.trained_model import TrainedModel


@dataclass(frozen=True)
class Speaker:
    """A model and how it is to speak."""

    model: TrainedModel
    sampling: Sampling
    max_new_tokens: int
    seed: int
    system: str | None = None
    """What it is told before a conversation."""
    is_plain: bool = False
    """Texts are continued as they are, though the model has a chat template."""

    def __post_init__(self) -> None:
        if self.system is not None and not self.answers:
            raise InputFault(
                "--system is a turn of a conversation; it goes with a model that has a chat template, without --plain"
            )

    @property
    def answers(self) -> bool:
        """Whether a text is a question to it, and not the beginning of what it says."""
        return self.model.chat is not None and not self.is_plain

    def says(self, text: str, earlier: Sequence[Turn] = ()) -> Iterator[str]:
        """Its answer to a text, or what follows the text, piece by piece.

        Args:
            earlier: Turns before.
        """
        if not self.answers:
            return self.model.continue_text(
                text, max_new_tokens=self.max_new_tokens, sampling=self.sampling, seed=self.seed
            )
        begun: list[Turn] = [] if self.system is None else [("system", self.system)]
        return self.model.answer(
            [*begun, *earlier, ("user", text)],
            max_new_tokens=self.max_new_tokens,
            sampling=self.sampling,
            seed=self.seed,
        )


class Conversation:
    """Turns of a user and a model, one after another."""

    def __init__(self, speaker: Speaker) -> None:
        """
        Raises:
            InputFault: The model was not trained on conversations.
        """
        if not speaker.answers:
            raise InputFault("--chat goes with a model that was trained on conversations (objective: sft), not --plain")
        self._speaker = speaker
        self._turns: list[Turn] = []

    def reply(self, text: str) -> Iterator[str]:
        """Pieces of the answer to a text, which sees the turns before."""
        answer = ""
        for piece in self._speaker.says(text, self._turns):
            answer += piece
            yield piece
        self._turns += [("user", text), ("assistant", answer)]
