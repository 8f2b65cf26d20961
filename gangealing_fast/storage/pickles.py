# SPDX-License-Identifier: Apache-2.0
"""Pickles as plain data.

A pickle is a program for a small machine. This one knows only the instructions that plain data need. A name in a pickle never
becomes an object of this process: it becomes a `Name`, a text, and what may be made of it is in a table that the reader of a
format gives. So a pickle can neither run code nor change a class, a function or a container that others use.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, ClassVar, NoReturn

Maker = Callable[..., Any]
MOST_VALUES = 5_000_000
DEEPEST = 200
_SPARE = 1 << 20
_KEYS = (str, int, float, bool, bytes, type(None))


class Refused(Exception):
    """A pickle wants what is not plain data; the text is the name that it looked up."""


class Name:
    """A name that a pickle looked up; a text and nothing else."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class Record(dict[str, Any]):
    """What an object left behind whose class is not needed: its attributes by name."""


class Machine(pickle._Unpickler):
    """Reads one pickle. The machine in Python: the one in C lets a damaged file ask for a table of many gigabytes.

    makers: what may be made of a name, by "module.name". values: names that stand for values which nothing can change.
    reference: what a reference out of the pickle stands for; None if there is none to be.
    Raises Refused for any other name, and nearly any exception for bytes that make no sense.
    """

    dispatch: ClassVar[dict[int, Callable[[pickle.Unpickler], None]]] = {}
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self,
        file: BytesIO,
        makers: Mapping[str, Maker],
        values: Mapping[str, Any] | None = None,
        reference: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(file, encoding="utf-8")
        self._makers, self._values, self._reference = makers, values or {}, reference
        # A maker may copy what it is given, and a pickle may give it the same thing again and again.
        self._room = 4 * file.getbuffer().nbytes + _SPARE

    def load(self) -> Any:
        """The value, as a tree that is not too deep and not too large to walk through."""
        value = super().load()
        _measure(value)
        return value

    def find_class(self, module: str, name: str) -> Any:
        text = f"{module}.{name}"
        if text in self._values:
            return self._values[text]
        if text not in self._makers:
            raise Refused(text)
        return Name(text)

    def persistent_load(self, reference: Any) -> Any:
        if self._reference is None:
            raise Refused("a reference to another file")
        return self._reference(reference)

    def _make(self) -> None:
        arguments, name = self.stack.pop(), self.stack[-1]
        if not isinstance(name, Name) or type(arguments) is not tuple:
            raise pickle.UnpicklingError("a call of something that is no name")
        self._room -= sum(len(argument) for argument in arguments if isinstance(argument, str | bytes | list | tuple | dict))
        if self._room < 0:
            raise pickle.UnpicklingError("the same content is copied many times")
        self.stack[-1] = self._makers[name.text](*arguments)

    def _build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if type(state) is not dict or any(type(key) is not str for key in state):
            raise pickle.UnpicklingError("attributes that are no dictionary")
        if type(made) is Record:
            made.update(state)
        elif type(made) is OrderedDict:  # what a state dict of torch says about versions
            vars(made).update({key: value for key, value in state.items() if key == "_metadata"})
        else:
            raise Refused(f"attributes of a {type(made).__name__}")

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise pickle.UnpicklingError("items of something that is no list")
        self.stack[-1] += items

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _set_items(self) -> None:
        self._set(self.pop_mark())

    def _dictionary(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._set(items)

    def _set(self, items: list[Any]) -> None:
        if type(self.stack[-1]) not in (dict, OrderedDict, Record) or len(items) % 2:
            raise pickle.UnpicklingError("items of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # The hash of a tuple of tuples of tuples can take for ever.
            if type(key) not in _KEYS:
                raise pickle.UnpicklingError("a key that is no plain value")
            self.stack[-1][key] = value

    def _set_of(self) -> NoReturn:
        raise Refused("builtins.set")


def _instructions() -> dict[int, Callable[..., None]]:
    known = pickle._Unpickler.dispatch
    plain = (
        "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
        "STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
        "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST EMPTY_DICT GLOBAL STACK_GLOBAL GET BINGET LONG_BINGET PUT BINPUT "
        "LONG_BINPUT MEMOIZE BINPERSID"
    )
    found = {getattr(pickle, name)[0]: known[getattr(pickle, name)[0]] for name in plain.split()}
    own = {
        pickle.REDUCE: Machine._make,
        pickle.NEWOBJ: Machine._make,
        pickle.BUILD: Machine._build,
        pickle.APPEND: Machine._append,
        pickle.APPENDS: Machine._appends,
        pickle.SETITEM: Machine._set_item,
        pickle.SETITEMS: Machine._set_items,
        pickle.DICT: Machine._dictionary,
        pickle.EMPTY_SET: Machine._set_of,
        pickle.FROZENSET: Machine._set_of,
    }
    return found | {code[0]: method for code, method in own.items()}


Machine.dispatch = _instructions()


def _measure(value: Any) -> None:
    """Raise ValueError if `value` holds itself, is nested too deeply, or is too large with shared parts written out."""
    sizes: dict[int, int] = {}
    open_now: set[int] = set()
    work = [(value, False)]
    while work:
        item, seen = work.pop()
        if not isinstance(item, dict | list | tuple):
            continue
        children = [*item.keys(), *item.values()] if isinstance(item, dict) else item
        if seen:
            open_now.discard(id(item))
            sizes[id(item)] = 1 + sum(sizes.get(id(child), 1) for child in children)
            if sizes[id(item)] > MOST_VALUES:
                raise ValueError("a tree of too many values")
        elif id(item) in open_now:
            raise ValueError("a container that holds itself")
        elif id(item) not in sizes:
            open_now.add(id(item))
            if len(open_now) > DEEPEST:
                raise ValueError("containers that are nested too deeply")
            work.append((item, True))
            work += [(child, False) for child in children]
