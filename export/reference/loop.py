"""Loop: runs one training stage to its budget, and can be stopped and resumed anywhere."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from jscc.export.reference.optimizer import BETAS, build_optimizers
from jscc.runtime.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT: Final = 1
EMA_DECAY: Final = 0.998
# A step never counts for more than this, so that a process that was stopped loses no budget.
LONGEST_STEP_S: Final = 30.0


class Stage(Protocol):
    """What the loop needs to know of the thing that is trained."""

    @property
    def name(self) -> str:
        """Names the stage's files."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    @property
    def matrices(self) -> set[str]:
        """Names of the weights that Muon updates."""

    def loss(self, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns what to log, with `loss`, the one to descend; `progress` runs from 0 to 1."""

    def settle(self, model: nn.Module) -> None:
        """Makes averaged weights ready for use."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Returns figures of `model` on held-out pictures."""


@runtime_checkable
class Adversarial(Protocol):
    """A stage whose model is trained against a critic.

    Its `loss` may also return `critic`, the one that the critic descends, which must not depend on
    the model's weights, as `loss` must not on the critic's. Either of the two may be absent: then
    that network rests.
    """

    @property
    def critic(self) -> nn.Module:
        """What judges the model; it is not averaged."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast; exactly one of `minutes` and `steps` ends the stage.

    Attributes:
        betas: AdamW's decay rates.
        critic_lr: Learning rate of an adversarial stage's critic; None takes `lr`.
    """

    lr: float
    weight_decay: float = 0.0
    minutes: float | None = None
    steps: int | None = None
    warmup_steps: int = 100
    clip: float = 1.0
    seed: int = 0
    save_every_s: float = 120.0
    evaluate_every_s: float = 600.0
    log_every: int = 50
    betas: tuple[float, float] = BETAS
    critic_lr: float | None = None


@dataclass(frozen=True)
class Learner:
    """A network, the term it descends, and what moves it."""

    term: str
    network: nn.Module
    optimizers: list[torch.optim.Optimizer]
    lr: float


@dataclass
class State:
    """Everything that a later process needs to go on as if nothing had happened.

    Attributes:
        config: What the network is made by; None if that is not kept.
    """

    learners: list[Learner]
    ema: nn.Module
    generator: torch.Generator
    step: int = 0
    elapsed_s: float = 0.0
    config: Mapping[str, Any] | None = None

    @property
    def model(self) -> nn.Module:
        """What the stage trains."""
        return self.learners[0].network

    def dump(self) -> dict[str, Any]:
        """Everything that a resumed run needs to equal an uninterrupted one."""
        critics = {
            learner.term: {
                "model": learner.network.state_dict(),
                "optimizers": [o.state_dict() for o in learner.optimizers],
            }
            for learner in self.learners[1:]
        }
        return critics | {
            "format": FORMAT,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [o.state_dict() for o in self.learners[0].optimizers],
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "config": None if self.config is None else dict(self.config),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over what `dump` returned."""
        for learner in self.learners:
            mine = saved if learner is self.learners[0] else saved[learner.term]
            learner.network.load_state_dict(mine["model"])
            for optimizer, state in zip(learner.optimizers, mine["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        self.ema.load_state_dict(saved["ema"])
        self.generator.set_state(saved["generator"])
        torch.set_rng_state(saved["torch_rng"])
        self.step = saved["step"]
        self.elapsed_s = saved["elapsed_s"]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of this loop; nothing but tensors and plain values is accepted."""
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if saved.get("format") != FORMAT:
        raise DataError(
            "E_NETWORK",
            f"loop: got checkpoint format {saved.get('format')!r} in {path}, expected {FORMAT}. "
            "Train into another folder.",
        )
    return saved


def run(
    stage: Stage,
    plan: Plan,
    folder: Path,
    *,
    resume: bool,
    stop_after: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> State:
    """Trains `stage` to the end of its plan; writes `folder/<stage>.pt` and `<stage>.jsonl`.

    Args:
        stop_after: Stops, with a checkpoint, when this many steps are done; the schedule stays.
        config: Of the network, kept in the checkpoint and held to that of the one resumed from.

    Raises:
        DataError: ``E_NETWORK``, the checkpoint is of another format or configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, log = folder / f"{stage.name}.pt", folder / f"{stage.name}.jsonl"
    saved = read_checkpoint(path) if resume and path.exists() else None
    if saved is not None:
        _check_config(path, saved.get("config"), config)
    state = _begin(stage, plan)
    state.config = config
    if saved is not None:
        state.restore(saved)
    saved_at = evaluated_at = state.elapsed_s
    while (progress := _progress(plan, state)) < 1.0 and (
        stop_after is None or state.step < stop_after
    ):
        started = time.perf_counter()
        terms = _step(stage, plan, state, progress)
        state.elapsed_s += min(time.perf_counter() - started, LONGEST_STEP_S)
        if state.step % plan.log_every == 0 or state.step == 1:
            _log(log, state, terms)
        if state.elapsed_s - saved_at > plan.save_every_s:
            saved_at = state.elapsed_s
            _save(path, state)
        if state.elapsed_s - evaluated_at > plan.evaluate_every_s:
            evaluated_at = state.elapsed_s
            _log(log, state, _evaluate(stage, state))
    stage.settle(state.ema)
    _save(path, state)
    _log(log, state, _evaluate(stage, state))
    return state


def _check_config(
    path: Path, saved: Mapping[str, Any] | None, config: Mapping[str, Any] | None
) -> None:
    """Hold a resumed training to the configuration it began with, where that was kept."""
    if saved is None or config is None:
        return
    for name in (*saved, *config):
        was, now = saved.get(name), config.get(name)
        if was != now:
            raise DataError(
                "E_NETWORK",
                f"--resume: got {name} {now!r} for {path}, expected {was!r}, with which it was "
                "trained so far. Give the same --set, or train into another folder.",
            )


def _begin(stage: Stage, plan: Plan) -> State:
    model = stage.model
    optimizers = build_optimizers(
        model,
        matrices=stage.matrices,
        lr=plan.lr,
        weight_decay=plan.weight_decay,
        betas=plan.betas,
    )
    learners = [Learner("loss", model, optimizers, plan.lr)]
    if isinstance(stage, Adversarial):
        lr = plan.lr if plan.critic_lr is None else plan.critic_lr
        optimizers = build_optimizers(
            stage.critic, matrices=set(), lr=lr, weight_decay=0.0, betas=plan.betas
        )
        learners.append(Learner("critic", stage.critic, optimizers, lr))
    return State(
        learners=learners,
        ema=copy.deepcopy(model).requires_grad_(requires_grad=False).eval(),
        generator=torch.Generator().manual_seed(plan.seed),
    )


def _progress(plan: Plan, state: State) -> float:
    if plan.steps is not None:
        return state.step / plan.steps
    if plan.minutes is not None:
        return state.elapsed_s / (60 * plan.minutes)
    raise ValueError("loop: got a plan without minutes and steps, expected one of them.")


def _step(stage: Stage, plan: Plan, state: State, progress: float) -> dict[str, float]:
    pace = min(1.0, (state.step + 1) / plan.warmup_steps) * 0.5 * (1 + math.cos(math.pi * progress))
    for learner in state.learners:
        learner.network.train()
    terms = stage.loss(progress, state.generator)
    norms = {}
    for learner in state.learners:
        if learner.term in terms:
            terms[learner.term].backward()  # type: ignore[no-untyped-call]
            prefix = "" if learner is state.learners[0] else f"{learner.term}."
            norms[f"{prefix}norm"] = _descend(learner, learner.lr * pace, plan.clip)
    state.step += 1
    if "loss" in terms:
        _follow(state)
    return (
        {name: float(value.detach()) for name, value in terms.items()}
        | norms
        | {"lr": plan.lr * pace}
    )


def _descend(learner: Learner, rate: float, clip: float) -> float:
    """Moves the network along its gradients; returns their norm."""
    norm = float(nn.utils.clip_grad_norm_(learner.network.parameters(), clip))
    for optimizer in learner.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        if math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm


@torch.no_grad()
def _follow(state: State) -> None:
    """Moves the averaged weights; statistics of batch norms are averages already and are copied."""
    decay = min(EMA_DECAY, (1 + state.step) / (10 + state.step))
    averaged = [p.detach() for p in state.ema.parameters()]
    current = [p.detach() for p in state.model.parameters()]
    torch._foreach_lerp_(averaged, current, 1 - decay)
    for kept, new in zip(state.ema.buffers(), state.model.buffers(), strict=True):
        kept.copy_(new)


def _evaluate(stage: Stage, state: State) -> dict[str, float]:
    ready = copy.deepcopy(state.ema)
    with torch.no_grad():
        stage.settle(ready)
        figures = stage.evaluate(ready)
    return {f"held_out.{name}": value for name, value in figures.items()}


def _save(path: Path, state: State) -> None:
    part = path.with_suffix(".part")
    torch.save(state.dump(), part)
    os.replace(part, path)


def _log(path: Path, state: State, values: dict[str, float]) -> None:
    row = {"step": state.step, "elapsed_s": round(state.elapsed_s, 1)} | {
        k: round(v, 6) for k, v in values.items()
    }
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, sort_keys=True) + "\n")
