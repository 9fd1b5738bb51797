"""Many texts at once from a language model.

All texts grow side by side in *one* sequence: the beginning that the prompts share is read once and stands in the cache
once, and each token sees it, its own prompt and its own text, and nothing of its neighbours'. The usual way, a batch in
which each row has a copy of the shared beginning, moves hundreds of megabytes a step for a prompt of 200 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from metabook.llm.model import LanguageModel
from metabook.llm.scoring import cache_argument, read_into_cache

__all__ = ["sample"]


@torch.no_grad()
def sample(
    lm: LanguageModel,
    prompts: Sequence[str],
    tokens: int,
    samples: int = 1,
    *,
    temperature: float = 1.0,
    stop: str = "\n",
    generator: torch.Generator | None = None,
    together: int = 128,
    progress: str | None = None,
) -> list[list[str]]:
    """Continue each prompt several times, up to ``stop``, an end of turn, or ``tokens`` tokens.

    The results are text and nothing else: never run or evaluate them.

    Parameters
    ----------
    lm : LanguageModel
        One in which every layer attends to all earlier tokens.
    prompts : sequence of str
    tokens, samples : int
        Largest number of new tokens; number of texts for each prompt.
    temperature : float
        Divides the logits; 0 takes the most probable token each time.
    stop : str
        Ends a text, and is left out.
    generator : torch.Generator, optional
        A CPU one. All its numbers are drawn at once, so that a text depends on ``together`` through rounding only.
    together : int
        Texts grown at a time.
    progress : str, optional
        Title of a progress bar; none unless given.

    Returns
    -------
    list of list of str
        ``samples`` texts for each prompt.

    Raises
    ------
    ValueError
        For an empty prompt, one that is too long for the model, or a negative temperature.
    """
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, and is {temperature}")
    ids = [lm.encode(prompt) for prompt in prompts]
    for row, prompt_ids in enumerate(ids):
        if not 1 <= len(prompt_ids) <= lm.context - tokens:
            raise ValueError(
                f"prompt {row} has {len(prompt_ids)} tokens; with {tokens} new ones {lm.name} takes 1 to "
                f"{lm.context - tokens}"
            )
    if not ids:
        return []
    luck = torch.rand(len(ids), samples, tokens, generator=generator, dtype=torch.float64).to(lm.device)
    differ = (at for at, here in enumerate(zip(*ids)) if len(set(here)) > 1)
    stem = min(next(differ, lm.context), *(len(row) - 1 for row in ids))
    cache = read_into_cache(lm, ids[0][:stem])
    texts: list[list[str]] = []
    size = max(1, together // samples)
    with tqdm(total=len(ids), disable=progress is None, unit="prompt", desc=progress, leave=False) as bar:
        for start in range(0, len(ids), size):
            chunk = [row[stem:] for row in ids[start : start + size]]
            grove = _Grove(lm, cache, stem)
            made = _grow(grove, chunk, luck[start : start + size], temperature, stop)
            grove.clear()
            texts.extend([made[row : row + samples] for row in range(0, len(made), samples)])
            bar.update(len(chunk))
    return texts


class _Grove:
    """Texts that share a stem, laid side by side in one sequence.

    Every cached token after the stem has two marks: its prompt, and its text (-1 while all texts of a prompt share it).
    """

    def __init__(self, lm: LanguageModel, cache: object, stem: int) -> None:
        self.lm, self.cache, self.stem = lm, cache, stem
        self.prompt = self.text = torch.empty(0, dtype=torch.long, device=lm.device)

    def read(self, tokens: Tensor, prompt: Tensor, text: Tensor, depth: Tensor, kept: Tensor) -> Tensor:
        """Append tokens at given depths after the stem; logits after those at the places ``kept``."""
        self.prompt, self.text = torch.cat([self.prompt, prompt]), torch.cat([self.text, text])
        seen = prompt[:, None] == self.prompt[None, :]
        seen &= (self.text[None, :] < 0) | (text[:, None] == self.text[None, :])
        new = len(tokens)
        seen[:, -new:] &= depth[:, None] >= depth[None, :]
        blocked = torch.zeros(new, self.stem + seen.shape[1], dtype=self.lm.dtype, device=tokens.device)
        blocked[:, self.stem :].masked_fill_(~seen, torch.finfo(self.lm.dtype).min)
        return self.lm.model(
            tokens.unsqueeze(0),
            attention_mask=blocked[None, None],
            position_ids=(self.stem + depth).unsqueeze(0),
            use_cache=True,
            logits_to_keep=kept,
            **{cache_argument(self.lm): self.cache},
        ).logits[0]

    def clear(self) -> None:
        """Leave the stem alone in the cache."""
        if len(self.prompt):
            self.cache.crop(-len(self.prompt))  # type: ignore[attr-defined]


def _grow(grove: _Grove, rests: list[list[int]], luck: Tensor, temperature: float, stop: str) -> list[str]:
    """Texts for some prompts, of which the stem has been read; ``luck`` is ``[prompts, samples, tokens]``."""
    lm, (prompts, samples, limit) = grove.lm, luck.shape
    device, sizes = lm.device, torch.tensor([len(rest) for rest in rests])
    flat = torch.tensor([token for rest in rests for token in rest], device=device)
    owner = torch.arange(prompts).repeat_interleave(sizes).to(device)
    depth = torch.cat([torch.arange(len(rest)) for rest in rests]).to(device)
    logits = grove.read(flat, owner, torch.full_like(owner, -1), depth, (sizes.cumsum(0) - 1).to(device))
    logits, luck = logits.repeat_interleave(samples, 0), luck.flatten(0, 1)
    alive = torch.arange(prompts * samples, device=device)  # the texts that still grow
    lengths = sizes.repeat_interleave(samples).to(device)
    made: list[list[int]] = [[] for _ in range(prompts * samples)]
    for at in range(limit):
        token = _pick(logits, luck[alive, at], temperature)
        for row, new in zip(alive.tolist(), token.tolist()):
            made[row].append(new)
        going = [row for row in alive.tolist() if not _ended(lm, made[row], stop)]
        if not going or at + 1 == limit:
            break
        open_ = torch.isin(alive, torch.tensor(going, device=device))
        alive, token = alive[open_], token[open_]
        everyone = torch.arange(len(alive), device=device)
        logits = grove.read(token, alive // samples, alive, lengths[alive] + at, everyone)
    end = lm.tokeniser.eos_token_id
    return [lm.decode([token for token in row if token != end]).split(stop)[0] for row in made]


def _pick(logits: Tensor, luck: Tensor, temperature: float) -> Tensor:
    """One token a row: the most probable, or the one in whose share of the unit interval ``luck`` falls."""
    if temperature == 0:
        return logits.argmax(1)
    shares = (logits.double() / temperature).softmax(1).cumsum(1)
    return torch.searchsorted(shares, luck.unsqueeze(1)).squeeze(1).clamp(max=logits.shape[1] - 1)


def _ended(lm: LanguageModel, ids: list[int], stop: str) -> bool:
    return ids[-1] == lm.tokeniser.eos_token_id or stop in lm.decode(ids)
