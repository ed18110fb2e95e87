"""Rows are kept as they come; those of a killed run's later steps go when it is resumed."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from attunet3d.training.run_log import NAME, RunLog, read_rows


def test_rows_and_events_are_written_as_they_come(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        log.write({"step": 10, "loss": 0.5, "dice_network_grid": None})
        assert read_rows(tmp_path / NAME) == [
            {"step": "10", "loss": "0.5", "dice_network_grid": ""}
        ]
        log.write({"step": 20, "loss": 0.25, "dice_network_grid": 0.75, "dice_pancreas": 0.75})
    rows = read_rows(tmp_path / NAME)
    assert [row["step"] for row in rows] == ["10", "20"]
    assert rows[1]["dice_pancreas"] == "0.75"
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (10, 0.5),
        (20, 0.25),
    ]


def test_a_resumed_run_drops_the_rows_after_its_step(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        for step in (10, 20, 30):
            log.write({"step": step, "loss": 1.0})
    with RunLog(tmp_path, 20) as log:
        log.write({"step": 30, "loss": 2.0})
    assert [(row["step"], row["loss"]) for row in read_rows(tmp_path / NAME)] == [
        ("10", "1.0"),
        ("20", "1.0"),
        ("30", "2.0"),
    ]


def test_without_a_file_there_are_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / NAME) == []
