"""Training the draft model of a pair on its target: distillation on the target's own answers, and paths beside it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from baselines.eagle.losses import StepSums, cross_entropy, lk, restrict
from baselines.eagle.recipes import Source, cap_logits, measure_paths, weigh_steps
from baselines.eagle.ttt import Answers, Batch
from baselines.vsd import PathLoss, StepRows
from viasd.spec import spec


@spec
class DraftModelRecipe:
    """A draft model goes on learning what its target says, token by token.

    `role`: of the pair, which model it begins with. `loss`: soft cross entropy under the target's rows (token-level
    knowledge distillation; up to a constant KL(target || draft)), or `lk` (2602.23881). `steps`: tokens of a path. A
    draft model reads tokens alone, so what it says in step k of a path is what it says there in step 0.
    """

    role: Annotated[str, Field(min_length=1)] = "draft"
    loss: Literal["cross_entropy", "lk"] = "cross_entropy"
    steps: Annotated[int, Field(ge=1, le=32)] = 7
    paths: PathLoss | None = None

    @property
    def weights(self) -> list[float]:
        return weigh_steps([1.0], self.paths)

    def taps(self, layers: int) -> tuple[int, ...]:
        return ()

    def noise(self, length: int) -> float:
        return 0.0

    def measure(self, drafter: Any, batch: Batch, source: Source) -> list[StepSums]:
        answers = Answers.of(batch)
        out = drafter.get_output_embeddings()
        states = drafter.get_decoder()(input_ids=self._known(batch, drafter), use_cache=False).last_hidden_state
        drafted = cap_logits(out(states[answers.documents, answers.places]), drafter.config)
        logits = source.logits(batch.states[answers.documents, answers.places])  # [n, V]
        wanted, common = logits.max(-1).indices, min(logits.shape[1], drafted.shape[1])
        drafted = drafted[:, :common]
        known = wanted < common
        if self.loss == "lk":
            losses = lk(drafted, logits.softmax(-1)[:, :common])
        else:
            losses = cross_entropy(drafted, restrict(logits[:, :common], None))
        agreed = drafted.detach().max(-1).indices == wanted
        plain = StepSums(
            (losses * known).sum(), known.sum(), torch.tensor(len(wanted), device=wanted.device), agreed.sum()
        )
        if self.paths is None:
            return [plain]
        columns, every = wanted.where(known, -1), torch.arange(len(wanted), device=wanted.device)
        logs = drafted.float().log_softmax(-1)
        steps = [StepRows(logs[k:], every[k:], columns[k:]) for k in range(min(self.steps, len(wanted)))]
        return [plain, *measure_paths(self.paths, steps, answers, wanted, batch)]

    def _known(self, batch: Batch, drafter: Any) -> torch.Tensor:
        """The ids, those that the draft model lacks as its last one."""
        return batch.ids.clamp(max=drafter.get_input_embeddings().weight.shape[0] - 1)
