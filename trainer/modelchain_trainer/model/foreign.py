"""Files that anybody may have written, read by libraries that raise whatever they like over them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from modelchain.errors import ModelChainError, UserDataError
from modelchain.status import cut

_LONGEST = 1_000  # characters of a message that quotes a file
NO_MEMORY = "DefaultCPUAllocator"  # torch raises a RuntimeError where a tensor finds no memory

P = ParamSpec("P")
R = TypeVar("R")


def of_foreign_files(read: Callable[Concatenate[Path, P], R]) -> Callable[Concatenate[Path, P], R]:
    """`read`, out of which only errors of ours come, on one line without control characters, and MemoryError."""

    @wraps(read)
    def checked(path: Path, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return read(path, *args, **kwargs)
        except MemoryError:
            raise
        except ModelChainError as error:
            error.public = cut(error.public, _LONGEST)
            raise
        except Exception as error:
            if NO_MEMORY in str(error):
                raise MemoryError(f"no memory for the tensors of {path}") from error
            raise UserDataError(
                f"{path}: damaged, or not the weights of a model ({type(error).__name__}); fetch it again, or write it "
                "anew"
            ) from error

    return checked
