"""Files of records: what a killed run leaves, what a later one makes of it."""

import json
import multiprocessing
import os

import numpy as np
import pytest

import refmmr as rm
from refmmr.certify.evaluation import records

NET = rm.Network.mlp([3, 4, 2], rng=0)
MARKS = {"net": "a" * 32, "p": 2, "eps": 0.1}


def record(i, **more):
    return {"point": i, "lower": 0.1 + i, "upper": np.inf, "misclassified": False, **more}


def write(path, *points, marks=MARKS):
    with records.Writer(path, marks, {}) as writer:
        for i in points:
            writer.write(record(i))


def test_what_is_written_is_read_exactly(tmp_path):
    path = tmp_path / "new" / "folder" / "points.jsonl"
    Z = np.array([[0.1, np.nan], [1 / 3, -0.0]])
    with records.Writer(path, MARKS, {"more": 1}) as writer:
        assert writer.done == []
        writer.write(record(0, lower=1 / 3, adversarial=Z, seconds={"region": np.float64(0.1)}))
    header, points = records.read(path)
    assert header["computation"] == MARKS
    assert header["more"] == 1
    assert points[0]["lower"] == 1 / 3
    assert points[0]["upper"] == np.inf
    np.testing.assert_array_equal(points[0]["adversarial"], Z)
    lines = path.read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines]  # strict JSON


def test_a_folder_gets_a_file(tmp_path):
    write(tmp_path / "run", 0)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [records.NAME]
    assert len(records.read(tmp_path / "run")[1]) == 1


def test_every_cut_loses_at_most_the_torn_line(tmp_path):
    whole = tmp_path / "whole.jsonl"
    write(whole, 0, 1, 2)
    data = whole.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(len(data) + 1):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(data[:cut])
        kept = max(sum(end <= cut for end in ends) - 1, 0)
        with records.Writer(path, MARKS, {}) as writer:
            assert [point["point"] for point in writer.done] == list(range(kept))
            for i in range(kept, 3):
                writer.write(record(i))
        assert path.read_bytes() == data


def test_a_point_that_is_there_twice_counts_once(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, 0, 1, 0)
    assert [point["point"] for point in records.read(path)[1]] == [0, 1]


def test_another_computation_is_refused_and_named(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, 0)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"another net, another eps \(0.1 there, 0.2 here\)$"):
        write(path, 1, marks={**MARKS, "net": "b" * 32, "eps": 0.2})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "text",
    ['{"format": "other"}\n', "point,class\n", "something else", '{"format": "refmmr-records"}\n'],
)
def test_other_files_are_left_alone(tmp_path, text):
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match="out: expected records of refmmr"):
        write(path, 0)
    assert path.read_text() == text


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, 0, 1)
    path.write_text(path.read_text().replace('"point": 0', '"punkt": 0'))
    with pytest.raises(ValueError, match="a line 2 that is damaged"):
        records.read(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"point": 1', '"point": true'),
        ('"point": 1', '"point": 1.0'),
        ('"point": 1', '"point": -1'),
        ('"lower": 1.1', '"lower": NaN'),
        ('"upper": "inf"', '"upper": 1.0'),
        ('"lower": 1.1', '"lower": null'),
    ],
)
def test_values_that_no_point_has(tmp_path, old, new):
    path = tmp_path / "a.jsonl"
    write(path, 0, 1)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], lines[2].replace(old, new)]))
    for _ in range(2):  # the lock is released
        with pytest.raises(ValueError, match="a line 3 that is damaged"):
            write(path, 2)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("misclassified", lambda line: line.pop("misclassified")),
        ("misclassified", lambda line: line.update(misclassified=0)),
        ("seconds", lambda line: line.pop("seconds")),
        ("seconds", lambda line: line.update(seconds=None)),
        ("settled_by", lambda line: line.pop("settled_by")),
        ("point 9 with one of 2 points", lambda line: line.update(point=9)),
        (
            r"an example of shape \(1,\), not \(3,\)",
            lambda line: line.update(adversarial=records.encode(np.zeros(1))),
        ),
    ],
)
def test_a_damaged_record_of_an_evaluation_is_named(tmp_path, name, change):
    """And the file is not locked by the evaluation that refused it."""
    path, X = tmp_path / "a.jsonl", np.zeros((2, 3))

    def run():
        return rm.robust_error(NET, X, NET.predict(X), eps=1e-3, methods=["region"], out=path)

    expected = run().records
    *lines, last = path.read_text().splitlines()
    record = json.loads(last)
    change(record)
    path.write_text("\n".join([*lines, json.dumps(record)]) + "\n")
    for _ in range(2):
        with pytest.raises(ValueError, match=f"out: expected the records .* {name}"):
            run()
    path.write_text("\n".join([*lines, last]) + "\n")
    assert run().records == expected


def test_endings(tmp_path):
    with pytest.raises(ValueError, match=r"out: expected a folder or a file ending in .jsonl, got"):
        records.place(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError):
        records.read(tmp_path / "none.jsonl")


def _append(path, ready, go):
    try:
        with records.Writer(path, MARKS, {}):
            ready.set()
            go.wait(20)
    finally:
        ready.set()


def test_two_processes_do_not_write_at_once(tmp_path):
    path = tmp_path / "a.jsonl"
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    ready, go = context.Event(), context.Event()
    other = context.Process(target=_append, args=(path, ready, go))
    other.start()
    try:
        assert ready.wait(20)
        with pytest.raises(RuntimeError, match="out: another process is writing to"):
            write(path, 0)
    finally:
        go.set()
        other.join()
    write(path, 0)
    assert len(records.read(path)[1]) == 1


def test_fingerprints_tell_networks_and_arrays_apart():
    X = np.zeros((2, 3))
    same = records.fingerprint(NET, {"X": X, "box": None}, {"p": np.inf})
    assert same == records.fingerprint(
        rm.Network.mlp([3, 4, 2], rng=0), {"X": X, "box": None}, {"p": np.inf}
    )
    assert same["p"] == "inf"
    others = [
        records.fingerprint(rm.Network.mlp([3, 4, 2], rng=1), {"X": X}, {}),
        records.fingerprint(NET, {"X": X.T}, {}),
        records.fingerprint(NET, {"X": X + 1e-300}, {}),
    ]
    assert others[0]["net"] != same["net"]
    assert others[1]["X"] != same["X"] != others[2]["X"]
    image = [
        rm.Network([rm.Conv2d(np.ones((2, 1, 2, 2)), [0, 0], s, pad), rm.Flatten()], (1, 3, 3))
        for s, pad in ((1, 0), (2, 0), (1, 1))
    ]
    assert len({records.fingerprint(net, {}, {})["net"] for net in image}) == 3
