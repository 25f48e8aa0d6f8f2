"""Talking to policies side by side: each keeps its own conversation, all hear the same person."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from rlaif_assets.language_models.errors import ModelError
from rlaif_assets.language_models.local import LocalModel
from rlaif_assets.records import Message
from rlaif_assets.store.fingerprint import draw_seed

RESET, QUIT = "/reset", "/quit"


@dataclass
class Chat:
    """`models` by name, in the order in which they answer."""

    models: Mapping[str, LocalModel]
    max_new_tokens: int
    temperature: float
    seed: int
    said: dict[str, list[Message]] = field(default_factory=dict)

    def answers(self, text: str) -> Iterator[tuple[str, str]]:
        """(name, answer) of each model to the person's next turn. What does not fit a model's context is told instead,
        and is no part of its conversation."""
        for name, model in self.models.items():
            turns = [*self.said.get(name, []), Message(role="user", content=text)]
            seed = draw_seed(text, self.seed, "chat", len(turns))
            try:
                answer = model.generate([turns], [seed], self.max_new_tokens, self.temperature)[0].text
            except ModelError as error:
                yield name, f"[no answer: {error}; {RESET} begins anew]"
                continue
            self.said[name] = [*turns, Message(role="assistant", content=answer)]
            yield name, answer


def talk(chat: Chat, lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The answers to each line until QUIT or the end; RESET forgets what was said, and empty lines are passed over."""
    for line in map(str.strip, lines):
        if line == QUIT:
            return
        if line == RESET:
            chat.said.clear()
        elif line:
            yield from chat.answers(line)
