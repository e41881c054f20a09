"""What Optuna keeps and decides for a sweep: the next point, whether to stop, what is finished.

A `SweepFile` and a database flow in (SQLite in the sweep's folder, or any URL that several machines
share); trials with their parameters flow out. Every change is in the database before it is acted
upon, so a process may be killed at any moment. The sampler of trial N is seeded by the sweep's seed
and N: a sweep that was interrupted draws the points it would have drawn. Left out: processes
(`sweep.py`).
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.config.errors import InputError, OutsideError
from saccade.pipeline.sweep_file import Stopping, SweepFile

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

STARTUP_TRIALS = 8
"""Random points before TPE has anything to learn from."""
ASKING_SECONDS = 60.0
"""How long another machine may take between opening a trial and saying that it is its own."""


class Study:
    """A sweep's database. `home` names the machine and folder whose trials this process runs."""

    def __init__(self, sweep: SweepFile, *, folder: Path, home: str, key: Mapping[str, str]):
        optuna = import_optuna()
        self.sweep = sweep
        self.home = home
        self.shared = sweep.storage is not None
        url = sweep.storage or f"sqlite:///{folder / 'sweep.db'}"
        try:
            self.storage = optuna.storages.RDBStorage(url, engine_kwargs=_patient(url))
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=sweep.name,
                direction="maximize" if sweep.maximize else "minimize",
                pruner=pruner_of(sweep.stopping),
                load_if_exists=True,
            )
        except Exception as error:  # every driver has errors of its own
            where = sweep.shown if self.shared else str(folder)
            raise OutsideError(
                f"{where}: the sweep's database cannot be opened ({type(error).__name__}:"
                f" {_first_line(error)})\n  fix: check the path or URL, its permissions and driver"
            ) from error
        self._refuse_another(key, folder=folder)
        self.space = space_of(sweep)

    def _refuse_another(self, key: Mapping[str, str], *, folder: Path) -> None:
        """A study belongs to one search space, metric and configuration."""
        stored = self.study.user_attrs.get("key")
        if stored is None:
            self.study.set_user_attr("key", dict(key))
            return
        changed = [part for part in key if stored.get(part) != key[part]]
        if changed:
            raise InputError(
                f"{self.sweep.shown}: {folder} was started with other values of"
                f" {', '.join(changed)}\n  fix: restore them, choose another `name`, or delete the"
                " folder"
            )

    def trials(self) -> list[FrozenTrial]:
        """All trials that count, in the order of their numbers."""
        found = self.study.get_trials(deepcopy=False)
        return [one for one in found if not one.user_attrs.get("void")]

    def asked(self) -> list[FrozenTrial]:
        """Trials that were drawn, whatever became of them."""
        return [one for one in self.trials() if one.state.name != "WAITING"]

    def running_here(self) -> list[FrozenTrial]:
        """Unfinished trials of this machine and folder; half-drawn ones are made void."""
        mine: list[FrozenTrial] = []
        for one in self.trials():
            if one.state.name != "RUNNING":
                continue
            if one.user_attrs.get("home") == self.home:
                mine.append(one)
            elif "home" not in one.user_attrs and self._abandoned(one):
                self._void(one)
        return mine

    def _void(self, one: FrozenTrial) -> None:
        """A trial whose drawing was cut short does not count; a grid's point is queued again."""
        point = one.system_attrs.get("fixed_params")
        if point is not None:
            self.study.enqueue_trial(point)
        self.storage.set_trial_user_attr(one._trial_id, "void", True)
        self._settle(one.number, state="FAIL")

    def _abandoned(self, one: FrozenTrial) -> bool:
        started = one.datetime_start
        return not self.shared or (
            started is not None and time.time() - started.timestamp() > ASKING_SECONDS
        )

    def fill_grid(self) -> int:
        """Queue every point of a grid that is not there yet; returns how many points it has."""
        points = grid_points(self.sweep)
        if not self.study.user_attrs.get("grid"):
            for point in points:
                self.study.enqueue_trial(point, skip_if_exists=True)
            self.study.set_user_attr("grid", len(points))
        return len(points)

    def ask(self) -> FrozenTrial:
        """Draw the next point and put this process's name on it; call it under the sweep's lock."""
        drawn = len(self.study.get_trials(deepcopy=False))
        if self.sweep.method == "grid":
            drawn = len(self.asked())
        self.study.sampler = sampler_of(self.sweep, number=drawn)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self.study.ask(fixed_distributions=self.space)
        trial.set_user_attr("home", self.home)
        return self.get(trial._trial_id)

    def get(self, trial_id: int) -> FrozenTrial:
        """A trial as it is now."""
        return self.storage.get_trial(trial_id)

    def values(self, trial: FrozenTrial) -> dict[str, Any]:
        """What the trial sets: {key: value}, constants included."""
        return {
            one.key: one.choices[0] if one.constant else one.value(trial.params[one.key])
            for one in self.sweep.parameters
        }

    def report(self, trial_id: int, *, number: int, value: float, final: bool) -> bool:
        """Keep the trial's n-th report; True when the trial is to be stopped.

        After its final report there is nothing left to save by stopping it.
        """
        trial = self.get(trial_id)
        stopped = "stopped_at" in trial.user_attrs
        if number in trial.intermediate_values:
            return stopped
        self.storage.set_trial_intermediate_value(trial_id, number, value)
        if stopped:
            return True
        if final or not self.study.pruner.prune(self.study, self.get(trial_id)):
            return False
        self.note(trial_id, stopped_at=number)
        return True

    def note(self, trial_id: int, **facts: Any) -> None:
        """Keep facts about a trial."""
        for name, value in facts.items():
            self.storage.set_trial_user_attr(trial_id, name, value)

    def tell(self, trial_id: int, *, state: str, value: float | None = None) -> None:
        """Finish a trial: COMPLETE with its value, PRUNED or FAIL."""
        if state == "COMPLETE" and (value is None or not math.isfinite(value)):
            state = "FAIL"
        self._settle(self.get(trial_id).number, state=state, value=value)

    def _settle(self, number: int, *, state: str, value: float | None = None) -> None:
        from optuna.trial import TrialState

        with suppress(ValueError), warnings.catch_warnings():  # ValueError: finished meanwhile
            warnings.simplefilter("ignore")
            found = value if state == "COMPLETE" else None
            self.study.tell(number, found, state=TrialState[state])


@contextmanager
def lost_database_is_named(where: str) -> Iterator[None]:
    """A database that cannot be read or written any more is one error; what it holds stays."""
    optuna = import_optuna()
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        cause = _first_line(error.__cause__ or error)
        raise OutsideError(
            f"{where}: the sweep's database cannot be used ({cause})"
            "\n  fix: see that the disk has space and the database answers, then run the same"
            " command to continue"
        ) from error


def import_optuna() -> Any:
    """Optuna, quiet; raises OutsideError with the command that installs it."""
    try:
        import optuna
    except ImportError as error:
        raise OutsideError(
            "sweeps need optuna, which is not installed\n  fix: pip install 'saccade[sweep]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def space_of(sweep: SweepFile) -> dict[str, Any]:
    """The ranges that Optuna draws from; constants are left out."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    space: dict[str, Any] = {}
    for one in sweep.parameters:
        if one.constant:
            continue
        if one.draw == "choice":
            space[one.key] = CategoricalDistribution(one.texts())
        elif one.draw == "int":
            space[one.key] = IntDistribution(int(one.low), int(one.high))
        else:
            space[one.key] = FloatDistribution(one.low, one.high, log=one.draw == "log")
    return space


def grid_points(sweep: SweepFile) -> list[dict[str, Any]]:
    """Every combination, the last parameter changing fastest."""
    varied = [one for one in sweep.parameters if not one.constant]
    lists = [one.points() or [] for one in varied]
    return [
        dict(zip([one.key for one in varied], point, strict=True))
        for point in itertools.product(*lists)
    ]


def sampler_of(sweep: SweepFile, *, number: int) -> optuna.samplers.BaseSampler:
    """TPE for `bayes`, else random; what it draws depends on the seed, N and finished trials."""
    from optuna.samplers import RandomSampler, TPESampler

    text = f"{sweep.seed} {number}".encode()
    seed = int.from_bytes(hashlib.sha256(text).digest()[:4], "big")
    if sweep.method == "bayes":
        return TPESampler(
            seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True
        )
    return RandomSampler(seed=seed)


def pruner_of(stopping: Stopping | None) -> optuna.pruners.BasePruner:
    """W&B's hyperband is one ladder of successive halving; with both ends given, several."""
    from optuna.pruners import HyperbandPruner, NopPruner, SuccessiveHalvingPruner

    if stopping is None:
        return NopPruner()
    if stopping.min_iter is not None and stopping.max_iter is not None:
        return HyperbandPruner(
            min_resource=stopping.min_iter,
            max_resource=stopping.max_iter,
            reduction_factor=stopping.eta,
        )
    return SuccessiveHalvingPruner(min_resource=stopping.first, reduction_factor=stopping.eta)


def importances(sweep: SweepFile, trials: list[FrozenTrial]) -> dict[str, float]:
    """How much each parameter decides between good and bad values: PED-ANOVA.

    Watanabe et al. 2023 (arXiv:2304.10255): the divergence between the density of all trials and
    that of the best tenth, per parameter; shares sum to 1. Stopped trials count with their last
    report. Empty below four trials or where all values are equal.
    """
    optuna = import_optuna()
    study = optuna.create_study(direction="maximize" if sweep.maximize else "minimize")
    space = space_of(sweep)
    for one in trials:
        value = last_value(one)
        known = value is not None and math.isfinite(value)
        if known and one.state.name in ("COMPLETE", "PRUNED"):
            study.add_trial(
                optuna.trial.create_trial(params=one.params, distributions=space, value=value)
            )
    values = {one.value for one in study.get_trials(deepcopy=False)}
    if len(values) < 4 or not space:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: round(float(share), 4) for key, share in found.items()}


def last_value(trial: FrozenTrial) -> float | None:
    """A trial's value: what it ended with, else its last report."""
    if trial.state.name == "COMPLETE":
        return trial.value
    reports = trial.intermediate_values
    return reports[max(reports)] if reports else None


def _patient(url: str) -> dict[str, Any]:
    # several processes write to one SQLite file: wait for its lock rather than give up
    return {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
