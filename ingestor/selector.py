"""Which series to read: a Prometheus instant selector, read, narrowed and written. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Labels = dict[str, str]
"""A series' labels; the metric's name is one of them, ``__name__``."""

_METRIC_NAME = "__name__"
_EXAMPLES = 'write it like {pod!=""}, up{namespace="shop"} or {namespace=~"a|b",pod!=""}'

_SPACE = re.compile(r"\s*")
_IDENTIFIER = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.ASCII)
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)
_OPERATOR = re.compile(r"=~|!~|!=|=")
_QUOTED = re.compile(r""""((?:[^"\\\n]|\\.)*)"|'((?:[^'\\\n]|\\.)*)'|`([^`]*)`""")

# The escapes of Go's string literals, which are PromQL's.
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL)
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")
_SHORT_ESCAPES = dict(zip("abfnrtv\\'\"", b"\a\b\f\n\r\t\v\\'\"", strict=True))


@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition on a label: ``name op value``, *op* one of ``= != =~ !~``."""

    name: str
    op: str
    value: str

    def __str__(self) -> str:
        # Names beyond ASCII words are written in quotes, which Prometheus 3 reads.
        name = self.name if _LABEL_NAME.fullmatch(self.name) else _quote(self.name)
        return f"{name}{self.op}{_quote(self.value)}"


@dataclass(frozen=True, slots=True)
class Selector:
    """A conjunction of matchers; the metric's name is one of them, on ``__name__``."""

    matchers: tuple[Matcher, ...]

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Read an instant selector.

        Raises:
            ValueError: it is none (a range, an offset, a function, nothing at all);
                the message points at the place and shows the allowed forms.
        """
        return cls(_Reader(text).selector())

    def with_matchers(self, *matchers: str) -> Selector:
        """Return the selector narrowed by more matchers, each written like ``namespace="shop"``.

        Raises:
            ValueError: one of them cannot be read.
        """
        return Selector(self.matchers + tuple(_Reader(text).lone_matcher() for text in matchers))

    def of_metrics(self, *names: str) -> Selector:
        """Return this selector for these metrics, whatever characters their names have."""
        wanted = Matcher(_METRIC_NAME, *(("=", names[0]) if len(names) == 1 else ("=~", any_of(names))))
        return Selector((wanted, *(matcher for matcher in self.matchers if matcher != wanted)))

    def __str__(self) -> str:
        return "{" + ",".join(map(str, self.matchers)) + "}"


def any_of(values: Iterable[str]) -> str:
    """Return the regular expression that matches just these values."""
    return "|".join(_SPECIAL.sub(r"\\\g<0>", value) for value in values)


def halves_by_series(selector: Selector, label_sets: Sequence[Mapping[str, str]]) -> tuple[Selector, Selector] | None:
    """Return two selectors that together find what *selector* finds, and nothing twice, each about half of the series.

    They are told apart by the label with the most values among *label_sets*; None where all of those are alike.
    """
    names = sorted({name for labels in label_sets for name in labels} - {_METRIC_NAME})
    values = {name: sorted({labels.get(name, "") for labels in label_sets}) for name in names}
    name = max(names, key=lambda name: len(values[name]), default="")
    if not name or len(values[name]) < 2:
        return None
    first = any_of(values[name][: len(values[name]) // 2])
    inside, outside = (Matcher(name, op, first) for op in ("=~", "!~"))
    return Selector((*selector.matchers, inside)), Selector((*selector.matchers, outside))


class _Reader:
    """A cursor over the text of a selector."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def selector(self) -> tuple[Matcher, ...]:
        matchers: list[Matcher] = []
        name = self.take(_IDENTIFIER)
        if name:
            matchers.append(Matcher(_METRIC_NAME, "=", name[0]))
        if self.take_text("{"):
            while not self.take_text("}"):
                matchers.append(self.matcher_or_name())
                if not self.take_text(",") and not self.peek_text("}"):
                    raise self.error("a comma or } is missing")
        elif not name:
            raise self.error("{ or a metric name is missing")
        self.expect_end("a selector ends there: leave out ranges, offsets and operators")
        if not matchers:
            raise self.error("it selects everything, which Prometheus refuses: give a matcher")
        return tuple(matchers)

    def lone_matcher(self) -> Matcher:
        matcher = self.matcher_or_name()
        self.expect_end("one matcher ends there")
        return matcher

    def matcher_or_name(self) -> Matcher:
        quoted = self.take(_QUOTED)
        label = self.unquote(quoted) if quoted else None
        if label is None:
            name = self.take(_LABEL_NAME)
            if not name:
                raise self.error("a label name is missing")
            label = name[0]
        op = self.take(_OPERATOR)
        if not op:
            if quoted:
                return Matcher(_METRIC_NAME, "=", label)
            raise self.error("one of = != =~ !~ is missing")
        value = self.take(_QUOTED)
        if not value:
            raise self.error("a quoted value is missing")
        return Matcher(label, op[0], self.unquote(value))

    def unquote(self, quoted: re.Match[str]) -> str:
        raw = quoted[3]
        if raw is not None:
            return raw
        try:
            return _unescape(quoted[1] if quoted[1] is not None else quoted[2])
        except ValueError as error:
            raise self.error(str(error)) from error

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self.skip_space()
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()
        return match

    def take_text(self, text: str) -> bool:
        if found := self.peek_text(text):
            self.at += len(text)
        return found

    def peek_text(self, text: str) -> bool:
        self.skip_space()
        return self.text.startswith(text, self.at)

    def expect_end(self, complaint: str) -> None:
        self.skip_space()
        if self.at < len(self.text):
            raise self.error(complaint)

    def skip_space(self) -> None:
        if match := _SPACE.match(self.text, self.at):
            self.at = match.end()

    def error(self, complaint: str) -> ValueError:
        place = f"before {self.text[self.at :]!r}" if self.at < len(self.text) else "at the end"
        return ValueError(f"{self.text!r} is not a selector ({place}: {complaint}): {_EXAMPLES}")


def _unescape(text: str) -> str:
    # \x and octal escapes are bytes, which need not be whole characters: join bytes, decode last.
    parts, at = bytearray(), 0
    for match in _ESCAPE.finditer(text):
        parts += text[at : match.start()].encode()
        at = match.end()
        code = match[1]
        if code[0] in "uU" and len(code) > 1:
            parts += _encoded_code_point(int(code[1:], 16))
        elif code[0] == "x" and len(code) > 1:
            parts.append(int(code[1:], 16))
        elif code[0] in "01234567" and len(code) > 1 and int(code, 8) < 256:
            parts.append(int(code, 8))
        elif code in _SHORT_ESCAPES:
            parts.append(_SHORT_ESCAPES[code])
        else:
            raise ValueError(f"\\{code} is not an escape; a backslash itself is written \\\\")
    parts += text[at:].encode()
    return parts.decode()


def _encoded_code_point(number: int) -> bytes:
    if number > 0x10FFFF or 0xD800 <= number < 0xE000:
        raise ValueError(f"\\u{number:x} is not a character")
    return chr(number).encode()


def _quote(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\x{ord(match[0]):02x}", escaped) + '"'
