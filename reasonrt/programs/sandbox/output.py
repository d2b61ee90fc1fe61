"""What a cell prints, up to a number of characters."""

CUT = "\n[cut: {} more characters]"


class Output:
    """Collects text; what is too much is counted and dropped."""

    def __init__(self, max_characters: int, kept: str = "", num_cut: int = 0) -> None:
        self._left = max_characters
        self._parts: list[str] = []
        self.num_cut = num_cut
        self.write("stdout", kept)

    def write(self, stream: str, text: str) -> None:
        kept = text[: self._left]
        self._left -= len(kept)
        self.num_cut += len(text) - len(kept)
        if kept:
            self._parts.append(kept)

    @property
    def kept(self) -> str:
        return "".join(self._parts)

    @property
    def text(self) -> str:
        return self.kept + (CUT.format(self.num_cut) if self.num_cut else "")
