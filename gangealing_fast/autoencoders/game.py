# SPDX-License-Identifier: Apache-2.0
"""The regularisation phase: a critic of codes against the encoder that makes them (arXiv 1511.05644, section 2)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gangealing_fast.adversarial.objectives import OBJECTIVES, Objective, Side, make
from gangealing_fast.adversarial.objectives.penalties import r1_penalty
from gangealing_fast.autoencoders.networks import CodeCritic
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.training.optim import AdamEma


def code_objective(name: str) -> Objective:
    """An objective that critics of codes can play for. Raises UserError for one whose critic must return more than a number."""
    try:
        objective = make(name)
    except ValueError as error:
        raise UserError(f"--objective: {error}") from None
    if not _fits(objective):
        fitting = ", ".join(other for other in OBJECTIVES if _fits(make(other)))
        raise UserError(f"--objective {name} needs a critic of pictures or classes; for codes there are {fitting}")
    return objective


def _fits(objective: Objective) -> bool:
    return objective.output in ("logit", "score") and objective.outputs == 1 and objective.codes is None and objective.match is None


class Game:
    """A critic with its optimiser, and what it and the encoder play for.

    r1: gamma of the penalty on the critic's gradient at the prior's codes, 0 for none. Without one the two turn around the place
    where the codes are the prior's instead of coming to it (Mescheder et al., arXiv 1801.04406).
    """

    def __init__(self, critic: CodeCritic, objective: Objective, learning_rate: float, r1: float = 0.0) -> None:
        self.critic, self.objective, self.r1 = critic, objective, r1
        self.optimizer = AdamEma(critic.parameters(), learning_rate, betas=(0.5, 0.999))
        self.state: dict[str, float] = dict(objective.state or {})
        self.count = 0

    def judge(
        self, real: Tensor, fake: Tensor, told_real: Tensor | None = None, told_fake: Tensor | None = None
    ) -> dict[str, float]:
        """Improve the critic on codes of the prior and of the encoder `[N, D]`, each beside what is told of it."""
        self.critic.requires_grad_(True)
        fake, real = fake.detach(), real.detach().requires_grad_(self.r1 > 0)
        for_real, for_fake = self.critic(real, told_real), self.critic(fake, told_fake)
        sides = Side(real, for_real), Side(fake, for_fake)
        loss = self.objective.critic(*sides, self.state)
        if self.objective.regulariser is not None:
            loss = loss + self.objective.regulariser(lambda codes: self.critic(codes, told_real), *sides)
        if self.r1 > 0:
            loss = loss + 0.5 * self.r1 * r1_penalty(self.objective.realness(for_real), real)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.objective.post_step is not None:
            self.objective.post_step(self.critic)
        self.count += 1
        right = (for_real > 0).float().mean() + (for_fake < 0).float().mean()
        return {"critic": loss.item(), "critic_right": right.item() / 2}

    def loss(self, fake: Tensor, told: Tensor | None = None) -> Tensor:
        """What the encoder minimises: that the critic takes its codes `[N, D]` for the prior's."""
        self.critic.requires_grad_(False)
        return self.objective.generator(Side(fake, self.critic(fake, told)), self.state)

    @property
    def critic_steps(self) -> int:
        """How many updates the critic gets before the encoder's next."""
        return self.objective.critic_steps(self.count)

    def state_dict(self) -> dict[str, Any]:
        return {
            "critic": self.critic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": dict(self.state),
            "count": self.count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.state, self.count = dict(state["state"]), int(state["count"])
