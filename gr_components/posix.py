"""File locks of Linux and macOS, which the local store needs; elsewhere importing this says so."""

try:
    import fcntl
except ImportError as error:
    msg = (
        "The local document store needs the file locks of Linux or macOS. On Windows, run this program in WSL, or use "
        "another document store of Haystack."
    )
    raise ImportError(msg) from error

__all__ = ["fcntl"]
