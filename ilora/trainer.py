"""The Trainer of transformers with what this method adds: curriculum, a slower gate, our folders."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from ilora.config import TrainingSettings
from ilora.data.length_sampler import LengthSampler
from ilora.errors import InputError
from ilora.model import ILoRARecommender
from ilora.model_folder import load_weights


class RecommenderTrainer(Trainer):
    """The Trainer, with LLaRA's curriculum, a slower gate, and our own model folders.

    The loss is divided by the answer tokens of the whole optimiser step: the model takes
    ``num_items_in_batch`` itself, so micro-batches and processes weigh every token alike.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: ILoRARecommender,
        training: TrainingSettings,
        save: Any,
        *,
        args: TrainingArguments,
        **arguments: Any,
    ) -> None:
        # On a machine of several GPUs a lone process would wrap the model in DataParallel, whose
        # replicas know nothing of one another's gates; several GPUs take a process each.
        args._n_gpu = min(1, args.n_gpu)
        super().__init__(model=model, args=args, **arguments)
        self.recommender = model
        self.training_settings = training
        self._save_to = save

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The model's loss; in training the curriculum decides whether it reads text alone."""
        if model.training:
            inputs = {**inputs, "text_only": self.text_only()}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthSampler:
        rows = self.train_dataset if train_dataset is None else train_dataset
        return LengthSampler(rows, self.training_settings.batch_size, self.args.seed)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The validation loss of one batch: the mean over its rows of the mean over their tokens.

        The Trainer averages batches by their rows, so the loss of a split does not depend on how it
        was cut into batches.
        """
        total, count = self.recommender.answer_log_probs(self._prepare_inputs(inputs))
        return -(total / count).mean(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As usual, but a training that has gone astray ends here and not after days."""
        loss = logs.get("loss", 0.0)
        if not math.isfinite(loss):
            raise InputError(
                f"training: the loss is {loss} at step {self.state.global_step}; lower "
                "training.learning_rate"
            )
        super().log(logs, start_time)

    def text_only(self) -> bool:
        """Whether this step's batch is text-only: with probability 1 - step / steps.

        A function of the seed and the global step alone, so that a resumed run, every process and
        every micro-batch of one step agree (Liao et al., LLaRA, 2024, section 4.3).
        """
        if self.training_settings.curriculum != "text-to-hybrid":
            return self.training_settings.curriculum == "text"
        step, steps = self.state.global_step, self.state.max_steps
        draw = random.Random(f"curriculum {self.args.seed} {step}").random()
        return draw < 1 - step / steps

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Adam, with a learning rate of its own for the gate."""
        if self.optimizer is None:
            settings = self.training_settings
            gate = list(self.recommender.gate.parameters())
            slow = {id(parameter) for parameter in gate}
            parameters = (p for p in self.recommender.parameters() if p.requires_grad)
            gate_rate = settings.learning_rate * settings.gate_learning_rate_ratio
            groups: list[dict[str, Any]] = [
                {"params": [p for p in parameters if id(p) not in slow]},
                {"params": gate, "lr": gate_rate},
            ]
            self.optimizer = torch.optim.AdamW(
                [group for group in groups if group["params"]],
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
                fused=self.args.device.type == "cuda",  # one launch, not dozens, for all tensors
            )
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self._save_to(Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(Path(resume_from_checkpoint), self.recommender)

    def _load_best_model(self) -> None:
        load_weights(Path(self.state.best_model_checkpoint), self.recommender)
