"""Classes whose objects are pickled beside tensors. A reader cannot import them: it has the pickle alone."""

import collections
import dataclasses
import enum


@dataclasses.dataclass
class Config:
    """A dataclass."""

    width: int = 3
    extra: object = None


@dataclasses.dataclass(frozen=True)
class Key:
    """A dataclass that can be a dictionary's key."""

    name: str
    number: int


Point = collections.namedtuple("Point", "x y")


class Colour(enum.Enum):
    """An enumeration."""

    RED = 1
    BLUE = "blue"


class Plain:
    """An ordinary object: pickled as its dictionary of attributes."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Slots:
    """An object without a dictionary: its state is a pair."""

    __slots__ = ("first", "second")

    def __init__(self, first, second):
        self.first = first
        self.second = second


class State:
    """An object that says itself what its state is."""

    def __init__(self, state):
        self.state = state

    def __getstate__(self):
        return self.state

    def __setstate__(self, state):
        self.state = state


class Reduced:
    """An object that says itself how it is made."""

    def __init__(self, *args):
        self.args = args

    def __reduce__(self):
        return (Reduced, self.args, {"number": len(self.args)})


class Arguments:
    """Made with arguments of its own: NEWOBJ with a tuple."""

    def __new__(cls, *args):
        made = super().__new__(cls)
        made.given = args
        return made

    def __getnewargs__(self):
        return self.given


class Items(list):
    """A list with attributes."""


class Table(dict):
    """A dictionary with attributes."""


class DictConfig:
    """Stands in for omegaconf's: content under `_content`, flags and a parent beside it."""

    def __init__(self, content, parent=None):
        self.__dict__["_content"] = {
            k: Node(v, self) if not isinstance(v, dict) else DictConfig(v, self) for k, v in content.items()
        }
        self.__dict__["_metadata"] = Config(width=7, extra={"flags": {"readonly": True}})
        self.__dict__["_parent"] = parent

    def __getstate__(self):
        return dict(self.__dict__)

    def __setstate__(self, state):
        self.__dict__.update(state)


class Node:
    """A value in a DictConfig that knows its parent."""

    def __init__(self, value, parent):
        self._val = value
        self._parent = parent
