"""What a study consists of: a file of settings, and the runs that follow from it.

A study makes one language model, an encoder for each data set, and then runs in three parts:

1. LoRA and iLoRA at every learning rate with the first seed, on every data set. The rate of each is
   the one with the best HitRatio@1 on *validation* users; there it gets the other seeds, and all its
   seeds meet the test users.
2. iLoRA with other numbers of experts, and
3. with other gates, on one data set: at the rate that part 1 chose for iLoRA, since sharing it keeps
   their number of trials equal.

The language model reads training rows alone, never those of a validation or test split. A data set
that is named in ``base`` is thus one that it knows when it is measured there, as the tables say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from ilora.config import AdapterSettings, RunSettings, Settings, TrainingSettings
from ilora.errors import InputError
from ilora.sweep import Trial, Variant, list_variants

METHODS = ("lora", "ilora")
PARTS = ("experts", "gates")
UNADAPTED = Variant("unadapted", "none", 1, None)


class BasePlan(Settings):
    """The language model that all runs share; see :func:`ilora.base_llm.build_base_llm`."""

    data: list[str] = Field(min_length=1, description="folders whose training rows it reads")
    preset: Literal["tiny", "small"] = "small"
    pretrain_steps: int = Field(1000, ge=0)
    disguised: float = Field(0.5, ge=0, le=1)


class VariantPlan(Settings):
    """Other experts or gates for iLoRA, on one data set."""

    data: str
    experts: list[int] = Field(default_factory=list)
    gates: list[str] = Field(default_factory=list)
    seeds: list[int] = Field([0], min_length=1)


class StudySettings(Settings):
    """The file of a study. Data sets are named by their folders."""

    base: BasePlan
    data: list[str] = Field(min_length=1)
    learning_rates: list[float] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    adapter: AdapterSettings = AdapterSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation_batch_size: int = Field(128, ge=1)
    experts: VariantPlan | None = None
    gates: VariantPlan | None = None

    def part(self, name: str) -> VariantPlan | None:
        """``experts`` or ``gates``."""
        plan: VariantPlan | None = getattr(self, name)
        return plan

    def seeds_of(self, part: str) -> list[int]:
        """The seeds of a part; none where it is left out."""
        plan = self.part(part)
        return [] if plan is None else plan.seeds

    @model_validator(mode="after")
    def _parts_are_of_the_data(self) -> StudySettings:
        for part in (self.experts, self.gates):
            if part is not None and part.data not in self.data:
                raise ValueError(f"{part.data!r} is not one of the study's data sets")
        return self


def read_study(file: Path) -> StudySettings:
    """Read the settings of a study.

    Raises:
        InputError: no such file, no YAML, an unknown key, or a value out of range.
    """
    try:
        return StudySettings.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"config: {file} cannot be read ({error.strerror}); give a file") from None
    except yaml.YAMLError as error:
        raise InputError(
            f"config: {file} is not sound YAML: {' '.join(str(error).split())}"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(f"config: {key} in {file}: {first['msg']}; correct it") from None


@dataclass(frozen=True)
class Study:
    """Settings, the folder with the data folders, and the folder for everything that is made."""

    settings: StudySettings
    data_root: Path
    out: Path

    @property
    def base(self) -> Path:
        """The folder of the language model."""
        return self.out / "base"

    def encoder(self, data: str) -> Path:
        """The folder of a data set's encoder."""
        return self.out / "encoders" / data

    def run(self, row: Row) -> Path:
        """The folder of a training run."""
        return self.out / row.data / "trials" / row.trial.name

    def run_settings(self, data: str) -> RunSettings:
        """What all runs on a data set share; see :meth:`ilora.sweep.Trial.settings`."""
        return RunSettings(
            data=self.data_root / data,
            llm=str(self.base),
            encoder=self.encoder(data),
            adapter=self.settings.adapter,
            training=self.settings.training,
        )


@dataclass(frozen=True)
class Row:
    """One run of the study."""

    data: str
    trial: Trial

    @property
    def name(self) -> str:
        """``movielens/ilora-0.001-seed0``."""
        return f"{self.data}/{self.trial.name}"


def variant(method: str, settings: RunSettings) -> Variant:
    """A method with the study's own experts and gate."""
    return list_variants(settings, [method])[0]


def unadapted(study: Study, data: str) -> Row:
    """The language model as it is."""
    return Row(data, Trial(UNADAPTED, study.settings.training.learning_rate, 0))


def tuning(study: Study, data: str, method: str) -> list[Row]:
    """The runs that a method's rate is chosen by."""
    settings = study.settings
    own = variant(method, study.run_settings(data))
    return [Row(data, Trial(own, rate, settings.seeds[0])) for rate in settings.learning_rates]


def best_rate(figures: Mapping[float, float]) -> float | None:
    """The rate with the best validation figure, of equal ones the lower; None without figures."""
    return max(figures, key=lambda rate: (figures[rate], -rate), default=None)


def other_variants(study: Study, data: str, part: str) -> list[Variant]:
    """What part ``experts`` or ``gates`` compares on a data set, but for LoRA and iLoRA themselves."""
    base, plan = study.run_settings(data), study.settings.part(part)
    if plan is None or plan.data != data:
        return []
    known = [variant(method, base) for method in METHODS]
    listed = list_variants(base, ["ilora"], plan.experts, plan.gates)
    return [one for one in listed if one not in known]


def all_rows(study: Study) -> dict[str, Row]:
    """Every run that the study could ask for, by name."""
    settings = study.settings
    rows = []
    for data in settings.data:
        base = study.run_settings(data)
        several = [(variant(method, base), settings.seeds) for method in METHODS]
        for part in PARTS:
            several += [(one, settings.seeds_of(part)) for one in other_variants(study, data, part)]
        rows += [unadapted(study, data)] + [
            Row(data, Trial(one, rate, seed))
            for one, seeds in several
            for rate in settings.learning_rates
            for seed in seeds
        ]
    return {row.name: row for row in rows}
