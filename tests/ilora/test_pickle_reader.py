"""Pickles read as data: what is sound is understood, and what is not is refused before anything runs."""

from __future__ import annotations

import builtins
import copyreg
import os
import pickle
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ilora import pickle_reader
from ilora.data.pandas_frames import read_frame
from ilora.errors import InputError
from ilora.pickle_reader import MOST_BYTES, Built, RefusalError, no_call, read_pickle
from ilora.pickled_arrays import make_bytes
from tests.ilora.pickle_writer import Made, Named, Outside, frame, written

PLAIN = [None, True, False, 0, 255, -1, 2**40, -(2**70), 1.5, "text", "é\ud800", b"bytes", (), (1,)]
PLAIN += [[1, [2]], {"a": {1: (2, 3, 4, 5)}}, {"long": "x" * 300}, list(range(2000))]

ROWS = {"seq": [[1, 2], [3, 4]], "len_seq": [2, 2], "next": [0, 1]}


class Box(Built):
    """What the name box.Box makes in these tests."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def build(self, state: Any) -> None:
        self.state = state["state"]


def allow(module: str, name: str) -> Any:
    makers = {("box", "Box"): Box, ("box", "Type"): no_call}
    makers["_codecs", "encode"] = make_bytes  # how protocol 2 writes bytes
    return makers.get((module, name))


def read(data: bytes) -> Any:
    return read_pickle(data, "a file", allow)


@pytest.fixture
def alarm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Whatever an attack would run leaves a file here; importing ``trap`` leaves it too."""
    file = tmp_path / "ran"

    def ring(*_: Any, **__: Any) -> None:
        file.touch()

    (tmp_path / "trap.py").write_text(f"open({str(file)!r}, 'w').close()\ndef system(*_): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for place, name in ((os, "system"), (os, "popen"), (subprocess, "Popen"), (pickle, "loads")):
        monkeypatch.setattr(place, name, ring)
    for name in ("eval", "exec"):
        monkeypatch.setattr(builtins, name, ring)
    yield file
    sys.modules.pop("trap", None)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
def test_plain_values_are_what_python_reads(value: Any, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


def test_a_value_that_stands_in_two_places_is_one() -> None:
    inner = [1]
    outer = read(pickle.dumps([inner, inner]))
    assert outer[0] is outer[1]


def test_an_allowed_name_makes_what_the_caller_says() -> None:
    box = read(written(Made(Named("box", "Box"), (1, "two"), {"state": [3]})))
    assert isinstance(box, Box)
    assert (box.arguments, box.state) == ((1, "two"), [3])


def evil(module: str, name: str, *arguments: Any) -> Made:
    return Made(Named(module, name), arguments)


NAMES = [
    evil("os", "system", "touch ran"),
    evil("posix", "system", "touch ran"),
    evil("trap", "system", "x"),
    evil("builtins", "eval", "1"),
    evil("builtins", "exec", "1"),
    evil("builtins", "getattr", Named("box", "Box"), "__init__"),
    evil("builtins", "__import__", "trap"),
    evil("subprocess", "Popen", ["touch", "ran"]),
    evil("pickle", "loads", b"cos\nsystem\n."),
    evil("operator", "attrgetter", "__class__"),
    evil("functools", "partial", Named("os", "system"), "x"),
    evil("copyreg", "_reconstructor", Named("box", "Box"), Named("builtins", "object"), None),
    evil("box", "Box.__init__.__globals__"),
    evil("box", "Box.__class__"),
    evil("box.Box", "__init__"),
    evil("box", "box"),
    evil("numpy", "load", "x"),
    evil("pandas", "read_pickle", "x"),
    evil("pandas.io.common", "urlopen", "file:///etc/passwd"),
    evil("torch", "load", "x"),
    evil("", ""),
    evil("o\ns", "sys\ntem"),
]


def wrapped(attack: Any) -> list[bytes]:
    """The attack alone, and hidden in other values and in a frame."""
    hidden = [attack, [[attack]], {"key": (attack,)}, Made(Named("box", "Box"), (attack,))]
    hidden.append(Made(Named("box", "Box"), (), {"state": attack}))
    hidden.append(frame({**ROWS, "next": [0, attack]}))
    hidden.append(frame({**ROWS, "next": [0, [(attack, 1)]]}))
    return [written(value, protocol) for value in hidden for protocol in (2, 4, 5)]


def refusal(data: bytes, file: Path) -> str:
    """The one sentence with which both readers refuse."""
    told = ""
    for call in (lambda: read(data), lambda: read_frame(file)):
        file.write_bytes(data)
        with pytest.raises(InputError) as refused:
            call()
        told = str(refused.value)
        assert "\n" not in told
        assert len(told) < 500
    return told


@pytest.mark.parametrize("attack", NAMES, ids=lambda made: f"{made.target}"[:40])
def test_a_name_that_is_not_allowed_is_refused_wherever_it_stands(
    attack: Made, alarm: Path, tmp_path: Path
) -> None:
    for data in wrapped(attack):
        refusal(data, tmp_path / "x.df")
    assert not alarm.exists()
    assert "trap" not in sys.modules


class Evil:
    """An object as attackers write it."""

    def __reduce__(self) -> Any:
        return print, ("ran",)


@pytest.mark.parametrize("protocol", range(6))
def test_an_object_with_a_reduce_of_its_own_is_refused(
    protocol: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in (Evil(), [Evil()], {"a": (Evil(),)}):
        refusal(pickle.dumps(value, protocol), tmp_path / "x.df")
    assert capsys.readouterr().out == ""


GLOBAL = b"\x8c\x02os\x8c\x06system\x93"
BOX = b"\x8c\x03box\x8c\x03Box\x93"
OPCODES = {
    "GLOBAL": b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00x\x85R.",
    "GLOBAL of protocol 0": b"cos\nsystem\n(S'x'\ntR.",
    "STACK_GLOBAL": b"\x80\x04" + GLOBAL + b"\x8c\x01x\x85R.",
    "STACK_GLOBAL of remembered texts": b"\x80\x04\x8c\x06system\x940\x8c\x02os\x940h\x01h\x00\x93.",
    "STACK_GLOBAL of numbers": b"\x80\x04K\x01K\x02\x93.",
    "INST": b"\x80\x02(X\x01\x00\x00\x00xios\nsystem\n.",
    "INST of protocol 0": b"(S'touch ran'\nios\nsystem\n.",
    "OBJ": b"\x80\x02(cos\nsystem\nX\x01\x00\x00\x00xo.",
    "OBJ of an allowed name": b"\x80\x04(" + BOX + b"o.",
    "NEWOBJ": b"\x80\x04" + GLOBAL + b"\x8c\x01x\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04" + GLOBAL + b"\x8c\x01x\x85}\x92.",
    "NEWOBJ_EX with keywords": b"\x80\x04" + BOX + b")}\x8c\x01ak\x01s\x92.",
    "EXT1": b"\x80\x02\x82\x01)R.",
    "EXT2": b"\x80\x02\x83\x01\x00)R.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00)R.",
    "PERSID": b"\x80\x02Pos.system\n.",
    "BINPERSID": b"\x80\x02X\x01\x00\x00\x00xQ.",
    "REDUCE of a text": b"\x80\x04\x8c\x09os.system\x8c\x01x\x85R.",
    "REDUCE of a list": b"\x80\x04])R.",
    "REDUCE without a tuple": b"\x80\x04" + BOX + b"]R.",
    "REDUCE of the name of a type": b"\x80\x04\x8c\x03box\x8c\x04Type\x93)R.",
    "BUILD of a name": b"\x80\x04" + BOX + b"}\x8c\x08__init__Nsb.",
    "BUILD of a name with slots": b"\x80\x04" + BOX + b"N}\x8c\x08__init__Ns\x86b.",
    "BUILD of a list": b"\x80\x04]}\x8c\x05__x__Nsb.",
    "BUILD twice": b"\x80\x04" + BOX + b")R}\x8c\x05stateNsb}\x8c\x05stateNsb.",
    "BUILD with something else": b"\x80\x04" + BOX + b")RK\x01b.",
    "SETITEM of an object": b"\x80\x04" + BOX + b")R\x8c\x01aK\x01s.",
    "APPEND to an object": b"\x80\x04" + BOX + b")RK\x01a.",
    "ADDITEMS to a list": b"\x80\x04](K\x01\x90.",
    "a list as a key": b"\x80\x04}]K\x01s.",
    "a key without a value": b"\x80\x04}(K\x01u.",
    "a long tuple as a key": b"\x80\x04}(" + b"N" * 9 + b"tK\x01s.",
    "an integer of a million digits": b"\x80\x04\x8b\x00\x00\x08\x00" + b"\x01" * (1 << 19) + b".",
    "nested tuples as a key": b"\x80\x04})" + b"\x85" * 100_000 + b"K\x01s.",
    "an unknown opcode": b"\x80\x04\xff.",
    "protocol 77": b"\x80\x4dN.",
    "out-of-band buffers": b"\x80\x05\x97\x98.",
    "nothing": b"",
    "a page": b"<!DOCTYPE html><html></html>",
    "no value": b"\x80\x04.",
    "two values": b"\x80\x04NN.",
    "an open mark": b"\x80\x04(N.",
    "a mark closed twice": b"\x80\x04(tt.",
    "a memo that was never written": b"\x80\x04h\x07.",
    "a name without an end": b"\x80\x02c" + b"a" * 10_000,
    "text that is not UTF-8": b"\x80\x04\x8c\x02\xff\xfe.",
    "a number in words": b"I" + b"9" * 100_000 + b"\n.",
}


@pytest.mark.parametrize("data", OPCODES.values(), ids=OPCODES)
def test_every_opcode_that_frames_do_not_need_is_refused(
    data: bytes, alarm: Path, tmp_path: Path
) -> None:
    copyreg.add_extension("os", "system", 1)
    try:
        refusal(data, tmp_path / "x.df")
    finally:
        copyreg.remove_extension("os", "system", 1)
    assert not alarm.exists()


def test_the_state_of_one_file_changes_nothing_for_the_next() -> None:
    before = dict(vars(Box))
    for name in ("BUILD of a name", "BUILD of a name with slots"):
        with pytest.raises(InputError):
            read(OPCODES[name])
    assert dict(vars(Box)) == before


@pytest.mark.parametrize("code", [b"X", b"B"])
def test_a_size_beyond_the_file_is_refused_before_memory_is_taken(code: bytes) -> None:
    with pytest.raises(InputError, match="longer than the rest"):
        read(b"\x80\x04" + code + b"\xff\xff\xff\x7f" + b"a.")


@pytest.mark.parametrize("code", [b"\x8d", b"\x8e", b"\x96"])
@pytest.mark.parametrize("size", [1 << 40, 2**63 - 1, 2**64 - 1])
def test_a_size_of_eight_bytes_is_refused_before_memory_is_taken(code: bytes, size: int) -> None:
    with pytest.raises(InputError, match="longer than the rest"):
        read(b"\x80\x04" + code + struct.pack("<Q", size) + b"a.")


@pytest.mark.parametrize("size", [-1, -(2**31), 2**31 - 1])
def test_an_integer_of_an_impossible_length_is_refused(size: int) -> None:
    with pytest.raises(InputError, match="longer than the rest"):
        read(b"\x80\x04\x8b" + struct.pack("<i", size) + b"a.")


@pytest.mark.parametrize("opcodes", [b"]", b"}", b"(", b"\x8f", b"\x94", b"NN\x86"])
def test_more_objects_than_any_sound_file_has_are_refused(
    opcodes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickle_reader, "MOST_OBJECTS", 1000)
    few, many = (b"\x80\x04N" + opcodes * times for times in (100, 1001))
    with pytest.raises(InputError, match=r"not a sound pickle|cut off"):
        read(few)
    with pytest.raises(InputError, match="more than 1,000 objects"):
        read(many + b".")


def test_a_file_larger_than_the_limit_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "x.df"
    with file.open("wb") as sparse:
        sparse.truncate(MOST_BYTES + 1)
    with pytest.raises(InputError, match="larger than 64 MiB"):
        read_frame(file)


def test_a_million_lists_in_one_another_are_refused_and_not_a_crash(tmp_path: Path) -> None:
    deep = b"\x80\x04" + b"]" * 1_000_000 + b"a" * 999_999
    value = read(deep + b".")
    assert isinstance(value, list)
    cell = b"".join([b"\x80\x04", b"]" * 100_000, b"a" * 99_999])
    parts = written(frame({**ROWS, "next": [0, "HERE"]})).split(b"\x8c\x04HERE\x94")
    assert len(parts) == 2
    # Without FRAME lengths the cell can be put in by hand; the memo is counted on either way.
    (tmp_path / "x.df").write_bytes(parts[0] + cell[2:] + b"\x94" + parts[1])
    with pytest.raises(InputError, match="lists in lists"):
        read_frame(tmp_path / "x.df")


def test_lists_that_hold_one_list_a_thousand_times_over_are_looked_at_once(tmp_path: Path) -> None:
    inner = [1] * 1000
    cells = [[tuple(inner)] * 1000] * 1000  # a billion numbers, were they written out
    (tmp_path / "x.df").write_bytes(written(frame({"seq": cells, "next": cells})))
    assert len(read_frame(tmp_path / "x.df")["seq"]) == 1000


@pytest.mark.parametrize("container", [b"}(%bu.", b"\x8f(%b\x90."], ids=["dict", "set"])
def test_numbers_that_could_all_have_one_hash_are_limited(container: bytes) -> None:
    numbers = range(20_002)  # of a dict, half are values
    content = b"".join(b"J" + struct.pack("<i", number) for number in numbers)
    with pytest.raises(InputError, match="more than 10,000 of its keys are no texts"):
        read(b"\x80\x04" + container % content)
    texts = {str(number): number for number in numbers}
    assert read(written(texts)) == texts


LONG = [None] * 50_000
OBJECTS = Made(Named("numpy", "dtype"), ("O8",), (3, "|", *[None] * 3, -1, -1, 63))
EMPTY = (Named("numpy", "ndarray"), (0,), b"b")
STATE = (1, (len(LONG),), OBJECTS, False, LONG)
RECONSTRUCT = Named("numpy.core.multiarray", "_reconstruct")
INDEX = Named("pandas.core.indexes.base", "Index")
COPIES = {
    "arrays of one list": (RECONSTRUCT, EMPTY, STATE),
    "bytes of one text": (Named("_codecs", "encode"), ("x" * 400_000, "latin1")),
    "lists of one array": (
        Named("pandas.core.indexes.base", "_new_Index"),
        (INDEX, {"data": Made(RECONSTRUCT, EMPTY, STATE)}),
    ),
}


@pytest.mark.parametrize("parts", COPIES.values(), ids=COPIES)
def test_a_value_that_is_copied_over_and_over_is_paid_for_every_time(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickle_reader, "MOST_OBJECTS", 1_000_000)
    # The value stands in the file once, and 100 copies of it would be 5 million words.
    (tmp_path / "x.df").write_bytes(written([Made(*parts) for _ in range(100)]))
    with pytest.raises(InputError, match="more than 1,000,000 objects"):
        read_frame(tmp_path / "x.df")


def test_a_reference_out_of_the_file_is_the_callers_business() -> None:
    data = written([Outside(("storage", 1))])
    assert read_pickle(data, "a file", allow, persistent=lambda key: key[0]) == ["storage"]
    with pytest.raises(InputError, match="outside itself"):
        read(data)


def test_a_maker_that_does_not_know_its_arguments_refuses_in_a_sentence() -> None:
    def maker(number: int) -> int:
        return number.bit_length()

    for arguments in ((), (1, 2), ("text",)):
        with pytest.raises(InputError, match="in an unknown way"):
            read_pickle(written(evil("m", "n", *arguments)), "a file", lambda *_: maker)

    def refusing() -> None:
        raise RefusalError("of a reason")

    with pytest.raises(InputError, match=r"a file is refused at byte .*of a reason; take the file"):
        read_pickle(written(evil("m", "n")), "a file", lambda *_: refusing)


def test_a_frame_cut_anywhere_or_with_any_byte_changed_is_read_or_refused(tmp_path: Path) -> None:
    sound = written(frame(ROWS))
    rng = random.Random(0)
    broken = [sound[:end] for end in range(len(sound))]
    for _ in range(3000):
        changed = bytearray(sound)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        broken.append(bytes(changed))
    file, refused = tmp_path / "x.df", 0
    for data in broken:
        file.write_bytes(data)
        try:
            read_frame(file)
        except InputError:  # anything else is a defect
            refused += 1
    assert refused > 2000
