"""Which trials are profiled, what becomes of their profiles, and where none can be made.

The trials' processes are fakes here; tests/integration/test_memray_profiler.py has real ones.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem

from ray_tune_memguard import MemrayProfiler, TrialPruner, read_profiles
from ray_tune_memguard.adapter import contract
from ray_tune_memguard.adapter.claims import SPILLING
from ray_tune_memguard.adapter.contract import Capabilities
from ray_tune_memguard.adapter.handle import RunHandle
from ray_tune_memguard.callbacks import memray_profiler
from ray_tune_memguard.callbacks.profile_choice import FirstTrials, LargestTrials, distances
from ray_tune_memguard.cluster import profiling
from ray_tune_memguard.cluster.probe import Answer
from ray_tune_memguard.cluster.profiled_process import IN_USE, MISSING
from ray_tune_memguard.cluster.trial_memory import TrialMemories
from ray_tune_memguard.report.profile_records import TrialProfile

MIB = 2**20
FAR = "far"


class Process:
    """Stands in for a trial's actor: it answers when the test lets it.

    Args:
        logs: the directory of the session's logs.
        problem: why it cannot be profiled.
        content: what the profile's file has.
        node: the id of its node.
    """

    def __init__(self, logs: Path, problem: str = "", content: str = "x", node: str = "n") -> None:
        self.logs, self.problem, self.content, self.node = logs, problem, content, node
        self.calls: list[str] = []
        self.peak = 80 * MIB
        self.pid = 7
        self.is_dead = self.hangs = False
        self.settings: Any = None

    @property
    def __ray_call__(self) -> Process:
        return self

    def remote(self, function: Callable[..., object], *args: Any) -> Any:
        self.calls.append(function.__name__)
        future: Future[Any] = Future()
        if self.is_dead:
            future.set_exception(RuntimeError("ActorDiedError"))
        elif self.hangs:
            pass
        elif function.__name__ == "start":
            name, self.settings = args
            self.path = self.logs / name
            place = {"node": self.node, "address": "10.0.0.5", "pid": self.pid}
            if self.problem:
                future.set_result({**place, "problem": self.problem})
            else:
                self.path.write_text(self.content)
                future.set_result({**place, "path": str(self.path)})
        else:
            future.set_result({"peak": self.peak, "early": ""})
        return SimpleNamespace(future=lambda: future)


class Trial:
    def __init__(self, number: int, process: Process, experiment: Path, **config: object) -> None:
        self.trial_id = f"t{number}"
        self.status = "RUNNING"
        self.config = config or {"number": number}
        self.process = process
        self.directory = experiment / f"train_{self.trial_id}"
        self.local_experiment_path = str(experiment)


class Probes:
    """Asks this machine; the node ``far`` does not answer."""

    def __init__(self) -> None:
        self.users = 0

    def ask(self, node: str, function: Callable[..., Any], *args: object) -> Answer[Any]:
        answer: Answer[Any] = Answer(node)
        if node == FAR:
            answer.fail(RuntimeError("it is lost"))
        else:
            answer.resolve(function(*args))
        return answer

    def give_back(self, user: object) -> None:
        self.users -= 1


class Sweep:
    """Calls the hooks of a profiler as Ray does."""

    def __init__(self, path: Path) -> None:
        self.experiment, self.logs = path / "sweep", path / "logs"
        self.logs.mkdir()
        self.probes = Probes()
        self.memories = TrialMemories()
        self.trials: list[Any] = []
        self.controller: Any = None

    def begin(self, profiler: MemrayProfiler, monkeypatch: pytest.MonkeyPatch) -> MemrayProfiler:
        controller: Any = type("Controller", (), {})()
        self.controller = controller
        run = RunHandle(controller, Capabilities(frozenset({contract.TRIAL_PROFILES})))
        monkeypatch.setattr(run, "node_probes", lambda user: self.take())
        monkeypatch.setattr(run, "trial_memory", lambda: self.memories)
        monkeypatch.setattr(run, "observe_stops", lambda observer: None)
        monkeypatch.setattr(run, "claim", lambda job, owner: True)
        monkeypatch.setattr(run, "actor_of", lambda trial: trial.process)
        monkeypatch.setattr(
            run, "directory_of", lambda trial: (LocalFileSystem(), str(trial.directory))
        )
        self.profiler = profiler
        profiler.begin_run(run)
        return profiler

    def take(self) -> Probes:
        self.probes.users += 1
        return self.probes

    def start(self, process: Process | None = None, **config: object) -> Any:
        process = process or Process(self.logs)
        trial = Trial(len(self.trials), process, self.experiment, **config)
        self.trials.append(trial)
        self.profiler.on_trial_start(1, self.trials, trial)
        self.step()
        return trial

    def step(self) -> None:
        self.profiler.on_step_end(1, self.trials)

    def complete(self, trial: Any) -> None:
        self.profiler.on_trial_complete(1, self.trials, trial)
        trial.status = "TERMINATED"
        self.settle()

    def fail(self, trial: Any) -> None:
        self.profiler.before_stop(trial, True)
        trial.status = "ERROR"
        self.profiler.on_trial_error(1, self.trials, trial)
        self.settle()

    def settle(self) -> None:
        """Until nothing is being copied."""
        for _ in range(500):
            self.step()
            state = self.profiler._state
            if state is None or all(one.end is None for one in state.profiles.values()):
                return
            time.sleep(0.01)
        raise AssertionError("not within 5 s")

    def end(self) -> dict[str, TrialProfile]:
        self.profiler.on_experiment_end(self.trials)
        return {one.trial_id: one for one in read_profiles(self.experiment)}


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


Begin = Callable[..., Sweep]


@pytest.fixture
def begin(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    def begin(*args: Any, **options: Any) -> Sweep:
        sweep.begin(MemrayProfiler(*args, **options), monkeypatch)
        return sweep

    yield begin
    assert sweep.probes.users == 0


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.INFO, logger="ray_tune_memguard"):
        yield lambda: [record.getMessage() for record in caplog.records]


# The choice.


def chosen(sweep: Sweep) -> list[str]:
    return [trial.trial_id for trial in sweep.trials if trial.process.calls]


@pytest.mark.parametrize(("trials", "expected"), [("first", ["t0"]), (2, ["t0", "t1"])])
def test_the_first_trials(begin: Begin, trials: object, expected: list[str]) -> None:
    sweep = begin(trials)
    for _ in range(4):
        sweep.complete(sweep.start())
    assert chosen(sweep) == expected
    assert {one.state for one in sweep.end().values()} == {"completed"}


def test_the_trials_of_a_function(begin: Begin) -> None:
    sweep = begin(lambda trial: trial.config["number"] % 2)
    for _ in range(4):
        sweep.complete(sweep.start())
    assert chosen(sweep) == ["t1", "t3"]
    sweep.end()


def test_a_function_that_raises_is_one_line(begin: Begin, lines: Callable[[], list[str]]) -> None:
    sweep = begin(lambda trial: trial.config["missing"])
    for _ in range(3):
        sweep.complete(sweep.start())
    assert chosen(sweep) == []
    sweep.end()
    assert ["KeyError('missing')" in line for line in lines()] == [True, False]
    assert lines()[1].startswith("No trial was profiled")


def measure(sweep: Sweep, trial: Any, peak: int) -> None:
    """The memory of a finished trial becomes known."""
    for observer in sweep.memories._observers:
        observer(SimpleNamespace(trial_id=trial.trial_id, config=trial.config, peak_rss_bytes=peak))


def test_the_largest_are_those_near_the_heaviest(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrialMemories, "is_measured", True)
    sweep = begin("largest")
    for layers, peak in ((1, 100), (8, 900), (2, 150), (7, 850), (8, 880), (9, 2000), (9, 1900)):
        trial = sweep.start(layers=layers)
        sweep.complete(trial)
        measure(sweep, trial, peak)
    # The second is expected to be as large as the first; it is larger, so no other is profiled
    # until the sixth, which nobody expected, shows that there are larger ones.
    assert chosen(sweep) == ["t1", "t6"]
    sweep.end()


def test_while_a_large_one_is_profiled_no_other_of_its_size_is() -> None:
    choice = LargestTrials()
    choice.add("t0", {"layers": 8}, 900)
    trial: Any = SimpleNamespace(trial_id="t1", config={"layers": 8})
    assert choice.wants(trial)
    assert not choice.wants(trial)
    choice.give_up("t1")
    assert choice.wants(trial)


def test_largest_needs_measured_trials(begin: Begin, lines: Callable[[], list[str]]) -> None:
    sweep = begin("largest")
    for _ in range(2):
        sweep.complete(sweep.start())
    sweep.end()
    assert ["needs a MemGuard()" in line for line in lines()] == [True, False]


def test_distances_of_configurations() -> None:
    config = {"lr": 1e-4, "layers": 4, "kind": "a", "bias": True}
    others = [
        config,
        {**config, "lr": 1e-2},
        {**config, "lr": 1e-3},
        {**config, "layers": 8, "kind": "b"},
        {**config, "bias": False},
        {"lr": float("nan"), "layers": 4, "kind": "a", "bias": True},
        {},
    ]
    assert distances({"seed": 10**400}, [{"seed": 1}, {"seed": 10**400}]) == [1, 0]
    # The learning rates span two decades, of which the third is half.
    assert distances(config, others) == pytest.approx([0, 1, 0.5, 2, 1, 1, 4])
    assert LargestTrials().expected_peak(config) == 0


def test_a_trial_that_cannot_be_profiled_gives_its_place_back() -> None:
    choice = FirstTrials(1)
    assert choice.wants(None)  # type: ignore[arg-type]
    assert not choice.wants(None)  # type: ignore[arg-type]
    choice.give_up("t0")
    assert choice.wants(None)  # type: ignore[arg-type]


# From the start to the end.


def test_a_profile_from_start_to_end(begin: Begin, lines: Callable[[], list[str]]) -> None:
    sweep = begin(survive_kill=True, max_size="1 MiB")
    trial = sweep.start()
    [running] = read_profiles(sweep.experiment)
    assert (running.state, running.address, running.pid) == ("running", "10.0.0.5", 7)
    # With the time of its start.
    name = Path(running.path).name
    assert running.path == str(sweep.logs / name)
    assert re.fullmatch(r"memray-sweep-t0-\d{4}(-\d\d){2}_\d\d(-\d\d){2}\.bin", name)
    assert trial.process.settings == {
        "native": False,
        "follow_fork": False,
        "survive_kill": True,
        "max_size": MIB,
    }
    # A forked process that was followed.
    (sweep.logs / f"{name}.99").write_text("child")
    sweep.complete(trial)
    found = sweep.end()["t0"]
    assert (found.state, found.peak_bytes, found.size_bytes) == ("completed", 80 * MIB, 1)
    assert found.file == f"train_t0/{name}"
    assert (sweep.experiment / found.file).read_text() == "x"
    assert found.children == (f"{name}.99",)
    assert (trial.directory / found.children[0]).read_text() == "child"
    assert trial.process.calls == ["start", "stop"]
    assert f"`memguard profile {sweep.experiment}`" in lines()[-1]
    assert lines()[-1].startswith("1 trial was profiled; the highest known peak is 80.0 MiB by t0.")


def test_a_paused_trial_is_profiled_once(begin: Begin) -> None:
    sweep = begin(3)
    trial = sweep.start()
    sweep.profiler.before_stop(trial, False)
    trial.status = "PAUSED"
    sweep.settle()
    trial.status = "RUNNING"
    sweep.profiler.on_trial_start(1, sweep.trials, trial)
    sweep.complete(trial)
    assert trial.process.calls == ["start", "stop"]
    assert sweep.end()["t0"].state == "paused"


def test_a_trial_that_fails_and_one_that_is_killed(begin: Begin) -> None:
    sweep = begin(2)
    failed, killed = sweep.start(), sweep.start(Process(sweep.logs, content=""))
    killed.process.is_dead = True
    sweep.fail(failed)
    sweep.fail(killed)
    found = sweep.end()
    assert (found["t0"].state, found["t0"].peak_bytes) == ("error", 80 * MIB)
    assert (found["t1"].state, found["t1"].file, found["t1"].peak_bytes) == ("error", "", 0)
    assert found["t1"].note.startswith("It did not end properly (RuntimeError).")
    assert "It is empty, because its process was killed" in found["t1"].note


def test_a_trial_that_ends_with_the_run(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memray_profiler, "MAX_WAIT_AT_END_S", 0.2)
    sweep = begin(2)
    answers, hangs = sweep.start(), sweep.start()
    hangs.process.hangs = True
    found = sweep.end()
    assert (found["t0"].state, bool(found["t0"].file)) == ("unfinished", True)
    assert (found["t1"].state, found["t1"].file) == ("unfinished", "")
    assert found["t1"].path
    assert found["t1"].note == "The run ended before it was copied."
    assert answers.process.calls == hangs.process.calls == ["start", "stop"]


def test_a_large_profile_stays_on_its_node(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "MAX_COPIED", 10)
    sweep = begin()
    sweep.complete(sweep.start(Process(sweep.logs, content="x" * 11)))
    found = sweep.end()["t0"]
    assert (found.file, found.size_bytes) == ("", 11)
    assert "stay on its node" in found.note
    assert not (sweep.experiment / "train_t0").exists()


def test_a_node_that_is_lost(begin: Begin) -> None:
    sweep = begin()
    sweep.complete(sweep.start(Process(sweep.logs, node=FAR)))
    found = sweep.end()["t0"]
    assert (found.file, found.node) == ("", FAR)
    assert "could not be read on its node (Node far: it is lost)" in found.note


def test_only_the_heaviest_and_those_of_failed_trials_stay(begin: Begin) -> None:
    sweep = begin(4, keep=2)
    for peak in (30, 90, 60):
        trial = sweep.start()
        trial.process.peak = peak * MIB
        sweep.complete(trial)
    killed = sweep.start()
    killed.process.is_dead = True
    sweep.fail(killed)
    found = sweep.end()
    states = {trial_id: one.state for trial_id, one in found.items()}
    assert states == {"t0": "removed", "t1": "completed", "t2": "removed", "t3": "error"}
    # The end of the run waits until the files of the others are removed.
    for files in (sweep.logs.iterdir(), sweep.experiment.glob("*/*.bin")):
        assert sorted(file.name.split("-")[2] for file in files) == ["t1", "t3"]


def test_empty_files_of_killed_trials_go_first(begin: Begin) -> None:
    sweep = begin(4, keep=2)
    for _ in range(2):
        killed = sweep.start(Process(sweep.logs, content=""))
        killed.process.is_dead = True
        sweep.fail(killed)
    for _ in range(2):
        sweep.complete(sweep.start())
    states = [one.state for one in sweep.end().values()]
    assert states == ["removed", "removed", "completed", "completed"]


def test_a_later_run_leaves_the_profiles_of_an_earlier_one(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, content in enumerate(("one", "two")):
        monkeypatch.setattr(
            time, "strftime", lambda form, number=number: form.replace("%S", str(number))
        )
        sweep = begin()
        sweep.trials = []
        process = Process(sweep.logs, content=content)
        process.pid = number
        sweep.complete(sweep.start(process))
        sweep.end()
    found = read_profiles(sweep.experiment)
    assert [(one.trial_id, one.pid) for one in found] == [("t0", 0), ("t0", 1)]
    assert [(sweep.experiment / one.file).read_text() for one in found] == ["one", "two"]


def test_a_trial_of_which_it_is_decided_is_not_asked_about_again(begin: Begin) -> None:
    asked = []
    sweep = begin(lambda trial: bool(asked.append(trial.trial_id)))
    trial = sweep.start()
    for _ in range(2):
        sweep.profiler.on_trial_start(1, sweep.trials, trial)
    sweep.complete(trial)
    sweep.profiler.on_trial_start(1, sweep.trials, trial)
    sweep.end()
    assert asked == ["t0"]


def test_a_profile_that_has_not_begun_by_the_end_leaves_no_record(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(memray_profiler, "MAX_WAIT_AT_END_S", 0.1)
    sweep = begin()
    process = Process(sweep.logs)
    process.hangs = True
    sweep.start(process)
    assert sweep.end() == {}
    assert lines() == ["No trial was profiled (trials='first')."]


def test_a_copy_that_a_full_disk_ends_is_removed(tmp_path: Path) -> None:
    class Full:
        """A directory on a disk that has no room for the second file."""

        def create_dir(self, path: str, recursive: bool) -> None:
            Path(path).mkdir(parents=True)

        def open_output_stream(self, path: str, compression: None) -> Any:
            if list(Path(path).parent.iterdir()):
                Path(path).touch()
                raise OSError("No space left on device")
            return open(path, "wb")

        def delete_file(self, path: str) -> None:
            Path(path).unlink()

    profile = tmp_path / "one.bin"
    profile.write_text("x")
    (tmp_path / "one.bin.9").write_text("y")
    probes: Any = Probes()
    filesystem: Any = Full()
    saved = profiling.save_files(probes, "n", str(profile), filesystem, str(tmp_path / "trial"))
    assert "No space left" in saved.note
    assert (saved.size, saved.names) == (1, ())
    assert list((tmp_path / "trial").iterdir()) == []


def test_a_directory_that_cannot_be_written(begin: Begin) -> None:
    sweep = begin()
    trial = sweep.start()
    trial.directory.write_text("a file in its place")
    sweep.complete(trial)
    found = sweep.end()["t0"]
    assert (found.state, found.file) == ("completed", "")
    assert "could not be copied" in found.note


# Where no profile can be made.


def test_without_memray_one_line_and_three_tries(
    begin: Begin, lines: Callable[[], list[str]]
) -> None:
    sweep = begin()
    for _ in range(6):
        sweep.complete(sweep.start(Process(sweep.logs, MISSING)))
    assert chosen(sweep) == ["t0", "t1", "t2"]
    assert sweep.end() == {}
    [line] = lines()
    assert line.startswith("Trial t0 is not profiled: memray is not installed in its environment")
    assert 'on node 10.0.0.5 (pip install "ray-tune-memguard[profile]")' in line
    assert line.endswith("The run continues.")


def test_after_three_failures_in_a_row_no_more_is_tried(
    begin: Begin, lines: Callable[[], list[str]]
) -> None:
    sweep = begin(lambda trial: True)
    problems = ["one", "two", "", "one", "two", "three", ""]
    for problem in problems:
        sweep.complete(sweep.start(Process(sweep.logs, problem)))
    assert list(sweep.end()) == ["t2"]
    assert chosen(sweep) == ["t0", "t1", "t2", "t3", "t4", "t5"]
    said = [line.partition(": ")[2].partition(".")[0] for line in lines()[:3]]
    assert said == ["one", "two", "three"]
    assert lines()[3].startswith("No further trial is profiled in this run, because 3 in a row")


def test_where_the_first_cannot_be_profiled_the_next_is(
    begin: Begin, lines: Callable[[], list[str]]
) -> None:
    sweep = begin()
    sweep.complete(sweep.start(Process(sweep.logs, IN_USE)))
    sweep.complete(sweep.start())
    found = sweep.end()
    assert list(found) == ["t1"]
    assert "the trial's code uses memray itself" in lines()[0]


def test_an_actor_that_dies_at_once(begin: Begin, lines: Callable[[], list[str]]) -> None:
    sweep = begin()
    process = Process(sweep.logs)
    process.is_dead = True
    sweep.fail(sweep.start(process))
    assert sweep.end() == {}
    assert lines()[0].startswith("Trial t0 is not profiled: RuntimeError.")


def test_an_error_of_ours_disables_it_and_ends_the_profiles(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[str]]
) -> None:
    sweep = begin(3)
    trial = sweep.start()
    monkeypatch.setattr(
        type(sweep.profiler._state.choice),  # type: ignore[union-attr]
        "wants",
        lambda *args: 1 / 0,
    )
    sweep.start()
    assert not sweep.profiler.active
    assert trial.process.calls == ["start", "stop"]
    [line] = lines()
    assert line.startswith("MemrayProfiler is disabled")


def test_without_a_controller_it_says_so(lines: Callable[[], list[str]]) -> None:
    profiler = MemrayProfiler()
    profiler.setup()
    assert not profiler.active
    profiler.on_trial_start(1, [], None)  # type: ignore[arg-type]
    profiler.on_experiment_end([])
    assert lines() == ["No trial is profiled. No Ray Tune controller called this callback."]


@pytest.mark.parametrize("is_told", [False, True], ids=["alone", "behind MemGuard"])
def test_what_this_ray_lacks_is_told_once(is_told: bool, lines: Callable[[], list[str]]) -> None:
    controller: Any = type("Controller", (), {})()
    missing = [row for row in contract.NAMES if row.name == "_schedule_trial_stop"]
    run = RunHandle(controller, Capabilities(frozenset(), tuple(missing)))
    pruner = TrialPruner()
    if is_told:
        assert run.claim(SPILLING, pruner)
    profiler = MemrayProfiler()
    profiler.begin_run(run)
    assert not profiler.active
    told = [line.partition(" lacks ")[2].partition(", which")[0] for line in lines()]
    name = "TuneController._schedule_trial_stop(trial, exception)"
    assert told == ([] if is_told else [name])


# Arguments.


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"trials": "last"}, "trials must be 'first', 'largest', a whole number of at least 1, or"),
        ({"trials": 0}, "trials must be 'first', 'largest', a whole number of at least 1, or"),
        ({"trials": 1.5}, "trials must be 'first', 'largest', a whole number of at least 1, or"),
        ({"trials": True}, "trials must be 'first'"),
        ({"keep": 0}, "keep must be a whole number of at least 1, or None; got 0"),
        ({"native": "yes"}, "native must be True or False"),
        ({"survive_kill": 2}, "survive_kill must be True or False"),
        ({"follow_fork": "no"}, "follow_fork must be True or False"),
        ({"max_size": None}, "max_size must be a positive number of bytes"),
        ({"max_size": "much"}, "max_size must be a positive number of bytes"),
    ],
)
def test_what_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        MemrayProfiler(**options)
    assert str(caught.value).startswith(text)
    assert str(caught.value).endswith(f"got {next(iter(options.values()))!r}")


def test_a_function_that_cannot_be_pickled_is_refused() -> None:
    lock = threading.Lock()

    def chooses(trial: object) -> bool:
        return lock.locked()

    with pytest.raises(ValueError, match=r"^trials must be a function that can be pickled, .* got"):
        MemrayProfiler(chooses)


def test_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("TRIALS", "3"),
        ("NATIVE", "1"),
        ("SURVIVE_KILL", "1"),
        ("FOLLOW_FORK", "1"),
        ("MAX_SIZE", "3 GB"),
    ):
        monkeypatch.setenv(f"TUNE_MEMGUARD_PROFILE_{name}", value)
    assert MemrayProfiler(native=False).options == {
        "trials": 3,
        "keep": None,
        "native": False,
        "survive_kill": True,
        "follow_fork": True,
        "max_size": 3 * 10**9,
    }
    assert MemrayProfiler().keep == 3
    assert MemrayProfiler("largest").keep == 5
    monkeypatch.setenv("TUNE_MEMGUARD_PROFILE_KEEP", "2")
    assert MemrayProfiler().keep == 2
    monkeypatch.setenv("TUNE_MEMGUARD_PROFILE_TRIALS", "all")
    with pytest.raises(ValueError, match=r"^TUNE_MEMGUARD_PROFILE_TRIALS must be 'first'"):
        MemrayProfiler()
