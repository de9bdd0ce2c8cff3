"""A pickle read as data: a small interpreter of its own that can neither import nor call anything.

Python's ``pickle`` looks names up and calls what it finds, which is why a pickle can run any code.
Here a name in the file stays a pair of texts. What may be made out of such a name is decided by the
caller, who maps the names that he knows to functions of his own (*makers*); any other name, any
opcode that only other kinds of pickles have, and any size that the file cannot hold is refused, and
nothing has happened. A value that stands in the file once can be handed to makers a million times, so
every call pays for what it is handed, and all calls together for no more than ``MOST_OBJECTS``.

Only `ilora.data.llara` and `ilora.torch_checkpoints`, which read the files of others, use this.
Nothing that this package writes is a pickle.

The format: https://docs.python.org/3/library/pickletools.html
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from ilora.errors import InputError

MOST_BYTES = 1 << 26
# Lists, tuples, dicts, marks and memo entries are a byte or two in the file and about 100 in memory.
MOST_OBJECTS = 20_000_000
COST_OF_A_SET = 4  # of which the smallest takes 216 bytes
LONGEST_NAME = 500
LONGEST_INTEGER = 1024  # bytes
LONGEST_KEY = 8  # values of a tuple: its hash is worked out at every use
# Numbers, and tuples of them, can be chosen so that all have one hash, and every key is then
# compared with all before it. Texts cannot: their hashes are salted in every process.
MOST_NUMBER_KEYS = 10_000
PLAIN = (str, int, float, bool, bytes, type(None))
# What a maker or a `build` raises where the values in the file are not those it knows.
MISFITS = (TypeError, ValueError, AttributeError, LookupError, OverflowError)
REMEDY = "take the file from a source you trust, or bring the data as CSV"

Maker = Callable[..., Any]
Allow = Callable[[str, str], "Maker | None"]


class RefusalError(Exception):
    """Why a pickle is not read; a maker raises it too. `read_pickle` makes a sentence of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Name:
    """A class or function named in the file. It was not looked up and cannot be called."""

    module: str
    name: str
    maker: Maker

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Built:
    """An object of ours that takes its state from the file, once, in ``build``."""

    @property
    def weight(self) -> int:
        """About how many words (8 bytes) a maker that reads it through could make of it."""
        return 1

    def build(self, state: Any) -> None:
        raise NotImplementedError


def no_call(*_: Any, **__: Any) -> Any:
    """The maker of a name that may stand in a file as an argument, but not make anything."""
    raise RefusalError("it makes an object where only the name of a type belongs")


def read_pickle(
    data: bytes,
    where: str,
    allow: Allow,
    persistent: Callable[[Any], Any] | None = None,
    remedy: str = REMEDY,
) -> Any:
    """The value of a pickle of protocol 2 or newer.

    Args:
        where: what an error calls the file.
        allow: ``(module, name)`` -> what to make of it, or None to refuse. A maker is called with
            the arguments in the file (plain values, `Name`, or what other makers returned) where
            Python would call the class or function of that name.
        persistent: what stands for a reference out of the file; None refuses any.
        remedy: what the user can do.

    Raises:
        InputError: anything but sound data made of the allowed names; one sentence.
    """
    return read_pickle_at(data, 0, where, allow, persistent, remedy)[0]


def read_pickle_at(
    data: bytes,
    start: int,
    where: str,
    allow: Allow,
    persistent: Callable[[Any], Any] | None = None,
    remedy: str = REMEDY,
) -> tuple[Any, int]:
    """As `read_pickle`, from ``start`` on; also returns where the pickle ended."""
    machine = _Machine(data, start, allow, persistent)
    try:
        if len(data) - start > MOST_BYTES:
            raise RefusalError(f"it is larger than {MOST_BYTES >> 20} MiB")
        return machine.run(), machine.at
    except RefusalError as error:
        raise InputError(
            f"{where} is refused at byte {machine.opcode_at}: {error}; {remedy}"
        ) from None


class _Machine:
    """The stack machine of a pickle. Every opcode is a method; see `OPCODES` below."""

    opcodes: ClassVar[dict[int, Callable[[_Machine], None]]] = {}

    def __init__(
        self, data: bytes, start: int, allow: Allow, persistent: Callable[[Any], Any] | None
    ) -> None:
        self.data = data
        self.at = start
        self.opcode_at = start
        self.allow = allow
        self.persistent = persistent
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # stacks below the open marks
        self.memo: dict[int, Any] = {}
        self.left = MOST_OBJECTS
        self.number_keys_left = MOST_NUMBER_KEYS
        self.built: dict[int, Built] = {}  # objects that have their state, by id

    def run(self) -> Any:
        data, opcodes = self.data, self.opcodes
        try:
            while True:
                self.opcode_at = self.at
                opcode = data[self.at]
                self.at += 1
                if opcode == 0x2E:  # STOP
                    if self.outer or len(self.stack) != 1:
                        raise RefusalError("it is not a sound pickle")
                    return self.stack[0]
                operation = opcodes.get(opcode)
                if operation is None:
                    raise RefusalError(
                        f"opcode {opcode:#04x} does not occur in the files this reader is for"
                    )
                operation(self)
        except (IndexError, KeyError, struct.error, UnicodeDecodeError):
            raise RefusalError("it is cut off or not a pickle") from None

    # What opcodes are made of.

    def spend(self, cost: int = 1) -> None:
        self.left -= cost
        if self.left < 0:
            raise RefusalError(f"it describes more than {MOST_OBJECTS:,} objects")

    def push_new(self, value: Any, cost: int = 1) -> None:
        self.spend(cost)
        self.stack.append(value)

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes, if the file has so many."""
        end = self.at + size
        if not 0 <= size <= len(self.data) - self.at:
            raise RefusalError("a value is longer than the rest of the file")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + LONGEST_NAME)
        if end < 0:
            raise RefusalError("a name has no end")
        text = self.take(end - self.at).decode("utf-8")
        self.at += 1
        return text

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def above_mark(self) -> list[Any]:
        above, self.stack = self.stack, self.outer.pop()
        return above

    def remember(self, index: int) -> None:
        self.spend()
        self.memo[index] = self.stack[-1]

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise RefusalError("a name is not text")
        maker = self.allow(module, name)
        if maker is None:
            raise RefusalError(f"it wants {_shown(module)}.{_shown(name)}, which is not allowed")
        self.push(Name(module, name, maker))

    def make(self, target: Any, arguments: Any, keywords: Any = None) -> None:
        if type(target) is not Name:
            raise RefusalError("it calls something that is no allowed name")
        if type(arguments) is not tuple or keywords:
            raise RefusalError(f"it calls {target} with arguments of an unknown form")
        self.spend(_weight(arguments))
        try:
            self.push(target.maker(*arguments))
        except MISFITS as error:
            raise RefusalError(f"it calls {target} in an unknown way ({error})") from None

    def put(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise RefusalError("it sets keys of something that is no dict")
        for key, value in pairs:
            target[self.key(key)] = value

    def key(self, key: Any) -> Any:
        """Keys are plain or tuples of plain values: hashing what is nested deeply would overflow."""
        if type(key) is str:
            return key
        flat = key if type(key) is tuple else (key,)
        if len(flat) > LONGEST_KEY or any(type(part) not in PLAIN for part in flat):
            raise RefusalError("a key is neither text nor a number")
        self.number_keys_left -= 1
        if self.number_keys_left < 0:
            raise RefusalError(f"more than {MOST_NUMBER_KEYS:,} of its keys are no texts")
        return key

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise RefusalError("it appends to something that is no list")
        target.extend(values)

    # Opcodes with more to them than one line.

    def protocol(self) -> None:
        version = self.take(1)[0]
        if not 2 <= version <= 5:
            raise RefusalError(f"it is of protocol {version}, not 2 to 5")

    def frame(self) -> None:
        self.take(8)  # how far a reader may read ahead

    def pop(self) -> None:
        self.stack.pop()

    def pop_mark(self) -> None:
        self.above_mark()

    def long(self, form: str) -> None:
        content = self.take(self.number(form))
        if len(content) > LONGEST_INTEGER:
            raise RefusalError("an integer has thousands of digits")
        self.push(int.from_bytes(content, "little", signed=True))

    def text(self, form: str) -> None:
        self.push(self.take(self.number(form)).decode("utf-8", "surrogatepass"))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def reduce(self) -> None:
        arguments, target = self.stack.pop(), self.stack.pop()
        self.make(target, arguments)

    def new_extended(self) -> None:
        keywords, arguments, target = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.make(target, arguments, keywords)

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Built) or id(target) in self.built:
            raise RefusalError("it gives a state to something that takes none")
        self.built[id(target)] = target
        self.spend(_weight(state))
        try:
            target.build(state)
        except MISFITS as error:
            raise RefusalError(f"it describes an object in an unknown way ({error})") from None

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.put([(key, value)])

    def set_items(self) -> None:
        self.put(_pairs(self.above_mark()))

    def add_items(self) -> None:
        values = self.above_mark()
        target = self.stack[-1]
        if type(target) is not set:
            raise RefusalError("it adds to something that is no set")
        target.update(map(self.key, values))

    def tuple_of(self, size: int) -> None:
        self.spend()
        values = tuple(self.stack[-size:])
        if len(values) < size:
            raise RefusalError("a tuple has too few values")
        self.stack[-size:] = [values]

    def mark(self) -> None:
        self.spend()
        self.outer.append(self.stack)
        self.stack = []

    def dictionary(self) -> None:
        pairs = _pairs(self.above_mark())
        self.push({})
        self.put(pairs)

    def outside(self) -> None:
        if self.persistent is None:
            raise RefusalError("it refers to something outside itself")
        self.push(self.persistent(self.stack.pop()))

    def append(self) -> None:
        value = self.stack.pop()
        self.extend([value])


def _weight(value: Any, depth: int = 2) -> int:
    """About how many words a maker or a ``build`` could make of ``value`` by reading it through."""
    if isinstance(value, Built) and not isinstance(value, dict):
        return value.weight
    if isinstance(value, str | bytes):
        return 1 + len(value) // 8
    if not isinstance(value, list | tuple | dict | set):
        return 1
    inner = value.values() if isinstance(value, dict) else value
    return 1 + (sum(_weight(one, depth - 1) for one in inner) if depth else len(value))


def _pairs(flat: list[Any]) -> list[tuple[Any, Any]]:
    if len(flat) % 2:
        raise RefusalError("a key has no value")
    return list(zip(flat[::2], flat[1::2], strict=True))


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:60])


_Machine.opcodes.update(
    {
        0x80: _Machine.protocol,
        0x95: _Machine.frame,
        ord("("): _Machine.mark,
        ord("0"): _Machine.pop,
        ord("1"): _Machine.pop_mark,
        ord("2"): lambda m: m.push(m.stack[-1]),
        ord("N"): lambda m: m.push(None),
        0x88: lambda m: m.push(True),
        0x89: lambda m: m.push(False),
        ord("J"): lambda m: m.push(m.number("<i")),
        ord("K"): lambda m: m.push(m.take(1)[0]),
        ord("M"): lambda m: m.push(m.number("<H")),
        0x8A: lambda m: m.long("<B"),
        0x8B: lambda m: m.long("<i"),
        ord("G"): lambda m: m.push(m.number(">d")),
        ord("X"): lambda m: m.text("<I"),
        0x8C: lambda m: m.text("<B"),
        0x8D: lambda m: m.text("<Q"),
        ord("B"): lambda m: m.push(m.take(m.number("<I"))),
        ord("C"): lambda m: m.push(m.take(m.number("<B"))),
        0x8E: lambda m: m.push(m.take(m.number("<Q"))),
        0x96: lambda m: m.push(m.take(m.number("<Q"))),  # a bytearray, which nobody changes here
        ord("]"): lambda m: m.push_new([]),
        ord("a"): _Machine.append,
        ord("e"): lambda m: m.extend(m.above_mark()),
        ord("l"): lambda m: m.push(m.above_mark()),
        ord(")"): lambda m: m.push(()),
        ord("t"): lambda m: m.push(tuple(m.above_mark())),
        0x85: lambda m: m.tuple_of(1),
        0x86: lambda m: m.tuple_of(2),
        0x87: lambda m: m.tuple_of(3),
        ord("}"): lambda m: m.push_new({}),
        ord("d"): _Machine.dictionary,
        ord("s"): _Machine.set_item,
        ord("u"): _Machine.set_items,
        0x8F: lambda m: m.push_new(set(), COST_OF_A_SET),
        0x90: _Machine.add_items,
        ord("h"): lambda m: m.push(m.memo[m.take(1)[0]]),
        ord("j"): lambda m: m.push(m.memo[m.number("<I")]),
        ord("q"): lambda m: m.remember(m.take(1)[0]),
        ord("r"): lambda m: m.remember(m.number("<I")),
        0x94: lambda m: m.remember(len(m.memo)),
        ord("c"): lambda m: m.name(m.line(), m.line()),
        0x93: _Machine.stack_global,
        ord("R"): _Machine.reduce,
        0x81: _Machine.reduce,  # NEWOBJ: cls.__new__(*arguments), one maker for both
        0x92: _Machine.new_extended,
        ord("b"): _Machine.build,
        ord("Q"): _Machine.outside,
    }
)
