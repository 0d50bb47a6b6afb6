"""A callback for trainers of transformers and TRL that measures J, KL and optimality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from textgym.checks import check_count
from textgym.evaluate import evaluate
from textgym.lm.causal import CausalLM, check_positions
from textgym.optimum import Optimum, optimum_of
from textgym.task import Task, make_reference, prompt_end
from textgym_agents.protocol import Metrics
from textgym_agents.training.measures import ESTIMATES, evaluation_row

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(eq=False)
class Optimality(TrainerCallback):
    """Logs J, KL to the task's reference and optimality of the model in a trainer, such as TRL's GRPO and RLOO
    trainers.

    The model is evaluated at temperature 1 before the first step, every `every` steps and after the last one. The
    measures have the names of `textgym train`, `eval/objective` and so on, with the ends of their 95% intervals; they
    are in the trainer's row of that step in `trainer.state.log_history`. Training is not affected.

        trainer = GRPOTrainer(model, reward, args=config, train_dataset=prompts, callbacks=[Optimality(task)])

    Reporters, such as TensorBoard's, come before the callbacks that are passed to a trainer. To reach them, this
    callback must come first: `trainer.callback_handler.callbacks.insert(0, Optimality(task))`.

    Args:
        task: a task with the model's tokenizer; J uses its reward and beta, whatever the trainer rewards.
        every: steps between measures; 0: before and after only.
        per_prompt: completions per prompt.
        split: split of the prompts.
        seed: seed of the sampling.
        optimum: J* at the task's beta; None: it is computed before the first step.
    Raises: ValueError for a number out of range or an unknown split; at the start of training, for a model whose logits
        are not the task's actions.
    """

    task: Task
    every: int = 0
    per_prompt: int = 4
    split: str = "eval"
    seed: int = 0
    optimum: Optimum | None = None

    def __post_init__(self) -> None:
        check_count("every", self.every, 0)
        check_count("per_prompt", self.per_prompt)
        self.task.prompt_set(self.split)
        self._row: Metrics = {}

    def on_train_begin(self, args: object, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        """Work out J* and measure the model before its first step; a training that goes on was measured then."""
        if not state.is_world_process_zero:
            return
        if self.optimum is None:
            check_positions(parts["model"], self.task.max_prompt_tokens, self.task.max_new_tokens)
            self.optimum = optimum_of(self.task, split=self.split, seed=self.seed)
        if not state.global_step:
            state.log_history.append({**self._measure(parts["model"]), "step": 0})

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        """Measure the model where it is due, and ask for a row of the log."""
        due = self.every > 0 and state.global_step % self.every == 0
        if due or state.global_step >= state.max_steps or control.should_training_stop:
            control.should_log = True
            if state.is_world_process_zero:
                self._row = self._measure(parts["model"])

    def on_log(
        self, args: object, state: TrainerState, control: TrainerControl, logs: Metrics | None = None, **_: Any
    ) -> None:
        """Add the measures of this step to its row, for the callbacks that follow and for the history."""
        if logs is not None:
            logs |= self._row
        state.log_history[-1] |= self._row
        self._row = {}

    def _measure(self, model: PreTrainedModel) -> Metrics:
        task, device, training = self.task, str(model.device), model.training
        try:
            found = evaluate(
                CausalLM(model, task.vocabulary.allowed, device=device, prompt_end=prompt_end(task, model)),
                task,
                make_reference(task, device=device),
                self.optimum,
                split=self.split,
                per_prompt=self.per_prompt,
                seed=self.seed,
            )
        finally:
            model.train(training)
        names = {f"eval/{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high")}
        return {name: value for name, value in evaluation_row(found).items() if name in names}
