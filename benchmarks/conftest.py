"""Options, the fixture that measures and records a case, and provenance for the JSON."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from benchmarks.cases import Case, Plan, Shape, plan_for
from benchmarks.contest import Contest, Results, hold
from benchmarks.device_clock import tell
from benchmarks.provenance import provenance
from benchmarks.record import record
from ilora_kernels import backends, use_backend

BuildContest = Callable[[Sequence[Case], torch.device], Contest]
Record = Callable[[Case, BuildContest], None]

PLAN = pytest.StashKey[Plan]()
RESULTS = pytest.StashKey[dict[tuple[object, ...], Results]]()
BEGAN = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ilora benchmarks")
    group.addoption("--quick", action="store_true", help="a few small cases, to see that all runs")
    group.addoption("--shapes", type=_shapes, help="d_out x d_in, as 4096x4096,1024x4096")
    group.addoption("--tokens", type=_numbers, help="T, as 2048,4096; the model has its own")
    group.addoption("--rounds", type=int, help="how often each call is timed; default 30 on a GPU")
    group.addoption("--layers", type=int, help="decoder layers of the whole model")
    group.addoption("--backend", help="of ilora_kernels; default: triton where it runs, else torch")
    group.addoption("--device", help="cpu or cuda; default: cuda if there is one")
    group.addoption("--commit", help="what to record where there is no git repository")
    group.addoption(
        "--time-limit", type=float, metavar="S", help="skip what would start after so many seconds"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    device = torch.device(config.getoption("device") or _usual_device())
    config.stash[PLAN] = plan_for(
        device,
        config.getoption("backend") or _usual_backend(device),
        quick=config.getoption("quick"),
        shapes=config.getoption("shapes"),
        tokens=config.getoption("tokens"),
        rounds=config.getoption("rounds"),
        layers=config.getoption("layers"),
    )
    config.stash[RESULTS] = {}
    config.stash[BEGAN] = time.monotonic()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module's ``cases(plan)`` says what its test measures."""
    if "case" in metafunc.fixturenames:
        cases: list[Case] = metafunc.module.cases(metafunc.config.stash[PLAN])
        metafunc.parametrize("case", cases, ids=str)


def pytest_runtest_setup(item: pytest.Item) -> None:
    limit = item.config.getoption("time_limit")
    if limit is not None and time.monotonic() - item.config.stash[BEGAN] > limit:
        pytest.skip(f"--time-limit {limit:g} is over")


@pytest.fixture(scope="session", autouse=True)
def _imported_objects_are_not_collected() -> Iterator[None]:
    """Every contest collects garbage; without this it would look through all of transformers."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _chosen_backend(pytestconfig: pytest.Config) -> Iterator[None]:
    """One backend for the whole run, entered once: entering it is no part of a call's cost."""
    plan, threads = pytestconfig.stash[PLAN], torch.get_num_threads()
    if not plan.on_gpu:
        torch.set_num_threads(1)  # layers this small scatter by factors when cores are shared
    with use_backend(plan.backend):
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark: Any) -> Record:
    """Measure a case together with all selected cases of its file that share its baseline."""
    plan, suite = request.config.stash[PLAN], request.path.stem.removeprefix("bench_")

    def measure_and_record(case: Case, build: BuildContest) -> None:
        held = request.config.stash[RESULTS]
        key = (request.path, case.baseline)
        if key not in held:
            held[key] = _contest_of(request, case, build, plan)
        result = held[key].cases[case]
        if isinstance(result, Exception):
            raise result
        shape = f"{case.d_out}x{case.d_in}, T = {case.tokens}"
        benchmark.group = f"{suite} {case.op}, {case.mode}, {shape}"
        benchmark.extra_info.update(record(suite, case, result, held[key]))
        tell(benchmark, result.timing.device_us)

    return measure_and_record


def _contest_of(
    request: pytest.FixtureRequest, case: Case, build: BuildContest, plan: Plan
) -> Results:
    gc.collect()  # the modules of the contest before, and with them its tensors
    selected = [item for item in request.session.items if item.path == request.path]
    cases: list[Case] = [
        item.callspec.params["case"]  # type: ignore[misc]
        for item in selected
        if isinstance(item, pytest.Function)
    ]
    together = [other for other in cases if other.baseline == case.baseline]
    return hold(build(together, plan.device), plan.device, plan.rounds)


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    """In place of the plugin's, which names the host and lists its CPU's flags."""
    return provenance(config.stash[PLAN].device, config.invocation_params.args)


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    if config.getoption("commit"):
        commit_info.clear()
        commit_info["id"] = config.getoption("commit")


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Keep the statistics; single rounds would make a file that is stored several times as long."""
    for line in output_json["benchmarks"]:
        line["params"] = {"case": line["param"]}
        line["stats"].pop("data", None)
        line.pop("options", None)


def _usual_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _usual_backend(device: torch.device) -> str:
    return "triton" if device.type == "cuda" and backends()["triton"] is None else "torch"


def _shapes(text: str) -> tuple[Shape, ...]:
    pairs = [tuple(map(int, shape.split("x"))) for shape in text.split(",")]
    return tuple((d_out, d_in) for d_out, d_in in pairs)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))
