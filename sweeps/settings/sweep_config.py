"""The configuration of a sweep: corpus, model, objective, training, search space, budget, resources."""

import copy
import itertools
import math
from collections.abc import Iterator
from functools import cache, partial
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails

from core.settings.model_config import ModelConfig
from core.settings.objective_config import ObjectiveConfig
from core.settings.run_config import RunConfig, faults_of_a_class
from core.settings.schedule import warmup_share
from core.settings.training_config import WITHOUT_BASE, LoraConfig, TrainingConfig
from data_pipeline.schema.corpus_config import CorpusConfig, PackingConfig, TokenizerConfig
from data_pipeline.schema.dotted_paths import set_at, value_at
from data_pipeline.schema.settings import Settings, younger
from sweeps.search_space.conditional_search import condition_faults, num_settings, settled
from sweeps.search_space.distribution import Distribution, settings_in_words
from sweeps.search_space.search_constraints import Constraint, ConstraintFault, parse_constraint
from sweeps.search_space.valid_combinations import Combinations, nothing_valid, partly_invalid
from sweeps.settings.default_stopping import wants_full_length
from sweeps.settings.metric_config import (
    EvaluationConfig,
    Metric,
    MetricConfig,
    names_another_metric,
    ranked_by,
)
from sweeps.settings.setting_paths import ARGUMENTS, PRECISION
from sweeps.settings.settings_faults import field_at, leaf_paths, rules_broken
from sweeps.settings.size_presets import LAPTOP
from sweeps.settings.stage_config import StageConfig, fault_of_stages, with_lengths_of_stages
from sweeps.settings.sweep_sections import (
    BudgetConfig,
    EarlyStoppingConfig,
    RepeatsConfig,
    ResourcesConfig,
    SearcherConfig,
    StartConfig,
    TrackingConfig,
    file_name,
)
from sweeps.settings.swept_values import fault_at, typed_settings, typed_space


def _names_objective(values: dict[str, Any], name: str) -> bool:
    """Whether the raw values of a sweep file set this objective."""
    objective = values.get("objective")
    if isinstance(objective, ObjectiveConfig):
        return getattr(objective, name) is not None
    return objective == name or (
        isinstance(objective, dict) and (objective.get(name) is not None or [*objective] == [name])
    )


def _schedules(values: dict[str, Any]) -> set[Any]:
    """Schedules in the raw values of a sweep file; malformed values are returned unchecked."""
    swept = (values.get("search") or {}).get("training.schedule") if isinstance(values.get("search"), dict) else None
    if isinstance(swept, dict) and isinstance(swept.get("choice"), list | tuple):
        return set(map(str, swept["choice"]))
    training = values.get("training") or {}
    if isinstance(training, TrainingConfig):
        return {training.schedule}
    return {str(training.get("schedule", "wsd"))} if isinstance(training, dict) else {"wsd"}


_WARMUPS = ("warmup", "warmup_tokens", "warmup_steps")


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


UNSWEEPABLE = {
    "model.sequence_length": "rows are packed once, before the trials",
    "model.family": "it decides the objective",
    "model.class": "each class has arguments of its own; sweep those, as model.arguments.width",
    "model.class_digest": "pretune fills it in",
    "model.allow_batch_statistics": "it permits a class, and changes no training",
    "model.arguments": "name the argument, as model.arguments.width",
    "training.tokens": "trials are compared at equal tokens; set budget.tokens_per_trial",
    "training.batch_schedule.double_at": "a distribution holds single values, and this is a list",
    "training.epochs": "trials are compared at equal tokens; set budget.epochs_per_trial",
}
"""Settings that must be equal in all trials of a sweep, with the reason."""


class SweepConfig(Settings):
    """One sweep file, resolved: every default written out."""

    name: Annotated[str, AfterValidator(file_name)]
    """Name of the sweep, of its results folder and of its MLflow run: up to 64 letters, digits, dots, dashes and
    underscores; the first is a letter or digit."""
    purpose: str = ""
    """Question that the sweep answers, in your words; the report quotes it."""
    baseline: str | None = None
    """Result that the report compares the best trial with: a sweep's results folder, or runs:/ID of MLflow."""
    corpus: CorpusConfig
    """Documents to train on, and the share of them that is held out."""
    size: str = LAPTOP
    """Name of the size that is taken: laptop is the file as it stands, others are under sizes. --set size=full takes
    another."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """Tokenizer that is trained on the training documents, or loaded."""
    packing: PackingConfig = PackingConfig()
    """Way in which documents become rows of equal length."""
    model: ModelConfig = ModelConfig()
    """Shape of the transformer."""
    trust_code: bool = False
    """true: the code of model.class may run. Set it in your own files alone: a file of somebody else could name code of
    theirs. --allow-code permits it for one command."""
    objective: ObjectiveConfig
    """Tokens that are predicted: exactly one of masked_lm, causal_lm and sft."""
    training: TrainingConfig = TrainingConfig()
    """Batch, learning rate, optimizer, number format, seed: all that moves the parameters."""
    start: StartConfig | None = None
    """Settings or weights that an earlier sweep or training gives to this one. null: it begins anew."""
    stages: tuple[StageConfig, ...] = ()
    """Training in stages, one after another, instead of a search: a list of sections, in order."""
    search: dict[str, Distribution] = Field(default_factory=dict)
    """Search space: the dotted path of each swept setting, and the values that it may take, as one of the distributions
    below. Empty: one trial. Example: `training.learning_rate: {log_uniform: [1e-4, 1e-2]}`"""
    constraint: Annotated[tuple[str, ...], BeforeValidator(_one_or_more), younger(())] = ()
    """Conditions that the settings of every trial meet, as `model.width % model.heads == 0`: one text or a list, here
    or below search. They have dotted paths or their last names, numbers and words, + - * / // %, comparisons, in, and,
    or, not, min, max, abs. A probe's scaled learning rate and batch size need not meet them."""
    start_with: tuple[dict[str, Any], ...] = ()
    """Settings of the first trials: a list, each with dotted paths of swept settings and their values. They are
    launched even where the memory prediction doubts them."""
    search_from: tuple[str, ...] = ()
    """Results folders of earlier sweeps whose trials are prior knowledge: a list. They search the same settings for the
    same objective. They are trusted less for another corpus, model or length, and as far as they predict the trials of
    this sweep. Empty: the search begins without them."""
    searcher: SearcherConfig = SearcherConfig()
    """Method that proposes settings."""
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    """Rule by which trials end before their tokens are used up."""
    repeats: RepeatsConfig = RepeatsConfig()
    """Further trials of the leading settings with other seeds: they measure the noise of a loss."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Times at which the holdout is evaluated, and downstream tasks."""
    metric: MetricConfig | None = None
    """Metric that ranks trials and names the winner, as `task/topics/accuracy`. null: the holdout loss. With another
    metric no trial stops early unless early_stopping.method says so, and rungs then compare holdout losses."""
    budget: BudgetConfig
    """Limits of the sweep: trials, tokens, operations, time."""
    resources: ResourcesConfig = ResourcesConfig()
    """Workers, lanes, devices and memory of the trials."""
    tracking: TrackingConfig = TrackingConfig()
    """Trackers that get the runs besides MLflow."""

    @model_validator(mode="before")
    @classmethod
    def _rows_are_as_long_as_the_model_wants(cls, value: Any) -> Any:
        # Packed rows have the length of the model's rows, so the file gives it once.
        if isinstance(value, dict):
            value = with_lengths_of_stages(value)
            model, packing = value.get("model"), value.get("packing") or {}
            length = model.get("sequence_length") if isinstance(model, dict) else None
            default = ModelConfig.model_fields["sequence_length"].default
            if isinstance(packing, dict) and "sequence_length" not in packing:
                value = {**value, "packing": {**packing, "sequence_length": default if length is None else length}}
        return value

    @model_validator(mode="before")
    @classmethod
    def _constraints_stand_below_search(cls, value: Any) -> Any:
        search = value.get("search") if isinstance(value, dict) else None
        if isinstance(search, dict) and "constraint" in search and "constraint" not in value:
            rest = {path: one for path, one in search.items() if path != "constraint"}
            value = {**value, "search": rest, "constraint": search["constraint"]}
        return value

    @model_validator(mode="before")
    @classmethod
    def _conversations_have_rows_of_their_own(cls, value: Any) -> Any:
        if isinstance(value, dict) and _names_objective(value, "sft"):
            packing = value.get("packing") or {}
            if isinstance(packing, dict):
                value = {**value, "packing": {"rows": "conversations", **packing}}
        return value

    @model_validator(mode="before")
    @classmethod
    def _family_of_weights_follows_from_the_objective(cls, value: Any) -> Any:
        # The weights supply the rest of the shape (sweeps/planning/warm_start.py), but validation needs the family now.
        if isinstance(value, dict) and isinstance(value.get("start"), dict) and value["start"].get("weights_of"):
            model = value.get("model") or {}
            if isinstance(model, dict) and "family" not in model:
                family = "encoder" if _names_objective(value, "masked_lm") else "decoder"
                value = {**value, "model": {"family": family, **model}}
        return value

    @model_validator(mode="before")
    @classmethod
    def _family_of_a_class_follows_from_the_objective(cls, value: Any) -> Any:
        model = value.get("model") if isinstance(value, dict) else None
        if isinstance(model, dict) and model.get("class") is not None and "family" not in model:
            family = "encoder" if _names_objective(value, "masked_lm") else "decoder"
            value = {**value, "model": {"family": family, **model}}
        return value

    @model_validator(mode="before")
    @classmethod
    def _swept_arguments_have_a_value(cls, value: Any) -> Any:
        # The file's own run needs every argument, for estimates; the middle of what is searched is as good as any.
        search, model = (value.get(name) for name in ("search", "model")) if isinstance(value, dict) else (None, None)
        if not isinstance(search, dict) or not isinstance(model, dict) or model.get("class") is None:
            return value
        arguments = copy.deepcopy(model.get("arguments") or {})
        for path, swept in search.items():
            names = str(path).removeprefix(ARGUMENTS).split(".")
            if str(path).startswith(ARGUMENTS) and isinstance(arguments, dict) and names[0] not in arguments:
                try:
                    made = swept if isinstance(swept, Distribution) else Distribution.model_validate(swept)
                except ValidationError:
                    continue  # The section names the fault.
                values = made.grid(1)
                set_at(arguments, names, values[len(values) // 2])
        return {**value, "model": {**model, "arguments": arguments}} if arguments else value

    @model_validator(mode="before")
    @classmethod
    def _only_wsd_has_branches(cls, value: Any) -> Any:
        if isinstance(value, dict):
            stopping = value.get("early_stopping") or {}
            if isinstance(stopping, dict) and "method" not in stopping:
                # A rung compares holdout losses; a trial that it stops may have been the best by another metric.
                default = "none" if names_another_metric(value.get("metric")) else None
                default = default or ("asha" if _schedules(value) != {"wsd"} else None)
                if default is not None:
                    value = {**value, "early_stopping": {**stopping, "method": default}}
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _full_length_where_it_can_be_probed(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        made = handler(value)
        stopping = made.early_stopping
        if not isinstance(value, dict) or "method" in stopping.model_fields_set or made.stages:
            return made
        length = made.model.sequence_length
        given = (made.search, made.training, made.budget, made.searcher, stopping)
        if not wants_full_length(*given, sequence_length=length):
            return made
        return handler({**value, "early_stopping": {**(value.get("early_stopping") or {}), "method": "full-length"}})

    @model_validator(mode="before")
    @classmethod
    def _probes_have_a_short_warmup(cls, value: Any) -> Any:
        # The warm-up is equal in tokens for all lengths; a tenth of the shortest leaves the probe to training.
        stopping = value.get("early_stopping") if isinstance(value, dict) else None
        if not isinstance(stopping, dict) or stopping.get("method") != "full-length":
            return value
        training = value.get("training") or {}
        lengths = stopping.get("probe_lengths", EarlyStoppingConfig.model_fields["probe_lengths"].default)
        if not isinstance(training, dict):
            return value
        search = value.get("search") or {}
        if any(name in training or f"training.{name}" in search for name in _WARMUPS):
            return value
        try:
            shortest = min(EarlyStoppingConfig(probe_lengths=lengths).probe_lengths)
        except ValidationError:
            return value  # The section names the fault.
        return {**value, "training": {**training, "warmup": shortest / 10}}

    @field_validator("search")
    @classmethod
    def _values_are_of_their_types(cls, search: dict[str, Distribution]) -> dict[str, Distribution]:
        return typed_space(RunConfig, search)

    @field_validator("start_with")
    @classmethod
    def _first_values_are_of_their_types(cls, listed: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        return typed_settings(RunConfig, listed)

    @field_validator("budget")
    @classmethod
    def _says_how_long_a_trial_is(cls, budget: BudgetConfig, others: ValidationInfo) -> BudgetConfig:
        # Stages say it themselves; where they are faulty, that is enough to say.
        has_stages = others.data.get("stages") != ()
        if budget.tokens_per_trial is None and budget.epochs_per_trial is None and not has_stages:
            missing: InitErrorDetails = {"type": "missing", "loc": ("tokens_per_trial",), "input": budget}
            raise ValidationError.from_exception_data(cls.__name__, [missing])
        return budget

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        faults = [*self._branch_faults(), *self._metric_faults()]
        if self.packing.sequence_length != self.model.sequence_length:
            faults.append(
                f"packing.sequence_length={self.packing.sequence_length} differs from "
                f"model.sequence_length={self.model.sequence_length}; remove packing.sequence_length"
            )
        if not 0 < self.corpus.holdout < 1:
            faults.append(
                f"corpus.holdout={self.corpus.holdout:g} leaves no rows to compare trials on, or to train on; try 2%"
            )
        if self.objective.masked_lm is not None and self.tokenizer.special_tokens == "minimind":
            faults.append("masked_lm needs a <mask> token; use tokenizer.special_tokens: roberta")
        if self.training.tokens is not None or self.training.epochs is not None:
            faults.append(
                "training.tokens and training.epochs: a sweep sets both from its budget; set budget.tokens_per_trial "
                "instead"
            )
        wrong_objective = self.objective.fault_for(self.model.family)
        if wrong_objective is not None:
            faults.append(wrong_objective)
        if self.objective.classification is not None:
            faults.append("objective: classification needs a fine-tuning file; run it with pretune finetune")
        if self.objective.sft is not None and self.packing.rows == "packed":
            faults.append("packing.rows=packed lets a conversation attend to the one before; remove packing.rows")
        if self.objective.sft is None and self.packing.rows == "conversations":
            faults.append("packing.rows=conversations needs objective: sft; remove packing.rows")
        faults += self._class_faults()
        has_shape = self.start is None or self.start.weights_of is None  # Else the weights supply it later.
        if has_shape and self.model.class_ is None:
            faults += self.lora_faults(_equal_sized(self.model))
        faults += fault_of_stages(
            self.stages,
            num_positions=self.model.num_positions,
            sequence_length=self.model.sequence_length,
            num_workers=self.resources.workers_per_trial,
            is_swept=bool(self.search),
        )
        if self.stages and self.budget.shorten_to is not None:
            faults.append(
                f"budget.shorten_to={self.budget.shorten_to}: the stages set the length of the training; remove "
                "shorten_to"
            )
        if self.training.batch_schedule is not None:
            faults += self._batch_schedule_faults()
        has_own_unit = any(self.values_of(f"training.warmup_{unit}") != (None,) for unit in ("tokens", "steps"))
        if has_own_unit and self.budget.tokens_per_trial is not None and not self.stages:
            cooldown = max(self.values_of("training.cooldown")) if "wsd" in _schedules(self.model_dump()) else 0.0
            if self.longest_warmup + cooldown > 1:
                faults.append(
                    f"training.warmup_tokens or warmup_steps comes to {self.longest_warmup:.0%} of the "
                    f"{self.budget.tokens_per_trial:,} tokens of a trial, and with a cooldown of {cooldown:.0%} to "
                    "more than all; lower it, or raise budget.tokens_per_trial"
                )
        smallest_batch = min(self.values_of("training.batch_size"))
        if smallest_batch < self.resources.workers_per_trial:
            faults.append(
                f"training.batch_size={smallest_batch} leaves some of the {self.resources.workers_per_trial} workers "
                f"without a row; use at least {self.resources.workers_per_trial}"
            )
        if (
            self.search_from
            and self.searcher.method in ("grid", "random")
            and self.early_stopping.method != "full-length"
        ):
            faults.append(
                f"search_from has no meaning with searcher.method={self.searcher.method}, which learns from no trial; "
                "remove it, or use tpe or gp"
            )
        if faults:
            raise ValueError("; ".join(faults))
        invalid = [fault_at(("search", path), None, words) for path, words in condition_faults(self.search)]
        invalid += self._constraint_faults()
        invalid = invalid or list(self._combination_faults())
        if invalid:
            raise ValidationError.from_exception_data(type(self).__name__, invalid)
        return self

    def _constraint_faults(self) -> Iterator[InitErrorDetails]:
        for index, text in enumerate(self.constraint):
            try:
                _parsed(text, tuple(self.search), tuple(self.model.arguments))
            except ConstraintFault as fault:
                yield fault_at(("constraint", index), text, fault)

    @property
    def _constraints(self) -> tuple[Constraint, ...]:
        return tuple(_parsed(text, tuple(self.search), tuple(self.model.arguments)) for text in self.constraint)

    def _class_faults(self) -> Iterator[str]:
        if self.model.class_ is None:
            if self.trust_code:
                yield "trust_code=true: the file names no code; remove it, or give model.class"
            return
        if self.start is not None and self.start.weights_of is not None:
            yield (
                "start.weights_of: the shape of model.class is its own; remove it, and give training.initial_weights "
                "a model of the same class"
            )
        yield from faults_of_a_class(self.model, self.training)

    def _combination_faults(self) -> Iterator[InitErrorDetails]:
        paths = {path for settings in (self.search, *self.start_with) for path in settings}
        has_arguments = self.model.class_ is not None
        if any(
            field_at(path, RunConfig) is None and not (has_arguments and path.startswith(ARGUMENTS)) for path in paths
        ):
            return  # The check of the file names them (sweep_file.py).
        nothing = nothing_valid(self.search, self.fault_of, linked=self.linked, grid_points=self.grid_points)
        if nothing is not None:
            settings, rule = nothing.faults[0]
            words = f"{nothing}: {settings_in_words(settings)} for instance, {rule}"
            yield fault_at(("search", *nothing.paths[:1]), None, words)
        for index, settings in enumerate(self.start_with):
            fault = self.fault_of(settings)
            if fault is not None:
                yield fault_at(("start_with", index), None, f"{settings_in_words(settings)}: {fault}")

    @property
    def ranked_by(self) -> Metric:
        """The metric that ranks trials."""
        return ranked_by(self.metric, self.evaluation.tasks)

    def _metric_faults(self) -> Iterator[str]:
        try:
            metric = self.ranked_by
        except ValueError as unknown:
            yield str(unknown)
            return
        if not metric.is_loss and self.early_stopping.method == "full-length":
            yield (
                f"early_stopping.method=full-length predicts the holdout loss at the full length, and metric is "
                f"{metric.name}; use early_stopping.method: none, or asha, which compares holdout losses at rungs"
            )

    def _branch_faults(self) -> Iterator[str]:
        stopping = self.early_stopping
        if not stopping.has_branches:
            return
        others = sorted(set(self.values_of("training.schedule")) - {"wsd"})
        if others:
            yield (
                f"early_stopping.method={stopping.method} needs a trunk at constant learning rate, and "
                f"training.schedule={others[0]} has none; use training.schedule: wsd, or early_stopping.method: asha"
            )
        cooldown = max(self.values_of("training.cooldown"))
        if stopping.method == "full-length":
            yield from self._probe_faults(cooldown)
        elif cooldown + 1 / stopping.reduction_factor > 1:
            yield (
                f"training.cooldown={cooldown:g} begins before the last rung, at 1/{stopping.reduction_factor} of the "
                f"tokens; use a cooldown of at most {1 - 1 / stopping.reduction_factor:.2g}"
            )

    def _batch_schedule_faults(self) -> Iterator[str]:
        if self.early_stopping.has_branches:
            yield (
                "training.batch_schedule doubles the batch at shares of a whole training, and early_stopping.method="
                f"{self.early_stopping.method} ends trainings at shorter lengths; use early_stopping.method: asha, "
                "median or none"
            )
        if self.stages:
            yield (
                "training.batch_schedule is of one training, and each stage has a batch size of its own; remove one of "
                "the two"
            )

    def _probe_faults(self, cooldown: float) -> Iterator[str]:
        longest = self.early_stopping.probe_lengths[-1]
        if cooldown + longest > 1:
            yield (
                f"training.cooldown={cooldown:g} begins before the longest probe ends, at {longest:.0%} of the tokens; "
                f"use a cooldown of at most {1 - longest:.2g}"
            )
        others = {
            "budget.flops": self.budget.flops,
            "budget.patience": self.budget.patience,
            "searcher.extend": self.searcher.extend,
        }
        for path, value in others.items():
            if value:
                yield f"{path} has no meaning with early_stopping.method=full-length; remove it, or use another method"
        tokens, a_trial = self.budget.tokens, self.budget.tokens_per_trial
        if tokens is not None and a_trial is not None and tokens < (self.early_stopping.num_in_full + 0.5) * a_trial:
            yield (
                f"budget.tokens={tokens:,} leaves less than half a training for probes beside the "
                f"{self.early_stopping.num_in_full} trainings in full; use at least "
                f"{math.ceil((self.early_stopping.num_in_full + 0.5) * a_trial):,}, or a smaller early_stopping.confirm"
            )

    def lora_faults(self, model: ModelConfig) -> list[str]:
        """Faults of the LoRA settings for a model of this shape, over all combinations of swept adapter settings."""
        swept = [path for path in self.search if path.startswith("training.lora.")]
        if self.training.lora is None and not swept:
            return []
        faults = []
        if self.training.initial_weights is None and (self.start is None or self.start.weights_of is None):
            faults.append(WITHOUT_BASE)
        from core.models.lora import lora_faults  # It builds the model, so it needs torch.

        lora = self.training.lora or LoraConfig()
        given = {name: getattr(lora, name) for name in ("rank", "targets")}
        values = {
            name: self.search[path].extremes() if (path := f"training.lora.{name}") in self.search else (value,)
            for name, value in given.items()
        }
        for rank, targets in itertools.product(*values.values()):
            if isinstance(rank, int) and isinstance(targets, str):
                faults += lora_faults(model, LoraConfig(rank=rank, targets=targets))
        return list(dict.fromkeys(faults))

    @property
    def num_trials(self) -> int:
        """Most trials of the search: budget.trials, or fewer where the search space has fewer settings.

        Settings of start_with are all tried. A space that is widened (searcher.extend) has no last setting.
        """
        points = self.searcher.grid_points if self.searcher.method == "grid" else None
        count = num_settings(self.search, points, self.value_at)
        if self.searcher.extend or count >= self.budget.trials:
            return max(self.budget.trials, len(self.start_with))
        beside = sum(not self._is_in_space(settings, points) for settings in self.start_with)
        return max(min(self.budget.trials, int(count) + beside), len(self.start_with))

    @property
    def num_repeats(self) -> int:
        """Most repeats after the search."""
        count = self.repeats.count(self.budget.trials)
        is_auto = self.repeats.trials == "auto"
        return max(count, 2) if is_auto and self.early_stopping.method == "full-length" else count

    @property
    def probe_tokens(self) -> int:
        """Tokens that early_stopping.method: full-length may use for probes, branches included."""
        if self.budget.tokens is not None:
            return self.budget.tokens - self.early_stopping.num_in_full * self.budget.trial_tokens
        return round(self.budget.search_share * self.num_trials * self.budget.trial_tokens)

    @property
    def max_tokens(self) -> int:
        """Most tokens of all trials of the search."""
        if self.early_stopping.method == "full-length":
            return self.probe_tokens + self.early_stopping.num_in_full * self.budget.trial_tokens
        return self.num_trials * self.budget.trial_tokens

    def _is_in_space(self, settings: dict[str, Any], grid_points: int | None) -> bool:
        """Whether the search would propose exactly these settings."""
        return settings.keys() == self.search.keys() and all(
            distribution.holds(settings[path])
            if grid_points is None
            else settings[path] in distribution.grid(grid_points)
            for path, distribution in self.search.items()
        )

    def values_of(self, path: str) -> tuple[Any, ...]:
        """All values of a choice, both ends of a range, or the single value of a setting that is not swept."""
        if path in self.search:
            return self.search[path].extremes()
        return (self.value_at(path),)

    @property
    def longest_warmup(self) -> float:
        """The longest warm-up of all trials, as a share of their tokens. Rows count as full."""
        length = self.model.sequence_length
        return max(
            warmup_share(
                self.training.model_copy(update={"warmup": share, "warmup_tokens": tokens, "warmup_steps": steps}),
                total_tokens=self.budget.trial_tokens,
                tokens_per_step=batch * length,
            )
            for share in self.values_of("training.warmup")
            for tokens in self.values_of("training.warmup_tokens")
            for steps in self.values_of("training.warmup_steps")
            for batch in self.values_of("training.batch_size")
        )

    @property
    def grid_points(self) -> int | None:
        """Values that a grid takes from each range; None if the search is no grid."""
        return self.searcher.grid_points if self.searcher.method == "grid" else None

    def fault_of(self, settings: dict[str, Any], *, is_probe: bool = False) -> str | None:
        """The rule that settings (dotted path to value) break together, with its remedy; None if they are valid.

        Args:
            is_probe: The settings are scaled to a shorter length, so constraints do not bind them.
        """
        try:
            run = self._run_as_asked(settings)
        except ValidationError as error:
            return rules_broken(error)
        broken = () if is_probe else (one.fault(partial(value_at, run)) for one in self._constraints)
        return next((fault for fault in broken if fault is not None), None)

    def breaks_a_constraint(self, settings: dict[str, Any]) -> bool:
        """Whether the file has constraints, and settings (dotted path to value) break one or are invalid."""
        return bool(self.constraint) and self.fault_of(settings) is not None

    def settled(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings with the value of the file for each setting whose condition (`when`) does not hold."""
        return settled(self.search, settings, self.value_at)

    @property
    def linked(self) -> tuple[frozenset[str], ...]:
        """Swept settings that a constraint or a condition ties together."""
        conditions = [frozenset({path, *(one.when or ())}) for path, one in self.search.items() if one.when]
        return (*conditions, *(frozenset(one.paths.values()) & self.search.keys() for one in self._constraints))

    @property
    def needs_gpus(self) -> bool:
        """Whether some trial trains in fp16, which CPUs do not compute."""
        return "fp16" in self.values_of(PRECISION)

    def partly_invalid(self) -> Iterator[Combinations]:
        """The sections of the search space some of whose combinations are never launched, because they are invalid."""
        return partly_invalid(self.search, self.fault_of, linked=self.linked, grid_points=self.grid_points)

    def value_at(self, path: str) -> Any:
        """The value, or its default, at a dotted path; None if a section on the path is missing."""
        return value_at(self, path)

    def run_config(self, settings: dict[str, Any] | None = None) -> RunConfig:
        """The training run of a trial with these settings (dotted path to value)."""
        run = self._run_as_asked(settings or {})
        return run.model_copy(update={"model": _equal_sized(run.model)})

    def _run_as_asked(self, settings: dict[str, Any]) -> RunConfig:
        base = RunConfig(
            model=self.model,
            objective=self.objective,
            training=self.training.model_copy(update={"tokens": self.budget.tokens_per_trial}),
        )
        return base.with_overrides(settings)

    def stage_runs(self) -> tuple[RunConfig, ...]:
        """The training run of each stage; empty without stages."""
        whole = self.run_config()
        return tuple(stage.run_config(whole) for stage in self.stages)

    def packing_of(self, run: RunConfig) -> PackingConfig:
        """The packing for the row length of one run."""
        return self.packing.model_copy(update={"sequence_length": run.model.sequence_length})


@cache
def _parsed(constraint: str, swept: tuple[str, ...], arguments: tuple[str, ...]) -> Constraint:
    of_class = (f"{ARGUMENTS}{name}" for name in arguments)
    return parse_constraint(
        constraint, known=tuple(dict.fromkeys((*leaf_paths(RunConfig), *swept, *of_class))), swept=swept
    )


def _equal_sized(model: ModelConfig) -> ModelConfig:
    """The model with `equal_in` applied. Imports torch only if `equal_in` is set."""
    if model.equal_in is None:
        return model
    from core.models.size_matching import equalized

    return equalized(model)
