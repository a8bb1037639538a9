"""Regular expressions in RE2's syntax, which is Prometheus', compiled for Python's ``re``. Pure.

The same text can mean something else to the two, without an error: ``\\d`` is ASCII in RE2, ``$`` is
not before a last line feed, ``[[:alpha:]]`` is a class of letters, ``a++`` and look-aheads are refused.
So the pattern is read here token by token and written anew; what has no equal in Python is refused.

What stays different: Python backtracks, so that ``(a+)+b`` takes exponential time on a long run of
``a``; a group inside a repetition that matched empty text may be set in one and unset in the other;
case is folded by two versions of Unicode. Refused though RE2 has them: ``\\p{Greek}``, the flag
``U``, group names that begin with a digit or name two groups.

Source: the syntax page of google/re2, and regexp/syntax of Go.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_MAX_REPEAT = 1000
"""RE2's own limit."""

_ASCII_MAX = 0x7F

_QUANTIFIER = re.compile(r"[*+?]|\{(\d+)(?:,(\d*))?\}", re.ASCII)
_GROUP = re.compile(r"\(\?(?:P?<(\w*)>|([a-zA-Z]*)(?:-([a-zA-Z]*))?([:)]))", re.ASCII)
_CODE_POINT = re.compile(r"\\x\{([0-9a-fA-F]+)\}|\\x([0-9a-fA-F]{2})|\\([1-7][0-7]{1,2}|0[0-7]{0,2})")
_QUOTED = re.compile(r"\\Q(.*?)(?:\\E|\Z)", re.DOTALL)
_POSIX = re.compile(r"\[:(\^?)(\w+):\]", re.ASCII)

_CONTROLS = dict(zip("afnrtv", "\a\f\n\r\t\v", strict=True))
# In groups, because RE2 lets places be repeated. \B of Python before 3.14 is not in an empty text.
_PLACES = {"A": r"(?:\A)", "z": r"(?:\Z)", "b": r"(?a:\b)", "B": r"(?a:(?!\b))"}
_PERL = {"d": "0-9", "w": "0-9A-Za-z_", "s": r"\t\n\f\r "}
_POSIX_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}


def compile_re2(pattern: str) -> re.Pattern[str]:
    """Return the pattern for ``fullmatch``, the dot matching line feeds too, as in Prometheus 3's relabeling.

    Raises:
        ValueError: RE2 refuses it, or it has no equal in Python; the message says what and where.
    """
    try:
        translated = _Translator(pattern).translate()
        return re.compile(translated, re.DOTALL)
    except (ValueError, OverflowError, RecursionError, re.error) as error:
        # Python's places are those of the translation: only its words are of use.
        reason = error.msg if isinstance(error, re.error) else error
        if isinstance(error, RecursionError):
            reason = "its groups are nested too deeply"
        raise ValueError(f"{pattern!r} is not a regular expression that can be used: {reason}") from error


@dataclass(slots=True)
class _Group:
    """An open group: the flags at its beginning and now, and what was opened for flags inside it."""

    multi_line: bool
    opened: list[str] = field(default_factory=list)


class _Translator:
    """A cursor over the pattern; `translate` walks it once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.out: list[str] = []
        self.groups = [_Group(multi_line=False)]

    def translate(self) -> str:
        while self.at < len(self.text):
            self.token(self.text[self.at])
        if len(self.groups) > 1:
            raise ValueError("a ) is missing")
        self.close_flags()
        return "".join(self.out)

    def token(self, char: str) -> None:
        if quantifier := _QUANTIFIER.match(self.text, self.at):
            self.quantifier(quantifier)
        elif char == "\\":
            self.escape()
        elif char == "[":
            self.out.append(self.char_class())
        elif char == "(":
            self.open_group()
        elif char == ")":
            self.close_group()
        elif char == "|":
            # A flag that was set in one branch holds in the following ones too.
            opened = self.groups[-1].opened
            self.put(")" * len(opened) + "|" + "".join(opened))
        elif char == ".":
            self.put(".")
        elif char in "^$":
            multi_line = self.groups[-1].multi_line
            self.put(f"(?:{char})" if multi_line else _PLACES["A" if char == "^" else "z"])
        else:
            self.put(re.escape(char))

    def put(self, written: str, length: int = 1) -> None:
        self.out.append(written)
        self.at += length

    def quantifier(self, match: re.Match[str]) -> None:
        low, high = match.groups()
        if low is not None:
            counts = [int(low), *([int(high)] if high else [])]
            if max(counts) > _MAX_REPEAT or counts != sorted(counts):
                raise ValueError(f"{match[0]} at {match.start()}: counts are at most {_MAX_REPEAT} and in order")
        self.put(match[0], len(match[0]))
        if self.text.startswith("?", self.at):
            self.put("?")
        if after := _QUANTIFIER.match(self.text, self.at):
            raise ValueError(f"a repetition of a repetition, {after[0]} at {self.at}")

    def escape(self) -> None:
        if quoted := _QUOTED.match(self.text, self.at):
            for char in quoted[1][:-1]:
                self.out.append(re.escape(char))
            # By itself, so that a repetition behind it is of the last character.
            self.put(re.escape(quoted[1][-1:]), len(quoted[0]))
            return
        char = self.text[self.at + 1 : self.at + 2]
        if char in _PLACES:
            self.put(_PLACES[char], 2)
        elif char.lower() in _PERL:
            self.put(f"[{'^' if char.isupper() else ''}{_PERL[char.lower()]}]", 2)
        else:
            self.out.append(re.escape(self.escaped_char()))

    def escaped_char(self) -> str:
        """Read an escape that stands for one character, here or in a class."""
        if number := _CODE_POINT.match(self.text, self.at):
            self.at = number.end()
            wide, narrow, octal = number.groups()
            return chr(int(octal, 8) if octal is not None else int(wide or narrow, 16))
        char = self.text[self.at + 1 : self.at + 2]
        if char in _CONTROLS:
            self.at += 2
            return _CONTROLS[char]
        if char and ord(char) <= _ASCII_MAX and not char.isalnum():
            self.at += 2
            return char
        raise ValueError(f"\\{char} at {self.at} is no escape here")

    def char_class(self) -> str:
        start = self.at
        self.at += 1
        written = ["["]
        if self.text.startswith("^", self.at):
            written.append("^")
            self.at += 1
        first = True
        while first or not self.text.startswith("]", self.at):
            if self.at >= len(self.text):
                raise ValueError(f"the ] of the class at {start} is missing")
            first = False
            written.append(self.class_item())
        self.at += 1
        return "".join(written) + "]"

    def class_item(self) -> str:
        """Read one character, range or named class; characters are written by number, so that none is special."""
        if named := self.named_class():
            return named
        low = high = self.class_char()
        if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
            self.at += 1
            if self.at >= len(self.text) or self.named_class():
                raise ValueError(f"a range in the class ends with no character at {self.at}")
            high = self.class_char()
        if low > high:
            raise ValueError(f"the range {low}-{high} in a class is upside down")
        return _numbered(low) if low == high else f"{_numbered(low)}-{_numbered(high)}"

    def named_class(self) -> str:
        if posix := _POSIX.match(self.text, self.at):
            negated, name = posix.groups()
            if name not in _POSIX_CLASSES:
                raise ValueError(f"{posix[0]} is no class")
            self.at = posix.end()
            return _complement(_POSIX_CLASSES[name]) if negated else _POSIX_CLASSES[name]
        char = self.text[self.at + 1 : self.at + 2]
        if self.text[self.at] == "\\" and char.lower() in _PERL:
            self.at += 2
            return _complement(_PERL[char.lower()]) if char.isupper() else _PERL[char]
        return ""

    def class_char(self) -> str:
        char = self.text[self.at]
        if char == "\\":
            return self.escaped_char()
        self.at += 1
        return char

    def open_group(self) -> None:
        now = self.groups[-1].multi_line
        if not self.text.startswith("(?", self.at):
            self.groups.append(_Group(now))
            self.put("(")
            return
        match = _GROUP.match(self.text, self.at)
        if match is None or set((match[2] or "") + (match[3] or "")) - set("ims"):
            raise ValueError(
                f"{self.text[self.at : self.at + 4]} at {self.at}: RE2 or Python has no such group or flag"
            )
        name, on, off, end = match.groups()
        if name is not None:
            self.groups.append(_Group(now))
            self.put(f"(?P<{name}>", len(match[0]))
            return
        if off == "":
            raise ValueError(f"{match[0]} at {self.at}: a flag is missing")
        if set(on) & set(off or ""):
            # The later one wins in RE2; Python refuses both at once.
            on = "".join(flag for flag in on if flag not in (off or ""))
        flags = f"(?{on}{'-' + off if off else ''}:"
        multi_line = (now or "m" in on) and "m" not in (off or "")
        if end == ":":
            self.groups.append(_Group(multi_line))
        else:
            self.groups[-1].multi_line = multi_line
            self.groups[-1].opened.append(flags)
        self.put(flags, len(match[0]))

    def close_group(self) -> None:
        if len(self.groups) == 1:
            raise ValueError(f"the ) at {self.at} closes nothing")
        self.close_flags()
        self.groups.pop()
        self.put(")")

    def close_flags(self) -> None:
        self.out.append(")" * len(self.groups[-1].opened))


def _numbered(char: str) -> str:
    return f"\\U{ord(char):08x}"


def _complement(ranges: str) -> str:
    """Return the ranges of all ASCII characters that a class does not have, and of all others."""
    has = re.compile(f"[{ranges}]")
    return "".join(_numbered(chr(c)) for c in range(_ASCII_MAX + 1) if not has.match(chr(c))) + r"\x80-\U0010ffff"
