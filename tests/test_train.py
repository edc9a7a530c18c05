"""`fit` against the plain loop of a notebook, and everything that may go wrong on the way."""

import json
import math
import os
import signal
import sys
import threading

import pytest
import torch
from helpers.killable import Tiny, batches, evaluate, tiny_config
from torch import nn

from minidalle.config import get_config, replace
from minidalle.models import read_model
from minidalle.train import Stopped, TrainingError, fit, split_batch
from minidalle.training.checkpoints import Checkpoints
from minidalle.training.optim import Average, clip_gradients, learning_rate, make_optimizer
from minidalle.training.run import Alone


@pytest.fixture(autouse=True)
def one_thread_that_ctrl_c_interrupts():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has none
    yield
    signal.signal(signal.SIGINT, handler)
    torch.set_num_threads(threads)


def _log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def _equal(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


class Line(nn.Module):
    """y = w x without noise, for plain comparisons."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 1)
        nn.init.constant_(self.net.weight, 0.1)
        nn.init.zeros_(self.net.bias)

    def loss(self, batch, step, generator=None):
        loss = (self.net(batch["x"]) - batch["x"].sum(1, keepdim=True)).square().mean()
        return loss, {}


class Breaking(Line):
    """Gives a loss that is not finite at the updates `at`."""

    def __init__(self, at=(), value=math.nan):
        super().__init__()
        self.at, self.value, self.calls = set(at), value, 0

    def loss(self, batch, step, generator=None):
        loss, metrics = super().loss(batch, step, generator)
        self.calls += 1
        return loss * self.value if step in self.at else loss, metrics


def test_fit_is_the_loop_of_the_notebook(tmp_path):
    config = tiny_config(25, accumulate=1)
    mine, model = Line(), Line()
    optimizer, average = make_optimizer(mine, config), Average(mine, config.ema_decay, 2)
    for step, batch in zip(range(25), batches(0), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        loss, _ = mine.loss(batch, step)
        loss.backward()
        clip_gradients(list(mine.parameters()), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        average.update(step)
    average.swap()
    fit(model, batches, config, tmp_path)
    assert _equal(mine, model)


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path):
    whole, parts = Line(), Line()
    for model, n in ((whole, 1), (parts, 4)):
        team = Alone()
        team.optimizer = lambda m, c: torch.optim.SGD(m.parameters())  # Adam ignores the scale
        config = tiny_config(20, accumulate=n, clip_norm=0)
        fit(model, batches, config, tmp_path / str(n), team=team)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)
    with pytest.raises(ValueError, match="a batch of 8 cannot be split into accumulate=3"):
        fit(Line(), batches, tiny_config(20, accumulate=3), tmp_path / "c")


def test_a_group_of_parameters_may_have_its_own_part_of_the_rate(tmp_path):
    models, half = (Line(), Line()), Alone()
    half.optimizer = lambda m, c: torch.optim.SGD([dict(params=m.parameters(), rate=0.5)])
    plain = Alone()
    plain.optimizer = lambda m, c: torch.optim.SGD(m.parameters())
    fit(models[0], batches, tiny_config(5, lr=0.02), tmp_path / "half", team=half)
    fit(models[1], batches, tiny_config(5, lr=0.01), tmp_path / "plain", team=plain)
    assert _equal(*models)


@pytest.mark.parametrize("stop", [1, 7, 20, 33, 39])
def test_a_run_stopped_at_any_update_ends_bit_for_bit_like_the_whole(tmp_path, stop):
    whole, broken = Tiny(), Tiny()
    fit(whole, batches, tiny_config(40), tmp_path / "whole", evaluate=evaluate)

    def stopping(start):
        for step, batch in enumerate(batches(start), start):
            if step == stop - 1:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with pytest.raises(Stopped, match=f"stopped after {stop} of 40 updates, saved at {stop}"):
        fit(broken, stopping, tiny_config(40), tmp_path / "broken", evaluate=evaluate)
    resumed = Tiny()
    nn.init.zeros_(resumed.net[0].weight)  # everything comes from the files
    fit(resumed, batches, tiny_config(40), tmp_path / "broken", evaluate=evaluate)
    assert _equal(whole, resumed)
    last = [tmp_path / run / "checkpoints/step-00000040.safetensors" for run in ("whole", "broken")]
    a, b = (Checkpoints(tmp_path).read(path)[0] for path in last)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, second = Tiny(), Tiny()
    config = replace(get_config("toy"), train_dvae=tiny_config(20))
    options = dict(evaluate=evaluate, run_config=config)
    metrics = fit(first, batches, config.train_dvae, tmp_path, **options)
    assert fit(second, lambda start: iter(()), config.train_dvae, tmp_path, **options) == metrics
    assert _equal(first, second)
    state, stored = read_model(tmp_path)
    assert stored == config
    assert all(torch.equal(state[k], v) for k, v in first.state_dict().items())


def test_resume_false_starts_afresh_and_keeps_what_was(tmp_path):
    fit(Tiny(), batches, tiny_config(14), tmp_path)
    with pytest.raises(ValueError, match=r"train\.lr was 0\.01, is now 0\.1"):
        fit(Tiny(), batches, tiny_config(14, lr=0.1), tmp_path)
    fit(Tiny(), batches, tiny_config(14, lr=0.1), tmp_path, resume=False)
    assert len(list(tmp_path.glob("checkpoints-old-1/*"))) == 2
    assert [row["step"] for row in _log(tmp_path)] == [10, 14]


def test_only_what_matters_may_not_change_on_resume(tmp_path):
    toy = get_config("toy")
    config = replace(toy, train_dvae=tiny_config(10))
    fit(Tiny(), batches, config.train_dvae, tmp_path, run_config=config)

    def again(changed, **options):
        fit(Tiny(), batches, changed.train_dvae, tmp_path, run_config=changed, **options)

    again(replace(config, train_clip=tiny_config(3), dalle=replace(toy.dalle, n_layers=1)))
    again(replace(config, train_dvae=tiny_config(10, keep=9, log_every=3, save_every=2)))
    again(replace(config, train_dvae=tiny_config(10, accumulate=4)))  # as advised when memory ends
    with pytest.raises(ValueError, match=rf"dvae\.n_hid was {toy.dvae.n_hid}, is now 7"):
        again(replace(config, dvae=replace(toy.dvae, n_hid=7)))
    with pytest.raises(ValueError, match=r"train_dvae\.lr_steps was 10, is now 30"):
        again(replace(config, train_dvae=tiny_config(30)))  # the cosine would be another
    with pytest.raises(ValueError, match="seed was 0, is now 1"):
        again(config, seed=1)


def test_a_run_with_halvings_may_be_made_longer(tmp_path):
    fit(Tiny(), batches, tiny_config(10, halve_at=(5,)), tmp_path)
    fit(Tiny(), batches, tiny_config(20, halve_at=(5,)), tmp_path)
    assert _log(tmp_path)[-1]["step"] == 20


def test_the_log_has_one_line_for_each_moment_and_none_twice_after_a_resume(tmp_path):
    metrics = fit(Tiny(), batches, tiny_config(40), tmp_path / "whole", evaluate=evaluate)
    rows = _log(tmp_path / "whole")
    assert [(r["step"], "test_loss" in r) for r in rows] == [
        (10, False), (20, False), (20, True), (30, False), (40, False), (40, True),
    ]  # fmt: skip
    assert {"step", "loss", "worst", "grad_norm", "lr", "skipped", "seconds"} <= rows[0].keys()
    assert metrics["test_loss"] == rows[-1]["test_loss"] and metrics["loss"] == rows[-2]["loss"]

    def failing(start):
        for step, batch in enumerate(batches(start), start):
            if step == 33:
                raise RuntimeError
            yield batch

    with pytest.raises(RuntimeError):
        fit(Tiny(), failing, tiny_config(40), tmp_path / "run", evaluate=evaluate)
    with (tmp_path / "run/log.jsonl").open("a") as log:
        log.write('{"step": 31, "lo')  # a line that a kill cut in two
    fit(Tiny(), batches, tiny_config(40), tmp_path / "run", evaluate=evaluate)
    assert [r["step"] for r in _log(tmp_path / "run")] == [r["step"] for r in rows]


def test_the_logged_loss_is_the_mean_since_the_last_line(tmp_path):
    model, losses = Line(), []
    plain = model.loss
    model.loss = lambda *args: (losses.append(plain(*args)[0].item()), plain(*args))[1]
    fit(model, batches, tiny_config(20, accumulate=2), tmp_path)
    rows = _log(tmp_path)
    assert rows[1]["loss"] == pytest.approx(sum(losses[20:]) / 20)


def test_evaluation_and_sheet_see_the_averaged_weights_and_change_nothing(tmp_path):
    quiet, watched, seen = Tiny(), Tiny(), []

    def look(model, step):
        seen.append((step, model.training, torch.is_grad_enabled()))
        torch.rand(3)
        return evaluate(model, step)

    fit(quiet, batches, tiny_config(40), tmp_path / "a")
    sheet = lambda model, path: path.write_bytes(b"image")  # noqa: E731
    fit(watched, batches, tiny_config(40), tmp_path / "b", evaluate=look, sheet=sheet)
    assert _equal(quiet, watched) and not watched.training
    assert seen == [(20, False, False), (40, False, False)]
    assert sorted(p.name for p in (tmp_path / "b/samples").iterdir()) == [
        "step-00000020.png", "step-00000040.png",
    ]  # fmt: skip
    final = evaluate(watched, 40)["loss"].item()
    assert _log(tmp_path / "b")[-1]["test_loss"] == final


def test_the_best_checkpoint_is_kept(tmp_path):
    def worse_and_worse(model, step):
        return {"loss": step}

    fit(Tiny(), batches, tiny_config(80), tmp_path, evaluate=worse_and_worse)
    steps = [p.stem for p in Checkpoints(tmp_path / "checkpoints").paths()]
    assert steps == ["step-00000020", "step-00000077", "step-00000080"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_updates_that_are_not_finite_are_skipped_and_counted(tmp_path, capsys, value):
    model = Breaking(at=(3, 4, 17), value=value)
    metrics = fit(model, batches, tiny_config(20, accumulate=1), tmp_path)
    assert metrics["skipped"] == 3 and _log(tmp_path)[0]["skipped"] == 2
    assert all(p.isfinite().all() for p in model.parameters())
    assert "update 4 skipped" in capsys.readouterr().err
    assert all(math.isfinite(row["loss"]) for row in _log(tmp_path))


def test_a_loss_that_is_not_finite_is_enough_to_skip_an_update(tmp_path):
    class Added(Line):  # the gradient is as ever
        def loss(self, batch, step, generator=None):
            loss, metrics = super().loss(batch, step, generator)
            return loss + (math.inf if step == 3 else 0), metrics

    assert fit(Added(), batches, tiny_config(20, accumulate=1), tmp_path)["skipped"] == 1


def test_parts_of_a_batch_know_how_many_caption_tokens_there_are():
    text = torch.tensor([[1, 2, -1], [3, 0, -1]])
    parts = split_batch({"text": text, "tokens": torch.zeros(2, 4)}, 2, "cpu")
    assert [part["text_count"].item() for part in parts] == [2, 2]
    assert [part["text"].tolist() for part in parts] == [[[1, 2, -1]], [[3, 0, -1]]]


class Impatient(Alone):
    max_bad = 7


def test_a_skipped_update_leaves_weights_optimiser_and_average_alone(tmp_path):
    model = Breaking(at=range(5, 12))
    with pytest.raises(TrainingError):
        fit(model, batches, tiny_config(20, accumulate=1), tmp_path, team=Impatient())
    good = Line()
    fit(good, batches, tiny_config(5, lr_steps=20, accumulate=1), tmp_path / "good")
    read = Checkpoints(tmp_path).read
    after = read(tmp_path / "checkpoints/step-00000007.safetensors")[0]
    before = read(tmp_path / "good/checkpoints/step-00000005.safetensors")[0]
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_ten_bad_updates_in_a_row_stop_the_run_with_advice(tmp_path):
    model = Breaking(at=range(100))
    with pytest.raises(TrainingError, match=r"10 updates in a row.*lower lr.*warmup.*NaN in the"):
        fit(model, batches, tiny_config(20, accumulate=1), tmp_path)
    assert model.calls == 10
    spread = Breaking(at=[s for s in range(40) if s % 10])  # nine bad, one good
    fit(spread, batches, tiny_config(40, accumulate=1), tmp_path / "b")


def test_a_full_disk_is_told_and_training_goes_on(tmp_path, capsys):
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = []

    def filling(start):
        for step, batch in enumerate(batches(start), start):
            if step == 10:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
            if step == 35:
                kept.extend(os.listdir(tmp_path / "checkpoints"))
                resource.setrlimit(resource.RLIMIT_FSIZE, old)
            yield batch

    whole, model = Tiny(), Tiny()
    fit(whole, batches, tiny_config(50), tmp_path / "whole")
    try:
        fit(model, filling, tiny_config(50), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    said = capsys.readouterr().err
    assert "Training goes on, the checkpoint of update 7 stays" in said
    assert kept == ["step-00000007.safetensors"] and _equal(whole, model)
    assert (tmp_path / "checkpoints/step-00000050.safetensors").exists()


def test_a_run_that_cannot_save_at_its_end_says_so(tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(OSError, match="could not be saved"):
        fit(Tiny(), batches, tiny_config(10), tmp_path)
    assert "No space left" in capsys.readouterr().err


def test_out_of_memory_names_the_batch_size_and_the_plan_verb(tmp_path):
    model = Line()

    def greedy(batch, step, generator):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model.loss = greedy
    with pytest.raises(
        TrainingError, match=r"batch_size=8, accumulate=2 \(4 examples.*minidalle plan"
    ):
        fit(model, batches, tiny_config(10), tmp_path)


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    def impatient(start):
        for batch in batches(start):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(Tiny(), impatient, tiny_config(10), tmp_path)
    assert not isinstance(caught.value, Stopped)


def test_handlers_and_generators_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    fit(Tiny(), batches, tiny_config(3), tmp_path, seed=1)
    model = Tiny()
    torch.manual_seed(5)
    fit(model, batches, tiny_config(3), tmp_path / "b")
    assert torch.equal(torch.rand(3), want)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_a_signal_too_late_for_the_loop_is_not_swallowed(tmp_path):
    class Late(Checkpoints):
        def finish(self, model, config, made_from):
            os.kill(os.getpid(), signal.SIGINT)
            super().finish(model, config, made_from)

    config = replace(get_config("toy"), train_dvae=tiny_config(3))
    team = Alone()
    team.checkpoints = lambda folder, c: Late(folder)
    with pytest.raises(KeyboardInterrupt):
        fit(Tiny(), batches, config.train_dvae, tmp_path, run_config=config, team=team)
    assert read_model(tmp_path)[1] == config


def test_fit_works_outside_the_main_thread(tmp_path):
    found = []
    job = threading.Thread(
        target=lambda: found.append(fit(Tiny(), batches, tiny_config(3), tmp_path))
    )
    job.start()
    job.join()
    assert found[0]["step"] == 3


def test_the_seed_changes_the_run_and_nothing_else_does(tmp_path):
    models = [Tiny() for _ in range(3)]
    for i, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True)):
        torch.manual_seed(100 + i)  # the global state must not matter
        fit(model, batches, tiny_config(10), tmp_path / str(i), seed=seed)
    assert _equal(models[0], models[1]) and not _equal(models[0], models[2])


def test_bfloat16_runs_the_products_in_16_bits_and_keeps_the_weights_in_32(tmp_path):
    kinds = set()
    model = Tiny()
    model.net[0].register_forward_hook(lambda m, x, y: kinds.add(y.dtype))
    fit(model, batches, tiny_config(10, precision="bfloat16"), tmp_path)
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match="must be float32, bfloat16 or auto, got 'float16'"):
        fit(Tiny(), batches, tiny_config(10, precision="float16"), tmp_path / "b")


def test_a_process_that_is_not_main_writes_no_log_and_the_pieces_can_be_replaced(tmp_path):
    calls = []

    class Silent(Checkpoints):
        def save(self, *live_and_meta):
            calls.append("save")

    class Quiet(Alone):
        is_main = False

        def optimizer(self, model, config):
            return torch.optim.SGD(model.parameters(), 0.1)

        def checkpoints(self, folder, config):
            return Silent(tmp_path / "x")

        def clip(self, parameters, max_norm):
            calls.append("clip")
            return super().clip(parameters, max_norm)

        def agree(self, *flags):
            calls.append("agree")
            return flags

    fit(Tiny(), batches, tiny_config(14), tmp_path, team=Quiet())
    assert calls.count("clip") == calls.count("agree") == 14 and calls.count("save") == 2
    assert os.listdir(tmp_path) == []


def test_any_process_that_wants_to_stop_stops_all(tmp_path):
    class Others(Alone):
        def agree(self, bad, stop):
            return bad, True

    with pytest.raises(Stopped, match="stopped after 1 of 10"):
        fit(Tiny(), batches, tiny_config(10), tmp_path, team=Others())


def test_tensorboard_is_written_when_asked_and_its_absence_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        fit(Tiny(), batches, tiny_config(10), tmp_path / "a", tensorboard=True)
    monkeypatch.undo()
    pytest.importorskip("tensorboard")
    fit(Tiny(), batches, tiny_config(10), tmp_path / "b", tensorboard=True)
    assert list((tmp_path / "b").glob("events.out.*"))


def test_a_model_in_evaluation_mode_is_trained_in_training_mode_and_left_in_evaluation(tmp_path):
    model, seen = Tiny().eval(), []
    model.net[1].register_forward_hook(lambda dropout, x, y: seen.append(dropout.training))
    fit(model, batches, tiny_config(3), tmp_path)
    assert seen == [True] * 6 and not model.training


def test_after_update_is_called_after_each_update_that_was_not_skipped(tmp_path):
    model, calls = Breaking(at=(3, 4)), []
    model.after_update = lambda: calls.append(1)
    fit(model, batches, tiny_config(10, accumulate=1), tmp_path)
    assert len(calls) == 8


def test_a_failing_sheet_does_not_end_the_run(tmp_path, capsys):
    def sheet(model, path):
        raise ValueError("cannot parse a caption")

    fit(Tiny(), batches, tiny_config(4, eval_every=2), tmp_path, sheet=sheet)
    assert "no sheet of samples: ValueError: cannot parse a caption" in capsys.readouterr().err


def test_the_first_row_after_a_resume_averages_as_many_updates_as_the_others(tmp_path):
    class Stopping(Alone):
        def agree(self, bad, stop):
            self.calls = getattr(self, "calls", 0) + 1
            return bad, self.calls == 7

    config = tiny_config(12, log_every=4)
    fit(Tiny(), batches, config, tmp_path / "whole")
    with pytest.raises(Stopped):
        fit(Tiny(), batches, config, tmp_path / "parts", team=Stopping())
    fit(Tiny(), batches, config, tmp_path / "parts")
    a, b = (_log(tmp_path / name) for name in ("whole", "parts"))
    assert [r["loss"] for r in a] == pytest.approx([r["loss"] for r in b], rel=1e-6)
