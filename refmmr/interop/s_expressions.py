"""S-expressions, the syntax of VNN-LIB files, from an untrusted source.

An expression is a word or a list of expressions in parentheses.  Nothing here recurses, and size
and nesting are limited, so no file exhausts memory or the stack.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path
from typing import NamedTuple

from refmmr._files import open_regular

__all__ = ["MAX_BYTES", "MAX_DEPTH", "Expression", "parse", "read_text"]

MAX_BYTES = 2**27
"""Size of a file, after decompression: several times a property of 224 x 224 colour images."""

MAX_DEPTH = 100
"""Nesting of parentheses; those who read the expressions may recurse as deep."""

TOKEN = re.compile(r'\n|[ \t\r\f]+|;[^\n]*|"[^"\n]*"|[()]|\[[^\]\n]*\]|[^\s();"\[\]]+|.')


class Expression(NamedTuple):
    """A word, or a list of expressions."""

    line: int  # where it begins, from 1
    word: str | None
    items: list[Expression]  # of a list

    @property
    def head(self) -> str:
        """The first word of a list, "" if it does not begin with a word."""
        return (self.items[0].word or "") if self.items else ""

    def __str__(self) -> str:
        """The word, or the beginning of the list."""
        return self.word if self.word is not None else f"({self.head} ...)"


def read_text(path: Path) -> str:
    """The text of a file, which may be compressed by gzip; a ValueError for one that is too large.

    Raises
    ------
    ValueError
        If it has more than `MAX_BYTES`, is a damaged archive, or is no text in UTF-8.
    """
    try:
        with open_regular(path) as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=file) as unpacked:
                    content = unpacked.read(MAX_BYTES + 1)
            else:
                content = file.read(MAX_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected a whole gzip archive, got a damaged one") from error
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path}: expected at most {MAX_BYTES} bytes of text, got more")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: expected text in UTF-8, got binary data") from error


def parse(text: str, name: str) -> list[Expression]:
    """The expressions of a text; comments begin with a semicolon.

    An index in brackets belongs to the word before it: ``X [0, 1]`` is the word ``X[0,1]``.

    Parameters
    ----------
    text : str
    name : str
        Of the file, for messages.

    Raises
    ------
    ValueError
        For parentheses without a partner, or nested too deeply; with the line.
    """
    line = 1
    top = Expression(1, None, [])
    open_lists = [top]
    for match in TOKEN.finditer(text):
        token = match.group()
        items = open_lists[-1].items
        if token == "\n":
            line += 1
        elif token[0] in " \t\r\f;":
            continue
        elif token == "(":
            if len(open_lists) > MAX_DEPTH:
                raise ValueError(
                    f"{name}, line {line}: expected parentheses at most {MAX_DEPTH} deep, got more"
                )
            items.append(Expression(line, None, []))
            open_lists.append(items[-1])
        elif token == ")":
            if len(open_lists) == 1:
                raise ValueError(f"{name}, line {line}: expected an expression, got ')'")
            open_lists.pop()
        elif token[0] == "[" and len(token) > 1:
            if not items or items[-1].word is None:
                raise ValueError(f"{name}, line {line}: expected a name before {token!r}")
            word = items[-1].word + re.sub(r"\s", "", token)
            items[-1] = items[-1]._replace(word=word)
        elif token in '[]"':
            raise ValueError(f"{name}, line {line}: expected an expression, got {token!r}")
        else:
            items.append(Expression(line, token, []))
    if len(open_lists) > 1:
        raise ValueError(
            f"{name}, line {open_lists[-1].line}: expected ')' for the list that begins here, got "
            "the end of the file"
        )
    return top.items
