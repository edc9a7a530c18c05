"""Files that survive: round trips, truncation, foreign files, a full disk; nothing runs code."""

import os
import pickle
import re
import signal
import struct
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from minidalle import files
from minidalle.config import get_config, to_json
from minidalle.files import CheckpointError, save_model, save_tensors
from minidalle.models import read_model
from minidalle.training import checkpoints as checkpoint
from minidalle.training.checkpoints import Checkpoints
from minidalle.training.identity import differences
from minidalle.training.optim import AdamW, Average


def _live(seed=0, layout=torch.contiguous_format):
    """A small model with an optimiser and an average, all in a state of their own."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3, 1)).to(
        memory_format=layout
    )
    optimizer, average = AdamW(model.parameters(), 0.1), Average(model, 0.5)
    for step in range(2):
        x = torch.randn(4, 2, 3, 3, generator=generator)
        model(x).square().sum().backward()
        optimizer.step()
        average.update(step)
    return model, optimizer, average


def _all_tensors(live):
    model, optimizer, average = live
    states = [optimizer.state[p] for p in model.parameters()]
    moments = [s[key] for s in states for key in ("exp_avg", "exp_avg_sq")]
    return [*model.state_dict().values(), *average.values, *moments]


def _meta(step, best=None, config=()):
    return {"step": step, "best": best, "config": dict(config)}


def test_differences_names_the_fields():
    old, new = {"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"x": 1, "y": 5}, "c": 4}
    assert differences(old, new) == ["a.y was 2, is now 5", "b was 3, is now None",
                                     "c was None, is now 4"]  # fmt: skip


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_checkpoint_restores_every_tensor_bit_for_bit(tmp_path, layout):
    saved, other = _live(0, layout), _live(1, layout)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(*saved, _meta(7, config={"lr": 1}))
    meta = checkpoints.load_latest(*other, {"lr": 1})
    assert meta == _meta(7, config={"lr": 1})
    for a, b in zip(_all_tensors(saved), _all_tensors(other), strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride()
    assert [s["step"] for s in other[1].state.values()] == [2] * 4


def test_torch_optimisers_are_restored_too(tmp_path):
    (model, _, average), (other, _, other_average) = _live(0), _live(1)
    optimizers = [torch.optim.AdamW(m.parameters(), 0.1) for m in (model, other)]
    optimizers[0].step()
    Checkpoints(tmp_path).save(model, optimizers[0], average, _meta(1))
    Checkpoints(tmp_path).load_latest(other, optimizers[1], other_average, {})
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        a, b = optimizers[0].state[p], optimizers[1].state[q]
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_tied_weights_are_saved(tmp_path):
    layer = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": layer, "b": layer})
    save_model(tmp_path, model.state_dict(), to_json(get_config("toy")))
    state, config = read_model(tmp_path)
    assert state.keys() == model.state_dict().keys() and config == get_config("toy")
    assert torch.equal(state["a.weight"], layer.weight)
    assert torch.equal(state["b.bias"], layer.bias)


@pytest.mark.parametrize("size", [0, 4, 8, 100, 5000, -1])
def test_a_truncated_checkpoint_is_named_and_the_one_before_used(tmp_path, size):
    live, checkpoints = _live(), Checkpoints(tmp_path)
    old, new = (checkpoints.save(*live, _meta(step)) for step in (1, 2))
    os.truncate(new, size if size >= 0 else new.stat().st_size + size)
    with pytest.warns(UserWarning, match=f"{new.name} is damaged.*the checkpoint before it"):
        assert checkpoints.load_latest(*live, {})["step"] == 1
    os.truncate(old, 10)
    with (
        pytest.warns(UserWarning),
        pytest.raises(CheckpointError, match=f"{new.name}.*{old.name}.*Delete them"),
    ):
        checkpoints.load_latest(*live, {})


class Bomb:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _hostile_files(folder, bomb):
    """Yield files that would run code in torch.load or pickle.load."""
    plain = folder / "plain.pkl"
    plain.write_bytes(pickle.dumps(Bomb(bomb)))
    torch.save({"model": Bomb(bomb)}, folder / "zip.pt")
    torch.save({"model": Bomb(bomb)}, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    header = pickle.dumps(Bomb(bomb))
    (folder / "header.bin").write_bytes(struct.pack("<Q", len(header)) + header)
    return [plain, folder / "zip.pt", folder / "legacy.pt", folder / "header.bin"]


def test_nothing_on_a_load_path_runs_code_from_a_file(tmp_path):
    bomb = tmp_path / "exploded"
    for number, file in enumerate(_hostile_files(tmp_path, bomb)):
        run = tmp_path / f"run{number}"
        save_model(run, {"w": torch.zeros(1)}, to_json(get_config("toy")))
        checkpoints = Checkpoints(run / "checkpoints")
        checkpoints.save(*_live(), _meta(1))
        for name in ("model.safetensors", "checkpoints/step-00000002.safetensors"):
            (run / name).write_bytes(file.read_bytes())
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            read_model(run)
        with pytest.warns(UserWarning, match="step-00000002"):
            assert checkpoints.load_latest(*_live(), {})["step"] == 1
        save_model(run, {"w": torch.zeros(1)}, to_json(get_config("toy")))
        (run / "config.json").write_bytes(file.read_bytes())
        with pytest.raises(CheckpointError, match=r"config\.json"):
            read_model(run)
    assert not bomb.exists()
    with pytest.raises(FileNotFoundError):  # the bombs are live
        pickle.loads((tmp_path / "plain.pkl").read_bytes())
        assert bomb.exists()
        raise FileNotFoundError


def test_no_source_file_unpickles():
    package = Path(checkpoint.__file__).parents[1]
    own = [package / name for name in ("train.py", "config.py", "fields.py", "files.py")]
    for file in (*own, *(package / "training").glob("*.py")):
        text = file.read_text()
        assert not re.search(r"torch\.load|(?<!allow_)pickle|(?<![.\w])(eval|exec)\(", text), file


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {"format": checkpoint.FORMAT}])
def test_a_foreign_safetensors_file_is_refused(tmp_path, metadata):
    path = Checkpoints(tmp_path).path(5)
    save_tensors(path, {"w": torch.zeros(2)}, metadata)
    with pytest.warns(UserWarning, match="step-00000005"), pytest.raises(CheckpointError):
        Checkpoints(tmp_path).load_latest(*_live(), {})


def test_a_checkpoint_of_another_model_is_refused_by_tensor_and_changes_nothing(tmp_path):
    other = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(5, 1))
    Checkpoints(tmp_path).save(other, AdamW(other.parameters(), 0.1), Average(other, 0.5), _meta(1))
    live = _live()
    before = [t.clone() for t in _all_tensors(live)]
    with pytest.raises(CheckpointError, match=r"2\.weight was \(1, 5\), is now \(1, 3\)"):
        Checkpoints(tmp_path).load_latest(*live, {})
    assert all(torch.equal(a, b) for a, b in zip(before, _all_tensors(live), strict=True))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors.*train this stage first"):
        read_model(tmp_path)
    (tmp_path / "model.safetensors").mkdir()
    (tmp_path / "config.json").write_text(to_json(get_config("toy")))
    with pytest.raises(CheckpointError, match="a folder"):
        read_model(tmp_path)
    assert Checkpoints(tmp_path / "none").load_latest(*_live(), {}) is None


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old")

    def half(aside):
        aside.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"a\.json.*No space left"):
        files.write_atomically(path, half)
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(5, "disk error")))
    with pytest.raises(OSError, match="disk error"):
        files.write_atomically(path, lambda aside: aside.write_text("new"))
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


def test_the_disk_is_flushed_before_and_after_the_rename(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, os.replace

    def names(handle):
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", names)
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), rename(a, b)))
    files.write_atomically(tmp_path / "a", lambda aside: aside.write_text("x"))
    aside, *others = events
    assert aside.startswith("a.") and aside.endswith(f"-{os.getpid()}.tmp")
    assert others == ["rename", tmp_path.name]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_killed_writer_left_is_cleared_by_the_next_and_what_a_living_one_writes_is_not(
    tmp_path,
):
    path, (said, say) = tmp_path / "a[1].json", os.pipe()

    def stuck(aside):
        aside.write_text("ne")
        os.write(say, b"x")
        time.sleep(60)

    writer = os.fork()
    if writer == 0:
        files.write_atomically(path, stuck)
        os._exit(0)
    os.read(said, 1)
    files.write_text(path, "first")
    assert len(os.listdir(tmp_path)) == 2
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    files.write_text(path.with_name("a1.json"), "another file")
    assert len(os.listdir(tmp_path)) == 3
    files.write_text(path, "second")
    assert sorted(os.listdir(tmp_path)) == ["a1.json", "a[1].json"]


def test_setting_aside_keeps_earlier_runs(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.set_aside()  # nothing there: nothing happens
    for _ in range(2):
        checkpoints.save(*_live(), _meta(1))
        checkpoints.set_aside()
    assert sorted(os.listdir(tmp_path)) == ["checkpoints-old-1", "checkpoints-old-2"]
