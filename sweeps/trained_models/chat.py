"""The output of a causal LM: the continuation of a text, an answer, or the turns of a conversation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from core.models.generation import Sampling
from data_pipeline.schema.user_errors import InputFault
from data_pipeline.tokens.chat_template import Turn
from sweeps.trained_models.trained_model import TrainedModel


@dataclass(frozen=True)
class Speaker:
    """A model and its settings of generation."""

    model: TrainedModel
    sampling: Sampling
    max_new_tokens: int
    seed: int
    system: str | None = None
    """System turn before a conversation."""
    is_plain: bool = False
    """Continue texts as they are, even if the model has a chat template."""

    def __post_init__(self) -> None:
        if self.system is not None and not self.answers:
            raise InputFault(
                "--system is a turn of a conversation; use it with a model that has a chat template, without --plain"
            )

    @property
    def answers(self) -> bool:
        """Whether the model answers a text; if not, it continues the text."""
        return self.model.chat is not None and not self.is_plain

    def says(self, text: str, earlier: Sequence[Turn] = ()) -> Iterator[str]:
        """The answer to a text, or its continuation, piece by piece.

        Args:
            earlier: Earlier turns of the conversation.
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
    """Alternate turns of a user and a model."""

    def __init__(self, speaker: Speaker) -> None:
        """
        Raises:
            InputFault: The model was not trained on conversations.
        """
        if not speaker.answers:
            raise InputFault("--chat needs a model that was trained on conversations (objective: sft), without --plain")
        self._speaker = speaker
        self._turns: list[Turn] = []

    def reply(self, text: str) -> Iterator[str]:
        """The answer to a text, given all earlier turns, piece by piece."""
        answer = ""
        for piece in self._speaker.says(text, self._turns):
            answer += piece
            yield piece
        self._turns += [("user", text), ("assistant", answer)]
